"""The diagonal Gaussian: what an encoder knows about the latent of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # keeps exp() finite, whatever an untrained encoder says


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal distributions, one for every number of a latent.

    Attributes:
        mean, log_variance: (B, C, H, W); the variance is exp(log_variance).
    """

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """From both in one tensor, as a network gives them: (B, 2 C, H, W)."""
        mean, log_variance = moments.chunk(2, dim=1)  # (B, 2C, H, W) -> twice (B, C, H, W)
        return cls(mean, log_variance.clamp(*LOG_VARIANCE_RANGE))

    @property
    def moments(self) -> Tensor:
        """Mean and log-variance in one tensor, (B, 2 C, H, W)."""
        return torch.cat([self.mean, self.log_variance], dim=1)

    @property
    def std(self) -> Tensor:
        """Standard deviation, (B, C, H, W)."""
        return (0.5 * self.log_variance).exp()

    @property
    def mode(self) -> Tensor:
        """The likeliest value, which is the mean: (B, C, H, W)."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The reparameterisation: a draw as a differentiable function of mean and variance.

        Args:
            noise: (B, C, H, W), from a standard normal.

        Source: Kingma & Welling 2013, section 2.4.
        """
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to the standard normal, in nats, summed over a latent's numbers: (B,).

        Source: Kingma & Welling 2013, appendix B.
        """
        per_number = 0.5 * (self.mean**2 + self.log_variance.exp() - 1 - self.log_variance)
        return per_number.flatten(1).sum(dim=1)  # (B, C, H, W) -> (B,)
