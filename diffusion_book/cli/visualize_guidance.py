"""`diffusion-book visualize guidance`: every digit at every guidance scale, and what the scale buys and costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from torch import Tensor

from diffusion_book.cli.generate import load_model
from diffusion_book.cli.options import Guidance, ModelOptions
from diffusion_book.evaluation.features import DIGITS
from diffusion_book.evaluation.measures import random_labels, real_indices
from diffusion_book.evaluation.sweep import COLUMNS, ScaleMeasures, measure_scale, sweep_table
from diffusion_book.models.pipelines import Pipeline, list_models
from diffusion_book.models.request import Request
from diffusion_book.models.sampling import sweep_request
from diffusion_book.system.errors import BookError, check_range
from diffusion_book.system.files import check_folder, timestamped_folder, write_text, write_whole
from diffusion_book.system.progress import progress_bar
from diffusion_book.viz.guidance import plot_against_scale
from diffusion_book.viz.sweep import show_cells

CHECKPOINTS = {"ldm-concat": "concat_checkpoint", "ldm-cross-attention": "cross_attention_checkpoint"}
"""model -> the option that names its checkpoint"""


def draw_guidance(options: Guidance) -> Path:
    """Fill a folder with the grid of pictures, and with what was measured at each scale.

    Raises:
        BookError: an option that cannot be followed.
    """
    check(options)
    pipes = load_pipes(options)
    requests = {model: request_of(pipe, options) for model, pipe in pipes.items()}
    if len({tuple(pipe.recipe.class_names) for pipe in pipes.values()}) > 1:
        raise BookError("the two models know different classes: draw them one by one")
    check_folder(options.output_dir)
    folder = timestamped_folder(options.output_dir, "guidance")
    panels = {model: draw_cells(model, pipe, requests[model], options) for model, pipe in pipes.items()}
    rows = next(iter(pipes.values())).recipe.class_names
    write_whole(folder / "guidance.png", show_cells(panels, rows, options.guidance_scales).savefig)
    known = {model: pipe for model, pipe in pipes.items() if pipe.recipe.training.dataset in DIGITS}
    for model in set(pipes) - set(known):
        print(f"{model} draws no digits, and the classifiers know nothing else: not measured")
    if options.num_measured and known:
        write_measures(folder, {model: measured(model, pipe, options) for model, pipe in known.items()}, options)
    return folder


def check(options: Guidance) -> None:
    """Refuse what cannot be done before the long work begins.

    Raises:
        BookError: it cannot.
    """
    if not options.guidance_scales:
        raise BookError("--guidance_scales is empty: give one number or more, such as 0 1 3")
    check_range(options, "samples_per_cell", 1, prefix="--")
    if options.num_measured:
        if options.num_measured < 20:
            raise BookError(f"--num_measured is {options.num_measured}: it must be at least 20, or 0 for none")
        real_indices(options.num_measured)


def load_pipes(options: Guidance) -> dict[str, Pipeline]:
    """The models that the options name: those with a checkpoint, or else all that come with the book.

    Raises:
        BookError: there are none, or a checkpoint is missing, damaged or another model's.
    """
    paths = {model: getattr(options, name) for model, name in CHECKPOINTS.items()}
    given = {model: path for model, path in paths.items() if path is not None}
    chosen = given or {model: None for model in CHECKPOINTS if model in list_models()}
    if not chosen:
        raise BookError("the book has no weights of a model with classes here: give --concat_checkpoint")
    run_on = {"vae": options.vae, "device": options.device, "precision": options.precision}
    return {model: load_model(model, ModelOptions(path, **run_on)) for model, path in chosen.items()}


def request_of(pipe: Pipeline, options: Guidance) -> Request:
    """All pictures of the grid: for each class so many rows, in each row every scale.

    Raises:
        BookError: they cannot be drawn.
    """
    labels = [label for label in range(pipe.num_classes) for _ in range(options.samples_per_cell)]
    settings = {"steps": options.sampling_steps, "seed": options.seed, "eta": options.eta}
    return sweep_request(pipe, labels, options.guidance_scales, **settings)


def draw_cells(model: str, pipe: Pipeline, request: Request, options: Guidance) -> Tensor:
    """The pictures of the grid: (classes, scales, samples_per_cell, 1, 28, 28)."""
    with progress_bar(f"{model}, pictures") as bar:
        drawn = pipe.draw(request, bar.advance)
    # (classes * K * scales, ...) -> (classes, scales, K, ...)
    sizes = pipe.num_classes, options.samples_per_cell, len(options.guidance_scales)
    return drawn.unflatten(0, sizes).transpose(1, 2)


def measured(model: str, pipe: Pipeline, options: Guidance) -> list[ScaleMeasures]:
    """Figures for every scale, of pictures that grow from the same noise at each."""
    sweep, labels = [], random_labels(options.num_measured, pipe.num_classes)
    for number, scale in enumerate(options.guidance_scales, start=1):
        with progress_bar(f"{model}, scale {scale:g} ({number} of {len(options.guidance_scales)})") as bar:
            images = pipe.sample(
                options.num_measured,
                labels=labels,
                guidance_scale=scale,
                steps=options.sampling_steps,
                eta=options.eta,
                seed=options.seed,
                callback=bar.advance,
            )
        sweep.append(measure_scale(images, labels, scale))
    return sweep


def write_measures(folder: Path, sweeps: dict[str, list[ScaleMeasures]], options: Guidance) -> None:
    """Print the figures, and write them as text, as JSON and as a plot."""
    text = sweep_table(sweeps)
    print(text)
    write_text(folder / "measures.txt", text + "\n")
    values = dataclasses.asdict(options)
    setting = {name: values[name] for name in ("sampling_steps", "eta", "seed", "num_measured")}
    rows = {model: [row.to_dict() for row in sweep] for model, sweep in sweeps.items()}
    write_text(folder / "measures.json", json.dumps({"setting": setting, "models": rows}, indent=2) + "\n")
    panels = {
        name: {model: [getattr(row, key) for row in sweep] for model, sweep in sweeps.items()}
        for name, key, *_ in COLUMNS
    }
    first = next(iter(sweeps.values()))[0]
    real = {name: getattr(first, key) for name, _, key, _ in COLUMNS if key}
    figure = plot_against_scale(options.guidance_scales, panels, real, log=("cFID",))
    write_whole(folder / "measures.png", figure.savefig)
