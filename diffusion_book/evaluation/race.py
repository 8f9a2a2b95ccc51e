"""A race by processor time: one network learns latents, a second one latents of the wrong scale, a third one pixels.

    python -m diffusion_book.evaluation.race --seconds 32

trains the networks of `ldm` and `ddpm` from scratch on 20,000 pictures of MNIST, stops the clock four times to measure
samples, and writes what it found beside this file, where `stored` reads it. The seconds are those of one core, without
the measuring.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.evaluation.stored import read_stored
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.recipes import RECIPES, TrainingConfig
from diffusion_book.models.weights import read_card
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNet
from diffusion_book.system.files import write_tensors
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.losses import loss_of_diffusion, loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer

KEPT = Path(__file__).with_suffix(".safetensors")
WRONG = 1 / 30  # of the size that latents should have
RUNS = {"latents": 1.0, "wrong_scale": WRONG, "pixels": None}  # name -> scale of the latents
STOPS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the whole time
PICTURES, STEPS, SHOWN = 20_000, 20, 12


def stored(path: Path = KEPT) -> dict[str, Tensor]:
    """What was measured, for each run of `RUNS`.

    Returns:
        seconds (4,); num_samples (); NAME_shipped_cfid, NAME_shipped_seconds () of the shipped models and vae_seconds ()
        of the autoencoder; and NAME_cfid (4,), NAME_steps (4,), the steps of training until then, and
        NAME_samples (4, 12, 1, 28, 28), in [-1, 1].
    """
    return read_stored(path)


def at_scale(autoencoder: Autoencoder, latents: LatentDataset, scale: float) -> tuple[Autoencoder, LatentDataset]:
    """An autoencoder whose latents are `scale` times as large, and a data set in its latents."""
    network = copy.deepcopy(autoencoder.network)
    network.latent_std /= scale
    posterior = DiagonalGaussian.from_moments(latents.moments)
    scaled = DiagonalGaussian(scale * posterior.mean, posterior.log_variance + 2 * math.log(scale))
    return dataclasses.replace(autoencoder, network=network), LatentDataset(
        latents.name, scaled.moments, latents.labels
    )


def run(name: str, seconds: float, num_samples: int) -> dict[str, Tensor]:
    """One run, measured at each of `STOPS`."""
    train = data.load("mnist").first(PICTURES)
    recipe, autoencoder, loss = RECIPES["ddpm"], None, loss_of_diffusion
    if RUNS[name] is not None:
        autoencoder, loss = pipelines.load("vae", device="cpu"), loss_of_latent_diffusion
        autoencoder, train = at_scale(autoencoder, encode_dataset(autoencoder, train), RUNS[name])
        recipe = RECIPES["ldm"]
    settings = TrainingConfig(epochs=100_000, batch_size=32, lr=3e-3, warmup_steps=20, ema_decay=0.98)
    torch.manual_seed(0)
    trainer = Trainer(UNet(recipe.network), loss(recipe.diffusion), train, settings, device="cpu")
    rows, spent, began = [], 0.0, time.process_time()
    stops = [stop * seconds for stop in STOPS]
    for report in trainer.steps():
        if spent + time.process_time() - began < stops[len(rows)]:
            continue
        spent += time.process_time() - began
        weights = trainer.ema.network.state_dict()
        pipe = pipelines.build(recipe, weights, autoencoder=autoencoder, device="cpu")
        pictures = pipe.sample(num_samples, steps=STEPS, seed=0)
        cfid = frechet_distance(features(pictures), reference_features()["test"])
        print(f"{name}: {spent:.0f} s, {report.step} steps, cFID {cfid:.2f}", flush=True)
        shown = data.quantise(pictures[:SHOWN])
        rows.append({"cfid": torch.tensor(cfid), "steps": torch.tensor(report.step), "samples": shown})
        if len(rows) == len(stops):
            break
        began = time.process_time()
    return {f"{name}_{what}": torch.stack([row[what] for row in rows]) for what in rows[0]}


def core_seconds(model: str) -> float:
    """How long a shipped model was trained, in seconds of one core."""
    card = read_card(model)
    return 60.0 * card["minutes"] * card["threads"]


def shipped(num_samples: int) -> dict[str, Tensor]:
    """The shipped models, measured in the same way, and the seconds of their trainings by their cards."""
    figures = {"vae_seconds": torch.tensor(core_seconds("vae"))}
    for name, model in (("latents", "ldm"), ("pixels", "ddpm")):
        pictures = pipelines.load(model, device="cpu").sample(num_samples, steps=STEPS, seed=0)
        cfid = frechet_distance(features(pictures), reference_features()["test"])
        print(f"{name}, shipped: cFID {cfid:.2f}", flush=True)
        figures[f"{name}_shipped_cfid"] = torch.tensor(cfid)
        figures[f"{name}_shipped_seconds"] = torch.tensor(core_seconds(model))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=32, help="of training, for each run (default 32)")
    parser.add_argument("--num_samples", type=int, default=200, help="at each measurement (default 200)")
    parser.add_argument("--output", type=Path, default=KEPT, help="the file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = {"seconds": torch.tensor(STOPS) * options.seconds, "num_samples": torch.tensor(options.num_samples)}
    for name in RUNS:
        table |= run(name, options.seconds, options.num_samples)
    table |= shipped(options.num_samples)
    print(write_tensors(options.output, table))


if __name__ == "__main__":
    main()
