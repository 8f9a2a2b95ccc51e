"""`diffusion-book diagnose [MODEL]`: find out what is wrong with a trained model, in plain words and pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book import data
from diffusion_book.cli.generate import class_number, load_model
from diffusion_book.cli.options import AUTOENCODERS, Diagnose, ModelOptions
from diffusion_book.elbo import latent_statistics
from diffusion_book.evaluation import diagnosis
from diffusion_book.evaluation.diagnosis import Batch, Way
from diffusion_book.evaluation.features import DIGITS
from diffusion_book.evaluation.findings import ATTENTION, BRANCHES, DWARFED, Diagnosis, findings, report
from diffusion_book.models import weights
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import Recipe
from diffusion_book.models.request import Request
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.system.errors import BookError, NotFinite, check_range
from diffusion_book.system.files import check_folder, timestamped_folder, write_text, write_whole
from diffusion_book.system.progress import progress_bar
from diffusion_book.training.datasets import pictures_of
from diffusion_book.viz.diagnosis import plot_branches, plot_distances, plot_gradients, plot_numbers
from diffusion_book.viz.grids import save_grid, show_rows

FEWEST = 128  # training pictures: in fewer a class, or a hidden label, may be missing by chance, and look untrained
SHOWN = 10  # pictures of the one class that is picked


def main(model: str, options: Diagnose) -> int:
    """Run the command."""
    print(diagnose(model, options))
    return 0


def diagnose(model: str, options: Diagnose) -> Path:
    """Measure a model, and fill a folder with pictures and a report.

    Raises:
        BookError: an option that cannot be followed.
    """
    check_range(options, "num_samples", SHOWN, prefix="--")
    check_range(options, "num_pictures", FEWEST, prefix="--")
    check_range(options, "seed", 0, prefix="--")
    if model in AUTOENCODERS:
        return diagnose_autoencoder(model, options)
    pipe = load_chosen(model, options)
    shown = class_shown(pipe, options.class_label)
    ways = diagnosis.ways_of(pipe, options.sampling_steps, ddpm_steps(pipe, options))
    requests = {name: request_of(pipe, way, options, shown) for name, way in ways.items()}
    dataset = load_data(options, pipe.recipe)
    check_folder(options.output_dir)
    folder = timestamped_folder(options.output_dir, f"diagnose-{model}")
    measured = Diagnosis(broken=diagnosis.broken_weights(pipe.network))
    if not measured.broken:
        batch = diagnosis.training_batch(pipe, dataset, options.num_pictures, options.seed)
        measured = measure_within(pipe, batch, options, shown)
        ways, grids = draw(pipe, ways, requests, 0 if shown is None else SHOWN)
        measured = dataclasses.replace(measured, ways=ways)
        draw_pictures(folder, measured, grids, pipe.recipe.class_names)
    return write_report(folder, model, options, measured)


def load_chosen(model: str, options: Diagnose) -> Pipeline | Autoencoder:
    """The model that the options name, where they want it: of the book's weights, those of the data set, if there are any."""
    learned = None if options.checkpoint else weights.set_of(model, options.dataset)
    run_on = {"vae": options.vae, "device": options.device, "precision": options.precision}
    return load_model(model, ModelOptions(options.checkpoint, learned, **run_on))


def load_data(options: Diagnose, recipe: Recipe) -> data.Dataset:
    """The data set that the options name, or the one that the model was trained on.

    Raises:
        BookError: it is not here.
    """
    try:
        return pictures_of(recipe, name=options.dataset)
    except BookError as error:
        if options.dataset is not None:
            raise
        raise BookError(f"{error}; or give --dataset digits, which is always here") from None


def write_report(folder: Path, model: str, options: Diagnose, measured: Diagnosis) -> Path:
    """Say what the measurements mean, and put it into the folder."""
    entries = findings(measured)
    text = report(f"Diagnosis of {model}, {options.checkpoint or 'the weights that come with the book'}", entries)
    values = {
        "model": model,
        "findings": [dataclasses.asdict(each) for each in entries],
        "measured": measured.to_dict(),
    }
    write_text(folder / "report.txt", text + "\n")
    write_text(folder / "report.json", json.dumps(values, indent=2) + "\n")
    print(text)
    return folder


def diagnose_autoencoder(model: str, options: Diagnose) -> Path:
    """Measure an autoencoder: its weights, its latents, and what it brings back."""
    autoencoder = load_chosen(model, options)
    dataset = load_data(options, autoencoder.recipe)
    check_folder(options.output_dir)
    folder = timestamped_folder(options.output_dir, f"diagnose-{model}")
    measured = Diagnosis(broken=diagnosis.broken_weights(autoencoder.network))
    if not measured.broken:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(options.seed))
        images, _ = dataset.batch(chosen[: options.num_pictures])
        posterior, restored = autoencoder.posterior(images), autoencoder.reconstruct(images)
        mean, std = latent_statistics(posterior)
        measured = Diagnosis(
            latents=(mean.tolist(), std.tolist()),
            told=diagnosis.share_told(posterior),
            restored=((restored - images).square().mean() / (images - images.mean(0)).square().mean()).item(),
        )
        save_grid(torch.stack([images[:SHOWN], restored[:SHOWN]]).flatten(0, 1), folder / "reconstructions.png", SHOWN)
    return write_report(folder, model, options, measured)


def ddpm_steps(pipe: Pipeline, options: Diagnose) -> int:
    """Steps of DDPM: those asked for, or all."""
    return pipe.recipe.diffusion.timesteps if options.ddpm_steps is None else options.ddpm_steps


def class_shown(pipe: Pipeline, word: str | None) -> int | None:
    """The class whose samples are shown; None where there are no classes.

    Raises:
        BookError: a class that the model does not know.
    """
    if word is None:
        return min(7, pipe.num_classes - 1) if pipe.num_classes else None
    label = class_number(pipe.recipe, word)
    if pipe.num_classes and not 0 <= label < pipe.num_classes:
        raise BookError(f"--class_label is {label}: the model knows the classes 0 to {pipe.num_classes - 1}")
    return label


def measure_within(pipe: Pipeline, batch: Batch, options: Diagnose, shown: int | None) -> Diagnosis:
    """All that needs no finished samples."""
    seed = options.seed
    looks = {
        "losses": lambda: diagnosis.losses(pipe, batch, seed),
        "gradients": lambda: diagnosis.gradient_norms(pipe, batch, seed),
    }
    if pipe.autoencoder is not None:
        looks["latents"] = lambda: diagnosis.latent_scale(pipe, batch)
        looks["told"] = lambda: diagnosis.share_told(DiagonalGaussian.from_moments(batch.images))
    if pipe.num_classes:
        labels = torch.arange(max(SHOWN, pipe.num_classes)) % pipe.num_classes
        looks["embeddings"] = lambda: diagnosis.embeddings(pipe)
        looks["entropy"] = lambda: diagnosis.attention_entropy(pipe, batch, seed)
        looks["branches"] = lambda: diagnosis.branch_difference(pipe, labels, options.sampling_steps, seed)
    bar = tqdm(looks.items(), desc="measuring", disable=None, dynamic_ncols=True)
    return Diagnosis(**{name: look() for name, look in bar})


def request_of(pipe: Pipeline, way: Way, options: Diagnose, shown: int | None) -> Request:
    """The samples of one way of drawing. With classes, the first are of the class shown, the others of all in turn.

    Raises:
        BookError: they cannot be drawn.
    """
    number, labels = options.num_samples, None
    if shown is not None:
        labels = [*[shown] * SHOWN, *(index % max(1, pipe.num_classes) for index in range(number))]
        number = len(labels)
    settings = {"sampler": way.sampler, "steps": way.steps, "seed": options.seed}
    return pipe.ask(number, labels, way.guidance_scale, **settings)


def draw(
    pipe: Pipeline, ways: dict[str, Way], requests: dict[str, Request], first: int
) -> tuple[dict[str, Way], dict[str, Tensor]]:
    """Samples in every way, from the same noise: name -> what was seen in them, and name -> the pictures.

    Args:
        ways, requests: by name.
        first: so many samples are of the class shown.
    """
    digits = pipe.recipe.training.dataset in DIGITS
    seen, grids = {}, {}
    for name, request in requests.items():
        try:
            with progress_bar(name) as bar:
                images = pipe.draw(request, bar.advance)
        except NotFinite:  # a finding, not an end
            images = torch.full((len(request), *pipe.recipe.picture_shape), torch.nan)
        seen[name] = diagnosis.judge(ways[name], images, request.labels, first, digits)
        grids[name] = images
    return seen, grids


def draw_pictures(folder: Path, measured: Diagnosis, grids: dict[str, Tensor], classes: list[str]) -> None:
    """A picture for each measurement that was made; the classes by their names."""
    for name, images in grids.items():
        save_grid(images.nan_to_num(-1.0), folder / f"samples_{name.lower()}.png", columns=10)
    rows = {caption(name, measured.ways[name]): images[:SHOWN].nan_to_num(-1.0) for name, images in grids.items()}
    write_whole(folder / "samples.png", show_rows(rows, title="The same noise, drawn in every way").savefig)
    finite = [value for value in measured.gradients.values() if math.isfinite(value) and value > 0]
    limit = DWARFED * (statistics.median(finite) if finite else 1.0)
    write_whole(folder / "gradients.png", plot_gradients(measured.gradients, limit).savefig)
    if measured.embeddings is not None:
        names = [*classes, "none"]
        title = "Distances of the class embeddings"
        write_whole(folder / "embeddings.png", plot_distances(measured.embeddings.distances, names, title).savefig)
        norms = dict(zip(names, measured.embeddings.norms.tolist(), strict=True))
        write_whole(folder / "embedding_norms.png", plot_numbers(norms, "norm of the class embedding").savefig)
    if measured.branches is not None:
        write_whole(folder / "branches.png", plot_branches(*measured.branches, BRANCHES).savefig)
    if measured.entropy:
        figure = plot_numbers(measured.entropy, "entropy over log(tokens)", ATTENTION, high=1.0)
        write_whole(folder / "attention.png", figure.savefig)


def caption(name: str, way: Way) -> str:
    """How a row of pictures was drawn, in two lines."""
    guidance = "" if way.guidance_scale is None else f", w = {way.guidance_scale:g}"
    return f"{name}\n{way.steps} steps{guidance}"
