"""`diffusion-book train MODEL`: from a recipe to an experiment folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from diffusion_book import pipelines
from diffusion_book.autoencoder import Autoencoder, autoencoder_from_state
from diffusion_book.cli.main import choose_model, parse
from diffusion_book.errors import BookError
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.training.checkpoint import load_checkpoint
from diffusion_book.training.experiment import find_checkpoint
from diffusion_book.training.recipes import (
    RECIPES,
    DiffusionConfig,
    ELBOConfig,
    Recipe,
    TrainingConfig,
    recipe_from_dict,
)
from diffusion_book.training.run import RunOptions, Stopped, run_training

Given = Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress]  # follows from the model, so it is no option
MAY_CHANGE = ("epochs",)  # of a recipe, when its training is continued


@dataclass(frozen=True)
class PixelNetwork(UNetConfig):
    """The U-Net of a model that works on pictures and knows no classes."""

    in_channels: Given = 1
    image_size: Given = 32
    concat_channels: Given = 0
    context_dim: Given = 0


@dataclass(frozen=True)
class LatentNetwork(UNetConfig):
    """The U-Net of a model that works on latents, whose shape follows from the VAE."""

    in_channels: Given = 2
    image_size: Given = 4
    concat_channels: Given = 0
    context_dim: Given = 0


@dataclass(frozen=True)
class PictureVAE(VAEConfig):
    """The autoencoder of the book's pictures."""

    image_channels: Given = 1
    image_size: Given = 32


@dataclass(frozen=True)
class TrainDiffusion:
    """Options of an unconditional diffusion model."""

    training: TrainingConfig
    network: PixelNetwork
    diffusion: DiffusionConfig
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def of(cls, recipe: Recipe) -> TrainDiffusion:
        """The options that ask for this recipe."""
        return cls(recipe.training, PixelNetwork(**dataclasses.asdict(recipe.network)), recipe.diffusion)

    def recipe(self, model: str) -> Recipe:
        """The recipe that these options ask for."""
        return Recipe(model, self.training, UNetConfig(**dataclasses.asdict(self.network)), self.diffusion)


@dataclass(frozen=True)
class TrainVAE:
    """Options of an autoencoder."""

    training: TrainingConfig
    vae: PictureVAE
    elbo: ELBOConfig
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def of(cls, recipe: Recipe) -> TrainVAE:
        """The options that ask for this recipe."""
        return cls(recipe.training, PictureVAE(**dataclasses.asdict(recipe.vae)), recipe.elbo)

    def recipe(self, model: str) -> Recipe:
        """The recipe that these options ask for."""
        return Recipe(model, self.training, vae=VAEConfig(**dataclasses.asdict(self.vae)), elbo=self.elbo)


@dataclass(frozen=True)
class TrainLatentDiffusion:
    """Options of a diffusion model of latents."""

    training: TrainingConfig
    network: LatentNetwork
    diffusion: DiffusionConfig
    vae: Path | None = None
    """experiment folder or .pt file of the VAE; without one, the VAE that comes with the book"""
    run: RunOptions = field(default_factory=RunOptions)

    @classmethod
    def of(cls, recipe: Recipe) -> TrainLatentDiffusion:
        """The options that ask for this recipe."""
        return cls(recipe.training, LatentNetwork(**dataclasses.asdict(recipe.network)), recipe.diffusion)

    def recipe(self, model: str) -> Recipe:
        """The recipe that these options ask for, but for the latents' shape, which follows from the VAE."""
        return Recipe(model, self.training, UNetConfig(**dataclasses.asdict(self.network)), self.diffusion)


MODELS = {"ddpm": TrainDiffusion, "vae": TrainVAE, "vae-2d": TrainVAE, "ldm": TrainLatentDiffusion}


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    model, kind, rest = choose_model(arguments, "train", MODELS)
    if kind is None:
        return 0
    description = (
        f"Train '{model}' and fill an experiment folder. Ctrl-C saves and stops; "
        f"diffusion-book train {model} --resume FOLDER continues."
    )
    options = parse(kind, rest, f"train {model}", description, kind.of(RECIPES[model]))
    checkpoint = {}
    if options.run.resume is not None:
        checkpoint = load_checkpoint(find_checkpoint(options.run.resume), model)
        stored = recipe_from_dict(checkpoint["recipe"])
        # Once more, with the checkpoint's recipe as the default: what differs now was asked for.
        options = parse(kind, rest, f"train {model}", description, kind.of(stored))
        check_same(options.recipe(model), stored)
    recipe, autoencoder = options.recipe(model), None
    if recipe.is_latent:
        autoencoder = find_autoencoder(options.vae, checkpoint, options.run)
        recipe = for_latents(recipe, autoencoder)
    return train(f"train {model}", recipe, options.run, autoencoder)


def train(command: str, recipe: Recipe, options: RunOptions, autoencoder: Autoencoder | None = None) -> int:
    """Train, and print the experiment folder."""
    try:
        folder = run_training(recipe, options, autoencoder)
    except Stopped as stop:
        return report_stop(command, stop)
    print(folder)
    return 0


def find_autoencoder(vae: Path | None, checkpoint: dict, run: RunOptions) -> Autoencoder:
    """The VAE whose latents are learned: that of the checkpoint to continue, the one given, or the shipped one.

    Raises:
        BookError: no such VAE, or not the one that the checkpoint was trained with.
    """
    where = {"device": run.device, "precision": run.precision}
    if "autoencoder" in checkpoint:
        own = autoencoder_from_state(checkpoint["autoencoder"], **where)
        if vae is not None:
            pipelines.check_same(pipelines.load(find_checkpoint(vae), **where), own, vae)
        return own
    if vae is None:
        return pipelines.load("vae", **where)
    load_checkpoint(find_checkpoint(vae), "vae")  # a VAE and nothing else
    return pipelines.load(find_checkpoint(vae), **where)


def for_latents(recipe: Recipe, autoencoder: Autoencoder) -> Recipe:
    """The same recipe with a network for the latents of this autoencoder.

    Raises:
        BookError: the network cannot halve such latents as often as it should.
    """
    channels, size, _ = autoencoder.latent_shape
    network = dataclasses.replace(recipe.network, in_channels=channels, image_size=size)
    return dataclasses.replace(recipe, network=network)


def report_stop(command: str, stop: Stopped) -> int:
    """Say how a stopped training is continued; gives the exit code."""
    print(f"{stop}; continue with: diffusion-book {command} --resume {stop.folder}", file=sys.stderr)
    return 128 + stop.signal_number


def check_same(asked: Recipe, stored: Recipe) -> None:
    """Refuse to continue a training as another one.

    Raises:
        BookError: a hyperparameter differs from the checkpoint's.
    """
    asked_values = asked.to_dict()
    for section, values in stored.to_dict().items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if asked_values[section][key] != value and key not in MAY_CHANGE:
                raise BookError(
                    f"--{key} {asked_values[section][key]} contradicts the checkpoint, which was trained with {value}: "
                    f"leave out --{key} to continue, or --resume to begin anew"
                )
