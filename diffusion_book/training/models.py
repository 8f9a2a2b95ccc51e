"""What training each kind of model needs beyond its recipe: how it is built, what it learns, what is measured of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from diffusion_book.data import Dataset, crop
from diffusion_book.elbo import latent_statistics, reconstruction_error
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline, build_network
from diffusion_book.models.recipes import Recipe
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.vae import VAE
from diffusion_book.training.losses import (
    Loss,
    loss_of_classifier,
    loss_of_diffusion,
    loss_of_latent_diffusion,
    loss_of_reflow,
    loss_of_vae,
)

SCALE_PICTURES = 10_000  # training pictures that the latents' mean and standard deviation are measured on

Trained = Pipeline | Autoencoder | nn.Module
"""a model ready for use; a classifier is used as the network it is"""


def _nothing(*arguments) -> dict:
    return {}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        build: recipe -> network.
        loss: recipe -> loss of a batch.
        ready: (recipe, network, device, dtype, autoencoder) -> the model as it is used.
        settle: (averaged network, training set): set what is measured rather than learned.
        measure: (model, test set) -> further figures for the log.
    """

    build: Callable[[Recipe], nn.Module]
    loss: Callable[[Recipe], Loss]
    ready: Callable[..., Trained]
    settle: Callable[[nn.Module, Dataset], object] = _nothing
    measure: Callable[[Trained, Dataset], dict] = _nothing


# Diffusion models, of pictures or of latents


def ready_pipeline(recipe: Recipe, network: nn.Module, device, dtype, autoencoder: Autoencoder | None) -> Pipeline:
    """A pipeline around the network."""
    return Pipeline(recipe, network, device, dtype, {}, autoencoder)


# Autoencoders


def ready_autoencoder(recipe: Recipe, network: VAE, device, dtype, autoencoder: None) -> Autoencoder:
    """An autoencoder around the network."""
    return Autoencoder(recipe, network, device, dtype, {})


@torch.no_grad()
def set_latent_scale(network: VAE, dataset: Dataset) -> None:
    """Measure the latents of training pictures, channel by channel, and store mean and standard deviation in the VAE."""
    index = torch.arange(min(SCALE_PICTURES, len(dataset)), device=dataset.images.device)
    parts = [network.encode(dataset.batch(part)[0]).moments for part in index.split(250)]
    mean, std = latent_statistics(DiagonalGaussian.from_moments(torch.cat(parts)))
    network.latent_mean.copy_(mean)
    network.latent_std.copy_(std.clamp(min=1e-6))  # a collapsed channel


def error_of_reconstructions(autoencoder: Autoencoder, test: Dataset, num_pictures: int = 2000) -> dict:
    """Mean reconstruction error of test pictures, from the posteriors' means."""
    images, _ = test.batch(torch.arange(min(num_pictures, len(test))))
    restored = autoencoder.reconstruct(images)
    return {"reconstruction_error": reconstruction_error(images.cpu(), restored).mean().item()}


# Classifiers


def ready_network(recipe: Recipe, network: nn.Module, device, dtype, autoencoder: None) -> nn.Module:
    """The network itself."""
    return network


@torch.no_grad()
def accuracy(network: nn.Module, dataset: Dataset) -> float:
    """Share of a data set that a classifier gets right."""
    device = next(network.parameters()).device
    dataset, right = dataset.to(device), 0
    for index in torch.arange(len(dataset), device=device).split(500):
        images, labels = dataset.batch(index)
        right += (network(crop(images)).argmax(dim=1) == labels).sum().item()
    return right / len(dataset)


_DIFFUSION = Kind(
    build=build_network,
    loss=lambda recipe: loss_of_diffusion(recipe.diffusion, recipe.condition),
    ready=ready_pipeline,
)

KINDS: dict[str, Kind] = {
    "diffusion": _DIFFUSION,
    "latent diffusion": dataclasses.replace(
        _DIFFUSION, loss=lambda recipe: loss_of_latent_diffusion(recipe.diffusion, recipe.condition)
    ),
    "reflow": dataclasses.replace(_DIFFUSION, loss=lambda recipe: loss_of_reflow(recipe.diffusion, recipe.condition)),
    "autoencoder": Kind(
        build=lambda recipe: VAE(recipe.vae),
        loss=lambda recipe: loss_of_vae(recipe.elbo),
        ready=ready_autoencoder,
        settle=set_latent_scale,
        measure=error_of_reconstructions,
    ),
    "classifier": Kind(
        build=lambda recipe: build_classifier(recipe.model),
        loss=lambda recipe: loss_of_classifier,
        ready=ready_network,
        measure=lambda network, test: {"test_accuracy": accuracy(network, test)},
    ),
}
"""`Recipe.kind` -> what its training needs"""
