"""What a variational autoencoder is trained to make small: the evidence lower bound, with its sign changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_book.networks.gaussian import DiagonalGaussian


def reconstruction_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error, averaged over a picture's pixels: two (B, C, H, W) -> (B,)."""
    return ((x - reconstruction.to(x.dtype)) ** 2).flatten(1).mean(dim=1)


def negative_elbo(
    vae: Callable[[Tensor, Tensor], tuple[Tensor, DiagonalGaussian]], x: Tensor, noise: Tensor, kl_weight: float
) -> Tensor:
    """Reconstruction error, averaged over pixels, plus `kl_weight` times the KL divergence, summed over the latent.

    The reductions belong to the weight. With a decoder of standard deviation gamma a pixel, the negative
    ELBO of a picture of N pixels is, but for a constant, sum((x - x')^2) / (2 gamma^2) + KL; times 2 gamma^2 / N it
    is what is returned here. So kl_weight = 2 gamma^2 / N, and 1e-6 at 32 x 32 pixels means gamma = 0.023.

    Args:
        vae: (x, noise) -> (reconstruction, posterior).
        x: (B, 1, 32, 32), in [-1, 1].
        noise: (B, C, 4, 4), from a standard normal.
        kl_weight: 0 or more.

    Returns:
        (B,), one value a picture.

    Source: Kingma & Welling 2013, equation 7 (of one sample); the weight: Higgins et al. 2017, equation 4.
    """
    reconstruction, posterior = vae(x, noise)
    return reconstruction_error(x, reconstruction) + kl_weight * posterior.kl()


def decoder_std(kl_weight: float, pixels: int = 32 * 32) -> float:
    """The standard deviation gamma of a pixel that a `kl_weight` stands for (see `negative_elbo`)."""
    return (kl_weight * pixels / 2) ** 0.5


def latent_statistics(posterior: DiagonalGaussian) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of samples from many posteriors, channel by channel: twice (C,).

    By the law of total variance: the variance of the means plus the mean of the variances.
    """
    mean = posterior.mean.mean(dim=(0, 2, 3))
    variance = posterior.mean.var(dim=(0, 2, 3), correction=0) + posterior.std.square().mean(dim=(0, 2, 3))
    return mean, torch.sqrt(variance)
