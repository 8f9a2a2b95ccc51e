"""Every command on the page for those who come from scripts can be given as it stands there."""

import dataclasses
import re
from pathlib import Path

import pytest

from diffusion_book.cli.main import COMMANDS
from diffusion_book.cli.options import PRETRAINED, READ

TEXT = (Path(__file__).parents[1] / "docs" / "commands.md").read_text(encoding="utf-8")
ROWS = re.findall(r"`diffusion-book ([^`]+)`", TEXT)


@pytest.mark.parametrize("row", ROWS)
def test_options_are_read_in_both_spellings(row):
    command, *rest = row.split()
    assert command in COMMANDS
    read = [READ[command]([spell(word) for word in rest])[-1] for spell in (str, dashed)]
    assert dataclasses.asdict(read[0]) == dataclasses.asdict(read[1])
    default = READ[command]([word for word in rest[:1] if not word.startswith("--")])[-1]
    assert dataclasses.asdict(read[0]) != dataclasses.asdict(default) or len(rest) == 1


def dashed(word: str) -> str:
    return word.replace("_", "-") if word.startswith("--") else word


def test_the_page_names_every_kind_of_work():
    assert {row.split()[0] for row in ROWS} == {"train", "generate", "visualize", "diagnose", "bench"}
    assert {row.split()[1] for row in ROWS if row.startswith("train")} <= set(PRETRAINED)
