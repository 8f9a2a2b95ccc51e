"""Noise and its removal, step by step: the mental model, the Markov chain, one step back, and jumps."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_book.samplers import ddim, ddpm, sample, time_grid
from diffusion_book.schedules import Schedule, add_noise, cosine, expand, posterior, transition
from diffusion_book.targets import Prediction
from diffusion_book.viz.diagrams.digit import noisy
from diffusion_book.viz.diagrams.kit import DDIM, DDPM, NETWORK, NOISE, SMALL, Canvas, Diagram


def noise_to_data(pictures: Tensor | None = None) -> Diagram:
    """The mental model of the book: above, one picture as noise is added and removed; below, all pictures as points.

    Args:
        pictures: five states of one sample from noise to data, (5, H, W), floats in [-1, 1] or bytes; None draws a
            three and adds noise to it.
    """
    times = [1.0, 0.75, 0.5, 0.25, 0.0]
    if pictures is None:
        pictures = torch.stack([noisy(t) for t in times])
    canvas, size, gap = Canvas(330), 54.0, 17.5
    lefts = [10 + number * (size + gap) for number in range(5)]
    canvas.text(180, 12, "training: add noise, which is easy", NOISE)
    canvas.arrow([(lefts[4] + size, 30), (lefts[0], 30)], NOISE)
    for left, picture, t in zip(lefts, pictures, times, strict=True):
        canvas.picture(left, 44, size, picture)
        words = {1.0: "$t = 1$\nnoise", 0.0: "$t = 0$\ndata"}.get(t, f"{t:g}")
        canvas.text(left + size / 2, 120 if t in (0, 1) else 112, words)
    canvas.arrow([(lefts[0], 156), (lefts[4] + size, 156)], NETWORK, width=2)
    canvas.text(180, 173, "sampling: a network removes it, a little at a time", NETWORK)

    # Every picture is a point. Pictures of digits lie on a thin curve, noise is everywhere.
    generator = torch.Generator().manual_seed(0)
    along = torch.rand(150, generator=generator) * 1.6 * math.pi + 0.2 * math.pi  # of a ring with a gap
    data = torch.stack([along.cos(), along.sin()], dim=1)
    eps = torch.randn(150, 2, generator=generator)
    side, scale = 104.0, 17.0
    for number, t in enumerate((1.0, 0.3, 0.0)):
        left = 10 + number * (side + 14)
        points = add_noise(cosine, 1.9 * data, eps, torch.tensor(t)) * scale
        canvas.box(left, 198, side, side, colour=NOISE, fill=0.05)
        inside = points.clamp(-side / 2 + 4, side / 2 - 4) + torch.tensor([left + side / 2, 198 + side / 2])
        canvas.dots(inside.tolist(), NETWORK, 3.2)
        if t:
            canvas.arrow([(left + side + 1, 250), (left + side + 13, 250)], NETWORK)
    canvas.text(180, 317, "all pictures as points: a cloud becomes the data", size=SMALL)
    return canvas.finish(
        "Five pictures in a row. From right to left noise is added until a three has become pure noise; from left to "
        "right a network removes it, a little at a time. Below, a cloud of points becomes a thin curve in the same way."
    )


def markov_chain() -> Diagram:
    """The forward process q, fixed, and the reverse process p, learned, between neighbouring states.

    Source: Ho et al. 2020, figure 2.
    """
    canvas, size, top = Canvas(236), 56.0, 84.0
    states = {
        0.0: ("$x_0$\ndata", 6.0),
        0.3: ("$x_{k-1}$", 103.0),
        0.55: ("$x_k$", 201.0),
        1.0: ("$x_T$\nnoise", 298.0),
    }
    for t, (words, left) in states.items():
        canvas.picture(left, top, size, noisy(t))
        canvas.text(left + size / 2, top + size + (21 if "\n" in words else 13), words)
    middles = [left + size / 2 for _, left in states.values()]
    # Between the ends of the chain and its middle there are many steps more.
    for start, end in ((middles[0], middles[1]), (middles[2], middles[3])):
        canvas.arrow([(start + size / 2 + 3, top + 20), (end - size / 2 - 3, top + 20)], NOISE, dashed=True)
        canvas.arrow([(end - size / 2 - 3, top + 36), (start + size / 2 + 3, top + 36)], NETWORK, dashed=True)
    canvas.arrow([(middles[1], top - 4), (middles[2], top - 4)], NOISE, bend=22)
    canvas.arrow([(middles[2], top + size + 24), (middles[1], top + size + 24)], NETWORK, bend=22, width=2)
    canvas.text(180, 14, "fixed: adds noise", NOISE)
    canvas.text(180, 40, "$q(x_k | x_{k-1})$", NOISE)
    canvas.text(180, 200, "$p_θ(x_{k-1} | x_k)$", NETWORK)
    canvas.text(180, 224, "learned: removes noise", NETWORK)
    return canvas.finish(
        "A chain of pictures from a digit, x0, over x(k-1) and x(k) to pure noise, x(T). Grey arrows to the right: the "
        "forward process q, which adds noise. Blue arrows to the left: the reverse process p, which is learned."
    )


def posterior_product(
    x0: float = 1.0, x_t: float = -0.6, t: float = 0.5, s: float = 0.4, schedule: Schedule = cosine
) -> Diagram:
    """One step back if the clean picture is known: what x_t says of x_s, times what x_0 says of it.

    Args:
        x0, x_t: numbers, in the place of one pixel.
        t, s: times in (0, 1], s < t.

    Source: Ho et al. 2020, equations 6 and 7.
    """
    curves = gaussians(x0, x_t, t, s, schedule)
    canvas, floor, high = Canvas(232), 190.0, 150.0
    across = torch.linspace(-2.6, 2.6, 131, dtype=torch.float64)
    peak = 1 / (math.sqrt(2 * math.pi) * min(std for _, std in curves.values()))

    def place(x: float) -> float:
        return 180 + 66 * x

    looks = {"likelihood": (DDIM, 0.10), "prior": (NOISE, 0.14), "posterior": (NETWORK, 0.22)}
    for name, (mean, std) in curves.items():
        colour, fill = looks[name]
        density = torch.exp(-0.5 * ((across - mean) / std) ** 2) / (math.sqrt(2 * math.pi) * std)
        points = [(place(x), floor - high * y / peak) for x, y in zip(across.tolist(), density.tolist(), strict=True)]
        canvas.line(points, colour, 2.5 if name == "posterior" else 1.8, fill=fill)
    canvas.arrow([(4, floor), (356, floor)])
    canvas.text(356, floor + 14, "$x_{k-1}$", anchor="end")
    words = {
        "likelihood": "the noisy $x_k$\nsays\n$q(x_k | x_{k-1})$",
        "prior": "the clean $x_0$\nsays\n$q(x_{k-1} | x_0)$",
    }
    first, second = sorted(words, key=lambda name: curves[name][0])  # from the left
    canvas.text(6, 62, words[first], looks[first][0], "start")
    canvas.text(354, 62, words[second], looks[second][0], "end")
    mean, _ = curves["posterior"]
    canvas.line([(place(mean), floor), (place(mean), floor - high)], NETWORK, 1.2, dashed=True)
    canvas.text(180, 17, "their product: $q(x_{k-1} | x_k, x_0)$", NETWORK)
    canvas.text(place(mean), floor + 28, "between the two, and narrower than either", size=SMALL)
    return canvas.finish(
        "Three bell curves over x(k-1). One is what the noisy x(k) says, one what the clean x0 says. Their product, the "
        "posterior, lies between them and is narrower than either."
    )


def gaussians(x0: float, x_t: float, t: float, s: float, schedule: Schedule) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation, as functions of x_s: of q(x_t | x_s), of q(x_s | x_0), and of q(x_s | x_t, x_0)."""
    time, earlier = torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    alpha_ts, variance_ts = transition(schedule, time, earlier)
    alpha_s, sigma_s = schedule(earlier)
    from_x_t, from_x_0, variance = posterior(schedule, time, earlier)
    return {
        "likelihood": (float(x_t / alpha_ts), float(variance_ts.sqrt() / alpha_ts)),
        "prior": (float(alpha_s * x0), float(sigma_s)),
        "posterior": (float(from_x_t * x_t + from_x_0 * x0), float(variance.sqrt())),
    }


def two_points(x: Tensor, t: Tensor) -> Prediction:
    """The exact denoiser of data that are -1 or 1, each half of the time: the posterior mean is a tanh."""
    alpha, sigma = (expand(value, x) for value in cosine(t.expand(len(x))))
    x0 = torch.tanh(alpha * x / sigma.square().clamp(min=1e-12))
    return Prediction(x0, (x - alpha * x0) / sigma)


def ddim_jumps(steps: int = 5, many: int = 40) -> Diagram:
    """From the same noise: many small random steps of DDPM, and a few jumps of DDIM along a smooth path.

    The paths are those of the exact denoiser of data at -1 and 1.

    Args:
        steps: of DDIM.
        many: of DDPM.
    """
    canvas, left, width, middle, unit = Canvas(308), 14.0, 296.0, 160.0, 62.0

    def walk(step, count: int, start: list[float], seed: int) -> list[list[tuple[float, float]]]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.tensor(start, dtype=torch.float64)[:, None]  # (N, 1)
        states = list(sample(two_points, x, time_grid(count), step, schedule=cosine, generator=generator))
        tracks = torch.stack([state.x[:, 0] for state in states], dim=1).tolist()  # N lists of numbers
        return [
            [(left + (1 - state.t) * width, middle - unit * y) for state, y in zip(states, track, strict=True)]
            for track in tracks
        ]

    canvas.line([(left, 44), (left, 272)], NOISE, 1)
    canvas.line([(left + width, 44), (left + width, 272)], NOISE, 1)
    starts = [0.35, -1.75]
    for path in walk(ddpm, many, starts, seed=3):
        canvas.line(path, DDPM, 1.3, opacity=0.85)
    for path in walk(ddim, 400, starts, seed=0):
        canvas.line(path, DDIM, 1.2, dashed=True)
    for path in walk(ddim, steps, starts, seed=0):
        for begin, end in pairwise(path):
            canvas.arrow([begin, end], DDIM, width=2)
        canvas.dots(path[:1], DDIM, 7, 1)
    for value in (-1, 1):
        canvas.circle(left + width + 14, middle - unit * value, 7, fill=0.5)
    canvas.text(left + width + 5, middle, "data", anchor="start")
    canvas.text(left, 287, "$t = 1$, noise", anchor="start")
    canvas.text(left + width, 287, "$t = 0$", anchor="end")
    canvas.text(left, 12, f"DDPM: {many} small steps, each with fresh noise", DDPM, "start")
    canvas.text(left, 30, f"DDIM: {steps} jumps along a smooth path", DDIM, "start")
    canvas.arrow([(left + 110, 287), (left + width - 60, 287)])
    return canvas.finish(
        "Paths from noise on the left to data on the right, from the same two starts. DDPM's jitter at every step. "
        "DDIM's few long arrows stay close to a smooth dashed curve, which they would follow exactly in many steps."
    )
