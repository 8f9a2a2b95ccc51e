"""The autoencoder: a picture down to a few numbers, and back. It knows nothing of diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.layers import Attention, ResidualBlock, Upsample, check_sizes, downsample, group_norm
from diffusion_book.system.errors import BookError


@dataclass(frozen=True)
class VAEConfig:
    """What an autoencoder is made of."""

    base_channels: int = 24
    """channels at the first level"""
    latent_channels: int = 2
    """channels of the latent"""
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    """channels of each level, in multiples of base_channels; each level halves height and width"""
    layers_per_block: int = 1
    """residual blocks a level"""
    patch_size: int = 2
    """fold patches of this many pixels squared into channels before anything else; 1 = do not fold"""
    image_channels: int = 1
    """channels of the picture"""
    image_size: int = 32
    """height and width of the picture, pixels"""

    def __post_init__(self) -> None:
        for name in ("base_channels", "latent_channels", "layers_per_block", "patch_size", "image_channels"):
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        check_sizes(self)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise BookError("channel_multipliers must name at least one level, each 1 or more")
        divisor = self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
        if self.image_size < divisor or self.image_size % divisor:
            raise BookError(
                f"{self.image_size} pixels cannot be folded by {self.patch_size} and halved "
                f"{len(self.channel_multipliers) - 1} times: give fewer channel_multipliers or a smaller patch_size"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent: (2, 4, 4) by default."""
        size = self.image_size // self.patch_size // 2 ** (len(self.channel_multipliers) - 1)
        return self.latent_channels, size, size

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the finest first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]


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
