"""The U-Net of the whole book. It maps a picture and a time to a picture, and knows nothing of diffusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.networks.configs import UNetConfig
from diffusion_book.networks.layers import (
    Attention,
    ResidualBlock,
    Upsample,
    downsample,
    group_norm,
    sinusoidal_embedding,
    zero_init,
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
        """
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
