"""`diffusion-book pretrain NAME ...`: make the weights that come with the book, and their cards, again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from diffusion_book import data, weights
from diffusion_book.cli.main import parse
from diffusion_book.errors import BookError, choose
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.training.checkpoint import load_checkpoint
from diffusion_book.training.experiment import find_checkpoint, open_experiment
from diffusion_book.training.recipes import RECIPES, recipe_from_dict, recipe_of
from diffusion_book.training.run import RunOptions, Stopped, accuracy, run_training

NAMES = ("classifier", "classifier-check", "reference", *(name for name in RECIPES if "classifier" not in name))
"""everything that is shipped, each after what it needs"""


@dataclass
class Pretrain:
    """Options of `pretrain`."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """what to make"""
    all: bool = False
    """make everything that is shipped"""
    from_checkpoint: Path | None = None
    """do not train: take this experiment folder's or .pt file's weights"""
    measure: bool = True
    """draw samples with the new weights and put their measures on the card"""
    weights_dir: Path = weights.FOLDER
    """folder for the weights and cards"""
    run: RunOptions = dataclasses.field(default_factory=RunOptions)


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    description = f"Train, measure and store the shipped weights again. Names: {', '.join(NAMES)}."
    options = parse(Pretrain, arguments, "pretrain", description, Pretrain())
    names = NAMES if options.all else options.names
    for name in names:
        choose("name", name, dict.fromkeys(NAMES))
    if not names:
        raise BookError(f"nothing to make: name one of {', '.join(NAMES)}, or give --all")
    if len(names) > 1 and (options.from_checkpoint or options.run.resume):
        raise BookError("--from-checkpoint and --resume belong to one name: give only that name")
    for name in names:
        try:
            path = make_reference(options.weights_dir) if name == "reference" else make(name, options)
        except Stopped as stop:
            print(stop, file=sys.stderr)
            return 128 + stop.signal_number
        print(path)
    return 0


def make(name: str, options: Pretrain) -> Path:
    """Train one model by its recipe, export its averaged weights, and write their card."""
    folder = options.from_checkpoint or run_training(recipe_of(name), options.run)
    path = find_checkpoint(folder)
    checkpoint = load_checkpoint(path, name)
    recipe, records = recipe_from_dict(checkpoint["recipe"]), open_experiment(path.parent.parent)
    start = records.records[0]
    card = {
        "model": name,
        "recipe": recipe.to_dict(),
        "data_set": start["data_set"],
        "minutes": round(checkpoint["seconds"] / 60, 1),
        "steps": checkpoint["step"],
        **{key: start[key] for key in ("parameters", "machine", "device", "threads", "precision", "torch", "date")},
        "command": f"diffusion-book pretrain {name}",
        "learning_curve": [
            {key: record[key] for key in ("epoch", "train_loss", "eval_loss", "test_accuracy") if key in record}
            for record in records.epochs
            if record["step"] <= checkpoint["step"]
        ],
    }
    written = weights.write_weights(name, checkpoint["ema"], card, options.weights_dir)
    if options.measure:
        weights.write_card(
            name, {**weights.read_card(name, options.weights_dir), **measures(name, options)}, options.weights_dir
        )
    return written


def measures(name: str, options: Pretrain) -> dict:
    """What the card says of the stored weights' quality."""
    tensors = weights.read_weights(name, options.weights_dir)
    if recipe_of(name).diffusion is None:
        network = build_classifier(name)
        network.load_state_dict(tensors)
        return {"test_accuracy": accuracy(network.eval(), data.load("mnist", "test"))}
    return {}


@torch.no_grad()
def make_reference(folder: Path) -> Path:
    """Store what the two classifiers see in real MNIST, for the measures."""
    networks = {}
    for name in ("classifier", "classifier-check"):
        networks[name] = build_classifier(name)
        networks[name].load_state_dict(weights.read_weights(name, folder))
        networks[name].eval()

    def look(function, split: str) -> torch.Tensor:
        images = data.load("mnist", split).images
        return torch.cat([function(part.float() / 127.5 - 1) for part in images.split(500)])

    sure = look(networks["classifier-check"], "test").softmax(dim=1).max(dim=1).values >= 0.9
    tensors = {
        "train": look(networks["classifier"].features, "train"),
        "test": look(networks["classifier"].features, "test"),
        "confident": sure.float().mean(),
    }
    card = {
        "model": "reference",
        "about": "features of MNIST: train (60000, 64), test (10000, 64); confident: share of test pictures "
        "that classifier-check is at least 90 % sure about",
        "data_set": "mnist",
        "classifiers": {name: weights.read_card(name, folder)["sha256"] for name in networks},
        "command": "diffusion-book pretrain reference",
    }
    return weights.write_weights("reference", tensors, card, folder)
