"""Checkpoints: written whole, read without running what is in them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import torch

from diffusion_book.system.errors import BookError
from diffusion_book.system.files import write_whole
from diffusion_book.system.hashes import hash_of_tensors

FORMAT = 1


def save_checkpoint(path: str | Path, checkpoint: dict) -> Path:
    """Write a dictionary of tensors, numbers, strings, lists and dictionaries, whole or not at all."""
    checkpoint = {key: value for key, value in checkpoint.items() if key != "format"}  # one that was read before has it
    buffer = io.BytesIO()  # torch says of a full disk that it has a bug; writing bytes says what is wrong
    torch.save({"format": FORMAT, **checkpoint, "sha256": _hash(checkpoint)}, buffer)
    return write_whole(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


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
    if not os.path.isfile(path):  # Path.is_file fails where a name is too long
        raise BookError(f"there is no checkpoint {path}: give the path of a .pt file that `train` wrote")
    damaged = f"the checkpoint {path} is damaged or is no checkpoint: use another one"
    try:
        if not zipfile.is_zipfile(path):
            raise BookError(damaged)
        with zipfile.ZipFile(path) as archive:  # torch packs nothing: what is packed may be of any size
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise BookError(damaged)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BookError(
            f"the checkpoint {path} is damaged, or holds more than tensors and numbers and was not opened, "
            "since such a file can run code: use one that `train` wrote"
        ) from error
    except Exception as error:  # whatever torch stumbles over here, a damaged file is in its way
        raise BookError(damaged) from error
    if (
        not isinstance(checkpoint, dict)
        or checkpoint.get("format") != FORMAT
        or not isinstance(checkpoint.get("recipe"), dict)
    ):
        raise BookError(f"{path} is not a checkpoint of this version of the book: train the model again")
    stated = checkpoint.pop("sha256", None)
    digest = _hash({key: checkpoint[key] for key in checkpoint if key != "format"})
    if stated not in (None, digest):  # None: it was written before there was a hash
        raise BookError(
            f"the checkpoint {path} is damaged (hash {digest[:12]}, it says {stated!s:.12}): use another one"
        )
    name = checkpoint["recipe"].get("model")
    if model is not None and name != model:
        raise BookError(f"the checkpoint {path} holds a '{name}', not a '{model}': name the model it holds")
    return checkpoint


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, or the newest one of an experiment folder.

    Raises:
        BookError: it is a folder without one.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return path  # reading it will tell what is wrong with it
    last = path / "checkpoints" / "last.pt"
    if not last.is_file():
        raise BookError(f"no checkpoint in {path}: give a .pt file, or a folder with checkpoints/last.pt in it")
    return last


def _hash(value) -> str:
    """SHA-256 of all that a checkpoint holds. torch does not look at the sums that its own files carry."""
    if isinstance(value, torch.Tensor):
        return hash_of_tensors({"": value})
    if isinstance(value, dict):
        value = [[repr(key), _hash(item)] for key, item in value.items()]
    elif isinstance(value, list | tuple):
        value = [_hash(item) for item in value]
    return hashlib.sha256(repr(value).encode(errors="surrogatepass")).hexdigest()
