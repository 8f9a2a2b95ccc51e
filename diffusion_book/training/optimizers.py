"""Muon for the weights that are matrices, AdamW for the rest."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from diffusion_book.models.recipes import TrainingConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""coefficients of the quintic whose repetition pushes every singular value towards 1"""


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring every singular value of a stack of matrices close to 1 and leave the singular vectors alone.

    With M = U S V^T the result is about U V^T: an update that moves along all directions of the matrix
    alike, the rare ones too. The singular values end between 0.7 and 1.2, which is close enough here.

    Args:
        matrices: (N, rows, columns).
        steps: of the Newton-Schulz iteration.

    Returns:
        (N, rows, columns).

    Source: Liu et al. 2025, section 2.1 (Muon, which K. Jordan published in 2024).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # (N, rows, rows)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


class Muon:
    """Momentum whose update is made orthogonal, for matrices; AdamW for biases, gains and whatever else.

    A convolution's kernel (out, in, 3, 3) counts as the matrix (out, 9 in). The first and the last
    convolution translate between pixels and features, and are left to AdamW. One learning rate serves
    both: the orthogonal update is scaled to the size of AdamW's, 0.2 sqrt(max(rows, columns)).

    `torch.optim.Muon` computes the same, one matrix after the other and in bfloat16. Here all matrices of
    one shape are a batch, in their own precision, which takes a tenth of the time on a CPU.

    Args:
        network: its parameters are trained.
        lr: learning rate.
        weight_decay: each step takes lr times this share from every weight.
        momentum: of the matrices, with Nesterov's look ahead.

    Source: Liu et al. 2025, section 2; the scale: their equation 4.
    """

    def __init__(self, network: nn.Module, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        matrices, others = [], []
        for name, weight in network.named_parameters():
            ends = "conv_in." in name or "conv_out." in name
            (matrices if weight.ndim >= 2 and not ends else others).append(weight)
        self.momentum = momentum
        self.buffers = [torch.zeros_like(weight) for weight in matrices]
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, fused=True)
        self.param_groups = [{"params": matrices, "lr": lr, "weight_decay": weight_decay}, *self.adamw.param_groups]

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight against its gradient."""
        group = self.param_groups[0]
        alike = defaultdict(list)
        for weight, buffer in zip(group["params"], self.buffers, strict=True):
            if weight.grad is not None:
                buffer.lerp_(weight.grad, 1 - self.momentum)
                alike[weight.flatten(1).shape].append((weight, weight.grad.lerp(buffer, self.momentum)))
        for (rows, columns), pairs in alike.items():
            updates = orthogonalize(torch.stack([ahead.flatten(1) for _, ahead in pairs]))  # (N, rows, columns)
            scale = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
            for (weight, _), update in zip(pairs, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view_as(weight), alpha=scale)
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for weight in self.param_groups[0]["params"]:
            weight.grad = None
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """What a resumed training needs: tensors, numbers, lists and dictionaries."""
        return {"momentum": self.buffers, "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`'s result."""
        for buffer, stored in zip(self.buffers, state["momentum"], strict=True):
            buffer.copy_(stored)
        self.adamw.load_state_dict(state["adamw"])
        self.param_groups[1:] = self.adamw.param_groups


def build_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer | Muon:
    """The optimiser of a recipe."""
    if config.optimizer == "muon":
        return Muon(network, config.lr, config.weight_decay)
    return torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
