"""Two classifiers of digits: one whose features measure pictures, one that checks them independently."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_book.system.errors import choose

FEATURES = 64  # width of the layer before the last, whose statistics the distances compare


class PlainClassifier(nn.Module):
    """Plain convolutions, as in VGG: three stages, each followed by pooling.

    Takes (B, 1, 28, 28) in [-1, 1]; gives logits (B, 10). `features` gives (B, 64).
    """

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 1
        for width, depth in ((24, 1), (48, 2), (96, 2)):
            for _ in range(depth):
                stages += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            stages.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*stages)
        self.neck = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 3 * 3, FEATURES))
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> (B, 64)."""
        return F.relu(self.neck(self.stages(images)))  # 28 -> 14 -> 7 -> 3 pixels

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""
        return self.head(self.features(images))


class ResidualClassifier(nn.Module):
    """Residual blocks and a global average, as in ResNet: shares no layer shape with the other one.

    Takes (B, 1, 28, 28) in [-1, 1]; gives logits (B, 10).

    Source: He et al. 2016, figure 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.blocks = nn.Sequential(_Residual(24, 32, 1), _Residual(32, 64, 2), _Residual(64, 64, 1))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""
        h = self.blocks(self.stem(images))  # (B, 64, 7, 7)
        return self.head(h.mean(dim=(2, 3)))


class _Residual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


CLASSIFIERS = {"classifier": PlainClassifier, "classifier-check": ResidualClassifier}


def build_classifier(name: str) -> nn.Module:
    """A fresh classifier: "classifier" (features and distances) or "classifier-check" (class accuracy)."""
    return choose("classifier", name, CLASSIFIERS)()
