"""The study of sizes: its pairing is the best there is, an interrupted run goes on, a branch leaves the trunk alone."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

from diffusion_book import data

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import study

TINY = study.Variant("rf", network={"base_channels": 8, "channel_multipliers": (1, 1, 1)}, training={"batch_size": 16})
STEPS = 3


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Small digits in the place of MNIST."""
    digits = data.load("digits", "train").first(64)
    monkeypatch.setattr(study.data, "load", lambda name, split="train": digits)


def trained(run: study.Run, steps: int) -> study.Run:
    """A run after so many more steps, whatever time they take."""
    for _ in range(steps):
        run.train(until=0.0, end=float("inf"))  # the time is up after the first step
    return run


def test_optimal_pairing_is_the_best_of_all_orders():
    random = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 1, 2, 2, generator=random)
    cost = lambda noise: (x0 - noise).square().sum()  # noqa: E731
    best = min(cost(eps[list(order)]) for order in itertools.permutations(range(5)))
    torch.testing.assert_close(cost(study.optimal_pairing(x0, eps)), best)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = trained(study.Run(TINY), 2 * STEPS)
    half = trained(study.Run(TINY), STEPS)
    study.save_checkpoint(tmp_path / "trunk.pt", half.state())
    again = study.Run(TINY)
    again.load(study.load_checkpoint(tmp_path / "trunk.pt"))
    trained(again, STEPS)
    assert again.trainer.step == whole.trainer.step == 2 * STEPS
    for decay, average in whole.averages.items():
        for one, other in zip(average.network.parameters(), again.averages[decay].network.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert again.losses() == whole.losses()


def test_each_budget_is_a_branch_and_the_trunk_goes_on_without_it(tmp_path, monkeypatch):
    """The row of the longer budget is the same whether or not a shorter one branched off before."""
    monkeypatch.setattr(study, "ROWS", tmp_path / "study.json")
    monkeypatch.setitem(study.VARIANTS, "tiny", TINY)
    monkeypatch.setattr(study.Run, "draw", lambda run, network, number: torch.zeros(number, 1, 28, 28))
    measured = {
        "cfid": 1.0,
        "cfid_error": 0.1,
        "ratio": 2.0,
        "ratio_error": 0.2,
        "doubtful": 0.25,
        "precision": 0.5,
        "recall": 0.5,
    }
    monkeypatch.setattr(study, "measure", lambda images: type("Found", (), {"to_dict": lambda self: measured})())
    ticks = itertools.count()
    monkeypatch.setattr(study.time, "process_time", lambda: float(next(ticks)))  # a second for each look at the clock
    study.study("tiny", [0.1, 0.2], tmp_path / "both")
    both = study.rows()["tiny"]
    (tmp_path / "study.json").unlink()
    study.study("tiny", [0.2], tmp_path / "one")
    alone = study.rows()["tiny"]
    assert both["0.1"]["steps"] < both["0.2"]["steps"] == alone["0.2"]["steps"]
    assert both["0.2"]["test_loss"] == alone["0.2"]["test_loss"]
    page = study.page(study.rows() | {"width-16": both})
    assert "| `rf`: tiny |" in page
    assert page.count("2.0 | 25 |") == 3
    (lines,) = study.chart({"width-16": both, "tiny": both}).axes[0].get_legend_handles_labels()[1:]
    assert lines == ["width-16"], "the widths that are known so far"
