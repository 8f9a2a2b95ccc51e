"""`diffusion-book generate MODEL`: pictures, and the way that each took from the noise."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book.cli.options import ModelOptions
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.configs import Recipe
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.request import Request
from diffusion_book.system import processes
from diffusion_book.system.devices import prepare_device, resolve_device
from diffusion_book.system.errors import BookError, check_range, choose
from diffusion_book.system.files import check_folder, timestamped_folder
from diffusion_book.system.streams import say_once
from diffusion_book.viz.outputs import FORMATS, Drawn, check_fits, write_pictures
from diffusion_book.viz.strips import denoising_strip

FRAMES = 11  # stills on the way from noise to picture
MOVIE_FRAMES = 31  # of them in an animation
MANY = 100  # pictures; a folder of files for each of more must be asked for

MODES = ("ddpm", "ddim")


def main(model: str, options: Any) -> int:
    """Run the command."""
    check_range(options, "nrow", 1, prefix="--")
    chosen, options = options.format, dataclasses.replace(options, format=format_of(options))
    choose("mode", getattr(options, "mode", "ddim"), dict.fromkeys(MODES))
    with processes.together(options.model.device) as device:
        options = dataclasses.replace(options, model=dataclasses.replace(options.model, device=device))
        images = generate(load_model(model, options.model), options)
    if images is None:
        return 0
    if chosen is None and options.format == "npz":
        notice = f"{options.num_samples:,} pictures go into one file; --format pdf makes a folder of files for each"
        say_once(f"notice: {notice}")
    folder = timestamped_folder(options.output_dir, model)
    try:
        write_pictures(folder, images, options.format, options.nrow, options.grid_only)
    except KeyboardInterrupt:
        print(f"{folder} holds a part of the pictures", file=sys.stderr)
        raise
    print(folder)
    return 0


def format_of(options: Any) -> str:
    """The format that is asked for; where none is, the files that so many pictures do not drown in."""
    if options.format is not None:
        choose("format", options.format, FORMATS)
        return options.format
    if options.num_samples <= MANY or options.grid_only:
        return "pdf"
    return "npz"


def generate(pipe: Pipeline, options: Any) -> Drawn | None:
    """Draw what is asked for; None on all processes but the main one.

    Raises:
        BookError: it cannot be done.
    """
    check_fits(options.format, max(1, options.num_samples), options.nrow, pipe.recipe.training.image_size)
    request = request_of(pipe, options)
    part = processes.part_of_samples(len(request), request.batch_size)
    check_folder(options.output_dir)
    times, stills = draw(pipe, request.pick(part), MOVIE_FRAMES if options.format == "webp" else FRAMES)
    stills = processes.collect(stills)
    classes = tuple(pipe.recipe.class_names) if request.labels is not None else ()
    return None if stills is None else Drawn(times, stills, request.labels, classes)


def request_of(pipe: Pipeline, options: Any) -> Request:
    """What these options ask the model for.

    Raises:
        BookError: it cannot be drawn.
    """
    settings = {"seed": options.seed, "eta": getattr(options, "eta", 0.0), "batch_size": options.model.batch_size}
    if hasattr(options, "mode"):
        settings["sampler"] = options.mode
        settings["steps"] = pipe.recipe.diffusion.timesteps if options.mode == "ddpm" else options.ddim_steps
    else:
        settings["sampler"], settings["steps"] = options.sampler, options.sampling_steps
    if hasattr(options, "class_label"):
        label = options.class_label
        settings["labels"] = None if label is None else class_number(pipe.recipe, label)
        settings["guidance_scale"] = options.guidance_scale
    return pipe.ask(options.num_samples, **settings)


def class_number(recipe: Recipe, word: str) -> int:
    """The number of a class, by its name or its number; whether there is such a number, the model says.

    Raises:
        BookError: neither.
    """
    names = recipe.class_names
    if word in names:
        return names.index(word)
    try:
        return int(word)
    except ValueError:
        known = f"the classes {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}" if names else "no classes"
        raise BookError(f"--class_label is '{word:.60}': '{recipe.model}' knows {known}") from None


def load_model(model: str, options: ModelOptions) -> Pipeline | Autoencoder:
    """The model with its shipped weights, or with those of a checkpoint.

    Raises:
        BookError: the checkpoint is missing, damaged or another model's; no such device.
    """
    prepare_device(resolve_device(options.device))
    run_on = {"device": options.device, "precision": options.precision}
    return pipelines.load(options.checkpoint or model, model=model, dataset=options.dataset, vae=options.vae, **run_on)


def draw(pipe: Pipeline, request: Request, frames: int = FRAMES) -> tuple[list[float], Tensor]:
    """Sample, and keep some stills of the way.

    Returns:
        Their times, from 1 to 0, and the stills (B, frames, 1, 28, 28) in [-1, 1].
    """
    steps, batches = request.steps, request.batches()
    kept = set(torch.linspace(0, steps, min(frames, steps + 1)).round().long().tolist())
    parts = []
    description = f"{request.sampler}, {steps} steps"
    with tqdm(
        total=steps * len(batches), desc=description, unit="step", disable=processes.no_bar(), dynamic_ncols=True
    ) as bar:
        for batch in batches:
            chosen = []
            for number, state in enumerate(pipe.walk(batch)):
                bar.update(number > 0)
                if number in kept:
                    chosen.append(state)
            times, stills = denoising_strip(chosen, pipe, frames=len(chosen))
            parts.append(stills)
    return times, torch.cat(parts)
