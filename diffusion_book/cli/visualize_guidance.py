"""`diffusion-book visualize guidance`: every digit at every guidance scale, and what the scale buys and costs."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffusion_book.cli.generate import ModelOptions, load_model
from diffusion_book.evaluation.features import DIGITS
from diffusion_book.evaluation.measures import random_labels, real_indices
from diffusion_book.evaluation.sweep import COLUMNS, ScaleMeasures, measure_scale, sweep_table
from diffusion_book.guidance import check_guidance
from diffusion_book.models.pipelines import Pipeline, list_models
from diffusion_book.models.sampling import sweep
from diffusion_book.samplers import check_eta, sample_generators, time_grid
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import make_folder, timestamped_folder, write_text, write_whole
from diffusion_book.system.progress import progress_bar
from diffusion_book.viz.guidance import plot_against_scale
from diffusion_book.viz.sweep import show_cells

MODELS = {"ldm-concat": "concat_checkpoint", "ldm-cross-attention": "cross_attention_checkpoint"}
"""model -> the option that names its checkpoint"""


@dataclass(frozen=True)
class Guidance:
    """Options of `visualize guidance`."""

    concat_checkpoint: Path | None = None
    """.pt file or experiment folder of an ldm-concat; given alone, that model alone is drawn"""
    cross_attention_checkpoint: Path | None = None
    """the same of an ldm-cross-attention; with neither, the weights that come with the book"""
    vae: Path | None = None
    """the VAE they were trained with. Not needed: checkpoints bring their own"""
    guidance_scales: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
    """one column each: 0 = the class is not told, 1 = as trained, more = clearer and less varied"""
    samples_per_cell: int = 4
    """pictures of each digit at each scale"""
    sampling_steps: int = 50
    """steps of ddim, 1 to the training's timesteps"""
    eta: float = 0.0
    """share of fresh noise in ddim, 0 to 1"""
    seed: int = 0
    """of the noise; a row's pictures grow from the same noise at every scale"""
    num_measured: int = 500
    """pictures measured at each scale, 20 to 60,000; 0 = draw without measuring"""
    output_dir: Path = Path("visualizations")
    """folder for the folder of pictures"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""


def draw_guidance(options: Guidance) -> Path:
    """Fill a folder with the grid of pictures, and with what was measured at each scale.

    Raises:
        BookError: an option that cannot be followed.
    """
    check(options)
    pipes = load_pipes(options)
    for pipe in pipes.values():
        time_grid(options.sampling_steps, pipe.recipe.diffusion.timesteps)
    if len({pipe.num_classes for pipe in pipes.values()}) > 1:
        raise BookError("the two models know different numbers of classes: draw them one by one")
    make_folder(options.output_dir)
    folder = timestamped_folder(options.output_dir, "guidance")
    panels = {model: draw_cells(model, pipe, options) for model, pipe in pipes.items()}
    rows = [str(label) for label in range(next(iter(pipes.values())).num_classes)]
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
    for scale in options.guidance_scales:
        check_guidance(scale)
    if options.samples_per_cell < 1:
        raise BookError(f"--samples_per_cell is {options.samples_per_cell}: it must be at least 1")
    if options.num_measured:
        if options.num_measured < 20:
            raise BookError(f"--num_measured is {options.num_measured}: it must be at least 20, or 0 for none")
        real_indices(options.num_measured)
    check_eta(options.eta)
    sample_generators(options.seed, range(1))


def load_pipes(options: Guidance) -> dict[str, Pipeline]:
    """The models that the options name: those with a checkpoint, or else all that come with the book.

    Raises:
        BookError: there are none, or a checkpoint is missing, damaged or another model's.
    """
    paths = {model: getattr(options, name) for model, name in MODELS.items()}
    given = {model: path for model, path in paths.items() if path is not None}
    chosen = given or {model: None for model in MODELS if model in list_models()}
    if not chosen:
        raise BookError("the book has no weights of a model with classes here: give --concat_checkpoint")
    where = {"vae": options.vae, "device": options.device, "precision": options.precision}
    return {model: load_model(model, ModelOptions(path, **where)) for model, path in chosen.items()}


def draw_cells(model: str, pipe: Pipeline, options: Guidance) -> Tensor:
    """All pictures of the grid as one batch: (classes, scales, samples_per_cell, 1, 28, 28)."""
    labels = [label for label in range(pipe.num_classes) for _ in range(options.samples_per_cell)]
    with progress_bar(f"{model}, pictures") as bar:
        drawn = sweep(
            pipe,
            labels,
            options.guidance_scales,
            steps=options.sampling_steps,
            seed=options.seed,
            eta=options.eta,
            callback=bar.advance,
        )
    # (classes * K, scales, ...) -> (classes, scales, K, ...)
    return drawn.unflatten(0, (pipe.num_classes, options.samples_per_cell)).transpose(1, 2)


def measured(model: str, pipe: Pipeline, options: Guidance) -> list[ScaleMeasures]:
    """Figures for every scale, of pictures that grow from the same noise at each."""
    found, labels = [], random_labels(options.num_measured, pipe.num_classes)
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
        found.append(measure_scale(images, labels, scale))
    return found


def write_measures(folder: Path, sweeps: dict[str, list[ScaleMeasures]], options: Guidance) -> None:
    """Print the figures, and write them as text, as JSON and as a plot."""
    text = sweep_table(sweeps)
    print(text)
    write_text(folder / "measures.txt", text + "\n")
    asked = dataclasses.asdict(options)
    setting = {name: asked[name] for name in ("sampling_steps", "eta", "seed", "num_measured")}
    rows = {model: [row.to_dict() for row in found] for model, found in sweeps.items()}
    write_text(folder / "measures.json", json.dumps({"setting": setting, "models": rows}, indent=2) + "\n")
    panels = {
        name: {model: [getattr(row, key) for row in found] for model, found in sweeps.items()}
        for name, key, *_ in COLUMNS
    }
    first = next(iter(sweeps.values()))[0]
    real = {name: getattr(first, key) for name, _, key, _ in COLUMNS if key}
    figure = plot_against_scale(options.guidance_scales, panels, real, log=("cFID",))
    write_whole(folder / "measures.png", figure.savefig)
