"""The autoencoder: latents of unit scale, pictures of the size that was given, and one line for what it cannot take."""

import dataclasses
import math

import pytest
import torch
from tiny import SMALL_UNET, SMALL_VAE, pictures, random_autoencoder, random_vae

from diffusion_book.data import crop, pad
from diffusion_book.elbo import latent_statistics
from diffusion_book.models import autoencoder as module
from diffusion_book.models.autoencoder import autoencoder_from_state, build_autoencoder, check_fits
from diffusion_book.models.recipes import RECIPES, Recipe
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.system.errors import BookError
from diffusion_book.training.models import set_latent_scale

NUMBER = 64


@pytest.fixture(scope="module")
def autoencoder():
    return random_autoencoder(measured=NUMBER)


@pytest.fixture(scope="module")
def images():
    """The pictures that the latents were measured on, (64, 1, 32, 32)."""
    return pictures(NUMBER).batch(torch.arange(NUMBER))[0]


# --- Scale ---------------------------------------------------------------------------------------


def test_latents_of_the_measured_pictures_have_mean_0_and_deviation_1(autoencoder, images):
    posterior = autoencoder.posterior(images)
    mean, std = latent_statistics(posterior)
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(std, torch.ones(2), rtol=0, atol=1e-4)
    noise = torch.randn(200, *posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    draws = posterior.sample(noise).flatten(0, 1)
    torch.testing.assert_close(draws.mean(dim=(0, 2, 3)), torch.zeros(2), rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(dim=(0, 2, 3)), torch.ones(2), rtol=0.01, atol=0)
    unscaled = autoencoder.network.encode(images)
    mean, std = latent_statistics(unscaled)
    assert mean.abs().max() > 1e-2  # so that there was something to measure
    assert (std - 1).abs().max() > 1e-2


def test_a_channel_that_says_nothing_is_not_blown_up():
    """A collapsed channel: its latents are all the same, and nothing divides by zero."""
    network = random_vae()
    with torch.no_grad():
        for parameter in (network.encoder.conv_out.weight, network.encoder.conv_out.bias):
            parameter[0] = 0.0  # the mean of channel 0
            parameter[2] = 0.0
        network.encoder.conv_out.bias[2] = -100.0  # and its log-variance
    set_latent_scale(network, pictures(NUMBER))
    collapsed = build_autoencoder(Recipe("vae", vae=SMALL_VAE), network.state_dict(), device="cpu", precision="fp32")
    images, _ = pictures(NUMBER).batch(torch.arange(NUMBER))
    assert collapsed.posterior(images).moments.isfinite().all()
    assert collapsed.encode(images)[:, 0].abs().max() < 1e-3
    assert collapsed.reconstruct(images).isfinite().all()


def test_posterior_and_decode_are_the_network_s_but_for_shift_and_scale(autoencoder, images):
    network = autoencoder.network
    mean, std = network.latent_mean[:, None, None], network.latent_std[:, None, None]
    inner, outer = network.encode(images), autoencoder.posterior(images)
    torch.testing.assert_close(outer.mean * std + mean, inner.mean)
    torch.testing.assert_close(outer.std * std, inner.std)
    assert torch.equal(autoencoder.encode(images), outer.mean)
    torch.testing.assert_close(autoencoder.decode(outer.mean), network.decode(inner.mean), rtol=1e-4, atol=1e-5)


# --- Shapes, sizes, types ------------------------------------------------------------------------


def test_shapes(autoencoder, images):
    assert autoencoder.latent_shape == (2, 4, 4)
    assert autoencoder.encode(images).shape == (NUMBER, 2, 4, 4)
    posterior = autoencoder.posterior(images[:3])
    assert posterior.mean.shape == posterior.log_variance.shape == (3, 2, 4, 4)
    decoded = autoencoder.decode(torch.randn(3, 2, 4, 4))
    assert decoded.shape == (3, 1, 32, 32)
    assert decoded.dtype == torch.float32
    assert not decoded.requires_grad


def test_28_pixels_are_padded_with_background(autoencoder, images):
    torch.testing.assert_close(autoencoder.encode(crop(images)), autoencoder.encode(images))
    noise = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(autoencoder.encode(noise), autoencoder.encode(pad(noise)))


@pytest.mark.parametrize("size", [28, 32])
def test_a_reconstruction_has_the_size_of_its_picture(autoencoder, images, size):
    given = crop(images) if size == 28 else images
    restored = autoencoder.reconstruct(given)
    assert restored.shape == given.shape == (NUMBER, 1, size, size)
    assert restored.dtype == torch.float32
    assert restored.device.type == "cpu"
    assert restored.abs().max() <= 1
    whole = autoencoder.decode(autoencoder.encode(images)).clamp(-1, 1)
    torch.testing.assert_close(restored, crop(whole) if size == 28 else whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_pictures_and_latents_may_have_any_floating_type(autoencoder, images, dtype):
    found = autoencoder.encode(images.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, autoencoder.encode(images), rtol=0.05, atol=0.05)
    latents = autoencoder.encode(images[:3])
    decoded = autoencoder.decode(latents.to(dtype))
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, autoencoder.decode(latents), rtol=0.05, atol=0.05)


def test_many_pictures_are_worked_off_in_parts(autoencoder, images, monkeypatch):
    whole, latents = autoencoder.posterior(images).moments, autoencoder.encode(images)
    decoded = autoencoder.decode(latents)
    monkeypatch.setattr(module, "BATCH_SIZE", 10)
    sizes = []
    hook = autoencoder.network.encoder.register_forward_hook(lambda _, given, out: sizes.append(len(out)))
    try:
        torch.testing.assert_close(autoencoder.posterior(images).moments, whole, rtol=1e-4, atol=1e-4)
    finally:
        hook.remove()
    assert sizes == [10] * 6 + [4]
    torch.testing.assert_close(autoencoder.decode(latents), decoded, rtol=1e-4, atol=1e-5)


def test_bf16_agrees_with_fp32(autoencoder, images):
    half = random_autoencoder(precision="bf16", measured=NUMBER)
    assert half.dtype == torch.bfloat16
    found = half.encode(images[:8])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, autoencoder.encode(images[:8]), rtol=0.1, atol=0.1)
    assert half.decode(found).dtype == torch.float32
    assert half.reconstruct(images[:8]).dtype == torch.float32


def test_other_sizes_of_pictures_follow_the_configuration():
    small = random_vae(VAEConfig(8, 2, (1, 2), 1, patch_size=2, image_size=16))
    autoencoder = build_autoencoder(Recipe("vae", vae=small.config), small.state_dict(), device="cpu", precision="fp32")
    for size in (12, 16):
        assert autoencoder.reconstruct(torch.zeros(2, 1, size, size)).shape == (2, 1, size, size)
    with pytest.raises(BookError, match=r"must be \(B, 1, 12, 12\) or \(B, 1, 16, 16\)"):
        autoencoder.encode(torch.zeros(2, 1, 28, 28))


# --- What it cannot take -------------------------------------------------------------------------

NAN = torch.zeros(2, 1, 32, 32)
NAN[1, 0, 3, 4] = math.nan


@pytest.mark.parametrize("method", ["encode", "posterior", "reconstruct"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(2, 1, 30, 30), r"shape \(2, 1, 30, 30\): they must be \(B, 1, 28, 28\) or \(B, 1, 32, 32\)"),
        (torch.zeros(2, 1, 28, 32), "they must be"),
        (torch.zeros(2, 3, 32, 32), "they must be"),
        (torch.zeros(2, 32, 32), "they must be"),
        (torch.zeros(32, 32), "they must be"),
        (torch.tensor(0.0), "they must be"),
        (torch.zeros(0, 1, 32, 32), "B at least 1"),
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), r"type torch.uint8: turn bytes into \[-1, 1\]"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.long), r"type torch.int64"),
        (torch.full((2, 1, 32, 32), 255.0), r"from 255 to 255: they must lie in \[-1, 1\]"),
        (torch.linspace(-2, 0.5, 1024).reshape(1, 1, 32, 32), r"from -2 to 0.5: they must lie in \[-1, 1\]"),
        (NAN, r"from nan to nan: they must lie in \[-1, 1\]"),
        (torch.full((1, 1, 32, 32), math.inf), r"they must lie in \[-1, 1\]"),
    ],
)
def test_pictures_that_are_none_are_refused_in_one_line(autoencoder, method, bad, words):
    with pytest.raises(BookError, match=words) as info:
        getattr(autoencoder, method)(bad)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 4, 4, 4), (2, 4, 4), (2, 32), (2, 1, 32, 32), (0, 2, 4, 4), ()])
def test_latents_of_another_shape_are_refused(autoencoder, shape):
    with pytest.raises(BookError, match=r"they must be \(B, 2, 4, 4\)") as info:
        autoencoder.decode(torch.zeros(shape))
    assert "\n" not in str(info.value)


def test_too_many_pictures_for_the_memory_are_named(autoencoder, images, monkeypatch):
    def full(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(autoencoder.network, "encode", full)
    with pytest.raises(BookError, match=r"^out of memory: lower the number of pictures$"):
        autoencoder.encode(images)


# --- Building and storing ------------------------------------------------------------------------


def test_it_is_frozen_and_in_eval_mode(autoencoder):
    assert not autoencoder.network.training
    assert not any(parameter.requires_grad for parameter in autoencoder.network.parameters())
    with pytest.raises(dataclasses.FrozenInstanceError):
        autoencoder.device = "cpu"


def test_its_state_makes_it_again(autoencoder, images, tmp_path):
    torch.save(autoencoder.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(value.is_contiguous() for value in state["weights"].values())
    again = autoencoder_from_state(state, device="cpu", precision="fp32")
    assert again.recipe == autoencoder.recipe
    assert again.card == {}
    assert torch.equal(again.encode(images), autoencoder.encode(images))
    assert torch.equal(again.network.latent_std, autoencoder.network.latent_std)
    assert not torch.equal(again.network.latent_std, torch.ones(2))
    named = dataclasses.replace(autoencoder, card={"sha256": "abc", "model": "vae"})
    assert autoencoder_from_state(named.state_dict()).card == {"sha256": "abc"}


def test_a_recipe_without_an_autoencoder_and_weights_of_another_are_refused(autoencoder):
    weights = autoencoder.network.state_dict()
    with pytest.raises(BookError, match="a 'ddpm' is no autoencoder: give the checkpoint of a VAE"):
        build_autoencoder(RECIPES["ddpm"], weights, device="cpu")
    other = Recipe("vae", vae=dataclasses.replace(SMALL_VAE, base_channels=16))
    for tensors in (weights | {"more": torch.zeros(1)}, {}, dict(list(weights.items())[1:])):
        with pytest.raises(BookError, match="do not fit the network of 'vae'") as info:
            build_autoencoder(autoencoder.recipe, tensors, device="cpu")
        assert "\n" not in str(info.value)
    with pytest.raises(BookError, match="do not fit the network of 'vae'"):
        build_autoencoder(other, weights, device="cpu")
    with pytest.raises(BookError, match="unknown device 'abacus'"):
        build_autoencoder(autoencoder.recipe, weights, device="abacus")


def test_a_diffusion_network_must_fit_the_latents(autoencoder):
    check_fits(SMALL_UNET, autoencoder)
    for options in ({"in_channels": 4}, {"image_size": 8}):
        with pytest.raises(BookError, match="the VAE's latents are 2 x 4 x 4, the diffusion network takes") as info:
            check_fits(dataclasses.replace(SMALL_UNET, **options), autoencoder)
        assert "\n" not in str(info.value)
