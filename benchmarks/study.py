"""Which network, optimiser and data pairing is best for the minutes that one has: quality against training time.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/study.py width-16 width-24 --budgets 10 40 160

Minutes are of processor time on one core, so that a busy neighbour does not count. The learning rate stays flat,
and at 75 % of each budget the training branches: the branch cools down to the budget's end and is measured, the trunk goes
on. So one long run gives the figure at every budget, each as if it had been the only one (Zhai et al. 2022, figure 3).
Several averages of the weights are kept at once, and all of them are measured by their loss on the test set.

Each row is stored as soon as it is known (docs/study.json), the trunk's state every few minutes (in --folder), so that
an interrupted run goes on when the same command is given again. With --write the page docs/study.md is made.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from diffusion_book import data
from diffusion_book.evaluation.measures import measure
from diffusion_book.models.checkpoints import load_checkpoint, save_checkpoint
from diffusion_book.models.pipelines import Pipeline, build_network, load
from diffusion_book.models.recipes import Recipe, recipe_of
from diffusion_book.objective import diffusion_loss, logit_normal
from diffusion_book.schedules import rectified
from diffusion_book.system.files import write_text, write_whole
from diffusion_book.system.machine import cpu_name
from diffusion_book.targets import velocity
from diffusion_book.training.ema import ExponentialMovingAverage
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_diffusion, loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz.plots import CYCLE
from diffusion_book.viz.style import new_figure, styled

DOCS = Path(__file__).parents[1] / "docs"
COOLDOWN = 0.25
EMA_DECAYS = (0.99, 0.997, 0.999, 0.9997)
SAVE_EVERY = 300.0  # seconds
NUM_SAMPLES = 2000
STEPS = 20


@dataclass(frozen=True)
class Variant:
    """What is changed of a model's recipe.

    Attributes:
        model: whose recipe it is a variant of.
        network, training, diffusion: fields that differ.
        build: another network than the recipe's.
        loss: another loss than the recipe's.
        later_batch: size of the batches while the learning rate falls; None keeps it.
    """

    model: str = "ddpm"
    network: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    diffusion: dict = field(default_factory=dict)
    build: Callable[[Recipe], nn.Module] | None = None
    loss: Callable | None = None
    later_batch: int | None = None

    def recipe(self) -> Recipe:
        """The whole recipe."""
        known = recipe_of(self.model)
        training = {"dataset": "mnist", "epochs": 10**6, "cooldown": COOLDOWN, **self.training}
        return replace(
            known,
            training=replace(known.training, **training),
            network=replace(known.network, **self.network),
            diffusion=replace(known.diffusion, **self.diffusion),
        )


def optimal_pairing(x0: Tensor, eps: Tensor) -> Tensor:
    """The noises of a batch in the order that makes the sum of squared distances to x0 smallest: (B, C, H, W).

    Source: Tong et al. 2024, section 3.2 (minibatch optimal transport).
    """
    distance = torch.cdist(x0.flatten(1), eps.flatten(1)).square()  # (B, B)
    _, chosen = linear_sum_assignment(distance.cpu().numpy())
    return eps[torch.as_tensor(chosen, device=eps.device)]


def loss_with_optimal_pairs(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The loss of `rf`, with noise and pictures of a batch paired by optimal transport."""
    eps = torch.randn(images.shape, generator=generator, device=images.device)
    if network.training:
        eps = optimal_pairing(images, eps)
    return diffusion_loss(
        network,
        images,
        schedule=rectified,
        target=velocity,
        generator=generator,
        time_sampling=logit_normal,
        timesteps=1000,
        eps=eps,
    )


def transformer(**options) -> Callable[[Recipe], nn.Module]:
    """Builds a transformer for latents."""

    def make(recipe: Recipe) -> nn.Module:
        from transformer import DiffusionTransformer, TransformerConfig

        return DiffusionTransformer(TransformerConfig(**options))

    return make


VARIANTS: dict[str, Variant] = {
    # sizes
    "width-16": Variant(network={"base_channels": 16}),
    "width-24": Variant(network={"base_channels": 24}),
    "width-32": Variant(network={"base_channels": 32}),
    "attention at 8 x 8 too": Variant(network={"base_channels": 24, "attention_levels": (1, 2)}),
    "wide below": Variant(network={"base_channels": 16, "channel_multipliers": (1, 3, 6)}),
    # optimisers
    "adamw": Variant(network={"base_channels": 16}, training={"optimizer": "adamw", "lr": 1e-3}),
    "adamw, twice the rate": Variant(network={"base_channels": 16}, training={"optimizer": "adamw", "lr": 2e-3}),
    "muon, twice the rate": Variant(network={"base_channels": 16}, training={"lr": 4e-3}),
    # batches
    "batch 128": Variant(network={"base_channels": 16}, training={"batch_size": 128}),
    "batch 64, then 256": Variant(network={"base_channels": 16}, later_batch=256),
    # times and weights of the loss
    "min-SNR 5": Variant(network={"base_channels": 16}, diffusion={"min_snr_gamma": 5.0}),
    "logit-normal times": Variant(network={"base_channels": 16}, diffusion={"time_sampling": "logit_normal"}),
    # flows
    "rf": Variant("rf", network={"base_channels": 16}),
    "rf, uniform times": Variant("rf", network={"base_channels": 16}, diffusion={"time_sampling": "uniform"}),
    "rf, optimal pairs": Variant("rf", network={"base_channels": 16}, loss=loss_with_optimal_pairs),
    # latents
    "ldm": Variant("ldm"),
    "ldm, width 64": Variant("ldm", network={"base_channels": 64}),
    "ldm, transformer": Variant("ldm", build=transformer(width=128, depth=6)),
    "ldm, wider transformer": Variant("ldm", build=transformer(width=192, depth=6)),
}


class Run:
    """One variant in training: trainer, further averages, and its clock of processor time."""

    def __init__(self, variant: Variant) -> None:
        self.variant, self.recipe = variant, variant.recipe()
        self.autoencoder = load("vae", device="cpu") if self.recipe.is_latent else None
        sets = [data.load("mnist", split) for split in ("train", "test")]
        if self.autoencoder is not None:
            sets = [encode_dataset(self.autoencoder, part) for part in sets]
        self.dataset, self.test = sets
        torch.manual_seed(0)
        self.network = (variant.build or build_network)(self.recipe)
        self.start_trainer(self.recipe.training.batch_size)
        self.averages = {decay: ExponentialMovingAverage(self.trainer.network, decay) for decay in EMA_DECAYS}

    def start_trainer(self, batch_size: int) -> None:
        """A trainer for batches of this size."""
        recipe = self.recipe
        of_kind = loss_of_latent_diffusion if recipe.is_latent else loss_of_diffusion
        loss = self.variant.loss or of_kind(recipe.diffusion, recipe.condition)
        config = replace(recipe.training, batch_size=batch_size)
        self.trainer = Trainer(self.network, loss, self.dataset, config, device="cpu")

    def train(self, until: float, end: float) -> None:
        """Train until so many seconds of processor time; the learning rate falls to 0 at `end` (inf: it stays)."""
        trainer = self.trainer
        trainer.max_seconds = end
        began = time.process_time() - trainer.seconds
        for _ in trainer.steps():
            for average in self.averages.values():
                average.update(trainer.network)
            trainer.seconds = time.process_time() - began
            if trainer.seconds >= until:
                return

    def state(self) -> dict:
        """All of it, to branch or to go on later."""
        averages = {str(decay): average.network.state_dict() for decay, average in self.averages.items()}
        batch = {"batch_size": self.trainer.config.batch_size}
        return {**self.trainer.state_dict(), **batch, "averages": averages, "recipe": self.recipe.to_dict()}

    def load(self, state: dict) -> None:
        """Go on from a state."""
        if state["batch_size"] != self.trainer.config.batch_size:
            self.start_trainer(state["batch_size"])
        self.trainer.load_state_dict(state)
        for decay, average in self.averages.items():
            average.network.load_state_dict(state["averages"][str(decay)])
            average.updates = state["ema_updates"]

    def losses(self) -> dict[str, float]:
        """Loss on the test set of each average: with the same times and noise for all."""
        found, kept = {}, self.trainer.ema.network
        for decay, average in self.averages.items():
            self.trainer.ema.network = average.network
            found[str(decay)] = self.trainer.evaluate(self.test, batches=4096 // self.trainer.config.batch_size)
        self.trainer.ema.network = kept
        return found

    def draw(self, network: nn.Module, num_samples: int) -> Tensor:
        """Samples of an average, (N, 1, 28, 28)."""
        network = copy.deepcopy(network).eval()
        pipe = Pipeline(self.recipe, network, self.trainer.device, self.trainer.dtype, {}, self.autoencoder)
        return pipe.sample(num_samples, steps=STEPS, sampler="ddim")


def study(name: str, budgets: list[float], folder: Path) -> None:
    """Train one variant to its longest budget, and store a row for each."""
    run = Run(VARIANTS[name])
    trunk = folder / f"{name}.pt"
    if trunk.is_file():
        run.load(load_checkpoint(trunk))
        print(f"{name}: goes on at minute {run.trainer.seconds / 60:.1f}", flush=True)
    for minutes in sorted(budgets):
        if f"{minutes:g}" in rows().get(name, {}):
            continue
        end, branch = 60 * minutes, 60 * minutes * (1 - COOLDOWN)
        while run.trainer.seconds < branch:
            run.train(min(branch, run.trainer.seconds + SAVE_EVERY), math.inf)
            save_checkpoint(trunk, run.state())
        before = copy.deepcopy(run.state())
        if run.variant.later_batch:
            run.start_trainer(run.variant.later_batch)
            run.load({**before, "batch_size": run.variant.later_batch})
        run.train(end, end)
        losses = run.losses()
        best = min(losses, key=losses.get)
        average = run.averages[float(best)].network
        save_checkpoint(
            folder / name / "checkpoints" / f"{minutes:g}-minutes.pt", {**run.state(), "ema": average.state_dict()}
        )
        found = measure(run.draw(average, NUM_SAMPLES)).to_dict()
        images = before["step"] * before["batch_size"]
        images += (run.trainer.step - before["step"]) * run.trainer.config.batch_size
        row = {
            "steps": run.trainer.step,
            "images": images,
            "parameters": sum(weight.numel() for weight in run.network.parameters()),
            "test_loss": {decay: round(loss, 6) for decay, loss in losses.items()},
            **{
                key: found[key]
                for key in ("cfid", "cfid_error", "ratio", "ratio_error", "doubtful", "precision", "recall")
            },
            "machine": cpu_name(),
            "dtype": str(run.trainer.dtype).removeprefix("torch."),
        }
        stored = rows()  # read again: another process may have added some
        stored.setdefault(name, {})[f"{minutes:g}"] = row
        write_text(ROWS, json.dumps(stored, indent=1) + "\n")
        print(f"{name}, {minutes:g} minutes: R {row['ratio']:.2f}, doubtful {row['doubtful']:.3f}", flush=True)
        run.load(before)


ROWS = DOCS / "study.json"


def rows() -> dict[str, dict[str, dict]]:
    """What is stored: variant -> minutes -> row."""
    return json.loads(ROWS.read_text()) if ROWS.is_file() else {}


WIDTHS = ("width-16", "width-24", "width-32")


@styled
def chart(found: dict[str, dict[str, dict]]) -> Figure:
    """R of each width against training minutes: where two lines cross, the wider network begins to pay."""
    figure, axes = new_figure(6.5, 3.2)
    known = {name: found[name] for name in WIDTHS if name in found}
    for (name, some), colour in zip(known.items(), CYCLE, strict=False):
        minutes = sorted(some, key=float)
        ratios, errors = ([some[each][key] for each in minutes] for key in ("ratio", "ratio_error"))
        axes.errorbar([float(each) for each in minutes], ratios, errors, marker="o", color=colour, label=name)
    axes.set(xlabel="minutes of one core", ylabel="R", xscale="log", yscale="log")
    ticks = sorted({each for some in known.values() for each in some}, key=float)
    axes.set_xticks([float(each) for each in ticks], ticks)
    low, high = axes.get_ylim()
    ticks = [ratio for ratio in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if low <= ratio <= high]
    axes.set_yticks(ticks, [str(ratio) for ratio in ticks])
    axes.minorticks_off()
    axes.legend()
    return figure


def page(found: dict[str, dict[str, dict]]) -> str:
    """The page of the docs."""
    budgets = sorted({float(minutes) for row in found.values() for minutes in row})
    machines = sorted({f"{row['machine']}, {row['dtype']}" for some in found.values() for row in some.values()})
    lines = [
        "# Sizes, optimisers, pairings: quality against training time",
        "",
        f"Each variant was trained on one core ({'; '.join(machines)}); minutes are of processor time. The learning rate "
        f"stays flat and falls to 0 in the last {COOLDOWN:.0%} of each budget. Then {NUM_SAMPLES:,} digits were drawn in "
        f"{STEPS} deterministic DDIM steps. R is how many times the distance of real digits theirs is; doubtful, the "
        "digits in a hundred of which the second classifier is less than 90 % sure. Models are compared within a kind.",
        "",
        "![R of three widths of the U-Net against minutes of training, both on logarithmic axes](study.svg)",
        "",
        "| variant | parameters | " + " | ".join(f"R, {b:g} min | doubtful, % | test loss" for b in budgets) + " |",
        "|---|---:|" + "---:|---:|---:|" * len(budgets),
    ]
    for name, some in found.items():
        cells = []
        for budget in budgets:
            row = some.get(f"{budget:g}")
            cells += (
                [f"{row['ratio']:.1f}", f"{100 * row['doubtful']:.0f}", f"{min(row['test_loss'].values()):.4f}"]
                if row
                else ["", "", ""]
            )
        any_row = next(iter(some.values()))
        kind = VARIANTS[name].model
        lines.append(f"| `{kind}`: {name} | {any_row['parameters'] / 1e6:.2f} M | " + " | ".join(cells) + " |")
    lines += ["", "Repeat a row with `python benchmarks/study.py VARIANT --budgets MINUTES`.", ""]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of: {', '.join(VARIANTS)}")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[10.0], help="minutes of processor time on one core"
    )
    parser.add_argument("--folder", type=Path, default=Path("experiments/study"), help="for checkpoints")
    parser.add_argument("--write", action="store_true", help="write docs/study.md from what is stored")
    options = parser.parse_args()
    for name in options.variants:
        if name not in VARIANTS:
            parser.error(f"there is no variant '{name}': choose of {', '.join(VARIANTS)}")
    for name in options.variants:
        study(name, options.budgets, options.folder)
    if options.write:
        print(write_text(DOCS / "study.md", page(rows())))
        print(write_whole(DOCS / "study.svg", lambda path: chart(rows()).savefig(path, metadata={"Date": None})))


if __name__ == "__main__":
    main()
