"""The evidence lower bound: its reductions, that it is a bound, and the statistics of latents."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from diffusion_book.elbo import decoder_std, latent_statistics, negative_elbo, reconstruction_error
from diffusion_book.models.recipes import ELBOConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.system.errors import BookError
from diffusion_book.training.losses import loss_of_vae


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_error_is_averaged_over_pixels_and_not_over_pictures():
    x = torch.zeros(3, 1, 32, 32)
    restored = x.clone()
    restored[1] += 0.5
    restored[2, 0, 0, 0] = 2.0
    assert reconstruction_error(x, restored).tolist() == [0.0, 0.25, 4 / 1024]
    assert reconstruction_error(x, restored.bfloat16()).dtype == torch.float32  # what autocast hands over
    assert reconstruction_error(x.double(), restored.double() + 1e-9)[0].item() == pytest.approx(1e-18)


@pytest.mark.parametrize("kl_weight", [1e-6, 3e-3])
def test_it_is_the_negative_elbo_of_a_gaussian_decoder_but_for_factor_and_constant(kl_weight):
    """negative_elbo = 2 s^2 / N (-log p(x | z) + KL - N log(s sqrt(2 pi))), with kl_weight = 2 s^2 / N."""
    pixels, s = 32 * 32, decoder_std(kl_weight)
    x, restored = numbers(0, 4, 1, 32, 32), numbers(1, 4, 1, 32, 32)
    posterior = DiagonalGaussian(numbers(2, 4, 2, 4, 4), numbers(3, 4, 2, 4, 4))
    found = negative_elbo(lambda x, noise: (restored, posterior), x, numbers(4, 4, 2, 4, 4), kl_weight)
    log_likelihood = Normal(restored, s).log_prob(x).sum(dim=(1, 2, 3))
    kl = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    constant = pixels * math.log(s * math.sqrt(2 * math.pi))
    assert found.shape == (4,)
    torch.testing.assert_close(found, 2 * s**2 / pixels * (-log_likelihood + kl - constant))


def test_the_docstring_s_standard_deviation_is_right():
    assert decoder_std(1e-6) == pytest.approx(0.023, abs=5e-4)
    assert f"gamma = {decoder_std(1e-6):.3f}" in negative_elbo.__doc__
    assert decoder_std(2 * 0.1**2 / 784, pixels=784) == pytest.approx(0.1)


class LineDecoder:
    """x = w z + s eps with a single latent number: the one VAE whose log p(x) and posterior are known."""

    def __init__(self, w: torch.Tensor, s: float) -> None:
        self.w, self.s = w, s

    def log_evidence(self, x: torch.Tensor) -> torch.Tensor:
        covariance = torch.outer(self.w, self.w) + self.s**2 * torch.eye(len(self.w), dtype=torch.float64)
        return MultivariateNormal(torch.zeros_like(self.w), covariance).log_prob(x)

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B,) and variance (B,)."""
        precision = 1 + self.w.square().sum() / self.s**2
        return x @ self.w / self.s**2 / precision, (1 / precision).expand(len(x))

    def bound(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """The ELBO, from `negative_elbo`. Its expectation over z is exact: for a square, two draws at +-1 are enough."""
        q = DiagonalGaussian(mean[:, None, None, None], variance.log()[:, None, None, None])
        pixels, total = len(self.w), 0.0
        pictures = x[:, None, None, :]
        for sign in (1.0, -1.0):

            def vae(pictures, noise):
                z = q.sample(noise)  # (B, 1, 1, 1)
                return z * self.w, q

            noise = sign * torch.ones_like(q.mean)
            total = total + negative_elbo(vae, pictures, noise, 2 * self.s**2 / pixels) / 2
        return -total * pixels / (2 * self.s**2) - pixels * math.log(self.s * math.sqrt(2 * math.pi))


def test_the_bound_is_reached_by_the_true_posterior():
    model, x = LineDecoder(numbers(0, 6), 0.4), numbers(1, 5, 6)
    torch.testing.assert_close(model.bound(x, *model.posterior(x)), model.log_evidence(x))


@pytest.mark.parametrize(("shift", "factor"), [(0.3, 1.0), (-0.3, 1.0), (0.0, 2.0), (0.0, 0.5), (1.0, 9.0)])
def test_any_other_posterior_falls_short_by_its_divergence_from_the_true_one(shift, factor):
    model, x = LineDecoder(numbers(0, 6), 0.4), numbers(1, 5, 6)
    mean, variance = model.posterior(x)
    gap = kl_divergence(Normal(mean + shift, (factor * variance).sqrt()), Normal(mean, variance.sqrt()))
    assert (gap > 0).all()
    torch.testing.assert_close(model.log_evidence(x) - model.bound(x, mean + shift, factor * variance), gap)


# --- Statistics of latents -----------------------------------------------------------------------


def wide_posterior() -> DiagonalGaussian:
    """Two channels with other means, spreads and variances; the positions differ too."""
    channel = torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None, None]
    return DiagonalGaussian(numbers(0, 50, 2, 3, 3) * channel + channel, -channel + numbers(1, 50, 2, 3, 3))


def test_latent_statistics_are_those_of_draws():
    """Draws at one standard deviation to either side have just the variance, so here nothing is left to chance."""
    posterior = wide_posterior()
    draws = torch.cat([posterior.sample(sign * torch.ones(50, 2, 3, 3)) for sign in (1, -1)])
    mean, std = latent_statistics(posterior)
    assert mean.shape == std.shape == (2,)
    torch.testing.assert_close(mean, draws.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(std, draws.std(dim=(0, 2, 3), correction=0))


def test_latent_statistics_are_those_of_random_draws():
    posterior = wide_posterior()
    draws = torch.cat([posterior.sample(numbers(seed, 50, 2, 3, 3)) for seed in range(2, 402)])
    mean, std = latent_statistics(posterior)
    torch.testing.assert_close(draws.mean(dim=(0, 2, 3)), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.std(dim=(0, 2, 3)), std, rtol=0.01, atol=0)
    without = posterior.mean.std(dim=(0, 2, 3))  # what would come out, were the posteriors' variance forgotten
    assert (std - without).abs().max() > 0.02


# --- As the loss of a training -------------------------------------------------------------------


def test_the_loss_draws_its_noise_from_the_generator_and_keeps_the_weight():
    torch.manual_seed(0)
    vae = VAE(VAEConfig(base_channels=8, channel_multipliers=(1, 2), layers_per_block=1, patch_size=4)).eval()
    images, labels = torch.rand(3, 1, 32, 32) * 2 - 1, torch.zeros(3, dtype=torch.long)

    def loss(kl_weight: float, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            return loss_of_vae(ELBOConfig(kl_weight))(vae, images, labels, generator)

    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = negative_elbo(vae, images, noise, 0.1)
    assert torch.equal(loss(0.1, 5), expected)
    assert not torch.equal(loss(0.1, 6), expected)
    kl = vae.encode(images).kl().detach()
    torch.testing.assert_close(loss(0.3, 5) - loss(0.1, 5), 0.2 * kl)


@pytest.mark.parametrize("kl_weight", [-1e-9, math.nan, math.inf])
def test_weights_that_make_no_sense_are_refused(kl_weight):
    with pytest.raises(BookError, match=r"kl_weight is .*: it must be at least 0") as info:
        ELBOConfig(kl_weight)
    assert "\n" not in str(info.value)
