"""`diffusion-book generate MODEL`: pictures, and the way that each took from the noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffusion_book.cli.main import choose_model, parse
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import RECIPES
from diffusion_book.samplers import SAMPLERS, check_eta, sample_generators, time_grid
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import make_folder, timestamped_folder, write_whole
from diffusion_book.viz.grids import grid, save_grid
from diffusion_book.viz.strips import denoising_strip

FRAMES = 11  # stills on the way from noise to picture
SCALE = 8  # a pixel becomes one 8 x 8 block of the JPEG that a PDF holds, which keeps it exact


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, and where they run."""

    checkpoint: Path | None = None
    """.pt file or experiment folder; without one, the weights that come with the book"""
    vae: Path | None = None
    """for a latent model: the VAE it was trained with. Not needed: checkpoints bring their own"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    batch_size: int = pipelines.BATCH_SIZE
    """samples drawn at once"""


@dataclass(frozen=True)
class Samples:
    """How many pictures, and where they go."""

    num_samples: int = 16
    """pictures"""
    nrow: int = 4
    """pictures a row of the grid"""
    seed: int = 0
    """of the noise; the same seed draws the same pictures"""
    output_dir: Path = Path("generated_samples")
    """folder for the folder of pictures"""
    model: ModelOptions = field(default_factory=ModelOptions)


@dataclass(frozen=True)
class GenerateDiffusion(Samples):
    """Options of `generate` for a diffusion model without classes."""

    mode: str = "ddim"
    """ddpm (random, one step for each timestep of the training) or ddim (few steps)"""
    ddim_steps: int = 50
    """steps of ddim, 1 to the training's timesteps"""
    eta: float = 0.0
    """share of fresh noise in ddim, 0 to 1"""


@dataclass(frozen=True)
class ClassSamples(Samples):
    """How many pictures, and of which class."""

    class_label: int | None = None
    """the class to draw; without it, all classes in turn"""
    guidance_scale: float | None = None
    """how strongly pictures are pushed towards their class: 0 = the class is not told, 1 = as trained, more = clearer
    and less varied; without it, as the model's recipe says"""
    num_samples: int = 10
    """pictures; the default is one a class"""
    nrow: int = 10
    """pictures a row of the grid"""


@dataclass(frozen=True)
class GenerateClasses(ClassSamples):
    """Options of `generate` for a diffusion model with classes."""

    sampler: str = "ddim"
    """one of the samplers of the book: ddpm, ddim, euler, midpoint, heun, dpm++"""
    sampling_steps: int = 50
    """steps of the sampler, 1 to the training's timesteps"""
    eta: float = 0.0
    """share of fresh noise in ddim, 0 to 1"""


@dataclass(frozen=True)
class GenerateFlow(Samples):
    """Options of `generate` for a rectified flow without classes."""

    sampler: str = "midpoint"
    """euler (one evaluation of the network a step), midpoint or heun (two, and more exact); dpm++, ddim and ddpm work too"""
    sampling_steps: int = 50
    """steps of the sampler, 1 to the training's timesteps"""


@dataclass(frozen=True)
class GenerateClassFlow(GenerateClasses):
    """Options of `generate` for a rectified flow with classes."""

    sampler: str = "midpoint"
    """euler (one evaluation of the network a step), midpoint or heun (two, and more exact); dpm++, ddim and ddpm work too"""


@dataclass(frozen=True)
class GenerateOneStep(Samples):
    """Options of `generate` for a model that was distilled to a single step."""

    sampler: str = "euler"
    """euler; others ask at times that this model never saw"""
    sampling_steps: int = 1
    """steps of the sampler"""


@dataclass(frozen=True)
class GenerateClassOneStep(ClassSamples, GenerateOneStep):
    """Options of `generate` for a model with classes that was distilled to a single step, guidance included."""


MODELS = {
    "ddpm": GenerateDiffusion,
    "ldm": GenerateDiffusion,
    "ldm-concat": GenerateClasses,
    "ldm-cross-attention": GenerateClasses,
    "rf": GenerateFlow,
    "rf-reflow": GenerateFlow,
    "rf-one-step": GenerateOneStep,
    "latent-rf": GenerateFlow,
    "latent-rf-class": GenerateClassFlow,
    "latent-rf-class-one-step": GenerateClassOneStep,
}
MODES = ("ddpm", "ddim")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    model, kind, rest = choose_model(arguments, "generate", MODELS)
    if kind is None:
        return 0
    description = f"Draw pictures with '{model}': a grid, and for each picture a folder with its way from the noise."
    options = parse(kind, rest, f"generate {model}", description, kind())
    for name in ("num_samples", "nrow"):
        if getattr(options, name) < 1:
            raise BookError(f"--{name} is {getattr(options, name)}: it must be at least 1")
    pipelines.check_number(options.num_samples)
    choose("mode", getattr(options, "mode", "ddim"), dict.fromkeys(MODES))
    with processes.together(options.model.device) as device:
        options = dataclasses.replace(options, model=dataclasses.replace(options.model, device=device))
        found = generate(load_model(model, options.model), options)
    if found is None:
        return 0
    folder = timestamped_folder(options.output_dir, model)
    write_samples(folder, *found, options.nrow)
    print(folder)
    return 0


def generate(pipe: Pipeline, options: Samples) -> tuple[list[float], Tensor] | None:
    """Check what is asked for, and draw it; None on all processes but the main one, which has what `draw` gives.

    Raises:
        BookError: it cannot be done.
    """
    asked = how(pipe, options)
    # Refuse what cannot be done before the long work begins.
    choose("sampler", asked["sampler"], SAMPLERS)
    time_grid(asked["steps"], pipe.recipe.diffusion.timesteps)
    check_eta(asked["eta"])
    sample_generators(options.seed, range(1))
    pipe.ask(range(options.num_samples), asked.get("labels"), asked.get("guidance_scale"))
    part = processes.part_of_samples(options.num_samples, options.model.batch_size)
    make_folder(options.output_dir)
    times, stills = draw(pipe, options, asked, part)
    stills = processes.collect(stills)
    return None if stills is None else (times, stills)


def how(pipe: Pipeline, options: Samples) -> dict:
    """What these options ask `Pipeline.states` for, but for the indices."""
    asked = {"seed": options.seed, "eta": getattr(options, "eta", 0.0)}
    if isinstance(options, GenerateDiffusion):
        asked["sampler"] = options.mode
        asked["steps"] = pipe.recipe.diffusion.timesteps if options.mode == "ddpm" else options.ddim_steps
    else:
        asked["sampler"], asked["steps"] = options.sampler, options.sampling_steps
    if isinstance(options, ClassSamples):
        asked["labels"], asked["guidance_scale"] = options.class_label, options.guidance_scale
    return asked


def load_model(model: str, options: ModelOptions) -> Pipeline | Autoencoder:
    """The model with its shipped weights, or with those of a checkpoint.

    Raises:
        BookError: the checkpoint is missing, damaged or another model's; no such device.
    """
    if options.batch_size < 1:
        raise BookError(f"--batch_size is {options.batch_size}: it must be at least 1")
    where = {"device": options.device, "precision": options.precision}
    if options.vae is not None and not RECIPES[model].is_latent:
        raise BookError(f"'{model}' works without a VAE: leave out --vae")
    path = options.checkpoint
    if path is not None:
        path = find_checkpoint(path)
        load_checkpoint(path, model)  # this model and no other
    vae = options.vae
    if vae is not None:
        vae = find_checkpoint(vae)
        load_checkpoint(vae)  # says what is wrong with a path; its name may be none of a model
    return pipelines.load(path or model, vae=vae, **where)


def draw(pipe: Pipeline, options: Samples, asked: dict, indices: range) -> tuple[list[float], Tensor]:
    """Sample, and keep some stills of the way.

    Args:
        asked: from `how`.
        indices: of the samples, a range without gaps.

    Returns:
        Their times, from 1 to 0, and the stills (B, frames, 1, 28, 28) in [-1, 1].
    """
    steps, batch_size = asked["steps"], options.model.batch_size
    kept = set(torch.linspace(0, steps, min(FRAMES, steps + 1)).round().long().tolist())
    starts = indices[::batch_size]
    parts = []
    description = f"{asked['sampler']}, {steps} steps"
    with tqdm(
        total=steps * len(starts), desc=description, unit="step", disable=processes.no_bar(), dynamic_ncols=True
    ) as bar:
        for start in starts:
            states = pipe.states(range(start, min(start + batch_size, indices.stop)), **asked)
            chosen = []
            for number, state in enumerate(states):
                bar.update(number > 0)
                if number in kept:
                    chosen.append(state)
            times, stills = denoising_strip(chosen, pipe, frames=len(chosen))
            parts.append(stills)
    return times, torch.cat(parts)


def write_samples(folder: Path, times: list[float], stills: Tensor, nrow: int) -> None:
    """The grid, and a folder for each sample with its picture, its strip and its single stills."""
    save_grid(stills[:, -1], folder / "grid.png", columns=nrow)
    save_pdf(stills[:, -1], folder / "grid.pdf", columns=nrow)
    for number, row in enumerate(tqdm(stills, desc="writing", unit="sample", disable=None, dynamic_ncols=True)):
        sample = folder / f"sample_{number:03d}"
        save_pdf(row[-1:], sample / "final.pdf")
        save_pdf(row, sample / "denoising_strip.pdf", columns=len(row))
        for step, (t, still) in enumerate(zip(times, row, strict=True)):
            save_pdf(still[None], sample / "denoising_steps" / f"step_{step:02d}_t{t:.3f}.pdf")


def save_pdf(images: Tensor, path: Path, columns: int = 8) -> Path:
    """Write pictures (N, 1, H, W) in [-1, 1] in rows to one PDF page, whole or not at all."""
    picture = Image.fromarray(grid(images, columns, padding=2 if len(images) > 1 else 0).numpy())
    picture = picture.resize((SCALE * picture.width, SCALE * picture.height), Image.Resampling.NEAREST)
    return write_whole(path, lambda temporary: picture.save(temporary, "PDF", quality=95))
