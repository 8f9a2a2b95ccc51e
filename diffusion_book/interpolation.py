"""The way between two noises, and a plane of latents."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book.schedules import expand
from diffusion_book.system.errors import BookError


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """Spherical interpolation: walk from a (weight 0) to b (weight 1) along the great circle through both.

    Noise of many dimensions lies close to a sphere; the straight line between two draws cuts through
    its inside, where no draw ever falls. Each sample counts as one long vector. Where two of them are
    parallel there is no circle to walk on, and the straight line is taken.

    Args:
        a, b: (B, ...), of one shape.
        weight: one number, or (B,): one for each sample. Usually in [0, 1].

    Returns:
        (B, ...).

    Raises:
        BookError: the shapes differ, numbers are not finite, or there is not one weight a sample.

    Source: Shoemake 1985; used for noise in Song et al. 2020 (DDIM), section 5.3.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise BookError(
            f"noises of shapes {tuple(a.shape)} and {tuple(b.shape)}: interpolation needs two of one shape (B, ...)"
        )
    if not (a.is_floating_point() and b.is_floating_point() and a.isfinite().all() and b.isfinite().all()):
        raise BookError("interpolation needs noises of finite numbers with a fraction: draw them with Pipeline.noise")
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()  # (B, ...) -> (B, D)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)  # (B,)
    angle = cosine.acos()
    try:
        weight = torch.as_tensor(weight, dtype=torch.float64, device=a.device).expand(len(a))
    except (TypeError, ValueError, RuntimeError):
        raise BookError(f"the weight is {' '.join(repr(weight).split()):.60}: give a number, or one a sample") from None
    sine = angle.sin()
    parallel = sine < 1e-6
    sine = sine.masked_fill(parallel, 1.0)
    from_a = torch.where(parallel, 1 - weight, ((1 - weight) * angle).sin() / sine)
    from_b = torch.where(parallel, weight, (weight * angle).sin() / sine)
    return expand(from_a, a) * a + expand(from_b, b) * b


def plane_of_latents(limit: float = 3.0, count: int = 15) -> Tensor:
    """Latents of two dimensions on a square grid, row by row from the top left: (count * count, 2, 1, 1).

    Args:
        limit: the square reaches from -limit to limit on both axes.
        count: cells a row; a latent lies in the middle of its cell.
    """
    steps = (torch.arange(count) + 0.5) / count * 2 * limit - limit  # (count,)
    up, right = torch.meshgrid(steps.flip(0), steps, indexing="ij")
    return torch.stack([right, up], dim=-1).reshape(-1, 2, 1, 1)
