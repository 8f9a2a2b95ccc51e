"""Chapter 4: a schedule for small latents, equal costs, and the size of latents that are sampled."""

from __future__ import annotations

from functools import partial

import torch

from diffusion_book.elbo import latent_statistics
from diffusion_book.exercises.exercise import Exercise
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.schedules import cosine, signal_to_noise


def for_small(t, r):
    """The variance preserving schedule that does to data of standard deviation r what `cosine` does to unit data."""
    fraction = 1 / (1 + r**2 / signal_to_noise(cosine, t))  # of the data's factor, squared
    return fraction.sqrt(), (1 - fraction).sqrt()


def scaled(t, r, *, data=1.0, noise=None, norm=torch.sqrt):
    """for_small, with other factors on the data and on the noise, or no proper norm."""
    alpha, sigma = cosine(t)
    alpha, sigma = data * alpha, (r if noise is None else noise) * sigma
    size = norm(alpha**2 + sigma**2)
    return alpha / size, sigma / size


FOR_SMALL = Exercise(
    right=for_small,
    questions=lambda generator: {f"r = {r}": (torch.linspace(0.1, 0.9, 9, dtype=torch.float64), r) for r in (0.1, 3.0)},
    proved="r^2 times its signal-to-noise ratio is the cosine's, and alpha^2 + sigma^2 is 1.",
    mistakes={
        "the signal-to-noise ratio is right, but alpha^2 + sigma^2 is not 1: divide both by c.": partial(
            scaled, norm=torch.ones_like
        ),
        "c has no root: alpha and sigma are divided by its square.": partial(scaled, norm=lambda square: square),
        "r is on the wrong side. Small data drown in noise of full size: make the noise smaller.": (
            lambda t, r: scaled(t, r, data=r, noise=1.0)
        ),
        "the noise is too weak: r^2 belongs to the variance, r to the factor.": lambda t, r: scaled(t, r, noise=r**2),
        "the noise is made smaller by the root of r. r is a standard deviation, as sigma is.": (
            lambda t, r: scaled(t, r, noise=r**0.5)
        ),
        "that is the cosine schedule: r does not matter to it.": lambda t, r: scaled(t, r, noise=1.0),
    },
)


def same_cost(steps, of_ldm, of_decoder, of_ddpm):
    """How many steps of a pixel model cost as much as `steps` of a latent one, with its decoder."""
    return (steps * of_ldm + of_decoder) / of_ddpm


SAME_COST = Exercise(
    right=same_cost,
    questions=lambda generator: {f"{steps} steps": (steps, 0.03, 0.11, 0.2) for steps in (1, 50)},
    proved="the decoder is paid once, whatever the number of steps.",
    mistakes={
        "the decoder is called once, at the very end, and not in every step.": (
            lambda steps, of_ldm, of_decoder, of_ddpm: steps * (of_ldm + of_decoder) / of_ddpm
        ),
        "the decoder is forgotten. It has to be paid, once.": (
            lambda steps, of_ldm, of_decoder, of_ddpm: steps * of_ldm / of_ddpm
        ),
        "upside down: the cost in latents is divided by that of a pixel step.": (
            lambda steps, of_ldm, of_decoder, of_ddpm: of_ddpm / (steps * of_ldm + of_decoder)
        ),
        "that says how many times cheaper: as many pixel steps, over the cost in latents.": (
            lambda steps, of_ldm, of_decoder, of_ddpm: steps * of_ddpm / (steps * of_ldm + of_decoder)
        ),
        "that is the cost in FLOPs. How many calls of the pixel network is it?": (
            lambda steps, of_ldm, of_decoder, of_ddpm: steps * of_ldm + of_decoder
        ),
    },
)


def latent_std(mean, log_variance):
    """Standard deviation of sampled latents, channel by channel: (C,). The law of total variance."""
    return latent_statistics(DiagonalGaussian(mean, log_variance))[1]


def many_posteriors(generator):
    mean, log_variance = torch.randn(2, 1000, 2, 4, 4, generator=generator, dtype=torch.float64)
    return {"": (mean * torch.tensor([0.6, 1.4])[:, None, None] + 0.5, 0.5 * log_variance - 0.5)}


def spread(mean, log_variance, *, variance=torch.exp, of_means=1.0, of_samples=1.0, dims=(0, 2, 3)):
    """latent_std, with every wrong turn as an option."""
    return (of_means * mean.var(dims, correction=0) + of_samples * variance(log_variance).mean(dims)).sqrt()


LATENT_STD = Exercise(
    right=latent_std,
    questions=many_posteriors,
    proved="variance of the means plus mean of the variances, as in elbo.latent_statistics.",
    mistakes={
        "that is the spread of the means alone. A latent is sampled, and the sample adds its variance.": partial(
            spread, of_samples=0.0
        ),
        "that is the spread of the samples alone. Pictures differ in their means, too.": partial(spread, of_means=0.0),
        "standard deviations are added. Variances add up: add those, and take the root.": (
            lambda mean, log_variance: spread(mean, log_variance, of_samples=0) + spread(mean, log_variance, of_means=0)
        ),
        "that is the variance: the root is missing.": lambda mean, log_variance: spread(mean, log_variance) ** 2,
        "exp of half the log-variance is sigma. Average sigma^2, the variance.": partial(
            spread, variance=lambda log_variance: (log_variance / 2).exp()
        ),
        "the average log-variance is not the average variance: exp first, then the mean.": (
            lambda mean, log_variance: (mean.var((0, 2, 3), correction=0) + log_variance.mean((0, 2, 3)).exp()).sqrt()
        ),
        "one value for all. Each channel has a size of its own: (C,).": partial(spread, dims=(0, 1, 2, 3)),
        "every position has a value of its own. The positions of a channel have one together: (C,).": partial(
            spread, dims=0
        ),
    },
)

EXERCISES = (FOR_SMALL, SAME_COST, LATENT_STD)
