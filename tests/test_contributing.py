"""The examples in CONTRIBUTING.md work as they stand there."""

import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import diffusion_book
from diffusion_book import samplers, schedules, targets
from diffusion_book.cli.main import main
from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.targets import Prediction

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
TINY = (  # noqa: SIM905
    "--dataset digits --base_channels 8 --channel_multipliers 1 2 --attention_levels 1 --layers_per_block 1 --patch_size 4 "
    "--timesteps 8 --warmup_steps 5 --epochs 2 --device cpu --precision fp32"
).split()


def section(heading: str) -> str:
    return TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]


def follow(heading: str, module: types.ModuleType, registry: dict, monkeypatch):
    """Do what the section says: write its function into the module, and the function's name into the registry."""
    (code,) = re.findall(r"```python\n(.*?)```", section(heading), re.DOTALL)
    namespace = dict(vars(module))
    exec(code, namespace)
    values = [value for value in namespace.values() if isinstance(value, types.FunctionType)]
    (function,) = [value for value in values if value.__globals__ is namespace]
    assert function.__name__ not in registry
    monkeypatch.setitem(registry, function.__name__, function)
    return function


@pytest.mark.parametrize(
    ("heading", "module", "registry"),
    [("A schedule", schedules, schedules.SCHEDULES), ("A target", targets, targets.TARGETS)],
)
def test_a_schedule_and_a_target_train_and_sample_through_the_command(heading, module, registry, tmp_path, monkeypatch):
    function = follow(heading, module, registry, monkeypatch)
    (command,) = re.findall(r"`diffusion-book (train [^`]+)`", section(heading))
    main([*command.split(), *TINY, "--output-dir", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["event"] == "epoch"]
    assert len(records) == 2
    assert records[1]["train_loss"] < records[0]["train_loss"]
    final = folder / "checkpoints" / "final.pt"
    assert function.__name__ in load_checkpoint(final)["recipe"]["diffusion"].values()
    pictures = diffusion_book.load(final, device="cpu").sample(4, steps=8)
    assert pictures.std() > 0.05  # NaN, or one grey, is no picture


def test_the_schedule_is_what_its_docstring_says(monkeypatch):
    schedule = follow("A schedule", schedules, schedules.SCHEDULES, monkeypatch)
    alpha, sigma = schedule(torch.linspace(0, 1, 1001, dtype=torch.float64))
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (alpha.diff() < 0).all()
    assert f"{alpha[-1]:.4f}" in schedule.__doc__


def test_the_sampler_draws_with_the_larger_variance(monkeypatch):
    (name,) = re.findall(
        r"`diffusion_book\.load\(\"ddpm\"\)\.sample\(16, sampler=\"(.+)\", steps=1000\)`", section("A sampler")
    )
    assert name not in samplers.SAMPLERS
    monkeypatch.setitem(samplers.SAMPLERS, name, None)  # taken out again at the end
    step = follow("A sampler", samplers, {}, monkeypatch)
    assert samplers.SAMPLERS[name] is step  # it has entered itself
    assert samplers.evaluations(name, 7) == 7
    pictures = diffusion_book.load("ddpm", device="cpu").sample(2, sampler=step.__name__, steps=5)
    assert pictures.std() > 0.05

    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    beta = schedules.betas(schedules.cosine)
    for k in (1000, 500, 2):
        t, s = torch.tensor([k, k - 1], dtype=torch.float64) / 1000
        x_s = step(Prediction(zero, zero), zero, t, s, schedule=schedules.cosine, noise=one)
        assert math.isclose(x_s.item() ** 2, beta[k - 1].item(), rel_tol=1e-9)


WITH_A_ROW = """
import importlib.util, json, sys

spec = importlib.util.find_spec("diffusion_book.models.recipes")
source = open(spec.origin, encoding="utf-8").read()
before, after = source.split("_ROWS = (\\n")
recipes = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
exec(compile(before + "_ROWS = (\\n" + sys.argv[1] + "," + after, spec.origin, "exec"), vars(recipes))

from diffusion_book.cli.main import main
from diffusion_book.cli.options import DIAGNOSED, PRETRAINED
from diffusion_book.viz.overview import PLACES
from diffusion_book.viz.style import COLOURS

train, generate = json.loads(sys.argv[2])
name = train[1]
main(train)
main(generate)
place = PLACES[name]
print(json.dumps([COLOURS[name], place.parents, place.chapter, name in DIAGNOSED, name in PRETRAINED]))
"""


def test_a_model_trains_and_draws_and_stands_on_the_map_by_its_row(tmp_path):
    (row,) = re.findall(r"```python\n(.*?)```", section("A model"), re.DOTALL)
    (command,) = re.findall(r"`diffusion-book (train [^`]+)`", section("A model"))
    name = command.split()[1]
    train = [*command.split(), *TINY, "--name", "mine", "--output-dir", str(tmp_path)]
    few = ["--num_samples", "2", "--ddim_steps", "4", "--output_dir", str(tmp_path / "drawn"), "--device", "cpu"]
    generate = ["generate", name, "--checkpoint", str(tmp_path / "mine"), *few]
    code = [sys.executable, "-c", WITH_A_ROW, row, json.dumps([train, generate])]
    said = subprocess.run(code, capture_output=True, text=True, check=True).stdout
    assert json.loads(said.splitlines()[-1]) == ["#6A5ACD", ["ddpm"], 1, True, True]
    recipe = load_checkpoint(tmp_path / "mine" / "checkpoints" / "final.pt")["recipe"]
    assert (recipe["model"], recipe["diffusion"]["schedule"]) == (name, "linear")
    assert len(list((tmp_path / "drawn").glob("*/sample_*"))) == 2
