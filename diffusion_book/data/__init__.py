"""Handwritten digits and their look-alikes: `load` finds a data set, `Dataset` holds it whole."""

from diffusion_book.data.dataset import (
    CROP_SIZE,
    IMAGE_SIZE,
    LABELS,
    PADDING,
    Dataset,
    crop,
    normalise,
    pad,
    quantise,
    shuffled_batches,
)
from diffusion_book.data.own import load_own
from diffusion_book.data.sources import HASHES, MNIST_SIZES, NAMES, TORCHVISION_NAMES, data_folder, is_place, load

__all__ = [
    "CROP_SIZE",
    "HASHES",
    "IMAGE_SIZE",
    "LABELS",
    "MNIST_SIZES",
    "NAMES",
    "PADDING",
    "TORCHVISION_NAMES",
    "Dataset",
    "crop",
    "data_folder",
    "is_place",
    "load",
    "load_own",
    "normalise",
    "pad",
    "quantise",
    "shuffled_batches",
]
