"""`diffusion-book train MODEL`: from a recipe to an experiment folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import tyro

from diffusion_book.cli.detach import detach
from diffusion_book.cli.main import choose_model, parse
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder, autoencoder_from_state
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.models.recipes import (
    PARENTS,
    RECIPES,
    SECTIONS,
    ConditionConfig,
    DiffusionConfig,
    ELBOConfig,
    Recipe,
    ReflowConfig,
    TrainingConfig,
    recipe_from_dict,
)
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.training.run import RunOptions, Stopped, run_training
from diffusion_book.viz.experiment import PICTURES

Given = Annotated[int, tyro.conf.Fixed, tyro.conf.Suppress]  # follows from the model, so it is no option
GivenNumber = Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress]
GivenText = Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress]
VAEPath = Annotated[
    Path | None,
    tyro.conf.arg(help="experiment folder or .pt file of the VAE; without one, the VAE that comes with the book"),
]
MAY_CHANGE = ("epochs",)  # of a recipe, when its training is continued
RENAMED = {("network", "context_dim"): "cross_attention_dim", ("reflow", "guidance_scale"): "coupling_guidance_scale"}
"""parts of a recipe whose option has another name"""
ParentPath = Annotated[
    Path | None,
    tyro.conf.arg(help="experiment folder or .pt file of the flow to learn from; without one, the one of the book"),
]


@dataclass(frozen=True)
class TrainRun(RunOptions):
    """Where and how long a training runs, and whether the terminal waits for it."""

    detach: bool = False
    """train in a session of `screen` that survives this terminal, and return at once"""


@dataclass(frozen=True)
class PixelNetwork(UNetConfig):
    """The U-Net of a model that works on pictures and knows no classes."""

    in_channels: Given = 1
    image_size: Given = 32
    concat_channels: Given = 0
    context_dim: Given = 0


@dataclass(frozen=True)
class LatentNetwork(PixelNetwork):
    """The U-Net of a model that works on latents, whose shape follows from the VAE."""


@dataclass(frozen=True)
class ConcatNetwork(UNetConfig):
    """The U-Net of a model of latents with classes, each a learned map beside the latent."""

    in_channels: Given = 2
    image_size: Given = 4
    concat_channels: int = 4
    """channels of a class's map"""
    context_dim: Given = 0


@dataclass(frozen=True)
class CrossAttentionNetwork(UNetConfig):
    """The U-Net of a model of latents with classes, each a few learned tokens that are read by cross-attention."""

    in_channels: Given = 2
    image_size: Given = 4
    concat_channels: Given = 0
    context_dim: Annotated[int, tyro.conf.arg(name="cross-attention-dim")] = 128
    """features of a class's token"""


@dataclass(frozen=True)
class PictureVAE(VAEConfig):
    """The autoencoder of the book's pictures."""

    image_channels: Given = 1
    image_size: Given = 32


@dataclass(frozen=True)
class Reflow(ReflowConfig):
    """The couplings of a flow with classes."""

    guidance_scale: Annotated[float, tyro.conf.arg(name="coupling-guidance-scale")] = 1.0
    """of the flow's samples"""


@dataclass(frozen=True)
class Concat(ConditionConfig):
    """Classes that are maps: there are no tokens."""

    num_tokens: Given = 4


@dataclass(frozen=True)
class Flow(DiffusionConfig):
    """The mathematics of a rectified flow: a straight path, and its velocity."""

    schedule: GivenText = "rectified"
    target: GivenText = "velocity"


@dataclass(frozen=True)
class PlainReflow(ReflowConfig):
    """The couplings of a flow without classes."""

    guidance_scale: GivenNumber = 1.0


# What can be set for each kind of model: some sections of its recipe, and how to run.


@dataclass(frozen=True, kw_only=True)
class TrainDiffusion:
    """Options of a diffusion model of pictures."""

    training: TrainingConfig
    network: PixelNetwork
    diffusion: DiffusionConfig
    run: TrainRun = field(default_factory=TrainRun)


@dataclass(frozen=True, kw_only=True)
class TrainVAE:
    """Options of an autoencoder."""

    training: TrainingConfig
    vae: PictureVAE
    elbo: ELBOConfig
    run: TrainRun = field(default_factory=TrainRun)


@dataclass(frozen=True, kw_only=True)
class TrainLatentDiffusion(TrainDiffusion):
    """Options of a diffusion model of latents."""

    network: LatentNetwork
    vae: VAEPath = None


@dataclass(frozen=True, kw_only=True)
class TrainConcat(TrainLatentDiffusion):
    """Options of a diffusion model of latents that sees the class beside the latent."""

    network: ConcatNetwork
    condition: Concat


@dataclass(frozen=True, kw_only=True)
class TrainCrossAttention(TrainLatentDiffusion):
    """Options of a diffusion model of latents that reads the class by cross-attention."""

    network: CrossAttentionNetwork
    condition: ConditionConfig


@dataclass(frozen=True, kw_only=True)
class TrainFlow(TrainDiffusion):
    """Options of a rectified flow of pictures."""

    diffusion: Flow


@dataclass(frozen=True, kw_only=True)
class TrainReflow(TrainFlow):
    """Options of a rectified flow of pictures that learns from another."""

    reflow: PlainReflow
    reflow_from: ParentPath = None


@dataclass(frozen=True, kw_only=True)
class TrainLatentFlow(TrainLatentDiffusion):
    """Options of a rectified flow of latents."""

    diffusion: Flow


@dataclass(frozen=True, kw_only=True)
class TrainLatentClassFlow(TrainConcat):
    """Options of a rectified flow of latents that sees the class beside the latent."""

    diffusion: Flow


@dataclass(frozen=True, kw_only=True)
class TrainLatentClassReflow(TrainReflow):
    """Options of a rectified flow of latents with classes that learns from another, and has its VAE."""

    network: ConcatNetwork
    condition: Concat
    reflow: Reflow


MODELS = {
    "ddpm": TrainDiffusion,
    "vae": TrainVAE,
    "vae-2d": TrainVAE,
    "ldm": TrainLatentDiffusion,
    "ldm-concat": TrainConcat,
    "ldm-cross-attention": TrainCrossAttention,
    "rf": TrainFlow,
    "rf-reflow": TrainReflow,
    "rf-one-step": TrainReflow,
    "latent-rf": TrainLatentFlow,
    "latent-rf-class": TrainLatentClassFlow,
    "latent-rf-class-one-step": TrainLatentClassReflow,
}


def options_of(kind: type, recipe: Recipe):
    """The options of this kind that ask for a recipe."""
    types = get_type_hints(kind)
    parts = {name: getattr(recipe, name) for name in SECTIONS}
    return kind(**{name: types[name](**vars(part)) for name, part in parts.items() if part is not None})


def recipe_of(options, model: str) -> Recipe:
    """The recipe that options ask for; but for the latents' shape, which follows from the VAE."""
    parts = {name: getattr(options, name, None) for name in SECTIONS}
    return Recipe(model, **{name: SECTIONS[name](**vars(part)) for name, part in parts.items() if is_dataclass(part)})


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    model, kind, rest = choose_model(arguments, "train", MODELS)
    if kind is None:
        return 0
    if model == "rf" and any(option.replace("_", "-").split("=")[0] == "--reflow-from" for option in rest):
        model, kind = "rf-reflow", TrainReflow  # the same thing by its shorter name
    description = (
        f"Train '{model}' and fill an experiment folder. Ctrl-C saves and stops; "
        f"diffusion-book train {model} --resume FOLDER continues."
    )
    options = parse(kind, rest, f"train {model}", description, options_of(kind, RECIPES[model]))
    checkpoint = {}
    if options.run.resume is not None:
        checkpoint = load_checkpoint(find_checkpoint(options.run.resume), model)
        stored = recipe_from_dict(checkpoint["recipe"])
        # Once more, with the checkpoint's recipe as the default: what differs now was asked for.
        options = parse(kind, rest, f"train {model}", description, options_of(kind, stored))
        check_same(recipe_of(options, model), stored)
    if options.run.detach:
        return detach(model, arguments, options.run)
    with processes.together(options.run.device) as device:
        options = dataclasses.replace(options, run=dataclasses.replace(options.run, device=device))
        recipe, autoencoder, parent = recipe_of(options, model), None, None
        if recipe.reflow:
            parent = find_parent(options.reflow_from, model, options.run)
            autoencoder = parent.autoencoder
            if not checkpoint:
                # Once more, with the parent's network as the default: one that differs now was asked for.
                default = like_parent(RECIPES[model], parent.recipe)
                recipe = recipe_of(parse(kind, rest, f"train {model}", description, options_of(kind, default)), model)
        elif recipe.is_latent:
            autoencoder = find_autoencoder(options.vae, checkpoint, options.run)
            recipe = for_latents(recipe, autoencoder)
        try:
            folder = run_training(recipe, options.run, autoencoder, parent, PICTURES)
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
    where = {"device": run.device, "precision": run.precision}
    if path is not None:
        path = find_checkpoint(path)
        load_checkpoint(path)  # says what is wrong with a path; its name may be none of a model
    parent = pipelines.load(path or PARENTS[model], **where)
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
    if processes.is_main():
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
                option = RENAMED.get((section, key), key)
                raise BookError(
                    f"--{option} {asked_values[section][key]} contradicts the checkpoint, which was trained with {value}: "
                    f"leave out --{option} to continue, or --resume to begin anew"
                )
