"""What a network should learn from pictures, and what it should not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_book.samplers import ddim, sample, time_grid
from diffusion_book.schedules import cosine, expand
from diffusion_book.targets import Prediction
from diffusion_book.viz.diagrams.kit import DDIM, NETWORK, NOISE, SMALL, Canvas, Diagram


def spiral(along: Tensor) -> Tensor:
    """Points (N, 2) of the curve on which the data of the drawing lie, at (N,) in [0, 1]."""
    angle = (0.35 + 1.35 * along) * math.pi
    return torch.stack([angle.cos() * (0.55 + 0.55 * along), -angle.sin() * (0.55 + 0.55 * along)], dim=1)


def of_points(data: Tensor):
    """The exact denoiser of a finite set of points (M, 2): x0 is their mean, weighted by how likely each is."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (expand(value, x) for value in cosine(t.expand(len(x))))
        away = torch.cdist(x, alpha[0] * data).square()  # (N, M)
        x0 = torch.softmax(-away / (2 * sigma.square().clamp(min=1e-12)), dim=1) @ data  # (N, M) @ (M, 2) -> (N, 2)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def recalled(data: Tensor, count: int) -> Tensor:
    """What the exact denoiser of the training set draws: (count, 2)."""
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=data.dtype)
    states = sample(of_points(data), noise, time_grid(100), ddim, schedule=cosine, generator=torch.Generator())
    return list(states)[-1].x


def memorisation(training: int = 7, samples: int = 30) -> Diagram:
    """The optimal denoiser of a training set returns its pictures; one that generalises fills the curve between them.

    The left samples are computed with the optimal denoiser; the right ones are drawn from the curve itself, the ideal.

    Args:
        training: points of the training set.
        samples: in each panel.

    Source: Kadkhodaie et al. 2023.
    """
    generator = torch.Generator().manual_seed(4)
    data = spiral((torch.arange(training, dtype=torch.float64) + 0.5) / training)
    panels = {
        "memorised": (recalled(data, samples), DDIM, "only the training\npictures come back"),
        "generalised": (
            spiral((torch.arange(samples) + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples),
            NETWORK,
            "new pictures, like\nthose of the training",
        ),
    }
    canvas, side, unit = Canvas(286), 170.0, 66.0
    curve = spiral(torch.linspace(-0.04, 1.04, 60, dtype=torch.float64))
    middle = (curve.amin(dim=0) + curve.amax(dim=0)) / 2
    for number, (title, (drawn, colour, words)) in enumerate(panels.items()):
        left, top = 4 + number * (side + 12), 28.0

        def place(points: Tensor, left=left, top=top) -> list[tuple[float, float]]:
            return ((points - middle) * unit + torch.tensor([left + side / 2, top + side / 2])).tolist()

        canvas.text(left + side / 2, 12, title, colour, bold=True)
        canvas.box(left, top, side, side, colour=NOISE, fill=0.05)
        canvas.line(place(curve), NOISE, 9, opacity=0.25)
        for x, y in place(data):
            canvas.circle(x, y, 7, fill=0)
        canvas.dots(place(drawn), colour, 5.5, 0.9)
        canvas.text(left + side / 2, top + side + 20, words, size=SMALL)
    canvas.circle(40, 266, 7, fill=0)
    canvas.text(54, 266, "training picture", anchor="start", size=SMALL)
    canvas.dots([(176, 266)], NETWORK, 5.5, 0.9)
    canvas.text(186, 266, "sample", anchor="start", size=SMALL)
    canvas.line([(246, 266), (268, 266)], NOISE, 9, opacity=0.25)
    canvas.text(280, 266, "all digits", anchor="start", size=SMALL)
    return canvas.finish(
        "Two panels with the same curve, on which all digits lie, and the same few training pictures, as rings. Left, every "
        "sample lies in a ring. Right, the samples lie along the whole curve, between the rings too."
    )
