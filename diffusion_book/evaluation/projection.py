"""Points of many numbers, laid out in the plane."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book.errors import BookError

NEIGHBOURS = 15  # of UMAP: how far around a point it looks to keep its surroundings together


def principal_components(points: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Points along the directions in which they vary most.

    Args:
        points: (N, D), at least two of them.
        count: of directions, at most D.

    Returns:
        Coordinates (N, count), and the share of the variance that each direction has, (count,).

    Source: Hotelling 1933.
    """
    centred = points.double() - points.double().mean(dim=0)
    covariance = centred.T @ centred / len(points)  # (D, D)
    variances, directions = torch.linalg.eigh(covariance)  # the smallest first
    chosen = directions[:, -count:].flip(1)  # (D, count)
    # The sign of a direction is arbitrary: let its largest entry be positive, so that every run draws the same.
    largest = chosen.gather(0, chosen.abs().argmax(dim=0, keepdim=True))
    shares = variances[-count:].flip(0).clamp(min=0) / variances.sum().clamp(min=1e-30)
    return (centred @ (chosen * largest.sign())).float(), shares.float()


def umap_plane(points: Tensor, seed: int = 0) -> Tensor:
    """Points in the plane so that near ones stay near. Large distances in it mean nothing.

    Args:
        points: (N, D), more than 15 of them.
        seed: of its random start.

    Returns:
        (N, 2).

    Raises:
        BookError: umap-learn is not installed, or there are too few points.

    Source: McInnes, Healy & Melville 2018.
    """
    if len(points) <= NEIGHBOURS:
        raise BookError(f"UMAP of {len(points)} points: it needs more than {NEIGHBOURS}")
    try:
        import umap  # takes many seconds to import
    except ImportError:
        raise BookError("UMAP needs the package umap-learn: pip install umap-learn") from None
    # n_jobs: with a fixed seed it works on one core anyhow, and would warn.
    plane = umap.UMAP(n_neighbors=NEIGHBOURS, random_state=seed, n_jobs=1).fit_transform(points.float().numpy())
    return torch.from_numpy(plane)
