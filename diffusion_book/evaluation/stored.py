"""Experiments that take minutes, kept as tensors beside the code that ran them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_stored(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by their names; pictures, which it holds as bytes, in [-1, 1]."""
    stored = load_file(path)
    return {
        name: values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values for name, values in stored.items()
    }
