"""What else a denoiser can do: begin from a picture, keep a part of one, find the noise behind one.

Each is `samplers.sample` with another beginning, and yields states as it does. None of them was trained for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_book.denoiser import DenoiserFunction
from diffusion_book.samplers import DETERMINISTIC, State, Step, euler, randn, sample
from diffusion_book.schedules import Schedule, add_noise, expand, transition
from diffusion_book.system.errors import BookError, whole
from diffusion_book.targets import Prediction

Generators = torch.Generator | Sequence[torch.Generator]


def times_from(t: float, times: Tensor) -> Tensor:
    """The rest of a time grid: t itself, then all of its times that are less noisy.

    Args:
        t: in (0, 1].
        times: decreasing to 0, from `samplers.time_grid`.

    Raises:
        BookError: t is outside.
    """
    if not 0 < t <= 1:
        raise BookError(f"t is {t!r:.60}: it must be above 0 (the picture as it is) and at most 1 (nothing but noise)")
    return torch.cat([times.new_tensor([t]), times[times < t]])


def sdedit(
    denoiser: DenoiserFunction,
    x0: Tensor,
    t: float,
    times: Tensor,
    step: Step,
    *,
    schedule: Schedule,
    generator: Generators,
    eta: float = 0.0,
    **condition,
) -> Iterator[State]:
    """Noise a picture to time t, and bring it back: what is drowned in the noise is drawn anew, what is not stays.

    Args:
        denoiser: as for `sample`.
        x0: the picture, of any kind, or its latent, (B, ...).
        t: how far to go, in (0, 1].
        times: a time grid; those from t on are visited.
        step, schedule, generator, eta, condition: as for `sample`.

    Yields:
        The noised picture first, the new one last.

    Raises:
        BookError: t is outside (0, 1].

    Source: Meng et al. 2021, algorithm 1.
    """
    rest = times_from(t, times)
    x_t = add_noise(schedule, x0, randn(x0.shape, generator).to(x0), rest[0])
    yield from sample(denoiser, x_t, rest, step, schedule=schedule, generator=generator, eta=eta, **condition)


@torch.no_grad()
def inpaint(
    denoiser: DenoiserFunction,
    x0: Tensor,
    known: Tensor,
    times: Tensor,
    step: Step,
    *,
    schedule: Schedule,
    generator: Generators,
    resamplings: int = 5,
    eta: float = 0.0,
    **condition,
) -> Iterator[State]:
    """Draw what is missing of a picture, so that it fits what is there.

    At every time the known part is replaced by itself, noised to that time. The step has drawn the rest without
    regard to it; so the whole is noised again by one step and the step repeated, until both agree.

    Args:
        denoiser: as for `sample`.
        x0: the picture, (B, ...); what it shows in the missing part does not matter.
        known: 1 where the picture is to be kept, 0 where it is missing; of a shape that broadcasts to x0's.
        times: from `time_grid`.
        step, schedule, generator, eta, condition: as for `sample`. A step that looks back, `dpm_plus_plus`, is none
            here: what it would look back at has been replaced.
        resamplings: how often each step is taken; 1 is plain replacement.

    Yields:
        One state a step, the noise first; the last keeps the known part as it is.

    Raises:
        BookError: the mask does not fit the picture, or resamplings is below 1.

    Source: Lugmayr et al. 2022, algorithm 1, with jumps of one step.
    """
    try:
        known = known.to(x0).expand_as(x0)
    except RuntimeError:
        raise BookError(f"the mask {tuple(known.shape)} does not fit the picture {tuple(x0.shape)}") from None
    if whole("resamplings", resamplings) < 1:
        raise BookError(f"resamplings is {resamplings}: it must be at least 1")

    def draw() -> Tensor:
        return randn(x0.shape, generator).to(x0)

    def ask(x_t: Tensor, t: Tensor) -> Prediction:
        return denoiser(x_t, t, **condition)

    x = draw()
    yield State(float(times[0]), x, None)
    for t, s in pairwise(times):
        for again in reversed(range(resamplings)):
            predicted = ask(x, t)
            drawn = step(predicted, x, t, s, schedule=schedule, noise=draw(), eta=eta, ask=ask)
            x = torch.where(known > 0, add_noise(schedule, x0, draw(), s), drawn)
            if again and s > 0:
                alpha, variance = (expand(value, x) for value in transition(schedule, t, s))
                x = alpha * x + variance.sqrt() * draw()  # back to time t, by a draw of q(x_t | x_s)
            elif not s > 0:
                break  # at s = 0 nothing is drawn any more
        yield State(float(s), x, predicted)


def invert(
    denoiser: DenoiserFunction, x0: Tensor, times: Tensor, step: Step = euler, *, schedule: Schedule, **condition
) -> Iterator[State]:
    """The noise that a deterministic sampler would turn into this picture: its way, walked backwards.

    Exact as the steps become small; `heun` is closer than `euler` for as many evaluations. With another class, or
    with guidance, on the way back to the picture, the new one keeps what the noise says beyond the class: slant,
    width of the stroke.

    Args:
        denoiser: (x_t, t, **condition) -> Prediction, without clipping, which cannot be undone.
        x0: the pictures, or latents, (B, ...).
        times: from `time_grid`, or `times_from` for a part of the way.
        step: one of `samplers.DETERMINISTIC` that does not look back: euler, midpoint or heun.

    Yields:
        The picture first, its noise last.

    Raises:
        BookError: a step that draws noise or looks back.

    Source: Song et al. 2020 (DDIM), section 5.4.
    """
    if step not in DETERMINISTIC or step.__name__ == "dpm_plus_plus":
        raise BookError(f"'{step.__name__}' cannot be walked backwards: use euler, midpoint or heun")
    yield from sample(denoiser, x0, times.flip(0), step, schedule=schedule, generator=torch.Generator(), **condition)
