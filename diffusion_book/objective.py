"""The training loss of every diffusion model in this book: draw a time, add noise, ask, compare."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_book.schedules import Schedule, add_noise
from diffusion_book.targets import Target, target_value

TimeSampling = Callable[[int, torch.Generator], Tensor]  # (batch size, generator) -> times in (0, 1]


def uniform(batch_size: int, generator: torch.Generator) -> Tensor:
    """Times spread evenly over (0, 1]: one in each of `batch_size` equal slices, in random order.

    Each time alone is uniform; together they cover the axis, which makes the loss less noisy than
    independent draws do. Shape (B,), float64.

    Source: Kingma et al. 2021, appendix I.1 (there with one offset for the whole batch).
    """
    slices = torch.randperm(batch_size, generator=generator, device=generator.device)
    offset = torch.rand(batch_size, generator=generator, device=generator.device, dtype=torch.float64)
    return 1.0 - (slices + offset) / batch_size


def logit_normal(batch_size: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Times whose logit is normal: more of the middle, less of both ends. Shape (B,), float64.

    The quantiles are those of `uniform`, so the batch covers the distribution evenly.

    Source: Esser et al. 2024, equation 19.
    """
    quantiles = uniform(batch_size, generator).clamp(1e-6, 1 - 1e-6)
    return torch.sigmoid(mean + std * torch.special.ndtri(quantiles))


def u_shaped(batch_size: int, generator: torch.Generator, steepness: float = 2.0) -> Tensor:
    """Times with the density of cosh(steepness (2t - 1)): many near both ends, few between. Shape (B,), float64.

    On straight pairs the middle is easy, for picture and noise are both half in sight. What is left to learn lies at the
    ends, and a single step asks at t = 1 alone. The quantiles are those of `uniform`.

    Source: Lee et al. 2024, section 4, which proposes a U-shaped density for reflow.
    """
    centred = 2 * uniform(batch_size, generator) - 1  # (B,), in (-1, 1]
    # The inverse of the distribution function sinh(steepness (2t - 1)) / (2 sinh(steepness)) + 1/2.
    return (torch.asinh(centred * math.sinh(steepness)) / steepness + 1) / 2


def last(batch_size: int, generator: torch.Generator) -> Tensor:
    """Always t = 1, for a model that goes from noise to picture in a single step. Shape (B,), float64."""
    return torch.ones(batch_size, device=generator.device, dtype=torch.float64)


TIME_SAMPLINGS: dict[str, TimeSampling] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "u_shaped": u_shaped,
    "last": last,
}


def on_grid(t: Tensor, timesteps: int) -> Tensor:
    """Round times up to DDPM's grid 1/T, 2/T ... 1, so that uniform times become uniform steps."""
    return (t * timesteps).ceil().clamp(1, timesteps) / timesteps


def min_snr_weight(target: Target, alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight that makes the loss count as min(SNR, gamma) |x0 error|^2, whatever the target is.

    The error of the output is d / sigma times the error of x0 (see `targets`), so the weight is
    min(SNR, gamma) sigma^2 / d^2. For eps that is min(SNR, gamma) / SNR; for v,
    min(SNR, gamma) / (SNR + 1). Shape of alpha.

    Source: Hang et al. 2023, section 3.4.
    """
    a, b = target(alpha, sigma)
    d = alpha * b - sigma * a
    snr = (alpha / sigma).square()
    return snr.clamp(max=gamma) * (sigma / d).square()


def diffusion_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    *,
    schedule: Schedule,
    target: Target,
    generator: torch.Generator,
    time_sampling: TimeSampling = uniform,
    timesteps: int | None = None,
    min_snr_gamma: float | None = None,
    eps: Tensor | None = None,
    **condition,
) -> Tensor:
    """Mean squared error of the network's output, one number a picture.

    Args:
        network: `network(x_t, t, **condition)`.
        x0: clean pictures, (B, C, H, W).
        generator: draws the times and the noise, nothing else does.
        timesteps: train on DDPM's grid of so many steps; None trains at any time in (0, 1].
        min_snr_gamma: weight the error by `min_snr_weight`; None counts the target's error as it is.
        eps: the noise that belongs to x0, of its shape, for reflow; None draws it.
        condition: handed to the network.

    Returns:
        (B,), averaged over C, H and W. Its mean is the loss.

    Source: Ho et al. 2020, algorithm 1 and equation 14.
    """
    t = time_sampling(len(x0), generator).to(x0.device)  # (B,)
    if timesteps is not None:
        t = on_grid(t, timesteps)
    if eps is None:
        eps = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0)
    alpha, sigma = schedule(t)
    output = network(add_noise(schedule, x0, eps, t), t.to(x0.dtype), **condition)
    error = (output.to(x0.dtype) - target_value(target, x0, eps, alpha, sigma)).square()
    loss = error.flatten(1).mean(dim=1)  # (B, C, H, W) -> (B,)
    if min_snr_gamma is not None:
        loss = loss * min_snr_weight(target, alpha, sigma, min_snr_gamma).to(loss)
    return loss
