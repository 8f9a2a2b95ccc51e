"""The figures on a model's card: how good a set of generated pictures is."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_book.evaluation.distances import (
    frechet_distance,
    frechet_error,
    kernel_distance,
    nearest,
    precision_recall,
)
from diffusion_book.evaluation.features import check_units, classifier, features, logits, reference_features
from diffusion_book.models.weights import MNIST
from diffusion_book.system.errors import BookError, whole

CLASS_COUNTS = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
"""how often each digit stands in the test set of MNIST"""

HEADLINE = 10_000
"""samples behind a figure that stands for a model"""
SURE = 0.9
"""a picture is doubtful where the second classifier gives no digit so much"""
MOST = 10_000_000  # labels at once


@dataclass(frozen=True)
class Measures:
    """What was measured of a set of generated pictures, against the 10,000 test pictures of MNIST or of another set.

    An `error` is a standard error: by how much the figure would scatter if other samples were drawn.
    """

    num_samples: int
    cfid: float
    """Frechet distance of the classifier's features; lower is better"""
    cfid_error: float
    floor: float
    """the same distance for as many real training pictures, see `floor`: what perfect samples would reach"""
    floor_std: float
    """how far a single draw of real pictures scatters about it"""
    ratio: float
    """R = cfid / floor; 1 is perfect"""
    ratio_error: float
    doubtful: float
    """share of pictures of which the second classifier is less than 90 % sure"""
    doubtful_error: float
    doubtful_real: float
    """the same for real test digits"""
    kid: float
    """kernel distance; 0 is perfect"""
    precision: float
    """share of generated pictures that lie among the real ones"""
    recall: float
    """share of real pictures that lie among the generated ones"""
    precision_real: float
    recall_real: float
    """the same two for as many real training pictures: what perfect samples would reach"""
    nearest_train: float
    """median distance in feature space to the nearest of the 60,000 training pictures"""
    nearest_train_real: float
    """the same for real test pictures; a model that has copied its training set lies far below"""
    class_accuracy: float | None = None
    """share of pictures that the second classifier takes for what was asked; only with labels"""
    class_share: tuple[float, ...] = ()
    """how often each digit was drawn, by the second classifier"""

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        values = dataclasses.asdict(self)
        values["class_share"] = [round(share, 4) for share in self.class_share]
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}

    def sentence(self) -> str:
        """The figures to take away, see `sentence`."""
        return sentence(dataclasses.asdict(self))


def sentence(figures: Mapping, kind: str = "digits") -> str:
    """What to take away of a set of pictures: how far it is from real digits, and how much of it is doubtful.

    Args:
        figures: of `Measures.to_dict`, a card, or a row of the scoreboard.
        kind: what the pictures are called.
    """
    times, doubtful, real = (figures[key] for key in ("ratio", "doubtful", "doubtful_real"))
    number = figures.get("num_samples", HEADLINE)
    at = "" if number == HEADLINE else f" (with {number:,} samples; compare only with as many)"
    return (
        f"{times:.1f} times the distance of real {kind}; "
        f"{100 * doubtful:.0f} in a hundred doubtful (real: {100 * real:.0f}){at}"
    )


def random_labels(num_samples: int, num_classes: int = 10, dataset: str = MNIST) -> Tensor:
    """Labels drawn at random, the same ones at every call: (N,), int64.

    Ten classes of MNIST are digits, and drawn in the proportions of its test set; others are equally frequent. A model
    with classes is asked for these when it is measured. So its digits are a random sample as those of a model without
    classes are, and both have one floor. Had it exact shares, it would be spared the luck of the draw.

    Raises:
        BookError: fewer than 0 labels or too many of them, or no class.
    """
    if not 0 <= whole("num_samples", num_samples) <= MOST or whole("num_classes", num_classes) < 1:
        raise BookError(
            f"{num_samples!s:.20} labels of {num_classes!s:.20} classes: give 0 to {MOST:,}, and at least 1"
        )
    counts = CLASS_COUNTS if (dataset, num_classes) == (MNIST, len(CLASS_COUNTS)) else (1,) * num_classes
    shares = torch.tensor(counts, dtype=torch.float64).cumsum(0) / sum(counts)
    drawn = torch.rand(num_samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.searchsorted(shares, drawn, right=True).clamp(max=num_classes - 1)


DRAWS = 10
"""sets of real pictures behind a floor: the cFID of a single one of 2,000 is off by two fifths"""


def real_indices(num_samples: int, draw: int = 0, dataset: str = MNIST) -> Tensor:
    """Which training pictures a random draw of `num_samples` holds, the same ones at every call: (num_samples,).

    Args:
        num_samples: 10 to 60,000.
        draw: 0 to `DRAWS` - 1; a floor is their mean.
        dataset: whose pictures they are, here and in the functions below.

    Raises:
        BookError: fewer than 10, or more than the training set has.
    """
    size = len(reference_features(dataset)["train"])
    if not 10 <= whole("num_samples", num_samples) <= size:
        raise BookError(f"{num_samples} samples: the measures need 10 to {size}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(draw))[:num_samples]


def real_features(num_samples: int, draw: int = 0, dataset: str = MNIST) -> Tensor:
    """Features of the training pictures at `real_indices`: (num_samples, 64); errors as there."""
    return reference_features(dataset)["train"][real_indices(num_samples, draw, dataset)]


class Floor(NamedTuple):
    """cFID of real pictures: over random draws of them its mean, and its standard deviation."""

    mean: float
    std: float


@functools.cache
def floor(num_samples: int, dataset: str = MNIST) -> Floor:
    """cFID of that many random training pictures against the test set, over ten draws: mean and standard deviation.

    No model of the data set can be expected below the mean. Every R has it below the line, so an error of the mean (a third of
    the standard deviation) moves all R of one number of samples by the same factor, and their order by nothing.

    Raises:
        BookError: fewer than 10, or more than the training set has.
    """
    test = reference_features(dataset)["test"]
    distances = [frechet_distance(real_features(num_samples, draw, dataset), test) for draw in range(DRAWS)]
    distances = torch.tensor(distances, dtype=torch.float64)
    return Floor(distances.mean().item(), distances.std().item())


CLASS_DRAWS = ("at random", "equal numbers", "exact proportions")
"""ways to draw real digits, see `real_distances`"""


def real_distances(sizes: Sequence[int], draws: int = DRAWS) -> dict[str, Tensor]:
    """cFID of real training digits against the test set, by their number and by how their classes are drawn.

    Args:
        sizes: numbers of digits, 10 to 40,000.
        draws: random sets of each size.

    Returns:
        Way of `CLASS_DRAWS` -> (sizes, draws), float64. In the second way each digit is drawn equally often, in the
        third as often as in the test set. Which picture shows which digit is what the feature classifier says.

    Raises:
        BookError: too few pictures, or more than the training set has.
    """
    train, test = (reference_features()[split] for split in ("train", "test"))
    with torch.no_grad():
        digits = classifier().head(train).argmax(dim=1)
    generator = torch.Generator().manual_seed(0)
    proportions = {
        "equal numbers": torch.full((10,), 0.1),
        "exact proportions": torch.tensor(CLASS_COUNTS) / sum(CLASS_COUNTS),
    }

    def drawn(size: int, way: str) -> Tensor:
        order = torch.randperm(len(train), generator=generator)
        if way == "at random":
            return train[order[:size]]
        counts = (size * proportions[way]).round().int().tolist()
        return train[torch.cat([order[digits[order] == digit][:count] for digit, count in enumerate(counts)])]

    for size in sizes:
        real_indices(size)  # refuses what cannot be drawn
    return {
        way: torch.tensor(
            [[frechet_distance(drawn(size, way), test) for _ in range(draws)] for size in sizes], dtype=torch.float64
        )
        for way in CLASS_DRAWS
    }


@functools.cache
def _precision_recall_of_real(num_samples: int, dataset: str = MNIST) -> tuple[float, float]:
    return precision_recall(real_features(num_samples, dataset=dataset), reference_features(dataset)["test"])


@functools.cache
def _nearest_of_real(dataset: str = MNIST) -> float:
    reference = reference_features(dataset)
    return nearest(reference["test"], reference["train"])[0].median().item()


def measure(images: Tensor, labels: Tensor | None = None, dataset: str = MNIST) -> Measures:
    """Measure generated pictures.

    Args:
        images: (N, 1, 28, 28), floats in [-1, 1] or bytes; N from 10 to 60,000. The usual N is 10,000.
        labels: (N,), what was asked for, as `random_labels` draws it; None for an unconditional model.
        dataset: whose pictures they shall be like, with classifiers and features of their own: "mnist" or "fashion-mnist".

    Raises:
        BookError: too few or too many pictures, of another size, in other units, or not finite, or not one label each.
    """
    if not isinstance(images, Tensor) or images.ndim == 0:
        raise BookError(f"the pictures are {type(images).__name__}: give a tensor (N, 1, 28, 28)")
    number = len(images)
    lowest = floor(number, dataset)
    if labels is not None and tuple(labels.shape) != (number,):
        raise BookError(f"labels of shape {tuple(labels.shape)} for {number} pictures: give one for each")
    check_units(images)
    seen, reference = features(images, dataset=dataset), reference_features(dataset)
    test = reference["test"]
    cfid, error = frechet_distance(seen, test), frechet_error(seen, test)
    precision, recall = precision_recall(seen, test)
    precision_real, recall_real = _precision_recall_of_real(number, dataset)
    certain = logits(images, dataset=dataset).softmax(dim=1)  # (N, 10)
    taken_for = certain.argmax(dim=1)
    doubtful = (certain.max(dim=1).values < SURE).double().mean().item()
    return Measures(
        num_samples=number,
        cfid=cfid,
        cfid_error=error,
        floor=lowest.mean,
        floor_std=lowest.std,
        ratio=cfid / lowest.mean,
        ratio_error=error / lowest.mean,
        doubtful=doubtful,
        doubtful_error=share_error(doubtful, number),
        doubtful_real=doubtful_real(dataset),
        kid=kernel_distance(seen, test),
        precision=precision,
        recall=recall,
        precision_real=precision_real,
        recall_real=recall_real,
        nearest_train=nearest(seen, reference["train"])[0].median().item(),
        nearest_train_real=_nearest_of_real(dataset),
        class_accuracy=None if labels is None else (taken_for == labels.cpu()).double().mean().item(),
        class_share=tuple((taken_for.bincount(minlength=10) / number).tolist()),
    )


def share_error(share: float, number: int) -> float:
    """Standard error of a share that was counted among so many."""
    return math.sqrt(share * (1 - share) / number)


def is_doubtful(images: Tensor) -> Tensor:
    """Of which pictures the second classifier is less than 90 % sure: (N, 1, 28, 28) -> (N,), bool.

    Raises:
        BookError: pictures of another size, or not finite.
    """
    return logits(images).softmax(dim=1).max(dim=1).values < SURE


def doubtful_real(dataset: str = MNIST) -> float:
    """Share of real test pictures of which the second classifier is less than 90 % sure."""
    return 1 - reference_features(dataset)["confident"].item()
