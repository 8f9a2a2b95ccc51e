"""The whole in one screen: a rectified flow that learns to draw MNIST's digits, in plain PyTorch.

    python examples/minimal.py [--data FOLDER] [--steps 1500] [--output digits.png]

Time t runs from 0, the data, to 1, pure noise. A picture x0 and noise eps are joined by a straight line,
x_t = (1 - t) x0 + t eps, whose velocity dx/dt is eps - x0. A network learns the mean velocity at (x_t, t);
following it from pure noise back to t = 0 draws a digit (Liu et al. 2022; Lipman et al. 2022).
"""

import argparse
import itertools
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn


def load_mnist(root):
    """MNIST's training pictures: (N, 1, 28, 28), from -1 (background) to 1 (ink)."""
    file = Path(root, "MNIST", "raw", "train-images-idx3-ubyte")
    if not file.is_file():
        from torchvision.datasets import MNIST

        MNIST(root, download=True)
    pixels = np.frombuffer(file.read_bytes(), np.uint8, offset=16)  # behind 16 bytes of sizes
    return torch.tensor(pixels).reshape(-1, 1, 28, 28) / 127.5 - 1


# 1. The network: (x_t, t) -> velocity. A U-Net of two levels, 14 x 14 and 7 x 7.
class Block(nn.Module):
    """Two convolutions beside a shortcut; the time scales and shifts what lies between them."""

    def __init__(self, channels_in, channels):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels_in), nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(128, 2 * channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x, time):
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)  # (B, channels, 1, 1) each
        h = self.norm2(self.conv1(F.silu(self.norm1(x)))) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(F.silu(h))


class UNet(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.stem = nn.Conv2d(4, width, 3, padding=1)
        self.down, self.shrink = Block(width, width), nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([Block(2 * width, 2 * width) for _ in range(3)])
        self.grow = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up, self.out = Block(2 * width, width), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x, t):
        angles = t[:, None] * torch.exp(torch.linspace(0, math.log(1000), 32))  # (B, 32)
        time = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))  # (B, 64) -> (B, 128)
        patches = F.pixel_unshuffle(x, 2)  # (B, 1, 28, 28) -> (B, 4, 14, 14)
        fine = self.down(self.stem(patches), time)  # (B, width, 14, 14)
        h = self.shrink(fine)  # (B, 2 width, 7, 7)
        for block in self.middle:
            h = block(h, time)
        h = self.up(torch.cat([self.grow(h), fine], dim=1), time)  # (B, width, 14, 14)
        return F.pixel_shuffle(self.out(h), 2)  # (B, 1, 28, 28)


# 2. What it learns: the velocity of the straight line between a picture and noise.
def flow_loss(network, x0, eps, t):
    """Mean squared error of the velocity, for pictures and noise (B, 1, 28, 28) and times (B,)."""
    s = t[:, None, None, None]  # (B, 1, 1, 1)
    return (network((1 - s) * x0 + s * eps, t) - (eps - x0)).square().mean()


def train(network, images, steps, batch_size=64, lr=2e-3):
    optimiser = torch.optim.Adam(network.parameters())
    for step in range(1, steps + 1):
        optimiser.param_groups[0]["lr"] = lr * min(1, step / 100) * (1 - step / steps)  # up in 100 steps, then down
        x0 = images[torch.randint(len(images), (batch_size,))]  # (B, 1, 28, 28)
        t = torch.randn(batch_size).sigmoid()  # (B,): in (0, 1), mostly in the middle, where there is most to learn
        loss = flow_loss(network, x0, torch.randn_like(x0), t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}", flush=True)


# 3. How it draws: follow the velocity from noise to data, in steps of Euler's.
@torch.no_grad()
def sample(network, x, steps=50):
    """Noise (B, 1, 28, 28) at t = 1 -> pictures at t = 0."""
    for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1).to(x)):
        x = x + (s - t) * network(x, t.expand(len(x)))
    return x


def main(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=os.environ.get("DIFFUSION_BOOK_DATA", "data"), help="holds MNIST/raw")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", default="digits.png")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = UNet()
    train(network, load_mnist(options.data), options.steps)
    digits = sample(network, torch.randn(64, 1, 28, 28))
    grid = digits.reshape(8, 8, 28, 28).transpose(1, 2).reshape(224, 224)  # rows of digits
    Image.fromarray(((grid.clamp(-1, 1) + 1) * 127.5).byte().numpy()).save(options.output)


if __name__ == "__main__":
    main()
