"""Two data sets in one book: where their files and weights lie, and what measures them."""

import gzip
import json
import struct
from pathlib import Path

import pytest
import torch
from commands import refused
from tiny import SMALL_CLASS_UNETS, random_autoencoder

import diffusion_book
from diffusion_book import data
from diffusion_book.cli import pretrain
from diffusion_book.cli.main import main
from diffusion_book.data import sources
from diffusion_book.evaluation import features, measures
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.models import pipelines, weights
from diffusion_book.models.configs import ClassSetting
from diffusion_book.models.recipes import RECIPES, ConditionConfig, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.system.errors import BookError

FASHION = "fashion-mnist"


def write_packed(folder, first: int) -> None:
    """Fashion-MNIST's four files as Debian's package has them, with a few pictures; all pixels are `first` and more."""
    folder.mkdir(parents=True)
    for split, number in (("train", 6), ("t10k", 4)):
        images = b"".join(bytes([first + picture]) * 784 for picture in range(number))
        images = struct.pack(">IIII", 0x803, number, 28, 28) + images
        labels = struct.pack(">II", 0x801, number) + bytes(range(number))
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_a_package_of_the_system_is_looked_into_before_a_download(tmp_path, monkeypatch):
    assert (
        str(sources.SYSTEM / FASHION) == "/usr/share/datasets/fashion-mnist"
    )  # as `dpkg -L dataset-fashion-mnist` has it
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "_download", lambda *_: pytest.fail("it was downloaded"))
    write_packed(tmp_path / "system" / FASHION, 100)
    found = data.load(FASHION, "test", root=tmp_path / "empty")
    assert found.images[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert found.class_names[found.labels[1]] == "trouser"
    write_packed(tmp_path / "own" / "FashionMNIST" / "raw", 200)  # a root of one's own comes first
    assert data.load(FASHION, root=tmp_path / "own").images[0, 0, 0, 0] == 200


def test_nothing_of_the_system_is_taken_for_another_set(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "_download", lambda name, *_: asked.append(name))
    write_packed(tmp_path / "system" / FASHION, 100)
    for name in ("mnist", "kmnist"):
        with pytest.raises(StopIteration):  # nothing was found, nor came
            data.load(name, root=tmp_path / "empty")
    assert asked == ["mnist", "kmnist"]


@pytest.fixture
def few(monkeypatch):
    """In the place of Fashion-MNIST: 200 and 60 of scikit-learn's digits, upside down."""
    load = data.load

    def fake(name="auto", split="train", **options):
        if name != FASHION:
            return load(name, split, **options)
        found = load("digits", split)
        number = {"train": 200, "test": 60}[split]
        return data.Dataset(FASHION, found.images[:number].flip(2).contiguous(), found.labels[:number])

    monkeypatch.setattr(data, "load", fake)


@pytest.fixture
def tiny(monkeypatch, tmp_path, few):
    """A folder for weights that is empty, and recipes that are done in seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    training = TrainingConfig(epochs=1, batch_size=50, warmup_steps=2, ema_decay=0.5)
    for name in ("classifier", "classifier-check"):
        monkeypatch.setitem(RECIPES, name, Recipe(name, training))
    recipe = Recipe(
        "ldm-concat",
        training,
        SMALL_CLASS_UNETS["ldm-concat"],
        DiffusionConfig(timesteps=8),
        ConditionConfig(),
        is_latent=True,
    )
    monkeypatch.setitem(RECIPES, "ldm-concat", recipe)
    settings = tuple(ClassSetting("ddim", steps, num_samples=20) for steps in (1, 2, 3))
    monkeypatch.setitem(pretrain.SETTINGS, "ldm-concat", settings)
    caches = (features.classifier, features.reference_features, measures.floor)
    caches += (measures._precision_recall_of_real, measures._nearest_of_real)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path / "weights" / FASHION
    for cache in caches:
        cache.cache_clear()


def pretrained(tmp_path, *names: str) -> None:
    cpu = ["--device", "cpu", "--precision", "fp32", "--output_dir", str(tmp_path / "runs")]
    main(["pretrain", *names, "--dataset", FASHION, "--replace", *cpu])


def test_the_weights_of_another_set_from_their_training_to_their_samples(tiny, tmp_path, capsys):
    line = refused(capsys, "pretrain", "ldm-concat", "--dataset", FASHION, "--replace")
    assert (
        "nothing measures fashion-mnist here yet: diffusion-book pretrain classifier classifier-check reference" in line
    )
    assert features.yardstick(FASHION) is None
    pretrained(tmp_path, "classifier", "classifier-check", "reference")
    assert weights.shipped(tiny) == ["classifier", "classifier-check", "reference"]
    assert not list(tiny.parent.glob("*.safetensors"))  # MNIST's are left alone
    assert features.yardstick(FASHION) == FASHION

    # What the measures need of the set is its own.
    test = data.load(FASHION, "test").images
    seen = features.features(test, dataset=FASHION)
    assert torch.equal(features.reference_features(FASHION)["test"], seen.half().float())
    train = features.reference_features(FASHION)["train"]
    chosen = measures.real_indices(20, 3, FASHION)
    assert chosen.max() < len(train) == 200
    draws = [
        frechet_distance(train[measures.real_indices(20, draw, FASHION)], seen.half().float()) for draw in range(10)
    ]
    assert measures.floor(20, FASHION).mean == pytest.approx(sum(draws) / 10, rel=1e-6)
    assert measures.random_labels(9000, 10, FASHION).bincount().tolist() == pytest.approx([900] * 10, abs=120)

    autoencoder = random_autoencoder()
    card = {"model": "vae", "recipe": autoencoder.recipe.to_dict(), "data_set": FASHION}
    weights.write_weights("vae", autoencoder.network.state_dict(), card, tiny)
    pretrained(tmp_path, "ldm-concat")
    card = weights.read_card("ldm-concat", tiny)
    assert (card["data_set"], card["recipe"]["training"]["dataset"]) == (FASHION, FASHION)
    assert card["command"] == "diffusion-book pretrain ldm-concat --dataset fashion-mnist"
    assert [entry["steps"] for entry in card["metrics"]] == [1, 2]  # two figures are enough
    pipe = diffusion_book.load("ldm-concat", dataset=FASHION, device="cpu", precision="fp32")
    assert pipe.autoencoder.card["sha256"] == card["vae_sha256"] == weights.read_card("vae", tiny)["sha256"]
    labels = measures.random_labels(20, 10, FASHION)
    images = pipe.sample(20, labels=labels, guidance_scale=1.0, steps=2)
    found = measures.measure(images, labels, FASHION)
    assert found.cfid == pytest.approx(card["metrics"][1]["cfid"], rel=1e-3)
    assert found.floor == measures.floor(20, FASHION).mean

    capsys.readouterr()
    options = "--dataset fashion-mnist --steps 2 --num_samples 20 --device cpu --precision fp32"
    main(["evaluate", "ldm-concat", *options.split(), "--output_dir", str(tmp_path / "measured")])
    said = capsys.readouterr().out
    assert "times the distance of real pictures" in said
    assert "it agrees within 5%" in said
    drawn = "generate ldm-concat --dataset fashion-mnist --num_samples 2 --sampling_steps 1 --grid_only --device cpu"
    main([*drawn.split(), "--output_dir", str(tmp_path / "drawn")])
    looked = "diagnose ldm-concat --dataset fashion-mnist --num_samples 10 --num_pictures 128 --sampling_steps 1 --device cpu"
    main([*looked.split(), "--output_dir", str(tmp_path / "looked")])
    (report,) = (tmp_path / "looked").glob("*/report.json")
    assert json.loads(report.read_text())["model"] == "ldm-concat"
    assert weights.set_of("ldm-concat", FASHION) == FASHION
    assert diffusion_book.list_models(FASHION) == ["ldm-concat", "vae"]


def test_the_page_shows_what_weights_are_there(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs")
    import sets

    drawn = []
    monkeypatch.setattr(
        sets, "draw", lambda name, dataset, folder: drawn.append((name, dataset)) or f"{name}-{dataset}.png"
    )
    text = sets.page(tmp_path)
    there = [(name, dataset) for name in sets.SHOWN for dataset in sets.here(name)]
    assert drawn == there
    assert ("ldm-concat", "mnist") in there
    for name in sets.SHOWN:
        for dataset in weights.SETS:
            picture, command = f"(sets/{name}-{dataset}.png)", f"diffusion-book pretrain {name} --dataset {dataset}`"
            assert (picture in text, command in text) == ((name, dataset) in there, (name, dataset) not in there)


def test_sets_and_weights_that_are_not_there_are_refused(tmp_path, capsys):
    with pytest.raises(BookError) as info:
        diffusion_book.load("rf-reflow", dataset=FASHION)
    assert "the book has no weights of 'rf-reflow' for fashion-mnist" in str(info.value)
    assert "diffusion-book pretrain rf-reflow --dataset fashion-mnist --replace makes them" in str(info.value)
    with pytest.raises(BookError, match="unknown data set of weights 'cifar'"):
        diffusion_book.load("ddpm", dataset="cifar")
    with pytest.raises(BookError, match="says itself what it has learned"):
        pipelines.load(tmp_path, dataset=FASHION)
    assert "unknown data set 'kmnist'" in refused(capsys, "pretrain", "ddpm", "--dataset", "kmnist")
    assert weights.set_of("ddpm", "kmnist") is weights.set_of(str(tmp_path), FASHION) is None
