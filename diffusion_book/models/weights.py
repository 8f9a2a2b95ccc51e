"""The weights that come with the book: NAME.safetensors, and NAME.json, its card.

Those of MNIST lie in one folder, those of another data set in a folder of that name in it.

A card holds the recipe, what it was trained on and for how long, the hash of the weights, and what
was measured with them, with the command that measures it again.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import write_tensors, write_text
from diffusion_book.system.hashes import hash_of

FOLDER = Path(__file__).parents[1] / "weights"
MNIST = "mnist"
SETS = (MNIST, "fashion-mnist")
"""data sets that the book has models of"""
DIGITS = ("auto", MNIST, "digits")
"""names of data sets that the models of MNIST stand for"""


def folder_of(dataset: str = MNIST) -> Path:
    """Where the weights of a data set lie.

    Raises:
        BookError: the book has no models of it.
    """
    if dataset in DIGITS:
        return FOLDER
    choose("data set of weights", dataset, dict.fromkeys(SETS))
    return FOLDER / dataset


def shipped(folder: Path | None = None) -> list[str]:
    """Names of all weights that are here, or in another folder."""
    return sorted(
        path.stem for path in (folder or FOLDER).glob("[!.]*.safetensors")
    )  # not those that are being written


def set_of(name: str, dataset: str | None) -> str | None:
    """This data set, where the book has weights of this name for it; else None: `load` then takes those of MNIST."""
    return dataset if dataset in SETS and name in shipped(folder_of(dataset)) else None


def read_card(name: str, folder: Path | None = None) -> dict:
    """The card of shipped weights.

    Raises:
        BookError: there is none, or it is damaged.
    """
    path = _file(name, "json", folder)
    if not path.is_file():
        raise BookError(f"no weights are shipped for '{name}': choose one of {', '.join(shipped(folder)) or 'none'}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BookError(f"the card {path} is damaged ({error}): install the book again") from None
    if not isinstance(card, dict) or not isinstance(card.get("sha256"), str):
        raise BookError(f"the card {path} is damaged (it tells no hash): install the book again")
    metrics = card.get("metrics", [])
    if not isinstance(metrics, list) or not all(isinstance(entry, dict) for entry in metrics):
        raise BookError(f"the card {path} is damaged (its metrics are no list of figures): install the book again")
    return card


def read_weights(name: str, folder: Path | None = None) -> dict[str, Tensor]:
    """The tensors of shipped weights, floats as float32, checked against the hash in the card.

    Raises:
        BookError: there are none, or the file is not the one that the card describes.
    """
    card = read_card(name, folder)
    path = _file(name, "safetensors", folder)
    digest = hash_of(path) if path.is_file() else "no file"
    if digest != card["sha256"]:
        raise BookError(
            f"the weights {path} are damaged (hash {digest[:12]}, the card says {card['sha256'][:12]}): install the book again"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise BookError(f"the weights {path} cannot be read ({error}): install the book again") from None
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def strangers(folder: Path) -> list[str]:
    """Names of weights that were made with other weights than those beside them: of a VAE, or of the classifiers.

    Raises:
        BookError: a card is damaged.
    """
    cards = {path.stem: read_card(path.stem, folder) for path in sorted(folder.glob("[!.]*.json"))}
    return [
        name
        for name, card in cards.items()
        for needed, trained_with in {"vae": card.get("vae_sha256"), **card.get("classifiers", {})}.items()
        if trained_with is not None and needed in cards and trained_with != cards[needed]["sha256"]
    ]


def write_weights(name: str, tensors: dict[str, Tensor], card: dict, folder: Path | None = None) -> Path:
    """Store tensors, floats as float16, and the card with their hash. Both files are written whole."""
    half = {key: _half(value) for key, value in tensors.items()}
    path = write_tensors(_file(name, "safetensors", folder), half)
    write_card(name, {**card, "sha256": hash_of(path)}, folder)
    return path


def write_card(name: str, card: dict, folder: Path | None = None) -> Path:
    """Store a card."""
    return write_text(_file(name, "json", folder), json.dumps(card, indent=2) + "\n")


def _file(name: str, kind: str, folder: Path | None) -> Path:
    return (folder or FOLDER) / f"{name}.{kind}"


def _half(value: Tensor) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(torch.float16) if value.is_floating_point() else value
