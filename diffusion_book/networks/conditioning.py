"""Two ways to tell a U-Net which class to draw: a map beside the picture, or tokens that it reads.

Either way the class is a label handed in at every call, never kept. `NO_CLASS` is the null condition: the label
that stands for none, learned beside the others, so that one network is both a conditional and an unconditional model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.errors import BookError

NO_CLASS = -1
"""the null condition"""


class ClassEmbedding(nn.Module):
    """A learned array of numbers for each class, and one for `NO_CLASS`.

    Args:
        num_classes: labels are 0 to num_classes - 1.
        shape: of the numbers of one class.
    """

    def __init__(self, num_classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Parameter(torch.randn(num_classes + 1, *shape))

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,), integers, `NO_CLASS` among them -> (B, *shape).

        Raises:
            BookError: a label that does not exist, or none at all.
        """
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise BookError(f"the labels are of type {labels.dtype}: give whole numbers")
        if labels.numel() and not NO_CLASS <= labels.min() <= labels.max() < self.num_classes:
            raise BookError(
                f"labels from {labels.min()} to {labels.max()}: the network knows the classes 0 to "
                f"{self.num_classes - 1}, and {NO_CLASS} for none"
            )
        return self.table[torch.where(labels == NO_CLASS, self.num_classes, labels)]  # NO_CLASS has the last row


class ConditionalUNet(nn.Module):
    """A U-Net, and what turns a label into the condition that it was built for.

    With `concat_channels` a class is a map of so many channels, stacked on the picture. With `context_dim` it is
    a few tokens, read by cross-attention: with a single token the softmax over it would be the constant 1, every
    place would read the same, and there would be nothing to attend to.

    Args:
        config: of the U-Net, with `concat_channels` or `context_dim`.
        num_classes: labels are 0 to num_classes - 1.
        num_tokens: a class, for cross-attention.

    Raises:
        BookError: a config with no condition or with both, or fewer than one class or token.

    Source: maps beside the picture and cross-attention, Rombach et al. 2022, section 3.3; the learned null
    condition, Ho & Salimans 2022, section 3.2.
    """

    def __init__(self, config: UNetConfig, num_classes: int = 10, num_tokens: int = 4) -> None:
        super().__init__()
        if (config.concat_channels > 0) == (config.context_dim > 0):
            raise BookError("a network with classes needs either concat_channels or context_dim (cross-attention)")
        if num_classes < 1 or num_tokens < 1:
            raise BookError(f"num_classes is {num_classes}, num_tokens {num_tokens}: both must be at least 1")
        self.config = config
        self.name = "concat" if config.concat_channels else "context"
        size = (config.image_size, config.image_size)
        shape = (config.concat_channels, *size) if config.concat_channels else (num_tokens, config.context_dim)
        self.classes = ClassEmbedding(num_classes, shape)
        self.unet = UNet(config)

    def forward(self, x: Tensor, t: Tensor, *, labels: Tensor) -> Tensor:
        """(B, C, H, W), times (B,) and labels (B,) -> (B, C, H, W)."""
        return self.unet(x, t, **self.condition(labels))

    def condition(self, labels: Tensor) -> dict[str, Tensor]:
        """What the U-Net is told of labels (B,): a map (B, concat, H, W) or tokens (B, tokens, context_dim), by its name."""
        return {self.name: self.classes(labels)}


@contextlib.contextmanager
def cross_attention_maps(network: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """While inside, note what every cross-attention layer looks at.

    Yields:
        A dictionary that fills itself: name of the layer, in the order of the network -> one tensor a call of
        the network, (B, heads, positions, tokens), whose rows sum to 1. It stays empty where nothing attends to tokens.

    Example:
        >>> network = ConditionalUNet(UNetConfig(patch_size=1, image_size=8, context_dim=16))
        >>> with cross_attention_maps(network) as maps:
        ...     answer = network(torch.zeros(2, 1, 8, 8), torch.ones(2), labels=torch.tensor([3, NO_CLASS]))
        >>> {tuple(calls[0].shape) for calls in maps.values()}  # 4 heads, 2 x 2 positions, 4 tokens
        {(2, 4, 4, 4)}
    """
    layers = {name: module for name, module in network.named_modules() if name.endswith("cross_attention")}
    maps: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str):
        def hook(layer: nn.Module, arguments: tuple[Tensor, Tensor]) -> None:
            with torch.no_grad():
                maps[name].append(layer.read(*arguments)[1].cpu())

        return hook

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
