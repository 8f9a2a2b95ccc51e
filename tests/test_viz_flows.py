"""The figures of flows draw what they are given."""

import matplotlib

matplotlib.use("Agg")

import pytest
import torch

from diffusion_book.viz import flows
from diffusion_book.viz.style import COLOURS


def test_a_model_without_a_colour_has_its_familys():
    assert flows.colour_of("rf") == COLOURS["rf"]
    assert flows.colour_of("rf-reflow") == COLOURS.get("rf-reflow", COLOURS["rf"])
    assert flows.colour_of("latent-rf-class") == COLOURS.get("latent-rf-class", COLOURS["latent-rf"])
    assert flows.colour_of("ldm-concat") == COLOURS["ldm-concat"] != COLOURS["ldm"]
    assert flows.colour_of("rfx") is None


def test_tracks_are_coloured_by_the_side_on_which_they_end():
    tracks = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[-2.0, 0.5], [2.0, 0.5]]])  # (2 steps, 2 points, 2)
    figure = flows.show_tracks({"a": tracks, "b": tracks})
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    lines = figure.axes[0].lines
    assert [line.get_color() for line in lines] == [COLOURS["ddim"]] * 2 + [COLOURS["ddpm"]] * 2  # each with its end
    assert lines[0].get_xdata().tolist() == [1.0, -2.0]
    assert [float(value) for value in lines[1].get_xydata()[0]] == [-2.0, 0.5]


def test_clouds_show_every_point():
    figure = flows.show_points({"a": torch.zeros(3, 2), "b": torch.ones(5, 2)})
    assert [len(axis.collections[0].get_offsets()) for axis in figure.axes] == [3, 5]


def test_distance_from_the_chord():
    times = torch.tensor([1.0, 0.75, 0.0], dtype=torch.float64)
    straight = torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    bent = torch.tensor([[4.0, 0.0], [3.0, 2.0], [0.0, 0.0]])  # half a chord's length off, sideways
    hasty = torch.tensor([[4.0, 0.0], [1.0, 0.0], [0.0, 0.0]])  # on the line, but half its length too early
    off = flows.off_the_chord(times, torch.stack([straight, bent, hasty], dim=1))
    assert off.tolist() == [[0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]]


def test_bends_draw_each_path_and_the_mean():
    times = torch.tensor([1.0, 0.5, 0.0])
    states = torch.rand(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    axis = flows.show_bends({"rf": (times, states), "rf-reflow": (times, states), "other": (times, states)}).axes[0]
    assert len(axis.lines) == 3 * (4 + 1)
    assert axis.get_xlim() == (1.0, 0.0)
    means = axis.lines[4::5]
    assert means[0].get_color() == COLOURS["rf"]
    assert len({line.get_color() for line in means}) == 3
    assert means[0].get_ydata() == pytest.approx(flows.off_the_chord(times, states).mean(1).numpy())


def test_orders_have_lines_of_their_slopes():
    axis = flows.plot_orders({"euler": [(10, 0.1), (100, 0.01)], "heun": [(19, 0.05), (199, 5e-4)]}, slopes=(2,)).axes[
        0
    ]
    assert axis.get_xscale() == axis.get_yscale() == "log"
    *solvers, slope = axis.lines
    assert [line.get_label() for line in solvers] == ["euler", "heun"]
    assert slope.get_xdata().tolist() == [10, 19, 100, 199]
    assert slope.get_ydata()[[0, 2]] == pytest.approx([0.1, 0.001])  # a hundredth after ten times the work


def test_solvers_share_a_models_colour_and_a_solvers_marker():
    pairs = [(20, 0.5), (10, 1.0)]
    points = {("rf", "euler"): pairs, ("rf", "heun"): [(19, 0.4)], ("ddpm", "euler"): pairs}
    figure = flows.plot_solvers(points, floor=0.1, ylabel="cFID")
    rf_euler, rf_heun, ddpm_euler, floor = figure.axes[0].lines
    assert list(rf_euler.get_xdata()) == [10, 20]
    assert rf_euler.get_color() == rf_heun.get_color() == COLOURS["rf"] != ddpm_euler.get_color()
    assert rf_euler.get_marker() == ddpm_euler.get_marker() != rf_heun.get_marker()
    assert floor.get_ydata()[0] == 0.1
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["10", "20"]  # 19 would touch 20


def test_paths_of_one_flow_lie_on_each_other_in_common_coordinates():
    times = torch.tensor([1.0, 0.5, 0.25])
    one = torch.tensor([[1.0, -1.0], [0.5, -0.5], [0.25, -0.25]])
    paths = {"a": (times, torch.ones(3), 8 * times, one), "b": (times, torch.ones(3) / 2, 4 * times, one / 2)}
    figure = flows.show_clocks(paths, noisiest=4.0)
    *own, common = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_title() for axis in own] == ["a", "b"]
    assert [len(axis.lines) for axis in own] == [2, 2]
    first, second = common.lines[:2], common.lines[2:]
    for line, other in zip(first, second, strict=True):
        assert line.get_xydata().tolist() == other.get_xydata().tolist()
    assert first[0].get_xdata().tolist() == [4.0, 2.0]  # the noisiest point is left out
    assert [text.get_text() for text in common.get_legend().get_texts()] == ["a", "b"]
