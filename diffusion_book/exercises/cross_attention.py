"""Chapter 6: tokens that must not be read, two requests in one picture, and what keys and values cost."""

from __future__ import annotations

import math
from functools import partial

import torch

from diffusion_book.exercises.exercise import Exercise
from diffusion_book.exercises.guidance import random_denoiser
from diffusion_book.networks import layers
from diffusion_book.targets import Prediction


def read_masked(q, k, v, real):
    """Attention to the real tokens alone. Source: Vaswani et al. 2017, section 3.2.3."""
    read = [layers.attention(one, key[keep], value[keep])[0] for one, key, value, keep in zip(q, k, v, real)]
    return torch.stack(read)


def padded(generator):
    # As many places as tokens, so that a softmax along the wrong axis fits as well.
    q, k, v = torch.randn(3, 3, 5, 8, generator=generator, dtype=torch.float64)
    return {"": (q, k, v, torch.arange(5) < torch.tensor([[5], [3], [2]]))}


def read(q, k, v, real, *, scale=math.sqrt, hide=-torch.inf, dim=-1, silent=False, blank=False):
    """read_masked, with every wrong turn as an option; `hide` is the score of padding, None leaves it."""
    if blank:
        k, v = k * real[..., None], v * real[..., None]
    scores = q @ k.transpose(1, 2) / scale(q.shape[-1])  # (B, N, M)
    if hide is not None:
        scores = scores.masked_fill(~real[:, None], hide)
    shares = scores.softmax(dim)
    return (shares * real[:, None] if silent else shares) @ v


READ_MASKED = Exercise(
    right=read_masked,
    questions=padded,
    proved="padding gets no share at all: it is as if only the real tokens were there.",
    mistakes={
        "the padding is read: nothing masks it.": partial(read, hide=None),
        "the padding's score is 0. That is a score like any other: it must be minus infinity.": partial(read, hide=0.0),
        "tokens of zeros are tokens, too: their score is 0, and softmax gives them a share.": partial(
            read, hide=None, blank=True
        ),
        "the padding's values are taken out after the softmax: the other shares no longer sum to 1.": partial(
            read, hide=None, silent=True
        ),
        "the mask is upside down: only the padding is read.": lambda q, k, v, real: read(
            q, k, v, torch.where(real.all(1, keepdim=True), real, ~real)
        ),
        "the root of d is missing: the scores are not divided, and softmax switches too hard.": partial(
            read, scale=lambda d: 1.0
        ),
        "divided by d: its root is asked for. The shares are too even.": partial(read, scale=lambda d: d),
        "the softmax runs along the places. Each place divides 1 among the tokens: the last dimension.": partial(
            read, dim=1
        ),
    },
)


def in_two_places(denoiser, x_t, t, upper, a, b):
    """One guess where `upper` is 1, another where it is 0."""
    guesses = (denoiser(x_t, t, labels=labels) for labels in (b, a))
    return Prediction(*(torch.lerp(*pair, upper) for pair in zip(*guesses)))


def half_a_latent(generator):
    denoiser, x_t = random_denoiser(generator, 2, 4, 4), torch.randn(3, 2, 4, 4, generator=generator).double()
    upper = torch.zeros(4, 4, dtype=torch.float64)
    upper[:2] = 1
    t = torch.tensor(0.6, dtype=torch.float64)
    return {"": (denoiser, x_t, t, upper, torch.tensor([2, 3, 0]), torch.tensor([5, 8, 7]))}


def blended(of_x0, of_eps=None, mask_input=False):
    """Weights (upper) -> of both guesses; for eps others, or as for x0. `mask_input` cuts x_t instead."""

    def guess(denoiser, x_t, t, upper, a, b):
        masks = (upper, 1 - upper) if mask_input else (1.0, 1.0)
        p, q = (denoiser(mask * x_t, t, labels=labels) for mask, labels in zip(masks, (a, b)))
        (wp, wq), (vp, vq) = of_x0(upper), (of_eps or of_x0)(upper)
        return Prediction(wp * p.x0 + wq * q.x0, vp * p.eps + vq * q.eps)

    return guess


def both_halves(upper):
    return upper, 1 - upper


IN_TWO_PLACES = Exercise(
    right=in_two_places,
    questions=half_a_latent,
    proved="each place has the guess of its own label, and the pair still adds up to x_t.",
    mistakes={
        "upper and lower have changed places: where `upper` is 1, the label a counts.": blended(
            lambda upper: (1 - upper, upper)
        ),
        "eps is that of the first label everywhere. Blend it as well, or the pair does not add up to x_t.": blended(
            both_halves, lambda upper: (1.0, 0.0)
        ),
        "eps is that of the second label everywhere. Blend it as well, or the pair does not add up to x_t.": blended(
            both_halves, lambda upper: (0.0, 1.0)
        ),
        "the state is cut in halves, not the guesses. Each guess must see the whole latent.": blended(
            both_halves, mask_input=True
        ),
        "both labels count the same everywhere: the mask does not matter.": blended(lambda upper: (0.5, 0.5)),
        "the second guess is added everywhere: where `upper` is 1 there are two.": blended(lambda upper: (upper, 1.0)),
    },
)


def flops_of_tokens(tokens, context_dim, channels):
    """FLOPs of keys and values in one layer of cross-attention: two for each of their weights and each token."""
    return 2 * tokens * layers.Attention(channels, context_dim).key_value.weight.numel()


FLOPS_OF_TOKENS = Exercise(
    right=flops_of_tokens,
    questions=lambda generator: {"ours": (4, 128, 64), "77 words": (77, 768, 320)},
    proved="a multiplication and an addition for each weight of layers.Attention.key_value and each token.",
    mistakes={
        "half of it: keys without values, or a multiplication and an addition counted as one.": (
            lambda tokens, context_dim, channels: 2 * tokens * context_dim * channels
        ),
        "a quarter of it: keys and values are two products, and each weight multiplies and adds.": (
            lambda tokens, context_dim, channels: tokens * context_dim * channels
        ),
        "that is for a single token: every token has a key and a value.": (
            lambda tokens, context_dim, channels: 4 * context_dim * channels
        ),
        "tokens have context_dim numbers, not as many as a place has channels.": (
            lambda tokens, context_dim, channels: 4 * tokens * channels**2
        ),
    },
)

EXERCISES = (READ_MASKED, IN_TWO_PLACES, FLOPS_OF_TOKENS)
