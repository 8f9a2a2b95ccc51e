"""Checkpoints: written whole, read without running what is in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

from diffusion_book.errors import BookError
from diffusion_book.files import write_whole

FORMAT = 1


def save_checkpoint(path: str | Path, checkpoint: dict) -> Path:
    """Write a dictionary of tensors, numbers, strings, lists and dictionaries, whole or not at all."""
    return write_whole(path, lambda temporary: torch.save({"format": FORMAT, **checkpoint}, temporary))


def load_checkpoint(path: str | Path, model: str | None = None) -> dict:
    """Read a checkpoint on the CPU.

    Args:
        path: a `.pt` file of this project.
        model: the model it must hold; None takes any.

    Raises:
        BookError: the file is missing, damaged, not ours, of another model, or holds code, which
            is never run.
    """
    path = Path(path)
    if not path.is_file():
        raise BookError(f"there is no checkpoint {path}: give the path of a .pt file that `train` wrote")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise BookError(
                f"the checkpoint {path} holds more than tensors and numbers and was not opened, "
                "since such a file can run code: use one that `train` wrote"
            ) from error
        raise BookError(f"the checkpoint {path} is damaged or is no checkpoint: use another one") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise BookError(f"the checkpoint {path} is damaged or is no checkpoint: use another one") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT or "recipe" not in checkpoint:
        raise BookError(f"{path} is not a checkpoint of this version of the book: train the model again")
    found = checkpoint["recipe"].get("model")
    if model is not None and found != model:
        raise BookError(f"the checkpoint {path} holds a '{found}', not a '{model}': name the model it holds")
    return checkpoint
