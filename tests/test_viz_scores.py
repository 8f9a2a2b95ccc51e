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
from diffusion_book.viz.style import COLOURS, GREY


def row(model="ddpm", cfid=1.0, evaluations=10, number=2000, scale=None, **measures):
    setting = {"sampler": "ddim", "steps": evaluations, "eta": 0.0, "seed": 0, "num_samples": number}
    guidance = {} if scale is None else {"guidance_scale": scale}
    found = {"cfid": cfid, "floor": 0.5, "ratio": cfid / 0.5, "ratio_error": 0.2, "class_accuracy": None}
    found |= {"doubtful": 0.1, "doubtful_error": 0.01, "doubtful_real": 0.03, **measures}
    return Row(model, setting | guidance, evaluations, 1_500_000, 20.0, found)


def cells(table):
    """The cells of each row of numbers, tags stripped except for the mark of the best."""
    lines = [line for line in table.text.splitlines() if line.startswith('<tr><th scope="row">')]
    return [re.findall(r"<td>(.*?)</td>", line) for line in lines]


ONE = (
    scores.measure_column("cFID", "cfid", ".2f", "low"),
    scores.measure_column("right class", "class_accuracy", ".0%", "high"),
)


def test_table_writes_every_number_and_marks_the_best_of_each_group():
    table = scores.score_table(
        {"few": [row(cfid=2.0), row("ldm", 1.0)], "many": [row("rf", 3.0), row("vae", 4.0)]}, ONE
    )
    assert cells(table) == [["2.00", ""], ["<b>1.00</b>", ""], ["<b>3.00</b>", ""], ["4.00", ""]]
    assert re.findall(r'scope="rowgroup">(\w+)<', table.text) == ["few", "many"]


def test_the_best_can_be_the_highest_and_ties_are_all_marked():
    rows = [row(class_accuracy=0.991), row("ldm", class_accuracy=0.985), row("rf", class_accuracy=0.992)]
    assert [line[1] for line in cells(scores.score_table({"": rows}, ONE))] == ["<b>99%</b>", "98%", "<b>99%</b>"]


def test_what_errors_do_not_tell_apart_is_as_good():
    """2 and 2.5 lie within twice the error of their difference, 2 and 2.6 do not; an unknown error ties with nothing."""
    column = (scores.measure_column("R", "ratio", ".1f", "low"),)
    rows = [row(cfid=1.0), row("ldm", 1.25), row("rf", 1.3), row("vae", 1.01, ratio_error=None)]
    assert [line[0] for line in cells(scores.score_table({"": rows}, column))] == [
        "<b>2.0 ± 0.2</b>",
        "<b>2.5 ± 0.2</b>",
        "2.6 ± 0.2",
        "2.0",
    ]
    share = (scores.measure_column("doubtful", "doubtful", ".0%", "low"),)
    assert cells(scores.score_table({"": rows[:1]}, share)) == [["10 ± 1%"]]


def test_a_table_holds_figures_of_one_number_of_samples():
    with pytest.raises(BookError, match="figures of 2,000 and 10,000 samples do not compare"):
        scores.score_table({"a": [row()], "b": [row(number=10_000)]})


def test_what_stands_alone_is_not_the_best():
    assert cells(scores.score_table({"": [row()]}, ONE)) == [["1.00", ""]]


def test_a_negative_number_has_a_minus_sign():
    assert cells(scores.score_table({"": [row(kid=-0.25)]}, (scores.measure_column("KID", "kid", ".2f", "low"),))) == [
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
    assert looks["unheard-of"]["color"] == GREY
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == 4
    assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == 4


def test_bars_are_as_long_as_r_and_doubt_with_their_errors():
    rows = [row(cfid=2.0), row("ldm", 1.0, ratio_error=None, doubtful=0.25)]
    ratio, doubtful = scores.plot_bars(rows).axes
    assert [bar.get_width() for bar in ratio.patches] == [4.0, 2.0]
    assert [bar.get_width() for bar in doubtful.patches] == [10.0, 25.0]
    assert [to_hex(bar.get_facecolor()).upper() for bar in ratio.patches] == [COLOURS["ddpm"], COLOURS["ldm"]]
    (errors,) = (part for part in ratio.collections)
    assert [[x for x, _ in segment] for segment in errors.get_segments()] == [[3.8, 4.2], [2.0, 2.0]]
    assert [axis.lines[0].get_xdata()[0] for axis in (ratio, doubtful)] == [1.0, 3.0]  # of real digits
    assert ratio.get_ylim()[0] > ratio.get_ylim()[1]  # the first one on top


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
    for draw in (scores.plot_frontier, scores.plot_bars):
        with pytest.raises(BookError, match="do not compare"):
            draw([row(), row(number=10_000)])


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
        (lambda: scores.plot_bars([]), "at least one row"),
        (lambda: scores.plot_frontier([]), "at least one row"),
        (lambda: scores.plot_spreads({}, "x"), "at least one set"),
        (lambda: scores.plot_sweep([row()], {"cFID": "cfid"}), "guidance scale"),
        (lambda: scores.plot_sweep([], {"cFID": "cfid"}), "guidance scale"),
    ],
)
def test_nothing_to_show_is_refused(draw, words):
    with pytest.raises(BookError, match=words):
        draw()


def test_the_shipped_board_can_be_shown_whole():
    rows = scoreboard(10_000)
    assert len(cells(scores.score_table({"": rows}))) == len(rows)
    assert scores.plot_frontier(rows).axes[0].lines
