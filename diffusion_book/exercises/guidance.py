"""Chapter 5: away from an unwanted class, towards two at once, and labels that are hidden."""

from __future__ import annotations

import math
from functools import partial

import torch

from diffusion_book.exercises.exercise import Exercise
from diffusion_book.guidance import drop_labels, guided
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.schedules import cosine, expand
from diffusion_book.targets import Prediction


def random_denoiser(generator, *shape):
    """A denoiser (x_t, t, labels=labels) that means nothing, but differs from label to label, and looks everywhere."""
    size = math.prod(shape)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    table = torch.randn(11, size, generator=generator, dtype=torch.float64)

    def denoise(x_t, t, *, labels):
        alpha, sigma = (expand(value, x_t) for value in cosine(t.expand(len(x_t))))  # (B, 1, ...)
        x0 = torch.tanh(x_t.flatten(1) @ matrix + table[labels])  # the last row is that of NO_CLASS, -1
        x0 = x0.reshape(x_t.shape)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def weighed(denoiser, x_t, t, labels, weights):
    """A mixture of what the denoiser says for some labels; None stands for none."""
    predictions = [denoiser(x_t, t, labels=each) for each in labels]
    return Prediction(*(sum(w * part for w, part in zip(weights, parts)) for parts in zip(*predictions)))


def nothing(labels):
    """As many null labels."""
    return torch.full_like(labels, NO_CLASS)


def away_from(denoiser, x_t, t, wanted, unwanted, w):
    """Guidance with the unwanted label in the place of the null label."""

    def renamed(x_t, t, labels):
        others = unwanted.repeat(len(labels) // len(unwanted))  # `guided` asks for both in one batch
        return denoiser(x_t, t, labels=torch.where(labels == NO_CLASS, others, labels))

    return guided(renamed, w)(x_t, t, labels=wanted)


def two_labels(generator):
    denoiser, x_t = random_denoiser(generator, 2), torch.randn(5, 2, generator=generator).double()
    first, second = torch.tensor([3, 8, 1, 0, 5]), torch.tensor([8, 3, 7, 6, 2])
    t = torch.tensor(0.6, dtype=torch.float64)
    return {f"w = {w}": (denoiser, x_t.clone(), t, first.clone(), second.clone(), w) for w in (3.0, -2.0)}


def away(weights):
    """Weights (w) -> of wanted, of unwanted, of null."""

    def guess(denoiser, x_t, t, wanted, unwanted, w):
        return weighed(denoiser, x_t, t, (wanted, unwanted, nothing(wanted)), weights(w))

    return guess


def away_in_eps_alone(denoiser, x_t, t, wanted, unwanted, w):
    return Prediction(denoiser(x_t, t, labels=wanted).x0, away_from(denoiser, x_t, t, wanted, unwanted, w).eps)


AWAY_FROM = Exercise(
    right=away_from,
    questions=two_labels,
    proved="it is guidance.guided with another null label, so the sampler needs no change.",
    mistakes={
        "that is the w of Ho & Salimans, one less than ours: with w = 1 only the wanted guess counts here.": away(
            lambda w: (1 + w, -w, 0)
        ),
        "wanted and unwanted have changed places: it flees from what was asked for.": away(lambda w: (1 - w, w, 0)),
        "that is plain guidance: the unwanted label does not matter to it.": away(lambda w: (w, 0, 1 - w)),
        "the push starts at the guess without a label. Start at the unwanted one: it replaces the null label.": away(
            lambda w: (w, -w, 1)
        ),
        "the weights sum to 0, not to 1: the guess from which the push starts is missing.": away(lambda w: (w, -w, 0)),
        "only eps is guided. The pair adds up to x_t only if x0 is guided too (6).": away_in_eps_alone,
    },
)


def of_both(denoiser, x_t, t, a, b, w):
    """The guess that is pushed towards two labels at once."""
    towards_a, towards_b = (guided(denoiser, w)(x_t, t, labels=each) for each in (a, b))
    plain = denoiser(x_t, t, labels=nothing(a))
    return Prediction(*(p + q - n for p, q, n in zip(towards_a, towards_b, plain)))


def pushed(weights, null=nothing):
    """Weights (w) -> of the first label, of the second, of none."""

    def guess(denoiser, x_t, t, a, b, w):
        return weighed(denoiser, x_t, t, (a, b, null(a)), weights(w))

    return guess


def both_in_eps_alone(denoiser, x_t, t, a, b, w):
    return Prediction(denoiser(x_t, t, labels=nothing(a)).x0, of_both(denoiser, x_t, t, a, b, w).eps)


OF_BOTH = Exercise(
    right=of_both,
    questions=two_labels,
    proved="two pushes of guidance.guided from one guess: in logarithms, the product of two classifiers.",
    mistakes={
        "the guess without a label counts twice. Each push starts from it, but there is one picture.": pushed(
            lambda w: (w, w, 2 - 2 * w)
        ),
        "that is one push, towards the mean of both. Asked for is the sum of two.": pushed(
            lambda w: (w / 2, w / 2, 1 - w)
        ),
        "nothing is subtracted: a push is the difference from the guess without a label.": pushed(lambda w: (w, w, 1)),
        "one after the other: the second push starts where the first has ended.": pushed(
            lambda w: ((1 - w) * w, w, (1 - w) ** 2)
        ),
        "that is the w of Ho & Salimans, one less than ours: both pushes are too long.": pushed(
            lambda w: (1 + w, 1 + w, -1 - 2 * w)
        ),
        "label 0 stands for none. Then nobody can ask for a zero: take NO_CLASS.": pushed(
            lambda w: (w, w, 1 - 2 * w), null=torch.zeros_like
        ),
        "only eps is guided. The pair adds up to x_t only if x0 is guided too (6).": both_in_eps_alone,
    },
)

CHANCE_SEED = 1


def hidden(labels, chance, p):
    """Labels of which a share p is hidden. Source: Ho & Salimans 2022, algorithm 1."""
    return drop_labels(labels, p, torch.Generator().manual_seed(CHANCE_SEED))


def some_labels(generator):
    labels = torch.randint(10, (40,), generator=generator)
    chance = torch.rand(40, generator=torch.Generator().manual_seed(CHANCE_SEED))  # the numbers that drop_labels draws
    return {f"p = {p}": (labels.clone(), chance.clone(), p) for p in (0.1, 0.8)}


def hide(labels, chance, p, *, null=NO_CLASS, who=lambda chance, p: chance < p):
    """hidden, with another null label or others to hide."""
    return torch.where(who(chance, p), null, labels)


HIDDEN = Exercise(
    right=hidden,
    questions=some_labels,
    proved="it hides the labels that guidance.drop_labels hides, and leaves its argument alone.",
    mistakes={
        "it hides all but a share p: a number from [0, 1) is below p with probability p.": partial(
            hide, who=lambda chance, p: chance >= p
        ),
        "label 0 stands for none. Then nobody can ask for a zero: take NO_CLASS.": partial(hide, null=0),
        "all or none: one number decides for the whole batch. Each label has its own.": partial(
            hide, who=lambda chance, p: chance[:1].expand_as(chance) < p
        ),
        "10 stands for none. In this book the null label is NO_CLASS.": partial(hide, null=10),
        "the pictures are left out, not their labels: as many must come out as went in.": (
            lambda labels, chance, p: labels[chance >= p]
        ),
        "no label is hidden.": lambda labels, chance, p: labels,
    },
)

EXERCISES = (AWAY_FROM, OF_BOTH, HIDDEN)
