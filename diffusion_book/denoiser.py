"""A network, a schedule and a target make a denoiser. It is all that a sampler ever sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.schedules import Schedule, expand
from diffusion_book.targets import Prediction, Target, prediction

DenoiserFunction = Callable[..., Prediction]  # (x_t, t, **condition) -> Prediction(x0, eps)


@dataclass(frozen=True)
class Denoiser:
    """Calls the network and says what its output means.

    Attributes:
        network: `network(x, t, **condition) -> output`, with t of shape (B,).
        schedule: t -> (alpha, sigma).
        target: what the network was trained to predict.
    """

    network: Callable[..., Tensor]
    schedule: Schedule
    target: Target

    def __call__(self, x_t: Tensor, t: Tensor, **condition) -> Prediction:
        """Split x_t into picture and noise.

        Args:
            x_t: (B, ...).
            t: (B,) or a single time, in [0, 1].
            condition: handed to the network as it is.
        """
        t = t.expand(len(x_t))  # () -> (B,)
        alpha, sigma = self.schedule(t)
        output = self.network(x_t, t.to(x_t), **condition)
        return prediction(self.target, output.to(x_t.dtype), x_t, alpha, sigma)


def clipped(denoiser: DenoiserFunction, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> DenoiserFunction:
    """The same denoiser with x0 kept inside the range of pictures, and eps made to agree with it.

    Only x0 is ever clipped. The noisy x_t has every right to leave [-1, 1]; clipping it turns
    samples grey. And eps must be computed again, or the pair no longer adds up to x_t.
    """

    def clip(x_t: Tensor, t: Tensor, **condition) -> Prediction:
        x0 = denoiser(x_t, t, **condition).x0.clamp(low, high)
        alpha, sigma = (expand(value, x_t) for value in schedule(t.expand(len(x_t))))
        tiny = torch.finfo(x_t.dtype).tiny
        return Prediction(x0, (x_t - alpha * x0) / sigma.clamp(min=tiny))

    return clip
