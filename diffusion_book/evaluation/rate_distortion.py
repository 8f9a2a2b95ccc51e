"""Rate against distortion: what one small convolutional VAE does at several weights of its KL divergence.

    python -m diffusion_book.evaluation.rate_distortion --steps 400

trains it on MNIST once for each weight, measures the copies and the samples, and writes them beside this file, where
`stored` reads them. About six minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion_book import data
from diffusion_book.elbo import reconstruction_error
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.models.recipes import ELBOConfig, TrainingConfig
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.system.files import write_tensors
from diffusion_book.training.losses import loss_of_vae
from diffusion_book.training.trainer import Trainer

KEPT = Path(__file__).with_suffix(".safetensors")
KL_WEIGHTS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
NETWORK = VAEConfig(base_channels=16, channel_multipliers=(1, 2), layers_per_block=1, patch_size=4)
SHOWN = 7  # copies and samples that are kept as pictures


def stored(path: Path = KEPT) -> dict[str, Tensor]:
    """The measurements, one row for each KL weight.

    Returns:
        kl_weight (K,); distortion (K,), the squared error of a pixel; rate (K,), the KL divergence in nats; active
        (K,), dimensions of more than 0.1 nats; copies_cfid and samples_cfid (K,), of num_samples () pictures; copies
        and samples (K, 7, 1, 28, 28), in [-1, 1]. The copies are those of the first test pictures.
    """
    rows = load_file(path)
    return {name: values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values for name, values in rows.items()}


@torch.no_grad()
def measure_vae(network: VAE, num_samples: int) -> dict[str, Tensor]:
    """Copies of test pictures through the posterior mean, and samples whose latents come from the prior."""
    x, _ = data.load("mnist", "test").batch(torch.arange(num_samples))
    z = torch.randn(num_samples, *network.config.latent_shape, generator=torch.Generator().manual_seed(0))
    posterior = network.encode(x)
    copies = network.decode(posterior.mean)
    nats = 0.5 * (posterior.mean**2 + posterior.std**2 - 1 - posterior.log_variance).mean(dim=0)  # (C, 4, 4)
    found = {
        "distortion": reconstruction_error(x, copies).mean(),
        "rate": nats.sum(),
        "active": (nats > 0.1).sum(),
    }
    for name, pictures in (("copies", copies), ("samples", network.decode(z))):
        pictures = data.crop(pictures).clamp(-1, 1)
        found[f"{name}_cfid"] = torch.tensor(frechet_distance(features(pictures), reference_features()["test"]))
        found[name] = ((pictures[:SHOWN] + 1) * 127.5).round().byte()
    return found


def train_and_measure(kl_weight: float, steps: int, num_samples: int) -> dict[str, Tensor]:
    """One row of `stored`."""
    settings = TrainingConfig(dataset="mnist", batch_size=64, lr=3e-3, warmup_steps=20, ema_decay=0.98)
    torch.manual_seed(0)
    trainer = Trainer(VAE(NETWORK), loss_of_vae(ELBOConfig(kl_weight)), data.load("mnist"), settings, device="cpu")
    for _ in itertools.islice(trainer.steps(), steps):
        pass
    return {"kl_weight": torch.tensor(kl_weight), **measure_vae(trainer.ema.network.eval(), num_samples)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training, for each weight (default 400)")
    parser.add_argument("--num_samples", type=int, default=2000, help="copies, and samples (default 2,000)")
    parser.add_argument("--output", type=Path, default=KEPT, help="the file to write")
    options = parser.parse_args(arguments)
    rows = []
    for kl_weight in KL_WEIGHTS:
        rows.append(train_and_measure(kl_weight, options.steps, options.num_samples))
        numbers = {name: round(value.item(), 4) for name, value in rows[-1].items() if value.ndim == 0}
        print(numbers, flush=True)
    table = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    print(write_tensors(options.output, table | {"num_samples": torch.tensor(options.num_samples)}))


if __name__ == "__main__":
    main()
