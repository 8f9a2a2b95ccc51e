"""`generate` and `evaluate` from end to end, and every checkpoint that they must refuse."""

import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from tiny import part_of_the_reference

from diffusion_book import data
from diffusion_book.cli import evaluate as evaluate_command
from diffusion_book.cli import generate as generate_command
from diffusion_book.cli.generate import ModelOptions, load_model
from diffusion_book.cli.main import main
from diffusion_book.data import quantise
from diffusion_book.data.samples import read_samples
from diffusion_book.evaluation import measures, settings
from diffusion_book.models import pipelines
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.recipes import RECIPES, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.errors import BookError
from diffusion_book.viz import outputs
from diffusion_book.viz.outputs import FORMATS, Drawn, save_pdf, write_pictures

TIMESTEPS = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny network with random weights, as if `train` had stopped early."""
    network_config = UNetConfig(base_channels=8, channel_multipliers=(1, 2), attention_levels=(1,), layers_per_block=1)
    recipe = Recipe("ddpm", TrainingConfig(dataset="digits"), network_config, DiffusionConfig(timesteps=TIMESTEPS))
    torch.manual_seed(0)
    network = UNet(recipe.network)
    for parameter in network.parameters():  # the last layer starts at zero, and then no picture shows anything
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    return save_checkpoint(path, {"recipe": recipe.to_dict(), "ema": network.state_dict()})


def generate(tmp_path, checkpoint, *options):
    """Run `generate ddpm` and give the folder that it made."""
    before = set(tmp_path.iterdir())
    where = ["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path), "--device", "cpu", "--precision", "fp32"]
    main(["generate", "ddpm", *where, *options])
    (folder,) = set(tmp_path.iterdir()) - before
    return folder


def test_generated_folder_is_complete(tmp_path, checkpoint, capsys):
    folder = generate(tmp_path, checkpoint, "--num_samples", "5", "--nrow", "3", "--ddim_steps", "4")
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"grid.png", "grid.pdf", *(f"sample_00{n}" for n in range(5))}
    assert Image.open(folder / "grid.png").size == (8 * (3 * 30 + 2), 8 * (2 * 30 + 2))
    for sample in folder.glob("sample_*"):
        assert {path.name for path in sample.iterdir()} == {"final.pdf", "denoising_strip.pdf", "denoising_steps"}
        assert sorted(path.name for path in (sample / "denoising_steps").iterdir()) == [
            "step_00_t1.000.pdf",
            "step_01_t0.750.pdf",
            "step_02_t0.500.pdf",
            "step_03_t0.250.pdf",
            "step_04_t0.000.pdf",
        ]
    for path in folder.rglob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert content.rstrip().endswith(b"%%EOF")


def test_the_grid_alone(tmp_path, checkpoint):
    folder = generate(tmp_path, checkpoint, "--num_samples", "5", "--ddim_steps", "2", "--grid_only")
    assert {path.name for path in folder.iterdir()} == {"grid.png", "grid.pdf"}


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("png", {"grid.png", *(f"samples/sample_00{n}.png" for n in range(5))}),
        ("npz", {"grid.png", "samples.npz"}),
        ("webp", {"grid.png", "grid.webp"}),
    ],
)
def test_every_format_holds_the_same_pictures(tmp_path, checkpoint, format, files):
    folder = generate(
        tmp_path, checkpoint, "--num_samples", "5", "--nrow", "3", "--ddim_steps", "4", "--format", format
    )
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == files
    drawn = np.array(Image.open(folder / "grid.png"))[::8, ::8]
    places = [(2 + 30 * (number // 3), 2 + 30 * (number % 3)) for number in range(5)]
    tiles = np.stack([drawn[y : y + 28, x : x + 28] for y, x in places])
    if format == "png":
        found = [np.array(Image.open(folder / f"samples/sample_00{number}.png")) for number in range(5)]
        assert np.array_equal(np.stack(found), tiles)
    elif format == "npz":
        with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
            assert arrays.files == ["images"]  # a model without classes
            assert np.array_equal(arrays["images"][:, 0], tiles)
    else:
        movie = Image.open(folder / "grid.webp")
        assert (movie.n_frames, movie.size) == (5, (4 * 92, 4 * 62))  # four steps, and the noise before them
        movie.seek(4)
        assert np.abs(np.array(movie.convert("L"), dtype=int)[2::4, 2::4] - drawn).mean() < 20  # lossy, and it is noise
    grid_only = generate(
        tmp_path, checkpoint, "--num_samples", "2", "--ddim_steps", "1", "--format", format, "--grid_only"
    )
    assert {path.name for path in grid_only.iterdir()} == files & {"grid.png", "grid.webp"}


def test_many_pictures_are_few_files_unless_they_are_asked_for(tmp_path, checkpoint, capsys):
    folder = generate(tmp_path, checkpoint, "--num_samples", "101", "--nrow", "11", "--ddim_steps", "1")
    assert {path.name for path in folder.iterdir()} == {"grid.png", "samples.npz"}
    assert (
        "notice: 101 pictures go into one file; --format pdf makes a folder of files for each"
        in capsys.readouterr().err
    )
    options = dataclasses.make_dataclass("Options", ["format", "num_samples", "grid_only"])
    asked = {(format, number): generate_command.format_of(options(format, number, False)) for format, number in WANTED}
    assert asked == WANTED


WANTED = {(None, 100): "pdf", (None, 2000): "npz", ("pdf", 2000): "pdf", ("png", 1): "png"}


def test_classes_are_folders_and_arrays_that_are_read_again(tmp_path):
    """What `generate` writes, `evaluate` and `train` read, with its classes."""
    stills = torch.rand(24, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    digits = Drawn([1.0, 0.5, 0.0], stills, torch.arange(24) % 10, tuple("0123456789"))
    shapes = digits._replace(labels=torch.arange(24) % 3, classes=("ring", "a/b", ".."))
    for name, drawn in (("digits", digits), ("shapes", shapes)):
        write_pictures(tmp_path / name, drawn, "png", 8)
        write_pictures(tmp_path / name, drawn, "npz", 8)
    for place in ("samples", "samples.npz"):
        images, labels = read_samples(tmp_path / "digits" / place)
        order = torch.argsort(digits.labels, stable=True) if place == "samples" else torch.arange(24)
        assert torch.equal(images, quantise(digits.images)[order])
        assert torch.equal(labels, digits.labels[order])
    assert {path.name for path in (tmp_path / "shapes" / "samples").iterdir()} == {"ring", "1", "2"}
    assert set(data.load(str(tmp_path / "shapes" / "samples.npz")).classes) == {"ring", "a/b", ".."}
    line = "is what `generate` has written: give .*samples.npz"
    with pytest.raises(BookError, match=line):
        read_samples(tmp_path / "digits")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_written_leaves_none_behind(tmp_path, format, monkeypatch):
    """A disk that is full when the last file of a format is written."""
    drawn = Drawn([1.0, 0.0], torch.zeros(3, 2, 1, 28, 28), torch.tensor([0, 1, 1]), ("a", "b"))
    last = {"pdf": "step_01_t0.000.pdf", "png": "sample_002.png", "npz": "samples.npz", "webp": "grid.webp"}[format]
    chmod = type(tmp_path).chmod

    def full(path, mode):
        if path.suffix == f".{format}" and path.stem.startswith(f".writing-{last.rsplit('.', 1)[0]}"):
            raise OSError(28, "No space left on device")
        chmod(path, mode)

    monkeypatch.setattr(type(tmp_path), "chmod", full)
    with pytest.raises(BookError, match=r"No space left on device.*: free some space"):
        write_pictures(tmp_path / "out", drawn, format, 2)
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert last not in left
    assert not [name for name in left if name.startswith(".writing")]


def test_an_animation_fits_into_its_format(tmp_path):
    """At one pixel a block, where larger blocks would go beyond 16,383."""
    drawn = Drawn([1.0, 0.0], torch.zeros(500, 2, 1, 28, 28))
    write_pictures(tmp_path, drawn, "webp", 500)
    assert Image.open(tmp_path / "grid.webp").size == (15_002, 32)
    outputs.check_fits("webp", 500, 500, 28)


def test_pictures_are_those_of_the_pipeline(tmp_path, checkpoint):
    """Also with a batch size that splits them, and with random sampling."""
    pipe = load_model("ddpm", ModelOptions(checkpoint, device="cpu", precision="fp32"))
    for options, expected in (
        (["--mode", "ddim", "--ddim_steps", "3"], pipe.sample(4, steps=3, seed=7)),
        (["--mode", "ddim", "--ddim_steps", "3", "--eta", "1"], pipe.sample(4, steps=3, eta=1.0, seed=7)),
        (["--mode", "ddpm"], pipe.sample(4, sampler="ddpm", steps=TIMESTEPS, seed=7)),
    ):
        folder = generate(tmp_path, checkpoint, "--num_samples", "4", "--seed", "7", "--batch_size", "3", *options)
        drawn = np.array(Image.open(folder / "grid.png"))[::8, ::8]
        tiles = np.stack([drawn[2:30, 2 + 30 * column : 30 + 30 * column] for column in range(4)])
        difference = tiles.astype(int) - quantise(expected)[:, 0].numpy().astype(int)
        assert np.abs(difference).max() <= 1  # a batch of another size may round differently


def test_ddpm_mode_walks_the_whole_grid_and_keeps_eleven_stills(tmp_path, checkpoint):
    folder = generate(tmp_path, checkpoint, "--mode", "ddpm", "--num_samples", "1")
    names = sorted(path.name for path in (folder / "sample_000" / "denoising_steps").iterdir())
    assert len(names) == 11
    assert (names[0], names[1], names[-1]) == ("step_00_t1.000.pdf", "step_01_t0.900.pdf", "step_10_t0.000.pdf")


def test_pdf_holds_the_picture_without_loss(tmp_path):
    """Each pixel is one block of the JPEG inside, so nothing of it is lost but rounding."""
    image = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    content = save_pdf(image, tmp_path / "picture.pdf").read_bytes()
    start = content.index(b"\xff\xd8\xff")
    (tmp_path / "inside.jpg").write_bytes(content[start : content.index(b"endstream", start)])
    inside = np.array(Image.open(tmp_path / "inside.jpg"))[4::8, 4::8].astype(int)
    assert np.abs(inside - quantise(image)[0, 0].numpy().astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--ddim_steps 0", "0 steps: the number of steps must be 1 to 20"),
        ("--ddim_steps 21", "21 steps: the number of steps must be 1 to 20"),
        ("--ddim_steps 5 --eta -0.5", "eta is -0.5: it must be between 0"),
        ("--ddim_steps 5 --eta 1.5", "eta is 1.5: it must be between 0"),
        ("--mode euler", "unknown mode 'euler': choose one of ddpm, ddim"),
        ("--num_samples 0", "0 samples: give at least 1"),
        ("--nrow 0", "--nrow is 0: it must be at least 1"),
        ("--format tiff", "unknown format 'tiff': choose one of pdf, png, npz, webp"),
        ("--format webp --num_samples 3000 --nrow 5", "3,000 pictures are 600 rows, and a WEBP holds at most 545"),
        ("--format webp --num_samples 600 --nrow 600", "--nrow is 600: a WEBP holds at most 545 pictures a row"),
        ("--batch_size 0", "batch_size is 0: it must be 1 or more"),
        ("--ddim_steps 5 --seed -1", "seed is -1: it must be 0 or more"),
        ("--device cuda:99", "device 'cuda:99' is not there"),
        ("--ddim_steps 5 --output-dir FILE/inside", "cannot make the folder"),
    ],
)
def test_generate_refuses(options, said, tmp_path, checkpoint, capsys):
    (tmp_path / "file").write_text("")
    options = options.replace("FILE", str(tmp_path / "file")).split()
    if "--output-dir" not in options:
        options += ["--output-dir", str(tmp_path / "new")]
    assert said in refused(capsys, "generate", "ddpm", "--checkpoint", checkpoint, *options)
    assert {path.name for path in tmp_path.rglob("*")} <= {"file", "new"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--sampler leapfrog", "unknown sampler 'leapfrog': choose one of ddpm, ddim, euler, midpoint, heun, dpm++"),
        ("--steps 0", "0 steps: the number of steps must be 1 to 20"),
        ("--steps 1000", "1000 steps: the number of steps must be 1 to 20"),
        ("--steps 5 --eta -1", "eta is -1.0: it must be between 0"),
        ("--steps 5 --num_samples 3", "3 samples: the measures need 10 to 60000"),
    ],
)
def test_evaluate_refuses(options, said, tmp_path, checkpoint, capsys):
    where = ["--checkpoint", checkpoint, "--output-dir", tmp_path / "new"]
    assert said in refused(capsys, "evaluate", "ddpm", *where, *options.split())
    assert not (tmp_path / "new").exists()


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("command", ["train", "generate", "evaluate"])
def test_bad_checkpoints_are_refused(command, tmp_path, checkpoint, capsys):
    def said(path):
        return refused(capsys, command, "ddpm", "--resume" if command == "train" else "--checkpoint", path)

    assert "there is no checkpoint" in said(tmp_path / "missing.pt")
    assert "no checkpoint in" in said(tmp_path)

    whole = checkpoint.read_bytes()
    (tmp_path / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    assert "is damaged or is no checkpoint" in said(tmp_path / "truncated.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "is damaged or is no checkpoint" in said(tmp_path / "empty.pt")

    recipe = RECIPES["classifier"].to_dict()
    save_checkpoint(tmp_path / "other.pt", {"recipe": recipe, "ema": build_classifier("classifier").state_dict()})
    assert "holds a 'classifier', not a 'ddpm'" in said(tmp_path / "other.pt")

    torch.save({"format": 1, "recipe": Code(tmp_path / "ran")}, tmp_path / "code.pt")
    assert "holds more than tensors and numbers and was not opened" in said(tmp_path / "code.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    assert "checkpoint" in said(tmp_path / "pickle.pt")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def small_reference():
    """Measures in seconds."""
    with part_of_the_reference():
        yield


def test_evaluate_writes_what_it_measures_and_compares_it_with_the_card(
    tmp_path, checkpoint, small_reference, monkeypatch, capsys
):
    options = [
        "--num_samples",
        "30",
        "--steps",
        "2",
        "--seed",
        "3",
        "--batch_size",
        "20",
        "--output-dir",
        str(tmp_path),
    ]
    options += ["--device", "cpu", "--precision", "fp32"]
    main(["evaluate", "ddpm", "--checkpoint", str(checkpoint), *options])
    said = capsys.readouterr().out.splitlines()
    (folder,) = tmp_path.iterdir()
    assert said[-1] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"measures.json", "grid.png"}
    pipe = load_model("ddpm", ModelOptions(checkpoint, device="cpu", precision="fp32"))
    expected = measures.measure(pipe.sample(30, steps=2, seed=3)).to_dict()
    found = json.loads((folder / "measures.json").read_text())
    assert found["cfid"] == pytest.approx(expected["cfid"], rel=1e-3)
    assert found["precision"] == expected["precision"]
    assert (found["sampler"], found["steps"], found["seed"], found["num_samples"]) == ("ddim", 2, 3, 30)
    assert any(line.startswith("cFID") and f"{found['cfid']:.4f}" in line for line in said)
    assert f"samples: {measures.sentence(found)}" in said
    (other,) = (line for line in said if line.startswith("this model was trained on the data set 'digits'"))
    real = evaluate_command.real_of_kind("digits", 30)
    assert real.ratio > 1.5  # real ones of that kind are far from MNIST
    assert f"not 1 is perfect for it, but what 30 of its own real pictures reach: {real.sentence()}" in other
    assert "a checkpoint of your own has no card to compare with" in said

    # The same network as shipped weights, with a card that is right, and with one that is not.
    for listed, verdict in ((found, "it agrees"), ({**found, "cfid": found["cfid"] * 1.2}, "it does NOT agree")):
        card = {"metrics": [listed]}
        with monkeypatch.context() as patch:
            patch.setattr(
                pipelines,
                "load",
                lambda name, card=card, vae=None, model=None, dataset=None, **where: pipelines.build(
                    pipe.recipe, pipe.network.state_dict(), card=card, **where
                ),
            )
            main(["evaluate", "ddpm", *options])
            assert any(verdict in line for line in capsys.readouterr().out.splitlines())
    assert settings.find_entry(card, found) is listed
    other = settings.find_entry(card, {**found, "steps": 3})
    assert evaluate_command.comparison(found, other, card) == "the card has no figures for this setting"


def pages_of(path):
    """Width and height of each JPEG in a PDF."""
    content, found, start = path.read_bytes(), [], 0
    while (start := content.find(b"\xff\xd8\xff", start)) >= 0:
        found.append(Image.open(io.BytesIO(content[start : content.index(b"endstream", start)])).size)
        start += 3
    return found


def test_a_grid_of_any_length_or_width_is_a_pdf(tmp_path):
    """A JPEG ends at 65,500 pixels: a column of 1,092 digits had 65,520 for each four of them."""
    images = torch.zeros(1092, 1, 28, 28)
    assert pages_of(save_pdf(images, tmp_path / "long.pdf", columns=4)) == [(8 * 122, 8 * 6002), (8 * 122, 8 * 2192)]
    assert pages_of(save_pdf(images[:300], tmp_path / "wide.pdf", columns=300)) == [(7 * 9002, 7 * 32)]


def test_rows_that_no_page_holds_are_refused_before_anything_is_drawn(tmp_path, checkpoint, capsys):
    options = ["--checkpoint", checkpoint, "--num_samples", 3000, "--nrow", 3000, "--format", "pdf"]
    line = refused(capsys, "generate", "ddpm", *options, "--output-dir", tmp_path / "out")
    assert "--nrow is 3000: a PDF holds at most 2,182 pictures a row" in line
    assert not (tmp_path / "out").exists()


def test_shipped_weights_draw_digits(tmp_path):
    if "ddpm" not in pipelines.list_models():
        pytest.skip("the weights of ddpm are not here yet")
    main(["generate", "ddpm", "--num_samples", "2", "--ddim_steps", "5", "--output-dir", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    picture = np.array(Image.open(folder / "grid.png"))[::8, ::8][2:30, 2:30]
    assert np.median(picture) < 20  # mostly background
    assert picture.max() > 200  # and ink
