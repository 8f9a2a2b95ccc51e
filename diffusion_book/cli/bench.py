"""`diffusion-book bench`: how fast the models train and sample here."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import torch

from diffusion_book.evaluation.speed import Speed, measure_speed
from diffusion_book.models import pipelines
from diffusion_book.system.devices import check_compiler, prepare_device, resolve_device
from diffusion_book.system.errors import check_range, choose
from diffusion_book.system.files import check_file, write_text
from diffusion_book.system.machine import environment
from diffusion_book.system.streams import say

MOST = {"batch_size": 100_000, "sampling_steps": 1_000_000, "threads": 1024}


def main(options: Any) -> int:
    """Run the command."""
    check(options)
    names = [options.model] if options.model else pipelines.list_models()
    if options.threads:
        torch.set_num_threads(options.threads)
    prepare_device(resolve_device(options.device))
    speeds, here = {}, {}
    for name in names:
        say(f"{name}: measuring for some seconds ({len(speeds) + 1} of {len(names)}) ...")
        model = pipelines.load(name, device=options.device, precision=options.precision)
        if not here:
            here = environment(model.device, model.dtype)
            print(f"{here['machine']}, {here['threads']} threads, {here['precision']}, batches of {options.batch_size}")
            print(HEAD)
        speeds[name] = measure_speed(
            model,
            batch_size=options.batch_size,
            seconds=options.seconds,
            steps=options.sampling_steps,
            compile=options.compile,
        )
        print(row(name, speeds[name]), flush=True)
        if options.json:  # anew after every model: whatever interrupts, nothing measured is lost
            setting = {"batch_size": options.batch_size, "compile": options.compile}
            models = {each: dataclasses.asdict(speed) for each, speed in speeds.items()}
            write_text(options.json, json.dumps({**here, **setting, "models": models}, indent=2) + "\n")
    print("share: of the floating-point operations a second of a plain matrix product, measured in the same rounds")
    if options.json:
        print(options.json)
    return 0


def check(options: Any) -> None:
    """Refuse what cannot be measured.

    Raises:
        BookError: it cannot.
    """
    if options.model is not None:
        choose("model", options.model, dict.fromkeys(pipelines.list_models()))
    for name, most in MOST.items():
        if getattr(options, name) is not None:
            check_range(options, name, 1, most, prefix="--")
    check_range(options, "seconds", above=0, below=math.inf, prefix="--")
    if options.compile:
        check_compiler(resolve_device(options.device))
    if options.json is not None:
        check_file(options.json)


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
