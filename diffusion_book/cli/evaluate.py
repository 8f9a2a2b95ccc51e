"""`diffusion-book evaluate MODEL`: draw samples, measure them, and compare with the model's card."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.cli.generate import ModelOptions, load_model
from diffusion_book.cli.main import choose_model, parse
from diffusion_book.evaluation.measures import Measures, measure, real_indices, sentence
from diffusion_book.evaluation.reconstructions import measure_reconstructions, reconstruction_rows
from diffusion_book.evaluation.scoreboard import Row, row_of, scoreboard
from diffusion_book.evaluation.settings import ClassSetting, Setting, check, evaluate, find_entry
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import make_folder, timestamped_folder, write_text
from diffusion_book.viz.grids import save_grid

RESULTS = "scoreboard.json"  # what `evaluate --all` leaves
MNIST = ("auto", "mnist")  # data sets of models that are measured against their own kind
AGREE = 0.05  # two machines round differently: a cFID this close to the card's counts as the same

ROWS = (
    ("R", "ratio", "cFID over that of as many real pictures; 1 is perfect"),
    ("doubtful", "doubtful", "share of which a second classifier is less than 90 % sure"),
    ("cFID", "cfid", "Frechet distance of a classifier's features to the test set; lower is better"),
    ("KID", "kid", "kernel distance of the same features; 0 is perfect"),
    ("precision", "precision", "share of the samples that lie among real pictures"),
    ("recall", "recall", "share of real pictures that lie among the samples"),
    ("nearest", "nearest_train", "median distance to the nearest training picture"),
)
"""name, key of the measure, what it says"""


@dataclass(frozen=True)
class Evaluate:
    """Options of `evaluate`."""

    setting: Setting = field(default_factory=Setting)
    model: ModelOptions = field(default_factory=ModelOptions)
    output_dir: Path = Path("evaluations")
    """folder for the folder of results"""


@dataclass(frozen=True)
class EvaluateClasses(Evaluate):
    """Options of `evaluate` for a model with classes."""

    setting: ClassSetting = field(default_factory=ClassSetting)


@dataclass(frozen=True)
class EvaluateFlow(Evaluate):
    """Options of `evaluate` for a rectified flow."""

    setting: Setting = field(default_factory=lambda: Setting("midpoint", 10))


@dataclass(frozen=True)
class EvaluateReflow(Evaluate):
    """Options of `evaluate` for a rectified flow that was straightened."""

    setting: Setting = field(default_factory=lambda: Setting("euler", 4))


@dataclass(frozen=True)
class EvaluateOneStep(Evaluate):
    """Options of `evaluate` for a model that was distilled to a single step."""

    setting: Setting = field(default_factory=lambda: Setting("euler", 1))


@dataclass(frozen=True)
class EvaluateClassFlow(Evaluate):
    """Options of `evaluate` for a rectified flow with classes."""

    setting: ClassSetting = field(default_factory=lambda: ClassSetting("euler", 10))


@dataclass(frozen=True)
class EvaluateClassOneStep(Evaluate):
    """Options of `evaluate` for a model with classes that was distilled to a single step."""

    setting: ClassSetting = field(default_factory=lambda: ClassSetting("euler", 1))


@dataclass(frozen=True)
class EvaluateVAE:
    """Options of `evaluate` for an autoencoder."""

    num_samples: int = 10_000
    """pictures to restore, 10 to 10,000"""
    model: ModelOptions = field(default_factory=ModelOptions)
    output_dir: Path = Path("evaluations")
    """folder for the folder of results"""


MODELS = {
    "ddpm": Evaluate,
    "vae": EvaluateVAE,
    "vae-2d": EvaluateVAE,
    "ldm": Evaluate,
    "ldm-concat": EvaluateClasses,
    "ldm-cross-attention": EvaluateClasses,
    "rf": EvaluateFlow,
    "rf-reflow": EvaluateReflow,
    "rf-one-step": EvaluateOneStep,
    "latent-rf": EvaluateFlow,
    "latent-rf-class": EvaluateClassFlow,
    "latent-rf-class-one-step": EvaluateClassOneStep,
}


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if "--all" in arguments:
        return evaluate_all([argument for argument in arguments if argument != "--all"])
    model, kind, rest = choose_model(arguments, "evaluate", MODELS)
    if kind is None:
        return 0
    what = "Restore pictures with" if kind is EvaluateVAE else "Draw samples of"
    description = f"{what} '{model}', measure them, and compare with the card of the shipped weights."
    options = parse(kind, rest, f"evaluate {model}", description, kind())
    if kind is EvaluateVAE and processes.launched() > 1:
        raise BookError(f"evaluate {model} is the work of one process: leave out the launcher")
    with processes.together(options.model.device) as device:
        options = dataclasses.replace(options, model=dataclasses.replace(options.model, device=device))
        trained = load_model(model, options.model)
        found = restore(trained, options) if kind is EvaluateVAE else draw(trained, options)
    if found is None:
        return 0
    images, entry = found
    folder = timestamped_folder(options.output_dir, model)
    write_text(folder / "measures.json", json.dumps({"model": model, **entry}, indent=2) + "\n")
    save_grid(images, folder / "grid.png", columns=10)
    print(folder)
    return 0


@dataclass(frozen=True)
class EvaluateAll:
    """Options of `evaluate --all`."""

    num_samples: int | None = None
    """only figures of so many samples; without it, all figures"""
    most_evaluations: int | None = None
    """only settings with at most so many network evaluations a picture; without it, all"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    output_dir: Path = Path("evaluations")
    """folder for the folder of results"""
    resume: Path | None = None
    """folder of results to continue: what was measured there is kept, as long as the card still says the same"""


def evaluate_all(arguments: Sequence[str]) -> int:
    """Draw again the samples of every setting on the cards of the diffusion models: 1 where a cFID differs."""
    description = (
        "Recompute the scoreboard: draw and measure again every setting on the cards of the shipped diffusion models, "
        "and say whether cFID agrees."
    )
    options = parse(EvaluateAll, arguments, "evaluate --all", description, EvaluateAll())
    wanted = [
        row
        for row in scoreboard(options.num_samples)
        if options.most_evaluations is None or row.evaluations <= options.most_evaluations
    ]
    if not wanted:
        raise BookError("no figure on any card fits: raise --most_evaluations, or leave out --num_samples")
    results = [] if options.resume is None else read_results(options.resume)
    measured = [(result["model"], result["setting"]) for result in results]
    wanted = [row for row in wanted if (row.model, row.setting) not in measured]
    with processes.together(options.device) as device:
        return evaluate_rows(wanted, dataclasses.replace(options, device=device), results)


def read_results(folder: Path) -> list[dict]:
    """What an `evaluate --all` that was cut off has measured, but for what the cards say otherwise by now.

    Raises:
        BookError: there is no such file, or it holds something else.
    """
    path = folder / RESULTS
    cards = [(row.model, row.setting, row.measures) for row in scoreboard()]
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return [
            result
            for result in results
            if (result["model"], result["setting"], result["card"]) in cards and result["agrees"] in (True, False)
        ]
    except (OSError, ValueError, TypeError, KeyError):
        raise BookError(f"there are no results of evaluate --all in {path}: leave out --resume") from None


def evaluate_rows(wanted: list[Row], options: EvaluateAll, results: list[dict]) -> int:
    """Draw and measure these rows of the scoreboard again, beside the results that are there: 1 where a cFID differs."""
    if processes.is_main():
        parent = make_folder(options.resume or options.output_dir)  # refused now rather than after the first figure
        folder = options.resume or timestamped_folder(parent, "all")
    for name, rows in itertools.groupby(wanted, key=lambda row: row.model):
        pipe = pipelines.load(name, device=options.device, precision=options.precision)
        for row in rows:
            kind = ClassSetting if "guidance_scale" in row.setting else Setting
            found = evaluate(pipe, kind(**row.setting))
            if found is None:
                continue
            _, entry = found
            same = agrees(entry, row.measures)
            results.append({**asdict(row_of(name, pipe.card, entry)), "card": row.measures, "agrees": same})
            # Written anew after every figure: whatever interrupts, nothing measured is lost.
            write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
            print(f"{name:26}{scoreboard_line(entry)}{'' if same else '  does NOT agree with the card'}", flush=True)
    if processes.is_main():
        print(folder)
    return 0 if all(result["agrees"] for result in results) else 1


def scoreboard_line(entry: dict) -> str:
    """Setting and main measures of an entry, in a line."""
    guidance = f"guidance {entry['guidance_scale']:g}" if "guidance_scale" in entry else ""
    accuracy = f"{entry['class_accuracy']:.2%}" if entry["class_accuracy"] is not None else ""
    return (
        f"{entry['sampler']:9}{entry['steps']:5} steps {guidance:13}x {entry['num_samples']:<6}"
        f"R {entry['ratio']:7.2f}  doubtful {entry['doubtful']:6.1%}  cFID {entry['cfid']:8.3f}  {accuracy}"
    )


def draw(pipe: Pipeline, options: Evaluate) -> tuple[Tensor, dict] | None:
    """Draw, measure and report; gives some samples and the measures, on the main process."""
    check(pipe, options.setting)
    make_folder(options.output_dir)
    found = evaluate(pipe, options.setting, options.model.batch_size)
    if found is None:
        return None
    images, entry = found
    print(table(entry))
    print(report(entry, "samples", pipe.recipe.training.dataset))
    print(comparison(entry, find_entry(pipe.card, entry), pipe.card))
    return images[:100], entry


def restore(autoencoder: Autoencoder, options: EvaluateVAE) -> tuple[Tensor, dict]:
    """Restore, measure and report; gives some test pictures, each row above its reconstructions, and the measures."""
    real_indices(options.num_samples)
    if options.num_samples > 10_000:
        raise BookError(f"--num_samples is {options.num_samples}: the test set has 10,000 pictures")
    make_folder(options.output_dir)
    entry = measure_reconstructions(autoencoder, options.num_samples)
    spread = " ".join(f"{value:.3f}" for value in entry["latent_std"])
    print(f"test pictures: squared error {entry['mse']:.5f} a pixel, label kept {entry['label_kept']:.2%}")
    print(f"latents: standard deviation {spread} by channel")
    print(f"reconstructions of {entry['num_samples']:,} training pictures")
    print(rows(entry))
    print(report(entry, "reconstructions", autoencoder.recipe.training.dataset))
    listed = autoencoder.card.get("reconstruction", {})
    print(comparison(entry, listed if listed.get("num_samples") == entry["num_samples"] else None, autoencoder.card))
    return reconstruction_rows(autoencoder, data.load("mnist", "test")), entry


def table(entry: dict) -> str:
    """The measures, one a line, beside those of real pictures."""
    head = f"{entry['num_samples']:,} samples, {entry['sampler']}, {entry['steps']} steps"
    head += f", eta {entry['eta']:g}" if entry["sampler"] == "ddim" else ""
    head += f", guidance {entry['guidance_scale']:g}" if "guidance_scale" in entry else ""
    return f"{head}, {entry['images_per_second']:g} images/s\n{rows(entry)}"


def rows(entry: dict) -> str:
    """The measures alone, a row each, under a line of headings."""
    lines = [f"{'':11}{'samples':>10}{'+-':>9}{'real':>10}"]
    for name, key, meaning in ROWS:
        real = entry["floor"] if key == "cfid" else entry.get(f"{key}_real")
        error, real = ("" if value is None else f"{value:.4f}" for value in (entry.get(f"{key}_error"), real))
        lines.append(f"{name:11}{entry[key]:10.4f}{error:>9}{real:>10}  {meaning}")
    if entry["class_accuracy"] is not None:
        lines.append(
            f"{'class':11}{entry['class_accuracy']:10.4f}{'':19}  share taken for the class that was asked for"
        )
    shares = " ".join(f"{share:.3f}" for share in entry["class_share"])
    return "\n".join([*lines, f"{'digits 0-9':11}{shares}"])


def report(entry: dict, what: str, dataset: str) -> str:
    """What to take away of the measures; of a model of other digits, beside what real ones of its kind reach.

    Args:
        entry: the measures.
        what: was measured: "samples" or "reconstructions".
        dataset: that the model was trained on.
    """
    said = f"{what}: {sentence(entry)}"
    if dataset in MNIST:
        return said
    if what == "reconstructions":
        return f"{said}\nthis model was trained on the data set '{dataset}', and is measured on MNIST"
    real = real_of_kind(dataset, entry["num_samples"])
    return (
        f"{said}\nthis model was trained on the data set '{dataset}', and is measured against MNIST: not 1 is perfect "
        f"for it, but what {real.num_samples:,} of its own real pictures reach: {real.sentence()}"
    )


def real_of_kind(dataset: str, num_samples: int) -> Measures:
    """Measures of real pictures of another data set, as many as were asked for or as there are."""
    images = torch.cat([data.load(dataset, split).images for split in ("train", "test")])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return measure(images[order[:num_samples]])


def agrees(entry: dict, listed: dict) -> bool:
    """Whether a figure that was measured again is the one on the card, but for rounding."""
    return abs(entry["cfid"] - listed["cfid"]) <= AGREE * listed["cfid"]


def comparison(entry: dict, listed: dict | None, card: dict) -> str:
    """What the card says of the same setting, and whether it agrees."""
    if not card:
        return "a checkpoint of your own has no card to compare with"
    if listed is None:
        return "the card has no figures for this setting"
    verdict = "agrees" if agrees(entry, listed) else "does NOT agree"
    return f"the card says cFID {listed['cfid']:.4f}, R {listed['ratio']:.2f}: it {verdict} within {AGREE:.0%}"
