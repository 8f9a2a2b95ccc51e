"""`diffusion-book evaluate MODEL|PICTURES`: draw samples, or read some, measure them, and compare with the model's card."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.cli.generate import load_model
from diffusion_book.data.samples import read_samples
from diffusion_book.evaluation.digits import check_digits
from diffusion_book.evaluation.distances import Copies, closest, nearest
from diffusion_book.evaluation.features import features, reference_features, yardstick
from diffusion_book.evaluation.measures import Measures, measure, real_indices, sentence
from diffusion_book.evaluation.reconstructions import measure_reconstructions, reconstruction_rows
from diffusion_book.evaluation.scoreboard import Row, row_of, scoreboard
from diffusion_book.evaluation.settings import draw_and_measure, evaluate, find_entry, request_of
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.configs import ClassSetting, Setting
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.weights import MNIST
from diffusion_book.system import processes
from diffusion_book.system.devices import prepare_device, resolve_device
from diffusion_book.system.errors import BookError, check_range
from diffusion_book.system.files import check_folder, make_folder, timestamped_folder, write_text, write_whole
from diffusion_book.system.progress import progress_bar
from diffusion_book.system.streams import say, say_once
from diffusion_book.training.datasets import pictures_of
from diffusion_book.viz.grids import save_grid, show_rows, to_bytes

RESULTS = "scoreboard.json"  # what `evaluate --all` leaves
BY_HEART = 0.5  # of the distance of pictures that were held out: samples that lie nearer are copies
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


def main(model: str | Path | None, options: Any) -> int:
    """Run the command; with a path, of pictures; without a model, `evaluate --all`."""
    if model is None:
        return evaluate_all(options)
    if isinstance(model, Path):
        print(evaluate_pictures(model, options))
        return 0
    restores = not hasattr(options, "setting")
    if restores and processes.launched() > 1:
        raise BookError(f"evaluate {model} is the work of one process: leave out the launcher")
    with processes.together(options.model.device) as device:
        options = dataclasses.replace(options, model=dataclasses.replace(options.model, device=device))
        trained = load_model(model, options.model)
        result = MEASURED[restores, data.is_place(trained.recipe.training.dataset)](trained, options)
    if result is None:
        return 0
    images, entry, *copies = result
    folder = timestamped_folder(options.output_dir, model)
    write_text(folder / "measures.json", json.dumps({"model": model, **entry}, indent=2) + "\n")
    save_grid(images[:100], folder / "grid.png", columns=10)
    if copies:
        draw_copies(folder / "nearest.png", *copies)
    print(folder)
    return 0


def evaluate_pictures(place: Path, options: Any) -> Path:
    """Read digits from anywhere, measure them and report; gives the folder of what was found.

    Raises:
        BookError: they cannot be measured. It comes before the work.
    """
    if processes.launched() > 1:
        raise BookError(f"evaluate {place} is the work of one process: leave out the launcher")
    check_folder(options.output_dir)
    images, labels = read_samples(place, options.labels)
    if not options.anyway:
        check_digits(images)
    say(f"measuring {len(images):,} pictures ...")
    entry = measure(images, labels).to_dict()
    copies = closest(features(images), reference_features()["train"])
    print(f"{len(images):,} pictures of {place}")
    print(rows(entry))
    print(report(entry, "pictures", "mnist"))
    distances = ", ".join(f"{distance:.2f}" for distance in copies.distances.tolist())
    print(
        f"those nearest to a training picture: {distances} (real ones, in the middle: {entry['nearest_train_real']:.2f})"
    )
    folder = timestamped_folder(options.output_dir, place.stem or "pictures")
    entry = {"pictures": str(place), **entry, "nearest": plain(copies)}
    write_text(folder / "measures.json", json.dumps(entry, indent=2) + "\n")
    save_grid(images[:100], folder / "grid.png", columns=10)
    try:
        draw_copies(folder / "nearest.png", images, copies, data.load("mnist").images)
    except BookError as error:
        say_once(f"notice: the nearest training pictures are told by their numbers alone ({error})")
    return folder


def evaluate_own(pipe: Pipeline, options: Any) -> tuple[Tensor, dict, Tensor, Copies, Tensor] | None:
    """Draw with a model of pictures of one's own, and look how near they come to those that it has learned.

    Returns:
        The samples, the measures, and what `draw_copies` takes: the samples, those of them that are nearest to training
        pictures, and these; None on all processes but the main one.

    Raises:
        BookError: the samples cannot be drawn, or the pictures that it has learned are not where they were.
    """
    place = pipe.recipe.training.dataset
    train, test = (pictures_of(pipe.recipe, split) for split in ("train", "test"))
    setting = asdict(options.setting)
    number = min(setting.pop("num_samples"), len(train))
    request = pipe.ask(number, **setting, batch_size=options.model.batch_size)
    check_folder(options.output_dir)
    part = processes.part_of_samples(len(request), request.batch_size)
    with progress_bar(f"{request.sampler}, {request.steps} steps") as bar:
        images = processes.collect(pipe.draw(request.pick(part), bar.advance))
    if images is None:
        return None
    learned, held_out = pixels(train.images), pixels(test.images)
    copies = closest(pixels(images), learned)
    near, usual = (nearest(points, learned)[0].median().item() for points in (pixels(images), held_out))
    print(f"{number:,} samples of a model of {len(train):,} pictures of {train.name}")
    print(f"difference a pixel from the nearest training picture, in the middle: {near:.4f}")
    print(f"the same of {len(test):,} pictures that were held out: {usual:.4f}")
    if near < BY_HEART * usual:
        print("the samples are much nearer: the model has learned pictures by heart; give it more, or train it shorter")
    print(
        "the other measures know digits alone; nearest.png shows the samples nearest to training pictures, above these"
    )
    memorised = {"nearest_train": round(near, 6), "nearest_train_real": round(usual, 6), "nearest": plain(copies)}
    return images, {"dataset": place, **setting, "num_samples": number, **memorised}, images, copies, train.images


def restore_own(autoencoder: Autoencoder, options: Any) -> tuple[Tensor, dict, Tensor, Copies, Tensor]:
    """Restore pictures of one's own that were held out, and look how much of them is left.

    The squared error is told as a share of the set's own spread, the error of answering every picture with the mean of
    the training pictures: 0 is perfect, 1 knows nothing but the mean. An autoencoder that has learned its training
    pictures by heart brings some of these back in the place of what it was given.

    Returns:
        Some pictures, each row above its reconstructions; the measures; and what `draw_copies` takes.

    Raises:
        BookError: the pictures that it has learned are not where they were.
    """
    check_range(options, "num_samples", 1, prefix="--")
    place = autoencoder.recipe.training.dataset
    train, test = (pictures_of(autoencoder.recipe, split) for split in ("train", "test"))
    check_folder(options.output_dir)
    test = test.first(options.num_samples)
    restored = autoencoder.reconstruct(test.images.float() / 127.5 - 1)
    learned, held_out, found = pixels(train.images), pixels(test.images), pixels(restored)
    error = (found - held_out).square().sum(dim=1)  # (N,), the mean over pixels in [0, 1]
    spread = (held_out - learned.mean(dim=0)).square().sum(dim=1).mean()
    elsewhere = (nearest(found, learned)[0].square() < error).double().mean().item()
    share = (error.mean() / spread).item()
    print(f"{len(test):,} pictures of {test.name} that were held out, restored by a VAE of {len(train):,} others")
    print(f"squared error as a share of the set's own spread: {share:.4f} (0 = perfect, 1 = no more than the mean)")
    print(f"nearer to a training picture than to what was given: {elsewhere:.1%}")
    copies = closest(found, learned)
    entry = {"dataset": place, "num_samples": len(test), "error": round(share, 6), "elsewhere": round(elsewhere, 6)}
    rows_drawn = reconstruction_rows(autoencoder, test)
    return rows_drawn, {**entry, "nearest": plain(copies)}, restored, copies, train.images


def pixels(images: Tensor) -> Tensor:
    """Pictures, bytes or in [-1, 1], as points (N, D); their distance is the root-mean-square difference a pixel, 0 to 1."""
    points = to_bytes(images).flatten(1).float() / 255
    return points / points.shape[1] ** 0.5


def plain(copies: Copies) -> dict[str, list[float]]:
    """The same as lists, for JSON."""
    return {name: [round(value, 4) for value in values.tolist()] for name, values in copies._asdict().items()}


def draw_copies(path: Path, images: Tensor, copies: Copies, training: Tensor) -> None:
    """The pictures that are nearest to training pictures, above these."""
    drawn = {"pictures": images[copies.pictures], "nearest in training": training[copies.training]}
    write_whole(path, show_rows(drawn, title="The pictures nearest to training pictures, and these").savefig)


def evaluate_all(options: Any) -> int:
    """Draw again the samples of every setting on the cards of the diffusion models: 1 where a cFID differs."""
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
        prepare_device(resolve_device(device))
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


def evaluate_rows(wanted: list[Row], options: Any, results: list[dict]) -> int:
    """Draw and measure these rows of the scoreboard again, beside the results that are there: 1 where a cFID differs."""
    if processes.is_main():
        parent = make_folder(options.resume or options.output_dir)  # refused now rather than after the first figure
        folder = options.resume or timestamped_folder(parent, "all")
    for name, rows in itertools.groupby(wanted, key=lambda row: row.model):
        pipe = pipelines.load(name, device=options.device, precision=options.precision)
        for row in rows:
            kind = ClassSetting if "guidance_scale" in row.setting else Setting
            drawn = evaluate(pipe, kind(**row.setting))
            if drawn is None:
                continue
            _, entry = drawn
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


def draw(pipe: Pipeline, options: Any) -> tuple[Tensor, dict] | None:
    """Draw, measure and report; gives the samples and the measures, on the main process."""
    request = request_of(pipe, options.setting, options.model.batch_size)
    check_folder(options.output_dir)
    result = draw_and_measure(pipe, request)
    if result is None:
        return None
    images, entry = result
    print(table(entry))
    print(report(entry, "samples", pipe.recipe.training.dataset))
    print(comparison(entry, find_entry(pipe.card, entry), pipe.card))
    return images, entry


def restore(autoencoder: Autoencoder, options: Any) -> tuple[Tensor, dict]:
    """Restore, measure and report; gives some test pictures, each row above its reconstructions, and the measures."""
    dataset = yardstick(autoencoder.recipe.training.dataset) or MNIST
    real_indices(options.num_samples, dataset=dataset)
    if options.num_samples > 10_000:
        raise BookError(f"--num_samples is {options.num_samples}: the test set has 10,000 pictures")
    check_folder(options.output_dir)
    entry = measure_reconstructions(autoencoder, options.num_samples)
    spread = " ".join(f"{value:.3f}" for value in entry["latent_std"])
    print(f"test pictures: squared error {entry['mse']:.5f} a pixel, label kept {entry['label_kept']:.2%}")
    print(f"latents: standard deviation {spread} by channel")
    print(f"reconstructions of {entry['num_samples']:,} training pictures")
    print(rows(entry))
    print(report(entry, "reconstructions", autoencoder.recipe.training.dataset))
    listed = autoencoder.card.get("reconstruction", {})
    print(comparison(entry, listed if listed.get("num_samples") == entry["num_samples"] else None, autoencoder.card))
    return reconstruction_rows(autoencoder, data.load(dataset, "test")), entry


MEASURED = {
    (False, False): draw,
    (False, True): evaluate_own,
    (True, False): restore,
    (True, True): restore_own,
}
"""whether it is an autoencoder, whether it knows pictures of one's own -> what measures it"""


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
        what: was measured: "samples", "reconstructions" or "pictures".
        dataset: that the model was trained on.
    """
    own = dataset == yardstick(dataset) and dataset != MNIST
    line = f"{what}: {sentence(entry, 'pictures' if own else 'digits')}"
    if own or dataset in ("auto", MNIST):
        return line
    if what == "reconstructions":
        return f"{line}\nthis model was trained on the data set '{dataset}', and is measured on MNIST"
    real = real_of_kind(dataset, entry["num_samples"])
    return (
        f"{line}\nthis model was trained on the data set '{dataset}', and is measured against MNIST: not 1 is perfect "
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
