"""What the network is asked to predict.

Every target of the literature is a mixture `a x0 + b eps`. Together with x_t = alpha x0 + sigma eps
that is two equations for two unknowns, so one function turns any prediction into the pair (x0, eps):

    d = alpha b - sigma a,    x0 = (b x_t - sigma output) / d,    eps = (alpha output - a x_t) / d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_book.schedules import expand

Target = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (alpha, sigma) -> (a, b)


class Prediction(NamedTuple):
    """What a denoiser thinks of x_t: the clean picture in it, and the noise in it. Both (B, ...)."""

    x0: Tensor
    eps: Tensor


def noise(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Predict eps. Source: Ho et al. 2020, equation 14."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def image(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Predict x0. Source: Salimans & Ho 2022, section 4."""
    return torch.ones_like(alpha), torch.zeros_like(alpha)


def v(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Predict v = alpha eps - sigma x0. Source: Salimans & Ho 2022, appendix D."""
    return -sigma, alpha


def velocity(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Predict eps - x0, the velocity dx/dt along the straight path of `schedules.rectified`.

    Source: Liu, Gong & Liu 2022, equation 1 (there x0 - eps, for time runs the other way).
    """
    return -torch.ones_like(alpha), torch.ones_like(alpha)


TARGETS: dict[str, Target] = {"noise": noise, "image": image, "v": v, "velocity": velocity}


def target_value(target: Target, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The number the network should have given: a x0 + b eps.

    Args:
        x0, eps: (B, ...).
        alpha, sigma: (B,), the schedule at the picture's time.
    """
    a, b = target(alpha, sigma)
    return expand(a, x0) * x0 + expand(b, x0) * eps


def prediction(target: Target, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Prediction:
    """Turn the network's output into (x0, eps) by solving the two equations above.

    Args:
        output, x_t: (B, ...).
        alpha, sigma: (B,), the schedule at the picture's time.
    """
    a, b = target(alpha, sigma)
    d = expand(alpha * b - sigma * a, x_t)
    alpha, sigma, a, b = (expand(value, x_t) for value in (alpha, sigma, a, b))
    return Prediction((b * x_t - sigma * output) / d, (alpha * output - a * x_t) / d)
