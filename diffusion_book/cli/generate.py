"""`diffusion-book generate MODEL`: pictures, and the way that each took from the noise."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book.cli.options import ModelOptions
from diffusion_book.data import CROP_SIZE
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.request import Request
from diffusion_book.system import processes
from diffusion_book.system.devices import prepare_device, resolve_device
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import check_folder, timestamped_folder, write_whole
from diffusion_book.viz.grids import MOST_PIXELS, SCALE, enlarged, grid, save_grid
from diffusion_book.viz.strips import denoising_strip

FRAMES = 11  # stills on the way from noise to picture
ROWS_A_PAGE = 200
PIXELS_AN_INCH = 36  # of the digits: one is 2 cm wide on paper


MODES = ("ddpm", "ddim")


def main(model: str, options: Any) -> int:
    """Run the command."""
    if options.nrow < 1:
        raise BookError(f"--nrow is {options.nrow}: it must be at least 1")
    check_columns(min(options.nrow, max(1, options.num_samples)))
    choose("mode", getattr(options, "mode", "ddim"), dict.fromkeys(MODES))
    with processes.together(options.model.device) as device:
        options = dataclasses.replace(options, model=dataclasses.replace(options.model, device=device))
        found = generate(load_model(model, options.model), options)
    if found is None:
        return 0
    folder = timestamped_folder(options.output_dir, model)
    try:
        write_samples(folder, *found, options.nrow, options.grid_only)
    except KeyboardInterrupt:
        print(f"{folder} holds a part of the pictures", file=sys.stderr)
        raise
    print(folder)
    return 0


def generate(pipe: Pipeline, options: Any) -> tuple[list[float], Tensor] | None:
    """Draw what is asked for; None on all processes but the main one, which has what `draw` gives.

    Raises:
        BookError: it cannot be done.
    """
    request = request_of(pipe, options)
    part = processes.part_of_samples(len(request), request.batch_size)
    check_folder(options.output_dir)
    times, stills = draw(pipe, request.pick(part))
    stills = processes.collect(stills)
    return None if stills is None else (times, stills)


def request_of(pipe: Pipeline, options: Any) -> Request:
    """What these options ask the model for.

    Raises:
        BookError: it cannot be drawn.
    """
    asked = {"seed": options.seed, "eta": getattr(options, "eta", 0.0), "batch_size": options.model.batch_size}
    if hasattr(options, "mode"):
        asked["sampler"] = options.mode
        asked["steps"] = pipe.recipe.diffusion.timesteps if options.mode == "ddpm" else options.ddim_steps
    else:
        asked["sampler"], asked["steps"] = options.sampler, options.sampling_steps
    if hasattr(options, "class_label"):
        asked["labels"], asked["guidance_scale"] = options.class_label, options.guidance_scale
    return pipe.ask(options.num_samples, **asked)


def load_model(model: str, options: ModelOptions) -> Pipeline | Autoencoder:
    """The model with its shipped weights, or with those of a checkpoint.

    Raises:
        BookError: the checkpoint is missing, damaged or another model's; no such device.
    """
    prepare_device(resolve_device(options.device))
    where = {"device": options.device, "precision": options.precision}
    return pipelines.load(options.checkpoint or model, model=model, vae=options.vae, **where)


def draw(pipe: Pipeline, request: Request) -> tuple[list[float], Tensor]:
    """Sample, and keep some stills of the way.

    Returns:
        Their times, from 1 to 0, and the stills (B, frames, 1, 28, 28) in [-1, 1].
    """
    steps, batches = request.steps, request.batches()
    kept = set(torch.linspace(0, steps, min(FRAMES, steps + 1)).round().long().tolist())
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


def write_samples(folder: Path, times: list[float], stills: Tensor, nrow: int, grid_only: bool = False) -> None:
    """The grid, and a folder for each sample with its picture, its strip and its single stills."""
    save_grid(stills[:, -1], folder / "grid.png", columns=nrow)
    save_pdf(stills[:, -1], folder / "grid.pdf", columns=nrow)
    if grid_only:
        return
    for number, row in enumerate(tqdm(stills, desc="writing", unit="sample", disable=None, dynamic_ncols=True)):
        sample = folder / f"sample_{number:03d}"
        save_pdf(row[-1:], sample / "final.pdf")
        save_pdf(row, sample / "denoising_strip.pdf", columns=len(row))
        for step, (t, still) in enumerate(zip(times, row, strict=True)):
            save_pdf(still[None], sample / "denoising_steps" / f"step_{step:02d}_t{t:.3f}.pdf")


def save_pdf(images: Tensor, path: Path, columns: int = 8) -> Path:
    """Write pictures (N, 1, H, W) in [-1, 1] in rows to a PDF, whole or not at all; many rows take several pages."""
    padding = 2 if len(images) > 1 else 0
    pages = [grid(part, columns, padding) for part in images.split(columns * ROWS_A_PAGE)]
    # A page holds a JPEG, whose pixels have an end: a very wide one gets smaller blocks.
    scale = max(1, min(SCALE, MOST_PIXELS[".pdf"] // pages[0].shape[1]))
    first, *others = (enlarged(page, scale) for page in pages)
    options = {"quality": 95, "resolution": scale * PIXELS_AN_INCH, "save_all": True, "append_images": others}
    return write_whole(path, lambda temporary: first.save(temporary, "PDF", **options))


def check_columns(nrow: int) -> None:
    """Refuse rows that no page can hold.

    Raises:
        BookError: they are too wide.
    """
    most = MOST_PIXELS[".pdf"] // (CROP_SIZE + 2) - 1
    if nrow > most:
        raise BookError(f"--nrow is {nrow}: a page of the PDF holds at most {most:,} pictures a row")
