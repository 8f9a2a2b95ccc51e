"""`diffusion-book diagnose [MODEL]`: find out what is wrong with a trained model, in plain words and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from diffusion_book import data
from diffusion_book.cli.generate import ModelOptions, load_model
from diffusion_book.cli.main import HELP, parse
from diffusion_book.evaluation import diagnosis
from diffusion_book.evaluation.diagnosis import Batch, Way
from diffusion_book.evaluation.features import DIGITS
from diffusion_book.evaluation.findings import ATTENTION, BRANCHES, DWARFED, Diagnosis, findings, report
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.samplers import sample_generators, time_grid
from diffusion_book.system.errors import BookError, NotFinite, choose
from diffusion_book.system.files import make_folder, timestamped_folder, write_text, write_whole
from diffusion_book.system.progress import progress_bar
from diffusion_book.viz.diagnosis import plot_bars, plot_branches, plot_distances, plot_gradients
from diffusion_book.viz.grids import save_grid, show_rows

MODELS = ("ldm-concat", "ldm-cross-attention", "ddpm", "ldm", "rf", "latent-rf", "latent-rf-class")
FEWEST = 128  # training pictures: in fewer a class, or a hidden label, may be missing by chance, and look untrained
SHOWN = 10  # pictures of the one class that is picked


@dataclass(frozen=True)
class Diagnose:
    """Options of `diagnose`."""

    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["--unet-checkpoint"])] = None
    """.pt file or experiment folder; without one, the weights that come with the book"""
    vae: Annotated[Path | None, tyro.conf.arg(aliases=["--vae-checkpoint"])] = None
    """for a latent model: the VAE it was trained with. Not needed: checkpoints bring their own"""
    class_label: int | None = None
    """the class whose samples are shown, for a model with classes; without it 7, or the last where there are fewer"""
    dataset: str | None = None
    """auto, mnist, fashion-mnist, kmnist or digits; without it, the data set the model was trained on"""
    num_samples: int = 50
    """samples drawn in each way and judged, at least 10; and 10 more of the class shown"""
    sampling_steps: int = 50
    """steps of ddim, 1 to the training's timesteps"""
    ddpm_steps: int | None = None
    """steps of ddpm; without it, the training's timesteps"""
    num_pictures: int = 512
    """training pictures that loss, gradient and latents are measured on, at least 128: with fewer a class may be absent"""
    seed: int = 0
    """of all that is random"""
    output_dir: Path = Path("debug_output")
    """folder for the folder of pictures and the report"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16; loss and gradient are always measured in fp32"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = list(arguments)
    if set(arguments) & set(HELP):
        print(f"usage: diffusion-book diagnose [MODEL] ...\n\nmodels: {', '.join(MODELS)} (default {MODELS[0]})\n")
    model = arguments.pop(0) if arguments and not arguments[0].startswith("-") else MODELS[0]
    choose("model", model, dict.fromkeys(MODELS))
    about = "Measure a model where models fail, and say in plain words what is healthy, what is not, and what to try."
    options = parse(Diagnose, arguments, f"diagnose {model}", about, Diagnose())
    print(diagnose(model, options))
    return 0


def diagnose(model: str, options: Diagnose) -> Path:
    """Measure a model, and fill a folder with pictures and a report.

    Raises:
        BookError: an option that cannot be followed.
    """
    if options.num_samples < SHOWN:
        raise BookError(f"--num_samples is {options.num_samples}: it must be at least {SHOWN}")
    if options.num_pictures < FEWEST:
        raise BookError(f"--num_pictures is {options.num_pictures}: it must be at least {FEWEST}")
    sample_generators(options.seed, range(1))
    where = {"vae": options.vae, "device": options.device, "precision": options.precision}
    pipe = load_model(model, ModelOptions(options.checkpoint, **where))
    for steps in (options.sampling_steps, ddpm_steps(pipe, options)):
        time_grid(steps, pipe.recipe.diffusion.timesteps)
    shown = class_shown(pipe, options.class_label)
    dataset = data.load(options.dataset or pipe.recipe.training.dataset)
    make_folder(options.output_dir)
    folder = timestamped_folder(options.output_dir, f"diagnose-{model}")
    measured = Diagnosis(broken=diagnosis.broken_weights(pipe.network))
    if not measured.broken:
        batch = diagnosis.training_batch(pipe, dataset, options.num_pictures, options.seed)
        measured = measure(pipe, batch, options, shown)
        ways, grids = draw(pipe, options, shown)
        measured = dataclasses.replace(measured, ways=ways)
        draw_pictures(folder, measured, grids)
    found = findings(measured)
    text = report(f"Diagnosis of {model}, {options.checkpoint or 'the weights that come with the book'}", found)
    values = {"model": model, "findings": [dataclasses.asdict(each) for each in found], "measured": measured.to_dict()}
    write_text(folder / "report.txt", text + "\n")
    write_text(folder / "report.json", json.dumps(values, indent=2) + "\n")
    print(text)
    return folder


def ddpm_steps(pipe: Pipeline, options: Diagnose) -> int:
    """Steps of DDPM: those asked for, or all."""
    return pipe.recipe.diffusion.timesteps if options.ddpm_steps is None else options.ddpm_steps


def class_shown(pipe: Pipeline, label: int | None) -> int | None:
    """The class whose samples are shown; None where there are no classes.

    Raises:
        BookError: a class that the model does not know.
    """
    if label is None:
        return min(7, pipe.num_classes - 1) if pipe.num_classes else None
    if not 0 <= label < max(1, pipe.num_classes):
        raise BookError(f"--class_label is {label}: the model knows the classes 0 to {pipe.num_classes - 1}")
    pipe.ask(range(1), label)  # says where there are no classes
    return label


def measure(pipe: Pipeline, batch: Batch, options: Diagnose, shown: int | None) -> Diagnosis:
    """All that needs no finished samples."""
    seed = options.seed
    looks = {
        "losses": lambda: diagnosis.losses(pipe, batch, seed),
        "gradients": lambda: diagnosis.gradient_norms(pipe, batch, seed),
    }
    if pipe.autoencoder is not None:
        looks["latents"] = lambda: diagnosis.latent_scale(pipe, batch)
    if pipe.num_classes:
        labels = torch.arange(max(SHOWN, pipe.num_classes)) % pipe.num_classes
        looks["embeddings"] = lambda: diagnosis.embeddings(pipe)
        looks["entropy"] = lambda: diagnosis.attention_entropy(pipe, batch, seed)
        looks["branches"] = lambda: diagnosis.branch_difference(pipe, labels, options.sampling_steps, seed)
    bar = tqdm(looks.items(), desc="measuring", disable=None, dynamic_ncols=True)
    return Diagnosis(**{name: look() for name, look in bar})


def draw(pipe: Pipeline, options: Diagnose, shown: int | None) -> tuple[dict[str, Way], dict[str, Tensor]]:
    """Samples in every way, from the same noise: name -> what was seen in them, and name -> the pictures.

    With classes, the first pictures are all of the class shown, and the others of all classes in turn.
    """
    labels, first = None, 0
    if shown is not None:
        first = SHOWN
        labels = torch.cat([torch.full((first,), shown), torch.arange(options.num_samples) % pipe.num_classes])
    digits = pipe.recipe.training.dataset in DIGITS
    ways, grids = {}, {}
    for name, way in diagnosis.ways_of(pipe, options.sampling_steps, ddpm_steps(pipe, options)).items():
        number = first + options.num_samples
        try:
            with progress_bar(name) as bar:
                images = pipe.sample(
                    number,
                    labels=labels,
                    guidance_scale=way.guidance_scale,
                    sampler=way.sampler,
                    steps=way.steps,
                    seed=options.seed,
                    callback=bar.advance,
                )
        except NotFinite:  # a finding, not an end
            images = torch.full((number, 1, data.CROP_SIZE, data.CROP_SIZE), torch.nan)
        ways[name] = diagnosis.judge(way, images, labels, first, digits)
        grids[name] = images
    return ways, grids


def draw_pictures(folder: Path, measured: Diagnosis, grids: dict[str, Tensor]) -> None:
    """A picture for each measurement that was made."""
    for name, images in grids.items():
        save_grid(images.nan_to_num(-1.0), folder / f"samples_{name.lower()}.png", columns=10)
    rows = {caption(name, measured.ways[name]): images[:SHOWN].nan_to_num(-1.0) for name, images in grids.items()}
    write_whole(folder / "samples.png", show_rows(rows, title="The same noise, drawn in every way").savefig)
    finite = [value for value in measured.gradients.values() if math.isfinite(value) and value > 0]
    limit = DWARFED * (statistics.median(finite) if finite else 1.0)
    write_whole(folder / "gradients.png", plot_gradients(measured.gradients, limit).savefig)
    if measured.embeddings is not None:
        number = len(measured.embeddings.norms) - 1
        names = [*map(str, range(number)), "none"]
        title = "Distances of the class embeddings"
        write_whole(folder / "embeddings.png", plot_distances(measured.embeddings.distances, names, title).savefig)
        norms = dict(zip(names, measured.embeddings.norms.tolist(), strict=True))
        write_whole(folder / "embedding_norms.png", plot_bars(norms, "norm of the class embedding").savefig)
    if measured.branches is not None:
        write_whole(folder / "branches.png", plot_branches(*measured.branches, BRANCHES).savefig)
    if measured.entropy:
        figure = plot_bars(measured.entropy, "entropy over log(tokens)", ATTENTION, high=1.0)
        write_whole(folder / "attention.png", figure.savefig)


def caption(name: str, way: Way) -> str:
    """How a row of pictures was drawn, in two lines."""
    guidance = "" if way.guidance_scale is None else f", w = {way.guidance_scale:g}"
    return f"{name}\n{way.steps} steps{guidance}"
