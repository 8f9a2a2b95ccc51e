"""The figures on an autoencoder's card: what is left of pictures that went through its latents."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.data import Dataset, crop
from diffusion_book.elbo import latent_statistics, reconstruction_error
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features, yardstick
from diffusion_book.evaluation.measures import DRAWS, floor, measure, real_features, real_indices
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.weights import MNIST
from diffusion_book.system.streams import say


def measure_reconstructions(autoencoder: Autoencoder, num_samples: int = 10_000) -> dict:
    """Measure how well an autoencoder restores MNIST, or the other data set that it has learned and the book measures.

    cFID is the mean over the ten draws of training pictures whose own mean is the floor, each of them restored. So R
    compares every draw with itself, and the luck of the draws, which would drown a good autoencoder's loss, cancels.

    Args:
        autoencoder: what is measured.
        num_samples: pictures, 10 to 10,000.

    Returns:
        "mse": squared error a pixel of test pictures, at 32 x 32 in [-1, 1].
        "label_kept": share of test pictures that the second classifier takes for the same digit before and after.
        "latent_mean", "latent_std": of draws from the test pictures' posteriors, channel by channel.
        And the measures of `Measures` for the reconstructions of the first draw, but cFID and R and their errors as
        above: what a perfect model of the latents would reach.

    Raises:
        BookError: MNIST is not here, or too many or too few pictures.
    """
    dataset = yardstick(autoencoder.recipe.training.dataset) or MNIST
    test, train = data.load(dataset, "test"), data.load(dataset, "train")
    first = real_indices(num_samples, dataset=dataset)
    say(f"restoring and measuring {num_samples:,} pictures ...")
    images, _ = test.batch(torch.arange(min(num_samples, len(test))))  # (N, 1, 32, 32)
    restored = autoencoder.reconstruct(images)
    before, after = (logits(crop(pictures), dataset=dataset).argmax(dim=1) for pictures in (images, restored))
    posterior = autoencoder.posterior(images)
    mean, std = latent_statistics(posterior)
    copies, labels = train.batch(first)
    measures = measure(autoencoder.reconstruct(crop(copies)), labels, dataset).to_dict()
    return {
        "num_samples": num_samples,
        "mse": round(reconstruction_error(images, restored).mean().item(), 6),
        "label_kept": round((before == after).double().mean().item(), 6),
        "latent_mean": [round(value, 4) for value in mean.tolist()],
        "latent_std": [round(value, 4) for value in std.tolist()],
        **measures,
        **{key: round(value, 6) for key, value in paired_distance(autoencoder, train, num_samples, dataset).items()},
    }


def paired_distance(
    autoencoder: Autoencoder, train: Dataset, num_samples: int, dataset: str = MNIST
) -> dict[str, float]:
    """cFID and R of restored pictures over the ten draws of the floor: "cfid", "cfid_error", "ratio", "ratio_error".

    R is the ratio of two means over the same draws, and its error that of such a ratio: the scatter of each draw's
    cFID about R times that of its originals.
    """
    draws = [real_indices(num_samples, draw, dataset) for draw in range(DRAWS)]
    used, place = torch.cat(draws).unique(return_inverse=True)  # most pictures are in several draws: restored once
    parts = [
        features(autoencoder.reconstruct(crop(train.batch(part)[0])), dataset=dataset) for part in used.split(1000)
    ]
    seen, test = torch.cat(parts), reference_features(dataset)["test"]
    after = torch.tensor([frechet_distance(seen[rows], test) for rows in place.split(num_samples)])
    before = [frechet_distance(real_features(num_samples, draw, dataset), test) for draw in range(DRAWS)]
    lowest, before = floor(num_samples, dataset).mean, torch.tensor(before)
    ratio = after.mean().item() / lowest
    return {
        "cfid": after.mean().item(),
        "cfid_error": after.std().item() / DRAWS**0.5,
        "ratio": ratio,
        "ratio_error": (after - ratio * before).std().item() / (lowest * DRAWS**0.5),
    }


def reconstruction_rows(autoencoder: Autoencoder, test: Dataset) -> Tensor:
    """Forty test pictures, ten a row, each row followed by its reconstructions: (80, C, H, W), as (80, 1, 28, 28)."""
    images = crop(test.batch(torch.arange(min(40, len(test))))[0], test.images.shape[-1]).cpu()
    restored = autoencoder.reconstruct(images)
    return torch.cat([row for pair in zip(images.split(10), restored.split(10), strict=True) for row in pair])
