"""The scoreboard's table and figures show what the rows hold."""

import re

import matplotlib

matplotlib.use("Agg")

import pytest
import torch
from matplotlib.colors import to_hex

from diffusion_book.evaluation.scoreboard import Row, scoreboard
from diffusion_book.system.errors import BookError
from diffusion_book.viz import scores
from diffusion_book.viz.style import COLOURS


def row(model="ddpm", cfid=1.0, evaluations=10, number=2000, scale=None, **measures):
    setting = {"sampler": "ddim", "steps": evaluations, "eta": 0.0, "seed": 0, "num_samples": number}
    guidance = {} if scale is None else {"guidance_scale": scale}
    found = {"cfid": cfid, "floor": 0.5, "ratio": cfid / 0.5, "class_accuracy": None, **measures}
    return Row(model, setting | guidance, evaluations, 1_500_000, 20.0, found)


def cells(table):
    """The cells of each row of numbers, tags stripped except for the mark of the best."""
    lines = [line for line in table.text.splitlines() if line.startswith('<tr><th scope="row">')]
    return [re.findall(r"<td>(.*?)</td>", line) for line in lines]


ONE = (scores.measure("cFID", "cfid", ".2f", "low"), scores.measure("right class", "class_accuracy", ".0%", "high"))


def test_table_writes_every_number_and_marks_the_best_of_each_group():
    table = scores.score_table(
        {"few": [row(cfid=2.0), row("ldm", 1.0)], "many": [row("rf", 3.0), row("vae", 4.0)]}, ONE
    )
    assert cells(table) == [["2.00", ""], ["<b>1.00</b>", ""], ["<b>3.00</b>", ""], ["4.00", ""]]
    assert re.findall(r'scope="rowgroup">(\w+)<', table.text) == ["few", "many"]


def test_the_best_can_be_the_highest_and_ties_are_all_marked():
    rows = [row(class_accuracy=0.991), row("ldm", class_accuracy=0.985), row("rf", class_accuracy=0.992)]
    assert [line[1] for line in cells(scores.score_table({"": rows}, ONE))] == ["<b>99%</b>", "98%", "<b>99%</b>"]


def test_what_stands_alone_is_not_the_best():
    assert cells(scores.score_table({"": [row()]}, ONE)) == [["1.00", ""]]


def test_a_negative_number_has_a_minus_sign():
    assert cells(scores.score_table({"": [row(kid=-0.25)]}, (scores.measure("KID", "kid", ".2f", "low"),))) == [
        ["−0.25"]
    ]


def test_a_unit_follows_its_number():
    assert cells(scores.score_table({"": [row()]}, scores.COLUMNS))[0][-2:] == ["1.50 M", "20 min"]


def test_a_folded_table_is_hidden_and_names_are_escaped():
    table = scores.score_table({"": [row("<script>")]}, ONE, fold="all & more")
    assert table.text.startswith("<details><summary>all &amp; more</summary>")
    assert "<script>" not in table.text
    assert "1 models, 1 rows" in repr(table)


def test_the_table_has_no_colour_of_its_own_for_text_and_scrolls():
    text = scores.score_table({"": [row()]}, ONE).text
    assert "color:inherit" in text
    assert "overflow-x:auto" in text
    assert "position:sticky" in text
    assert "http" not in text


def test_a_setting_is_named_by_what_differs():
    assert scores.setting_name(row()) == "ddim 10"
    assert scores.setting_name(row(scale=1.5)) == "ddim 10, w = 1.5"
    noisy = row()
    noisy.setting["eta"] = 1.0
    assert scores.setting_name(noisy) == "ddim 10, η = 1"
    ancestral = row()
    ancestral.setting.update(sampler="ddpm", eta=1.0)
    assert scores.setting_name(ancestral) == "ddpm 10"


def test_models_of_one_colour_differ_in_marker_and_line():
    looks = scores.looks(["rf", "ddpm", "rf-reflow", "unheard-of"])
    assert looks["rf"]["color"] == COLOURS["rf"]
    assert looks["unheard-of"]["color"] == scores.GREY
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 4
    assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == 4


def test_bars_are_as_long_as_cfid_and_share_one_scale():
    left, right = scores.plot_bars({"a": [row(cfid=2.0), row("ldm", 1.0)], "b": [row(cfid=4.0)]}).axes
    assert [bar.get_width() for bar in left.patches] == [2.0, 1.0]
    assert [to_hex(bar.get_facecolor()).upper() for bar in left.patches] == [COLOURS["ddpm"], COLOURS["ldm"]]
    assert [segment[0][0] for segment in left.collections[0].get_segments()] == [0.5, 0.5]
    assert left.get_xlim() == right.get_xlim()
    assert left.get_xlim()[1] > 4
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first one on top


def test_frontier_takes_the_best_row_at_each_work_and_its_envelope_never_rises():
    easier = row("ldm-concat", 1.0, evaluations=5, floor=0.1, ratio=10.0)  # another floor, and R is compared
    rows = [row(cfid=3.0), row(cfid=2.0), row(cfid=2.5, evaluations=50), row("ldm", 4.0, evaluations=5), easier]
    (axes,) = scores.plot_frontier(rows).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["ddpm"] == [[10, 4.0], [50, 5.0]]
    assert lines["ldm"] == [[5, 8.0]]
    assert lines["ldm-concat"] == [[5, 10.0]]
    assert lines["the best so far"] == [[5, 8.0], [10, 4.0], [50, 4.0]]
    assert {y for _, y in lines["real pictures"]} == {1.0}


def test_frontier_refuses_rows_of_different_numbers_of_samples():
    with pytest.raises(BookError, match="one number of samples"):
        scores.plot_frontier([row(), row(number=10_000)])
    with pytest.raises(BookError, match="one number of samples"):
        scores.plot_frontier([])


def test_spreads_draw_the_median():
    (axes,) = scores.plot_spreads({"real": torch.arange(11.0), "ddpm": torch.full((5,), 3.0)}, "distance").axes
    medians = [line.get_xdata().tolist() for line in axes.lines if line.get_color() == COLOURS["data"]]
    assert medians == [[5.0, 5.0], [3.0, 3.0]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["real", "ddpm"]


def test_sweep_has_a_panel_for_each_measure_and_dots_real_pictures():
    rows = [
        row("ldm-concat", cfid, scale=scale, recall=cfid / 10) for scale, cfid in ((3.0, 2.0), (0.0, 3.0), (1.0, 1.0))
    ]
    cfid, recall = scores.plot_sweep(rows, {"cFID": "cfid", "recall": "recall"}).axes
    assert cfid.lines[0].get_xydata().tolist() == [[0, 3.0], [1, 1.0], [2, 2.0]]
    assert [text.get_text() for text in cfid.get_xticklabels()] == ["0", "1", "3"]
    assert cfid.lines[1].get_ydata() == [0.5, 0.5]
    assert len(recall.lines) == 1  # no figure of real pictures is known


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: scores.score_table({"empty": []}), "at least one row"),
        (lambda: scores.plot_bars({}), "at least one panel"),
        (lambda: scores.plot_bars({"a": []}), "at least one row"),
        (lambda: scores.plot_spreads({}, "x"), "at least one set"),
        (lambda: scores.plot_sweep([row()], {"cFID": "cfid"}), "guidance scale"),
        (lambda: scores.plot_sweep([], {"cFID": "cfid"}), "guidance scale"),
    ],
)
def test_nothing_to_show_is_refused(draw, words):
    with pytest.raises(BookError, match=words):
        draw()


def test_the_shipped_board_can_be_shown_whole():
    rows = [row for row in scoreboard() if row.setting["num_samples"] == 2000]
    assert len(cells(scores.score_table({"": rows}))) == len(rows)
    assert scores.plot_frontier(rows).axes[0].lines
