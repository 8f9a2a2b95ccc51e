"""Chapter 2: a step as a rotation, a better solver, the parameter eta, and trailing spacing."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch

from diffusion_book import samplers, targets
from diffusion_book.exercises.exercise import Exercise
from diffusion_book.schedules import cosine
from diffusion_book.targets import Prediction


def circle(phi):
    """The schedule whose time is the angle."""
    return phi.cos(), phi.sin()


def turned(x_t, v, phi_t, phi_s):
    """DDIM's step with eta = 0 in angles. Source: Salimans & Ho 2022, appendix D."""
    guess = targets.prediction(targets.v, v, x_t, *circle(phi_t))
    return samplers.ddim(guess, x_t, phi_t, phi_s, schedule=circle, noise=torch.zeros_like(x_t))


def two_angles(generator):
    x_t, v = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    return {"from 1.3 to 0.9": (x_t, v, *torch.tensor([1.3, 0.9], dtype=torch.float64))}


TURNED = Exercise(
    right=turned,
    questions=two_angles,
    proved="DDIM with eta = 0 turns x_t in the plane of x_t and v, by the difference of two angles.",
    mistakes={
        "it turns towards v, not away from it: the sign of v is wrong, or delta is phi_s - phi_t.": (
            lambda x_t, v, phi_t, phi_s: (phi_t - phi_s).cos() * x_t + (phi_t - phi_s).sin() * v
        ),
        "sine and cosine have changed places: a turn by no angle must leave x_t where it is.": (
            lambda x_t, v, phi_t, phi_s: (phi_t - phi_s).sin() * x_t - (phi_t - phi_s).cos() * v
        ),
        "the angles are added. A step turns by their difference.": (
            lambda x_t, v, phi_t, phi_s: (phi_t + phi_s).cos() * x_t - (phi_t + phi_s).sin() * v
        ),
        "that is the prediction of x_0: it turns by all of phi_t, back to s = 0.": (
            lambda x_t, v, phi_t, phi_s: phi_t.cos() * x_t - phi_t.sin() * v
        ),
        "the noise is missing: that is only alpha_s times the prediction of x_0.": (
            lambda x_t, v, phi_t, phi_s: phi_s.cos() * (phi_t.cos() * x_t - phi_t.sin() * v)
        ),
    },
)


def stretched(t):
    """The schedule of equation (7)'s coordinate x / alpha: the picture stays, sigma / alpha is the noise."""
    alpha, sigma = cosine(t)
    return torch.ones_like(alpha), sigma / alpha


def heun_walk(denoiser, x, times):
    """Heun's method for d(x / alpha) = eps d(sigma / alpha), but Euler's first step. Source: Karras et al. 2022."""
    return walked(denoiser, x, times)


def walked(denoiser, x, times, *, step=samplers.heun, first=samplers.euler, schedule=stretched, last=False):
    """A walk of the library's steps, in x / alpha or in x itself; `last`: ask even at s = 0."""

    def size(t):
        return cosine(t)[0] / schedule(t)[0]  # x is so many times the coordinate

    def ask(state, t):
        return denoiser(size(t) * state, t)

    state = x / size(times[0])
    for t, s in pairwise(times):
        state = (step if t < 1 else first)(ask(state, t), state, t, s, schedule=schedule, ask=ask)
        if last and s == 0:
            state = state + 0 * ask(state, s).eps
    return state * size(times[-1])


def sum_of_slopes(*arguments, ask, **options):
    """Heun's step, with the two slopes added and not halved."""
    prediction, x_t, t, s = arguments
    if s == 0:
        return samplers.euler(*arguments, **options)
    end = ask(samplers.euler(*arguments, **options), s)
    return samplers.euler(Prediction(prediction.x0, prediction.eps + end.eps), x_t, t, s, **options)


def slope_at_the_end(*arguments, ask, **options):
    """Euler's step with the slope that it meets at its end."""
    _, x_t, t, s = arguments
    if s == 0:
        return samplers.euler(*arguments, **options)
    return samplers.euler(ask(samplers.euler(*arguments, **options), s), x_t, t, s, **options)


def bell(x_t, t, mean=0.3, variance=0.09):
    """The exact denoiser of numbers from one Gaussian. At t = 0 its eps is 0 / 0."""
    alpha, sigma = cosine(t)
    x0 = mean + alpha * variance * (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)
    return Prediction(x0, (x_t - alpha * x0) / sigma)


HEUN_WALK = Exercise(
    right=heun_walk,
    questions=lambda generator: {
        f"{steps} steps": (bell, torch.randn(8, 1, generator=generator).double(), samplers.time_grid(steps))
        for steps in (5, 12)
    },
    proved="it is Heun's method for (7), the first step Euler's, and no question asked where there is no noise.",
    mistakes={
        "that is Euler's method. The slope at the end of a step is not used.": partial(walked, step=samplers.euler),
        "the slope at the end alone decides. Heun takes the mean of both.": partial(walked, step=slope_at_the_end),
        "the two slopes are added, not averaged: every step is twice as long.": partial(walked, step=sum_of_slopes),
        "that is the midpoint method: it asks in the middle, Heun asks at the end.": partial(
            walked, step=samplers.midpoint
        ),
        "the first step is Heun's as well. It is 20,000 long, and a slope from its other end spoils it.": partial(
            walked, first=samplers.heun
        ),
        "it asks for the noise at s = 0, where there is none: eps is 0 / 0, and the answer no number.": partial(
            walked, last=True
        ),
        "that is Heun's method in x. Equation (7) is about x / alpha, and its time is sigma / alpha.": partial(
            walked, schedule=cosine
        ),
    },
)


def dial_step(x_t, x0, z, t, s, eta):
    """One step of DDIM with any eta. Source: Song et al. 2020, equations 12 and 16."""
    alpha, sigma = cosine(t)
    guess = Prediction(x0, (x_t - alpha * x0) / sigma)
    return samplers.ddim(guess, x_t, t, s, schedule=cosine, noise=z, eta=eta)


def two_dials(generator):
    x_t, x0, z = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    t, s = torch.tensor([[0.8, 0.3], [0.5, 0.1]], dtype=torch.float64)
    return {f"eta = {eta}": (x_t.clone(), x0.clone(), z.clone(), t[i], s[i], eta) for i, eta in enumerate((0.6, 1.0))}


def dialled(
    x_t, x0, z, t, s, eta, *, fresh=lambda eta, variance: eta * variance.sqrt(), kept=None, squares=True, now=False
):
    """dial_step, with every wrong turn as an option."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
    lost = 1 - (alpha_t / alpha_s) ** (2 if squares else 1)
    of_z = fresh(eta, sigma_s**2 / sigma_t**2 * lost)
    of_eps = kept(sigma_s, of_z) if kept else (sigma_s**2 - of_z**2).sqrt()
    eps = (x_t - alpha_t * x0) / sigma_t
    return (alpha_t if now else alpha_s) * x0 + of_eps * eps + of_z * z


DIAL_STEP = Exercise(
    right=dial_step,
    questions=two_dials,
    proved="it is samplers.ddim, and with eta = 1 the step of chapter 1.",
    mistakes={
        "the kept noise is not made smaller for the fresh: its factor is the root of sigma_s^2 - sigma_eta^2.": partial(
            dialled, kept=lambda sigma, fresh: sigma
        ),
        "under the root stands sigma_eta instead of its square.": partial(
            dialled, kept=lambda sigma, fresh: (sigma**2 - fresh).sqrt()
        ),
        "standard deviations are subtracted. Variances add up: take squares, and then the root.": partial(
            dialled, kept=lambda sigma, fresh: sigma - fresh
        ),
        "z is multiplied by the variance sigma_eta^2: the root in (5) is missing.": partial(
            dialled, fresh=lambda eta, variance: eta * variance
        ),
        "eta stands under the root. In (5) it multiplies the standard deviation.": partial(
            dialled, fresh=lambda eta, variance: (eta * variance).sqrt()
        ),
        "alpha_t / alpha_s is not squared in (5): the paper's alpha_t is the square of ours.": partial(
            dialled, squares=False
        ),
        "the picture is mixed with alpha_t, as it was before the step: at time s its factor is alpha_s.": partial(
            dialled, now=True
        ),
    },
)


def grid_of_times(steps):
    """The times of a walk of so many steps: (steps + 1,)."""
    return samplers.time_grid(steps)


def every_nth(steps):
    indices = torch.arange(0, 1000, 1000 // steps).flip(0)
    return torch.cat([(indices + 1) / 1000, torch.zeros(1)]).double()


GRID_OF_TIMES = Exercise(
    right=grid_of_times,
    questions=lambda generator: {f"{steps} steps": (steps,) for steps in (10, 30, 7)},
    proved="exactly as many steps as asked for, from pure noise to the picture, at times of the training.",
    mistakes={
        "that is range(0, T, T // S): it never visits the noise at t = 1, and 30 steps become 31.": every_nth,
        "the last time is missing: so many steps have one time more, and the last is 0.": (
            lambda steps: samplers.time_grid(steps)[:-1]
        ),
        "S times are only S - 1 steps: a grid of S steps has both ends.": (lambda steps: samplers.time_grid(steps - 1)),
        "it runs upwards, from picture to noise.": lambda steps: samplers.time_grid(steps).flip(0),
        "these are DDPM's k from 1000 to 0. Our time is k / 1000.": lambda steps: 1000 * samplers.time_grid(steps),
        "not all of these times were trained: round to whole thousandths.": (
            lambda steps: torch.linspace(1, 0, steps + 1).double()
        ),
    },
)

EXERCISES = (TURNED, HEUN_WALK, DIAL_STEP, GRID_OF_TIMES)
