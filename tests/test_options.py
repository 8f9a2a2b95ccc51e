"""The options of the commands: they follow from the recipes, and telling them takes a moment."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from commands import refused

from diffusion_book.cli import options
from diffusion_book.cli.options import DIFFUSION, TRAINED, generate_options, recipe_asked, train_options
from diffusion_book.models.recipes import MODELS, RECIPES

CLI = Path(options.__file__).parent

HELPS = [
    *(f"{command} {name}" for command in ("train", "evaluate") for name in TRAINED),
    *(f"generate {name}" for name in DIFFUSION),
    *(f"visualize {subject}" for subject in options.SUBJECTS),
    *(
        "train",
        "generate",
        "evaluate",
        "evaluate --all",
        "evaluate x.npz",
        "visualize",
        "diagnose",
        "pretrain",
        "bench",
        "doctor",
    ),
]

ALL_HELP = """
import contextlib, io, sys, time
from diffusion_book.cli.main import main

for line in sys.stdin.read().splitlines():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*line.split(), "--help"])
    assert "diffusion-book" in said.getvalue(), line
    assert "torch" not in sys.modules, line
print(time.process_time())
"""


def seconds_of(*commands: str) -> float:
    """Processor time of a process that tells the help of these commands, from its very start."""
    code = [sys.executable, "-c", ALL_HELP]
    ran = subprocess.run(code, input="\n".join(commands), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return float(ran.stdout)


def test_no_help_imports_torch():
    seconds_of(*HELPS)


def test_help_comes_at_once():
    """0.3 s are aimed at; in processor time, and with much to spare."""
    assert min(seconds_of("train ldm-concat") for _ in range(3)) < 1.0


def test_what_cannot_be_meant_is_refused_without_torch():
    code = "import sys; from diffusion_book.cli.main import main\ntry: main(['train', 'ddpm', '--lr', '-1'])\nfinally: print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "False\n")
    assert "lr is -1.0: it must be above 0" in ran.stderr


def test_classes_of_options_are_few_and_in_one_file():
    for path in CLI.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.stem == "options":
            assert sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)) <= 5
        elif path.stem != "main":  # which reads options for them
            names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            assert "tyro" not in names, path


@pytest.mark.parametrize("model", TRAINED)
def test_without_options_a_training_follows_the_recipe(model):
    assert recipe_asked(train_options(model, RECIPES[model]), model) == RECIPES[model]


@pytest.mark.parametrize(
    ("model", "option"),
    [
        ("ddpm", "--in_channels 2"),
        ("ddpm", "--concat_channels 4"),
        ("ldm", "--vae_channels 4"),
        ("ldm-concat", "--num_tokens 2"),
        ("ldm-concat", "--cross_attention_dim 8"),
        ("ldm-cross-attention", "--concat_channels 8"),
        ("rf", "--schedule cosine"),
        ("rf-reflow", "--vae x.pt"),
        ("rf-reflow", "--coupling_guidance_scale 2"),
        ("ldm", "--image_size 28"),
    ],
)
def test_what_follows_from_the_model_is_no_option(model, option, capsys):
    assert f"Unrecognized options: {option.split()[0]}" in refused(capsys, "train", model, *option.split())


def test_models_draw_by_their_row():
    asked = {name: generate_options(name) for name in DIFFUSION}
    for name, found in asked.items():
        drawn = (found.mode, found.ddim_steps) if hasattr(found, "mode") else (found.sampler, found.sampling_steps)
        assert drawn == (MODELS[name].sampler, MODELS[name].steps)
        assert hasattr(found, "class_label") == (RECIPES[name].condition is not None)
    assert [name for name, found in asked.items() if hasattr(found, "mode")] == ["ddpm", "ldm"]
    assert not hasattr(asked["rf-one-step"], "eta")
    assert dataclasses.is_dataclass(asked["ldm"].model)
