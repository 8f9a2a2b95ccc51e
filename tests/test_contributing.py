"""The examples in CONTRIBUTING.md work as they stand there."""

import json
import math
import re
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
    step = follow("A sampler", samplers, samplers.SAMPLERS, monkeypatch)
    (call,) = re.findall(r"`diffusion_book\.load\(\"ddpm\"\)\.sample\(16, (.+), steps=1000\)`", section("A sampler"))
    assert call == f'sampler="{step.__name__}"'
    pictures = diffusion_book.load("ddpm", device="cpu").sample(2, sampler=step.__name__, steps=5)
    assert pictures.std() > 0.05

    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    beta = schedules.betas(schedules.cosine)
    for k in (1000, 500, 2):
        t, s = torch.tensor([k, k - 1], dtype=torch.float64) / 1000
        x_s = step(Prediction(zero, zero), zero, t, s, schedule=schedules.cosine, noise=one)
        assert math.isclose(x_s.item() ** 2, beta[k - 1].item(), rel_tol=1e-9)
