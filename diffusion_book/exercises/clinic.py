"""Chapter 9: the first weights in an average, the noise in a state, and a state of data in another range."""

from __future__ import annotations

from functools import partial

import torch

from diffusion_book.exercises.exercise import Exercise
from diffusion_book.schedules import cosine


def first_weights_left(d, n):
    """The fraction of the first weights in an average whose decay warms up. Source: `training.ema`."""
    return averaged(d, n)


def averaged(d, n, *, first=0, whole=torch.prod, limit=torch.clamp_max, warm=lambda k: (1 + k) / (10 + k)):
    """first_weights_left, with every wrong turn as an option."""
    return whole(limit(warm(torch.arange(first, first + n, dtype=torch.float64)), d))


FIRST_WEIGHTS_LEFT = Exercise(
    right=first_weights_left,
    questions=lambda generator: {"n = 3": (0.9999, 3), "d = 0.15": (0.15, 2)},
    proved="every update keeps its decay's fraction, and the fractions multiply.",
    mistakes={
        "that is d^n, equation (4). Let the decay warm up.": lambda d, n: torch.tensor(d, dtype=torch.float64) ** n,
        "the decay is not limited: it must never be more than d.": partial(averaged, limit=lambda decay, d: decay),
        "the larger of the two is taken. The decay is the smaller one.": partial(averaged, limit=torch.clamp_min),
        "that is the decay of the last update. The fractions of all updates multiply.": partial(
            averaged, whole=lambda decays: decays[-1]
        ),
        "the updates are counted from 1. The first one has k = 0.": partial(averaged, first=1),
        "that is 1 minus it, the fraction of all later weights.": lambda d, n: 1 - averaged(d, n),
        "the decays are added. Each keeps its fraction of what is left: multiply.": partial(averaged, whole=torch.sum),
    },
)


def noise_ratio(x_t, picture, alpha, sigma):
    """Root mean square of the noise in a state, over sigma."""
    return shown(x_t, picture, alpha, sigma)


def shown(x_t, picture, alpha, sigma, *, dims=(1, 2, 3), norm=torch.sqrt, divide=True, scale=True):
    """noise_ratio, with every wrong turn as an option."""
    noise = x_t - (alpha if scale else 1) * picture
    return norm(noise.square().mean(dim=dims)) / (sigma if divide else 1)


def noisy_states(generator):
    """Three states of one picture, whose noise is a little too large."""
    picture, eps = torch.rand(2, 4, 4, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
    alpha, sigma = cosine(torch.tensor(0.4))
    return {"": (alpha * picture + 1.1 * sigma * eps, picture, alpha, sigma)}


NOISE_RATIO = Exercise(
    right=noise_ratio,
    questions=noisy_states,
    proved="it is 1 for a state that has as much noise as its time says.",
    mistakes={
        "the picture is in the state alpha times, not once.": partial(shown, scale=False),
        "that is the noise itself: divide by the sigma of the time told.": partial(shown, divide=False),
        "the root of the mean square is missing.": partial(shown, norm=lambda square: square),
        "that is one ratio for the whole batch: one for each state is asked for.": partial(shown, dims=(0, 1, 2, 3)),
        "the picture was not subtracted: x_t is not all noise.": (
            lambda x_t, picture, alpha, sigma: shown(x_t, 0 * picture, alpha, sigma)
        ),
        "that is the mean of the noise, which is about 0. Take its root mean square.": (
            lambda x_t, picture, alpha, sigma: (x_t - alpha * picture).mean(dim=(1, 2, 3)) / sigma
        ),
    },
)


def in_full_range(y_t, alpha, sigma):
    """A noisy picture in [0, 1] as one in [-1, 1], on a variance preserving path."""
    return moved(y_t, alpha, sigma)


def moved(y_t, alpha, sigma, *, shift=1.0, noise=2.0, norm=torch.sqrt):
    """in_full_range, with every wrong turn as an option."""
    size = norm(alpha**2 + (noise * sigma) ** 2)
    return (2 * y_t - shift * alpha) / size, alpha / size, noise * sigma / size


IN_FULL_RANGE = Exercise(
    right=in_full_range,
    questions=lambda generator: {
        f"t = {t:g}": (torch.randn(2, 1, 4, 4, generator=generator), *cosine(torch.tensor(t))) for t in (0.3, 0.7)
    },
    proved="2 y_t - alpha is a state of x_0 with twice the noise, brought to variance 1.",
    mistakes={
        "the shift is missing: 2y is x_0 + 1, so alpha has to be subtracted.": partial(moved, shift=0.0),
        "alpha times 1 is subtracted from y_t before it is doubled: that leaves too little.": partial(moved, shift=2.0),
        "the shift is 1. In the state it is alpha times 1.": (
            lambda y_t, alpha, sigma: ((2 * y_t - 1) / (alpha**2 + 4 * sigma**2).sqrt(), *moved(y_t, alpha, sigma)[1:])
        ),
        "the noise is doubled too: its factor is 2 sigma.": partial(moved, noise=1.0),
        "alpha'^2 + sigma'^2 is not 1: divide by its root.": partial(moved, norm=torch.ones_like),
        "the root is missing: all is divided by alpha^2 + 4 sigma^2.": partial(moved, norm=lambda square: square),
    },
)

EXERCISES = (FIRST_WEIGHTS_LEFT, NOISE_RATIO, IN_FULL_RANGE)
