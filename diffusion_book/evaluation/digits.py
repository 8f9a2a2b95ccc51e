"""Whether pictures are digits as MNIST's, before they are measured: other pictures get figures too, which mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book.evaluation.distances import nearest
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.system.errors import BookError

LOOKED_AT = 300  # pictures, evenly spaced among all
DARK = 32  # of 255: where nothing is brighter, nothing is drawn
NEAR, FAR = 2.0, 4.0
"""Median distance, as features, to the nearest training picture. Measured on 200 to 1,000 pictures of each kind: MNIST's test
pictures 0.8, `ddpm` with 20, 5, 3 and 2 steps 1.1, 1.8, 2.5 and 3.1, printed digits 1.4, scikit-learn's 2.1 to 2.4, MNIST
under noise of 0.3 of its range 3.8; printed letters 4.2, drawn shapes 4.4, Fashion-MNIST 4.8, inverted MNIST 5.1, noise 5.9.
A `ddpm` with a single step and a VAE's decoder on noise, at 5.3 and 5.4, lie among these: neither draws digits."""
MENDED = 0.6
"""So much of the distance is left, at most, where a turn was the remedy: of MNIST 0.3 were left. Of no other kind above did any
turn leave less than 0.86."""
TURNS = {
    "dark ink on bright paper": ("invert them: 255 - x", lambda images: 255 - images),
    "transposed": ("transpose them: x.mT", lambda images: images.mT),
    "turned by a quarter": ("turn them: x.rot90(1, (2, 3))", lambda images: images.rot90(1, (2, 3))),
    "turned by three quarters": ("turn them: x.rot90(3, (2, 3))", lambda images: images.rot90(3, (2, 3))),
    "upside down": ("turn them over: x.flip(2)", lambda images: images.flip(2)),
    "mirrored": ("mirror them: x.flip(3)", lambda images: images.flip(3)),
}
"""what else digits may be -> the remedy in words, and in code for pictures (N, 1, 28, 28) of bytes"""


def check_digits(images: Tensor) -> None:
    """Refuse pictures that are no digits as MNIST's, by a look at some of them.

    Args:
        images: bytes, (N, 1, 28, 28).

    Raises:
        BookError: they are blank; digits, but inverted, turned or mirrored; or no digits.
    """
    brightest = int(images.max())
    if brightest < DARK:
        raise BookError(f"nothing is brighter than {brightest} of 255: nothing is drawn, or 0 to 1 was stored as bytes")
    some = images[torch.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).round().long()]
    blank = (some.flatten(1) == some.flatten(1)[:, :1]).all(dim=1).double().mean().item()
    if blank > 0.5:
        raise BookError(f"{blank:.0%} of the pictures are blank: look at what wrote them")
    distance = distance_to_training(some)
    if distance <= NEAR:
        return
    turned = {what: distance_to_training(turn(some).contiguous()) for what, (_, turn) in TURNS.items()}
    what = min(turned, key=turned.get)
    if turned[what] < MENDED * distance:
        raise BookError(f"the pictures are digits, but {what}: {TURNS[what][0]}")
    if distance > FAR:
        raise BookError(
            f"the pictures are no digits as MNIST's: as features they lie {distance:.1f} from the nearest training "
            f"picture (real digits: 0.8; at most {FAR:g}): look at them, or measure them all the same with --anyway"
        )


def distance_to_training(images: Tensor) -> float:
    """Median distance, as features, of pictures to the nearest training picture of MNIST."""
    return nearest(features(images), reference_features()["train"])[0].median().item()
