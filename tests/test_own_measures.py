"""What is measured and mapped of models of your own pictures: restored pictures, and maps of real and drawn ones."""

import dataclasses
import html
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_distribution import flat_map
from test_own_forms import COLOURS, write_discs

from diffusion_book import data
from diffusion_book.cli import evaluate, visualize_distribution
from diffusion_book.cli.main import main
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.configs import ConditionConfig, DiffusionConfig, ELBOConfig, Recipe, TrainingConfig
from diffusion_book.models.pipelines import build_network

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def discs(tmp_path):
    return write_discs(tmp_path / "discs", each=20)


def training(place, **form) -> TrainingConfig:
    return TrainingConfig(dataset=str(place.resolve()), **form)


def vae_of(place) -> Path:
    """A VAE of colours that has learned nothing."""
    config = dataclasses.replace(tiny.SMALL_VAE, image_channels=3)
    recipe = Recipe("vae", training(place, image_size=32, channels=3), vae=config, elbo=ELBOConfig())
    content = {"recipe": recipe.to_dict(), "ema": tiny.random_vae(config).state_dict()}
    return save_checkpoint(place.parent / "vae.pt", content)


def evaluated(capsys, tmp_path, checkpoint) -> tuple[dict, str, Path]:
    where = ["--checkpoint", str(checkpoint), "--device", "cpu", "--precision", "fp32"]
    main(["evaluate", "vae", *where, "--output_dir", str(tmp_path / "measured")])
    said = capsys.readouterr().out
    folder = Path(said.splitlines()[-1])
    return json.loads((folder / "measures.json").read_text()), said, folder


def test_a_vae_of_own_pictures_is_measured_against_their_spread(discs, tmp_path, capsys, monkeypatch):
    train, test = (data.load(discs, split, image_size=32, channels=3) for split in ("train", "test"))
    answers = {
        "itself": lambda images: images,
        "the mean": lambda images: (train.images.double().mean(0) / 127.5 - 1).float().expand(len(images), -1, -1, -1),
        "another": lambda images: train.images[: len(images)].float() / 127.5 - 1,  # learned by heart
    }
    found = {}
    for name, answer in answers.items():
        monkeypatch.setattr(Autoencoder, "reconstruct", lambda self, images, answer=answer: answer(images))
        found[name], said, folder = evaluated(capsys, tmp_path, vae_of(discs))
    assert found["itself"]["num_samples"] == len(test) == 6
    assert (found["itself"]["error"], found["itself"]["elsewhere"]) == (0.0, 0.0)
    assert found["the mean"]["error"] == pytest.approx(1, abs=0.02)  # the mean is rounded to bytes
    assert found["another"]["elsewhere"] == 1.0
    assert found["another"]["nearest"]["distances"] == [0.0] * len(found["another"]["nearest"]["distances"])
    real, wrong = (pictures.double() / 255 for pictures in (test.images, train.images[:6]))
    spread = (real - train.images.double().mean(0) / 255).square().mean()
    assert found["another"]["error"] == pytest.approx(((real - wrong).square().mean() / spread).item(), rel=1e-3)
    assert "squared error as a share of the set's own spread: " in said
    with Image.open(folder / "grid.png") as picture:
        assert picture.mode == "RGB"
    assert (folder / "nearest.png").is_file()


def drawn(discs, tmp_path, capsys, monkeypatch, model: str, content: dict) -> tuple[dict, str, Path]:
    """What `visualize distribution` leaves of a model of the discs."""
    monkeypatch.setattr(visualize_distribution, "joint_map", flat_map)
    path = save_checkpoint(tmp_path / "model.pt", content)
    few = "--num_generated 20 --num_real 1000 --ddim_steps 2 --device cpu --precision fp32 --seed 0"
    main(["visualize", "distribution", "--checkpoint", str(path), "--output_dir", str(tmp_path / "maps"), *few.split()])
    said = capsys.readouterr().out
    folder = Path(said.splitlines()[-1])
    record, ways = (folder / name for name in ("distribution.json", "ways.html"))
    assert folder.name.endswith(f"-distribution-{model}")
    assert (folder / "distribution.png").is_file()
    return json.loads(record.read_text()), html.unescape(ways.read_text()), said


def test_a_map_of_own_pictures_with_their_classes(discs, tmp_path, capsys, monkeypatch):
    """A latent model is looked at in pixels and in the latents of its VAE; its pictures are what was asked for."""
    config = dataclasses.replace(tiny.SMALL_VAE, image_channels=3)
    form = training(discs, image_size=32, channels=3)
    vae = {"recipe": Recipe("vae", form, vae=config, elbo=ELBOConfig()).to_dict(), "sha256": None}
    vae["weights"] = tiny.random_vae(config).state_dict()
    recipe = Recipe(
        "ldm-concat",
        form,
        tiny.SMALL_CLASS_UNETS["ldm-concat"],
        DiffusionConfig(timesteps=4),
        ConditionConfig(num_classes=3),
        is_latent=True,
        classes=tuple(COLOURS),
    )
    torch.manual_seed(0)
    content = {"recipe": recipe.to_dict(), "ema": tiny.wake(build_network(recipe)).state_dict(), "autoencoder": vae}
    record, page, said = drawn(discs, tmp_path, capsys, monkeypatch, "ldm-concat", content)
    assert list(record["maps"]) == ["pixels", "latents of the VAE"]
    assert record["counts"] == {"real pictures": [20, 20, 20], "ldm-concat": [7, 7, 6]}
    assert record["labels"]["ldm-concat"] == [number % 3 for number in range(20)]
    assert record["labels_from"]["ldm-concat"] == "what was asked for"
    assert record["ways"]["samples"] == [0, 1, 2]  # one of each class
    assert all(f"sample {number}, {name}" in page for number, name in enumerate(COLOURS))
    assert "coloured by class" in page
    assert "as latents of the VAE (of real ones:" in page
    assert all(name in said.splitlines()[-4] for name in COLOURS)


def test_a_map_of_own_pictures_without_classes(discs, tmp_path, capsys, monkeypatch):
    network = dataclasses.replace(tiny.SMALL_UNET, in_channels=1, image_size=32, patch_size=8)
    recipe = Recipe("ddpm", training(discs), network, DiffusionConfig(timesteps=4))
    torch.manual_seed(0)
    content = {"recipe": recipe.to_dict(), "ema": tiny.wake(build_network(recipe)).state_dict()}
    record, page, _ = drawn(discs, tmp_path, capsys, monkeypatch, "ddpm", content)
    assert list(record["maps"]) == ["pixels"]
    assert record["counts"] == {"real pictures": [60], "ddpm": [20]}
    assert record["ways"]["samples"] == list(range(8))
    learned = [data.load(discs, split).images.float() / 127.5 - 1 for split in ("train", "test")]
    first = torch.cat(learned).flatten(1)[:, :2]  # where this map has them
    found = np.array(record["maps"]["pixels"]["real pictures"])
    assert sorted(map(tuple, found.round(3))) == sorted(map(tuple, first.double().numpy().round(3)))
    assert "sample 0, discs" in page
    assert "digit" not in page.split("<figcaption")[1]


def test_pixels_of_colours_are_told_apart():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1, 2] = 255
    difference = evaluate.pixels(images)[0] - evaluate.pixels(images)[1]
    assert difference.norm().item() == pytest.approx((1 / 3) ** 0.5)  # one of three colours is all wrong
