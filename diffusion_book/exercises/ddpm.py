"""Chapter 1: noise in one jump, one step back, and the ideal denoiser of a few pictures."""

from __future__ import annotations

from functools import partial

import torch

from diffusion_book import samplers, schedules
from diffusion_book.exercises.exercise import Exercise
from diffusion_book.schedules import TIMESTEPS, add_noise, cosine, expand
from diffusion_book.targets import Prediction

BETA = torch.cat([torch.zeros(1).double(), schedules.betas(cosine)])  # BETA[k] is the formulas' beta_k


def noisy(x0, eps, k, beta):
    """A sample of q(x_k | x_0), each picture at its own step k. Source: Ho et al. 2020, equation 4."""
    return add_noise(cosine, x0, eps, k.double() / TIMESTEPS)


def four_steps(generator):
    # As many pictures as columns: factors (B,) that nobody reshaped then fit the columns, and nothing complains.
    x0, eps = torch.randn(2, 4, 1, 4, 4, generator=generator, dtype=torch.float64)
    return {"four steps": (x0, eps, torch.tensor([40, 300, 550, 800]), BETA.clone())}


def jump(x0, eps, k, beta, *, fraction=lambda alpha_bar, beta: alpha_bar, roots=(True, True), shift=0, fit=expand):
    """noisy, with another fraction for alpha-bar, without roots, or at another step."""
    of_picture = fraction((1 - beta).cumprod(0)[k + shift], beta[k])
    factors = [value.sqrt() if root else value for value, root in zip((of_picture, 1 - of_picture), roots)]
    return fit(factors[0], x0) * x0 + fit(factors[1], x0) * eps


NOISY = Exercise(
    right=noisy,
    questions=four_steps,
    proved="every picture jumps to its own step k, as with add_noise; k small steps give the same.",
    mistakes={
        "the square root of alpha-bar is missing. alpha-bar is the picture's fraction of the variance.": partial(
            jump, roots=(False, True)
        ),
        "the square root of 1 - alpha-bar is missing. 1 - alpha-bar is the noise's variance.": partial(
            jump, roots=(True, False)
        ),
        "both square roots are missing. alpha-bar and 1 - alpha-bar are variances.": partial(
            jump, roots=(False, False)
        ),
        "that is (1), a single step: beta stands where 1 - alpha-bar, of all k steps, belongs.": partial(
            jump, fraction=lambda alpha_bar, beta: 1 - beta
        ),
        "picture and noise have changed places.": partial(jump, fraction=lambda alpha_bar, beta: 1 - alpha_bar),
        "one step short: the product of alpha-bar goes up to beta[k], and beta[k] belongs to it.": partial(
            jump, shift=-1
        ),
        "one step too far: beta[0] stands before the first step, so beta[k] is step k's.": partial(jump, shift=1),
        "right shape, but each column has its own step, not each picture: reshape (B,) to (B, 1, 1, 1).": partial(
            jump, fit=lambda value, like: value
        ),
    },
)


def step_back(x_k, x0, z, k, beta):
    """A sample of q(x_{k-1} | x_k, x_0), for a predicted x_0. Source: Ho et al. 2020, equations 6 and 7."""
    t, s = (torch.tensor(step / TIMESTEPS, dtype=torch.float64) for step in (k, k - 1))
    x0 = x0.clamp(-1, 1)
    alpha, sigma = cosine(t)
    return samplers.ddpm(Prediction(x0, (x_k - alpha * x0) / sigma), x_k, t, s, schedule=cosine, noise=z)


def late_and_last(generator):
    x_k, x0, z = 1.5 * torch.randn(3, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    return {f"k = {k}": (x_k.clone(), x0.clone(), z.clone(), k, BETA.clone()) for k in (600, 30, 1)}


def back(x_k, x0, z, k, beta, *, clip=True, clamp=False, larger=False, root=True, before=1, swap=False):
    """step_back, with every wrong turn as an option."""
    alpha_bar = (1 - beta).cumprod(0)
    missing, missing_before = 1 - alpha_bar[k], 1 - alpha_bar[k - before]
    from_x_k = (1 - beta[k]).sqrt() * missing_before / missing
    from_x_0 = alpha_bar[k - before].sqrt() * beta[k] / missing
    if swap:
        from_x_k, from_x_0 = from_x_0, from_x_k
    variance = beta[k] if larger else beta[k] * missing_before / missing
    x = from_x_k * x_k + from_x_0 * (x0.clamp(-1, 1) if clip else x0) + (variance.sqrt() if root else variance) * z
    return x.clamp(-1, 1) if clamp else x


STEP_BACK = Exercise(
    right=step_back,
    questions=late_and_last,
    proved="(3) with a clipped prediction is samplers.ddpm, and at k = 1 what is left is the prediction itself.",
    mistakes={
        "x0 is not clipped: it reaches beyond [-1, 1], where no picture is.": partial(back, clip=False),
        "x_{k-1} is clamped (section 15). It is noisy and may leave [-1, 1]; only x0 may be clipped.": partial(
            back, clamp=True
        ),
        "x_{k-1} is clamped instead of x0 (section 15): the noisy state may leave [-1, 1].": partial(
            back, clip=False, clamp=True
        ),
        "the variance is beta_k, the larger one. The posterior's is beta-tilde_k, which is 0 at k = 1.": partial(
            back, larger=True
        ),
        "z is multiplied by the variance. Its factor is the standard deviation, the root of it.": partial(
            back, root=False
        ),
        "alpha-bar_k stands where alpha-bar_{k-1} belongs: in (3) the numerators are of the step before.": partial(
            back, before=0
        ),
        "the factors of x_k and x0 have changed places: at k = 1 only x0 counts.": partial(back, swap=True),
    },
)


def ideal_x0(x_t, alpha, sigma, points, weights):
    """E[x_0 | x_t], (N, 1), where x_0 is one of K points (K,), each with its weight."""
    return average(x_t, alpha, sigma, points, weights)


def random_points(generator):
    points, weights = torch.randn(5, generator=generator).double(), torch.rand(5, generator=generator).double()
    x_t, alpha = torch.randn(6, 1, generator=generator).double(), torch.tensor(0.8, dtype=torch.float64)
    return {"five points": (x_t, alpha, torch.tensor(0.6, dtype=torch.float64), points, weights / weights.sum())}


def average(x_t, alpha, sigma, points, weights, *, spread=lambda sigma: 2 * sigma**2, shrink=True, even=False, dim=1):
    """The mean of the points, weighted by how likely each is."""
    away = x_t - (alpha * points if shrink else points)  # (N, 1) and (K,) -> (N, K)
    logits = (0 if even else weights.log()) - away.square() / spread(sigma)
    return (logits.softmax(dim) * points).sum(1, keepdim=True)


def likeliest(x_t, alpha, sigma, points, weights):
    logits = weights.log() - (x_t - alpha * points).square() / (2 * sigma**2)
    return points[logits.argmax(1, keepdim=True)]


IDEAL_X0 = Exercise(
    right=ideal_x0,
    questions=random_points,
    proved="the posterior mean is a softmax over all pictures there are, for any number of them.",
    mistakes={
        "the weights of the points do not count: a rare point is as likely as a common one.": partial(
            average, even=True
        ),
        "x_t is compared with the points themselves. At time t they lie at alpha times their value.": partial(
            average, shrink=False
        ),
        "sigma is not squared: a Gaussian falls with the distance squared over 2 sigma^2.": partial(
            average, spread=lambda sigma: 2 * sigma
        ),
        "the 2 is missing: a Gaussian falls with the distance squared over 2 sigma^2.": partial(
            average, spread=lambda sigma: sigma**2
        ),
        "that is the likeliest point. The least squared error has the mean of all, weighted.": likeliest,
        "the softmax runs over the noisy states. For each of them the weights of the points sum to 1: dim=1.": partial(
            average, dim=0
        ),
        "right values, but of shape (N,). Keep the last dimension: (N, 1), as x_t has it.": (
            lambda *asked: average(*asked)[:, 0]
        ),
    },
)

EXERCISES = (NOISY, STEP_BACK, IDEAL_X0)
