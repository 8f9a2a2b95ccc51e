"""What cross-attention looks at, while a digit is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.data import IMAGE_SIZE, crop
from diffusion_book.models.sampling import Watched
from diffusion_book.system.errors import BookError, choose
from diffusion_book.viz.animation import animate
from diffusion_book.viz.grids import TITLE, grid
from diffusion_book.viz.html import Html
from diffusion_book.viz.scrubber import scrubber
from diffusion_book.viz.style import DPI, PAPER, new_figure, styled
from diffusion_book.viz.tables import HEAD, show_table

# One colour for each token.
TOKEN_COLOURS: list[str] = ["#F2C14E", "#7B6BD6", "#3FB5A3", "#E0607E"]

INK = 0.75  # share of a lit picture's brightness that is ink; the rest is the light on its ground


def paint(weights: Tensor) -> Tensor:
    """Weights of positions as pictures: each position fills its part of the 28 x 28 pixels.

    Args:
        weights: (..., positions, tokens); the positions are a square, row by row.

    Returns:
        (..., tokens, 28, 28).

    Raises:
        BookError: the positions are no square that divides a picture.
    """
    *several, positions, tokens = weights.shape
    side = round(positions**0.5)
    if side**2 != positions or IMAGE_SIZE % max(1, side):
        raise BookError(f"{positions} positions: they must be a square that divides a picture, like 2 x 2 or 4 x 4")
    maps = weights.reshape(-1, side, side, tokens).permute(0, 3, 1, 2)  # (..., positions, tokens) -> (N, tokens, s, s)
    pixels = crop(F.interpolate(maps.float(), size=IMAGE_SIZE))  # each position repeated; the padding cut off
    return pixels.reshape(*several, tokens, *pixels.shape[-2:])


def lit(pictures: Tensor, weights: Tensor) -> Tensor:
    """Each picture once a token, bright where the token is looked at and dark where it is not.

    Args:
        pictures: (B, 1, 28, 28) in [-1, 1].
        weights: (B, positions, tokens), in [0, 1].

    Returns:
        (B, tokens, 1, 28, 28) in [-1, 1]. The ground has the brightness (1 - INK) times the weight, ink up to the weight.
    """
    ink = (pictures[:, None] + 1) / 2  # (B, 1, 1, 28, 28), in [0, 1]
    light = paint(weights)[:, :, None]  # (B, tokens, 1, 28, 28)
    return 2 * light * (1 - INK + INK * ink) - 1


def tokens_of_step(watched: Watched, layer: str, step: int = -1) -> Tensor:
    """The pictures of one step, and under them the same in the light of each token: (1 + tokens, B, 1, 28, 28).

    Args:
        watched: as `watch` gives it.
        layer: one of `watched.maps`.
        step: 0 is the first; negative ones count from the end.

    Raises:
        BookError: no such layer or step.
    """
    maps = choose("layer", layer, watched.maps)
    if not -len(maps) <= step < len(maps):
        raise BookError(f"step {step} does not exist: there are {len(maps)}")
    pictures = watched.pictures[step]
    return torch.cat([pictures[None], lit(pictures, maps[step]).transpose(0, 1)])


def show_tokens(
    watched: Watched,
    layer: str,
    names: Sequence[str],
    step: int = -1,
    title: str | None = None,
    scale: float = 2.0,
) -> Figure:
    """A figure of what each token was looked at for: one column a picture, one row a token.

    Args:
        watched, layer, step: as for `tokens_of_step`.
        names: of the pictures.
        title: written above.
        scale: screen pixels a pixel.
    """
    pictures = tokens_of_step(watched, layer, step)
    rows = ["prediction", *(f"token {number + 1}" for number in range(len(pictures) - 1))]
    return show_table(pictures, rows, list(names), title, scale)


def film(watched: Watched, layer: str) -> Tensor:
    """`tokens_of_step` of every step as one frame, (S, height, width), bytes: for an animation or a scrubber."""
    count = watched.pictures.shape[1]
    steps = range(len(watched.times))
    return torch.stack([grid(tokens_of_step(watched, layer, step).flatten(0, 1), columns=count) for step in steps])


def animate_tokens(watched: Watched, layer: str, milliseconds: int = 250, scale: float = 2.0) -> Html:
    """A looping animation of `film`."""
    return animate(film(watched, layer), milliseconds, scale, _alt(layer))


def scrub_tokens(watched: Watched, layer: str, start: int = 0, scale: float = 2.0) -> Html:
    """A slider over `film`, from noise to picture."""
    captions = [f"t = {time:.2f}" for time in watched.times]
    return scrubber(film(watched, layer), captions, "time", _alt(layer), scale, start)


@styled
def show_readers(
    pictures: Tensor,
    weights: Sequence[Sequence[Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    tokens: Sequence[str] | None = None,
    scale: float = 2.0,
) -> Figure:
    """A table of pictures, each position in the colour of the token that it reads most: the paler, the less decided.

    Args:
        pictures: (R, C, 1, 28, 28) in [-1, 1], drawn in dark ink.
        weights: R rows of C weights (positions, tokens), which sum to 1 over the tokens; the positions may differ.
        rows, columns: what they are called.
        tokens: what the colours mean; default: token 1, token 2 ...
        scale: screen pixels a pixel.

    Raises:
        BookError: the shapes do not agree, or there are more tokens than colours.
    """
    number = weights[0][0].shape[-1]
    if number > len(TOKEN_COLOURS):
        raise BookError(f"{number} tokens: there are colours for {len(TOKEN_COLOURS)}")
    shapes = tuple(pictures.shape[:2]), (len(weights), len(weights[0])), (len(rows), len(columns))
    if len(set(shapes)) > 1:
        raise BookError(f"pictures, weights and names are of {shapes} rows and columns: they must be of the same")
    colours = torch.tensor([to_rgb(colour) for colour in TOKEN_COLOURS[:number]])  # (tokens, 3)
    light = torch.stack([paint(each) for row in weights for each in row])  # (R * C, tokens, 28, 28)
    most, which = light.max(dim=1)  # both (R * C, 28, 28)
    ground = most[:, None] * colours[which].permute(0, 3, 1, 2) + 1 - most[:, None]  # (R * C, 3, 28, 28)
    ink = (pictures.flatten(0, 1) + 1) / 2  # (R * C, 1, 28, 28), in [0, 1]
    tinted = 2 * ground * (1 - 0.6 * ink) - 1
    channels = [grid(tinted[:, [channel]], columns=len(columns)) for channel in range(3)]
    picture = torch.stack(channels, dim=-1)  # (height, width, 3)

    high, wide = (scale * size / DPI for size in picture.shape[:2])
    margin = 0.09 * max(len(label) for label in rows) + 0.1  # for the rows' names
    whole_high, whole_wide = high + HEAD + TITLE, wide + margin
    figure, axes = new_figure(whole_wide, whole_high, layout="none")
    axes.imshow(picture.numpy(), aspect="auto")
    axes.set(frame_on=False, position=(margin / whole_wide, 0, wide / whole_wide, high / whole_high))
    step = pictures.shape[-1] + 2
    axes.set_xticks([1 + step * (column + 0.5) - 0.5 for column in range(len(columns))], columns)
    axes.set_yticks([1 + step * (row + 0.5) - 0.5 for row in range(len(rows))], rows)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(False)
    named = tokens or [f"token {token + 1}" for token in range(number)]
    patches = [axes.plot([], [], "s", color=colour, markersize=9)[0] for colour in TOKEN_COLOURS[:number]]
    figure.legend(patches, named, loc="upper center", ncols=number, handletextpad=0.3, borderaxespad=0.1)
    return figure


@styled
def show_matrices(
    panels: dict[str, Tensor],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    xlabel: str = "token",
    ylabel: str = "position",
    digits: int | None = 2,
) -> Figure:
    """Matrices as shaded squares, side by side: the darker, the larger, each panel by its own largest number.

    Args:
        panels: title -> matrix, (N, M), 0 or more.
        rows, columns: names of the rows and columns of each panel; default: none.
        xlabel, ylabel: what columns and rows are.
        digits: after the point, of the numbers in the squares; None writes none.

    Raises:
        BookError: there are no panels.
    """
    if not panels:
        raise BookError("show_matrices needs at least one panel")
    tall = max(len(matrix) for matrix in panels.values())
    widths = [max(1.6, 3.4 * matrix.shape[1] / max(tall, matrix.shape[1])) for matrix in panels.values()]
    figure, axes = new_figure(sum(widths) + 1.2, 3.6, 1, len(panels), squeeze=False, width_ratios=widths)
    for axis, (title, matrix) in zip(axes[0], panels.items(), strict=True):
        top = max(float(matrix.max()), 1e-12)
        axis.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=top, aspect="auto" if digits is None else "equal")
        if digits is not None:
            for row, values in enumerate(matrix.tolist()):
                for column, value in enumerate(values):
                    colour = PAPER if value > 0.6 * top else "#222222"
                    axis.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=8)
        axis.set_xticks(range(matrix.shape[1]) if columns else [], columns or [])
        axis.set_yticks(range(len(matrix)) if rows else [], rows or [])
        axis.set(title=title, xlabel=xlabel)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.grid(False)
    axes[0, 0].set_ylabel(ylabel)
    return figure


def _alt(layer: str) -> str:
    return f"Digits that are being drawn, and under them the same in the light of each token, as layer {layer} sees it"
