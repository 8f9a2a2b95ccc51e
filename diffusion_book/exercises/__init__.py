"""Exercises that answer back.

>>> from diffusion_book.exercises import check
>>> def noisy(x0, eps, k, beta):
...     alpha_bar = (1 - beta).cumprod(0)[k].reshape(-1, 1, 1, 1)
...     return alpha_bar * x0 + (1 - alpha_bar).sqrt() * eps
>>> check(noisy)
Not yet: the square root of alpha-bar is missing. alpha-bar is the picture's fraction of the variance.
"""

from __future__ import annotations

from collections.abc import Callable

from diffusion_book.exercises import (
    clinic,
    cross_attention,
    ddim,
    ddpm,
    guidance,
    latent_diffusion,
    rectified_flow,
    scoreboard,
    vae,
)
from diffusion_book.exercises.exercise import Exercise, judge

CHAPTERS = (ddpm, ddim, vae, latent_diffusion, guidance, cross_attention, rectified_flow, scoreboard, clinic)
EXERCISES: dict[str, Exercise] = {exercise.name: exercise for chapter in CHAPTERS for exercise in chapter.EXERCISES}


def check(attempt: Callable) -> None:
    """Compare a reader's function with the library, and print one line: what it proves, or what is wrong with it.

    Args:
        attempt: the function itself, under the name that it has in the chapter.
    """
    name = getattr(attempt, "__name__", None)
    if name not in EXERCISES:
        given = f"there is no exercise '{name}'" if name else f"check was given a {type(attempt).__name__}"
        print(f"Not yet: {given}. Hand over the function itself, under the name that it has in the text.")
        return
    right, message = judge(EXERCISES[name], attempt)
    print(f"{'Right' if right else 'Not yet'}: {message}")
