"""Handwritten digits and their look-alikes, each as one tensor in memory.

MNIST is 60,000 pictures of 28 x 28 bytes: 47 MB. It fits in memory whole, so there are no worker
processes here: a batch is an index into a tensor that already lives on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 32  # what the networks see
CROP_SIZE = 28  # what MNIST is, and what the reader sees
PADDING = (IMAGE_SIZE - CROP_SIZE) // 2


LABELS = {
    "fashion-mnist": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"],
    "kmnist": ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"],
}


@dataclass(frozen=True)
class Dataset:
    """A whole data set in memory.

    Attributes:
        name: which one it is: "mnist", "fashion-mnist", "kmnist" or "digits" (never "auto"), or that of your own folder.
        images: uint8, (N, 1, 28, 28), 0 = background, 255 = ink; your own may be of another size, and in three colours.
        labels: int64, (N,), 0 to 9; in files of your own 0 to 255.
        classes: names of the classes of your own pictures; none where they have no classes.
        place: of your own pictures, where `load` finds them again.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    place: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def first(self, number: int) -> Dataset:
        """The first pictures alone, for a training that takes seconds."""
        return replace(self, images=self.images[:number], labels=self.labels[:number])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures at `index` as the networks want them, (B, 1, 32, 32) in [-1, 1] (see `normalise`), and labels."""
        return normalise(self.images[index]), self.labels[index]

    @property
    def class_names(self) -> list[str]:
        """What each class is called, for captions."""
        if self.place:
            return list(self.classes) or [self.name]
        return LABELS.get(
            self.name, [str(label) for label in range(max(10, int(self.labels.max()) + 1 if len(self) else 0))]
        )


def normalise(images: Tensor) -> Tensor:
    """Bytes (B, C, 28, 28) in 0..255 to floats (B, C, 32, 32) in [-1, 1].

    Pictures of another size get no border: 32 and 64 can be halved as they are, but 28 only twice. The border is filled with -1, which is the background of every picture. Reflecting the picture
    at its edges instead would copy strokes that reach them.
    """
    images = images.float() / 127.5 - 1.0
    return pad(images) if images.shape[-1] == CROP_SIZE else images


def pad(images: Tensor) -> Tensor:
    """Put the border of background around pictures in [-1, 1]: (B, C, 28, 28) -> (B, C, 32, 32)."""
    return F.pad(images, [PADDING] * 4, value=-1.0)


def crop(images: Tensor, image_size: int = CROP_SIZE) -> Tensor:
    """Cut the border off again: (B, C, 32, 32) -> (B, C, 28, 28); pictures of another `image_size` have none."""
    return images[..., PADDING:-PADDING, PADDING:-PADDING] if image_size == CROP_SIZE else images


def quantise(images: Tensor) -> Tensor:
    """Floats in [-1, 1] to the bytes 0..255 that a picture file would hold."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def shuffled_batches(size: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of one epoch in random order, in full batches; the incomplete last one is dropped."""
    order = torch.randperm(size, generator=generator)
    for start in range(0, size - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
