"""From noise to pictures: pure steps between two times, and the loop that walks a grid of times.

A step is a function `step(prediction, x_t, t, s, *, schedule, noise, eta, ask, before) -> x_s` from time t to the
less noisy time s. It draws nothing and remembers nothing: the noise it may use is handed in, and so are the
denoiser, for steps that ask a second time, and the prediction before this one, for steps that look back.
Each names only what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion_book.denoiser import DenoiserFunction
from diffusion_book.schedules import TIMESTEPS, Schedule, expand, posterior
from diffusion_book.system.errors import BookError, whole
from diffusion_book.targets import Prediction

Step = Callable[..., Tensor]

SAMPLERS: dict[str, Step] = {}
"""name -> step; `sampler` enters them"""


@dataclass(frozen=True)
class Facts:
    """What is known of a step without running it.

    Attributes:
        evaluations: steps of a walk -> calls of the denoiser.
        draws: eta -> whether the step uses fresh noise; where it does not, none is drawn for it.
        from_data: whether a walk may start at t = 0, where no noise is left and sigma_t, by which many divide, is 0.
    """

    evaluations: Callable[[int], int] = lambda steps: steps
    draws: Callable[[float], bool] = lambda eta: True
    from_data: bool = True


def sampler(name: str, **facts) -> Callable[[Step], Step]:
    """Enter a step in SAMPLERS, with what is special about it: the fields of `Facts`."""

    def enter(step: Step) -> Step:
        step.facts = Facts(**facts)
        SAMPLERS[name] = step
        return step

    return enter


def facts_of(step: Step) -> Facts:
    """What is known of a step; of one that was never entered in SAMPLERS, the usual."""
    return getattr(step, "facts", Facts())


@sampler("ddpm", from_data=False)
def ddpm(
    prediction: Prediction, x_t: Tensor, t: Tensor, s: Tensor, *, schedule: Schedule, noise: Tensor, **_
) -> Tensor:
    """Draw x_s from q(x_s | x_t, x0), with the predicted picture in the place of x0.

    Source: Ho et al. 2020, algorithm 2, with the variance of equation 7.
    """
    from_x_t, from_x_0, variance = (expand(value, x_t) for value in posterior(schedule, t, s))
    return from_x_t * x_t + from_x_0 * prediction.x0 + variance.sqrt() * noise


@sampler("ddim", draws=lambda eta: eta > 0, from_data=False)
def ddim(
    prediction: Prediction,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    schedule: Schedule,
    noise: Tensor,
    eta: float = 0.0,
    **_,
) -> Tensor:
    """Mix picture and noise anew for time s; a share of the noise, set by eta, is fresh.

    eta = 0 is deterministic; eta = 1 is `ddpm`.

    Source: Song et al. 2020 (DDIM), equations 12 and 16.
    """
    _, _, variance = posterior(schedule, t, s)
    alpha_s, sigma_s = schedule(s)
    fresh = eta * variance.sqrt()
    kept = (sigma_s.square() - fresh.square()).clamp(min=0.0).sqrt()
    alpha_s, kept, fresh = (expand(value, x_t) for value in (alpha_s, kept, fresh))
    return alpha_s * prediction.x0 + kept * prediction.eps + fresh * noise


@sampler("euler", draws=lambda eta: False)
def euler(prediction: Prediction, x_t: Tensor, t: Tensor, s: Tensor, *, schedule: Schedule, **_) -> Tensor:
    """Follow the path, as it goes at time t, to time s: dx = x0 dalpha + eps dsigma.

    On the straight path of a rectified flow that is x_t + (s - t) (eps - x0), Euler's step along the velocity.
    On any path it is `ddim` with eta = 0, for x_t = alpha_t x0 + sigma_t eps cancels.

    Source: Liu, Gong & Liu 2022, section 2.1.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return x_t + expand(alpha_s - alpha_t, x_t) * prediction.x0 + expand(sigma_s - sigma_t, x_t) * prediction.eps


@sampler("midpoint", evaluations=lambda steps: 2 * steps, draws=lambda eta: False)
def midpoint(
    prediction: Prediction,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    schedule: Schedule,
    ask: Callable[[Tensor, Tensor], Prediction],
    **_,
) -> Tensor:
    """Go half the way with Euler, ask there, and take that answer for the whole way. Two evaluations.

    Source: Runge 1895; Hairer, Norsett & Wanner 1993, section II.1.
    """
    middle = (t + s) / 2
    halfway = ask(euler(prediction, x_t, t, middle, schedule=schedule), middle)
    return euler(halfway, x_t, t, s, schedule=schedule)


@sampler("heun", evaluations=lambda steps: 2 * steps - 1, draws=lambda eta: False)
def heun(
    prediction: Prediction,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    schedule: Schedule,
    ask: Callable[[Tensor, Tensor], Prediction],
    **_,
) -> Tensor:
    """Go the whole way with Euler, ask at its end, and go again with the mean of both answers. Two evaluations.

    The last step, to s = 0, stays Euler's: no noise is left there to ask about.

    Source: Karras et al. 2022, algorithm 1 (without its churn).
    """
    x_s = euler(prediction, x_t, t, s, schedule=schedule)
    if (s <= 0).all():
        return x_s
    end = ask(x_s, s)
    mean = Prediction((prediction.x0 + end.x0) / 2, (prediction.eps + end.eps) / 2)
    return euler(mean, x_t, t, s, schedule=schedule)


@sampler("dpm++", draws=lambda eta: False, from_data=False)
def dpm_plus_plus(
    prediction: Prediction,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    schedule: Schedule,
    before: tuple[Tensor, Prediction] | None = None,
    **_,
) -> Tensor:
    """DPM-Solver++ (2M): one evaluation a step, and the second order from the step before.

    It is exact in the noise and extends x0 in a straight line over lambda = log(alpha / sigma), from the last two
    predictions. The first step has only one, and the last, to s = 0, ends in the predicted picture.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    x0 = prediction.x0
    if before is not None and (s > 0).all():
        earlier, prediction_before = before
        lambda_before, lambda_t, lambda_s = (log_ratio(schedule, time) for time in (earlier, t, s))
        extend = expand((lambda_s - lambda_t) / (lambda_t - lambda_before) / 2, x_t)  # 1 / (2 r) of the paper
        x0 = x0 + extend * (x0 - prediction_before.x0)
    kept = sigma_s / sigma_t
    return expand(kept, x_t) * x_t + expand(alpha_s - alpha_t * kept, x_t) * x0


def log_ratio(schedule: Schedule, t: Tensor) -> Tensor:
    """lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio; of the shape of t.

    Source: Lu et al. 2022 (DPM-Solver), section 2.2.
    """
    alpha, sigma = schedule(t)
    return alpha.log() - sigma.log()


def evaluations(sampler: str, steps: int) -> int:
    """How often a sampler asks the network for one picture in so many steps."""
    return facts_of(SAMPLERS[sampler]).evaluations(steps)


def time_grid(steps: int, timesteps: int = TIMESTEPS) -> Tensor:
    """The times that a sampler of `steps` steps visits: steps + 1 of them, from 1 down to 0, float64.

    They lie on the training grid of `timesteps` and are spaced as evenly as it allows.

    Raises:
        BookError: steps is no whole number in 1 .. timesteps.
    """
    if not 1 <= whole("steps", steps) <= timesteps:
        raise BookError(
            f"{steps!s:.60} steps: the number of steps must be 1 to {timesteps}, the timesteps of the training"
        )
    return torch.linspace(timesteps, 0, steps + 1, dtype=torch.float64).round() / timesteps


def sample_generators(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One random generator for each sample, so that sample i is the same in whichever batch it falls."""
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
        denoiser: (x_t, t, **condition) -> Prediction(x0, eps); called once a step, by `midpoint` and `heun` twice.
        x: pure noise, (B, ...).
        times: from `time_grid`, decreasing, float64: S + 1 numbers for S steps.
        step: one of SAMPLERS.
        generator: draws the fresh noise; one for the whole batch or one for each sample.
        eta: the share of fresh noise; only `ddim` reads it.

    Yields:
        S + 1 states.

    Raises:
        BookError: the walk starts where this step cannot.
    """
    facts = facts_of(step)
    if not facts.from_data and (times[:-1] <= 0).any():
        raise BookError("this step cannot start at t = 0, where no noise is left: start at a later time, such as 0.001")

    def ask(x_t: Tensor, t: Tensor) -> Prediction:
        return denoiser(x_t, t, **condition)

    yield State(float(times[0]), x, None)
    before = None
    for t, s in pairwise(times):
        predicted = ask(x, t)
        fresh = facts.draws(eta) and float(s) > 0  # the last step ends at the picture itself
        noise = randn(x.shape, generator).to(x) if fresh else torch.zeros_like(x)
        x = step(predicted, x, t, s, schedule=schedule, noise=noise, eta=eta, ask=ask, before=before)
        before = (t, predicted)
        yield State(float(s), x, predicted)
