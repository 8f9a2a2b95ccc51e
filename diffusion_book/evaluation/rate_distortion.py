"""Rate against distortion: what one small convolutional VAE does at several weights of its KL divergence.

    python -m diffusion_book.evaluation.rate_distortion --steps 400

trains it on MNIST once for each weight, measures the copies and the samples, and writes them beside this file, where
`stored` reads them. The same for a VAE of two latent dimensions, whose latents are kept instead of measures. A training
takes three quarters of a minute on one idle CPU core.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.elbo import reconstruction_error
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.evaluation.stored import read_stored
from diffusion_book.interpolation import plane_of_latents
from diffusion_book.models.recipes import ELBOConfig, TrainingConfig
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.system.files import write_tensors
from diffusion_book.training.losses import loss_of_vae
from diffusion_book.training.trainer import Trainer

KEPT = Path(__file__).with_suffix(".safetensors")
KL_WEIGHTS = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
NETWORK = VAEConfig(base_channels=16, channel_multipliers=(1, 2), layers_per_block=1, patch_size=4)
SHOWN = 7  # copies and samples that are kept as pictures
PLANE_WEIGHTS = (1e-2, 1e-3, 1e-4, 1e-6)
PLANE = VAEConfig(base_channels=16, channel_multipliers=(1, 2, 4, 4), layers_per_block=1, patch_size=4)  # 2 x 1 x 1
SCATTERED = 1000  # latents of test pictures that are kept
LIMIT, SIDE = 3.0, 9  # the square of the plane that is decoded, and its cells a row


def stored(path: Path = KEPT) -> dict[str, Tensor]:
    """The measurements, one row for each KL weight.

    Returns:
        kl_weight (K,); distortion (K,), the squared error of a pixel; rate (K,), the KL divergence in nats; active
        (K,), dimensions of more than 0.1 nats; copies_cfid and samples_cfid (K,), of num_samples () pictures; copies
        and samples (K, 7, 1, 28, 28), in [-1, 1]; pictures (7, 1, 28, 28), the test pictures of the copies.
        Of the VAEs of two latent dimensions: plane_kl_weight (P,); plane_latents (P, 1000, 2), a sample of the posterior
        of each of the first test pictures, and plane_labels (1000,); plane_decoded (P, 81, 1, 28, 28), the square from
        -3 to 3, row by row from the top left.
    """
    return read_stored(path)


@torch.no_grad()
def measure_vae(network: VAE, num_samples: int) -> dict[str, Tensor]:
    """Copies of test pictures through the posterior mean, and samples whose latents come from the prior."""
    x, _ = data.load("mnist", "test").batch(torch.arange(num_samples))
    z = torch.randn(num_samples, *network.config.latent_shape, generator=torch.Generator().manual_seed(0))
    posterior = network.encode(x)
    copies = network.decode(posterior.mean)
    nats = 0.5 * (posterior.mean**2 + posterior.std**2 - 1 - posterior.log_variance).mean(dim=0)  # (C, 4, 4)
    figures = {
        "distortion": reconstruction_error(x, copies).mean(),
        "rate": nats.sum(),
        "active": (nats > 0.1).sum(),
    }
    for name, pictures in (("copies", copies), ("samples", network.decode(z))):
        pictures = data.crop(pictures).clamp(-1, 1)
        figures[f"{name}_cfid"] = torch.tensor(frechet_distance(features(pictures), reference_features()["test"]))
        figures[name] = data.quantise(pictures[:SHOWN])
    return figures


@torch.no_grad()
def look_at_plane(network: VAE) -> dict[str, Tensor]:
    """Samples of the aggregate posterior, and what the plane decodes to."""
    x, _ = data.load("mnist", "test").batch(torch.arange(SCATTERED))
    noise = torch.randn(SCATTERED, *network.config.latent_shape, generator=torch.Generator().manual_seed(0))
    pictures = network.decode(plane_of_latents(LIMIT, SIDE))
    return {
        "plane_latents": network.encode(x).sample(noise).flatten(1),
        "plane_decoded": data.quantise(data.crop(pictures)),
    }


def trained(config: VAEConfig, kl_weight: float, steps: int) -> VAE:
    """A VAE, trained on MNIST."""
    settings = TrainingConfig(dataset="mnist", batch_size=64, lr=3e-3, warmup_steps=20, ema_decay=0.98)
    torch.manual_seed(0)
    trainer = Trainer(VAE(config), loss_of_vae(ELBOConfig(kl_weight)), data.load("mnist"), settings, device="cpu")
    for _ in itertools.islice(trainer.steps(), steps):
        pass
    return trainer.ema.network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training, for each weight (default 400)")
    parser.add_argument("--num_samples", type=int, default=2000, help="copies, and samples (default 2,000)")
    parser.add_argument("--output", type=Path, default=KEPT, help="the file to write")
    options = parser.parse_args(arguments)
    rows, planes = [], []
    for kl_weight in KL_WEIGHTS:
        network = trained(NETWORK, kl_weight, options.steps)
        rows.append({"kl_weight": torch.tensor(kl_weight), **measure_vae(network, options.num_samples)})
        measured = {name: round(value.item(), 4) for name, value in rows[-1].items() if value.ndim == 0}
        print(measured, flush=True)
    for kl_weight in PLANE_WEIGHTS:
        network = trained(PLANE, kl_weight, options.steps)
        planes.append({"plane_kl_weight": torch.tensor(kl_weight), **look_at_plane(network)})
        print(f"two dimensions, {kl_weight:g}: done", flush=True)
    table = {name: torch.stack([row[name] for row in part]) for part in (rows, planes) for name in part[0]}
    x, labels = data.load("mnist", "test").batch(torch.arange(SCATTERED))
    pictures = data.quantise(data.crop(x[:SHOWN]))
    table |= {"pictures": pictures, "plane_labels": labels, "num_samples": torch.tensor(options.num_samples)}
    print(write_tensors(options.output, table))


if __name__ == "__main__":
    main()
