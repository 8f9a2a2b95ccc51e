"""The figures of paths draw what they are given."""

import matplotlib

matplotlib.use("Agg")

import torch

from diffusion_book.viz import paths
from diffusion_book.viz.style import COLOURS


def test_line_paths_are_coloured_by_the_side_on_which_they_end():
    times = torch.tensor([1.0, 0.5, 0.0])
    points = torch.tensor([[0.0, 0.0], [0.5, -2.0], [1.0, -1.0]])
    axis = paths.show_line_paths({"one": (times, points)}).axes[0]
    assert [line.get_color() for line in axis.lines] == [COLOURS["ddpm"], COLOURS["ddim"]]
    assert axis.lines[1].get_ydata().tolist() == [0.0, -2.0, -1.0]
    assert axis.get_xlim() == (1.0, 0.0)


def test_line_paths_stand_side_by_side_under_their_titles():
    times, points = torch.tensor([1.0, 0.0]), torch.tensor([[0.0], [1.0]])
    figures = [paths.show_line_paths(dict.fromkeys(titles, (times, points))) for titles in ("a", "ab")]
    assert [[axis.get_title() for axis in figure.axes] for figure in figures] == [["a"], ["a", "b"]]
    assert figures[0].get_figwidth() == 6.5  # one alone is not squeezed


def test_plane_paths_mark_starts_and_ends():
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, -1.0]]])  # (2 steps, 2 points, 2)
    figure = paths.show_plane_paths({"a": points, "b": points}, torch.zeros(3, 2))
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    background, starts, ends = figure.axes[0].collections
    assert len(background.get_offsets()) == 3
    assert starts.get_offsets().tolist() == points[0].tolist()
    assert ends.get_offsets().tolist() == points[-1].tolist()


def test_pairs_share_their_axes():
    first, second = torch.linspace(-1, 1, 50), torch.linspace(0, 3, 50)
    figure = paths.show_pairs({"up": (first, second), "down": (second, first)}, "x", "y")
    clouds = [axis for axis in figure.axes if axis.collections]
    assert len(clouds) == 2
    assert all(axis.get_xlim() == axis.get_ylim() == (-1.0, 3.0) for axis in clouds)
