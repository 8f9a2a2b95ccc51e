"""`diffusion-book visualize distribution`: maps of what a model draws beside real digits."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
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
from diffusion_book.viz.distribution import counts, page, pixels, plot_distributions, ways_across

FEWEST = 20  # pictures of either side: UMAP looks at 15 neighbours of a point
REAL = "real digits"
IN_PIXELS, IN_FEATURES = "pixels", "features of a classifier"


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
    real = real_digits(options.num_real, options.seed)
    with progress_bar(f"{options.model}, {settings['sampler']}, {settings['steps']} steps") as bar:
        images = pipe.draw(request, bar.advance)
    labels = {REAL: real.labels, options.model: logits(images).argmax(dim=1)}
    first = first_of_each(labels[options.model])
    with tqdm(total=settings["steps"], desc="ways", unit="step", disable=None, dynamic_ncols=True) as bar:
        times, stills = predictions(pipe, first, callback=lambda number: bar.update(number > 0), **settings)

    sets = {IN_FEATURES: {REAL: real.features, options.model: features(images)}}
    looks = {IN_PIXELS: pixels, IN_FEATURES: features}
    if real.images is not None:
        sets = {IN_PIXELS: {REAL: pixels(real.images), options.model: pixels(images)}, **sets}
    maps: dict[str, JointMap] = {}
    ways: dict[str, Tensor] = {}
    for space, points in tqdm(sets.items(), desc="UMAP, whose first start takes a while", unit="map", disable=None):
        maps[space] = joint_map(points, options.seed)
        ways[space] = maps[space].locate(looks[space](stills.flatten(0, 1)).unflatten(0, stills.shape[:2]))

    places = {space: each.places for space, each in maps.items()}
    apart = distances(real.features, features(stills.flatten(0, 1)).unflatten(0, stills.shape[:2]))
    captions = [
        f"t = {t:.2f}: median distance to the nearest real digit {distance:.1f}, as features (of real ones: {apart['real']:.1f})"
        for t, distance in zip(times, apart["ways"], strict=True)
    ]
    digits = labels[options.model][first]
    control = ways_across(places, ways, stills, labels, digits, captions)
    folder = timestamped_folder(options.output_dir, f"distribution-{options.model}")
    write_whole(folder / "distribution.png", plot_distributions(places, labels).savefig)
    write_text(folder / "ways.html", page(control, f"From noise to digit with {options.model}"))
    record = {
        "setting": {**setting(options), **settings},
        "labels_from": {REAL: real.labels_from, options.model: "the second classifier"},
        "counts": {name: counts(each) for name, each in labels.items()},
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
    print(count_table(record["counts"]))
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
    most = len(reference_features()["test"])
    if options.num_real > most:
        raise BookError(f"--num_real is {options.num_real}: the test set of MNIST has {most:,} pictures")
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
    if pipe.recipe.training.dataset not in DIGITS:
        raise BookError(
            f"this '{pipe.recipe.model}' was trained on {pipe.recipe.training.dataset}, and there are only digits to compare "
            "with: give a model of digits"
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
    """The first picture of each digit that there is, in the order of the digits."""
    return [int((labels == digit).nonzero()[0]) for digit in range(10) if (labels == digit).any()]


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


def count_table(counts: dict[str, list[int]]) -> str:
    """How many there are of each digit, a set a line."""
    lines = [f"{'digit':22}" + "".join(f"{digit:>6}" for digit in range(10))]
    return "\n".join([*lines, *(f"{name:22}" + "".join(f"{each:>6}" for each in row) for name, row in counts.items())])
