"""Chapter 7: a step of the flow, the way from one path to another, and a solver that remembers."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch

from diffusion_book import samplers
from diffusion_book.exercises.exercise import Exercise
from diffusion_book.schedules import cosine, rectified
from diffusion_book.targets import Prediction


def flow_step(x_t, x0, t, s):
    """Euler's step along the flow, from a prediction of the picture. Source: Liu, Gong & Liu 2022, section 2.1."""
    return samplers.euler(Prediction(x0, (x_t - (1 - t) * x0) / t), x_t, t, s, schedule=rectified)


def two_steps(generator):
    x_t, x0 = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    times = torch.tensor([[0.9, 0.7], [0.4, 0.0]], dtype=torch.float64)
    return {f"from {t:g} to {s:g}": (x_t.clone(), x0.clone(), t, s) for t, s in times}


FLOW_STEP = Exercise(
    right=flow_step,
    questions=two_steps,
    proved="it is samplers.euler on the straight path, and the last step ends at the prediction.",
    mistakes={
        "it walks away from the picture: s - t is negative and goes with eps - x_0; one sign is wrong.": (
            lambda x_t, x0, t, s: x_t - (s - t) * (x_t - x0) / t
        ),
        "x_t - x_0 is t times the velocity: the division by t in (4) is missing.": (
            lambda x_t, x0, t, s: x_t + (s - t) * (x_t - x0)
        ),
        "divided by 1 - t. By (4) it is t, the time that is left to the picture.": (
            lambda x_t, x0, t, s: x_t + (s - t) * (x_t - x0) / (1 - t)
        ),
        "that is the prediction itself: it goes all the way, not only to s.": lambda x_t, x0, t, s: x0,
        "the state stands where its noise belongs: (9) mixes x_0 with eps, and eps is not x_t.": (
            lambda x_t, x0, t, s: (1 - s) * x0 + s * x_t
        ),
        "picture and noise have changed places in (9): the noise has the factor s.": (
            lambda x_t, x0, t, s: s * x0 + (1 - s) * (x_t - (1 - t) * x0) / t
        ),
    },
)

FINE = torch.linspace(0, 1, 100_001, dtype=torch.float64)


def on_the_cosine(x_t, t):
    """A state of the straight path as one of the cosine path: its size and its time there."""
    return translate(x_t, t)


def translate(x_t, t, *, size=torch.sqrt, of=lambda alpha, sigma: sigma / alpha, time=None):
    """on_the_cosine, with another size, or with the time at which something else agrees on both paths."""
    c = size((1 - t) ** 2 + t**2)
    ratios = of(*cosine(FINE))  # along the cosine path, growing
    position = torch.searchsorted(ratios, of(1 - t, t)).clamp(max=len(FINE) - 1)
    return x_t / c, FINE[position] if time is None else time(t)


ON_THE_COSINE = Exercise(
    right=on_the_cosine,
    questions=lambda generator: {
        f"t = {t:g}": (torch.randn(4, 3, generator=generator).double(), t)
        for t in torch.tensor([0.15, 0.4, 0.8], dtype=torch.float64)
    },
    proved="the state has the cosine path's size, and its time has the same ratio of noise and picture.",
    mistakes={
        "the state is not divided by c: it is too small for the other path.": partial(translate, size=torch.ones_like),
        "c has no root: it is divided by c^2.": partial(translate, size=lambda square: square),
        "multiplied by c. On the straight path the variances sum to less than 1: divide.": partial(
            translate, size=torch.rsqrt
        ),
        "the time is left as it is. At the same t the two paths have another ratio sigma / alpha.": partial(
            translate, time=lambda t: t
        ),
        "the time is that at which sigma agrees. Both factors change their size: compare sigma / alpha.": partial(
            translate, of=lambda alpha, sigma: sigma
        ),
        "the time is that at which alpha agrees. Both factors change their size: compare sigma / alpha.": partial(
            translate, of=lambda alpha, sigma: -alpha
        ),
        "the ratio is upside down: it is sigma / alpha, the noise above.": lambda x_t, t: (
            translate(x_t, t)[0],
            translate(x_t, 1 - t)[1],
        ),
    },
)


def remembering(u, x, times):
    """The two-step method of Adams and Bashforth. Source: Hairer, Norsett & Wanner 1993, section III.1."""
    return remembered(u, x, times)


def remembered(u, x, times, *, now=1.5, before=-0.5, first=True, sign=1, update=True):
    """remembering, with every wrong turn as an option."""
    last = None if first else torch.zeros_like(x)
    for t, s in pairwise(times):
        slope = u(x, t)
        x = x + sign * (s - t) * (slope if last is None else now * slope + before * last)
        last = slope if update or last is None else last
    return x


REMEMBERING = Exercise(
    right=remembering,
    questions=lambda generator: {
        f"{steps} steps": (
            lambda x, t: torch.sin(3 * x) + 2 * t,
            torch.randn(5, 1, generator=generator).double(),
            samplers.time_grid(steps),
        )
        for steps in (4, 10)
    },
    proved="one evaluation a step, and two velocities in it: the method of Adams and Bashforth.",
    mistakes={
        "that is Euler: the velocity before is not used.": partial(remembered, now=1.0, before=0.0),
        "the two are averaged. That looks back; to look ahead take 3/2 of now and -1/2 of before.": partial(
            remembered, now=0.5, before=0.5
        ),
        "both are added: 3/2 + 1/2 is a step twice as long. The second has a minus.": partial(remembered, before=0.5),
        "now and before have changed places: the newer velocity has the larger weight.": partial(
            remembered, now=-0.5, before=1.5
        ),
        "the first step has nothing to remember, and is 3/2 too long: take Euler's.": partial(remembered, first=False),
        "it remembers the very first velocity for ever: keep the last one.": partial(remembered, update=False),
        "the steps run the wrong way: s - t is negative, and that is right.": partial(remembered, sign=-1),
    },
)

EXERCISES = (FLOW_STEP, ON_THE_COSINE, REMEMBERING)
