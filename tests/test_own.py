"""Pictures of your own: drawn shapes, from a folder to a trained model, its samples and its pictures."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image, ImageDraw

from diffusion_book import data
from diffusion_book.cli import evaluate, train
from diffusion_book.cli.main import main
from diffusion_book.data import own
from diffusion_book.models import pipelines
from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.models.configs import Setting, TrainingConfig
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import recipe_of
from diffusion_book.system.errors import BookError

SHAPES = ("circle", "square", "triangle")
SMALL = "--base_channels 8 --channel_multipliers 1 --layers_per_block 1"
RUN = "--epochs 1 --batch_size 16 --warmup_steps 1 --device cpu --precision fp32 --seed 1"


def shape(kind: str, number: int, paper: int = 255, size: int = 48) -> Image.Image:
    """A drawn shape, ink on paper, of its own size and place for each number."""
    picture = Image.new("L", (size, size), paper)
    draw = ImageDraw.Draw(picture)
    x, y, r = size / 2 + number % 5 - 2, size / 2 + number % 3 - 1, size * (0.2 + 0.01 * (number % 15))
    if kind == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], outline=255 - paper, width=4)
    elif kind == "square":
        draw.rectangle([x - r, y - r, x + r, y + r], outline=255 - paper, width=4)
    else:
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], outline=255 - paper, width=4)
    return picture


def write_shapes(folder, each: int = 20, paper: int = 255):
    """A folder for each kind of shape, in all three formats, grey and colour."""
    for kind in SHAPES:
        (folder / kind).mkdir(parents=True)
        for number in range(each):
            suffix, mode = ("png", "jpg", "webp")[number % 3], ("L", "RGB")[number % 2]
            shape(kind, number, paper).convert(mode).save(folder / kind / f"{number}.{suffix}")
    return folder


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def shapes(tmp_path):
    return write_shapes(tmp_path / "shapes")


def test_a_folder_for_each_class(shapes):
    train, test = data.load(shapes), data.load(str(shapes), "test")
    assert (train.name, train.classes, train.class_names) == ("shapes", SHAPES, list(SHAPES))
    assert (len(train), len(test)) == (54, 6)  # every tenth is for testing
    assert torch.equal(train.labels.bincount() + test.labels.bincount(), torch.tensor([20, 20, 20]))
    assert train.images.shape == (54, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert data.load(train.place).images.equal(train.images)


def test_the_books_ink_is_bright(shapes, tmp_path, capsys):
    """Ink on paper is inverted, and said to be; bright ink stays as it is."""
    dark_ink = data.load(shapes)
    assert "notice: the pictures are dark on bright, and were inverted, in shapes" in capsys.readouterr().err
    bright_ink = data.load(write_shapes(tmp_path / "bright", paper=0))
    assert "inverted" not in capsys.readouterr().err
    for images in (dark_ink.images, bright_ink.images):
        assert images[:, :, 0].float().mean() < 20  # the background
    assert (dark_ink.images.float() - bright_ink.images.float()).abs().mean() < 4  # JPEG and WebP lose a little


def test_pictures_of_the_books_form_are_taken_bit_for_bit(tmp_path):
    images = data.load("digits").images[:40]
    for number, image in enumerate(images):
        (tmp_path / "same").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "same" / f"{number}.png")
    found = [data.load(tmp_path / "same", split) for split in ("train", "test")]
    held_out = torch.arange(40) % 10 == 9  # 10 comes after 9, and not after 1
    assert torch.equal(found[0].images, images[~held_out])
    assert torch.equal(found[1].images, images[held_out])
    assert found[0].class_names == ["same"]


def test_folders_named_train_and_test(tmp_path):
    write_shapes(tmp_path / "split" / "train", each=8)
    write_shapes(tmp_path / "split" / "test", each=3)
    train, test = (data.load(tmp_path / "split", split) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (24, 9, SHAPES)
    assert test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_damaged_and_strange_files_are_named_and_counted(shapes, capsys):
    whole = (shapes / "circle" / "0.png").read_bytes()
    (shapes / "circle" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (shapes / "square" / "notes.txt").write_text("not a picture")
    (shapes / "stray.png").write_bytes(whole)
    Image.new("L", (30, 30), 255).save(shapes / "triangle" / "white.png")
    frames = [shape("circle", number) for number in range(3)]
    frames[0].save(shapes / "triangle" / "moves.webp", save_all=True, append_images=frames[1:])
    (shapes / ".DS_Store").write_bytes(b"")
    assert len(data.load(shapes)) == 54  # what stands beside it takes no picture's place
    said = capsys.readouterr().err
    assert (
        "notice: skipped 5 of 65 files: circle/broken.png (damaged), square/notes.txt (no PNG, JPEG or WebP), " in said
    )
    assert said.count("\n") == 2
    reasons = {}
    for picture in own.pictures_in(shapes)[0]:
        try:
            own.convert(picture.content, 28, 1)
        except Exception as error:
            reasons[picture.name] = own.reason_of(error)
    assert reasons["triangle/white.png"] == "blank"
    assert reasons["triangle/moves.webp"] == "an animation"


def test_transparent_sixteen_bit_and_oblong_pictures(tmp_path):
    see_through = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    ImageDraw.Draw(see_through).rectangle([10, 10, 29, 29], fill=(0, 0, 0, 255))
    see_through.save(tmp_path / "a.png")
    found = own.convert(tmp_path / "a.png", 28, 1)[..., 0]
    assert (found[0, 0], found[14, 14]) == (255, 0)
    deep = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28) * 80
    Image.fromarray(deep).save(tmp_path / "b.png")
    assert np.abs(own.convert(tmp_path / "b.png", 28, 1)[..., 0] - deep / 257).max() <= 0.5
    oblong = np.zeros((28, 84), np.uint8)
    oblong[:, 28:56] = 200
    oblong[5, 5] = 255  # outside the middle square
    Image.fromarray(oblong).save(tmp_path / "c.png")
    assert (own.convert(tmp_path / "c.png", 28, 1) == 200).all()


def test_the_cache_goes_by_content(shapes, tmp_path, monkeypatch):
    first = data.load(shapes)
    with monkeypatch.context() as patch:
        patch.setattr(own, "convert_all", lambda *_: pytest.fail("converted again"))
        assert torch.equal(data.load(shapes).images, first.images)
    shape("circle", 3).save(shapes / "square" / "1.jpg")  # the same name and number of files
    assert not torch.equal(data.load(shapes).images, first.images)


@pytest.mark.parametrize("layout", ["bytes", "floats", "signed", "channels last", "split"])
def test_arrays(tmp_path, layout):
    images, labels = data.load("digits").images[:60, 0].numpy(), np.array([SHAPES[number % 3] for number in range(60)])
    arrays = {
        "bytes": {"images": images, "labels": labels},
        "floats": {"x": images / 255, "y": labels},
        "signed": {"arr_0": images[:, None] / np.float32(127.5) - 1, "arr_1": labels},
        "channels last": {"images": images[..., None], "labels": labels},
        "split": {"x_train": images[:50], "y_train": labels[:50], "x_test": images[50:], "y_test": labels[50:]},
    }[layout]
    np.savez(tmp_path / "mine.npz", **arrays)
    train, test = (data.load(str(tmp_path / "mine.npz"), split) for split in ("train", "test"))
    held_out = np.arange(60) >= 50 if layout == "split" else np.arange(60) % 10 == 9
    assert np.array_equal(train.images[:, 0].numpy(), images[~held_out])
    assert np.array_equal(test.images[:, 0].numpy(), images[held_out])
    assert [train.classes[label] for label in train.labels] == labels[~held_out].tolist()


def bad_places(folder):
    """What is refused, and what is said."""
    (folder / "empty").mkdir()
    (folder / "few").mkdir()
    for number in range(3):
        shape("circle", number).save(folder / "few" / f"{number}.png")
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    np.savez(folder / "objects.npz", images=np.array([{}, 1], dtype=object))
    np.savez(folder / "names.npz", weights=np.zeros(3))
    np.savez(folder / "flat.npz", images=np.zeros((30, 784), np.uint8))
    np.savez(folder / "loud.npz", images=np.full((30, 28, 28), 900.0))
    np.savez(folder / "labels.npz", images=np.zeros((30, 28, 28), np.uint8), labels=np.zeros(29, int))
    return {
        "missing/": "there is no folder",
        "missing.npz": "there is no folder",
        "empty": "holds no pictures",
        "few": "holds 3 pictures that can be used: give at least 20",
        "broken.npz": "cannot be read as an .npz",
        "objects.npz": "cannot be read as an .npz",
        "names.npz": "holds the arrays weights: name yours images and labels",
        "flat.npz": "has the shape (30, 784)",
        "loud.npz": "lies between 900 and 900",
        "labels.npz": "of shape (29,): give whole numbers or words, one for each picture",
    }


def test_bad_input_is_refused_at_the_door(tmp_path, capsys):
    for place, said in bad_places(tmp_path).items():
        with pytest.raises(BookError) as info:
            data.load(f"{tmp_path}/{place}")
        assert said in str(info.value)
        assert "\n" not in str(info.value)
    where = ["--output_dir", tmp_path / "new"]
    assert "holds no pictures" in refused(capsys, "train", "ddpm", "--dataset", tmp_path / "empty", *where)
    assert not (tmp_path / "new").exists()
    with pytest.raises(BookError, match="unknown data set 'squares'") as info:
        data.load("squares")
    assert str(info.value).endswith("digits, or a folder or .npz of your own")


def run(capsys, command: str) -> str:
    """Run a command; gives what it prints last, and keeps what it said."""
    main(command.split())
    return capsys.readouterr().out.splitlines()[-1]


def test_a_model_of_classes_from_the_folder_to_its_pictures(shapes, tmp_path, capsys):
    vae = run(capsys, f"train vae --dataset {shapes} --patch_size 8 {SMALL} {RUN} --output_dir {tmp_path / 'vae'}")
    train = (
        f"train ldm-concat --dataset {shapes} --vae {vae} {SMALL} --attention_levels 0 {RUN} --output_dir {tmp_path}"
    )
    main(train.split())
    said = capsys.readouterr()
    assert "notice: 54 pictures are few, and a model may learn them by heart" in said.err
    assert "the VAE has learned" not in said.err
    folder = said.out.splitlines()[-1]
    pipe = pipelines.load(folder, device="cpu")
    assert (pipe.num_classes, pipe.recipe.class_names) == (3, list(SHAPES))
    assert pipe.recipe.training.dataset == str(shapes.resolve())

    checkpoint = f"--checkpoint {folder} --device cpu --output_dir {tmp_path / 'made'}"
    made = run(capsys, f"generate ldm-concat {checkpoint} --num_samples 3 --sampling_steps 2 --grid_only")
    assert Image.open(f"{made}/grid.png").size == (8 * (3 * 30 + 2), 8 * 32)
    drawn = {}
    for label in ("square", "1", "-1"):
        files = f"--class_label {label} --num_samples 2 --sampling_steps 2 --format npz"
        with np.load(run(capsys, f"generate ldm-concat {checkpoint} {files}") + "/samples.npz") as arrays:
            drawn[label] = arrays["images"]
            assert arrays["classes"].tolist() == list(SHAPES)
    assert np.array_equal(drawn["square"], drawn["1"])
    assert not np.array_equal(drawn["square"], drawn["-1"])
    line = refused(capsys, "generate", "ldm-concat", *checkpoint.split(), "--class_label", "star")
    assert line == "error: --class_label is 'star': 'ldm-concat' knows the classes circle, square, triangle"
    options = f"{checkpoint.replace('--checkpoint', '--concat_checkpoint')} --sampling_steps 2 --samples_per_cell 1"
    run(capsys, f"visualize guidance {options} --guidance_scales 0 3")
    latent_space = run(capsys, f"visualize latent-space {checkpoint.replace(folder, vae)} --no_umap")
    assert Image.open(f"{latent_space}/positions.png")
    line = refused(capsys, "diagnose", "ldm-concat", *checkpoint.split(), "--class_label", "3")
    assert "the model knows the classes 0 to 2" in line

    # To go on where it stopped; other classes are another training.
    run(capsys, f"train ldm-concat --resume {folder} --epochs 2 --device cpu --precision fp32")
    assert load_checkpoint(f"{folder}/checkpoints/last.pt")["recipe"]["classes"] == list(SHAPES)
    (shapes / "circle").rename(shapes / "ring")
    line = refused(capsys, "train", "ldm-concat", "--resume", folder, "--epochs", "3", "--device", "cpu")
    assert (
        "this training began with the classes circle, square, triangle, and shapes has ring, square, triangle" in line
    )


def test_a_model_of_classes_wants_classes(tmp_path, capsys):
    shapes = write_shapes(tmp_path / "shapes", each=30, paper=0)
    line = refused(capsys, "train", "ldm-concat", "--dataset", shapes / "circle", "--output_dir", tmp_path / "new")
    assert "'ldm-concat' learns classes, and circle has none: put the pictures of each into a folder of its own" in line


def test_a_model_without_classes_from_the_folder_to_its_diagnosis(tmp_path, capsys):
    write_shapes(tmp_path / "many", each=50)
    train = (
        f"train ddpm --dataset {tmp_path / 'many'} {SMALL} --attention_levels 0 --timesteps 10 --sampling_steps 2 {RUN}"
    )
    folder = run(capsys, f"{train} --output_dir {tmp_path}")
    options = f"--checkpoint {folder} --device cpu --sampling_steps 2 --num_samples 10 --num_pictures 128"
    report = run(capsys, f"diagnose ddpm {options} --output_dir {tmp_path / 'diagnosis'}")
    assert Image.open(f"{report}/samples.png")

    # The samples beside the training pictures that they are nearest to.
    measured = f"evaluate ddpm --checkpoint {folder} --device cpu --steps 2 --output_dir {tmp_path / 'measured'}"
    main(measured.split())
    said = capsys.readouterr().out
    made = json.loads((Path(said.splitlines()[-1]) / "measures.json").read_text())
    assert (made["num_samples"], made["dataset"]) == (135, str((tmp_path / "many").resolve()))  # as many as it learned
    assert "135 samples of a model of 135 pictures of many" in said
    assert f"difference a pixel from the nearest training picture, in the middle: {made['nearest_train']:.4f}" in said
    assert "by heart" not in said
    assert made["nearest"]["distances"] == sorted(made["nearest"]["distances"])
    assert Image.open(Path(said.splitlines()[-1]) / "nearest.png")
    (tmp_path / "many").rename(tmp_path / "moved")
    assert "there is no folder" in refused(capsys, *measured.split())


def test_copies_are_told(tmp_path, capsys, monkeypatch):
    """A model that gives its training pictures back, with a little noise."""
    shapes = tmp_path / "shapes"
    write_shapes(shapes / "train", each=10)
    for kind in SHAPES:
        (shapes / "test" / kind).mkdir(parents=True)
        shape(kind, 3, size=36).save(shapes / "test" / kind / "other.png")
    train, test = (data.load(shapes, split) for split in ("train", "test"))
    recipe = dataclasses.replace(recipe_of("ddpm"), training=TrainingConfig(dataset=str(shapes)))
    noise = torch.randn(len(train), 1, 28, 28, generator=torch.Generator().manual_seed(0))
    drawn = (train.images.float() / 127.5 - 1).flip(0) + 0.01 * noise
    pipe = SimpleNamespace(recipe=recipe, ask=Pipeline(recipe, None, None, None, {}).ask, draw=lambda *_: drawn)
    options = SimpleNamespace(setting=Setting(steps=2), model=SimpleNamespace(batch_size=8), output_dir=tmp_path)
    images, entry, compared, _, training = evaluate.evaluate_own(pipe, options)
    assert images is compared is drawn
    assert torch.equal(training, train.images)
    assert "the model has learned pictures by heart" in capsys.readouterr().out
    copies = entry["nearest"]
    assert [len(train) - 1 - picture for picture in copies["pictures"]] == copies["training"]
    difference = evaluate.pixels(test.images)[:, None] - evaluate.pixels(train.images)
    assert entry["nearest_train_real"] == pytest.approx(difference.norm(dim=2).min(1).values.median().item(), abs=1e-5)


PAGE = (Path(__file__).parents[1] / "docs" / "own_pictures.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_for_readers_can_be_followed(tmp_path, capsys, monkeypatch):
    """Its shapes are drawn, and its commands are given in their order, with small networks."""
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {})
    assert [len(list((tmp_path / "shapes" / name).iterdir())) for name in SHAPES] == [100] * 3
    commands = re.findall(r"^diffusion-book (.+)$", PAGE, re.MULTILINE)
    assert len(commands) == 11
    folders = {}
    for command in commands:
        words = [folders.get(word, word) for word in command.split() if word not in ("--max-minutes", "10")]
        if command.startswith("train vae"):
            words += f"{SMALL} {RUN} --patch_size 4".split()
        elif command.startswith("train"):
            words += f"{SMALL} {RUN} --attention_levels 0 --timesteps 20".split()
        else:
            words += ["--device", "cpu"]
        folder = run(capsys, " ".join([*words, STEPS.get(" ".join(words[:2]), "")]))
        if words[0] == "train":
            folders["VAE" if words[1] == "vae" else "EXPERIMENT"] = folder
    assert data.load("shapes").classes == SHAPES


STEPS = {
    "generate ddpm": "--ddim_steps 2 --grid_only",
    "evaluate ddpm": "--steps 2 --num_samples 20",
    "diagnose ddpm": "--sampling_steps 2 --ddpm_steps 2 --num_samples 10 --num_pictures 128",
    "generate ldm-concat": "--sampling_steps 2 --grid_only",
    "visualize guidance": "--sampling_steps 2 --samples_per_cell 1 --guidance_scales 0 3",
    "visualize latent-space": "--no_umap",
    "visualize distribution": "--ddim_steps 2 --num_generated 20 --num_real 20",
}


def test_a_folder_that_is_called_like_a_set_of_the_book_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of("vae")
    for name in data.NAMES:
        (tmp_path / name).mkdir()
        assert not data.is_place(name)
        assert data.is_place(f"./{name}")
        asked = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, dataset=name))
        train.check_unchanged(asked, asked)  # a training of it goes on
