"""Flows: straightened paths, and the clocks that all Gaussian paths are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_book.samplers import euler, sample
from diffusion_book.schedules import rectified
from diffusion_book.targets import Prediction
from diffusion_book.viz.diagrams.kit import DDIM, DDPM, FLOW, NOISE, REFLOW, SMALL, Canvas, Diagram, Point

SPREAD = 0.12  # standard deviation of each of the two modes of the data, which lie at -1 and 1


def two_modes(x: Tensor, t: Tensor) -> Prediction:
    """The exact denoiser of two narrow modes on the straight path. x is (N, 1), t a single time in (0, 1]."""
    alpha, sigma = (float(value) for value in rectified(t))
    variance = (alpha * SPREAD) ** 2 + sigma**2
    modes = torch.tensor([-1.0, 1.0], dtype=x.dtype)
    weights = torch.softmax(-0.5 * (x - alpha * modes).square() / variance, dim=1)  # (N, 2)
    means = modes + alpha * SPREAD**2 / variance * (x - alpha * modes)  # (N, 2): of x0, had it come from that mode
    x0 = (weights * means).sum(dim=1, keepdim=True)
    return Prediction(x0, (x - alpha * x0) / sigma)


def flow_paths(starts: Tensor, steps: int = 200) -> Tensor:
    """Where the flow takes points (N,) from noise, step by step: (steps + 1, N)."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    states = sample(two_modes, starts[:, None], times, euler, schedule=rectified, generator=torch.Generator())
    return torch.stack([state.x[:, 0] for state in states])


def reflow(count: int = 12) -> Diagram:
    """Pairs at random cross; the flow that they define bends and never crosses; reflow makes its pairs straight.

    The paths are those of the exact flow from a normal distribution to two modes.

    Args:
        count: of paths.

    Source: Liu, Gong & Liu 2022, figure 2.
    """
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise = torch.special.ndtri(quantiles)  # (N,)
    generator = torch.Generator().manual_seed(1)
    pick = torch.randperm(count, generator=generator)
    modes = torch.where(torch.arange(count) % 2 == 0, -1.0, 1.0)[pick]
    data = modes + SPREAD * torch.randn(count, generator=generator, dtype=torch.float64)
    flow = flow_paths(noise)  # (S + 1, N)
    panels = {
        "random pairs": (NOISE, torch.stack([noise, data]), "straight lines,\nwhich cross"),
        "the flow": (FLOW, flow, "mean velocity: it\nbends, no crossing"),
        "reflow": (REFLOW, torch.stack([noise, flow[-1]]), "its own pairs:\nstraight paths"),
    }
    canvas, wide, middle, unit = Canvas(270), 100.0, 118.0, 40.0
    for number, (title, (colour, paths, words)) in enumerate(panels.items()):
        left = 8 + number * (wide + 22)
        canvas.text(left + wide / 2, 14, title, colour, bold=True)
        canvas.line([(left, 32), (left, 204)], NOISE, 1)
        canvas.line([(left + wide, 32), (left + wide, 204)], NOISE, 1)
        along = torch.linspace(0, wide, len(paths)).tolist()
        for path in paths.T.tolist():
            points = [(left + x, middle - unit * y) for x, y in zip(along, path, strict=True)]
            canvas.line(points[:: 4 if len(points) > 50 else 1] + points[-1:], DDPM if path[-1] > 0 else DDIM, 1.4)
        canvas.text(left, 216, "noise", NOISE, "start", SMALL)
        canvas.text(left + wide, 216, "data", NOISE, "end", SMALL)
        canvas.text(left + wide / 2, 246, words, size=SMALL)
    return canvas.finish(
        "Three panels with paths from noise to data at two points. Left: straight lines between random pairs, which cross. "
        "Middle: paths of the flow, which bend and do not cross. Right: after reflow, straight lines that do not cross."
    )


def clocks(ratio: float = 0.75) -> Diagram:
    """One flow, many clocks: Gaussian paths as curves in the plane of alpha and sigma.

    On a ray from the origin alpha and sigma stand in the same ratio: there all paths hold the same noisy picture, and
    differ only in its scale.

    Args:
        ratio: sigma / alpha of the ray that is drawn.

    Source: Kingma et al. 2021, section 5.1; Karras et al. 2022, table 1.
    """
    canvas, unit, left, floor = Canvas(366), 216.0, 60.0, 306.0

    def at(alpha: float, sigma: float) -> Point:
        return left + unit * alpha, floor - unit * sigma

    canvas.arrow([at(0, 0), at(1.32, 0)], width=1.2)
    canvas.arrow([at(0, 0), at(0, 1.36)], width=1.2)
    canvas.text(*at(1.28, 0.065), "$α$")
    canvas.text(left - 14, at(0, 1.3)[1], "$σ$")
    arc = [at(math.cos(a * math.pi / 80), math.sin(a * math.pi / 80)) for a in range(41)]
    canvas.line(arc, DDPM, 2.2)
    canvas.line([at(1, 0), at(0, 1)], FLOW, 2.2)
    canvas.arrow([at(1, 0), at(1, 1.3)], DDIM, width=2.2)
    canvas.line([at(0, 0), at(1.24, 1.24 * ratio)], NOISE, 1.4, dashed=True)

    circle = (1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio))
    straight = (1 / (1 + ratio), ratio / (1 + ratio))
    canvas.arrow([at(*circle), at(circle[0] - 0.36 * circle[1], circle[1] + 0.36 * circle[0])], DDPM, width=2.4)
    canvas.arrow([at(*straight), at(straight[0] - 0.22, straight[1] + 0.22)], FLOW, width=2.4)
    canvas.dots([at(*circle)], DDPM, 9, 1)
    canvas.dots([at(*straight)], FLOW, 9, 1)
    canvas.dots([at(1, ratio)], DDIM, 9, 1)

    canvas.text(*at(1, -0.09), "$x_0$: data")
    canvas.text(left - 10, at(0, 1)[1], "$ε$", anchor="end")
    canvas.text(left - 10, at(0, 0.9)[1], "noise", anchor="end", size=SMALL)
    canvas.text(left + 8, at(0, 1.27)[1], "cosine: $α^2 + σ^2 = 1$", DDPM, "start")
    canvas.text(left + 8, at(0, 0.4)[1], "straight:\n$α + σ = 1$", FLOW, "start")
    canvas.text(at(1.04, 1.2)[0], at(0, 1.2)[1], "EDM:\n$α = 1$", DDIM, "start")
    canvas.text(at(0.6, 0)[0], at(0, 0.965)[1], "$v$", DDPM, "start")
    canvas.text(at(0.3, 0)[0], at(0, 0.56)[1], "$u$", FLOW, "end")
    canvas.text(180, 354, "on a dashed ray: the same picture, at another scale", size=SMALL)
    return canvas.finish(
        "The plane of alpha and sigma. From data at (1, 0) to noise at (0, 1) lead a quarter circle, the cosine schedule, and "
        "a straight line, the rectified flow; upwards leads EDM's path. A dashed ray crosses all three. On it v is the "
        "tangent of the circle, and u of the line."
    )
