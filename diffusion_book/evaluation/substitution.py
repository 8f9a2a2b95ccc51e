"""Can generated pictures stand in for the real ones? A classifier that has seen nothing else says."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_book import data
from diffusion_book.data import CROP_SIZE, Dataset, quantise
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.system.errors import BookError
from diffusion_book.training.losses import loss_of_classifier
from diffusion_book.training.models import accuracy
from diffusion_book.training.trainer import Trainer


def classification_accuracy_score(
    images: Tensor, labels: Tensor, test: Dataset | None = None, epochs: int = 3
) -> float:
    """Accuracy on real pictures of a classifier that was trained on generated ones alone.

    A model that draws only some kinds of a digit, or the wrong digit, teaches its classifier badly. The classifier is
    the book's second one, trained anew, and shorter than the shipped one.

    Args:
        images: generated, (N, 1, 28, 28) in [-1, 1]; N at least 128. The usual N is 60,000, as many as MNIST has.
        labels: (N,), what they were asked to be.
        test: real pictures; default: the test set of MNIST.
        epochs: passes over the generated pictures.

    Returns:
        Share of the real pictures that it takes for what they are.

    Raises:
        BookError: pictures of another size, not one label each, or no MNIST here.

    Source: Ravuri & Vinyals 2019, section 3.
    """
    if images.shape[1:] != (1, CROP_SIZE, CROP_SIZE) or labels.shape != (len(images),):
        raise BookError(
            f"pictures {tuple(images.shape)} and labels {tuple(labels.shape)}: "
            f"they must be (N, 1, {CROP_SIZE}, {CROP_SIZE}) and (N,)"
        )
    test = data.load("mnist", "test") if test is None else test
    generated = Dataset("generated", quantise(images), labels.long())
    config = TrainingConfig(epochs=epochs, optimizer="adamw", lr=2e-3, batch_size=128)
    torch.manual_seed(config.seed)
    trainer = Trainer(build_classifier("classifier-check"), loss_of_classifier, generated, config)
    for _ in trainer.steps():
        pass
    return accuracy(trainer.ema.network.eval(), test)
