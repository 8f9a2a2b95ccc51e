"""The figures on a model's card: how good a set of generated pictures is."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.evaluation.distances import frechet_distance, kernel_distance, nearest, precision_recall
from diffusion_book.evaluation.features import classifier, features, logits, reference_features
from diffusion_book.system.errors import BookError, whole

CLASS_COUNTS = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
"""how often each digit stands in the training set of MNIST"""


MOST = 10_000_000  # labels at once


@dataclass(frozen=True)
class Measures:
    """What was measured of a set of generated pictures, against the 10,000 test pictures of MNIST."""

    num_samples: int
    cfid: float
    """Frechet distance of the classifier's features; lower is better"""
    floor: float
    """the same distance for as many real training pictures, see `floor`: what perfect samples would reach"""
    ratio: float
    """R = cfid / floor; 1 is perfect"""
    kid: float
    """kernel distance; 0 is perfect"""
    precision: float
    """share of generated pictures that lie among the real ones"""
    recall: float
    """share of real pictures that lie among the generated ones"""
    precision_real: float
    recall_real: float
    """the same two for as many real training pictures: what perfect samples would reach"""
    confident: float
    """share of pictures that the second classifier is at least 90 % sure about"""
    confident_real: float
    """the same for the real pictures that the classifiers' features were taken from"""
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


def natural_labels(num_samples: int, num_classes: int = 10) -> Tensor:
    """Labels 0 to 9 in the shares that the digits have in MNIST, in an order that is the same at every call: (N,), int64.

    A number of classes other than ten cannot mean digits: then all classes in turn.

    A model with classes is asked for these when it is measured. Asked for as many of each digit, even real pictures
    would be far from the data: 10,000 of them have a cFID of 0.18, twice the floor.
    """
    if not 0 <= whole("num_samples", num_samples) <= MOST or whole("num_classes", num_classes) < 1:
        raise BookError(
            f"{num_samples!s:.20} labels of {num_classes!s:.20} classes: give 0 to {MOST:,}, and at least 1"
        )
    if num_classes != len(CLASS_COUNTS):
        return torch.arange(num_samples) % num_classes
    shares = torch.tensor(CLASS_COUNTS, dtype=torch.float64).cumsum(0) / sum(CLASS_COUNTS)
    last = (shares * num_samples).round().long()
    labels = torch.repeat_interleave(
        torch.arange(len(CLASS_COUNTS)), last.diff(prepend=torch.zeros(1, dtype=torch.int64))
    )
    return labels[torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))]


def subset_order(num_samples: int) -> Tensor:
    """Indices of `num_samples` training pictures, the same ones at every call.

    Raises:
        BookError: fewer than 10, or more than the training set has.
    """
    size = len(reference_features()["train"])
    if not 10 <= whole("num_samples", num_samples) <= size:
        raise BookError(f"{num_samples} samples: the measures need 10 to {size}")
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:num_samples]


def real_subset(num_samples: int) -> Tensor:
    """Features of the training pictures at `subset_order`: (num_samples, 64); errors as there."""
    return reference_features()["train"][subset_order(num_samples)]


HANDFULS = 10  # sets of real pictures whose cFID is averaged: a single one of 2,000 is off by a quarter


@functools.cache
def floor(num_samples: int, natural: bool = False) -> float:
    """cFID of that many real training pictures against the test set, averaged over ten draws of them.

    No model of MNIST can be expected below it.

    Args:
        num_samples: 10 to 60,000.
        natural: draw each digit exactly as often as `natural_labels` does. A model that is asked for those is spared
            the luck of the shares, so its floor must be too.

    Raises:
        BookError: too few or too many.
    """
    subset_order(num_samples)
    reference = reference_features()
    found = [frechet_distance(_handful(num_samples, natural, seed), reference["test"]) for seed in range(HANDFULS)]
    return sum(found) / len(found)


def _handful(num_samples: int, natural: bool, seed: int) -> Tensor:
    """Features of random training pictures: (num_samples, 64)."""
    train = reference_features()["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    if not natural:
        return train[order[:num_samples]]
    digits = _digits_of_train()[order]
    counts = natural_labels(num_samples).bincount(minlength=10)
    return torch.cat([train[order[digits == digit][:count]] for digit, count in enumerate(counts.tolist())])


@functools.cache
def _digits_of_train() -> Tensor:
    """Which digits the training pictures are, by the classifier that the features are from: (60000,)."""
    with torch.no_grad():
        return classifier().head(reference_features()["train"]).argmax(dim=1)


@functools.cache
def _precision_recall_of_real(num_samples: int) -> tuple[float, float]:
    return precision_recall(real_subset(num_samples), reference_features()["test"])


@functools.cache
def _nearest_of_real() -> float:
    reference = reference_features()
    return nearest(reference["test"], reference["train"])[0].median().item()


def measure(images: Tensor, labels: Tensor | None = None) -> Measures:
    """Measure generated pictures.

    Args:
        images: (N, 1, 28, 28) in [-1, 1]; N from 10 to 60,000. The usual N is 10,000.
        labels: (N,), what was asked for, in the shares of `natural_labels`; None for an unconditional model.

    Raises:
        BookError: too few or too many pictures, of another size, or not finite, or not one label each.
    """
    if not isinstance(images, Tensor) or images.ndim == 0:
        raise BookError(f"the pictures are {type(images).__name__}: give a tensor (N, 1, 28, 28)")
    lowest = floor(len(images), natural=labels is not None)
    if labels is not None and tuple(labels.shape) != (len(images),):
        raise BookError(f"labels of shape {tuple(labels.shape)} for {len(images)} pictures: give one for each")
    seen, reference = features(images), reference_features()
    test = reference["test"]
    cfid = frechet_distance(seen, test)
    precision, recall = precision_recall(seen, test)
    precision_real, recall_real = _precision_recall_of_real(len(images))
    certain = logits(images).softmax(dim=1)  # (N, 10)
    taken_for = certain.argmax(dim=1)
    return Measures(
        num_samples=len(images),
        cfid=cfid,
        floor=lowest,
        ratio=cfid / lowest,
        kid=kernel_distance(seen, test),
        precision=precision,
        recall=recall,
        precision_real=precision_real,
        recall_real=recall_real,
        confident=(certain.max(dim=1).values >= 0.9).double().mean().item(),
        confident_real=reference["confident"].item(),
        nearest_train=nearest(seen, reference["train"])[0].median().item(),
        nearest_train_real=_nearest_of_real(),
        class_accuracy=None if labels is None else (taken_for == labels.cpu()).double().mean().item(),
        class_share=tuple((taken_for.bincount(minlength=10) / len(images)).tolist()),
    )
