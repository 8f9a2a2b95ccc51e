"""A diffusion transformer: the U-Net's rival, made of matrix products alone. It knows nothing of diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.networks.layers import attention, sinusoidal_embedding, zero_init


@dataclass(frozen=True)
class TransformerConfig:
    """What a diffusion transformer is made of."""

    width: int = 128
    """features of a token"""
    depth: int = 6
    """blocks"""
    head_dim: int = 32
    """features of an attention head"""
    patch_size: int = 1
    """each square of so many pixels is a token"""
    in_channels: int = 2
    """channels of the picture or latent"""
    image_size: int = 4
    """height and width of the picture or latent, pixels"""


class TransformerBlock(nn.Module):
    """Attention, then a two-layer perceptron; both shifted, scaled and gated by the time, and closed at first.

    Source: Peebles & Xie 2022, section 3.2 ("adaLN-Zero").
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.heads = max(1, width // head_dim)
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """(B, N, width) and (B, width) -> (B, N, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)  # (B, 1, W)
        h = _norm(tokens) * (1 + scale1) + shift1
        query, key, value = self.query_key_value(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read, _ = attention(query, key, value)  # (B, heads, N, W/heads)
        tokens = tokens + gate1 * self.out(read.transpose(1, 2).flatten(2))
        return tokens + gate2 * self.mlp(_norm(tokens) * (1 + scale2) + shift2)


class DiffusionTransformer(nn.Module):
    """Pixels or patches as tokens with learned positions, blocks that know the time, pixels again.

    Source: Peebles & Xie 2022.
    """

    def __init__(self, config: TransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TransformerConfig()
        width, patch = config.width, config.in_channels * config.patch_size**2
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.conv_in = nn.Linear(patch, width)
        self.positions = nn.Parameter(0.02 * torch.randn((config.image_size // config.patch_size) ** 2, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, config.head_dim) for _ in range(config.depth))
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.conv_out = zero_init(nn.Linear(width, patch))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, in_channels, H, W) and times (B,), in [0, 1] -> (B, in_channels, H, W)."""
        size, height = self.config.patch_size, x.shape[2] // self.config.patch_size
        embedding = F.silu(self.time(sinusoidal_embedding(t, 64).to(x)))  # (B, width)
        tokens = F.pixel_unshuffle(x, size).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C p p)
        tokens = self.conv_in(tokens) + self.positions  # (B, N, width)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)  # (B, 1, width) each
        patches = self.conv_out(_norm(tokens) * (1 + scale) + shift)  # (B, N, C p p)
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (height, -1)), size)


def _norm(tokens: Tensor) -> Tensor:
    """Layer normalisation without gain and bias, which the time provides."""
    return F.layer_norm(tokens, tokens.shape[-1:])
