"""More than samples: every class at every scale, what is predicted on the way, and what cross-attention looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.request import BATCH_SIZE, Request, check_scale
from diffusion_book.networks.conditioning import cross_attention_maps
from diffusion_book.system.errors import BookError


def sweep(
    pipe: Pipeline,
    labels: Sequence[int],
    scales: Sequence[float],
    steps: int = 20,
    seed: int = 0,
    callback: Callable[[int, int], object] | None = None,
    **options,
) -> Tensor:
    """Every class at every scale. All pictures of a row grow from the same noise, fresh noise on the way included.

    Args:
        pipe: with classes.
        labels: one a row.
        scales: one a column.
        steps, seed: of the sampler; row i is sample i of the seed.
        callback: called after each step with the steps done and the steps to do.
        options: for `Pipeline.states`, such as eta or guidance_interval.

    Returns:
        (rows, columns, 1, 28, 28), in [-1, 1].

    Raises:
        BookError: no labels or no scales, or what `Pipeline.states` refuses.
    """
    request = sweep_request(pipe, labels, scales, steps=steps, seed=seed, **options)
    return pipe.draw(request, callback).unflatten(0, (len(labels), len(scales)))  # (R * C, ...) -> (R, C, 1, 28, 28)


def sweep_request(pipe: Pipeline, labels: Sequence[int], scales: Sequence[float], **options) -> Request:
    """What `sweep` asks a model for, row by row. Arguments and errors as there."""
    rows, columns = len(labels), len(scales)
    if not rows or not columns:
        raise BookError(f"a sweep of {rows} labels and {columns} scales: both must be at least 1")
    return pipe.ask(
        indices=[row for row in range(rows) for _ in range(columns)],
        labels=[label for label in labels for _ in range(columns)],
        guidance_scale=[float(check_scale(scale)) for scale in scales] * rows,
        batch_size=columns * max(1, BATCH_SIZE // columns),  # whole rows
        **options,
    )


@torch.no_grad()
def predictions(
    pipe: Pipeline,
    indices: Sequence[int],
    frames: int = 41,
    callback: Callable[[int], object] | None = None,
    **settings,
) -> tuple[list[float], Tensor]:
    """What a model takes the finished pictures to be, while it draws them, and at last the pictures.

    Args:
        pipe: what draws.
        indices: of the samples.
        frames: stills, at least 2; evenly spaced over the steps. Fewer where there are fewer steps.
        callback: called with each number of steps done.
        settings: for `Pipeline.states`; `steps` has to be among them.

    Returns:
        The times t at which the predictions were made, from 1 to 0, and the stills (N, frames, 1, 28, 28) in [-1, 1]:
        x0 as predicted at each of these times, and at t = 0 the picture itself.
    """
    steps = settings["steps"]
    kept = set(torch.linspace(0, steps, max(2, min(frames, steps + 1))).round().long().tolist())
    times, stills, t = [], [], 1.0
    for number, state in enumerate(pipe.states(list(indices), **settings)):
        if number > 0 and number - 1 in kept:  # this prediction was made where the step began
            times.append(t)
            stills.append(pipe.to_images(state.prediction.x0))
        t = state.t
        if callback is not None:
            callback(number)
    return [*times, t], torch.stack([*stills, pipe.to_images(state.x)], dim=1)


@dataclass(frozen=True)
class Watched:
    """A walk from noise to pictures, and what was looked at on the way.

    Attributes:
        times: t of each step, S numbers falling from 1.
        pictures: what each step guessed, (S, B, 1, 28, 28) in [-1, 1]; the last are the samples.
        maps: name of a layer, in the order of the network -> the weights of attention, (S, B, positions, tokens),
            averaged over its heads. Each row sums to 1: how one position divides its attention among the tokens.
    """

    times: list[float]
    pictures: Tensor
    maps: dict[str, Tensor]


@torch.no_grad()
def watch(
    pipe: Pipeline,
    labels,
    guidance_scale: float | None = None,
    steps: int = 20,
    seed: int = 0,
    noise: Tensor | None = None,
) -> Watched:
    """Sample with DDIM, and note what every cross-attention layer looks at.

    With guidance each step asks the network twice, without a label and with it; the maps are those with it. Only at
    guidance 0, where no label is used, they are those without.

    Args:
        pipe: its network reads tokens.
        labels: one for each picture.
        guidance_scale: default: the recipe's.
        steps: of the sampler.
        seed: picture i starts from noise i of the seed.
        noise: start from this (B, *shape) instead.

    Raises:
        BookError: a network without cross-attention, or what `Pipeline.sample` refuses.
    """
    if not pipe.num_classes or not pipe.recipe.network.context_dim:
        raise BookError(f"'{pipe.recipe.model}' has no cross-attention to watch: give a model like ldm-cross-attention")
    batch = len(labels)
    with cross_attention_maps(pipe.network) as noted:
        states = list(
            pipe.states(
                range(batch),
                labels=labels,
                guidance_scale=guidance_scale,
                sampler="ddim",
                steps=steps,
                seed=seed,
                noise=noise,
            )
        )
    # A call with guidance is one batch of 2 B: first without labels, then with them.
    maps = {
        layer.removesuffix(".cross_attention").removeprefix("unet."): torch.stack(
            [weights[-batch:].mean(dim=1) for weights in calls]  # (2 B or B, heads, positions, tokens)
        )
        for layer, calls in noted.items()
    }
    pictures = torch.stack([pipe.to_images(state.prediction.x0) for state in states[1:]])
    return Watched([state.t for state in states[:-1]], pictures, maps)
