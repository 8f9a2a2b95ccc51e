"""The network from the inside: the U-Net, a residual block, attention."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_book.networks.unet import UNetConfig
from diffusion_book.viz.diagrams.kit import (
    CROSS_ATTENTION,
    NETWORK,
    NOISE,
    SMALL,
    WIDTH,
    Canvas,
    Diagram,
)

Shape = tuple[int, int, int]  # channels, height, width


class Stages(NamedTuple):
    """Shapes inside a U-Net, without the batch.

    Attributes:
        picture: what goes in, and out.
        folded: after the fold.
        levels: at each level, the finest first.
        embedding: features of the time: sinusoidal, and after the MLP.
    """

    picture: Shape
    folded: Shape
    levels: list[Shape]
    embedding: tuple[int, int]


def stages(config: UNetConfig) -> Stages:
    """The shapes of a U-Net, from its config alone."""
    size, fold = config.image_size // config.patch_size, config.patch_size**2
    levels = [
        (config.base_channels * multiplier, size // 2**level, size // 2**level)
        for level, multiplier in enumerate(config.channel_multipliers)
    ]
    picture = (config.in_channels, config.image_size, config.image_size)
    folded = ((config.in_channels + config.concat_channels) * fold, size, size)
    return Stages(picture, folded, levels, (2 * config.base_channels, 4 * config.base_channels))


def _size(shape: Shape) -> str:
    return " × ".join(map(str, shape))


def unet(config: UNetConfig | None = None) -> Diagram:
    """The U-Net with its real sizes: channels × height × width.

    Args:
        config: of the network, with two to four levels; None takes the library's default.
    """
    config = config or UNetConfig()
    sizes = stages(config)
    levels, wide, high, down = len(sizes.levels), 108.0, 62.0, 92.0
    indent = 60.0 / max(2, levels)
    top = 132.0
    middle_top = top + levels * down
    canvas = Canvas(middle_top + 112)

    def left(level: int) -> float:
        return 6 + indent * level

    def right(level: int) -> float:
        return WIDTH - 6 - indent * level - wide

    # Into the U, and out of it.
    fold = config.patch_size
    for x, formula, arrow_up in ((left(0) + wide / 2, "$x_t$", False), (right(0) + wide / 2, "output", True)):
        canvas.text(x, 11, formula)
        canvas.text(x, 30, _size(sizes.picture))
        ends = [(x, 42), (x, top - 4)]
        canvas.arrow(ends[::-1] if arrow_up else ends)
    into, out = left(0) + wide / 2 + 8, right(0) + wide / 2 - 8
    if fold > 1:
        canvas.text(into, 62, f"fold {fold} × {fold} pixels:", anchor="start", size=SMALL)
        canvas.text(into, 78, _size(sizes.folded), anchor="start", size=SMALL)
        canvas.text(out, 100, "unfold", anchor="end", size=SMALL)
    canvas.text(into, 112, "convolution", anchor="start", size=SMALL)

    blocks = config.layers_per_block
    for level, shape in enumerate(sizes.levels):
        y = top + level * down
        attends = "\nself-attention" if level in config.attention_levels else ""
        if attends and config.context_dim:
            attends = "\n2 attentions"
        for x, count in ((left(level), blocks), (right(level), blocks + 1)):
            words = f"{count} block{'s' * (count > 1)}\n{_size(shape)}{attends}"
            canvas.box(x, y, wide, high, words, NETWORK, size=SMALL)
        gap = right(level) - left(level) - wide
        across = y + 0.62 * high
        canvas.arrow([(left(level) + wide + 3, across), (right(level) - 3, across)], NOISE, dashed=True)
        bridges = f"{blocks + 1} skips" if gap > 60 else f"{blocks + 1}"
        canvas.text((left(level) + right(level) + wide) / 2, across - 12, bridges, NOISE, size=SMALL)
        if level + 1 < levels:
            x = left(level + 1) + 0.36 * wide
            canvas.arrow([(x, y + high), (x, y + down)])
            canvas.text(x + 8, y + high + 15, "halve", anchor="start", size=SMALL)
            x = right(level + 1) + 0.64 * wide
            canvas.arrow([(x, y + down), (x, y + high)])
            canvas.text(x - 8, y + high + 15, "double", anchor="end", size=SMALL)
    last, bottom = levels - 1, top + (levels - 1) * down + high
    attention = "2 attentions" if config.context_dim else "self-attention"
    words = f"block, {attention}, block\n{_size(sizes.levels[-1])}"
    canvas.box(82, middle_top, 196, 42, words, NETWORK, size=SMALL)
    x = max(92, left(last) + 0.36 * wide)
    canvas.arrow([(x, bottom), (x, middle_top)])
    x = min(WIDTH - 92, right(last) + 0.64 * wide)
    canvas.arrow([(x, middle_top), (x, bottom)])
    waves, features = sizes.embedding
    canvas.arrow([(180, middle_top + 68), (180, middle_top + 44)], NOISE)
    canvas.text(188, middle_top + 57, "and to every other block", NOISE, "start", size=SMALL)
    canvas.box(
        40,
        middle_top + 68,
        280,
        38,
        f"time $t$: {waves} sines and cosines,\nthen an MLP: {features} features",
        NOISE,
        size=SMALL,
    )
    return canvas.finish(
        f"A U of boxes with sizes as channels by height by width. On the left, pictures shrink from "
        f"{_size(sizes.levels[0])} to {_size(sizes.levels[-1])}; on the right they grow again. Dashed arrows, the skip "
        "connections, lead across at every level. The time, as sines and cosines through an MLP, goes to every block."
    )


def residual_block(
    in_channels: int = 64, out_channels: int = 32, size: int = 16, embedding_dim: int = 128, sinusoidal: int = 64
) -> Diagram:
    """Two convolutions beside a shortcut; the time scales and shifts what lies between them.

    Args:
        in_channels, out_channels, size: of the pictures.
        embedding_dim, sinusoidal: features of the time, after and before its MLP.
    """
    canvas, middle, wide = Canvas(452), 132.0, 128.0
    left = middle - wide / 2

    def step(y: float, words: str, high: float = 32.0, colour: str | None = NETWORK) -> None:
        canvas.box(left, y, wide, high, words, colour)

    canvas.text(middle, 12, f"$x$: {in_channels} × {size} × {size}")
    canvas.arrow([(middle, 24), (middle, 52)])
    step(52, "GroupNorm, SiLU")
    canvas.arrow([(middle, 84), (middle, 104)])
    step(104, "3 × 3 convolution")
    canvas.arrow([(middle, 136), (middle, 156)])
    step(156, "GroupNorm")
    canvas.arrow([(middle, 188), (middle, 212)])
    canvas.plus(middle, 220, "×")
    canvas.arrow([(middle, 228), (middle, 248)])
    canvas.plus(middle, 256)
    canvas.arrow([(middle, 264), (middle, 288)])
    step(288, "SiLU")
    canvas.arrow([(middle, 320), (middle, 340)])
    step(340, "3 × 3 convolution")
    canvas.text(left + wide + 8, 356, "starts at zero", anchor="start", size=SMALL)
    canvas.arrow([(middle, 372), (middle, 396)])
    canvas.plus(middle, 404)
    canvas.arrow([(middle, 412), (middle, 430)])
    canvas.text(middle, 441, f"{out_channels} × {size} × {size}")

    # The shortcut.
    if in_channels == out_channels:
        canvas.arrow([(middle, 36), (34, 36), (34, 404), (middle - 8, 404)])
    else:
        canvas.line([(middle, 36), (34, 36), (34, 198)])
        canvas.box(4, 198, 60, 44, "1 × 1\nconv.", NETWORK)
        canvas.arrow([(34, 242), (34, 404), (middle - 8, 404)])

    # The time.
    x, side = 222.0, 132.0
    canvas.text(x + side / 2, 12, "time $t$")
    canvas.arrow([(x + side / 2, 24), (x + side / 2, 52)], NOISE)
    canvas.box(x, 52, side, 32, f"sin, cos: {sinusoidal}", NOISE)
    canvas.arrow([(x + side / 2, 84), (x + side / 2, 104)], NOISE)
    canvas.box(x, 104, side, 32, f"MLP, SiLU: {embedding_dim}", NOISE)
    canvas.arrow([(x + side / 2, 136), (x + side / 2, 156)], NOISE)
    canvas.box(x, 156, side, 32, f"linear: 2 × {out_channels}", NOISE)
    canvas.line([(x + side / 2, 188), (x + side / 2, 256)], NOISE)
    canvas.arrow([(x + side / 2, 220), (middle + 9, 220)], NOISE)
    canvas.arrow([(x + side / 2, 256), (middle + 9, 256)], NOISE)
    canvas.text(206, 208, "1 + scale", NOISE)
    canvas.text(206, 244, "shift", NOISE)
    return canvas.finish(
        "A residual block, from top to bottom: group normalisation, SiLU, convolution, group normalisation, times one "
        "plus a scale, plus a shift, SiLU, convolution. Scale and shift come from the time. A shortcut leads around it all."
    )


def attention_block(
    channels: int = 128, size: int = 4, head_dim: int = 32, tokens: int | None = None, context_dim: int = 128
) -> Diagram:
    """Attention with its shapes: self-attention, or with tokens, cross-attention.

    Args:
        channels, size: of the pictures.
        head_dim: channels a head.
        tokens: that are read; None reads the pixels themselves.
        context_dim: features of a token.
    """
    pixels, heads = size * size, max(1, channels // head_dim)
    cross = tokens is not None
    read = tokens if cross else pixels
    colour = CROSS_ATTENTION if cross else NETWORK
    canvas = Canvas(430)
    columns = {"Q": 66.0, "K": 190.0, "V": 300.0}

    canvas.text(columns["Q"], 12, f"$x$: {channels} × {size} × {size}")
    canvas.arrow([(columns["Q"], 24), (columns["Q"], 44)])
    canvas.box(10, 44, 112, 40, f"norm, flatten\n{pixels} × {channels}", NETWORK, size=SMALL)
    source = (columns["K"] + columns["V"]) / 2
    if cross:
        canvas.text(source, 12, "tokens of the condition")
        canvas.box(source - 56, 44, 112, 40, f"{tokens} × {context_dim}", colour)
    else:
        canvas.line([(122, 64), (source, 64)], NETWORK)
    fork = 100.0
    canvas.line([(source, 84 if cross else 64), (source, fork)], colour)
    canvas.line([(columns["K"], fork), (columns["V"], fork)], colour)
    canvas.arrow([(columns["Q"], 84), (columns["Q"], 124)], NETWORK)
    for name in ("K", "V"):
        canvas.arrow([(columns[name], fork), (columns[name], 124)], colour)
    for name, word in (("Q", "queries"), ("K", "keys"), ("V", "values")):
        rows = pixels if name == "Q" else read
        canvas.box(
            columns[name] - 46, 124, 92, 42, f"{word} ${name}$\n{rows} × {head_dim}", NETWORK if name == "Q" else colour
        )
    canvas.text(source, 190, f"in each\nof {heads} heads" if heads > 1 else "one head", size=SMALL)

    middle = (columns["Q"] + columns["K"]) / 2
    canvas.line([(columns["Q"], 166), (columns["Q"], 196), (middle, 196)], NETWORK)
    canvas.line([(columns["K"], 166), (columns["K"], 196), (middle, 196)], colour)
    canvas.arrow([(middle, 196), (middle, 214)])
    canvas.box(middle - 74, 214, 148, 46, f"softmax($QK^T / √D$)\nweights: {pixels} × {read}", colour)
    canvas.arrow([(columns["V"], 166), (columns["V"], 286), (middle + 9, 286)], colour)
    canvas.arrow([(middle, 260), (middle, 278)])
    canvas.plus(middle, 286, "×")
    canvas.arrow([(middle, 294), (middle, 314)])
    canvas.text(middle + 16, 303, f"read: {pixels} × {head_dim} a head", anchor="start", size=SMALL)
    canvas.box(middle - 88, 314, 176, 40, f"heads side by side, linear\n{pixels} × {channels}", NETWORK, size=SMALL)
    canvas.arrow([(middle, 354), (middle, 376)])
    canvas.plus(middle, 384)
    canvas.arrow([(columns["Q"], 32), (4, 32), (4, 384), (middle - 9, 384)])
    canvas.arrow([(middle, 392), (middle, 408)])
    canvas.text(middle, 419, f"{channels} × {size} × {size}")
    kind = "the tokens of the condition" if cross else "the pixels themselves"
    return canvas.finish(
        f"{'Cross' if cross else 'Self'}-attention: queries from the pixels, keys and values from {kind}. The softmax of "
        "queries times keys weighs the values; what is read is added to the picture."
    )
