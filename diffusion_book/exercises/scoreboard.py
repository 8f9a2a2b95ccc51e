"""Chapter 8: a distance without its bias, a test for copies, and a Frechet distance without correlations."""

from __future__ import annotations

from functools import partial

import torch

from diffusion_book.evaluation.distances import frechet_distance, nearest
from diffusion_book.exercises.exercise import Exercise


def without_bias(sizes, values):
    """Where a figure ends with infinitely many samples. Source: Chong & Forsyth 2020, section 4.1."""
    return line_over(sizes, values)


def line_over(sizes, values, *, axis=lambda sizes: 1 / sizes, which=0):
    """Intercept (0) or slope (1) of the straight line through values over 1 / N, or over something else."""
    x = axis(sizes)
    design = torch.stack([torch.ones_like(x), x], dim=1)
    return torch.linalg.lstsq(design, values[:, None]).solution[which, 0]


def biased_figures(generator):
    sizes = torch.tensor([200, 500, 1000, 2000, 5000, 10000], dtype=torch.float64)
    scatter = 0.05 * torch.randn(6, generator=generator, dtype=torch.float64)
    return {"six sizes": (sizes, 0.3 + 400 / sizes + scatter)}


WITHOUT_BIAS = Exercise(
    right=without_bias,
    questions=biased_figures,
    proved="the line over 1 / N meets the axis where N is infinite.",
    mistakes={
        "that is the slope, the size of the bias. Asked for is where the line ends.": partial(line_over, which=1),
        "that is a line over N. It goes on for ever; over 1 / N it ends, at 0.": partial(
            line_over, axis=lambda sizes: sizes
        ),
        "that is a line over 1 / sqrt(N), as for an error bar. The bias falls with 1 / N.": partial(
            line_over, axis=lambda sizes: sizes**-0.5
        ),
        "that is the figure of the largest size. It still has a bias.": lambda sizes, values: values[-1],
        "that is the average: the small sizes, with their large bias, count in full.": (
            lambda sizes, values: values.mean()
        ),
        "that is where the line is at N = 1, at the other end.": lambda sizes, values: (
            line_over(sizes, values) + line_over(sizes, values, which=1)
        ),
    },
)


def fraction_nearer(samples, train, test):
    """Fraction of samples whose nearest neighbour is a training picture. Source: Meehan et al. 2020, section 3."""
    return (nearest(samples, train)[0] < nearest(samples, test)[0]).double().mean()


def three_sets(generator):
    # All of one size, so that a minimum along the wrong side fits as well.
    samples, train, test = torch.randn(3, 60, 8, generator=generator)
    return {"": (samples, torch.cat([train[:40], samples[:20] + 0.2 * train[40:]]), test)}


def compared(*, measure=lambda distances: distances.min(dim=1).values, whole=torch.mean, flip=False):
    """fraction_nearer, with every wrong turn as an option."""

    def share(samples, train, test):
        to_train, to_test = (measure(torch.cdist(samples, members)) for members in (train, test))
        nearer = to_test < to_train if flip else to_train < to_test
        return whole(nearer.double())

    return share


FRACTION_NEARER = Exercise(
    right=fraction_nearer,
    questions=three_sets,
    proved="it counts as section 7 does, with distances.nearest on both sides.",
    mistakes={
        "that is the fraction that lies nearer to the test set: a copying machine would get 0.": compared(flip=True),
        "all distances are averaged. What gives a copy away is the nearest one.": compared(
            measure=lambda distances: distances.mean(dim=1)
        ),
        "the minimum is taken for each real picture, over the samples. Ask each sample for its nearest.": compared(
            measure=lambda distances: distances.min(dim=0).values
        ),
        "that is their number, not their fraction.": compared(whole=torch.sum),
        "medians are compared, and give one yes or no. Count the samples, one by one.": compared(
            measure=lambda distances: distances.min(dim=1).values.median()
        ),
        "that is one answer for each sample: take their mean.": compared(whole=lambda nearer: nearer),
    },
)


def diagonal_frechet(a, b):
    """Squared Frechet distance of uncorrelated features. Source: Heusel et al. 2017, equation 6."""
    return torch.tensor(frechet_distance(a, b))


def independent(generator):
    """Two sets of features without any correlation, (50, 6) and (40, 6)."""
    sets = []
    for number in (50, 40):
        x = torch.randn(number, 6, generator=generator, dtype=torch.float64)
        upright = torch.linalg.qr(x - x.mean(0)).Q * (number - 1) ** 0.5  # mean 0, covariance 1
        scale, shift = torch.rand(2, 6, generator=generator, dtype=torch.float64)
        sets.append(upright * (0.3 + 2 * scale) + shift)
    return {"": tuple(sets)}


def apart(a, b, *, std=lambda x: x.std(0), means=1.0, stds=1.0, of_means=torch.square, total=lambda each: each.sum()):
    """diagonal_frechet, with every wrong turn as an option."""
    return total(means * of_means(a.mean(0) - b.mean(0)) + stds * (std(a) - std(b)).square())


DIAGONAL_FRECHET = Exercise(
    right=diagonal_frechet,
    questions=independent,
    proved="without correlations (1) is the squared distance of means plus that of standard deviations.",
    mistakes={
        "variances are compared. The trace in (1) becomes (sigma_a - sigma_b)^2, of standard deviations.": partial(
            apart, std=lambda x: x.var(0)
        ),
        "the means do not count: a set may lie anywhere.": partial(apart, means=0.0),
        "the standard deviations do not count: a set may be of any size.": partial(apart, stds=0.0),
        "the distance of the means is not squared, that of the standard deviations is.": partial(
            apart, of_means=torch.abs
        ),
        "the variances are divided by N. As everywhere in the library it is N - 1.": partial(
            apart, std=lambda x: x.std(0, correction=0)
        ),
        "averaged over the features. (1) is a sum over all of them.": partial(apart, total=lambda each: each.mean()),
        "that is the distance. (1) is its square.": partial(apart, total=lambda each: each.sum().sqrt()),
        "one number for each feature: take their sum.": partial(apart, total=lambda each: each),
        "the roots of the variances are added, not multiplied: -2 sigma_a sigma_b is what is missing.": (
            lambda a, b: ((a.mean(0) - b.mean(0)) ** 2 + a.var(0) + b.var(0)).sum()
        ),
    },
)

EXERCISES = (WITHOUT_BIAS, FRACTION_NEARER, DIAGONAL_FRECHET)
