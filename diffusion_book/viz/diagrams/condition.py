"""How a network is told what to draw: stacked maps, tokens and cross-attention, guidance."""

from __future__ import annotations

import math

from diffusion_book.networks.unet import UNetConfig
from diffusion_book.viz.attention import TOKEN_COLOURS
from diffusion_book.viz.diagrams.kit import (
    CLASS,
    CROSS_ATTENTION,
    LATENT,
    NETWORK,
    NOISE,
    SMALL,
    Canvas,
    Diagram,
    Point,
)

STACKED = UNetConfig(base_channels=48, channel_multipliers=(1, 2), patch_size=1, in_channels=2, image_size=4, concat_channels=4,
                     attention_levels=(0,))  # fmt: skip


def stacked_maps(config: UNetConfig = STACKED, label: int = 7, classes: int = 10) -> Diagram:
    """A class as maps beside the latent: concatenation.

    Args:
        config: of the network, with concat_channels.
        label, classes: the class that is asked for, of how many.
    """
    canvas = Canvas(312)
    own, added, side = config.in_channels, config.concat_channels, config.image_size
    # The table: a row a class, and one for none.
    rows, high = classes + 1, 9.0
    canvas.text(2, 8 + (label + 0.5) * high, f"class {label}", CLASS, "start")
    canvas.arrow([(52, 8 + (label + 0.5) * high), (70, 8 + (label + 0.5) * high)], CLASS)
    for row in range(rows):
        canvas.box(72, 8 + row * high, 64, high, colour=CLASS, fill=0.8 if row == label else 0.1, radius=0)
    canvas.text(
        146,
        8 + rows * high / 2,
        f"a learned table: a row for each\nof {classes} classes, and one\nfor no class",
        anchor="start",
        size=SMALL,
    )
    canvas.arrow([(100, 10 + rows * high), (100, 138)], CLASS)
    canvas.text(108, 122, "as maps", CLASS, "start", SMALL)

    maps, latent, middle = 166.0, 252.0, 222.0
    canvas.sheets(80, maps, 36, added, CLASS, side)
    canvas.text(4, maps + 18, f"{added} × {side} × {side}", CLASS, "start")
    canvas.sheets(80, latent, 36, own, LATENT, side)
    canvas.text(4, latent + 8, "$z_t$, noisy", LATENT, "start")
    canvas.text(4, latent + 28, f"{own} × {side} × {side}", LATENT, "start")
    canvas.arrow([(146, maps + 18), (190, middle + 4)], CLASS)
    canvas.arrow([(132, latent + 18), (190, middle + 24)], LATENT)
    canvas.sheets(196 + 6 * own, middle - 6 * own, 36, added, CLASS, side)
    canvas.sheets(196, middle, 36, own, LATENT, side)
    canvas.text(232, middle + 58, f"stacked:\n{own + added} × {side} × {side}")
    canvas.arrow([(200 + 6 * (own + added) + 32, middle + 10), (292, middle + 10)])
    canvas.box(292, middle - 18, 64, 56, "U-Net", LATENT)
    return canvas.finish(
        f"A class is a learned row of a table, reshaped to {added} maps of {side} by {side}. They are stacked on the "
        f"{own} channels of the noisy latent, and the U-Net reads {own + added} channels."
    )


READING = UNetConfig(base_channels=48, channel_multipliers=(1, 2), patch_size=1, in_channels=2, image_size=4, context_dim=128,
                     attention_levels=(0,))  # fmt: skip


def weights_at(row: float, column: float, tokens: int) -> list[float]:
    """Made-up attention for the drawing: softmax over tokens, each of which answers best in its part of the picture."""
    answers = [(0.0, 0.6), (0.35, 0.85), (0.9, 0.25), (0.45, 0.1)][:tokens]  # row and column, 0 to 1
    scores = [math.exp(-5 * ((row - y) ** 2 + (column - x) ** 2)) for y, x in answers]
    return [score / sum(scores) for score in scores]


def cross_attention(config: UNetConfig = READING, tokens: int = 4, label: int = 7) -> Diagram:
    """A class as tokens: every position asks with its query, and reads the tokens whose keys answer it.

    The weights in it are made up.

    Args:
        config: of the network, with context_dim.
        tokens: a class, two to four.
        label: the class that is asked for.

    Source: Rombach et al. 2022, section 3.3.
    """
    side, colours = config.image_size, TOKEN_COLOURS[:tokens]
    places = [(row, column) for row in range(side) for column in range(side)]
    weights = {place: weights_at(place[0] / (side - 1), place[1] / (side - 1), tokens) for place in places}
    asking = (min(1, side - 1), side - 1)
    canvas = Canvas(336)
    cell, left, top = 112.0 / side, 8.0, 34.0
    canvas.text(left + 56, 14, f"$z_t$: {side} × {side} positions", LATENT)
    for row, column in places:
        fill = 0.75 if (row, column) == asking else 0.1
        canvas.box(left + column * cell, top + row * cell, cell, cell, colour=LATENT, fill=fill, radius=0)
    canvas.text(275, 14, f"class {label} as {tokens} tokens", CLASS)
    for number, (colour, weight) in enumerate(zip(colours, weights[asking], strict=True)):
        y = top + 112 * (number + 0.5) / tokens
        canvas.box(220, y - 12, 110, 24, f"token {number + 1}", colour, 0.4, size=SMALL)
        canvas.arrow([(left + 114, top + (asking[0] + 0.5) * cell), (217, y)], colour, width=0.8 + 6 * weight)
    canvas.text(180, 164, "one query, the keys of all tokens: the softmax", size=SMALL)
    canvas.text(180, 181, "of their products says how much of each it reads", size=SMALL)

    y, grain, across = 232.0, 60.0 / side, 348.0 / tokens
    canvas.text(180, 213, "a map for each token, from all positions", CROSS_ATTENTION)
    for number, colour in enumerate(colours):
        x = 6 + (number + 0.5) * across - 30
        for (row, column), weight in weights.items():
            fill = weight[number]
            canvas.box(x + column * grain, y + row * grain, grain, grain, colour=colour, fill=fill, radius=0)
    canvas.text(180, 310, "what is read: the values, mixed by these weights,", size=SMALL)
    canvas.text(180, 327, f"a vector for each of the {side * side} positions", size=SMALL)
    return canvas.finish(
        f"On the left a map of {side} by {side} positions, one of which asks. Arrows of different width lead to {tokens} "
        "tokens of the class. Below, one small map for each token: how much every position reads of it."
    )


def guidance_vectors(scales: tuple[float, ...] = (0, 1, 2, 3)) -> Diagram:
    """Classifier-free guidance in the plane: from the unconditional prediction through the conditional one, and on.

    Args:
        scales: guidance scales that are marked on the line; 0 and 1 are the two predictions themselves.

    Source: Ho & Salimans 2022, equation 6, with w = 1 + its w.
    """
    canvas = Canvas(262)
    origin, without = (30.0, 226.0), (104.0, 76.0)
    step = (76.0 / max(1, max(scales) / 3), 14.0)  # eps_c - eps_u

    def at(w: float) -> Point:
        return without[0] + w * step[0], without[1] + w * step[1]

    last = max(scales)
    canvas.line([at(-0.25), at(last + 0.3)], CLASS, 1.2, dashed=True)
    canvas.arrow([origin, without], NOISE, width=2)
    canvas.arrow([origin, at(1)], CLASS, width=2)
    canvas.arrow([origin, at(last)], NETWORK, width=2.6)
    canvas.arrow([without, at(1)], CLASS, width=2)
    for w in scales:
        if w not in (0, 1, last):
            canvas.circle(*at(w), 3.5, colour=CLASS, fill=1)
        canvas.text(at(w)[0], at(w)[1] - 16, f"$w = {w:g}$" if w == scales[0] else f"${w:g}$")
    canvas.circle(*origin, 4, fill=1)
    canvas.text(58, 132, "$ε_u$", NOISE, "end")
    canvas.text(138, 170, "$ε_c$", CLASS, "start")
    canvas.text(356, 190, "guided: $ε_u + w (ε_c - ε_u)$", NETWORK, "end")
    canvas.text(without[0] + step[0] / 2, 34, "$ε_c - ε_u$: towards the class", CLASS, "start")
    canvas.text(46, 236, "$ε_u$ without the class, $ε_c$ with it", anchor="start", size=SMALL)
    return canvas.finish(
        "Arrows from one point: the prediction without the class, and the prediction with it. A dashed line leads from the "
        "first through the second and on; guidance goes along it, as far as the scale w says."
    )
