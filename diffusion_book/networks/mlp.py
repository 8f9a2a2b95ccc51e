"""A small fully connected network for points in the plane: the one that the toy trains inside a page."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Reads points, their times and classes, and names a vector for each.

    A point (x, y) is read as x, y, sin 2x, sin 2y, cos 2x, cos 2y, a time as cos(pi k t) for k = 1 ... `waves`, a class
    as one of `num_classes` numbers that is 1. The waves let a narrow network learn thin lines in few steps.

    Args:
        num_classes: classes that it can be told.
        width, depth: of the hidden layers.
        waves: of the time.

    Source: Tancik et al. 2020, section 4, for the waves of the coordinates.
    """

    def __init__(self, num_classes: int = 3, width: int = 48, depth: int = 3, waves: int = 4) -> None:
        super().__init__()
        self.num_classes, self.waves = num_classes, waves
        widths = [6 + waves + num_classes, *[width] * depth, 2]
        layers = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])  # no SiLU after the last

    def forward(self, x: Tensor, t: Tensor, *, labels: Tensor | None = None) -> Tensor:
        """(B, 2), times (B,) in [0, 1] and classes (B,), -1 for none, to (B, 2)."""
        waves = math.pi * t[:, None] * torch.arange(1, self.waves + 1, device=t.device)  # (B, waves)
        told = torch.full((len(x),), -1, device=x.device) if labels is None else labels
        classes = F.one_hot(told + 1, self.num_classes + 1)[:, 1:].to(x)  # (B, num_classes)
        return self.layers(torch.cat([x, (2 * x).sin(), (2 * x).cos(), waves.cos().to(x), classes], dim=1))
