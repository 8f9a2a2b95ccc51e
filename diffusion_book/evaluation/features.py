"""The frozen classifiers that look at pictures, and what they saw in the real ones."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from diffusion_book.data import CROP_SIZE, quantise
from diffusion_book.models import weights
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.system.errors import BookError

DIGITS = ("auto", "mnist", "digits")
"""data sets whose pictures the classifiers know"""
REFERENCE = "reference"  # the file of features of real MNIST: "train" (60,000, 64) and "test" (10,000, 64)


@functools.cache
def classifier(name: str = "classifier") -> nn.Module:
    """A shipped classifier, frozen: "classifier" gives features, "classifier-check" checks labels."""
    network = build_classifier(name)
    network.load_state_dict(weights.read_weights(name))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def features(images: Tensor, batch_size: int = 500) -> Tensor:
    """What the feature classifier sees in pictures: (N, 1, 28, 28) in [-1, 1] -> (N, 64) on the CPU.

    The pictures are rounded to bytes first, as if they had been stored as files.

    Raises:
        BookError: pictures of another size, or not finite.
    """
    return _look(classifier("classifier").features, images, batch_size)


@torch.no_grad()
def logits(images: Tensor, name: str = "classifier-check", batch_size: int = 500) -> Tensor:
    """What a classifier takes pictures for: (N, 1, 28, 28) in [-1, 1] -> (N, 10) on the CPU."""
    return _look(classifier(name), images, batch_size)


def _look(look, images: Tensor, batch_size: int) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim == 0 or images.is_complex() or len(images) == 0:
        raise BookError("there are no pictures to look at: give a tensor (N, 1, 28, 28) with N at least 1")
    if images.ndim != 4 or images.shape[1:] != (1, CROP_SIZE, CROP_SIZE):
        raise BookError(f"pictures of shape {tuple(images.shape)}: they must be (N, 1, {CROP_SIZE}, {CROP_SIZE})")
    if not images.isfinite().all():
        raise BookError("the pictures hold numbers that are not finite: look at the model that drew them")
    return torch.cat([look(quantise(part).float() / 127.5 - 1) for part in images.cpu().split(batch_size)])


@functools.cache
def reference_features() -> dict[str, Tensor]:
    """Features of real MNIST as shipped: "train" (60,000, 64) and "test" (10,000, 64), float32.

    The measures need these alone, so they work where there is no MNIST.
    """
    return weights.read_weights(REFERENCE)
