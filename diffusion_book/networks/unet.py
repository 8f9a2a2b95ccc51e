"""The U-Net of the whole book. It maps a picture and a time to a picture, and knows nothing of diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.networks.layers import (
    Attention,
    ResidualBlock,
    Upsample,
    check_sizes,
    downsample,
    group_norm,
    sinusoidal_embedding,
    zero_init,
)
from diffusion_book.system.errors import BookError


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
        positive = ("base_channels", "layers_per_block", "patch_size", "in_channels", "image_size")
        for name in positive:
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("concat_channels", "context_dim"):
            if getattr(self, name) < 0:
                raise BookError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        check_sizes(self)
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise BookError("channel_multipliers must name at least one level, each 1 or more")
        if not 0 <= self.dropout < 1:
            raise BookError(f"dropout is {self.dropout}: it must be in [0, 1)")
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


class Block(nn.Module):
    """A residual block, then self-attention and cross-attention where the level has them."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, attend: bool, config: UNetConfig):
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, embedding_dim, config.dropout)
        self.self_attention = Attention(out_channels) if attend else None
        cross = attend and config.context_dim > 0
        self.cross_attention = Attention(out_channels, config.context_dim) if cross else None

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None) -> Tensor:
        x = self.residual(x, embedding)
        if self.self_attention is not None:
            x = self.self_attention(x)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context)
        return x


class UNet(nn.Module):
    """Down to a small picture with many channels and up again, with a bridge at every level.

    The folding stem moves patches of pixels into channels (`pixel_unshuffle`), so that the network
    spends its arithmetic on 16 x 16 positions and not on 32 x 32. Nothing is lost in folding; the
    last layer unfolds.

    Source: Ronneberger et al. 2015 (the U); Ho et al. 2020, appendix B (time and attention in it).
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        fold = config.patch_size**2
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        embedding_dim = 4 * config.base_channels
        self.time = nn.Sequential(
            nn.Linear(config.base_channels * 2, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )
        self.conv_in = nn.Conv2d((config.in_channels + config.concat_channels) * fold, widths[0], 3, padding=1)

        def block(in_channels: int, out_channels: int, attend: bool) -> Block:
            return Block(in_channels, out_channels, embedding_dim, attend, config)

        # The way down leaves a bridge after the stem, after every block and after every halving;
        # the way up takes them in reverse, one a block.
        channels, bridges = widths[0], [widths[0]]
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.shrink.append(downsample(channels))
                bridges.append(channels)
            blocks = nn.ModuleList()
            for _ in range(config.layers_per_block):
                blocks.append(block(channels, width, level in config.attention_levels))
                channels = width
                bridges.append(channels)
            self.down.append(blocks)

        self.middle = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])

        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            blocks = nn.ModuleList()
            for _ in range(config.layers_per_block + 1):
                blocks.append(block(channels + bridges.pop(), width, level in config.attention_levels))
                channels = width
            self.up.append(blocks)
            if level > 0:
                self.grow.append(Upsample(channels))

        self.norm_out = group_norm(channels)
        self.conv_out = zero_init(nn.Conv2d(channels, config.in_channels * fold, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, *, concat: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """One output for every pixel.

        Args:
            x: (B, in_channels, H, W).
            t: (B,), in [0, 1].
            concat: (B, concat_channels, H, W), stacked on x; only for a network built for it.
            context: (B, tokens, context_dim), read by cross-attention; only for a network built for it.

        Returns:
            (B, in_channels, H, W).

        Raises:
            BookError: a condition is missing, or is given to a network that was not built for it,
                or the picture's size does not divide.
        """
        self._check(x, concat, context)
        if concat is not None:
            x = torch.cat([x, concat], dim=1)  # (B, in + concat, H, W)
        embedding = F.silu(self.time(sinusoidal_embedding(t, 2 * self.config.base_channels).to(x)))  # (B, 4 base)
        h = self.conv_in(F.pixel_unshuffle(x, self.config.patch_size))  # (B, C p p, H/p, W/p) -> (B, base, ...)
        bridges = [h]
        for level, blocks in enumerate(self.down):
            if level > 0:
                h = self.shrink[level - 1](h)  # half the height and width
                bridges.append(h)
            for block in blocks:
                h = block(h, embedding, context)
                bridges.append(h)
        for block in self.middle:
            h = block(h, embedding, context)
        for level, blocks in enumerate(self.up):
            if level > 0:
                h = self.grow[level - 1](h)  # twice the height and width
            for block in blocks:
                h = block(torch.cat([h, bridges.pop()], dim=1), embedding, context)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.config.patch_size)  # (B, in p p, H/p, W/p) -> (B, in, H, W)

    def _check(self, x: Tensor, concat: Tensor | None, context: Tensor | None) -> None:
        config = self.config
        divisor = config.patch_size * 2 ** (len(config.channel_multipliers) - 1)
        if x.shape[1] != config.in_channels or x.shape[2] % divisor or x.shape[3] % divisor:
            raise BookError(
                f"the network takes (B, {config.in_channels}, H, W) with H and W divisible by {divisor}, "
                f"not {tuple(x.shape)}"
            )
        for name, given, channels in (
            ("concat", concat, config.concat_channels),
            ("context", context, config.context_dim),
        ):
            if (given is not None) != (channels > 0):
                verb = "needs" if channels else "was not built for"
                raise BookError(f"this network {verb} a condition '{name}'")
