"""What training and sampling cost, against batch, image size, width and steps.

    python benchmarks/costs.py --write

One thing is varied at a time, around the network that `ddpm` is shipped with. The points take turns, round after round,
so that whatever else the machine is doing meets all of them alike; a figure is the median over the rounds. The page
docs/speed.md, its figures (docs/speed.json) and its picture (docs/costs.svg) come from here and from nowhere else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from diffusion_book.evaluation.speed import (
    flops_of,
    matrix_rate,
    measure_speed,
    seconds_of,
    training_flops,
)
from diffusion_book.models import pipelines
from diffusion_book.models.pipelines import Pipeline, build, build_network
from diffusion_book.models.recipes import recipe_of
from diffusion_book.system.files import write_text, write_whole
from diffusion_book.system.machine import environment
from diffusion_book.training.losses import loss_of_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz.style import COLOURS, new_figure

DOCS = Path(__file__).parents[1] / "docs"
BATCH = 64
STEPS = 10  # of DDIM, where the steps are not what is varied
AXES = {
    "batch": (1, 4, 16, 64, 256),
    "image size, pixels": (16, 32, 48, 64),
    "width, channels": (8, 16, 32, 48),
    "steps": (1, 5, 10, 20, 50),
}
"""what is varied, and its values"""
QUICK = {name: values[:2] for name, values in AXES.items()}


@dataclass(frozen=True)
class Pictures:
    """Pictures of any size (N, 1, H, W), in the place of a data set."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Pictures:
        """The same on another device."""
        return Pictures(self.images.to(device))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures, and no labels to speak of."""
        return self.images[index], torch.zeros_like(index)


@dataclass(frozen=True)
class Point:
    """A setting, and how its cost is measured.

    Attributes:
        axis, value: what was varied, and to what.
        images: a round of either.
        train, draw: one training step; one batch of pictures. None where the axis does not touch it.
        training_flops, sampling_flops: an image; of a training step, and of all evaluations of a picture.
    """

    axis: str
    value: int
    images: int
    train: Callable[[], object] | None
    draw: Callable[[], object]
    training_flops: float
    sampling_flops: float


def point(axis: str, value: int, device: str) -> Point:
    """The shipped network with one thing changed; its weights are random, which costs the same."""
    size, width, batch, steps = 32, recipe_of("ddpm").network.base_channels, BATCH, STEPS
    if axis == "image size, pixels":
        size = value
    elif axis == "width, channels":
        width = value
    elif axis == "batch":
        batch = value
    else:
        steps = value
    pipe = pipe_of(size, width, device)
    images = torch.zeros(batch, 1, size, size, device=pipe.device)
    trainer = Trainer(
        build_network(pipe.recipe),
        loss_of_diffusion(pipe.recipe.diffusion),
        Pictures(images),
        dataclasses.replace(pipe.recipe.training, batch_size=batch, epochs=10**9),
        device=device,
    )
    reports = trainer.steps()
    x, t = images[:1], torch.ones(1, device=pipe.device)
    with torch.no_grad():
        forward = flops_of(lambda: pipe.network(x, t))
    return Point(
        axis,
        value,
        batch,
        None if axis == "steps" else lambda: next(reports),
        lambda: pipe.sample(batch, steps=steps, batch_size=batch),
        training_flops(trainer),
        steps * forward,
    )


def pipe_of(size: int, width: int, device: str) -> Pipeline:
    """The shipped network for pictures of another size, or of another width."""
    recipe = recipe_of("ddpm")
    network = dataclasses.replace(recipe.network, image_size=size, base_channels=width)
    recipe = dataclasses.replace(recipe, network=network)
    torch.manual_seed(0)
    return build(recipe, build_network(recipe).state_dict(), device=device)


def measure(points: list[Point], device: torch.device, dtype: torch.dtype, rounds: int) -> list[dict]:
    """Images a second of every point, and the shares of the matrix product beside it."""
    found: list[dict[str, list[float]]] = [{} for _ in points]

    def note(number: int, kind: str, work: Callable[[], object], flops: float, matrix: float) -> None:
        rate = points[number].images / seconds_of(work, device)
        found[number].setdefault(kind, []).append(rate)
        found[number].setdefault(f"{kind}_share", []).append(rate * flops / matrix)

    for each in points:  # the first of everything allocates
        each.draw()
        if each.train:
            each.train()
    for done in range(rounds):
        for number, each in enumerate(points):
            matrix = matrix_rate(device, dtype)
            if each.train:
                note(number, "training", each.train, each.training_flops, matrix)
            note(number, "sampling", each.draw, each.sampling_flops, matrix)
        print(f"round {done + 1} of {rounds}", flush=True)
    return [
        {
            "axis": each.axis,
            "value": each.value,
            "training_flops": each.training_flops,
            "sampling_flops": each.sampling_flops,
            **{name: statistics.median(values) for name, values in rates.items()},
        }
        for each, rates in zip(points, found, strict=True)
    ]


def models(seconds: float, device: str) -> dict[str, dict]:
    """Every shipped model, by what `diffusion-book bench` measures with."""
    found = {}
    for name in pipelines.list_models():
        speed = measure_speed(pipelines.load(name, device=device), batch_size=BATCH, seconds=seconds)
        found[name] = dataclasses.asdict(speed)
        print(f"{name}: {speed.training:.1f} and {speed.sampling:.2f} images/s", flush=True)
    return found


def plot(rows: list[dict]) -> Figure:
    """Milliseconds an image, against everything that was varied."""
    figure, axes = new_figure(9.0, 6.0, 2, 2)
    for axis, (name, panel) in enumerate(zip(AXES, axes.flat, strict=True)):
        mine = [row for row in rows if row["axis"] == name]
        values = [row["value"] for row in mine]
        for kind, label, colour in (
            ("training", "a training step", COLOURS["ddpm"]),
            ("sampling", "a picture" if name == "steps" else f"a picture, {STEPS} steps", COLOURS["ddim"]),
        ):
            costs = [1000 / row[kind] for row in mine if kind in row]
            if costs:
                panel.plot(values, costs, marker="o", label=label, color=colour)
        panel.set(xlabel=name, ylabel="milliseconds an image" if axis % 2 == 0 else "", xscale="log", yscale="log")
        panel.set_xticks(values, [str(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.legend()
    return figure


def page(result: dict) -> str:
    """The page of the docs."""
    here, rows = result["machine"], result["rows"]
    threads = "one thread" if here["threads"] == 1 else f"{here['threads']} threads"
    lines = [
        "# What it costs",
        "",
        f"Measured on {threads} of one machine ({here['machine']}, torch {here['torch'].split('+')[0]}, {here['precision']}). "
        "In the first table everything took turns with everything else, and each figure is a median over rounds; read how "
        "they relate rather than what they are, for another machine has others. `diffusion-book bench` measures yours.",
        "",
        "![Milliseconds an image in training and in sampling, against batch, image size, width and steps](costs.svg)",
        "",
        f"One thing is varied at a time, around the network of `ddpm` (32 x 32 pixels, width "
        f"{recipe_of('ddpm').network.base_channels}, batches of {BATCH}, {STEPS} DDIM steps). Share is the network's "
        "floating-point operations a second over those of a plain matrix product that was timed just before.",
        "",
        "| varied | to | MFLOP, training | training, images/s | share | MFLOP, a picture | sampling, images/s | share |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        trained = ("", "", "")
        if "training" in row:
            trained = (
                f"{row['training_flops'] / 1e6:.0f}",
                f"{row['training']:.1f}",
                f"{row['training_share']:.0%}",
            )
        lines.append(
            f"| {row['axis']} | {row['value']} | {' | '.join(trained)} | {row['sampling_flops'] / 1e6:.0f} | "
            f"{row['sampling']:.1f} | {row['sampling_share']:.0%} |"
        )
    if result["models"]:
        lines += [
            "",
            "## The models of the book",
            "",
            f"In batches of {BATCH}; sampled as their recipes say, with guidance where they know classes, and decoded where "
            "they draw latents. Of the autoencoders, decoding alone counts as sampling. The models were measured one after "
            "another, so compare their shares rather than their rates.",
            "",
            "| model | training, images/s | share | sampling, images/s | steps | evaluations/s | share |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| `{name}` | {speed['training']:.1f} | {speed['training_share']:.0%} | {speed['sampling']:.2f} | "
            f"{speed['steps'] or ''} | {speed['evaluations']:.0f} | {speed['sampling_share']:.0%} |"
            for name, speed in result["models"].items()
        ]
    lines += ["", f"Repeat it with `{result['command']}`; other libraries stand [beside ours](benchmarks.md).", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the page, and store it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all points")
    parser.add_argument(
        "--model-seconds", type=float, default=5.0, help="of measuring a shipped model; 0 = leave them out"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads; 0 = as many as torch takes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a short run that shows that everything works")
    parser.add_argument("--write", action="store_true", help="store the page, its figures and its picture in docs/")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    command = "python benchmarks/costs.py"
    for name in ("rounds", "model_seconds", "threads", "device", "quick", "write"):
        value = getattr(given, name)
        if value != parser.get_default(name):
            command += f" --{name.replace('_', '-')}" + ("" if value is True else f" {value}")
    began = time.perf_counter()
    points = [
        point(axis, value, given.device)
        for axis, values in (QUICK if given.quick else AXES).items()
        for value in values
    ]
    pipe = pipelines.load("ddpm", device=given.device)
    result = {
        "command": command,
        "machine": environment(pipe.device, pipe.dtype),
        "rows": measure(points, pipe.device, pipe.dtype, given.rounds),
        "models": models(given.model_seconds, given.device) if given.model_seconds else {},
    }
    print(f"\n{page(result)}\nmeasured in {(time.perf_counter() - began) / 60:.1f} minutes")
    if given.write:
        print(write_text(DOCS / "speed.json", json.dumps(result, indent=2) + "\n"))
        print(write_whole(DOCS / "costs.svg", lambda path: plot(result["rows"]).savefig(path, metadata={"Date": None})))
        print(write_text(DOCS / "speed.md", page(result)))


if __name__ == "__main__":
    main()
