"""Every command on the page for those who come from scripts can be given as it stands there."""

import re
from pathlib import Path

import pytest

from diffusion_book.cli import bench, diagnose, evaluate, generate, pretrain, train, visualize
from diffusion_book.cli.main import COMMANDS, parse

TEXT = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
ROWS = re.findall(r"`diffusion-book ([^`]+)`", TEXT)


def options_of(command: str, name: str):
    """The class of options of a command for a model or subject, and its defaults."""
    if command == "train":
        kind = train.MODELS[name]
        return kind, train.options_of(kind, train.RECIPES[name])
    kinds = {
        "generate": generate.MODELS,
        "evaluate": evaluate.MODELS,
        "visualize": {subject: value.options for subject, value in visualize.SUBJECTS.items()},
    }
    kind = kinds[command][name]
    return kind, kind()


@pytest.mark.parametrize("row", ROWS)
def test_options_are_read_in_both_spellings(row):
    command, name, *rest = row.split()
    assert command in COMMANDS
    if command == "bench":
        kind, default, rest = bench.Bench, bench.Bench(), [name, *rest]
    elif command == "diagnose":
        kind, default = diagnose.Diagnose, diagnose.Diagnose()
    else:
        kind, default = options_of(command, name)
    read = [parse(kind, [spell(word) for word in rest], command, "", default) for spell in (str, dashed)]
    assert read[0] == read[1]
    assert read[0] != default or not rest


def dashed(word: str) -> str:
    return word.replace("_", "-") if word.startswith("--") else word


def test_the_page_names_every_kind_of_work():
    assert {row.split()[0] for row in ROWS} == {"train", "generate", "visualize", "diagnose", "bench"}
    assert {row.split()[1] for row in ROWS if row.startswith("train")} <= set(pretrain.NAMES)
