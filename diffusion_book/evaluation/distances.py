"""How far one set of pictures is from another, given the features of both.

Every function takes features (N, D) and returns plain numbers. Means and covariances are computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_book.system.errors import BookError, whole

CHUNK = 2000  # rows of a distance matrix held at once


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of two Gaussians fitted to the features.

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)). It is biased upwards by small
    samples: compare it only at equal N.

    Args:
        a, b: (N, D) and (M, D), each with at least two rows.

    Source: Heusel et al. 2017, equation 6 (there with Inception's features, called FID).
    """
    _check(a, b)
    a, b = a.double(), b.double()
    covariance_a, covariance_b = (torch.cov(each.T).reshape(a.shape[1], -1) for each in (a, b))  # (D, D)
    # trace (C_a C_b)^(1/2) is the sum of the roots of the eigenvalues of the symmetric
    # C_a^(1/2) C_b C_a^(1/2).
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    difference = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, (difference + covariance_a.trace() + covariance_b.trace() - 2 * cross).item())


def frechet_error(a: Tensor, b: Tensor) -> float:
    """Standard error of `frechet_distance(a, b)` by the choice of `a`'s N points; `b` is taken as given.

    This is the infinitesimal jackknife: the standard deviation of what each point adds to the distance, over the root
    of N. To first order a point x of `a`, seen from the mean of `a`, adds

        2 (mean_a - mean_b) . x + x . (I - T) x,    T = C_b^(1/2) (C_b^(1/2) C_a C_b^(1/2))^(-1/2) C_b^(1/2),

    where T takes a Gaussian with the covariance C_a to one with C_b. A bootstrap would not do: points that are drawn
    twice make a set of fewer different ones, whose distance is larger.

    The error is right where the distance is well above its bias. Near it the slope almost vanishes and the second order
    takes over, for which a jackknife counts twice the variance: there the error is too large, by up to sqrt(2).

    Args:
        a, b: (N, D) and (M, D), each with at least two rows.

    Source: Efron 1982, chapter 6; T is the map of Dowson & Landau 1982.
    """
    _check(a, b)
    a, b = a.double(), b.double()
    covariance_a, covariance_b = (torch.cov(each.T).reshape(a.shape[1], -1) for each in (a, b))  # (D, D)
    values, vectors = torch.linalg.eigh(covariance_b)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    values, vectors = torch.linalg.eigh(root @ covariance_a @ root)
    kept = values > 1e-10 * values.max()  # directions in which `a` has no points have no slope
    middle = vectors[:, kept] * values[kept].rsqrt() @ vectors[:, kept].T
    slope = torch.eye(len(values), dtype=a.dtype, device=a.device) - root @ middle @ root
    x = a - a.mean(0)
    added = 2 * x @ (a.mean(0) - b.mean(0)) + (x @ slope * x).sum(1)  # (N,)
    return added.std().item() / len(a) ** 0.5


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy under the kernel (x . y / D + 1)^3; unbiased, so it may be negative.

    Source: Binkowski et al. 2018, section 4 (called KID).
    """
    _check(a, b)
    a, b = a.double(), b.double()

    def mean(x: Tensor, y: Tensor, same: bool) -> Tensor:
        total = sum((part @ y.T / x.shape[1] + 1).pow(3).sum() for part in x.split(CHUNK))
        if not same:
            return total / (len(x) * len(y))
        diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (total - diagonal) / (len(x) * (len(x) - 1))

    return (mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)).item()


def precision_recall(generated: Tensor, real: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Share of generated pictures inside the region of the real ones (precision), and the reverse (recall).

    A set's region is the union of balls around its members, each reaching to its k-th neighbour.

    Source: Kynkaanniemi et al. 2019, equations 1 and 2 (k = 3 as there).
    """
    _check(generated, real)
    if whole("neighbours", neighbours) < 1:
        raise BookError(f"neighbours is {neighbours!s:.60}: it must be at least 1")
    if min(len(generated), len(real)) <= neighbours:
        raise BookError(f"precision and recall need more than {neighbours} pictures on both sides")

    def covered(points: Tensor, members: Tensor) -> float:
        radii = torch.cat(
            # The nearest "neighbour" of a member is itself, at distance 0.
            [torch.cdist(part, members).kthvalue(neighbours + 1, dim=1).values for part in members.split(CHUNK)]
        )
        inside = [(torch.cdist(part, members) <= radii).any(dim=1) for part in points.split(CHUNK)]
        return torch.cat(inside).double().mean().item()

    generated, real = generated.float(), real.float()
    return covered(generated, real), covered(real, generated)


def nearest(points: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest member, and its index, for each point: (N,), (N,)."""
    _check(points, members)
    parts = [torch.cdist(part, members.float()).min(dim=1) for part in points.float().split(CHUNK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


class Copies(NamedTuple):
    """The points that are nearest to members of another set, the nearest first."""

    pictures: Tensor
    """which points they are, (K,)"""
    training: Tensor
    """which member is nearest to each, (K,)"""
    distances: Tensor
    """between the two, (K,)"""


def closest(points: Tensor, members: Tensor, count: int = 10) -> Copies:
    """The `count` points that are nearest to members, for whoever looks for copies; no more than there are."""
    distances, training = nearest(points, members)
    order = distances.argsort(stable=True)[:count]
    return Copies(order, training[order], distances[order])


def _check(a: Tensor, b: Tensor) -> None:
    if any(not isinstance(each, Tensor) or each.is_complex() for each in (a, b)):
        raise BookError("features must be tensors of real numbers: take them with features.features")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2 or a.shape[1] < 1:
        raise BookError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: both must be (N >= 2, D) with one D"
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise BookError("the features hold numbers that are not finite: look at the pictures they were taken from")
