"""Every model of the book under the same measures: the rows of its scoreboard, as the cards tell them."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from diffusion_book.evaluation.measures import floor, random_labels, share_error
from diffusion_book.models import weights
from diffusion_book.models.pipelines import Pipeline, list_models
from diffusion_book.models.recipes import PARENTS
from diffusion_book.samplers import evaluations
from diffusion_book.system.errors import BookError

SETTING = ("sampler", "steps", "eta", "seed", "num_samples", "guidance_scale")
"""what of a card's entry says how the samples were drawn"""


@dataclass(frozen=True)
class Row:
    """One model at one budget.

    Attributes:
        model: its name.
        setting: what to hand to `Pipeline.sample`.
        evaluations: of the network, for one picture; with guidance both branches count.
        parameters: of the network; a latent model's decoder is not counted.
        minutes: of training.
        measures: as in `Measures`: ratio, ratio_error, doubtful, cfid, floor, precision, recall ...
    """

    model: str
    setting: dict
    evaluations: int
    parameters: int
    minutes: float
    measures: dict


def scoreboard(num_samples: int | None = None) -> list[Row]:
    """All entries of all shipped cards, model by model.

    Args:
        num_samples: only entries with so many samples, for Frechet distances of different numbers do not compare.
    """
    cards = {name: weights.read_card(name) for name in list_models()}
    return [
        row_of(name, card, entry)
        for name, card in cards.items()
        for entry in figures(card)
        if num_samples in (None, entry["num_samples"])
    ]


def figures(card: dict) -> list[dict]:
    """What a card says of samples: for each setting that was measured, the setting and the measures.

    Cards from before labels were drawn at random are read by today's yardstick where that can be done. Their rows
    without classes get today's floor, and have no error bars. Those with classes had exact shares of the digits, which
    no floor of random pictures can be set against: they are left out, until they are measured again.
    """
    entries = card.get("metrics", [])
    return [
        entry if is_current(entry) else _as_of_today(entry)
        for entry in entries
        if is_current(entry) or "guidance_scale" not in entry
    ]


def is_current(entry: dict) -> bool:
    """Whether a card's entry was measured by today's yardstick."""
    return "doubtful" in entry


def _as_of_today(entry: dict) -> dict:
    rest = {key: value for key, value in entry.items() if not key.startswith("confident")}
    lowest, doubtful = floor(entry["num_samples"]), 1 - entry["confident"]
    return {
        **rest,
        "cfid_error": None,
        "floor": round(lowest.mean, 6),
        "floor_std": round(lowest.std, 6),
        "ratio": round(entry["cfid"] / lowest.mean, 6),
        "ratio_error": None,
        "doubtful": round(doubtful, 6),
        "doubtful_error": round(share_error(doubtful, entry["num_samples"]), 6),
        "doubtful_real": round(1 - entry["confident_real"], 6),
    }


def row_of(name: str, card: dict, entry: dict) -> Row:
    """The row that an entry of a card makes."""
    setting = {key: entry[key] for key in SETTING if key in entry}
    return Row(
        model=name,
        setting=setting,
        evaluations=branches(entry) * evaluations(entry["sampler"], entry["steps"]),
        parameters=card["parameters"],
        minutes=card["minutes"],
        measures={key: value for key, value in entry.items() if key not in SETTING},
    )


def branches(entry: dict) -> int:
    """How many branches guidance asks for: 2, or 1 where the scale leaves one of them out."""
    return 1 if entry.get("guidance_scale", 1.0) in (0.0, 1.0) else 2


def minutes_in_all(name: str) -> float:
    """How long the shipped weights of a model were trained, with those of the models that they were made from.

    A latent model needs its autoencoder. A flow that learns from another one needs that flow, and time to draw its pairs.

    Raises:
        BookError: no such weights.
    """
    card = weights.read_card(name)
    before = PARENTS.get(name) or ("vae" if "vae_sha256" in card else None)
    return card["minutes"] + card.get("coupling_minutes", 0) + (minutes_in_all(before) if before else 0)


def pictures_seen(name: str) -> int:
    """How many training pictures the shipped weights of a model were shown, each as often as it came.

    Raises:
        BookError: no such weights.
    """
    card = weights.read_card(name)
    return card["steps"] * card["recipe"]["training"]["batch_size"]


def parameters_in_all(pipe: Pipeline) -> int:
    """Parameters that it takes to draw: of the network, and of the decoder of a latent model."""
    parts = [pipe.network] + ([pipe.autoencoder.network.decoder] if pipe.autoencoder else [])
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def best(rows: list[Row], **wanted) -> dict[str, Row]:
    """The row with the lowest cFID of each model, among those whose setting agrees with what is wanted.

    Raises:
        BookError: rows of several numbers of samples, whose cFID does not compare.
    """
    one_number(rows)
    best_rows: dict[str, Row] = {}
    for row in rows:
        if all(row.setting.get(key) == value for key, value in wanted.items()) and (
            row.model not in best_rows or row.measures["cfid"] < best_rows[row.model].measures["cfid"]
        ):
            best_rows[row.model] = row
    return best_rows


def ranking(rows: list[Row], most_evaluations: float = math.inf) -> list[Row]:
    """The best row of each model, the lowest R first.

    Args:
        rows: of one number of samples.
        most_evaluations: rows that need more are left out, and models that have no others.

    Raises:
        BookError: rows of several numbers of samples.
    """
    cheap = [row for row in rows if row.evaluations <= most_evaluations]
    return sorted(best(cheap).values(), key=lambda row: row.measures["ratio"])


def leaders(rows: list[Row]) -> list[Row]:
    """The rows that are better than all that need as few evaluations or fewer, the cheapest first.

    Raises:
        BookError: rows of several numbers of samples.
    """
    one_number(rows)
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.evaluations, row.measures["ratio"])):
        if not found or row.measures["ratio"] < found[-1].measures["ratio"]:
            found.append(row)
    return found


def apart(one: Row, other: Row) -> bool | None:
    """Whether the R of two rows lie two standard errors of their difference apart; None where a card tells no error.

    Raises:
        BookError: rows of several numbers of samples.
    """
    one_number([one, other])
    errors = one.measures["ratio_error"], other.measures["ratio_error"]
    if None in errors:
        return None
    return abs(one.measures["ratio"] - other.measures["ratio"]) > 2 * math.hypot(*errors)


def usual_number(rows: list[Row]) -> int:
    """The number of samples that most rows have: for figures that need many rows, whatever their number."""
    return Counter(row.setting["num_samples"] for row in rows).most_common(1)[0][0]


def redraw(pipe: Pipeline, row: Row, **changes) -> Tensor:
    """Samples of a row as `diffusion-book evaluate` draws them, with labels at random where there are classes.

    Args:
        pipe: the row's model.
        row: of the scoreboard.
        changes: what shall differ from the row's setting, such as num_samples or seed.

    Returns:
        (N, 1, 28, 28), floats in [-1, 1].
    """
    asked = {**row.setting, **changes}
    return pipe.sample(**asked, labels=random_labels(asked["num_samples"]) if pipe.num_classes else None)


def command(row: Row) -> str:
    """What to type to measure a row again."""
    options = (f"--{key.replace('_', '-')} {value}" for key, value in row.setting.items())
    return " ".join(("diffusion-book evaluate", row.model, *options))


def one_number(rows: list[Row]) -> None:
    """Refuse to set figures of different numbers of samples beside each other.

    Raises:
        BookError: they are.
    """
    numbers = sorted({row.setting["num_samples"] for row in rows})
    if len(numbers) > 1:
        listed = " and ".join(f"{number:,}" for number in numbers)
        raise BookError(f"figures of {listed} samples do not compare: choose rows of one number, scoreboard(10_000)")


def milliseconds(pipe: Pipeline, setting: dict, num_samples: int = 64, repeats: int = 3) -> float:
    """Time for one picture on this machine, decoding included: the shortest of some tries, after one to warm up.

    Args:
        pipe: the model.
        setting: as in a `Row`; its number of samples does not count.
        num_samples: drawn together.
        repeats: tries.
    """
    request = {**setting, "num_samples": num_samples}
    pipe.sample(**{**request, "steps": min(2, request["steps"])})
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        pipe.sample(**request)
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds) / num_samples
