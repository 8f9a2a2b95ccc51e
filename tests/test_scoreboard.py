"""The scoreboard is what the cards say, and a classifier that only sees samples tells good ones from bad ones."""

import json

import pytest
import torch
from commands import refused

from diffusion_book import data
from diffusion_book.cli import evaluate, pretrain
from diffusion_book.cli.main import main
from diffusion_book.cli.options import evaluate_options
from diffusion_book.data import crop, normalise
from diffusion_book.evaluation import scoreboard as board
from diffusion_book.evaluation import settings
from diffusion_book.evaluation.measures import HEADLINE, floor, random_labels
from diffusion_book.evaluation.scoreboard import (
    Row,
    apart,
    best,
    branches,
    command,
    figures,
    is_current,
    leaders,
    milliseconds,
    minutes_in_all,
    parameters_in_all,
    pictures_seen,
    ranking,
    redraw,
    row_of,
    scoreboard,
    usual_number,
)
from diffusion_book.evaluation.substitution import classification_accuracy_score
from diffusion_book.models import weights
from diffusion_book.models.configs import ClassSetting
from diffusion_book.models.pipelines import list_models, load
from diffusion_book.system.errors import BookError


def test_every_figure_on_the_scoreboard_is_its_card_s():
    rows = scoreboard()
    assert {row.model for row in rows} == {name for name in list_models() if figures(weights.read_card(name))}
    for row in rows:
        card = weights.read_card(row.model)
        (entry,) = [each for each in card["metrics"] if all(each.get(k) == v for k, v in row.setting.items())]
        assert row.measures["cfid"] == entry["cfid"]
        assert row.measures["floor"] == pytest.approx(floor(row.setting["num_samples"]).mean, rel=1e-4)
        assert row.measures["ratio"] == pytest.approx(entry["cfid"] / row.measures["floor"], rel=1e-4)
        if is_current(entry):
            assert {**row.setting, **row.measures} == entry
        assert (row.parameters, row.minutes) == (card["parameters"], card["minutes"])


def test_a_card_from_before_is_read_by_today_s_yardstick():
    """Without classes the floor is today's; with them the digits had exact shares, for which there is no floor."""
    old = {"sampler": "ddim", "steps": 50, "eta": 0.0, "seed": 0, "num_samples": 10_000, "cfid": 1.3}
    old |= {"floor": 0.05, "ratio": 26.0, "confident": 0.75, "confident_real": 0.97, "recall": 0.6}
    (found,) = figures({"metrics": [old, {**old, "guidance_scale": 1.0}]})
    assert found["floor"] == pytest.approx(floor(10_000).mean, abs=1e-6)
    assert found["ratio"] == pytest.approx(1.3 / floor(10_000).mean, rel=1e-4)
    assert (found["doubtful"], found["doubtful_real"], found["recall"]) == (0.25, pytest.approx(0.03), 0.6)
    assert found["doubtful_error"] == pytest.approx(0.00433, abs=1e-5)
    assert found["ratio_error"] is None
    assert "confident" not in found
    new = {**found, "guidance_scale": 1.0}
    assert figures({"metrics": [new]}) == [new]
    assert figures({}) == []


def test_only_figures_of_one_number_of_samples_are_compared():
    numbers = {row.setting["num_samples"] for row in scoreboard()}
    assert len(numbers) > 1
    for number in numbers:
        assert {row.setting["num_samples"] for row in scoreboard(number)} == {number}


@pytest.mark.parametrize(
    ("sampler", "steps", "scale", "count"),
    [
        ("ddim", 50, None, 50),
        ("heun", 10, None, 19),
        ("midpoint", 10, None, 20),
        ("ddim", 50, 1.0, 50),
        ("ddim", 50, 0.0, 50),
        ("ddim", 50, 3.0, 100),
    ],
)
def test_both_branches_of_guidance_are_counted(sampler, steps, scale, count):
    entry = {"sampler": sampler, "steps": steps} | ({} if scale is None else {"guidance_scale": scale})
    assert row_of("x", {"parameters": 1, "minutes": 2.0}, entry).evaluations == count
    assert branches(entry) in (1, 2)


def test_the_minutes_of_a_model_hold_those_of_what_it_was_made_from():
    flows = ("rf", "rf-reflow", "rf-one-step")
    minutes = {name: weights.read_card(name)["minutes"] for name in ("ddpm", "vae", "ldm", *flows)}
    assert minutes_in_all("ddpm") == minutes["ddpm"]
    assert minutes_in_all("ldm") == minutes["ldm"] + minutes["vae"]
    pairs = sum(weights.read_card(name)["coupling_minutes"] for name in flows[1:])
    assert minutes_in_all("rf-one-step") == pytest.approx(sum(minutes[name] for name in flows) + pairs)


def test_the_best_row_of_each_model():
    rows = [
        Row("a", {"steps": 5, "num_samples": 50}, 5, 1, 1.0, {"cfid": 3.0}),
        Row("a", {"steps": 9, "num_samples": 50}, 9, 1, 1.0, {"cfid": 1.0}),
        Row("b", {"steps": 5, "num_samples": 50}, 5, 1, 1.0, {"cfid": 2.0}),
    ]
    assert best(rows) == {"a": rows[1], "b": rows[2]}
    assert best(rows, steps=5) == {"a": rows[0], "b": rows[2]}
    assert best(rows, steps=9) == {"a": rows[1]}
    with pytest.raises(BookError, match="figures of 50 and 60 samples do not compare"):
        best([*rows, Row("b", {"steps": 5, "num_samples": 60}, 5, 1, 1.0, {"cfid": 0.1})])


def of(model, evaluations, ratio, error=None, number=50):
    measures = {"cfid": 0.1 * ratio, "ratio": ratio, "ratio_error": error}
    return Row(model, {"sampler": "ddim", "steps": evaluations, "num_samples": number}, evaluations, 1, 1.0, measures)


def test_models_are_ranked_by_their_best_row_within_a_budget():
    rows = [of("a", 5, 3.0), of("a", 9, 1.0), of("b", 5, 2.0), of("c", 9, 0.5)]
    assert ranking(rows) == [rows[3], rows[1], rows[2]]
    assert ranking(rows, most_evaluations=5) == [rows[2], rows[0]]
    with pytest.raises(BookError, match="do not compare"):
        ranking([*rows, of("b", 5, 2.0, number=60)])


def test_those_lead_whom_nobody_beats_with_as_few_evaluations():
    rows = [of("a", 5, 3.0), of("a", 9, 1.0), of("b", 5, 2.0), of("c", 20, 1.5)]
    assert leaders(rows) == [rows[2], rows[1]]


def test_two_rows_differ_from_two_standard_errors_on():
    assert apart(of("a", 5, 2.0, 0.3), of("b", 5, 3.1, 0.4)) is True  # 2 x 0.5 is needed
    assert apart(of("a", 5, 2.0, 0.3), of("b", 5, 2.9, 0.4)) is False
    assert apart(of("a", 5, 2.0, 0.3), of("b", 5, 9.0)) is None


def test_the_usual_number_of_samples_is_that_of_most_rows():
    assert usual_number([of("a", 5, 1.0), of("b", 5, 1.0), of("c", 5, 1.0, number=60)]) == 50


def test_a_model_has_seen_its_batches_and_draws_with_its_decoder():
    card = weights.read_card("ldm")
    assert pictures_seen("ldm") == card["steps"] * card["recipe"]["training"]["batch_size"]
    pipe = load("ldm", device="cpu")
    decoder = sum(parameter.numel() for parameter in pipe.autoencoder.network.decoder.parameters())
    assert parameters_in_all(pipe) == card["parameters"] + decoder
    assert parameters_in_all(load("rf-one-step", device="cpu")) == weights.read_card("rf-one-step")["parameters"]


def test_a_row_is_drawn_again_as_its_command_draws_it():
    """The labels of a model with classes are random, in the proportions that `evaluate` takes."""
    setting = {"sampler": "euler", "steps": 1, "seed": 3, "num_samples": 4}
    row = Row("latent-rf-class-one-step", setting | {"guidance_scale": 1.0}, 1, 1, 1.0, {})
    pipe = load(row.model, device="cpu")
    drawn = redraw(pipe, row)
    wanted = pipe.sample(4, labels=random_labels(4), sampler="euler", steps=1, seed=3, guidance_scale=1.0)
    assert torch.equal(drawn, wanted)
    assert len(redraw(pipe, row, num_samples=2)) == 2
    assert command(row) == (
        "diffusion-book evaluate latent-rf-class-one-step --sampler euler --steps 1 --seed 3 --num-samples 4 "
        "--guidance-scale 1.0"
    )


def test_more_steps_take_longer():
    pipe = load("ldm", device="cpu")
    few, many = (milliseconds(pipe, {"sampler": "ddim", "steps": steps}, 4, repeats=2) for steps in (2, 40))
    assert 0 < few < many


def test_evaluate_all_draws_again_what_the_cards_say(tmp_path, monkeypatch, capsys):
    """One figure of one model: it agrees; with another card it does not, and the exit code says so."""
    chosen = [row for row in scoreboard() if row.model == "ldm" and row.setting["steps"] == 10][:1]
    small = row_of("ldm", weights.read_card("ldm"), {**chosen[0].setting, **chosen[0].measures, "num_samples": 40})
    pipe = load("ldm", device="cpu")
    _, entry = settings.evaluate(pipe, settings.Setting(**small.setting))
    honest = row_of("ldm", weights.read_card("ldm"), entry)
    wrong = Row(**{**vars(honest), "measures": {**honest.measures, "cfid": 2 * honest.measures["cfid"]}})
    for row, agrees in ((honest, True), (wrong, False)):
        monkeypatch.setattr(evaluate, "scoreboard", lambda number=None, row=row: [row])
        arguments = ["evaluate", "--all", "--device", "cpu", "--output-dir", str(tmp_path)]
        if agrees:
            main(arguments)
        else:
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == 1
        *lines, folder = capsys.readouterr().out.splitlines()
        (result,) = json.loads((tmp_path / folder.split("/")[-1] / "scoreboard.json").read_text(encoding="utf-8"))
        assert result["agrees"] is agrees
        assert ("does NOT agree" in lines[-1]) is not agrees


def test_evaluate_all_goes_on_where_it_was_cut_off(tmp_path, monkeypatch, capsys):
    """What is in the folder is not drawn again, unless the card has changed since."""
    card = weights.read_card("ldm")
    measures = {"cfid": 1.0, "ratio": 2.0, "doubtful": 0.1, "class_accuracy": None}
    rows = [row_of("ldm", card, {**vars(settings.Setting(steps=steps)), **measures}) for steps in (2, 3)]
    drawn = []

    def draw(pipe, setting):
        drawn.append(setting.steps)
        if setting.steps == 3 and len(drawn) == 2:
            raise KeyboardInterrupt
        return None, {**vars(setting), **measures}

    monkeypatch.setattr(evaluate, "evaluate", draw)
    monkeypatch.setattr(evaluate, "scoreboard", lambda number=None: rows)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--all", "--output-dir", str(tmp_path)])
    assert stop.value.code == 130
    assert drawn == [2, 3]
    (folder,) = tmp_path.iterdir()
    capsys.readouterr()

    main(["evaluate", "--all", "--resume", str(folder)])
    assert drawn == [2, 3, 3]
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)

    rows[0] = Row(**{**vars(rows[0]), "measures": {**rows[0].measures, "cfid": 5.0}})
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--all", "--resume", str(folder)])
    assert stop.value.code == 1
    assert drawn == [2, 3, 3, 2]
    results = json.loads((folder / "scoreboard.json").read_text(encoding="utf-8"))
    assert sorted((result["setting"]["steps"], result["agrees"]) for result in results) == [(2, False), (3, True)]


@pytest.mark.parametrize("content", [None, "", "[", "3", "[1]", "[{}]", '{"a": 1}'])
def test_resume_wants_results(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "scoreboard.json").write_text(content, encoding="utf-8")
    line = refused(capsys, "evaluate", "--all", "--resume", tmp_path)
    assert "leave out --resume" in line


@pytest.mark.parametrize("model", pretrain.SETTINGS)
def test_evaluate_draws_the_figure_that_stands_for_a_model(model):
    """All of one number of samples; what a thousand steps make too dear is of fewer, and never stands first."""
    first, *others = pretrain.SETTINGS[model]
    assert evaluate_options(model).setting == first
    assert first.num_samples == HEADLINE
    few = [setting for setting in others if setting.num_samples != HEADLINE]
    assert not few or any(setting.steps == 1000 for setting in few)
    assert len(set(pretrain.SETTINGS[model])) == len(pretrain.SETTINGS[model])


def test_no_figure_fits(tmp_path, capsys):
    line = refused(capsys, "evaluate", "--all", "--num_samples", 77, "--output-dir", tmp_path)
    assert "no figure on any card fits" in line


def digits(split):
    found = data.load("digits", split)
    return crop(normalise(found.images)), found.labels, found


def test_real_pictures_teach_and_wrong_labels_do_not():
    images, labels, _ = digits("train")
    test = digits("test")[2]
    assert classification_accuracy_score(images, labels, test, epochs=8) > 0.9
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    assert classification_accuracy_score(images, shuffled, test, epochs=3) < 0.4


def test_not_one_label_each():
    images, labels, test = digits("train")
    with pytest.raises(BookError, match="they must be"):
        classification_accuracy_score(images, labels[:-1], test)


def test_every_column_of_a_setting_reaches_the_sampler():
    """Else a row of the board would not be drawn as it was on the card."""
    known = set(ClassSetting.__dataclass_fields__)
    assert set(board.SETTING) == known
