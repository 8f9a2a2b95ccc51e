"""How a model is asked for the pictures that are measured, and what is measured of them: one entry of a card."""

from __future__ import annotations

import time
from dataclasses import asdict

from torch import Tensor

from diffusion_book.evaluation.features import yardstick
from diffusion_book.evaluation.measures import measure, random_labels, real_indices
from diffusion_book.evaluation.scoreboard import SETTING, figures
from diffusion_book.models.configs import BATCH_SIZE, Setting
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.request import Request
from diffusion_book.models.weights import SETS
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.system.progress import progress_bar
from diffusion_book.system.streams import say


def request_of(pipe: Pipeline, setting: Setting, batch_size: int = BATCH_SIZE) -> Request:
    """What a setting asks a model for: classes in the proportions of the test set, where the model knows classes.

    Raises:
        BookError: it cannot be drawn or measured.
    """
    dataset = measured_by(pipe.recipe.training.dataset)
    real_indices(setting.num_samples, dataset=dataset)
    # Asked for other shares of the digits than the data's, a perfect model would look bad; for exact ones, too good.
    labels = random_labels(setting.num_samples, pipe.num_classes, dataset) if pipe.num_classes else None
    return pipe.ask(**asdict(setting), labels=labels, batch_size=batch_size)


def measured_by(dataset: str) -> str:
    """The data set whose classifiers and features measure a model of this one.

    Raises:
        BookError: there are none.
    """
    found = yardstick(dataset)
    if found is None:
        known = " and ".join(name for name in SETS if yardstick(name))
        raise BookError(f"this model draws {dataset}, and the measures know {known} alone: give a model of these")
    return found


def evaluate(pipe: Pipeline, setting: Setting) -> tuple[Tensor, dict] | None:
    """Draw samples with a progress bar and measure them. Returns and errors as in `draw_and_measure` and `request_of`."""
    return draw_and_measure(pipe, request_of(pipe, setting))


def draw_and_measure(pipe: Pipeline, request: Request) -> tuple[Tensor, dict] | None:
    """Draw the samples of a request with a progress bar and measure them.

    Returns:
        The samples (N, 1, 28, 28), and an entry for the list "metrics" of a card: the setting, the
        measures, and the speed. Of several processes, which draw together, the main one measures; the others give None.
    """
    part = processes.part_of_samples(len(request), request.batch_size)
    began = time.perf_counter()
    with progress_bar(f"{request.sampler}, {request.steps} steps") as bar:
        images = processes.collect(pipe.draw(request.pick(part), bar.advance))
    if images is None:
        return None
    seconds = time.perf_counter() - began
    setting = {name: getattr(request, name) for name in ("sampler", "steps", "eta", "seed")}
    setting["num_samples"] = len(request)
    if request.labels is not None:
        setting["guidance_scale"] = request.guidance_scale[0].item()
    say(f"measuring {len(images):,} samples ...")
    measures = measure(images, request.labels, measured_by(pipe.recipe.training.dataset)).to_dict()
    return images, {**setting, **measures, "images_per_second": round(len(images) / seconds, 2)}


def find_entry(card: dict, entry: dict) -> dict | None:
    """What a card says of the same setting as `entry`'s; None where it is silent."""
    matches = (each for each in figures(card) if all(each.get(key) == entry.get(key) for key in SETTING))
    return next(matches, None)
