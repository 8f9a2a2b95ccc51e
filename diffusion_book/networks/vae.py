"""The autoencoder: a picture down to a few numbers, and back. It knows nothing of diffusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.networks.configs import VAEConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.layers import Attention, ResidualBlock, Upsample, downsample, group_norm


def middle(channels: int, size: int) -> nn.Sequential:
    """The coarsest level's core, where every position sees every other: a block, attention, a block.

    Where there is but one position, attention is left out: its softmax is 1, so that its query and key never learn.
    """
    attention = [Attention(channels)] if size > 1 else []
    return nn.Sequential(ResidualBlock(channels, channels), *attention, ResidualBlock(channels, channels))


class Encoder(nn.Module):
    """Picture (B, 1, 32, 32) -> moments of its latent (B, 2 C, 4, 4)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.widths[0]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.image_channels * config.patch_size**2, channels, 3, padding=1)
        levels: list[nn.Module] = []
        for level, width in enumerate(config.widths):
            if level > 0:
                levels.append(downsample(channels))
            for _ in range(config.layers_per_block):
                levels.append(ResidualBlock(channels, width))
                channels = width
        self.levels = nn.Sequential(*levels)
        self.middle = middle(channels, config.latent_shape[-1])
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size))  # (B, 1, 32, 32) -> (B, base, 16, 16)
        h = self.middle(self.levels(h))  # (B, 4 base, 4, 4)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent (B, C, 4, 4) -> picture (B, 1, 32, 32). The encoder's levels in reverse."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels = config.widths[-1]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = middle(channels, config.latent_shape[-1])
        levels: list[nn.Module] = []
        for level, width in reversed(list(enumerate(config.widths))):
            for _ in range(config.layers_per_block):
                levels.append(ResidualBlock(channels, width))
                channels = width
            if level > 0:
                levels.append(Upsample(channels))
        self.levels = nn.Sequential(*levels)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.image_channels * config.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.levels(self.middle(self.conv_in(z)))  # (B, C, 4, 4) -> (B, base, 16, 16)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.patch_size)  # (B, 1, 32, 32)


class VAE(nn.Module):
    """Variational autoencoder: the encoder gives a distribution, the decoder reads a draw from it.

    Buffers:
        latent_mean, latent_std: (C,), of the latents of the training pictures, channel by channel.
            They are measured after the training (0 and 1 before) and travel with the weights.

    Source: Kingma & Welling 2013; the network: Rombach et al. 2022, appendix G, without its discriminator.
    """

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VAEConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior q(z | x) of pictures (B, 1, 32, 32) in [-1, 1]."""
        return DiagonalGaussian.from_moments(self.encoder(x).float())

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, 4, 4) to pictures (B, 1, 32, 32), about [-1, 1]."""
        return self.decoder(z)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """Encode, draw, decode.

        Args:
            x: (B, 1, 32, 32), in [-1, 1].
            noise: (B, C, 4, 4), from a standard normal.

        Returns:
            Reconstructions (B, 1, 32, 32) and the posterior.
        """
        posterior = self.encode(x)
        return self.decode(posterior.sample(noise)), posterior
