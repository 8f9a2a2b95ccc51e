"""What each kind of model is trained to make small."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.data import crop
from diffusion_book.elbo import negative_elbo
from diffusion_book.guidance import drop_labels
from diffusion_book.models.recipes import ConditionConfig, DiffusionConfig, ELBOConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.objective import TIME_SAMPLINGS, diffusion_loss
from diffusion_book.schedules import SCHEDULES
from diffusion_book.targets import TARGETS

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""(network, images (B, 1, 32, 32), labels (B,), generator) -> (B,), one loss a picture"""


def loss_of_diffusion(config: DiffusionConfig, condition: ConditionConfig | None = None) -> Loss:
    """The objective of a diffusion model, as the trainer wants it; with classes, some are hidden in training."""

    def loss(
        network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, eps: Tensor | None = None
    ) -> Tensor:
        known = {}
        if condition is not None:
            hide = condition.unconditional_probability if network.training else 0.0
            known["labels"] = drop_labels(labels, hide, generator)
        return diffusion_loss(
            network,
            images,
            schedule=SCHEDULES[config.schedule],
            target=TARGETS[config.target],
            generator=generator,
            time_sampling=TIME_SAMPLINGS[config.time_sampling],
            timesteps=config.timesteps,
            min_snr_gamma=config.min_snr_gamma or None,
            eps=eps,
            **known,
        )

    return loss


def loss_of_reflow(config: DiffusionConfig, condition: ConditionConfig | None = None) -> Loss:
    """The same objective with the noise that each sample came from: what comes as `images` are both, (B, 2 C, H, W)."""
    loss_of_pairs = loss_of_diffusion(config, condition)

    def loss(network: nn.Module, pairs: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        x0, eps = pairs.chunk(2, dim=1)  # (B, 2 C, H, W) -> (B, C, H, W) each
        return loss_of_pairs(network, x0, labels, generator, eps=eps)

    return loss


def loss_of_latent_diffusion(config: DiffusionConfig, condition: ConditionConfig | None = None) -> Loss:
    """The same objective on latents: what comes as `images` are the moments of their posteriors, (B, 2 C, H, W)."""
    loss_of_latents = loss_of_diffusion(config, condition)

    def loss(network: nn.Module, moments: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        posterior = DiagonalGaussian.from_moments(moments)
        latents = posterior.sample(_normal(posterior.mean.shape, moments, generator))  # another draw at every step
        return loss_of_latents(network, latents, labels, generator)

    return loss


def loss_of_vae(config: ELBOConfig) -> Loss:
    """The negative evidence lower bound of an autoencoder."""

    def loss(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = _normal((len(images), *network.config.latent_shape), images, generator)
        return negative_elbo(network, images, noise, config.kl_weight)

    return loss


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=torch.float32)


def loss_of_classifier(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Cross-entropy on 28 x 28 pictures, which are shifted, turned and sheared a little in training."""
    images = crop(images)
    if network.training:
        images = random_affine(images, generator)
    return F.cross_entropy(network(images), labels, label_smoothing=0.05 if network.training else 0.0, reduction="none")


def random_affine(
    images: Tensor,
    generator: torch.Generator,
    degrees: float = 10.0,
    shift: float = 0.1,
    scale: float = 0.12,
    shear: float = 0.15,
) -> Tensor:
    """Turn, move, scale and shear each picture by its own random amount.

    Args:
        images: (B, 1, H, W) with -1 as background.
        degrees: largest turn.
        shift: largest move, as a share of half the width.
        scale, shear: largest change of the matrix's entries.
    """
    draw = torch.rand(5, len(images), generator=generator, device=images.device) * 2 - 1  # each (B,) in [-1, 1]
    angle = draw[0] * math.radians(degrees)
    size = 1 + draw[1] * scale
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = [cos, sin + draw[2] * shear, draw[3] * shift, -sin, cos, draw[4] * shift]
    matrix = torch.stack(rows, dim=1).reshape(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    # Outside the picture grid_sample reads 0; shifted by 1, that is the background.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1
