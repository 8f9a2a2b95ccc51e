"""`diffusion-book bench`: how fast the models train and sample here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_book.cli.main import parse
from diffusion_book.evaluation.speed import Speed, measure_speed
from diffusion_book.models import pipelines
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import write_text
from diffusion_book.system.machine import environment

MOST = {"batch_size": 100_000, "sampling_steps": 1_000_000, "threads": 1024}


@dataclass(frozen=True)
class Bench:
    """Options of `bench`."""

    model: str | None = None
    """one of the models that come with the book; without it, all of them"""
    batch_size: int = 64
    """images a training step, and pictures drawn at once"""
    seconds: float = 5.0
    """of measuring a model; longer where three rounds take longer"""
    sampling_steps: int | None = None
    """steps of the sampler; without it, those of the model's recipe"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    compile: bool = False
    """train through torch.compile"""
    threads: int | None = None
    """of the CPU; without it, as many as torch takes"""
    json: Path | None = None
    """file for the figures"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    about = (
        "Measure how fast models train and sample here, and which share of the device's rate of plain matrix products "
        "that is. Training, sampling and the product take turns; the figures are medians."
    )
    options = parse(Bench, arguments, "bench", about, Bench())
    check(options)
    names = [options.model] if options.model else pipelines.list_models()
    if options.threads:
        torch.set_num_threads(options.threads)
    found, here = {}, {}
    for name in names:
        model = pipelines.load(name, device=options.device, precision=options.precision)
        if not here:
            here = environment(model.device, model.dtype)
            print(f"{here['machine']}, {here['threads']} threads, {here['precision']}, batches of {options.batch_size}")
            print(HEAD)
        found[name] = measure_speed(
            model,
            batch_size=options.batch_size,
            seconds=options.seconds,
            steps=options.sampling_steps,
            compile=options.compile,
        )
        print(row(name, found[name]), flush=True)
        if options.json:  # anew after every model: whatever interrupts, nothing measured is lost
            asked = {"batch_size": options.batch_size, "compile": options.compile}
            models = {each: dataclasses.asdict(speed) for each, speed in found.items()}
            write_text(options.json, json.dumps({**here, **asked, "models": models}, indent=2) + "\n")
    print("share: of the floating-point operations a second of a plain matrix product, measured in the same rounds")
    if options.json:
        print(options.json)
    return 0


def check(options: Bench) -> None:
    """Refuse what cannot be measured.

    Raises:
        BookError: it cannot.
    """
    if options.model is not None:
        choose("model", options.model, dict.fromkeys(pipelines.list_models()))
    for name, most in MOST.items():
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise BookError(f"--{name} is {value}: it must be at least 1, and at most {most:,}")
    if not 0 < options.seconds < float("inf"):
        raise BookError(f"--seconds is {options.seconds}: it must be above 0")


HEAD = (
    f"{'':26}{'training':>12}{'share':>7}{'sampling':>12}{'steps':>7}{'evaluations':>14}{'share':>7}{'matrix':>14}\n"
    f"{'':26}{'images/s':>12}{'':7}{'images/s':>12}{'':7}{'/s':>14}{'':7}{'GFLOP/s':>14}"
)


def row(name: str, speed: Speed) -> str:
    """The figures of a model, in the columns of HEAD."""
    return (
        f"{name:26}{speed.training:12.1f}{speed.training_share:7.0%}{speed.sampling:12.2f}{speed.steps:7}"
        f"{speed.evaluations:14.1f}{speed.sampling_share:7.0%}{speed.matrix / 1e9:14.1f}"
    )
