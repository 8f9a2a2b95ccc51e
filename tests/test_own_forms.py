"""Pictures of your own in other forms than the book's: larger, and in colour."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image, ImageDraw

from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.data import own
from diffusion_book.models import configs, pipelines
from diffusion_book.models.configs import Recipe, TrainingConfig, recipe_from_dict
from diffusion_book.models.recipes import RECIPES
from diffusion_book.viz.animation import save_animation
from diffusion_book.viz.grids import GAP, grid
from diffusion_book.viz.scrubber import sprite_sheet
from diffusion_book.viz.sweep import show_cells

COLOURS = {"blue": (40, 60, 220), "green": (30, 180, 60), "red": (220, 40, 40)}
SMALL = "--base_channels 8 --channel_multipliers 1 --layers_per_block 1"
RUN = "--epochs 1 --batch_size 16 --warmup_steps 1 --device cpu --precision fp32 --seed 1"


def write_discs(folder: Path, each: int = 50, size: int = 40) -> Path:
    """A folder for each colour: discs of it on black, each of its own size."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture, r = Image.new("RGB", (size, size)), size * (0.25 + 0.02 * (number % 10))
            box = [size / 2 - r, size / 2 - r, size / 2 + r, size / 2 + r]
            ImageDraw.Draw(picture).ellipse(box, fill=colour)
            picture.save(folder / name / f"{number}.png")
    return folder


pytestmark = pytest.mark.usefixtures("fresh_cache")


def run(capsys, command: str) -> str:
    """Run a command; gives what it prints last."""
    main(command.split())
    return capsys.readouterr().out.splitlines()[-1]


def test_the_sizes_of_the_options_are_those_of_the_data():
    assert (configs.IMAGE_SIZES, configs.CHANNELS) == (own.SIZES, own.CHANNELS)
    for size in own.SIZES:
        batch = data.Dataset("x", torch.zeros(2, 3, size, size, dtype=torch.uint8), torch.zeros(2)).batch(
            torch.arange(2)
        )
        seen = configs.BORDERED.get(size, size)
        assert batch[0].shape == (2, 3, seen, seen)
        assert data.crop(batch[0], size).shape == (2, 3, size, size)
        fitted = Recipe("ddpm", TrainingConfig(image_size=size, channels=3), RECIPES["ddpm"].network).fitted()
        assert (fitted.network.in_channels, fitted.network.image_size) == (3, seen)
    assert all(recipe.fitted() == recipe for recipe in RECIPES.values())


def test_a_model_of_colours_from_the_folder_to_its_diagnosis(tmp_path, capsys):
    discs, size = write_discs(tmp_path / "discs"), 32
    form = f"--image_size {size} --channels 3"
    train = f"train ddpm --dataset {discs} {form} {SMALL} --attention_levels 0 --timesteps 10 --sampling_steps 2 {RUN}"
    folder = run(capsys, f"{train} --output_dir {tmp_path}")
    pipe = pipelines.load(folder, device="cpu")
    assert pipe.recipe.picture_shape == pipe.shape == (3, size, size)
    assert recipe_from_dict(json.loads(json.dumps(pipe.recipe.to_dict()))) == pipe.recipe
    assert pipe.sample(2, steps=1).shape == (2, 3, size, size)
    checkpoint = f"--checkpoint {folder} --device cpu --output_dir {tmp_path / 'made'}"
    for kind in ("png", "npz", "pdf", "webp"):  # the checkpoint says which form they have
        made = run(capsys, f"generate ddpm {checkpoint} --ddim_steps 2 --num_samples 4 --nrow 2 --format {kind}")
        with Image.open(f"{made}/grid.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (8 * (2 * (size + 2) + 2),) * 2)
        if kind == "npz":
            with np.load(f"{made}/samples.npz") as arrays:
                assert arrays["images"].shape == (4, 3, size, size)
    report = run(capsys, f"diagnose ddpm {checkpoint} --sampling_steps 2 --num_samples 10 --num_pictures 128")
    with Image.open(f"{report}/samples_ddim.png") as picture:
        assert picture.mode == "RGB"
    found = Path(run(capsys, f"evaluate ddpm {checkpoint} --steps 2 --num_samples 20"))
    assert json.loads((found / "measures.json").read_text())["num_samples"] == 20
    run(capsys, f"train ddpm --resume {folder} --epochs 2 --device cpu --precision fp32")
    line = refused(capsys, "train", "ddpm", "--resume", folder, "--channels", "1", "--epochs", "3")
    assert "--channels 1 contradicts the checkpoint, which was trained with 3" in line


def test_larger_pictures(tmp_path, capsys):
    discs = write_discs(tmp_path / "discs", each=10)
    train = f"train rf --dataset {discs} --image_size 64 --channels 3 --patch_size 8 {SMALL} --attention_levels 0 {RUN}"
    folder = run(capsys, f"{train} --sampling_steps 1 --output_dir {tmp_path}")
    assert pipelines.load(folder, device="cpu").sample(2, steps=1).shape == (2, 3, 64, 64)
    with Image.open(f"{folder}/final_samples/grid.png") as picture:
        assert picture.size == (4 * (8 * 66 + 2),) * 2  # blocks half as large as a digit's


def test_a_latent_model_follows_its_vae(tmp_path, capsys):
    discs = write_discs(tmp_path / "discs", each=20)
    form = "--image_size 32 --channels 3"
    vae = run(
        capsys, f"train vae --dataset {discs} {form} --patch_size 8 {SMALL} {RUN} --output_dir {tmp_path / 'vae'}"
    )
    autoencoder = pipelines.load(vae, device="cpu")
    images, _ = data.load(discs, image_size=32, channels=3).batch(torch.arange(4))
    assert autoencoder.reconstruct(images).shape == (4, 3, 32, 32)
    with Image.open(f"{vae}/final_samples/reconstructions.png") as picture:
        assert picture.mode == "RGB"
    train = f"train ldm-concat --dataset {discs} --vae {vae} {SMALL} --attention_levels 0 {RUN} --output_dir {tmp_path}"
    folder = run(capsys, train)
    pipe = pipelines.load(folder, device="cpu")
    assert pipe.recipe.picture_shape == (3, 32, 32)
    assert pipe.shape == autoencoder.latent_shape == (2, 4, 4)
    assert pipe.sample(2, labels=1, steps=1).shape == (2, 3, 32, 32)
    where = f"--device cpu --output_dir {tmp_path / 'made'}"
    options = f"--concat_checkpoint {folder} {where} --sampling_steps 2 --samples_per_cell 2 --guidance_scales 0 3"
    drawn = run(capsys, f"visualize guidance {options}")
    assert Image.open(f"{drawn}/guidance.png")
    space = run(capsys, f"visualize latent-space --checkpoint {vae} {where} --no_umap")
    with Image.open(f"{space}/interpolation.png") as picture:
        assert picture.mode == "RGB"
    line = refused(capsys, *train.split(), "--image_size", "64")
    assert "image_size" in line.replace("-", "_")


def test_bad_forms_are_refused_at_the_door(tmp_path, capsys):
    discs, where = write_discs(tmp_path / "discs", each=10), ["--output_dir", tmp_path / "new"]
    for options, said in (
        (["--dataset", discs, "--image_size", "30"], "image_size is 30: choose 28, 32 or 64"),
        (["--dataset", discs, "--channels", "2"], "channels is 2: choose 1 or 3"),
        (["--dataset", "digits", "--channels", "3"], "the pictures of 'digits' are 28 x 28 and grey: leave out"),
        (["--image_size", "64"], "the pictures of 'auto' are 28 x 28 and grey: leave out"),
    ):
        assert said in refused(capsys, "train", "ddpm", *options, *where)
    assert not (tmp_path / "new").exists()


def test_pictures_in_colour_keep_their_colours():
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)
    images = colours[:, :, None, None].expand(3, 3, 4, 4)
    picture = grid(images, columns=2, padding=1)
    assert picture.shape == (11, 11, 3)
    for number, (top, left) in enumerate([(1, 1), (1, 6), (6, 1)]):
        assert (picture[top : top + 4, left : left + 4] == colours[number]).all()
    assert (picture[0] == GAP).all()
    assert (picture[6:10, 6:10] == GAP).all()  # the place of a fourth
    for channel in range(3):  # as three grey grids
        assert torch.equal(picture[..., channel], grid(images[:, [channel]], columns=2, padding=1))
    frames = torch.stack([picture, 255 - picture])
    sheet, columns = sprite_sheet(frames)
    assert torch.equal(sheet[:11, :11], picture)
    assert torch.equal(sheet[:11, 11:] if columns == 2 else sheet[11:], 255 - picture)
    cells = show_cells({"model": images[None, :, None] / 127.5 - 1}, ["one"], [0.0, 1.0, 2.0])
    drawn = cells.axes[0].get_images()[0].get_array()
    assert (drawn[1, 1] == next(iter(COLOURS.values()))).all()


def test_an_animation_in_colour(tmp_path):
    frames = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
    frames[..., 0] = 200
    frames[1, ..., 0], frames[1, ..., 2] = 0, 200
    save_animation(frames, tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as movie:
        seen = []
        for number in range(movie.n_frames):
            movie.seek(number)
            seen.append(np.asarray(movie.convert("RGB")).mean(axis=(0, 1)))
    assert len(seen) == 3
    assert [int(colour.argmax()) for colour in seen] == [0, 2, 0]
