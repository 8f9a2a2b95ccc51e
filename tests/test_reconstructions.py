"""The figures on an autoencoder's card, and the commands that make and repeat them."""

import json

import pytest
import torch
from commands import refused
from tiny import SMALL_VAE, pictures, random_autoencoder, random_latent_pipeline

from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.evaluation import measures, reconstructions
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.models import weights
from diffusion_book.models.autoencoder import build_autoencoder
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.recipes import recipe_from_dict, recipe_of
from diffusion_book.system.errors import BookError


@pytest.fixture
def few_pictures(monkeypatch):
    """Where MNIST is asked for, scikit-learn's digits; and neighbours looked for among few."""
    whole = reference_features()
    part = whole | {"train": whole["train"][:1000], "test": whole["test"][:500]}
    for module in (measures, reconstructions):
        monkeypatch.setattr(module, "reference_features", lambda *_: part)
    digits = pictures(1797)
    monkeypatch.setattr(data, "load", lambda name, split="train": digits)
    caches = (measures.floor, measures._precision_recall_of_real, measures._nearest_of_real)
    for cache in caches:
        cache.cache_clear()
    yield digits
    for cache in caches:
        cache.cache_clear()


class Perfect:
    """An autoencoder that loses nothing: its latents are the pictures, of any mean and scale."""

    recipe = recipe_of("vae")

    def reconstruct(self, images):
        return images

    def posterior(self, images):
        return random_autoencoder().posterior(images)


def test_a_perfect_autoencoder_keeps_everything(few_pictures):
    found = reconstructions.measure_reconstructions(Perfect(), 60)
    assert found["mse"] == 0
    assert found["label_kept"] == 1
    images, labels = few_pictures.batch(measures.real_indices(60))
    expected = measures.measure(data.crop(images), labels).to_dict()
    paired = ("cfid", "cfid_error", "ratio", "ratio_error")
    assert {key: found[key] for key in expected if key not in paired} == {
        key: value for key, value in expected.items() if key not in paired
    }


def test_distances_of_reconstructions_are_those_of_the_floor_s_own_draws(few_pictures):
    """One that loses nothing has R = 1 without any error, whichever pictures were drawn."""
    test = measures.reference_features()["test"]
    distances = []
    for draw in range(measures.DRAWS):
        images, _ = few_pictures.batch(measures.real_indices(60, draw))
        distances.append(frechet_distance(features(data.crop(images)), test))
    distances = torch.tensor(distances)
    found = reconstructions.measure_reconstructions(Perfect(), 60)
    assert found["cfid"] == pytest.approx(distances.mean().item(), rel=1e-4)
    assert found["cfid_error"] == pytest.approx(distances.std().item() / 10**0.5, rel=1e-3)


def test_what_loses_nothing_has_an_r_of_one_and_no_error(few_pictures, monkeypatch):
    real = features(data.crop(few_pictures.batch(torch.arange(1000))[0]))
    known = measures.reference_features() | {"train": real}
    for module in (measures, reconstructions):
        monkeypatch.setattr(module, "reference_features", lambda *_: known)
    measures.floor.cache_clear()
    found = reconstructions.measure_reconstructions(Perfect(), 60)
    assert found["ratio"] == pytest.approx(1, rel=1e-4)
    assert found["ratio_error"] < 1e-3 * found["cfid_error"] / found["floor"]
    assert found["cfid_error"] > 0.01 * found["floor"]


def test_a_lossy_one_is_measured_picture_by_picture(few_pictures):
    autoencoder = random_autoencoder()
    found = reconstructions.measure_reconstructions(autoencoder, 40)
    images, _ = few_pictures.batch(torch.arange(40))
    restored = autoencoder.reconstruct(images)
    assert found["mse"] == pytest.approx(((images - restored) ** 2).mean().item(), rel=1e-4)
    same = logits(data.crop(images)).argmax(1) == logits(data.crop(restored)).argmax(1)
    assert found["label_kept"] == pytest.approx(same.double().mean().item())
    assert len(found["latent_std"]) == 2
    assert features(data.crop(restored)).shape == (40, 64)
    with pytest.raises(BookError, match="need 10 to 1000"):
        reconstructions.measure_reconstructions(autoencoder, 5)


@pytest.fixture
def vae_checkpoint(tmp_path):
    autoencoder = random_autoencoder()
    checkpoint = {
        "recipe": autoencoder.recipe.to_dict(),
        "ema": autoencoder.network.state_dict(),
        "step": 7,
        "seconds": 90.0,
    }
    return save_checkpoint(tmp_path / "vae.pt", checkpoint)


def test_evaluate_measures_an_autoencoder(tmp_path, vae_checkpoint, few_pictures, capsys):
    options = ["--num_samples", "30", "--device", "cpu", "--precision", "fp32", "--output-dir", str(tmp_path / "out")]
    main(["evaluate", "vae", "--checkpoint", str(vae_checkpoint), *options])
    said = capsys.readouterr().out.splitlines()
    (folder,) = (tmp_path / "out").iterdir()
    assert said[-1] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"measures.json", "grid.png"}
    found = json.loads((folder / "measures.json").read_text())
    assert found["num_samples"] == 30
    assert any(f"{found['mse']:.5f}" in line for line in said)
    few, many = (
        refused(capsys, "evaluate", "vae", "--checkpoint", vae_checkpoint, "--num_samples", number)
        for number in (3, 10_001)
    )
    assert "3 samples: the measures need 10" in few
    assert "10001" in many


def test_pretrain_stores_an_autoencoder_and_a_latent_model_that_belong_together(
    tmp_path, vae_checkpoint, few_pictures, capsys
):
    folder = tmp_path / "weights"
    where = ["--weights-dir", str(folder), "--device", "cpu", "--precision", "fp32"]
    main(["pretrain", "vae", "--from-checkpoint", str(vae_checkpoint), "--no-measure", *where])
    card = weights.read_card("vae", folder)
    assert card["recipe"]["vae"]["base_channels"] == SMALL_VAE.base_channels
    assert card["steps"] == 7

    autoencoder = build_autoencoder(
        recipe_from_dict(card["recipe"]), weights.read_weights("vae", folder), card=card, device="cpu"
    )
    pipe = random_latent_pipeline(autoencoder)
    checkpoint = {
        "recipe": pipe.recipe.to_dict(),
        "ema": pipe.network.state_dict(),
        "step": 3,
        "seconds": 30.0,
        "autoencoder": {**autoencoder.state_dict(), "sha256": card["sha256"]},
    }
    path = save_checkpoint(tmp_path / "ldm.pt", checkpoint)
    main(["pretrain", "ldm", "--from-checkpoint", str(path), "--no-measure", *where])
    assert weights.read_card("ldm", folder)["vae_sha256"] == card["sha256"]
