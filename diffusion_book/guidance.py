"""Classifier-free guidance: a denoiser made from a denoiser, and the training that it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book.denoiser import DenoiserFunction
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.schedules import expand
from diffusion_book.system.errors import BookError
from diffusion_book.targets import Prediction


def drop_labels(labels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Replace each label by `NO_CLASS` with some probability, so that the network learns both models at once.

    Args:
        labels: (B,), integers.
        probability: in [0, 1].
        generator: draws who is replaced.

    Returns:
        (B,).

    Source: Ho & Salimans 2022, algorithm 1 (there p_uncond).
    """
    chance = torch.rand(labels.shape, generator=generator, device=generator.device).to(labels.device)
    return torch.where(chance < probability, NO_CLASS, labels.long())  # bytes could not hold NO_CLASS


def guided(
    denoiser: DenoiserFunction,
    guidance_scale: float | Tensor,
    interval: tuple[float, float] = (0.0, 1.0),
) -> DenoiserFunction:
    """The same denoiser, pushed from what it thinks of any picture towards what it thinks of the class's.

    eps = eps_u + w (eps_c - eps_u), and the same for x0. The scale w = 1 is the plain conditional model, w = 0 the
    unconditional one. Papers that write (1 + w) eps_c - w eps_u mean by w what is w - 1 here.

    Args:
        denoiser: (x_t, t, labels=labels) -> Prediction, for labels and for `NO_CLASS`. It is called once, with both
            branches in one batch; where no scale but 0 or 1 is asked for, with the one branch alone.
        guidance_scale: w, one for all or one for each picture, (B,).
        interval: times t within which guidance acts; elsewhere w is 1.

    Raises:
        BookError: a scale that is not finite, or an interval that is none.

    Source: Ho & Salimans 2022, equation 6; the interval, Kynkaanniemi et al. 2024, equation 5.
    """
    scale = check_guidance(guidance_scale, interval)
    low, high = interval

    def guide(x_t: Tensor, t: Tensor, *, labels: Tensor, **condition) -> Prediction:
        t = t.expand(len(x_t))  # () -> (B,)
        if scale.ndim == 1 and len(scale) != len(x_t):
            raise BookError(f"{len(scale)} guidance scales for {len(x_t)} pictures: give one, or one for each")
        inside = (low <= t) & (t <= high)
        w = torch.where(inside, scale.to(t.device), 1.0)  # (B,)
        if (w == 1).all():
            return denoiser(x_t, t, labels=labels, **condition)
        nothing = torch.full_like(labels, NO_CLASS)
        if (w == 0).all():
            return denoiser(x_t, t, labels=nothing, **condition)
        both = {name: torch.cat([value, value]) for name, value in condition.items()}
        pair = denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), labels=torch.cat([nothing, labels]), **both)
        w = expand(w, x_t)
        # lerp(u, c, w) = u + w (c - u), and exactly u at 0 and c at 1.
        return Prediction(*(torch.lerp(*value.chunk(2), w) for value in pair))  # (2 B, ...) -> (B, ...)

    return guide


def check_guidance(guidance_scale: float | Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Refuse a scale that is not finite, and an interval that holds no time.

    Returns:
        The scale, () or (B,), float64.

    Raises:
        BookError: it is one of these.
    """
    try:
        if isinstance(guidance_scale, Tensor) and guidance_scale.is_complex():
            raise TypeError
        scale = torch.as_tensor(guidance_scale, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        scale = torch.tensor(torch.nan)
    if scale.ndim > 1 or not scale.isfinite().all():
        said = " ".join(repr(guidance_scale).split())  # a tensor may take several lines
        raise BookError(f"guidance_scale is {said:.60}: give a finite number, or one for each picture")
    try:
        low, high = map(float, interval)
        ordered = 0.0 <= low < high <= 1.0
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise BookError(f"the guidance interval is {interval!r:.60}: give two times with 0 <= low < high <= 1")
    return scale
