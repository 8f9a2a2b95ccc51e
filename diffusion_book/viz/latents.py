"""Pictures of the latent space of an autoencoder: where the digits lie in it, and what its points stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from diffusion_book.data import CROP_SIZE, crop
from diffusion_book.evaluation.projection import principal_components, umap_plane
from diffusion_book.interpolation import plane_of_latents
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import GAP, grid, place
from diffusion_book.viz.plots import CYCLE
from diffusion_book.viz.style import COLOURS, DPI, colour_of_label, new_figure, styled
from diffusion_book.viz.tables import show_table

DIGITS = tuple("0123456789")
MOST_LABELS = 16  # in a column of a legend


def decoded(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Latents (..., C, H, W) as pictures for the eye: (..., 1, 28, 28), or as the autoencoder makes them, in [-1, 1], on the CPU."""
    batch = latents.shape[:-3]
    pictures = autoencoder.decode(latents.reshape(-1, *latents.shape[-3:]))  # (B, 1, 32, 32)
    return crop(pictures, autoencoder.recipe.training.image_size).clamp(-1, 1).cpu().unflatten(0, batch)


def latent_tiles(latents: Tensor, limit: float = 3.0) -> Tensor:
    """Latents as they are: each entry a grey square, from -limit, black, to limit, white; channels side by side.

    Args:
        latents: (N, C, H, W), of at most 28 entries a row.
        limit: in standard deviations.

    Returns:
        Pictures (N, 1, height, 28) in [-1, 1].
    """
    rows = (latents.cpu() / limit).clamp(-1, 1).permute(0, 2, 1, 3).flatten(2)[:, None]  # (N, 1, H, C * W)
    side = CROP_SIZE // rows.shape[-1]
    squares = rows.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    left = (CROP_SIZE - squares.shape[-1]) // 2
    right = CROP_SIZE - squares.shape[-1] - left
    return F.pad(squares, [left, right], value=GAP / 127.5 - 1)


# Where the digits lie


@styled
def plot_points(
    points: Tensor, labels: Tensor, xlabel: str = "", ylabel: str = "", names: Sequence[str] = DIGITS
) -> Figure:
    """Points in the plane, coloured by digit.

    Args:
        points: (N, 2).
        labels: (N,), 0 or more.
        xlabel, ylabel: what the axes are.
        names: of the labels.
    """
    figure, axes = new_figure(6.5, 5.2)
    _scatter(axes, points, labels)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _add_legend(figure, names)
    return figure


@styled
def plot_latent_positions(latents: Tensor, labels: Tensor, names: Sequence[str] = DIGITS) -> Figure:
    """The first two channels of latents, one scatter plot for each position, coloured by digit.

    Args:
        latents: (N, C, H, W). Where C is 1, the second axis is the label.
        labels: (N,), 0 or more.
        names: of the labels.
    """
    _, channels, height, width = latents.shape
    if channels == 1:  # spread within a label, or its points would lie on one line
        spread = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0)) * 0.8 - 0.4
        latents = torch.cat([latents, (labels + spread)[:, None, None, None].expand_as(latents)], dim=1)
    second = "channel 1" if channels > 1 else "label"
    if height * width == 1:
        return plot_points(latents[:, :2, 0, 0], labels, "channel 0", second, names)
    figure, panels = new_figure(
        1.7 * width + 1.0, 1.6 * height + 0.3, height, width, squeeze=False, sharex=True, sharey=True
    )
    for row in range(height):
        for column in range(width):
            _scatter(panels[row, column], latents[:, :2, row, column], labels)
    figure.supxlabel("channel 0", fontsize=11)
    figure.supylabel(second, fontsize=11)
    _add_legend(figure, names)
    return figure


def plot_principal_components(latents: Tensor, labels: Tensor, names: Sequence[str] = DIGITS) -> Figure:
    """The two directions in which latents vary most, coloured by digit.

    Args:
        latents: (N, C, H, W), of at least two dimensions.
        labels: (N,), 0 or more.
        names: of the labels.
    """
    flat = latents.flatten(1)  # (N, C, H, W) -> (N, D)
    if flat.shape[1] < 2:
        return plot_latent_positions(latents, labels, names)
    points, fractions = principal_components(flat)
    first, second = (
        f"{name} principal component, {fraction:.0%} of the variance"
        for name, fraction in zip(("first", "second"), fractions.tolist(), strict=True)
    )
    return plot_points(points, labels, first, second, names)


def plot_umap(latents: Tensor, labels: Tensor, names: Sequence[str] = DIGITS) -> Figure:
    """Latents (N, C, H, W) laid out by UMAP, which keeps near ones near; coloured by digit.

    Raises:
        BookError: umap-learn is not installed, or there are fewer than 16 latents.
    """
    return plot_points(umap_plane(latents.flatten(1)), labels, "UMAP, first axis", "UMAP, second axis", names)


def _scatter(axes, points: Tensor, labels: Tensor) -> None:
    """Dots in the order of the data set, so that no digit covers all others."""
    size = min(14.0, max(2.0, 12_000 / len(points) / len(axes.figure.axes) ** 0.5))  # the more of them, the smaller
    colours = [colour_of_label(label) for label in labels.tolist()]
    axes.scatter(*points.T, c=colours, s=size, alpha=0.6, linewidths=0)


def _add_legend(figure: Figure, names: Sequence[str]) -> None:
    """One large dot a label, to the right of the axes."""
    handles = [
        Line2D([], [], color=colour_of_label(label), marker="o", linestyle="", markersize=7, label=name)
        for label, name in enumerate(names)
    ]
    columns = math.ceil(len(handles) / MOST_LABELS)
    figure.legend(handles=handles, loc="outside right center", handletextpad=0.2, borderpad=0.2, ncols=columns)


# What its points stand for


@styled
def plot_map(
    autoencoder: Autoencoder,
    latents: Tensor,
    labels: Tensor,
    limit: float = 3.0,
    count: int = 15,
    names: Sequence[str] = DIGITS,
) -> Figure:
    """The plane of an autoencoder with two latent dimensions: which digit lies where, and what its points decode to.

    Args:
        autoencoder: with latents of shape (2, 1, 1).
        latents: of pictures, (N, 2, 1, 1).
        labels: (N,), 0 or more.
        limit: of both axes, on both sides of zero.
        count: decoded pictures a row.
        names: of the labels.

    Raises:
        BookError: latents of more or fewer dimensions.
    """
    if autoencoder.latent_shape != (2, 1, 1):
        shape = " x ".join(map(str, autoencoder.latent_shape))
        raise BookError(f"a map needs latents of two dimensions, these are {shape}: take a VAE such as vae-2d")
    pictures = decoded(autoencoder, plane_of_latents(limit, count))
    picture = pictures.shape[-1]
    side = count * picture / DPI  # inches; one screen pixel a pixel
    left, gap, right, bottom, top = 0.55, 0.55, 0.45, 0.55, 0.1
    width, height = left + side + gap + side + right, bottom + side + top
    figure, (dots, plane) = new_figure(width, height, 1, 2, layout="none")
    _scatter(dots, latents[:, :, 0, 0], labels)
    dots.set_position((left / width, bottom / height, side / width, side / height))
    place(
        plane,
        grid(pictures, count, padding=0),
        ((left + side + gap) / width, bottom / height, side / width, side / height),
    )
    ticks = [tick for tick in range(-10, 11) if abs(tick) < limit]
    texts = [str(tick).replace("-", "\N{MINUS SIGN}") for tick in ticks]
    plane.set_xticks([(tick + limit) / (2 * limit) * count * picture - 0.5 for tick in ticks], texts)
    plane.set_yticks([(limit - tick) / (2 * limit) * count * picture - 0.5 for tick in ticks], texts)
    plane.grid(False)
    dots.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks, ylabel="dimension 2")
    for axes in (dots, plane):
        axes.set_xlabel("dimension 1")
    _add_legend(figure, names)
    return figure


def traverse(latent: Tensor, numbers: Sequence[int], values: Tensor) -> Tensor:
    """Change single dimensions of a latent, and leave the others as they are.

    Args:
        latent: (C, H, W).
        numbers: which ones, counted through channels, rows and columns: K of them, 0 to C H W - 1.
        values: (V,), what each is set to in turn.

    Returns:
        (K, V, C, H, W).
    """
    changed = latent.flatten().repeat(len(numbers), len(values), 1)  # (K, V, D)
    for row, number in enumerate(numbers):
        changed[row, :, number] = values.to(changed)
    return changed.reshape(len(numbers), len(values), *latent.shape)


def show_traversals(
    autoencoder: Autoencoder, latent: Tensor, numbers: Sequence[int] | None = None, limit: float = 3.0, count: int = 9
) -> Figure:
    """What single dimensions of a latent do: each row changes one of them from -limit to limit, and decodes.

    Args:
        autoencoder: whose latents have standard deviation 1.
        latent: of a picture, (C, H, W); what is not changed stays as it is there.
        numbers: which ones (see `traverse`); default all.
        limit: of the values, in standard deviations.
        count: of the values.
    """
    numbers = range(latent.numel()) if numbers is None else numbers
    values = torch.linspace(-limit, limit, count)
    pictures = decoded(autoencoder, traverse(latent.cpu(), numbers, values))  # (K, V, 1, 28, 28)
    _, height, width = latent.shape
    rows = [f"channel {n // (height * width)}, ({n // width % height}, {n % width})" for n in numbers]
    if height * width == 1:
        rows = [f"channel {n}" for n in numbers]
    return show_table(
        pictures,
        rows,
        [f"{value:.3g}".replace("-", "\N{MINUS SIGN}") for value in values],
        scale=1.5,  # in smaller columns the values above them overlap
    )


def between(first: Tensor, second: Tensor, count: int = 9) -> Tensor:
    """From one latent or picture to another in a straight line: twice (...) -> (count, ...), both ends included."""
    weight = torch.linspace(0, 1, count, device=first.device).reshape(-1, *[1] * first.ndim)
    return torch.lerp(first, second, weight)


@styled
def plot_small_multiples(
    points: Tensor, labels: Tensor, xlabel: str = "", ylabel: str = "", names: Sequence[str] = DIGITS
) -> Figure:
    """Points in the plane, one panel a label: its own points in colour, before all others in grey.

    Args:
        points: (N, 2).
        labels: (N,), 0 or more.
        xlabel, ylabel: what the axes are.
        names: of the labels.
    """
    columns = min(5, len(names))
    rows = math.ceil(len(names) / columns)
    figure, panels = new_figure(
        1.35 * columns + 0.3, 1.45 * rows + 0.4, rows, columns, squeeze=False, sharex=True, sharey=True
    )
    for label, axes in enumerate(panels.flat):
        axes.set_axis_off() if label >= len(names) else axes.set_title(names[label])
        axes.scatter(*points.T, c="#CFCFCA", s=4, alpha=0.5, linewidths=0)
        own = points[labels == label]
        axes.scatter(*own.T, c=colour_of_label(label), s=9, alpha=0.6, linewidths=0)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    figure.supxlabel(xlabel, fontsize=11)
    figure.supylabel(ylabel, fontsize=11)
    return figure


@styled
def plot_rate_distortion(
    rate: Tensor, distortion: Tensor, measured: dict[str, Tensor], weights: Sequence[float], ylabel: str = "cFID"
) -> Figure:
    """What a model pays and what it gains: distortion against rate, and below it further measures against rate.

    Args:
        rate: in nats, (K,), one for each weight of the KL divergence.
        distortion: the squared error of a pixel, (K,).
        measured: name -> (K,), all on the lower, logarithmic axis.
        weights: of the KL divergence, K of them; powers of ten name their points in the upper panel.
        ylabel: of the lower panel.
    """
    figure, (above, below) = new_figure(4.4, 5.4, 2, 1, sharex=True)
    above.plot(rate, distortion, color=COLOURS["data"], marker="o", markersize=5)
    for x, y, weight in zip(rate.tolist(), distortion.tolist(), weights, strict=True):
        digits, exponent = f"{weight:.0e}".split("e")
        if digits == "1":
            above.annotate(f"$10^{{{int(exponent)}}}$", (x, y), (6, 6), textcoords="offset points")
    above.set(ylabel="squared error of a pixel", ylim=(0, 1.15 * float(distortion.max())))
    for colour, marker, (name, values) in zip(CYCLE, "os^D", measured.items(), strict=False):
        below.plot(rate, values, color=colour, marker=marker, markersize=5, label=name)
    below.set(xlabel="rate (nats)", ylabel=ylabel, yscale="log")
    below.margins(x=0.08)
    below.legend()
    return figure


@styled
def plot_planes(
    clouds: Sequence[Tensor],
    labels: Tensor,
    pictures: Sequence[Tensor],
    titles: Sequence[str],
    limit: float = 3.0,
    names: Sequence[str] = DIGITS,
) -> Figure:
    """Several latent planes side by side: above the latents and circles of the prior, below the decoded square.

    Args:
        clouds: latents of the same pictures, (N, 2) each.
        labels: of the pictures, (N,).
        pictures: a square grid of decoded latents, (M, 1, H, W) each, row by row from the top left.
        titles: of the columns.
        limit: the square reaches from -limit to limit on both axes; points beyond it are left out.
        names: of the labels.
    """
    figure, (above, below) = new_figure(1.95 * len(clouds) + 0.9, 4.5, 2, len(clouds), squeeze=False)
    angle = torch.linspace(0, 2 * math.pi, 100)
    for column, (points, decoded_square) in enumerate(zip(clouds, pictures, strict=True)):
        dots, plane = above[column], below[column]
        _scatter(dots, points, labels)
        for radius in (1, 2):
            dots.plot(radius * angle.cos(), radius * angle.sin(), color=COLOURS["data"], linewidth=1.2)
        dots.set(title=titles[column], xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=(-2, 0, 2))
        dots.set_yticks((-2, 0, 2), ("\N{MINUS SIGN}2", "0", "2") if column == 0 else ("", "", ""))
        square = grid(decoded_square, math.isqrt(len(decoded_square)), padding=0)
        plane.imshow(square.squeeze(0), cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        plane.set(xticks=[], yticks=[])
        plane.grid(False)
    above[0].set_ylabel("latents")
    below[0].set_ylabel("decoded")
    _add_legend(figure, names)
    return figure
