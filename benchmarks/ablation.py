"""Which U-Net draws the best digits after the same minutes on a CPU?

    python benchmarks/ablation.py --minutes 3

Trains every variant below for the same wall-clock minutes, one after the other, draws 1,000 digits
with 20 DDIM steps, and measures them. Each row is stored as soon as it is known (docs/ablation.json),
so an interrupted run continues where it stopped; the table goes to docs/ablation.md. On several cores,
one process on each may take a part of the variants:

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/ablation.py --minutes 3 --only "fold 2, width 16, depth 1"
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_book import data
from diffusion_book.evaluation.measures import measure
from diffusion_book.models.pipelines import build
from diffusion_book.models.recipes import DiffusionConfig, Recipe, TrainingConfig, recipe_of
from diffusion_book.models.weights import read_card
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.devices import resolve_precision
from diffusion_book.system.files import write_text
from diffusion_book.system.machine import cpu_name
from diffusion_book.training.losses import loss_of_diffusion
from diffusion_book.training.trainer import Trainer

DOCS = Path(__file__).parents[1] / "docs"
THREE = {"channel_multipliers": (1, 2, 4), "attention_levels": (2,)}
TWO = {"channel_multipliers": (1, 2), "attention_levels": (1,)}
VARIANTS = {
    "fold 2, width 16, depth 1": ({"patch_size": 2, "base_channels": 16, "layers_per_block": 1, **THREE}, {}),
    "fold 2, width 24, depth 1": ({"patch_size": 2, "base_channels": 24, "layers_per_block": 1, **THREE}, {}),
    "fold 4, width 48, depth 1": ({"patch_size": 4, "base_channels": 48, "layers_per_block": 1, **TWO}, {}),
    "fold 2, width 32, depth 2": ({"patch_size": 2, "base_channels": 32, "layers_per_block": 2, **THREE}, {}),
    "no fold, width 16, depth 1": ({"patch_size": 1, "base_channels": 16, "layers_per_block": 1, **THREE}, {}),
    "fold 2, width 16, depth 1, batch 64": (
        {"patch_size": 2, "base_channels": 16, "layers_per_block": 1, **THREE},
        {"batch_size": 64},
    ),
}


def run(network_options: dict, training_options: dict, minutes: float, num_samples: int) -> dict:
    """Train one variant, draw from it, and say how it did."""
    diffusion = DiffusionConfig()
    training = TrainingConfig(dataset="mnist", **training_options)
    recipe = Recipe("ddpm", training, UNetConfig(**network_options), diffusion)
    torch.manual_seed(training.seed)
    network = UNet(recipe.network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, 32, 32), torch.zeros(1))
    trainer = Trainer(
        network, loss_of_diffusion(diffusion), data.load("mnist"), training, device="cpu", max_minutes=minutes
    )
    for report in trainer.steps():
        if report.step % 100 == 0:
            rate = report.step * training.batch_size / report.seconds
            print(f"  step {report.step}: loss {report.loss:.4f}, {rate:.0f} images/s", flush=True)
    pipe = build(recipe, trainer.ema.network.state_dict(), device="cpu")
    images = pipe.sample(num_samples, sampler="ddim", steps=20)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "mega_flops": counter.get_total_flops() / 1e6,
        "images_per_second": trainer.step * training.batch_size / trainer.seconds,
        "epochs": trainer.step / trainer.steps_per_epoch,
        "evaluation_loss": trainer.evaluate(data.load("mnist", "test")),
        "network": _plain(asdict(recipe.network)),
        "batch_size": training.batch_size,
        **measure(images).to_dict(),
    }


def table(rows: dict[str, dict], minutes: float, num_samples: int) -> str:
    """The page of the docs."""
    precision = "bf16" if resolve_precision("auto", torch.device("cpu")) == torch.bfloat16 else "fp32"
    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "one thread"
    shipped = recipe_of("ddpm")
    chosen = {"network": _plain(asdict(shipped.network)), "batch_size": shipped.training.batch_size}
    lines = [
        "# The size of the U-Net",
        "",
        f"Every variant trained for {minutes:g} minutes on {threads} of one machine ({cpu_name()}, "
        f"torch {torch.__version__.split('+')[0]}, {precision}), then {num_samples:,} digits drawn with 20 DDIM steps. "
        "Fold is `patch_size`, width `base_channels`, depth `layers_per_block`. R is cFID over its floor, the value "
        f"for as many real digits ({next(iter(rows.values()))['floor']:.3f}). The network in bold is the one that `ddpm` is "
        "shipped with.",
        "",
        f"These minutes are few, and `ddpm` then trained for {read_card('ddpm')['minutes']:g}. In a longer training larger "
        "networks may catch up: the table says which network learns fastest, not which is best in the end.",
        "",
        "| U-Net | parameters | MFLOP forward | images/s in training | epochs | cFID | R | precision | recall |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["cfid"]):
        mark = "**" if all(row[key] == value for key, value in chosen.items()) else ""
        lines.append(
            f"| {mark}{name}{mark} | {row['parameters'] / 1e6:.2f} M | {row['mega_flops']:.0f} | {row['images_per_second']:.0f} | "
            f"{row['epochs']:.1f} | {row['cfid']:.2f} | {row['ratio']:.1f} | {row['precision']:.3f} | {row['recall']:.3f} |"
        )
    return "\n".join([*lines, "", f"Repeat it with `python benchmarks/ablation.py --minutes {minutes:g}`.", ""])


def _plain(values: dict) -> dict:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(values))


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="training minutes a variant")
    parser.add_argument("--num-samples", type=int, default=1000, help="digits drawn a variant")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="names of variants")
    options = parser.parse_args()
    stored = DOCS / "ablation.json"

    def known() -> dict[str, dict]:
        return json.loads(stored.read_text()) if stored.is_file() else {}

    for name in options.only:
        if name in known():
            continue
        print(name, flush=True)
        row = run(*VARIANTS[name], options.minutes, options.num_samples)
        rows = {**known(), name: row}  # read again: another process may have added some
        print(f"  cFID {row['cfid']:.2f}, R {row['ratio']:.1f}", flush=True)
        write_text(stored, json.dumps(rows, indent=2) + "\n")
    write_text(DOCS / "ablation.md", table(known(), options.minutes, options.num_samples))


if __name__ == "__main__":
    main()
