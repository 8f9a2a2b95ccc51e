"""The figures of a guidance sweep, and its page of pictures."""

import numpy as np
import pytest
import torch

from diffusion_book.evaluation import sweep
from diffusion_book.evaluation.features import features
from diffusion_book.evaluation.sweep import measure_scale, spread, sweep_table
from diffusion_book.system.errors import BookError
from diffusion_book.viz.sweep import _table, show_cells


@pytest.fixture(scope="module")
def noise():
    """Pictures of nothing, and labels."""
    return torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.arange(40) % 10


def test_spread_is_the_mean_distance_within_a_label():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [9.0, 9.0]])
    labels = torch.tensor([0, 0, 1, 1, 1, 2])  # distances 5; 1, 2 and 1; none
    assert spread(points, labels) == pytest.approx((5 + 4 / 3) / 2)
    assert spread(10 * points, labels) == pytest.approx(10 * (5 + 4 / 3) / 2)


def test_spread_needs_a_pair():
    with pytest.raises(BookError, match="two pictures"):
        spread(torch.zeros(3, 2), torch.arange(3))


def test_equal_pictures_have_no_spread_and_noise_no_recall(noise):
    images, labels = noise
    found = measure_scale(images[:1].expand(40, -1, -1, -1), labels, 3.0)
    assert (found.guidance_scale, found.num_samples) == (3.0, 40)
    assert found.spread == pytest.approx(0, abs=1e-6)
    assert found.recall == 0
    assert found.class_accuracy == 0.1  # one answer for all is right for one class of ten
    assert found.cfid > 10 * found.floor
    assert 0.5 < found.recall_real <= 1


def test_spread_is_that_of_the_features(noise):
    images, labels = noise
    expected = spread(features(images), labels)
    assert measure_scale(images, labels, 1.0).spread == pytest.approx(expected, rel=1e-6)


def test_real_pictures_vary_less_within_a_class_than_over_all():
    _, within = sweep._real(200)
    points = sweep.real_features(200)
    assert 0 < within < 0.8 * spread(points, torch.zeros(200))


def test_pictures_that_are_not_finite_are_refused(noise):
    with pytest.raises(BookError, match="not finite"):
        measure_scale(noise[0] * torch.nan, noise[1], 100.0)


def test_table_names_every_model_and_scale(noise):
    rows = [measure_scale(*noise, scale) for scale in (0.0, 2.5)]
    text = sweep_table({"ldm-concat": rows, "ldm-cross-attention": rows[1:]})
    lines = text.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["ldm-concat", "0"],
        ["ldm-concat", "2.5"],
        ["ldm-cross-attention", "2.5"],
    ]
    assert f"{rows[0].cfid:.3f}" in lines[1]
    assert f"{rows[0].floor:.3f}" in lines[4]
    assert "At scale 0" in text
    assert "At scale 0" not in sweep_table({"ldm-concat": rows[1:]})


def test_cells_lie_where_their_row_and_column_are():
    """Each picture is one shade, so that the page can be read back."""
    rows, columns, count = 2, 3, 4
    shades = torch.linspace(-1, 1, rows * columns * count).reshape(rows, columns, count, 1, 1, 1)
    page = _table(shades.expand(-1, -1, -1, 1, 5, 7)).numpy()  # cells of 2 x 2 pictures
    assert page.shape == (2 * (2 * 5 + 1) + 6, 3 * (2 * 7 + 1) + 12)
    for row, column, number in np.ndindex(rows, columns, count):
        top, left = row * 17 + 6 * (number // 2), column * 21 + 8 * (number % 2)
        expected = round((shades[row, column, number].item() + 1) * 127.5)
        assert abs(int(page[top + 2, left + 3]) - expected) <= 1


def test_page_of_two_models():
    pictures = torch.zeros(3, 2, 5, 1, 28, 28)
    figure = show_cells({"ldm-concat": pictures, "ldm-cross-attention": pictures}, ["a", "b", "c"], [0.0, 7.5])
    assert [[label.get_text() for label in axis.get_xticklabels()] for axis in figure.axes] == [
        ["w = 0", "w = 7.5"]
    ] * 2
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.texts] == ["ldm-concat", "ldm-cross-attention"]
    with pytest.raises(BookError, match="3, 3, K"):
        show_cells({"ldm-concat": pictures}, ["a", "b", "c"], [0.0, 1.0, 2.0])
