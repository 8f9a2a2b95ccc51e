"""`diffusion-book visualize distribution`: maps of what a model draws beside real digits, or your own pictures."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book import data
from diffusion_book.cli.generate import MODES
from diffusion_book.cli.options import DIFFUSION, Distribution
from diffusion_book.evaluation.distances import nearest
from diffusion_book.evaluation.features import DIGITS, classifier, features, logits, reference_features
from diffusion_book.evaluation.projection import JointMap, joint_map
from diffusion_book.models import pipelines
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import MODELS
from diffusion_book.models.request import Request
from diffusion_book.models.sampling import predictions
from diffusion_book.system.devices import prepare_device, resolve_device
from diffusion_book.system.errors import BookError, check_range, choose
from diffusion_book.system.files import check_folder, timestamped_folder, write_text, write_whole
from diffusion_book.system.progress import progress_bar
from diffusion_book.training.datasets import pictures_of
from diffusion_book.viz.distribution import DIGITS as DIGIT_NAMES
from diffusion_book.viz.distribution import counts, kind_of, page, pixels, plot_distributions, ways_across

FEWEST = 20  # pictures of either side: UMAP looks at 15 neighbours of a point
WAYS = 8  # samples on their way, where there are no classes to choose by
REAL, OWN = "real digits", "real pictures"
IN_PIXELS, IN_FEATURES, IN_LATENTS = "pixels", "features of a classifier", "latents of the VAE"


@dataclass(frozen=True)
class Compared:
    """What a model's pictures are compared with, and how one looks at both.

    Attributes:
        name: of the real pictures.
        looks: what is compared -> pictures as points; the last of them tells the distances.
        points: the same -> the real pictures as points, (N, D).
        labels: of the real pictures, (N,).
        labels_from: in words, and `told_by` those of the model's pictures.
        names: of the classes.
        told: the classes of the model's pictures, given these and what it was asked for.
        distance: what a caption calls the distance to the nearest real picture, and among real ones.
    """

    name: str
    looks: dict[str, Callable[[Tensor], Tensor]]
    points: dict[str, Tensor]
    labels: Tensor
    labels_from: str
    told_by: str
    names: tuple[str, ...]
    told: Callable[[Tensor, Request], Tensor]
    distance: str


@dataclass(frozen=True)
class RealDigits:
    """Some test pictures of MNIST.

    Attributes:
        features: (N, 64).
        labels: (N,), 0 to 9.
        images: (N, 1, 28, 28), bytes; None where there is no MNIST.
        labels_from: where the labels come from, in words.
    """

    features: Tensor
    labels: Tensor
    images: Tensor | None
    labels_from: str


def draw_distribution(options: Distribution) -> Path:
    """Fill a folder with the maps, the ways of some samples across them, and all numbers.

    Raises:
        BookError: an option that cannot be followed.
    """
    check(options)
    pipe = load_pipe(options)
    options = dataclasses.replace(options, model=pipe.recipe.model)
    request = request_of(pipe, options)
    settings = {name: getattr(request, name) for name in ("sampler", "steps", "seed")}
    if request.guidance_scale is not None:
        settings["guidance_scale"] = request.guidance_scale[0].item()
    check_folder(options.output_dir)
    own = data.is_place(pipe.recipe.training.dataset)
    real = compare_own(pipe, options) if own else compare_digits(options)
    with progress_bar(f"{options.model}, {settings['sampler']}, {settings['steps']} steps") as bar:
        images = pipe.draw(request, bar.advance)
    labels = {real.name: real.labels, options.model: real.told(images, request)}
    first = first_of_each(labels[options.model]) if len(real.names) > 1 else list(range(min(WAYS, len(images))))
    with tqdm(total=settings["steps"], desc="ways", unit="step", disable=None, dynamic_ncols=True) as bar:
        times, stills = predictions(pipe, first, callback=lambda number: bar.update(number > 0), **settings)

    sets = {space: {real.name: real.points[space], options.model: look(images)} for space, look in real.looks.items()}
    maps: dict[str, JointMap] = {}
    ways: dict[str, Tensor] = {}
    for space, points in tqdm(sets.items(), desc="UMAP, whose first start takes a while", unit="map", disable=None):
        maps[space] = joint_map(points, options.seed)
        ways[space] = maps[space].locate(real.looks[space](stills.flatten(0, 1)).unflatten(0, stills.shape[:2]))

    places = {space: each.places for space, each in maps.items()}
    space, look = list(real.looks.items())[-1]
    apart = distances(real.points[space], look(stills.flatten(0, 1)).unflatten(0, stills.shape[:2]))
    captions = [
        f"t = {t:.2f}: {real.distance.format(distance, apart['real'])}"
        for t, distance in zip(times, apart["ways"], strict=True)
    ]
    digits = labels[options.model][first]
    control = ways_across(places, ways, stills, labels, digits, captions, real.names)
    folder = timestamped_folder(options.output_dir, f"distribution-{options.model}")
    write_whole(folder / "distribution.png", plot_distributions(places, labels, names=real.names).savefig)
    end = "picture" if own else "digit"
    write_text(folder / "ways.html", page(control, f"From noise to {end} with {options.model}"))
    record = {
        "setting": {**setting(options), **settings},
        "labels_from": {real.name: real.labels_from, options.model: real.told_by},
        "counts": {name: counts(each, len(real.names)) for name, each in labels.items()},
        "labels": {name: each.tolist() for name, each in labels.items()},
        "maps": {space: {name: rounded(each) for name, each in sets.items()} for space, sets in places.items()},
        "ways": {
            "samples": first,
            "times": [round(t, 6) for t in times],
            "distance_to_nearest_real": apart,
            "maps": {space: rounded(each) for space, each in ways.items()},
        },
    }
    write_text(folder / "distribution.json", json.dumps(record) + "\n")
    print(count_table(record["counts"], real.names))
    return folder


def check(options: Distribution) -> None:
    """Refuse what cannot be done before the long work begins.

    Raises:
        BookError: it cannot.
    """
    if options.model is not None:
        choose("model", options.model, dict.fromkeys(DIFFUSION))
    choose("mode", options.mode, dict.fromkeys(MODES))
    check_range(options, "num_generated num_real", FEWEST, prefix="--")
    if importlib.util.find_spec("umap") is None:
        raise BookError("UMAP needs the package umap-learn: pip install umap-learn")


def load_pipe(options: Distribution) -> Pipeline:
    """The model that the options name.

    Raises:
        BookError: a checkpoint that is missing, damaged or another model's, or a model of something else than digits.
    """
    prepare_device(resolve_device(options.device))
    run_on = {"vae": options.vae, "device": options.device, "precision": options.precision}
    pipe = pipelines.load(options.checkpoint or options.model or "ddpm", model=options.model, **run_on)
    choose("model", pipe.recipe.model, MODELS)
    dataset = pipe.recipe.training.dataset
    if dataset not in DIGITS and not data.is_place(dataset):
        raise BookError(
            f"this '{pipe.recipe.model}' was trained on {dataset}, and there are only digits, and pictures of your own, to "
            "compare with: give a model of these"
        )
    return pipe


def request_of(pipe: Pipeline, options: Distribution) -> Request:
    """What the options ask the model for.

    Raises:
        BookError: it cannot be drawn.
    """
    steps = MODELS[pipe.recipe.model].steps if options.ddim_steps is None else options.ddim_steps
    if options.sampler is None and options.mode == "ddpm":
        steps = pipe.recipe.diffusion.timesteps
    return pipe.ask(
        options.num_generated,
        guidance_scale=options.guidance_scale,
        sampler=options.sampler or options.mode,
        steps=steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def compare_digits(options: Distribution) -> Compared:
    """Real digits, looked at pixel by pixel where MNIST is here, and with a classifier.

    Raises:
        BookError: there are not so many.
    """
    most = len(reference_features()["test"])
    if options.num_real > most:
        raise BookError(f"--num_real is {options.num_real}: the test set of MNIST has {most:,} pictures")
    real = real_digits(options.num_real, options.seed)
    looks, points = {IN_FEATURES: features}, {IN_FEATURES: real.features}
    if real.images is not None:
        looks, points = {IN_PIXELS: pixels, **looks}, {IN_PIXELS: pixels(real.images), **points}
    return Compared(
        REAL,
        looks,
        points,
        real.labels,
        real.labels_from,
        "the second classifier",
        DIGIT_NAMES,
        lambda images, request: logits(images).argmax(dim=1),
        "median distance to the nearest real digit {:.1f}, as features (of real ones: {:.1f})",
    )


def compare_own(pipe: Pipeline, options: Distribution) -> Compared:
    """Pictures of one's own, of both splits, looked at pixel by pixel and, for a latent model, as latents of its VAE.

    No classifier knows them: a picture of the model is of the class that it was asked for.

    Raises:
        BookError: they are not where they were, or are fewer than a map needs.
    """
    splits = [pictures_of(pipe.recipe, split) for split in ("train", "test")]
    images, labels = (torch.cat([getattr(split, name) for split in splits]) for name in ("images", "labels"))
    if len(images) < FEWEST:
        raise BookError(f"{splits[0].place} has {len(images)} pictures: a map needs at least {FEWEST}")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(options.seed))[: options.num_real]
    images, labels = images[chosen], labels[chosen]
    looks = {IN_PIXELS: pixels}
    if pipe.autoencoder is not None:
        looks[IN_LATENTS] = lambda pictures: pipe.autoencoder.encode(as_floats(pictures)).flatten(1).cpu()
    names = tuple(pipe.recipe.class_names) if pipe.num_classes else (splits[0].name,)
    if not pipe.num_classes:
        labels = torch.zeros_like(labels)
    return Compared(
        OWN,
        looks,
        {space: look(images) for space, look in looks.items()},
        labels,
        "the data set",
        "what was asked for",
        names,
        lambda drawn, request: torch.zeros(len(drawn), dtype=torch.int64) if request.labels is None else request.labels,
        f"median distance to the nearest real picture {{:.1f}}, as {list(looks)[-1]} (of real ones: {{:.1f}})",
    )


def as_floats(images: Tensor) -> Tensor:
    """Pictures, bytes or floats, in [-1, 1]."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def real_digits(count: int, seed: int) -> RealDigits:
    """`count` test pictures of MNIST at random; where there is no MNIST, their shipped features alone."""
    shipped = reference_features()["test"]  # in the order of the test set
    chosen = torch.randperm(len(shipped), generator=torch.Generator().manual_seed(seed))[:count]
    try:
        test = data.load("mnist", "test")
        if len(test) != data.MNIST_SIZES["test"]:
            raise BookError(f"pictures of your own, {len(test):,} for testing, lie in its place")
    except BookError as error:
        print(
            f"no MNIST here ({str(error).split(':')[0]}): no map of pixels; for the map of features the real digits' "
            "features come with the book, and their labels from its classifier"
        )
        with torch.no_grad():
            labels = classifier().head(shipped[chosen]).argmax(dim=1)
        return RealDigits(shipped[chosen], labels, None, "the classifier's head on the shipped features")
    return RealDigits(shipped[chosen], test.labels[chosen], test.images[chosen], "the data set")


def first_of_each(labels: Tensor) -> list[int]:
    """The first picture of each digit or class that there is, in their order."""
    return [int((labels == digit).nonzero()[0]) for digit in labels.unique().tolist()]


def distances(real: Tensor, ways: Tensor) -> dict:
    """How far the ways (K, T, D) are from the nearest real point (N, D).

    Returns:
        "ways": the median over the ways, T numbers; "real": the median of real points to their nearest other.
    """
    to_real, _ = nearest(ways.flatten(0, 1), real)
    own = torch.cdist(real, real).fill_diagonal_(torch.inf).min(dim=1).values
    per_time = to_real.unflatten(0, ways.shape[:2]).median(dim=0).values
    return {"ways": [round(value, 4) for value in per_time.tolist()], "real": round(own.median().item(), 4)}


def setting(options: Distribution) -> dict:
    """What the options say of the pictures, without paths and machines."""
    values = dataclasses.asdict(options)
    return {name: values[name] for name in ("model", "num_generated", "num_real", "seed")}


def rounded(places: Tensor) -> list:
    """Places (N, 2), or (K, T, 2), as lists, to four digits behind the point."""
    if places.ndim > 1:
        return [rounded(each) for each in places]
    return [round(value, 4) for value in places.tolist()]


def count_table(counts: dict[str, list[int]], names: tuple[str, ...] = DIGIT_NAMES) -> str:
    """How many there are of each digit or class, a set a line."""
    wide = max(6, *(len(name) + 2 for name in names))
    lines = [f"{kind_of(names):22}" + "".join(f"{name:>{wide}}" for name in names)]
    rows = (f"{name:22}" + "".join(f"{each:>{wide}}" for each in row) for name, row in counts.items())
    return "\n".join([*lines, *rows])
