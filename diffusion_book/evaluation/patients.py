"""Models with a fault of the training, for chapter 9: how each is trained, and the weights that came of it.

Every patient is the shipped `ldm`, trained further with one thing wrong until the network is used to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_book.data import Dataset, normalise
from diffusion_book.models import weights
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline, build, load
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.schedules import add_noise, cosine
from diffusion_book.system.errors import BookError, choose
from diffusion_book.targets import TARGETS, target_value
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion

PARENT = "ldm"


def noise_twice(network: nn.Module, moments: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """A loss whose target has another noise than its state, (B,): the usual one draws `eps` once."""
    z = DiagonalGaussian.from_moments(moments).mean  # (B, C, H, W)
    t = torch.rand(len(z), generator=generator, device=generator.device)
    x_t = add_noise(cosine, z, torch.randn(z.shape, generator=generator, device=generator.device), t)
    eps = torch.randn(z.shape, generator=generator, device=generator.device)
    target = target_value(TARGETS["v"], z, eps, *cosine(t))
    return (network(x_t, t) - target).square().flatten(1).mean(1)


def without_scale(vae: Autoencoder, pictures: Dataset) -> LatentDataset:
    """Latents as the encoder gives them, with the shift and the scale undone that `vae` applies."""
    latents = encode_dataset(vae, pictures)
    shift, scale = (value.cpu()[:, None, None] for value in (vae.network.latent_mean, vae.network.latent_std))
    posterior = DiagonalGaussian.from_moments(latents.moments)
    raw = DiagonalGaussian(posterior.mean * scale + shift, posterior.log_variance + 2 * scale.log())
    return LatentDataset(pictures.name, raw.moments, pictures.labels)


def of_grey(vae: Autoencoder, pictures: Dataset) -> LatentDataset:
    """Latents of pictures in [0, 1] instead of [-1, 1]."""
    moments = [vae.posterior((normalise(part) + 1) / 2).moments.cpu() for part in pictures.images.split(500)]
    return LatentDataset(pictures.name, torch.cat(moments), pictures.labels)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong in a training.

    Attributes:
        file: name of the weights that came of it.
        loss: as the trainer wants it; None is the usual one.
        data: (VAE, pictures) -> what the loss is given.
    """

    file: str = ""
    loss: Callable[..., Tensor] | None = None
    data: Callable[[Autoencoder, Dataset], LatentDataset] = encode_dataset

    def loss_of(self, pipe: Pipeline) -> Callable[..., Tensor]:
        """The loss that a model with this fault was trained with."""
        return self.loss or loss_of_latent_diffusion(pipe.recipe.diffusion)


FAULTS = {
    "noise twice": Fault("noise-twice", loss=noise_twice),
    "no scale": Fault("no-scale", data=without_scale),
    "in [0, 1]": Fault("zero-to-one", data=of_grey),
}
"""name of the patient -> what was wrong when it was trained"""


def folder() -> Path:
    """Where the patients' weights lie."""
    return weights.FOLDER / "patients"


def load_patient(name: str, parent: Pipeline | None = None) -> Pipeline:
    """A model that was trained with a fault.

    Args:
        name: one of FAULTS.
        parent: the healthy model, on whose device it runs; by default, the shipped one is loaded.

    Raises:
        BookError: there is none of that name, or its weights belong to another model than the shipped one.
    """
    file = choose("patient", name, FAULTS).file
    parent = parent or load(PARENT)
    card = weights.read_card(file, folder())
    if card["parent_sha256"] != weights.read_card(PARENT)["sha256"]:
        raise BookError(
            f"the patient '{name}' was trained from other weights of '{PARENT}' than those that are here: "
            "python benchmarks/patients.py makes it again"
        )
    state = weights.read_weights(file, folder())
    return build(parent.recipe, state, card=card, autoencoder=parent.autoencoder, device=parent.device)
