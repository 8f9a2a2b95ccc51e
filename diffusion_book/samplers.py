"""From noise to pictures: pure steps between two times, and the loop that walks a grid of times.

A step is a function `step(prediction, x_t, t, s, *, schedule, noise, eta) -> x_s` from time t to the
less noisy time s. It draws nothing and remembers nothing: the noise it may use is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_book.denoiser import DenoiserFunction
from diffusion_book.errors import BookError
from diffusion_book.schedules import TIMESTEPS, Schedule, expand, posterior
from diffusion_book.targets import Prediction

Step = Callable[..., Tensor]


def ddpm(
    prediction: Prediction, x_t: Tensor, t: Tensor, s: Tensor, *, schedule: Schedule, noise: Tensor, **_
) -> Tensor:
    """Draw x_s from q(x_s | x_t, x0), with the predicted picture in the place of x0.

    Raises:
        BookError: t is 0.

    Source: Ho et al. 2020, algorithm 2, with the variance of equation 7.
    """
    check_start(t)
    from_x_t, from_x_0, variance = (expand(value, x_t) for value in posterior(schedule, t, s))
    return from_x_t * x_t + from_x_0 * prediction.x0 + variance.sqrt() * noise


def ddim(
    prediction: Prediction, x_t: Tensor, t: Tensor, s: Tensor, *, schedule: Schedule, noise: Tensor, eta: float = 0.0
) -> Tensor:
    """Mix picture and noise anew for time s; a share of the noise, set by eta, is fresh.

    eta = 0 is deterministic; eta = 1 is `ddpm`.

    Raises:
        BookError: t is 0.

    Source: Song et al. 2020 (DDIM), equations 12 and 16.
    """
    check_start(t)
    _, _, variance = posterior(schedule, t, s)
    alpha_s, sigma_s = schedule(s)
    fresh = eta * variance.sqrt()
    kept = (sigma_s.square() - fresh.square()).clamp(min=0.0).sqrt()
    alpha_s, kept, fresh = (expand(value, x_t) for value in (alpha_s, kept, fresh))
    return alpha_s * prediction.x0 + kept * prediction.eps + fresh * noise


SAMPLERS: dict[str, Step] = {"ddpm": ddpm, "ddim": ddim}


def time_grid(steps: int, timesteps: int = TIMESTEPS) -> Tensor:
    """The times that a sampler of `steps` steps visits: steps + 1 of them, from 1 down to 0, float64.

    They lie on the training grid of `timesteps` and are spaced as evenly as it allows.

    Raises:
        BookError: steps is not in 1 .. timesteps.
    """
    if not 1 <= steps <= timesteps:
        raise BookError(
            f"{steps} steps: the number of steps must be 1 to {timesteps}, the timesteps of the training: "
            "set steps (generate's --ddim_steps) in that range"
        )
    whole = torch.linspace(timesteps, 0, steps + 1, dtype=torch.float64).round()
    return whole / timesteps


def check_start(t: Tensor) -> None:
    """Refuse a step from t = 0: its x_t holds no noise, so nothing says which noise to keep, and sigma_t divides by 0.

    Raises:
        BookError: t, or one of several, is 0.
    """
    if (t <= 0).any():
        raise BookError("a step cannot start at t = 0, where no noise is left: start at a later time, such as 0.001")


def check_eta(eta: float) -> None:
    """Refuse an eta outside [0, 1].

    Raises:
        BookError: it is outside.
    """
    if not 0.0 <= eta <= 1.0:
        raise BookError(f"eta is {eta}: it must be between 0 (no fresh noise, DDIM) and 1 (as much as DDPM)")


def sample_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One random generator for each sample, so that sample i is the same in whichever batch it falls.

    Raises:
        BookError: the seed is negative.
    """
    if seed < 0:
        raise BookError(f"seed is {seed}: it must be 0 or more")
    generators = []
    for index in indices:
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
        generators.append(torch.Generator().manual_seed(int(state) & (2**63 - 1)))
    return generators


def randn(shape: Sequence[int], generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of `shape` (B, ...), from one generator or from one for each of B samples."""
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device)
    noise = torch.empty(tuple(shape))
    for row, single in zip(noise, generator, strict=True):
        torch.randn(row.shape, generator=single, out=row)
    return noise


class State(NamedTuple):
    """Where a sampler stands. `t` is a float in [0, 1]; `prediction` led here, None at the start."""

    t: float
    x: Tensor
    prediction: Prediction | None


@torch.no_grad()
def sample(
    denoiser: DenoiserFunction,
    x: Tensor,
    times: Tensor,
    step: Step,
    *,
    schedule: Schedule,
    generator: torch.Generator | Sequence[torch.Generator],
    eta: float = 0.0,
    **condition,
) -> Iterator[State]:
    """Walk from noise to picture, and yield every state on the way, the noise itself first.

    Args:
        denoiser: (x_t, t, **condition) -> Prediction(x0, eps); called once a step.
        x: pure noise, (B, ...).
        times: from `time_grid`, decreasing, float64: S + 1 numbers for S steps.
        step: one of SAMPLERS.
        generator: draws the fresh noise; one for the whole batch or one for each sample.
        eta: the share of fresh noise; only `ddim` reads it.

    Yields:
        S + 1 states.
    """
    yield State(float(times[0]), x, None)
    draws = step is not ddim or eta > 0
    for t, s in pairwise(times):
        predicted = denoiser(x, t, **condition)
        fresh = draws and float(s) > 0  # the last step ends at the picture itself
        noise = randn(x.shape, generator).to(x) if fresh else torch.zeros_like(x)
        x = step(predicted, x, t, s, schedule=schedule, noise=noise, eta=eta)
        yield State(float(s), x, predicted)
