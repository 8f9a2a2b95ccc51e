"""What guidance buys and what it costs: the figures of a model's pictures at one guidance scale."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.evaluation.distances import frechet_distance, precision_recall
from diffusion_book.evaluation.features import check_units, classifier, features, logits, reference_features
from diffusion_book.evaluation.measures import floor, real_features
from diffusion_book.system.errors import BookError

EVERY = 5  # of the test pictures count for the recall; the first ones alone would not do, they are easier than the rest


@dataclass(frozen=True)
class ScaleMeasures:
    """What was measured at one guidance scale."""

    guidance_scale: float
    num_samples: int
    class_accuracy: float
    """share of the pictures that the second classifier takes for the class that was asked for"""
    recall: float
    """share of real pictures that lie among the generated ones"""
    recall_real: float
    """the same for as many real training pictures"""
    spread: float
    """mean distance of two pictures that were asked to be of one class, in the classifier's features"""
    spread_real: float
    """the same for as many real training pictures"""
    cfid: float
    """Frechet distance of the classifier's features to the test set; lower is better"""
    floor: float
    """the same for as many real training pictures, the mean of ten draws"""

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in dataclasses.asdict(self).items()
        }


def measure_scale(images: Tensor, labels: Tensor, guidance_scale: float) -> ScaleMeasures:
    """Measure pictures that were drawn with one guidance scale.

    Args:
        images: (N, 1, 28, 28), floats in [-1, 1] or bytes; N from 10 to 60,000.
        labels: (N,), what was asked for; some class twice at least.
        guidance_scale: w.

    Raises:
        BookError: too few or too many pictures, of another size, in other units, or not finite.
    """
    number = len(images)
    lowest = floor(number).mean
    if tuple(labels.shape) != (number,):
        raise BookError(f"labels of shape {tuple(labels.shape)} for {number} pictures: give one for each")
    if not images.isfinite().all():
        raise BookError(f"pictures of guidance scale {guidance_scale:g} are not finite: give a smaller scale")
    check_units(images)
    seen, test = features(images), reference_features()["test"]
    recall_real, spread_real = _real(number)
    return ScaleMeasures(
        guidance_scale=float(guidance_scale),
        num_samples=number,
        class_accuracy=(logits(images).argmax(dim=1) == labels.cpu()).double().mean().item(),
        recall=precision_recall(seen, test[::EVERY])[1],
        recall_real=recall_real,
        spread=spread(seen, labels.cpu()),
        spread_real=spread_real,
        cfid=frechet_distance(seen, test),
        floor=lowest,
    )


def spread(points: Tensor, labels: Tensor) -> float:
    """Mean distance of two different points with the same label, averaged over the labels.

    Args:
        points: (N, D).
        labels: (N,); a label that only one point has counts for nothing.

    Raises:
        BookError: no label has two points, or there is not one label a point.
    """
    if points.ndim != 2 or tuple(labels.shape) != (len(points),):
        raise BookError(f"points {tuple(points.shape)} and labels {tuple(labels.shape)}: they must be (N, D) and (N,)")
    groups = [points[labels == label] for label in labels.unique()]
    means = [torch.pdist(group.double()).mean() for group in groups if len(group) > 1]
    if not means:
        raise BookError("the spread within a class needs two pictures of some class: draw more of them")
    return torch.stack(means).mean().item()


@functools.cache
def _real(number: int) -> tuple[float, float]:
    """Recall and spread of real training pictures, whose classes are what the first classifier says."""
    real = real_features(number)
    with torch.no_grad():
        labels = classifier().head(real).argmax(dim=1)
    return precision_recall(real, reference_features()["test"][::EVERY])[1], spread(real, labels)


COLUMNS = (
    ("accuracy", "class_accuracy", None, "share taken for the class that was asked for"),
    ("recall", "recall", "recall_real", "share of real pictures that lie among the samples: variety over all"),
    ("spread", "spread", "spread_real", "mean distance of two samples of a class: variety within it"),
    ("cFID", "cfid", "floor", "distance to the test set; lower is better"),
)
"""name, key of the measure, key of the same for real pictures, what it says"""


def sweep_table(sweeps: dict[str, list[ScaleMeasures]]) -> str:
    """The figures as lines of text, and under them what real pictures reach and what the columns say.

    Args:
        sweeps: model -> figures, one a scale.
    """
    first = next(iter(sweeps.values()))[0]
    lines = [f"{'model':22}{'scale':>7}" + "".join(f"{name:>10}" for name, *_ in COLUMNS)]
    for model, row in ((model, row) for model, rows in sweeps.items() for row in rows):
        cells = "".join(f"{getattr(row, key):10.3f}" for _, key, *_ in COLUMNS)
        lines.append(f"{model:22}{row.guidance_scale:7g}{cells}")
    real = "".join(f"{getattr(first, key):10.3f}" if key else f"{'':10}" for _, _, key, _ in COLUMNS)
    lines += [
        f"{'real pictures':29}{real}",
        "",
        f"of {first.num_samples:,} samples a scale, digits at random in MNIST's proportions:",
    ]
    lines += [f"{name:9}{meaning}" for name, _, _, meaning in COLUMNS]
    if any(row.guidance_scale == 0 for rows in sweeps.values() for row in rows):
        lines.append("At scale 0 the model is not told the class: there the spread is that of all classes.")
    return "\n".join(lines)
