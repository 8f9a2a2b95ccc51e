"""The frozen classifiers that look at pictures, and what they saw in the real ones."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from diffusion_book.data import CROP_SIZE, quantise
from diffusion_book.models import weights
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.system.errors import BookError

DIGITS = weights.DIGITS
"""data sets whose pictures the classifiers of MNIST know"""
REFERENCE = "reference"  # the file of features of real pictures: "train" (60,000, 64) and "test" (10,000, 64)
YARDSTICK = ("classifier", "classifier-check", REFERENCE)
"""what the measures need of a data set"""


def yardstick(dataset: str) -> str | None:
    """The data set whose classifiers and features measure pictures of this one; None where there are none."""
    if dataset in DIGITS:
        return weights.MNIST
    here = weights.shipped(weights.folder_of(dataset)) if dataset in weights.SETS else ()
    return dataset if set(YARDSTICK) <= set(here) else None


@functools.cache
def classifier(name: str = "classifier", dataset: str = weights.MNIST) -> nn.Module:
    """A shipped classifier of a data set, frozen: "classifier" gives features, "classifier-check" checks labels."""
    network = build_classifier(name)
    network.load_state_dict(weights.read_weights(name, weights.folder_of(dataset)))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features(images: Tensor, batch_size: int = 500, dataset: str = weights.MNIST) -> Tensor:
    """What the feature classifier sees in pictures: (N, 1, 28, 28), bytes or in [-1, 1] -> (N, 64) on the CPU.

    Floats are rounded to bytes first, as if they had been stored as files. The classifier is that of `dataset`.

    Raises:
        BookError: pictures of another size, or not finite.
    """
    return _look(classifier("classifier", dataset).features, images, batch_size)


@torch.no_grad()
def logits(
    images: Tensor, name: str = "classifier-check", batch_size: int = 500, dataset: str = weights.MNIST
) -> Tensor:
    """What a classifier of a data set takes pictures for: (N, 1, 28, 28), bytes or in [-1, 1] -> (N, 10) on the CPU."""
    return _look(classifier(name, dataset), images, batch_size)


def _look(look, images: Tensor, batch_size: int) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim == 0 or images.is_complex() or len(images) == 0:
        raise BookError("there are no pictures to look at: give a tensor (N, 1, 28, 28) with N at least 1")
    if images.ndim != 4 or images.shape[1:] != (1, CROP_SIZE, CROP_SIZE):
        raise BookError(f"pictures of shape {tuple(images.shape)}: they must be (N, 1, {CROP_SIZE}, {CROP_SIZE})")
    if not images.isfinite().all():
        raise BookError("the pictures hold numbers that are not finite: look at the model that drew them")
    stored = images.cpu() if images.dtype == torch.uint8 else quantise(images.cpu())
    return torch.cat([look(part.float() / 127.5 - 1) for part in stored.split(batch_size)])


BRIGHTEST, DARKEST = 1.5, -0.5  # pictures in [-1, 1] may overshoot, and all have some background, at -1


def check_units(images: Tensor) -> None:
    """Refuse pictures whose numbers cannot mean what the measures take them for.

    Bytes mean 0 to 255, floats -1 to 1. Pictures in [0, 1], standardised ones, and bytes in floats would be measured
    without complaint, and come out tens of times too far from real ones.

    Raises:
        BookError: they are of another type or in other units.
    """
    if not isinstance(images, Tensor) or images.dtype == torch.uint8 or images.numel() == 0:
        return
    if not images.is_floating_point():
        raise BookError(f"pictures of type {str(images.dtype)[6:]}: give bytes (uint8), or floats in [-1, 1]")
    low, high = images.min().item(), images.max().item()
    if (-BRIGHTEST <= low <= DARKEST and high <= BRIGHTEST) or not images.isfinite().all():
        return
    if low >= 0 and high <= 1:
        remedy = "they look like pictures in [0, 1]: give 2 x - 1"
    elif low >= 0 and high <= 255:
        remedy = "they look like bytes: give x / 127.5 - 1, or x.to(torch.uint8)"
    else:
        remedy = "if they were standardised, take that back first: x times its standard deviation, plus its mean"
    raise BookError(f"the pictures lie between {low:.3g} and {high:.3g}, not -1 (background) and 1 (ink); {remedy}")


@functools.cache
def reference_features(dataset: str = weights.MNIST) -> dict[str, Tensor]:
    """Features of real pictures as shipped: "train" (60,000, 64) and "test" (10,000, 64), float32.

    The measures need these alone, so they work where there is no MNIST.
    """
    return weights.read_weights(REFERENCE, weights.folder_of(dataset))
