"""The race of chapter 4: latents at another scale, a short run, and what is stored of the long ones."""

import pytest
import torch
from tiny import pictures, random_autoencoder

from diffusion_book import data
from diffusion_book.elbo import latent_statistics
from diffusion_book.evaluation import race
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.training.latents import encode_dataset

STOPS = len(race.STOPS)


def test_latents_of_another_scale_are_that_much_larger_and_decode_to_the_same_pictures():
    autoencoder = random_autoencoder()
    latents = encode_dataset(autoencoder, pictures(40))
    other, scaled = race.at_scale(autoencoder, latents, 0.1)
    before, after = (DiagonalGaussian.from_moments(each.moments) for each in (latents, scaled))
    assert torch.allclose(latent_statistics(after)[1], 0.1 * latent_statistics(before)[1], rtol=1e-4)
    assert torch.allclose(after.std, 0.1 * before.std, rtol=1e-4)
    assert torch.allclose(other.decode(after.mean), autoencoder.decode(before.mean), atol=1e-4)
    images, _ = pictures(40).batch(torch.arange(40))
    assert torch.allclose(other.posterior(images).mean, after.mean, atol=1e-4)


@pytest.mark.parametrize("name", ["wrong_scale", "pixels"])
def test_a_short_run_is_measured_at_every_stop(name, monkeypatch):
    load = data.load
    monkeypatch.setattr(race.data, "load", lambda name: load("digits"))
    monkeypatch.setattr(race, "PICTURES", 64)
    monkeypatch.setattr(race, "STEPS", 2)
    found = race.run(name, 0.001, 12)
    assert set(found) == {f"{name}_cfid", f"{name}_steps", f"{name}_samples"}
    assert found[f"{name}_steps"].tolist() == list(range(1, STOPS + 1))  # every step is later than the next stop
    assert (found[f"{name}_cfid"] > 0).all()
    assert found[f"{name}_samples"].shape == (STOPS, race.SHOWN, 1, 28, 28)


def test_what_is_stored_is_what_the_constants_say():
    table = race.stored()
    assert torch.allclose(table["seconds"] / table["seconds"][-1], torch.tensor(race.STOPS))
    for name in race.RUNS:
        assert table[f"{name}_cfid"].shape == table[f"{name}_steps"].shape == (STOPS,)
        assert (table[f"{name}_steps"].diff() > 0).all()
        assert table[f"{name}_samples"].shape == (STOPS, race.SHOWN, 1, 28, 28)
        assert -1 <= table[f"{name}_samples"].min() < table[f"{name}_samples"].max() <= 1
    for name in ("latents", "pixels"):
        assert 0 < table[f"{name}_shipped_cfid"] < table[f"{name}_cfid"][-1]
        assert table[f"{name}_shipped_seconds"] > table["seconds"][-1]
    assert table["vae_seconds"] > 0
