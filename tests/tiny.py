"""Small models with random weights and a few pictures: what the tests of latents and of classes share."""

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from diffusion_book import data
from diffusion_book.evaluation import digits, measures
from diffusion_book.evaluation.features import reference_features
from diffusion_book.models.autoencoder import Autoencoder, build_autoencoder
from diffusion_book.models.pipelines import Pipeline, build, build_network
from diffusion_book.models.recipes import ConditionConfig, DiffusionConfig, ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.training.models import set_latent_scale

SMALL_VAE = VAEConfig(base_channels=8, channel_multipliers=(1, 2), layers_per_block=1, patch_size=4)  # 2 x 4 x 4
SMALL_UNET = UNetConfig(
    base_channels=8,
    channel_multipliers=(1,),
    layers_per_block=1,
    attention_levels=(),
    patch_size=1,
    in_channels=2,
    image_size=4,
)
SMALL_CLASS_UNETS = {
    "ldm-concat": dataclasses.replace(SMALL_UNET, concat_channels=3),
    "ldm-cross-attention": dataclasses.replace(SMALL_UNET, context_dim=6),
}


def pictures(number: int) -> data.Dataset:
    """The first of scikit-learn's digits."""
    found = data.load("digits")
    return data.Dataset(found.name, found.images[:number], found.labels[:number])


def wake(network: nn.Module) -> nn.Module:
    """Fill the layers that start at zero, so that the output depends on every layer."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def random_vae(config: VAEConfig = SMALL_VAE, seed: int = 0) -> VAE:
    """A VAE that has learned nothing."""
    torch.manual_seed(seed)
    return wake(VAE(config))


def random_autoencoder(
    config: VAEConfig = SMALL_VAE, seed: int = 0, precision: str = "fp32", measured: int = 64
) -> Autoencoder:
    """An autoencoder that has learned nothing but the scale of the latents of some pictures."""
    network = random_vae(config, seed)
    set_latent_scale(network, pictures(measured))
    recipe = Recipe("vae", TrainingConfig(dataset="digits"), vae=config, elbo=ELBOConfig())
    return build_autoencoder(recipe, network.state_dict(), device="cpu", precision=precision)


def random_latent_pipeline(autoencoder: Autoencoder, seed: int = 0, timesteps: int = 1000) -> Pipeline:
    """A diffusion model of its latents that has learned nothing."""
    torch.manual_seed(seed)
    recipe = Recipe(
        "ldm",
        TrainingConfig(dataset="digits"),
        network=SMALL_UNET,
        diffusion=DiffusionConfig(timesteps=timesteps),
        is_latent=True,
    )
    network = wake(UNet(SMALL_UNET))
    return build(recipe, network.state_dict(), autoencoder=autoencoder, device="cpu", precision="fp32")


def random_class_pipeline(
    autoencoder: Autoencoder, model: str = "ldm-concat", seed: int = 0, timesteps: int = 1000, **condition
) -> Pipeline:
    """A diffusion model of its latents that knows classes, and has learned nothing.

    Args:
        model: ldm-concat or ldm-cross-attention.
        condition: fields of `ConditionConfig`.
    """
    torch.manual_seed(seed)
    recipe = Recipe(
        model,
        TrainingConfig(dataset="digits"),
        network=SMALL_CLASS_UNETS[model],
        diffusion=DiffusionConfig(timesteps=timesteps),
        condition=ConditionConfig(**condition),
        is_latent=True,
    )
    network = wake(build_network(recipe))
    return build(recipe, network.state_dict(), autoencoder=autoencoder, device="cpu", precision="fp32")


def measured_entry(setting: object, images: torch.Tensor) -> dict:
    """What `evaluate` finds, as far as `pretrain` reads it: no measuring, and other figures for other pictures."""
    cfid = 2 + images.mean().item()
    figures = {"cfid": cfid, "ratio": 10 * cfid, "ratio_error": 0.1, "doubtful": 0.1, "class_accuracy": None}
    return {**dataclasses.asdict(setting), **figures}


@contextlib.contextmanager
def part_of_the_reference() -> Iterator[None]:
    """While inside, measures look at a part of the real pictures: the neighbours of all take a while."""
    caches = (
        measures.floor,
        measures._precision_recall_of_real,
        measures._nearest_of_real,
    )
    whole = reference_features()
    part = whole | {"train": whole["train"][:2000], "test": whole["test"][:500]}
    for cache in caches:
        cache.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for module in (measures, digits):
                patch.setattr(module, "reference_features", lambda *_: part)
            yield
    finally:
        for cache in caches:
            cache.cache_clear()
