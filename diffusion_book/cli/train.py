"""`diffusion-book train MODEL`: from a recipe to an experiment folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_book.cli.detach import detach
from diffusion_book.cli.options import RENAMED, read_train_as, recipe_asked
from diffusion_book.data import is_place
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder, autoencoder_from_state
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.models.recipes import PARENTS, RECIPES, Recipe, recipe_from_dict
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.training.experiment import check_place
from diffusion_book.training.options import RunOptions
from diffusion_book.training.run import Stopped, run_training
from diffusion_book.viz.experiment import PICTURES

MAY_CHANGE = ("epochs",)  # of a recipe, when its training is continued


def main(model: str, arguments: Sequence[str], options: Any) -> int:
    """Run the command.

    Args:
        model: to train.
        arguments: of the command, after the model.
        options: as they were read from the arguments, with the recipe's values as defaults.
    """
    checkpoint, classes = {}, ()
    if options.run.resume is not None:
        checkpoint = load_checkpoint(find_checkpoint(options.run.resume), model)
        stored = recipe_from_dict(checkpoint["recipe"])
        # Once more, with the checkpoint's recipe as the default: what differs now was asked for.
        options = read_train_as(model, arguments, stored)
        check_unchanged(recipe_asked(options, model), stored)
        classes = stored.classes
    resumed = find_checkpoint(options.run.resume) if checkpoint else None
    run = options.run
    check_place(run.output_dir, run.name, resumed, checkpoint.get("step", 0), run.rewind)
    if options.run.detach:
        return detach(model, [model, *arguments], options.run)
    with processes.together(options.run.device) as device:
        run = dataclasses.replace(options.run, device=device)
        recipe, autoencoder, parent = dataclasses.replace(recipe_asked(options, model), classes=classes), None, None
        if recipe.reflow:
            parent = find_parent(options.reflow_from, model, run)
            autoencoder = parent.autoencoder
            if not checkpoint:
                # Once more, with the parent's network as the default: one that differs now was asked for.
                default = like_parent(RECIPES[model], parent.recipe)
                recipe = recipe_asked(read_train_as(model, arguments, default), model)
        elif recipe.is_latent:
            autoencoder = find_autoencoder(options.vae, checkpoint, run)
            recipe = for_latents(recipe, autoencoder)
        try:
            folder = run_training(recipe, run, autoencoder, parent, PICTURES, checkpoint=checkpoint)
        except Stopped as stop:
            return report_stop(f"train {model}", stop)
    if processes.is_main():
        print(folder)
    return 0


def find_parent(path: Path | None, model: str, run: RunOptions) -> pipelines.Pipeline:
    """The flow that a model learns from: the one given, or the shipped one.

    Raises:
        BookError: no such flow, or something else.
    """
    if path is None and PARENTS[model] not in pipelines.list_models():
        raise BookError(f"'{model}' learns from a '{PARENTS[model]}': give one as --reflow-from")
    run_on = {"device": run.device, "precision": run.precision}
    parent = pipelines.load(path or PARENTS[model], **run_on)
    if isinstance(parent, Autoencoder):
        raise BookError(f"{path} holds a VAE, not a flow: give one of a flow")
    return parent


def like_parent(recipe: Recipe, parent: Recipe) -> Recipe:
    """The same recipe with a network that can start with the weights of its parent's."""
    condition = recipe.condition
    if condition and parent.condition:
        same = {name: getattr(parent.condition, name) for name in ("num_classes", "num_tokens")}
        condition = dataclasses.replace(condition, **same)
    return dataclasses.replace(recipe, network=parent.network, condition=condition)


def find_autoencoder(vae: Path | None, checkpoint: dict, run: RunOptions) -> Autoencoder:
    """The VAE whose latents are learned: that of the checkpoint to continue, the one given, or the shipped one.

    Raises:
        BookError: no such VAE, or not the one that the checkpoint was trained with.
    """
    run_on = {"device": run.device, "precision": run.precision}
    if "autoencoder" in checkpoint:
        own = autoencoder_from_state(checkpoint["autoencoder"], **run_on)
        if vae is not None:
            pipelines.check_same(pipelines.load(vae, **run_on), own, vae)
        return own
    return pipelines.load(vae or "vae", model="vae", **run_on)


def for_latents(recipe: Recipe, autoencoder: Autoencoder) -> Recipe:
    """The same recipe with a network for the latents of this autoencoder, and pictures of the form that it knows.

    Raises:
        BookError: the network cannot halve such latents as often as it should.
    """
    channels, size, _ = autoencoder.latent_shape
    network = dataclasses.replace(recipe.network, in_channels=channels, image_size=size)
    channels, image_size, _ = autoencoder.recipe.picture_shape
    training = dataclasses.replace(recipe.training, image_size=image_size, channels=channels)
    return dataclasses.replace(recipe, network=network, training=training)


def report_stop(command: str, stop: Stopped) -> int:
    """Say how a stopped training is continued; gives the exit code."""
    if processes.is_main():
        print(f"{stop}; continue with: diffusion-book {command} --resume {stop.folder}", file=sys.stderr)
    return 128 + stop.signal_number


def check_unchanged(recipe: Recipe, stored: Recipe) -> None:
    """Refuse to continue a training as another one.

    Raises:
        BookError: a hyperparameter differs from the checkpoint's.
    """
    asked_values = recipe.to_dict()
    for section, values in stored.to_dict().items():
        for key, value in values.items() if isinstance(values, dict) else ():
            given = asked_values[section][key]
            whole = str(Path(given).expanduser().resolve()) if key == "dataset" and is_place(given) else given
            if whole != value and key not in MAY_CHANGE:
                option = RENAMED.get(section, {}).get(key, key).replace("-", "_")
                raise BookError(
                    f"--{option} {given} contradicts the checkpoint, which was trained with {value}: "
                    f"leave out --{option} to continue, or --resume to begin anew"
                )
