"""Points of many numbers, laid out in the plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.system.errors import BookError, whole

NEIGHBOURS = 15  # of UMAP: how far around a point it looks to keep its surroundings together


def principal_components(points: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Points along the directions in which they vary most.

    Args:
        points: (N, D), at least two of them.
        count: of directions, at most D.

    Returns:
        Coordinates (N, count), and the share of the variance that each direction has, (count,).

    Raises:
        BookError: too few points, more directions than there are, or numbers that are not finite.

    Source: Hotelling 1933.
    """
    if points.ndim != 2 or len(points) < 2 or not 1 <= whole("count", count) <= points.shape[1]:
        raise BookError(
            f"{count!s:.20} directions of points {tuple(points.shape)}: points must be (N >= 2, D), directions 1 to D"
        )
    if points.is_complex() or not points.isfinite().all():
        raise BookError("the points hold numbers that are not finite: look at what they were made from")
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
    return joint_map({"points": points}, seed, min_dist=0.1).places["points"]


@dataclass(frozen=True)
class JointMap:
    """Several sets of points laid out together in one plane. See `joint_map`.

    Attributes:
        places: set -> (N, 2).
        reducer: the fitted UMAP.
    """

    places: dict[str, Tensor]
    reducer: object

    def locate(self, points: Tensor) -> Tensor:
        """Where other points belong on the same map: (..., D) -> (..., 2).

        A point is put among those of the map that it is nearest to, however far it is from all of them. The answer
        for a point depends a little on which others are asked about in the same call; the same call answers the same.

        Source: McInnes, Healy & Melville 2018, `UMAP.transform`.
        """
        flat = self.reducer.transform(points.flatten(0, -2).float().numpy())
        return torch.from_numpy(flat).reshape(*points.shape[:-1], 2)


def joint_map(sets: dict[str, Tensor], seed: int = 0, min_dist: float = 0.5) -> JointMap:
    """One plane for several sets of points, laid out all together by UMAP, so that they can be compared.

    Args:
        sets: name -> (N, D), more than 15 points in all; D is the same for all sets.
        seed: of its random start. The same points and seed give the same map.
        min_dist: how near to each other points may lie, 0 to 1. At UMAP's own 0.1 the groups of a classifier's features
            are so tight that nobody sees whether two sets mix in them.

    Raises:
        BookError: umap-learn is not installed, the sets do not fit together, or there are too few points.

    Source: McInnes, Healy & Melville 2018.

    Example:
        joint_map({"real": features(real), **{name: features(load(name).sample(500)) for name in ("ddpm", "ldm")}})
    """
    if not sets or any(points.ndim != 2 for points in sets.values()):
        raise BookError("a map needs one set of points of shape (N, D) or more: flatten pictures first")
    if len({points.shape[1] for points in sets.values()}) > 1:
        raise BookError("a map needs points of one and the same kind: these sets have different numbers a point")
    points = torch.cat([points.float().cpu() for points in sets.values()])
    if len(points) <= NEIGHBOURS:
        raise BookError(f"UMAP of {len(points)} points: it needs more than {NEIGHBOURS}")
    try:
        import umap  # takes many seconds to import
    except ImportError:
        raise BookError("UMAP needs the package umap-learn: pip install umap-learn") from None
    # n_jobs: with a fixed seed it works on one core anyhow, and would warn.
    reducer = umap.UMAP(n_neighbors=NEIGHBOURS, min_dist=min_dist, random_state=seed % 2**32, n_jobs=1)
    plane = torch.from_numpy(reducer.fit_transform(points.numpy()))
    sizes = [len(points) for points in sets.values()]
    return JointMap(dict(zip(sets, plane.split(sizes), strict=True)), reducer)
