"""Bars of costs: how long, in which colour, in which order."""

import pytest
from matplotlib.colors import to_hex

from diffusion_book.system.errors import BookError
from diffusion_book.viz.costs import plot_costs
from diffusion_book.viz.style import COLOURS

BARS = {"pixels": {"ddpm": 50.0}, "latents": {"ldm": 3.0, "vae": 1.5}}


def test_parts_lie_end_to_end_in_their_models_colours():
    (axes,) = plot_costs(BARS, "GFLOP").axes
    spans = [(bar.get_x(), bar.get_width(), to_hex(bar.get_facecolor()).upper()) for bar in axes.patches]
    assert spans == [(0, 50, COLOURS["ddpm"].upper()), (0, 3, COLOURS["ldm"].upper()), (3, 1.5, COLOURS["vae"].upper())]


def test_the_first_bar_is_on_top_and_each_has_its_label():
    (axes,) = plot_costs(BARS, "GFLOP").axes
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [text.get_text() for text in axes.get_yticklabels()] == ["pixels", "latents"]
    assert axes.get_xlabel() == "GFLOP"


def test_a_part_of_several_bars_is_named_once():
    figure = plot_costs({"10 steps": {"ldm": 1.0, "vae": 1.0}, "50 steps": {"ldm": 5.0, "vae": 1.0}}, "seconds")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ldm", "vae"]


def test_a_part_without_a_colour_is_refused():
    with pytest.raises(BookError, match="decoder"):
        plot_costs({"latents": {"decoder": 1.0}}, "GFLOP")
