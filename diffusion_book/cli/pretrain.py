"""`diffusion-book pretrain NAME ...`: make the weights that come with the book, and their cards, again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion_book import data
from diffusion_book.cli.evaluate import scoreboard_line
from diffusion_book.cli.options import PRETRAINED, REFERENCE
from diffusion_book.cli.train import report_stop
from diffusion_book.evaluation.features import YARDSTICK, yardstick
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.reconstructions import measure_reconstructions
from diffusion_book.evaluation.settings import evaluate, find_entry
from diffusion_book.evaluation.substitution import classification_accuracy_score
from diffusion_book.models import pipelines, weights
from diffusion_book.models.autoencoder import Autoencoder, build_autoencoder
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import MODELS, PARENTS, RECIPES, ClassSetting, Recipe, recipe_from_dict, recipe_of
from diffusion_book.networks.classifier import CLASSIFIERS, build_classifier
from diffusion_book.system import hashes
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import check_folder
from diffusion_book.system.machine import ENVIRONMENT
from diffusion_book.system.progress import progress_bar
from diffusion_book.training.experiment import read_records
from diffusion_book.training.models import accuracy
from diffusion_book.training.run import Stopped, run_training
from diffusion_book.viz.experiment import PICTURES

SETTINGS = {name: model.figures for name, model in MODELS.items() if model.figures}
"""what the card of each diffusion model tells, the figure that stands for it first"""

SUBSTITUTES = tuple(name for name, recipe in RECIPES.items() if recipe.condition and not recipe.is_flow)
"""models whose samples a classifier is trained on"""
SUBSTITUTE = ClassSetting("ddim", 20, num_samples=60_000)
"""how these samples are drawn"""


OTHERS = (*YARDSTICK, "vae", "ddpm", "ldm-concat", "latent-rf-class")
"""what is shipped of other data sets than MNIST"""
FEW = 2
"""figures on the card of each of these models"""
ABOUT = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}

NEW = Path("pretrained")
"""folder for new weights, beside those that come with the book"""
UNMEASURED = "unmeasured"
"""folder in a folder of weights: those that will replace others, until they are measured"""


def folder_of(options: Any) -> Path:
    """The folder for the weights and cards; without --weights_dir, those of MNIST and of each other set have their own."""
    if options.weights_dir is not None:
        return options.weights_dir
    if options.replace or not options.train:
        return weights.folder_of(options.dataset)
    return NEW if options.dataset == weights.MNIST else NEW / options.dataset


def where(options: Any, name: str) -> Path:
    """The folder whose weights of this name are used: the options' own, or what it lacks, the book's."""
    folder = folder_of(options)
    own = (folder, *([folder.parent] if folder.name == UNMEASURED else []))
    return next((folder for folder in own if (folder / f"{name}.json").is_file()), weights.folder_of(options.dataset))


def main(options: Any) -> int:
    """Run the command."""
    choose("data set", options.dataset, dict.fromkeys(weights.SETS))
    names = (PRETRAINED if options.dataset == weights.MNIST else OTHERS) if options.all else options.names
    if not names:
        raise BookError(f"nothing to make: name one of {', '.join(PRETRAINED)}, or give --all")
    if len(names) > 1 and (options.from_checkpoint or options.run.resume):
        raise BookError("--from-checkpoint and --resume belong to one name: give that name alone")
    if not options.train and (options.from_checkpoint or options.run.resume or options.longer or not options.measure):
        raise BookError("--no-train only measures: leave out --from-checkpoint, --resume, --longer and --no-measure")
    for name in names:
        choose("name", name, dict.fromkeys(PRETRAINED))
    check_yardstick(names, options)
    check_folder(folder_of(options))
    stored = [name for name in names if (folder_of(options) / f"{name}.safetensors").exists()]
    if options.train and stored and not options.replace:
        raise BookError(
            f"{folder_of(options)} has weights of {', '.join(stored)} already: give another --weights_dir, or --replace them"
        )
    for name in names:
        try:
            print(make_reference(options) if name == REFERENCE else make(name, options))
        except Stopped as stop:
            return report_stop(f"pretrain {name}", stop)
        except KeyboardInterrupt:
            print("interrupted; what was finished is stored", file=sys.stderr)
            return 130
    return 0


def check_yardstick(names: Sequence[str], options: Any) -> None:
    """Refuse to train what could not be measured at its end.

    Raises:
        BookError: what measures pictures of the data set is not here, and is not among what is made before.
    """
    if not options.measure or set(names) <= set(YARDSTICK) or yardstick(options.dataset):
        return
    here = {*weights.shipped(weights.folder_of(options.dataset)), *(names if options.replace else ())}
    lacking = [name for name in YARDSTICK if name not in here]
    if lacking:
        raise BookError(
            f"nothing measures {options.dataset} here yet: diffusion-book pretrain {' '.join(lacking)} --dataset "
            f"{options.dataset} --replace comes first, or leave the figures off with --no-measure"
        )


def make(name: str, options: Any) -> Path:
    """Train one model, store its averaged weights and their card, and measure them."""
    if not options.train:
        measure_weights(name, weights.read_card(name, folder_of(options)), options)
        return folder_of(options) / f"{name}.safetensors"
    before = weights.read_card(name, where(options, name)) if (where(options, name) / f"{name}.json").is_file() else {}
    source = options.from_checkpoint or train(name, options)
    path = find_checkpoint(source)
    checkpoint = load_checkpoint(path, name)
    if "autoencoder" in checkpoint:
        check_vae(checkpoint["autoencoder"]["weights"], name, options)
    card = card_of(checkpoint, read_records(path.parent.parent, checkpoint["step"]), options.run.max_minutes)
    if options.longer:
        card = after(before, card)
    place, measured = folder_of(options) / f"{name}.safetensors", options
    if place.exists():  # it stays until the new weights are measured
        measured = dataclasses.replace(options, weights_dir=folder_of(options) / UNMEASURED)
        if (folder_of(measured) / f"{name}.json").is_file():  # where measuring was interrupted
            before = weights.read_card(name, folder_of(measured))
    written = weights.write_weights(name, checkpoint["ema"], card, folder_of(measured))
    if options.measure:
        measure_weights(name, before, measured)
    if written != place:
        for file in (written, written.with_suffix(".json")):
            file.replace(place.with_name(file.name))
        with contextlib.suppress(OSError):  # others may be in it
            folder_of(measured).rmdir()
    for stranger in weights.strangers(place.parent):
        print(
            f"{stranger} was trained with other weights of {name}: diffusion-book pretrain {stranger}", file=sys.stderr
        )
    return place


def after(before: dict, card: dict) -> dict:
    """The card of weights that were trained further: minutes, steps and epochs are those of all parts together."""
    epochs = before["learning_curve"][-1]["epoch"] if before["learning_curve"] else 0
    curve = [
        {**entry, "epoch": entry["epoch"] + epochs, "step": entry["step"] + before["steps"]}
        for entry in card["learning_curve"]
    ]
    commands = before.get("commands", [before["command"]])
    return {
        **card,
        "minutes": round(before["minutes"] + card["minutes"], 1),
        "steps": before["steps"] + card["steps"],
        "commands": [*commands, f"{card['command']} --longer"],
        "learning_curve": [*before["learning_curve"], *curve],
    }


def check_vae(trained_with: dict[str, torch.Tensor], name: str, options: Any) -> None:
    """Refuse a latent model of another VAE than the one beside which its weights would be stored.

    Raises:
        BookError: it is another one.
    """
    stored = weights.read_weights("vae", where(options, "vae"))
    if hashes.hash_of_tensors(trained_with) != hashes.hash_of_tensors(stored):
        raise BookError(
            f"this '{name}' was trained with another VAE than the one in {where(options, 'vae')}: "
            f"train it with that one (diffusion-book pretrain {name})"
        )


def train(name: str, options: Any) -> Path:
    """Train one model by its recipe; gives the experiment folder."""
    resumed = options.run.resume
    checkpoint = load_checkpoint(find_checkpoint(resumed), name) if resumed is not None else None
    recipe = recipe_from_dict(checkpoint["recipe"]) if checkpoint else recipe_for(name, options.dataset)
    autoencoder = load_autoencoder("vae", options) if recipe.is_latent else None
    parent = load_pipeline(PARENTS[name], options) if recipe.reflow else None
    start = stored_start(name, recipe, options) if options.longer else None
    return run_training(recipe, options.run, autoencoder, parent, PICTURES, start, checkpoint)


def stored_start(name: str, recipe: Recipe, options: Any) -> dict[str, torch.Tensor]:
    """The stored weights, to train them further.

    Raises:
        BookError: they are of another network than the recipe's, or of another VAE than the stored one.
    """
    card = weights.read_card(name, where(options, name))
    stored = recipe_from_dict(card["recipe"])
    if any(getattr(stored, part) != getattr(recipe, part) for part in ("network", "vae", "condition")):
        raise BookError(f"the stored weights of '{name}' are of another network than its recipe's: leave out --longer")
    if recipe.is_latent and card["vae_sha256"] != weights.read_card("vae", where(options, "vae"))["sha256"]:
        raise BookError(f"the stored weights of '{name}' know the latents of another VAE: leave out --longer")
    return weights.read_weights(name, where(options, name))


def recipe_for(name: str, dataset: str = weights.MNIST) -> Recipe:
    """The recipe of shipped weights, always with the real data."""
    recipe = recipe_of(name)
    if dataset == weights.MNIST and recipe.training.dataset != "auto":
        return recipe
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, dataset=dataset))


def card_of(checkpoint: dict, records: list[dict], max_minutes: float | None) -> dict:
    """What is known of a checkpoint: recipe, data, time, machine, learning curve, command."""
    recipe = checkpoint["recipe"]
    limit = max_minutes or checkpoint.get("max_minutes", math.inf)
    start = records[0] if records else {}
    curve = ("epoch", "step", "train_loss", "eval_loss", "test_accuracy", "reconstruction_error")
    return {
        "model": recipe["model"],
        "recipe": recipe,
        "data_set": recipe["training"]["dataset"],
        "minutes": round(checkpoint["seconds"] / 60, 1),
        "steps": checkpoint["step"],
        **{key: start[key] for key in ("parameters", *ENVIRONMENT) if key in start},
        **({"vae_sha256": checkpoint["autoencoder"]["sha256"]} if "autoencoder" in checkpoint else {}),
        **({"parent": checkpoint["parent"]["model"]} if "parent" in checkpoint else {}),
        **({"coupling_minutes": round(checkpoint["coupling_seconds"] / 60, 1)} if "parent" in checkpoint else {}),
        "command": f"diffusion-book pretrain {recipe['model']}"
        + (f" --dataset {dataset}" if (dataset := recipe["training"]["dataset"]) in weights.SETS[1:] else "")
        + (f" --max-minutes {limit:g}" if math.isfinite(limit) else ""),
        "learning_curve": [
            {key: round(record[key], 6) for key in curve if key in record}
            for record in records
            if record["event"] == "epoch"
        ],
    }


def measure_weights(name: str, before: dict, options: Any) -> None:
    """Measure stored weights, and put each figure on their card as soon as it is known.

    Args:
        name: of the weights.
        before: the card that was there; what it tells of the very same weights is kept.
        options: where the weights are, and the device.
    """
    folder = folder_of(options)
    card = weights.read_card(name, folder)
    if name in CLASSIFIERS:
        test = data.load(card["data_set"], "test")
        weights.write_card(name, {**card, "test_accuracy": accuracy(load_classifier(name, folder), test)}, folder)
        return
    recipe = recipe_from_dict(card["recipe"])
    kind = "digits" if card["data_set"] in weights.DIGITS else "pictures"
    if recipe.vae is not None:
        card["reconstruction"] = measure_reconstructions(load_autoencoder(name, options))
        weights.write_card(name, card, folder)
        print(f"{name}: squared error {card['reconstruction']['mse']}; {sentence(card['reconstruction'], kind)}")
        return
    pipe = load_pipeline(name, options)
    same = before.get("sha256") == card["sha256"]
    settings = SETTINGS[name] if kind == "digits" else SETTINGS[name][:FEW]
    asked = [dataclasses.asdict(setting) for setting in settings]
    kept = [find_entry(before, setting) for setting in asked] if same else []
    card["metrics"] = [entry for entry in kept if entry is not None and entry["ratio_error"] is not None]
    if same and "classification_accuracy_score" in before:
        card["classification_accuracy_score"] = before["classification_accuracy_score"]
    weights.write_card(name, card, folder)
    for setting in settings:
        if find_entry(card, dataclasses.asdict(setting)) is None:
            _, entry = evaluate(pipe, setting)
            card["metrics"].append(entry)
            weights.write_card(name, card, folder)
            print(f"{name}, {scoreboard_line(entry)}")
    if name in SUBSTITUTES and kind == "digits" and "classification_accuracy_score" not in card:
        card["classification_accuracy_score"] = measure_substitute(pipe)
        weights.write_card(name, card, folder)
        print(f"{name}: a classifier of its samples alone: {card['classification_accuracy_score']['accuracy']}")


def measure_substitute(pipe: Pipeline) -> dict:
    """How well a classifier does on real digits that was trained on this model's samples alone, and the samples' setting."""
    request = pipe.ask(**dataclasses.asdict(SUBSTITUTE))
    with progress_bar(f"{SUBSTITUTE.num_samples} samples to train a classifier on") as bar:
        images = pipe.draw(request, bar.advance)
    score = classification_accuracy_score(images, request.labels)
    return {**dataclasses.asdict(SUBSTITUTE), "accuracy": round(score, 4)}


def load_autoencoder(name: str, options: Any) -> Autoencoder:
    """A VAE with the weights in the folder of the options."""
    card = weights.read_card(name, where(options, name))
    return build_autoencoder(
        recipe_from_dict(card["recipe"]),
        weights.read_weights(name, where(options, name)),
        card=card,
        device=options.run.device,
        precision=options.run.precision,
    )


def load_pipeline(name: str, options: Any) -> Pipeline:
    """A diffusion model with the weights in the folder of the options."""
    card = weights.read_card(name, where(options, name))
    recipe = recipe_from_dict(card["recipe"])
    return pipelines.build(
        recipe,
        weights.read_weights(name, where(options, name)),
        card=card,
        autoencoder=load_autoencoder("vae", options) if recipe.is_latent else None,
        device=options.run.device,
        precision=options.run.precision,
    )


def load_classifier(name: str, folder: Path) -> nn.Module:
    """A classifier with the weights in `folder`."""
    network = build_classifier(name)
    network.load_state_dict(weights.read_weights(name, folder))
    return network.eval().requires_grad_(False)


def make_reference(options: Any) -> Path:
    """Store what the two classifiers see in the real pictures of a data set: all that the measures need of it."""
    plain, check = (load_classifier(name, where(options, name)) for name in CLASSIFIERS)
    dataset = options.dataset
    images = {split: data.load(dataset, split).images for split in ("train", "test")}

    @torch.no_grad()
    def look(function, split: str) -> torch.Tensor:
        return torch.cat([function(part.float() / 127.5 - 1) for part in images[split].split(500)])

    sure = look(check, "test").softmax(dim=1).max(dim=1).values >= 0.9
    tensors = {
        "train": look(plain.features, "train"),
        "test": look(plain.features, "test"),
        "confident": sure.float().mean(),
    }
    card = {
        "model": REFERENCE,
        "about": f"features that the classifier sees in {ABOUT[dataset]}, train (60000, 64) and test (10000, 64); "
        "confident: share of the test pictures that classifier-check is at least 90 % sure about",
        "data_set": dataset,
        "classifiers": {name: weights.read_card(name, where(options, name))["sha256"] for name in CLASSIFIERS},
        "torch": torch.__version__,
        "command": f"diffusion-book pretrain {REFERENCE}"
        + ("" if dataset == weights.MNIST else f" --dataset {dataset}"),
    }
    return weights.write_weights(REFERENCE, tensors, card, folder_of(options))
