"""A digit for the diagrams, drawn with a pen, and noise on it. It is nobody's handwriting, so it needs no data set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion_book.schedules import Schedule, add_noise, cosine

PEN = 1.5  # half the width of the stroke, pixels


def digit() -> Tensor:
    """A three of 28 x 28 pixels, (28, 28), from -1 (background) to 1 (ink)."""
    bow = torch.linspace(-0.75 * math.pi, 0.5 * math.pi, 60)
    upper = torch.stack([13.5 + 4.6 * bow.cos(), 9.3 + 4.1 * bow.sin()], dim=1)  # (60, 2), x and y
    bow = torch.linspace(-0.5 * math.pi, 0.78 * math.pi, 60)
    lower = torch.stack([13.5 + 5.4 * bow.cos(), 18.2 + 4.8 * bow.sin()], dim=1)
    stroke = torch.cat([upper, lower])  # (120, 2)
    side = torch.arange(28) + 0.5
    pixels = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1)  # (28, 28, 2)
    away = torch.cdist(pixels.reshape(-1, 2), stroke).amin(dim=1).reshape(28, 28)
    return torch.tanh((PEN - away) / 0.45)


def noisy(t: float, schedule: Schedule = cosine, seed: int = 0) -> Tensor:
    """The same three at time t of a schedule, with the same noise at every time: (28, 28)."""
    x0 = digit()
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    return add_noise(schedule, x0[None], eps[None], torch.tensor([t]))[0]
