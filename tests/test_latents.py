"""A data set's latents: computed once, kept whole or made again, and drawn anew at every step of a training."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import pictures, random_autoencoder
from torch import nn

from diffusion_book.data import Dataset
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.recipes import DiffusionConfig, TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.training import latents
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer

NUMBER = 40


@pytest.fixture(scope="module")
def autoencoder():
    return random_autoencoder()


@pytest.fixture
def looks(monkeypatch):
    """How often a picture went through an encoder."""
    counted, posterior = [], Autoencoder.posterior

    def counting(self, images):
        counted.append(len(images))
        return posterior(self, images)

    monkeypatch.setattr(Autoencoder, "posterior", counting)
    return counted


# --- The cache -----------------------------------------------------------------------------------


def test_it_holds_the_posterior_of_every_picture(autoencoder, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "BATCH_SIZE", 15)
    dataset = pictures(NUMBER)
    found = encode_dataset(autoencoder, dataset, tmp_path)
    images, labels = dataset.batch(torch.arange(NUMBER))
    assert found.moments.shape == (NUMBER, 4, 4, 4)
    torch.testing.assert_close(found.moments, autoencoder.posterior(images).moments, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.labels, labels)
    assert found.name == dataset.name
    assert len(found) == NUMBER
    some = torch.tensor([7, 3])
    assert all(torch.equal(a, b) for a, b in zip(found.batch(some), (found.moments[some], labels[some]), strict=True))


def test_it_is_computed_once(autoencoder, tmp_path, looks, capsys):
    first = encode_dataset(autoencoder, pictures(NUMBER), tmp_path)
    assert sum(looks) == NUMBER
    again = encode_dataset(random_autoencoder(), pictures(NUMBER), tmp_path)  # the same weights, as after a new start
    assert sum(looks) == NUMBER
    assert torch.equal(again.moments, first.moments)
    assert torch.equal(again.labels, first.labels)
    assert len(list(tmp_path.iterdir())) == 1
    assert "notice" not in capsys.readouterr().err


def test_each_vae_and_each_set_of_pictures_has_its_own(autoencoder, tmp_path, looks, capsys):
    other = random_autoencoder(seed=1)
    rescaled = random_autoencoder(measured=50)  # the same layers, another scale
    all_three = (autoencoder, other, rescaled)
    found = [encode_dataset(each, pictures(NUMBER), tmp_path) for each in all_three]
    encode_dataset(autoencoder, pictures(NUMBER - 1), tmp_path)
    assert sum(looks) == 4 * NUMBER - 1
    assert len(list(tmp_path.iterdir())) == 4
    for one, two in itertools.combinations(found, 2):
        assert not torch.allclose(one.moments, two.moments, atol=1e-4)
    for each, made in zip(all_three, found, strict=True):
        assert torch.equal(encode_dataset(each, pictures(NUMBER), tmp_path).moments, made.moments)
    assert sum(looks) == 4 * NUMBER - 1
    assert "notice" not in capsys.readouterr().err


def test_changed_pictures_under_an_old_name_are_noticed(autoencoder, tmp_path, looks, capsys):
    dataset = pictures(NUMBER)
    old = encode_dataset(autoencoder, dataset, tmp_path)
    images = dataset.images.clone()
    images[-1, 0, 5, 5] += 100
    changed = Dataset(dataset.name, images, dataset.labels)
    new = encode_dataset(autoencoder, changed, tmp_path)
    assert sum(looks) == 2 * NUMBER
    assert "belong to other data; computing them again" in capsys.readouterr().err
    torch.testing.assert_close(new.moments[:-1], old.moments[:-1])
    assert not torch.allclose(new.moments[-1], old.moments[-1])
    assert torch.equal(encode_dataset(autoencoder, changed, tmp_path).moments, new.moments)
    assert sum(looks) == 2 * NUMBER  # the file was replaced


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


def overwritten(path):
    path.write_text("no latents at all")


def with_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def with_other_tensors(path):
    save_file({"pictures": torch.zeros(3)}, path)


def without_hashes(path):
    save_file(load_file(path), path)


def of_another_shape(path):
    save_file({"moments": torch.zeros(NUMBER, 4, 2, 2)}, path)


@pytest.mark.parametrize(
    "damage",
    [truncated, emptied, overwritten, with_a_flipped_bit, with_other_tensors, without_hashes, of_another_shape],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_file_is_made_again_with_a_notice(autoencoder, tmp_path, looks, capsys, damage):
    good = encode_dataset(autoencoder, pictures(NUMBER), tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damage(path)
    assert path.read_bytes() != whole
    found = encode_dataset(autoencoder, pictures(NUMBER), tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"notice: the cached latents {path.name} ")
    assert "computing them again" in line
    assert torch.equal(found.moments, good.moments)
    assert sum(looks) == 2 * NUMBER
    assert encode_dataset(autoencoder, pictures(NUMBER), tmp_path).moments.equal(good.moments)
    assert sum(looks) == 2 * NUMBER  # the file is good again
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_only_costs_the_time(autoencoder, tmp_path, looks, capsys):
    (tmp_path / "file").write_text("a file, not a folder")
    for count in (1, 2):
        found = encode_dataset(autoencoder, pictures(NUMBER), tmp_path / "file" / "latents")
        assert len(found) == NUMBER
        assert sum(looks) == count * NUMBER
        assert "notice: the latents are not kept for the next time" in capsys.readouterr().err


def test_a_full_disk_only_costs_the_time(autoencoder, tmp_path, monkeypatch, capsys):
    def full(path, content):
        path.write_text("half of i")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert len(encode_dataset(autoencoder, pictures(NUMBER), tmp_path)) == NUMBER
    (line,) = capsys.readouterr().err.splitlines()
    assert "notice: the latents are not kept" in line
    assert "No space left on device" in line
    assert not list(tmp_path.iterdir())


def test_by_default_it_lies_in_the_user_s_cache(autoencoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encode_dataset(autoencoder, pictures(NUMBER))
    (path,) = (tmp_path / "diffusion-book" / "latents").iterdir()
    assert path.name.startswith(f"digits-{NUMBER}-")


def test_the_precision_of_the_autoencoder_makes_no_difference(autoencoder, tmp_path):
    half = dataclasses.replace(autoencoder, dtype=torch.bfloat16)
    found = [encode_dataset(each, pictures(NUMBER), tmp_path / str(each.dtype)) for each in (half, autoencoder)]
    assert torch.equal(found[0].moments, found[1].moments)


# --- Draws ---------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """A network that predicts 0 at all times. With target "image" the loss is then the latent's mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        return self.factor * x


def latent_dataset(log_variance: float) -> LatentDataset:
    mean = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    moments = DiagonalGaussian(mean, torch.full_like(mean, log_variance)).moments
    return LatentDataset("digits", moments, torch.arange(8))


def losses(dataset: LatentDataset, seed: int = 0, steps: int = 30) -> list[float]:
    """The mean square of the latents that each step sees; a step sees the whole data set."""
    config = TrainingConfig(epochs=steps, batch_size=len(dataset), lr=1e-30, seed=seed)
    loss = loss_of_latent_diffusion(DiffusionConfig(target="image"))
    trainer = Trainer(Nothing(), loss, dataset, config, device="cpu", precision="fp32")
    return [report.loss for report in trainer.steps()]


def test_every_step_draws_other_latents_of_the_same_posteriors():
    dataset = latent_dataset(log_variance=0.0)
    found = losses(dataset)
    assert len(set(found)) == len(found)
    expected = (dataset.moments[:, :2].square().mean() + 1.0).item()  # E[z^2] = mean^2 + variance
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.05)
    assert max(found) - min(found) > 0.1 * expected


def test_a_posterior_without_variance_leaves_nothing_to_draw():
    """So that the test above says something: it is the posterior's noise alone that changes."""
    dataset = latent_dataset(log_variance=-math.inf)
    found = losses(dataset)
    assert found == pytest.approx([dataset.moments[:, :2].square().mean().item()] * len(found), rel=1e-5)


def test_the_same_step_of_the_same_training_draws_the_same_latents():
    dataset = latent_dataset(log_variance=0.0)
    assert losses(dataset) == losses(dataset)
    assert losses(dataset, steps=5) == losses(dataset)[:5]
    assert losses(dataset, seed=1) != losses(dataset)


def test_latents_and_their_noise_are_independent():
    """The latent's draw and the noise that is added to it come from one generator, one after the other.

    Were they the same numbers, posterior noise and x_t would be correlated.
    """
    number = 4000
    moments = DiagonalGaussian(torch.zeros(number, 2, 1, 1), torch.zeros(number, 2, 1, 1)).moments
    seen = []

    def network(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    config = DiffusionConfig(target="noise")
    loss = loss_of_latent_diffusion(config)
    found = loss(network, moments, torch.zeros(number), torch.Generator().manual_seed(0))
    ((x, _),) = seen
    # x_t = alpha z + sigma eps with z and eps standard normal: its variance is alpha^2 + sigma^2 = 1 at every time,
    # but (alpha + sigma)^2, 1.6 on average, were z = eps.
    assert x.var().item() == pytest.approx(1.0, abs=0.07)
    assert found.mean().item() == pytest.approx(1.0, abs=0.07)


def test_it_stands_in_for_a_data_set_on_any_device():
    dataset = latent_dataset(0.0)
    moved = dataset.to("meta")
    assert moved.moments.device.type == moved.labels.device.type == "meta"
    assert (moved.name, len(moved)) == (dataset.name, len(dataset))
