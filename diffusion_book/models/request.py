"""What a model is asked to draw: checked once, where it is asked, and then only read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from diffusion_book.models.configs import BATCH_SIZE, Recipe
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.samplers import SAMPLERS, time_grid
from diffusion_book.system.errors import BookError, choose, whole

Labels = int | Sequence[int] | Tensor | None
MOST_SAMPLES = 10_000_000  # 30 GB of pictures


@dataclass(frozen=True)
class Request:
    """Samples asked of one model, every choice spelled out. `Pipeline.ask` makes it; whoever reads it checks nothing.

    Attributes:
        indices: of the samples, B of them.
        labels: (B,), int64, the class of each sample or `NO_CLASS`; None for a model without classes.
        guidance_scale: (B,), float64; None for a model without classes.
        guidance_interval: times t within which guidance acts.
        sampler: a name in `samplers.SAMPLERS`.
        times: that the sampler visits, (steps + 1,), from 1 to 0.
        eta: share of fresh noise, 0 to 1.
        seed: of the noise.
        noise: (B, *shape), float32, to start from; None: drawn with the seed.
        batch_size: samples drawn at once.
    """

    indices: Sequence[int]
    labels: Tensor | None
    guidance_scale: Tensor | None
    guidance_interval: tuple[float, float]
    sampler: str
    times: Tensor
    eta: float
    seed: int
    noise: Tensor | None
    batch_size: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return len(self.times) - 1

    def pick(self, places: Sequence[int]) -> Request:
        """The same request for the samples at these places only."""
        places = list(places)
        chosen = {
            name: None if getattr(self, name) is None else getattr(self, name)[places]
            for name in ("labels", "guidance_scale", "noise")
        }
        return dataclasses.replace(self, indices=[self.indices[place] for place in places], **chosen)

    def batches(self) -> list[Request]:
        """The same request in parts of at most `batch_size` samples."""
        places = range(len(self))
        return [self.pick(places[start : start + self.batch_size]) for start in places[:: self.batch_size]]


def make_request(
    recipe: Recipe,
    num_samples: int = 64,
    labels: Labels = None,
    guidance_scale: float | Tensor | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
    *,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    noise: Tensor | None = None,
    batch_size: int = BATCH_SIZE,
    first: int = 0,
    indices: Sequence[int] | None = None,
) -> Request:
    """Check what a model is asked for, and spell it out.

    Args:
        recipe: of the model.
        num_samples, labels, guidance_scale, sampler, steps, eta, seed: as in `Pipeline.sample`.
        guidance_interval, noise, batch_size, first: as in `Pipeline.sample`.
        indices: of the samples, in place of `first` to `first + num_samples - 1`.

    Raises:
        BookError: something that cannot be drawn, by this model or by any.
    """
    number = whole("num_samples", num_samples) if indices is None else len(indices)
    if not 1 <= number <= MOST_SAMPLES:
        raise BookError(f"{number!s:.60} samples: give at least 1, and at most {MOST_SAMPLES:,}")
    for name, value, lowest in (("first", first, 0), ("seed", seed, 0), ("batch_size", batch_size, 1)):
        if whole(name, value) < lowest:
            raise BookError(f"{name} is {value!s:.60}: it must be {lowest} or more")
    if indices is None:
        indices = range(first, first + number)
    elif min(whole("a sample's index", index) for index in indices) < 0:
        raise BookError(f"a sample's index is {min(indices)!s:.60}: it must be 0 or more")
    choose("sampler", sampler, SAMPLERS)
    if not isinstance(eta, Real) or not 0.0 <= eta <= 1.0:
        raise BookError(f"eta is {eta!r:.60}: it must be between 0 (no fresh noise, DDIM) and 1 (as much as DDPM)")
    if recipe.condition is None and (labels is not None or guidance_scale is not None):
        raise BookError(f"'{recipe.model}' knows no classes: leave out labels and guidance_scale")
    return Request(
        indices,
        None if recipe.condition is None else labels_of(recipe, labels, indices),
        None if recipe.condition is None else scales_of(recipe, guidance_scale, number),
        check_interval(guidance_interval),
        sampler,
        time_grid(default_steps(recipe) if steps is None else steps, recipe.diffusion.timesteps),
        eta,
        seed,
        None if noise is None else check_noise(recipe, noise, number),
        batch_size,
    )


def default_steps(recipe: Recipe) -> int:
    """The sampler's steps where nothing else is asked for: the recipe's, as far as its grid of timesteps has so many."""
    return min(recipe.diffusion.sampling_steps, recipe.diffusion.timesteps)


def labels_of(recipe: Recipe, labels: Labels, indices: Sequence[int]) -> Tensor:
    """A label for each sample, (B,), int64; by default sample i is of class i modulo their number."""
    number, classes = len(indices), recipe.condition.num_classes
    if labels is None:
        labels = [index % classes for index in indices]
    try:
        labels = torch.as_tensor(labels if isinstance(labels, Tensor | Integral) else list(labels)).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise BookError(f"the labels are {labels!r:.60}: give whole numbers, one for each picture") from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise BookError(f"the labels are of type {labels.dtype}: give whole numbers")
    labels = labels.long()  # bytes cannot be compared with NO_CLASS, which is negative
    if labels.shape not in ((), (number,)):
        raise BookError(f"labels of shape {tuple(labels.shape)} for {number} samples: give one, or one for each")
    if ((labels < NO_CLASS) | (labels >= classes)).any():
        raise BookError(
            f"labels from {labels.min()} to {labels.max()}: "
            f"'{recipe.model}' knows the classes 0 to {classes - 1}, and {NO_CLASS} for none"
        )
    return labels.expand(number)  # () or (B,) -> (B,)


def scales_of(recipe: Recipe, guidance_scale: float | Tensor | None, number: int) -> Tensor:
    """A guidance scale for each sample, (B,), float64; by default the recipe's."""
    scale = check_scale(recipe.condition.guidance_scale if guidance_scale is None else guidance_scale).cpu()
    if scale.shape not in ((), (number,)):
        raise BookError(f"{len(scale)} guidance scales for {number} samples: give one, or one for each")
    return scale.expand(number)  # () or (B,) -> (B,)


def check_scale(guidance_scale: float | Tensor) -> Tensor:
    """The guidance scale, () or (B,), float64, if it is finite.

    Raises:
        BookError: it is not.
    """
    try:
        if isinstance(guidance_scale, Tensor) and guidance_scale.is_complex():
            raise TypeError
        scale = torch.as_tensor(guidance_scale, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        scale = torch.tensor(torch.nan)
    if scale.ndim > 1 or not scale.isfinite().all():
        given = " ".join(repr(guidance_scale).split())  # a tensor may take several lines
        raise BookError(f"guidance_scale is {given:.60}: give a finite number, or one for each picture")
    return scale


def check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """The times within which guidance acts, if there are any.

    Raises:
        BookError: there are none.
    """
    try:
        low, high = map(float, interval)
        ordered = 0.0 <= low < high <= 1.0
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise BookError(f"the guidance interval is {interval!r:.60}: give two times with 0 <= low < high <= 1")
    return low, high


def check_noise(recipe: Recipe, noise: Tensor, number: int) -> Tensor:
    """The noise, float32, if so many samples can start from it.

    Raises:
        BookError: it cannot.
    """
    if not isinstance(noise, Tensor) or noise.is_complex():
        raise BookError(f"the noise is {type(noise).__name__}: draw it with Pipeline.noise")
    shape = (number, recipe.network.in_channels, recipe.network.image_size, recipe.network.image_size)
    if tuple(noise.shape) != shape:
        raise BookError(f"the noise has shape {tuple(noise.shape)}: it must be {shape}")
    if not noise.isfinite().all():
        raise BookError("the noise holds numbers that are not finite: draw it with Pipeline.noise")
    return noise.float()
