"""Pictures of guidance: where arrows, samples and curves are drawn, and what a sweep asks for."""

import matplotlib

matplotlib.use("Agg")

import pytest
import torch
from matplotlib.colors import to_hex
from tiny import random_autoencoder, random_class_pipeline

from diffusion_book.models import sampling
from diffusion_book.system.errors import BookError
from diffusion_book.viz import guidance
from diffusion_book.viz.style import COLOURS

POINTS = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]], dtype=torch.float64)
ASKED = torch.tensor([True, False, False])


def colour_of(collection) -> str:
    return to_hex(collection.get_facecolor()[0]).upper()


def test_places_run_row_by_row_from_the_bottom_left():
    corners = guidance.places(2.0, 2).tolist()
    assert corners == [[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]]
    assert guidance.places(1.0, 5).shape == (25, 2)


def test_arrows_stand_where_they_start_over_the_data():
    at = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    field = torch.tensor([[1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    figure = guidance.show_arrows({"one": field, "other": -field}, at, POINTS, ASKED, length=0.5)
    assert [axis.get_title() for axis in figure.axes] == ["one", "other"]
    others, of_class, arrows = figure.axes[0].collections
    assert (len(others.get_offsets()), len(of_class.get_offsets())) == (2, 1)
    assert arrows.XY.tolist() == at.tolist()
    assert (arrows.U.tolist(), arrows.V.tolist()) == ([1.0, 0.0], [0.0, -2.0])
    assert arrows.scale == 2.0  # an arrow of length 1 is half a unit long


def test_clouds_lie_over_the_data_in_the_models_colour():
    cloud = torch.tensor([[2.0, 2.0]], dtype=torch.float64)
    figure = guidance.show_clouds({"w = 0": cloud, "w = 1": cloud, "w = 3": cloud}, POINTS, ASKED)
    assert len(figure.axes) == 3
    samples = figure.axes[2].collections[-1]
    assert samples.get_offsets().tolist() == [[2.0, 2.0]]
    assert colour_of(samples) == COLOURS["ldm-concat"]


def test_contours_surround_the_density_where_it_is():
    mesh = guidance.places(2.8, 141)
    density = torch.exp(-(mesh - torch.tensor([1.0, -1.0])).square().sum(1) / (2 * 0.3**2))  # to the right and below
    figure = guidance.show_clouds({"a": POINTS, "b": POINTS}, POINTS, ASKED, {"b": density})
    plain, drawn = ([path for part in axis.collections for path in part.get_paths()] for axis in figure.axes)
    lines = [path.vertices for path in drawn if len(path.vertices) > 30]  # dots are made of fewer corners
    assert not [path for path in plain if len(path.vertices) > 30]
    middles = [(line.min(0) + line.max(0)) / 2 for line in lines]
    assert len(middles) == 2
    for middle in middles:
        assert middle.tolist() == pytest.approx([1.0, -1.0], abs=0.05)


def test_half_of_a_normal_density_lies_above_its_level():
    mesh = guidance.places(5.0, 201)
    density = torch.exp(-mesh.square().sum(1) / 2)
    # In the plane a share s lies within the radius r of exp(-r^2 / 2) = 1 - s, which is the density there.
    assert guidance.level_around(density, 0.5) == pytest.approx(0.5, abs=0.01)
    assert guidance.level_around(density, 0.9) == pytest.approx(0.1, abs=0.01)
    assert guidance.level_around(density, 1.0) == pytest.approx(density.min().item())


@pytest.fixture(scope="module")
def pipe():
    return random_class_pipeline(random_autoencoder(), timesteps=20)


@pytest.mark.parametrize("batch", [100, 3])
def test_a_sweep_has_one_noise_a_row_and_one_scale_a_column(pipe, batch, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH_SIZE", batch)
    said = []
    asked = {"steps": 4, "seed": 2, "eta": 0.5}
    pictures = sampling.sweep(pipe, (7, 3), (0, 1, 5), callback=lambda *state: said.append(state), **asked)
    assert pictures.shape == (2, 3, 1, 28, 28)
    for column, scale in enumerate((0.0, 1.0, 5.0)):
        alone = pipe.sample(2, labels=[7, 3], guidance_scale=scale, **asked)
        torch.testing.assert_close(pictures[:, column], alone, rtol=0, atol=1e-4)
    assert (pictures[:, 0] - pictures[:, 2]).abs().max() > 0.01
    total = 4 if batch == 100 else 8
    assert said == [(done, total) for done in range(1, total + 1)]


def test_fresh_noise_is_the_same_along_a_row_too(pipe):
    one, other = sampling.sweep(pipe, range(5), (2, 2), steps=5, eta=1.0).unbind(1)
    assert torch.equal(one, other)


@pytest.mark.parametrize(("labels", "scales"), [((), (1,)), ((1,), ())])
def test_an_empty_sweep_is_refused(pipe, labels, scales):
    with pytest.raises(BookError, match="at least 1"):
        sampling.sweep(pipe, labels, scales)


def test_a_sweep_is_shown_with_its_labels_and_scales():
    (axes,) = guidance.show_sweep(torch.zeros(2, 3, 1, 28, 28), range(2), (0, 1.5, 10)).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["w = 0", "w = 1.5", "w = 10"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1"]


def test_measures_stand_side_by_side_over_even_scales():
    panels = {
        "shares": {"recall": [0.8, 0.5, 0.3]},
        "cFID": {"ldm-concat": [1.0, 2.0, 3.0], "young": [30.0, 20.0, 9.0]},
    }
    figure = guidance.plot_against_scale((0, 1, 10), panels, {"recall": 0.74, "cFID": 0.7}, log=["cFID"])
    shares, cfid = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["shares", "cFID"]
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "log"]
    recall, of_real = shares.lines
    assert list(recall.get_xdata()) == [0, 1, 2]
    assert list(recall.get_ydata()) == [0.8, 0.5, 0.3]
    assert [text.get_text() for text in shares.get_xticklabels()] == ["0", "1", "10"]
    assert (of_real.get_ydata()[0], of_real.get_color()) == (0.74, recall.get_color())
    ours, young, floor = cfid.lines
    assert ours.get_color() == COLOURS["ldm-concat"]
    assert young.get_color() != COLOURS["ldm-concat"] != recall.get_color()
    assert (floor.get_ydata()[0], floor.get_color()) == (0.7, COLOURS["data"])


def test_panels_fill_rows_and_what_several_sets_reach_is_a_band():
    panels = {title: {"ldm-concat": [1.0, 2.0]} for title in ("recall", "distance", "cFID")}
    figure = guidance.plot_against_scale((0, 1), panels, {"recall": (0.8, 0.02), "cFID": 0.7}, columns=2)
    recall, distance, cfid = figure.axes
    rows = [axis.get_subplotspec().rowspan.start for axis in figure.axes]
    assert rows == [0, 0, 1]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "guidance scale w", "guidance scale w"]
    (band,) = recall.patches
    assert (band.get_y(), band.get_height()) == pytest.approx((0.78, 0.04))
    assert recall.lines[-1].get_ydata()[0] == 0.8
    assert not distance.patches
    assert len(distance.lines) == 1
    assert not cfid.patches, "one number is a line alone"
    assert len(cfid.lines) == 2


def test_clouds_are_frames_with_the_samples_black():
    asked = torch.tensor([True, False])
    data = torch.tensor([[-1.0, 1.0], [1.0, 1.0]])
    frames = guidance.cloud_frames([torch.tensor([[0.0, -1.0]]), torch.zeros(0, 2)], data, asked, limit=2, size=40)
    assert frames.shape == (2, 40, 40)
    first, second = frames
    assert first[30, 20] < 60 < 240 < second[30, 20], "the first frame's sample lies below the middle"
    class_asked, other = second[10, 10], second[10, 30]
    assert class_asked < other < 240


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(BookError, match="'recall'"):
        guidance.plot_against_scale((0, 1), {"shares": {"recall": [0.8]}})


@pytest.mark.parametrize(
    "draw", [lambda: guidance.show_clouds({}, POINTS, ASKED), lambda: guidance.plot_against_scale((1,), {})]
)
def test_no_panels_are_refused(draw):
    with pytest.raises(BookError, match="at least one panel"):
        draw()
