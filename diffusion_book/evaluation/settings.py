"""How a model is asked for the pictures that are measured, and what is measured of them: one entry of a card."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from torch import Tensor

from diffusion_book.evaluation.features import DIGITS
from diffusion_book.evaluation.measures import measure, random_labels, real_indices
from diffusion_book.evaluation.scoreboard import SETTING, figures
from diffusion_book.models.pipelines import BATCH_SIZE, Pipeline
from diffusion_book.samplers import SAMPLERS, check_eta, sample_generators, time_grid
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.progress import progress_bar


@dataclass(frozen=True)
class Setting:
    """How the samples are drawn."""

    sampler: str = "ddim"
    """ddpm, ddim, euler, midpoint, heun or dpm++"""
    steps: int = 50
    """of the sampler, 1 to the training's timesteps"""
    eta: float = 0.0
    """share of fresh noise in ddim, 0 to 1"""
    seed: int = 0
    """of the noise"""
    num_samples: int = 10_000
    """samples, 10 to 60,000"""


@dataclass(frozen=True)
class ClassSetting(Setting):
    """How the samples of a model with classes are drawn: digits at random, in MNIST's proportions."""

    guidance_scale: float = 1.0
    """how strongly they are pushed towards their class; 1 = as trained"""


def check(pipe: Pipeline, setting: Setting) -> None:
    """Refuse a setting that cannot be drawn or measured, before the long work begins.

    Raises:
        BookError: it cannot.
    """
    choose("sampler", setting.sampler, SAMPLERS)
    time_grid(setting.steps, pipe.recipe.diffusion.timesteps)
    check_eta(setting.eta)
    sample_generators(setting.seed, range(1))
    real_indices(setting.num_samples)
    pipe.ask(range(1), guidance_scale=getattr(setting, "guidance_scale", None))
    dataset = pipe.recipe.training.dataset
    if dataset not in DIGITS:
        raise BookError(f"this model draws {dataset}, and the measures know digits alone: give a model of digits")


def evaluate(pipe: Pipeline, setting: Setting, batch_size: int = BATCH_SIZE) -> tuple[Tensor, dict] | None:
    """Draw samples with a progress bar and measure them.

    Returns:
        The samples (N, 1, 28, 28), and an entry for the list "metrics" of a card: the setting, the
        measures, and the speed. Of several processes, which draw together, the main one measures; the others give None.
    """
    part = processes.part_of_samples(setting.num_samples, batch_size)
    began = time.perf_counter()
    # Asked for other shares of the digits than the data's, a perfect model would look bad; for exact ones, too good.
    labels = random_labels(setting.num_samples, pipe.num_classes) if pipe.num_classes else None
    mine = {
        **asdict(setting),
        "num_samples": len(part),
        "first": part.start,
        "labels": None if labels is None else labels[part.start : part.stop],
        "batch_size": batch_size,
    }
    with progress_bar(f"{setting.sampler}, {setting.steps} steps") as bar:
        images = processes.collect(pipe.sample(**mine, callback=bar.advance))
    if images is None:
        return None
    seconds = time.perf_counter() - began
    measures = measure(images, labels).to_dict()
    return images, {**asdict(setting), **measures, "images_per_second": round(len(images) / seconds, 2)}


def find_entry(card: dict, entry: dict) -> dict | None:
    """What a card says of the same setting as `entry`'s; None where it is silent."""
    found = (each for each in figures(card) if all(each.get(key) == entry.get(key) for key in SETTING))
    return next(found, None)
