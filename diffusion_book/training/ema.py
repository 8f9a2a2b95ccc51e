"""The slow copy of a network that samples are drawn from."""

from __future__ import annotations

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Average of the weights over the last steps; steadier than the weights themselves.

    The decay warms up as min(decay, (1 + n) / (10 + n)) after n updates: a fixed decay would hold
    on to the random weights of the start for thousands of steps.

    Attributes:
        network: the copy, in eval mode, without gradients.
        updates: how many there have been.

    Source: Ho et al. 2020, appendix B (decay 0.9999); Song & Ermon 2020, technique 5.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the copy a little towards `network`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.network.parameters()), list(network.parameters()), 1 - decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1
