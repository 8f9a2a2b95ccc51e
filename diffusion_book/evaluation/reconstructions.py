"""The figures on an autoencoder's card: what is left of pictures that went through its latents."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.data import Dataset, crop
from diffusion_book.elbo import latent_statistics, reconstruction_error
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import logits, reference_features
from diffusion_book.evaluation.measures import measure, real_subset, subset_order
from diffusion_book.models.autoencoder import Autoencoder


def measure_reconstructions(autoencoder: Autoencoder, num_samples: int = 10_000) -> dict:
    """Measure how well an autoencoder restores MNIST.

    Args:
        autoencoder: what is measured.
        num_samples: pictures, 10 to 10,000.

    Returns:
        "mse": squared error a pixel of test pictures, at 32 x 32 in [-1, 1].
        "label_kept": share of test pictures that the second classifier takes for the same digit before and after.
        "latent_mean", "latent_std": of draws from the test pictures' posteriors, channel by channel.
        And the measures of `Measures` for the reconstructions of as many training pictures, the same ones
        whose own distance to the test set is the floor: what a perfect model of the latents would reach.

    Raises:
        BookError: MNIST is not here, or too many or too few pictures.
    """
    test, train = data.load("mnist", "test"), data.load("mnist", "train")
    chosen = subset_order(num_samples)
    images, _ = test.batch(torch.arange(min(num_samples, len(test))))  # (N, 1, 32, 32)
    restored = autoencoder.reconstruct(images)
    before, after = (logits(data.crop(pictures)).argmax(dim=1) for pictures in (images, restored))
    posterior = autoencoder.posterior(images)
    mean, std = latent_statistics(posterior)
    copies, labels = train.batch(chosen)
    measures = measure(autoencoder.reconstruct(data.crop(copies)), labels).to_dict()
    itself = round(frechet_distance(real_subset(num_samples), reference_features()["test"]), 6)
    return {
        "num_samples": num_samples,
        "mse": round(reconstruction_error(images, restored).mean().item(), 6),
        "label_kept": round((before == after).double().mean().item(), 6),
        "latent_mean": [round(value, 4) for value in mean.tolist()],
        "latent_std": [round(value, 4) for value in std.tolist()],
        **measures,
        "floor": itself,
        "ratio": round(measures["cfid"] / itself, 6),
    }


def reconstruction_rows(autoencoder: Autoencoder, test: Dataset) -> Tensor:
    """Forty test pictures, ten a row, each row followed by its reconstructions: (80, 1, 28, 28)."""
    images = crop(test.batch(torch.arange(min(40, len(test))))[0]).cpu()
    restored = autoencoder.reconstruct(images)
    return torch.cat([row for pair in zip(images.split(10), restored.split(10), strict=True) for row in pair])
