r"""How much picture and how much noise there is at each time.

A schedule is a function `schedule(t) -> (alpha, sigma)` with

    x_t = alpha_t x_0 + sigma_t eps,    t in [0, 1], 0 = data, 1 = noise.

DDPM's integer step k of T is t = k / T. All else that papers call schedule (beta, alpha-bar, the
signal-to-noise ratio, the posterior variance) is derived from this pair by the functions below.
`cosine` and `linear` are variance preserving, alpha^2 + sigma^2 = 1; the straight path of `rectified` is not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]

TIMESTEPS = 1000  # DDPM's T: the grid that the papers' formulas were written for
MOST_TIMESTEPS = 1_000_000  # of any grid; its times are then as close as single precision tells apart


def cosine(t: Tensor, offset: float = 0.008) -> tuple[Tensor, Tensor]:
    r"""The cosine schedule: alpha-bar(t) = cos^2(angle(t)) / cos^2(angle(0)).

    angle(t) = (t + offset) / (1 + offset) * pi / 2. At t = 1 the formula leaves no signal at all;
    the paper therefore caps beta at 0.999, which with T = 1000 leaves
    alpha-bar(1) = 0.001 alpha-bar(0.999) = 2.4e-9. The same floor is used here.

    Args:
        t: any shape, in [0, 1].
        offset: the paper's s; keeps the first steps from being too small.

    Returns:
        alpha and sigma, of the shape of t.

    Source: Nichol & Dhariwal 2021, equation 17.
    """

    def angle(time):
        return (time + offset) / (1 + offset) * (math.pi / 2)

    start = angle(0.0)
    before_last = math.cos(angle(1 - 1 / TIMESTEPS)) / math.cos(start)
    floor = math.sqrt(1e-3) * before_last
    alpha = (angle(t).cos() / math.cos(start)).clamp(min=floor)
    # sqrt(1 - alpha^2) loses all its digits near t = 0; this form of it does not.
    from_start = t / (1 + offset) * (math.pi / 2)  # angle(t) - start
    variance = from_start.sin() * (angle(t) + start).sin() / math.cos(start) ** 2
    return alpha, variance.clamp(min=0.0, max=1.0 - floor**2).sqrt()


def linear(t: Tensor, beta_start: float = 1e-4, beta_end: float = 0.02) -> tuple[Tensor, Tensor]:
    """DDPM's linear schedule: 1,000 betas in equal steps; between them log alpha-bar is interpolated.

    Args:
        t: any shape, in [0, 1].
        beta_start, beta_end: the first and last beta.

    Returns:
        alpha and sigma, of the shape of t.

    Source: Ho et al. 2020, section 4.
    """
    log_alpha_bar = _linear_log_alpha_bar(beta_start, beta_end).to(t)  # (T + 1,)
    position = t.clamp(0, 1) * TIMESTEPS
    below = position.floor().long().clamp(max=TIMESTEPS - 1)
    log = torch.lerp(log_alpha_bar[below], log_alpha_bar[below + 1], position - below)
    return (0.5 * log).exp(), (-torch.expm1(log)).sqrt()


@functools.cache
def _linear_log_alpha_bar(beta_start: float, beta_end: float) -> Tensor:
    betas = torch.linspace(beta_start, beta_end, TIMESTEPS, dtype=torch.float64)
    return torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0)])


def rectified(t: Tensor) -> tuple[Tensor, Tensor]:
    """The straight path from picture to noise: alpha = 1 - t, sigma = t.

    Args:
        t: any shape, in [0, 1].

    Returns:
        alpha and sigma, of the shape of t.

    Source: Liu, Gong & Liu 2022, equation 1 (there time runs the other way, from noise at 0 to data at 1).
    """
    return 1 - t, t.clone()


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "rectified": rectified}


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Give (B,) numbers the trailing dimensions of `like`, so that they broadcast: (B,) -> (B, 1, 1, 1)."""
    return value.to(like).reshape(value.shape + (1,) * (like.ndim - value.ndim))


def add_noise(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t eps, a draw of q(x_t | x_0).

    Args:
        x0, eps: (B, ...).
        t: (B,) or a single time.

    Returns:
        x_t: (B, ...).

    Source: Ho et al. 2020, equation 4.
    """
    alpha, sigma = schedule(t)
    return expand(alpha, x0) * x0 + expand(sigma, x0) * eps


def signal_to_noise(schedule: Schedule, t: Tensor) -> Tensor:
    """alpha^2 / sigma^2, of the shape of t; infinite at t = 0. Source: Kingma et al. 2021, equation 3."""
    alpha, sigma = schedule(t)
    return alpha.square() / sigma.square()


def transition(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """From time s to the noisier time t: q(x_t | x_s) = N(alpha_ts x_s, sigma_ts^2 I).

    With t = k / T and s = (k - 1) / T it is DDPM's q(x_k | x_{k-1}), and sigma_ts^2 is beta_k.

    Returns:
        alpha_ts and sigma_ts^2, of the shape of t.

    Source: Kingma et al. 2021, appendix A.1.
    """
    alpha_t, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    alpha_ts = alpha_t / alpha_s
    return alpha_ts, (sigma_t.square() - alpha_ts.square() * sigma_s.square()).clamp(min=0.0)


def posterior(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step back, if the clean picture were known: q(x_s | x_t, x_0) = N(a x_t + b x_0, variance I).

    Returns:
        a, b and variance, of the shape of t.

    Source: Ho et al. 2020, equations 6 and 7, for any two times s < t (Kingma et al. 2021, appendix A.2).
    """
    _, sigma_t = schedule(t)
    alpha_s, sigma_s = schedule(s)
    alpha_ts, variance_ts = transition(schedule, t, s)
    from_x_t = alpha_ts * sigma_s.square() / sigma_t.square()
    from_x_0 = alpha_s * variance_ts / sigma_t.square()
    return from_x_t, from_x_0, sigma_s.square() * variance_ts / sigma_t.square()


def betas(schedule: Schedule, timesteps: int = TIMESTEPS) -> Tensor:
    """DDPM's beta_1 ... beta_T: the variance of the noise that each step adds. (T,), float64.

    Source: Ho et al. 2020, equation 2.
    """
    times = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    _, variance = transition(schedule, times[1:], times[:-1])
    return variance
