"""Name what ails a loss, a sampler or guidance: hand it a network that knows the answer.

Whatever goes wrong then is the fault of the code that called it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.denoiser import DenoiserFunction
from diffusion_book.evaluation.clinic import distance
from diffusion_book.evaluation.findings import Finding, finding
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.schedules import Schedule, expand
from diffusion_book.system.errors import BookError
from diffusion_book.targets import Prediction, Target, target_value

SIZE = 0.05  # largest relative error of the noise in a sampler's state
PILED = 0.01  # share of a state's numbers at its very largest value, from which it was clamped
END = 0.05  # largest distance of a sampler's end from the picture that its denoiser knew

SEED = 2**31 - 1
"""of the noise that samplers start from: one that none of them will have for its fresh noise, or both would be equal"""


def knowing_network(picture: Tensor, schedule: Schedule, target: Target) -> Callable[..., Tensor]:
    """A network for data that are all one picture. It reads the noise off x_t, and makes no errors.

    Args:
        picture: (C, H, W).
    """

    def network(x_t: Tensor, t: Tensor, **condition) -> Tensor:
        alpha, sigma = schedule(t.double())
        x0 = picture.to(x_t).expand_as(x_t)
        eps = (x_t - expand(alpha, x_t) * x0) / expand(sigma, x_t)
        return target_value(target, x0, eps, alpha, sigma)

    return network


def examine_loss(
    loss: Callable[[Callable[..., Tensor], Tensor, torch.Generator], Tensor],
    schedule: Schedule,
    target: Target,
    shape: tuple[int, int, int] = (1, 32, 32),
    seed: int = 0,
) -> list[Finding]:
    """Hand a training loss a network that knows the answer: its loss must be 0.

    A second noise, an index that is off by one and a wrong sign all leave a loss that no training can bring down.

    Args:
        loss: (network, clean pictures (B, C, H, W), generator) -> loss.
        schedule, target: what it is meant to train.
        shape: of a picture.
    """
    picture = _checked(shape)
    network = knowing_network(picture, schedule, target)
    value = loss(network, picture.expand(64, *shape), torch.Generator().manual_seed(seed)).double().mean().item()
    text = f"A network that knows the answer has a loss of {value:.2g} (it must be 0)."
    advice = "Look at the noise (drawn once?), at the time (the same in x_t and for the network?) and at the sign."
    return [finding("loss", value < 1e-4, text, advice)]


def examine_sampler(
    draw: Callable[[DenoiserFunction, Tensor], Tensor],
    schedule: Schedule,
    shape: tuple[int, int, int] = (1, 32, 32),
    number: int = 8,
    seed: int = SEED,
) -> list[Finding]:
    """Hand a sampler a denoiser that knows the picture: the walk must start at t = 1 and end in the picture.

    On the way each state must have as much noise as its time says. None of that depends on a training.

    Args:
        draw: (denoiser, noise (B, C, H, W)) -> pictures, of the same shape. The denoiser takes (x_t, t).
        schedule: of the sampler.
        shape: of a picture.
        number: B.
    """
    looked = recorded_walk(draw, schedule, shape, number, seed)
    times, sizes, piled = looked.times, looked.sizes, looked.piled
    findings = []
    text = f"The first time asked is {times[0]:.3f} (it must be 1)."
    advice = "The walk starts from pure noise, which belongs to t = 1: build the grid of times from there."
    findings.append(finding("start", abs(times[0] - 1) < 1e-3, text, advice))
    most = max(piled[1:], default=0.0)
    text = f"At most {most:.1%} of a state's numbers stand at its very largest value (up to {PILED:.0%})."
    advice = "The state is clamped: only the predicted x0 may be, and eps is computed again after it."
    findings.append(finding("clamped state", most <= PILED, text, advice))
    if most <= PILED:
        worst = max(range(len(sizes)), key=lambda step: abs(math.log(max(sizes[step], 1e-9))))
        text = (
            f"Told t = {times[worst]:.3f}, the denoiser sees {sizes[worst]:.3g} times the noise that belongs to it "
            f"(within {SIZE:.0%} of 1)."
        )
        advice = "The network is told another time than the state has: compare the index of alpha with what is told."
        findings.append(finding("wrong time", abs(sizes[worst] - 1) <= SIZE, text, advice))
    text = f"The walk ends {looked.end:.2g} from the picture that the denoiser knows (at most {END:g})."
    advice = "Look at the last step: it goes to t = 0, and adds no noise."
    findings.append(finding("end", looked.end <= END, text, advice))
    return findings


@dataclass(frozen=True)
class Walk:
    """What a denoiser that knows the picture saw of a sampler.

    Attributes:
        times: that it was told, in order.
        sizes: the noise in the state, as a share of that which belongs to the time told.
        piled: share of the state's numbers that equal its largest.
        end: root mean square distance of the samples from the picture.
    """

    times: list[float]
    sizes: list[float]
    piled: list[float]
    end: float


def recorded_walk(
    draw: Callable[[DenoiserFunction, Tensor], Tensor],
    schedule: Schedule,
    shape: tuple[int, int, int] = (1, 32, 32),
    number: int = 8,
    seed: int = SEED,
) -> Walk:
    """Let a sampler walk with a denoiser that knows the picture, and write down what that sees. See `examine_sampler`.

    Raises:
        BookError: the sampler never asks.
    """
    picture = _checked(shape)
    times, sizes, piled = [], [], []

    def denoiser(x_t: Tensor, t: Tensor, **condition) -> Prediction:
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, sigma = (expand(value, x_t) for value in schedule(t.expand(len(x_t))))
        x0 = picture.to(x_t).expand_as(x_t)
        noise = x_t - alpha * x0
        times.append(float(t.flatten()[0]))
        sizes.append((noise.square().mean().sqrt() / sigma.mean().clamp(min=1e-12)).item())
        piled.append((x_t >= x_t.max()).double().mean().item())
        return Prediction(x0, noise / sigma.clamp(min=1e-12))

    noise = torch.randn((number, *shape), generator=torch.Generator().manual_seed(seed))
    end = distance(draw(denoiser, noise), picture.expand_as(noise))
    if not times:
        raise BookError("the sampler never asked its denoiser: give a function (denoiser, noise) -> pictures")
    return Walk(times, sizes, piled, end)


def examine_guidance(guide: Callable[[DenoiserFunction, float], DenoiserFunction]) -> list[Finding]:
    """Hand guidance a denoiser that says 0 without a label and 1 with one: what comes out is w itself.

    Args:
        guide: (denoiser, w) -> denoiser, both asked as (x_t, t, labels=labels).
    """

    def says(x_t: Tensor, t: Tensor, *, labels: Tensor) -> Prediction:
        value = expand((labels != NO_CLASS).to(x_t), x_t).expand_as(x_t)
        return Prediction(value, value.clone())

    x, t, labels = torch.zeros(2, 1, 1, 1), torch.tensor(0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    means = {w: guide(says, w)(x, t, labels=labels).eps.mean().item() for w in (0.0, 1.0, 3.0)}
    start, slope = means[0.0], (means[3.0] - means[0.0]) / 3
    text = (
        "Between a branch that says 0 and one that says 1, guidance of "
        + ", ".join(f"w = {w:g} says {value:.3g}" for w, value in means.items())
        + " (it must be 0, 1 and 3)."
    )
    if slope < 0:
        advice = "The sign is flipped: the push must go from the branch without a label to the one with it."
    elif abs(start - 1) < 1e-6 and abs(slope - 1) < 1e-6:
        advice = "This scale counts from the plain conditional model, as in Ho & Salimans 2022: its w is ours less 1."
    else:
        advice = "It must be eps_u + w (eps_c - eps_u)."
    healthy = all(abs(value - w) < 1e-4 for w, value in means.items())
    return [finding("guidance", healthy, text, advice)]


def _checked(shape: tuple[int, int, int]) -> Tensor:
    """A picture that no fault leaves as it is: squares of -1 and 1, (C, H, W)."""
    rows, columns = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    squares = ((rows // 2 + columns // 2) % 2 * 2 - 1).float()
    return squares.expand(shape).contiguous()
