"""Small models with random weights and a few pictures: what the tests of latents share."""

import torch
from torch import nn

from diffusion_book import data
from diffusion_book.autoencoder import Autoencoder, build_autoencoder
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.pipelines import Pipeline, build
from diffusion_book.training.models import set_latent_scale
from diffusion_book.training.recipes import DiffusionConfig, ELBOConfig, Recipe, TrainingConfig

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


def pictures(number: int) -> data.Dataset:
    """The first of scikit-learn's digits."""
    digits = data.load("digits")
    return data.Dataset(digits.name, digits.images[:number], digits.labels[:number])


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
        "ldm", TrainingConfig(dataset="digits"), network=SMALL_UNET, diffusion=DiffusionConfig(timesteps=timesteps)
    )
    network = wake(UNet(SMALL_UNET))
    return build(recipe, network.state_dict(), autoencoder=autoencoder, device="cpu", precision="fp32")
