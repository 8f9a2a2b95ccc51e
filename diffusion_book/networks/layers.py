"""The parts that the networks of this book are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.system.errors import BookError


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Write each time as cosines and sines of many frequencies, so that a network can read it.

    Times in [0, 1] are stretched to [0, 1000] first, the range the frequencies were made for.

    Args:
        t: (B,), in [0, 1].
        dim: even number of features.
        max_period: of the slowest wave, in steps of 1/1000.

    Returns:
        (B, dim).

    Source: Vaswani et al. 2017, section 3.5; used for diffusion times by Ho et al. 2020, appendix B.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angles = 1000.0 * t.float()[:, None] * frequencies  # (B, 1) * (half,) -> (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with groups of at least eight channels, at most 32 groups."""
    groups = min(32, max(1, channels // 8))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


MOST = {"layers_per_block": 100, "channel_multipliers": 1000}
MOST_CHANNELS = 10_000


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


def zero_init(module: nn.Module) -> nn.Module:
    """Start a layer at zero, so that the branch it ends adds nothing before it has learned something."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, shifted and scaled by an embedding of the time.

    Args:
        in_channels, out_channels: of the pictures.
        embedding_dim: of the time embedding; None for a block that has no time (the autoencoder's).
        dropout: probability, in [0, 1).

    Source: Ho et al. 2020, appendix B; the scale and shift are "adaptive group normalisation",
    Dhariwal & Nichol 2021, equation 5.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, 2 * out_channels) if embedding_dim else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, in_channels, H, W) and (B, embedding_dim) -> (B, out_channels, H, W)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.embedding is not None:
            scale, shift = self.embedding(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift  # (B, C, 1, 1) broadcasts over (B, C, H, W)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


def attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Read from the values, each in proportion to how well its key answers the query.

    Written out rather than fused: for the few hundred positions of this book it is no slower, on CPUs
    with bf16 it trains a third faster, and the weights can be looked at.

    Args:
        query: (..., N, D).
        key, value: (..., M, D).

    Returns:
        What was read, (..., N, D), and the weights, (..., N, M), whose rows sum to 1.

    Source: Vaswani et al. 2017, equation 1.
    """
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])  # (..., N, D) @ (..., D, M) -> (..., N, M)
    weights = scores.float().softmax(dim=-1)
    return weights.to(value.dtype) @ value, weights


class Attention(nn.Module):
    """Every pixel asks, and reads what it asked for: from all pixels, or from the context's tokens.

    Args:
        channels: of the pictures.
        context_dim: of the tokens; None for self-attention.
        head_dim: channels a head.

    Source: Vaswani et al. 2017, equation 1; cross-attention in a U-Net: Rombach et al. 2022, section 3.3.
    """

    def __init__(self, channels: int, context_dim: int | None = None, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        while channels % self.heads:
            self.heads -= 1
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context_dim or channels, 2 * channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and for cross-attention (B, tokens, context_dim) -> (B, C, H, W)."""
        batch, channels, height, width = x.shape
        read, _ = self.read(x, context)
        read = self.out(read.transpose(1, 2).flatten(2))  # (B, heads, HW, C/heads) -> (B, HW, C)
        return x + read.transpose(1, 2).reshape(batch, channels, height, width)

    def read(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What every pixel reads, (B, heads, HW, C/heads), and how it looks around, (B, heads, HW, HW or tokens)."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        query = self._split(self.query(pixels))
        key, value = self.key_value(pixels if context is None else context).chunk(2, dim=-1)
        return attention(query, self._split(key), self._split(value))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, heads, N, C/heads)


class Upsample(nn.Module):
    """Twice the height and width: repeat every pixel, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def downsample(channels: int) -> nn.Conv2d:
    """Half the height and width, by a convolution with stride 2: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
