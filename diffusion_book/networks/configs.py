"""What the networks are made of, as plain data. Without torch, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass

from diffusion_book.system.errors import BookError, check_range

MOST = {"layers_per_block": 100, "channel_multipliers": 1000}
MOST_CHANNELS = 10_000


@dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is made of."""

    base_channels: int = 32
    """channels at the first level"""
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    """channels of each level, in multiples of base_channels; each level halves height and width"""
    layers_per_block: int = 2
    """residual blocks a level on the way down (one more on the way up)"""
    attention_levels: tuple[int, ...] = (2,)
    """levels with self-attention, 0 = the finest"""
    patch_size: int = 2
    """fold patches of this many pixels squared into channels before anything else; 1 = do not fold"""
    dropout: float = 0.0
    """probability, in [0, 1)"""
    in_channels: int = 1
    """channels of the picture or latent"""
    image_size: int = 32
    """height and width of the picture or latent, pixels"""
    concat_channels: int = 0
    """further input channels that a condition fills"""
    context_dim: int = 0
    """features of a context token that cross-attention reads; 0 = no cross-attention"""

    def __post_init__(self) -> None:
        divisor = self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
        check_range(self, "base_channels layers_per_block patch_size in_channels image_size", 1)
        check_range(self, "concat_channels context_dim", 0)
        check_range(self, "dropout", 0, below=1)
        check_sizes(self)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise BookError("channel_multipliers must name at least one level, each 1 or more")
        if self.image_size % divisor:
            raise BookError(
                f"{self.image_size} pixels cannot be folded by {self.patch_size} and halved "
                f"{len(self.channel_multipliers) - 1} times: give fewer channel_multipliers or a smaller patch_size"
            )
        for level in self.attention_levels:
            if not 0 <= level < len(self.channel_multipliers):
                raise BookError(
                    f"attention level {level} does not exist: levels are 0 to {len(self.channel_multipliers) - 1}"
                )


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
        check_range(self, "base_channels latent_channels layers_per_block patch_size image_channels image_size", 1)
        check_sizes(self)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise BookError("channel_multipliers must name at least one level, each 1 or more")
        divisor = self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
        if self.image_size % divisor:
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


def check_sizes(config) -> None:
    """Refuse a network that no memory would hold, or that would take hours to build.

    Args:
        config: a dataclass of whole numbers and of tuples of them; other values do not matter.

    Raises:
        BookError: a number is too large.
    """
    for name, value in vars(config).items():
        largest = max(value, default=0) if isinstance(value, tuple) else value
        most = MOST.get(name, MOST_CHANNELS)
        if largest > most:
            raise BookError(f"{name} is {value!s:.60}: it must be at most {most:,}")
