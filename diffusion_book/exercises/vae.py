"""Chapter 3: the size of a code in bits, when a direction is worth a dimension, and the whole loss, sample included."""

from __future__ import annotations

import math
from functools import partial

import torch

from diffusion_book.elbo import negative_elbo
from diffusion_book.exercises.exercise import Exercise
from diffusion_book.networks.gaussian import DiagonalGaussian

LN_2 = math.log(2)  # nats in a bit


def bits(mean, log_variance):
    """Divergence of each posterior from the prior, in bits: (B,). Source: Kingma & Welling 2013, appendix B."""
    return DiagonalGaussian(mean, log_variance).kl() / LN_2


def divergence(mean, log_variance, *, unit=1 / LN_2, half=0.5, spread=torch.exp, one=1.0, log=1.0, reduce=None):
    """bits, with every wrong turn as an option."""
    per_dimension = half * (mean**2 + spread(log_variance) - one - log * log_variance) * unit
    return reduce(per_dimension) if reduce else per_dimension.flatten(1).sum(dim=1)


BITS = Exercise(
    right=bits,
    questions=lambda generator: {"three codes": tuple(torch.randn(2, 3, 2, 4, 4, generator=generator).double())},
    proved="it is DiagonalGaussian.kl() over ln 2: the bits that it costs to send the latent.",
    mistakes={
        "these are nats. A nat is more than a bit, so there are more bits: divide by ln 2.": partial(
            divergence, unit=1.0
        ),
        "multiplied by ln 2. A nat is 1.44 bits, so the value must grow.": partial(divergence, unit=LN_2),
        "averaged over the dimensions of a latent. The cost adds up: take their sum.": partial(
            divergence, reduce=lambda per_dimension: per_dimension.flatten(1).mean(dim=1)
        ),
        "summed over the pictures too. Each has a code of its own: (B,).": partial(
            divergence, reduce=lambda per_dimension: per_dimension.sum()
        ),
        "the factor 1/2 is missing.": partial(divergence, half=1.0),
        "exp of half the log-variance is sigma. In (5) stands sigma^2.": partial(
            divergence, spread=lambda log_variance: (log_variance / 2).exp()
        ),
        "log-variances are logarithms: in the place of sigma^2 stands their exp.": partial(
            divergence, spread=lambda log_variance: log_variance
        ),
        "the sign of the log-variance is wrong: a small sigma must cost much.": partial(divergence, log=-1.0),
        "the 1 is missing: at mean 0 and sigma 1 the code says nothing, and costs 0.": partial(divergence, one=0.0),
    },
)


def best_square(variance, gamma):
    """|w|^2 of the most likely decoder w z of data with this variance. Source: Tipping & Bishop 1999, section 3.2."""
    return (variance - gamma**2).clamp(min=0)


BEST_SQUARE = Exercise(
    right=best_square,
    questions=lambda generator: {
        "many variances": (torch.tensor([0.01, 0.2, 0.3, 0.8, 2.0, 5.0], dtype=torch.float64), 0.6)
    },
    proved="|w|^2 + gamma^2 is the variance of the data where it can be, and no direction below gamma^2 is used.",
    mistakes={
        "a square cannot be negative: where the variance is below gamma^2, the best w is 0.": (
            lambda variance, gamma: variance - gamma**2
        ),
        "gamma is not squared: it is a standard deviation.": lambda variance, gamma: (variance - gamma).clamp(min=0),
        "that is |w|. Asked for is its square.": lambda variance, gamma: (variance - gamma**2).clamp(min=0).sqrt(),
        "the decoder's scatter gamma is forgotten. It accounts for a part of the variance.": lambda variance, gamma: (
            variance
        ),
        "gamma^2 is on the wrong side: |w|^2 and gamma^2 together make up the variance.": lambda variance, gamma: (
            variance + gamma**2
        ),
    },
)


def vae_loss(decode, x, mean, log_variance, noise, kl_weight):
    """The loss of a VAE, (B,). Source: Kingma & Welling 2013, equation 7."""
    posterior = DiagonalGaussian(mean, log_variance)
    return negative_elbo(lambda x, noise: (decode(posterior.sample(noise)), posterior), x, noise, kl_weight)


def a_small_decoder(generator):
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    mean, log_variance, noise = torch.randn(3, 3, 2, 2, 2, generator=generator, dtype=torch.float64)

    def decode(z):
        return (z.flatten(1) @ weight).tanh().unflatten(1, (1, 4, 4))  # (B, 2, 2, 2) -> (B, 1, 4, 4)

    return {"": (decode, x, mean.requires_grad_(), log_variance.requires_grad_(), noise, 0.05)}


def with_gradients(loss, arguments):
    """The loss, and its gradients by mean and log-variance."""
    _, _, mean, log_variance, *_ = arguments
    gradients = [None, None]
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss.sum(), (mean, log_variance), allow_unused=True)
    return loss, *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)


def loss_of(
    decode, x, mean, log_variance, noise, weight, *,
    spread=lambda log_variance: (log_variance / 2).exp(), fix=False, error=lambda square: square.mean(dim=(1, 2, 3)),
    kl=lambda per_dimension: per_dimension.sum(dim=(1, 2, 3)), whole=lambda loss: loss,
):  # fmt: skip
    """vae_loss, with every wrong turn as an option."""
    z = mean + spread(log_variance) * noise
    square = (x - decode(z.detach() if fix else z)) ** 2
    per_dimension = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
    return whole(error(square) + weight * kl(per_dimension))


VAE_LOSS = Exercise(
    right=vae_loss,
    questions=a_small_decoder,
    measure=with_gradients,
    proved="it is elbo.negative_elbo, and its gradient reaches the encoder through the sample.",
    mistakes={
        "the value is right, but no gradient comes through the sample (section 5): the encoder would collapse.": partial(
            loss_of, fix=True
        ),
        "the divergence is averaged over the latent. The weight belongs to its sum.": partial(
            loss_of, kl=lambda per_dimension: per_dimension.mean(dim=(1, 2, 3))
        ),
        "the error is summed over the pixels. The weight belongs to its mean.": partial(
            loss_of, error=lambda square: square.sum(dim=(1, 2, 3))
        ),
        "that is one value for the whole batch. Leave each picture its own: (B,).": partial(
            loss_of, whole=lambda loss: loss.mean()
        ),
        "the noise is multiplied by the variance: sigma is exp of half the log-variance.": partial(
            loss_of, spread=torch.exp
        ),
        "nothing is sampled: the decoder gets the mean, and sigma does not matter to it.": partial(
            loss_of, spread=lambda log_variance: 0.0
        ),
        "the divergence has the wrong sign: the loss rewards codes that are far from the prior.": partial(
            loss_of, kl=lambda per_dimension: -per_dimension.sum(dim=(1, 2, 3))
        ),
        "there is no divergence in it: that is an autoencoder with noise.": partial(
            loss_of, kl=lambda per_dimension: 0.0
        ),
    },
)

EXERCISES = (BITS, BEST_SQUARE, VAE_LOSS)
