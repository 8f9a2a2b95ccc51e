"""What training each kind of model needs beyond its recipe: how it is built, what it learns, what is drawn of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from diffusion_book.autoencoder import Autoencoder
from diffusion_book.data import Dataset, crop, quantise
from diffusion_book.elbo import latent_statistics, reconstruction_error
from diffusion_book.files import write_whole
from diffusion_book.gaussian import DiagonalGaussian
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.networks.vae import VAE
from diffusion_book.pipelines import Pipeline, build_network
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.losses import (
    loss_of_classifier,
    loss_of_diffusion,
    loss_of_latent_diffusion,
    loss_of_reflow,
    loss_of_vae,
)
from diffusion_book.training.recipes import Recipe
from diffusion_book.training.trainer import Loss
from diffusion_book.viz.grids import save_grid
from diffusion_book.viz.latents import plot_latent_positions, plot_principal_components
from diffusion_book.viz.strips import denoising_strip, show_strip

GRID_ROWS = 8
STRIP_FRAMES = 11
SCALE_PICTURES = 10_000  # training pictures that the latents' mean and standard deviation are measured on
LATENT_PICTURES = 5_000  # test pictures in the scatter plots of the latent space

Trained = Pipeline | Autoencoder | nn.Module
"""a model ready for use; a classifier is used as the network it is"""


def _nothing(*arguments) -> dict:
    return {}


@dataclass(frozen=True)
class Model:
    """A kind of model.

    Attributes:
        build: recipe -> network.
        loss: recipe -> loss of a batch.
        ready: (recipe, network, device, dtype, autoencoder) -> the model as it is used.
        settle: (averaged network, training set): set what is measured rather than learned.
        measure: (model, test set) -> further figures for the log.
        draw_epoch: (model, test set, file): a picture of the training so far.
        draw_final: (model, test set, folder): pictures of the trained model.
    """

    build: Callable[[Recipe], nn.Module]
    loss: Callable[[Recipe], Loss]
    ready: Callable[..., Trained]
    settle: Callable[[nn.Module, Dataset], object] = _nothing
    measure: Callable[[Trained, Dataset], dict] = _nothing
    draw_epoch: Callable[[Trained, Dataset, Path], object] = _nothing
    draw_final: Callable[[Trained, Dataset, Path], object] = _nothing


# Diffusion models, of pictures or of latents


def ready_pipeline(recipe: Recipe, network: nn.Module, device, dtype, autoencoder: Autoencoder | None) -> Pipeline:
    """A pipeline around the network."""
    return Pipeline(recipe, network, device, dtype, {}, autoencoder)


def _steps(pipe: Pipeline) -> int:
    return min(pipe.recipe.diffusion.sampling_steps, pipe.recipe.diffusion.timesteps)


def _columns(pipe: Pipeline) -> int:
    """Of a grid of samples: with classes, one a class."""
    return pipe.num_classes or 8


def draw_samples(pipe: Pipeline, test: Dataset | LatentDataset, path: Path) -> None:
    """A grid of samples, from the same noise every time."""
    columns = _columns(pipe)
    save_grid(pipe.sample(columns * GRID_ROWS, steps=_steps(pipe)), path, columns=columns)


def draw_samples_and_their_way(pipe: Pipeline, test: Dataset | LatentDataset, folder: Path) -> None:
    """A grid, its single pictures, and the way of some from noise to picture."""
    columns = _columns(pipe)
    images = pipe.sample(columns * GRID_ROWS, steps=_steps(pipe), seed=1)
    save_pictures(images, folder / "final_samples", columns)
    states = pipe.states(range(columns), steps=_steps(pipe), seed=1)
    times, stills = denoising_strip(states, pipe, STRIP_FRAMES)
    figure = show_strip(times, stills, title="From noise to digits, by time t")
    write_whole(folder / "denoising_steps" / "denoising.png", figure.savefig)
    for number, (t, column) in enumerate(zip(times, stills.unbind(1), strict=True)):
        save_grid(column, folder / "denoising_steps" / f"step_{number:02d}_t{t:.3f}.png")


def save_pictures(images: Tensor, folder: Path, columns: int = 8) -> None:
    """Pictures (N, 1, H, W) in [-1, 1] as one grid and one by one."""
    save_grid(images, folder / "grid.png", columns=columns)
    for number, image in enumerate(images):
        single = Image.fromarray(quantise(image[0]).numpy())
        write_whole(folder / f"sample_{number:03d}.png", single.save)


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


def measure_reconstructions(autoencoder: Autoencoder, test: Dataset, num_pictures: int = 2000) -> dict:
    """Reconstruction error and KL divergence on test pictures, from the posteriors' means."""
    images, _ = test.batch(torch.arange(min(num_pictures, len(test))))
    restored = autoencoder.reconstruct(images)
    return {"reconstruction_error": reconstruction_error(images.cpu(), restored).mean().item()}


def reconstruction_rows(autoencoder: Autoencoder, test: Dataset) -> Tensor:
    """Forty test pictures, ten a row, each row followed by its reconstructions: (80, 1, 28, 28)."""
    images = crop(test.batch(torch.arange(min(40, len(test))))[0]).cpu()
    restored = autoencoder.reconstruct(images)
    return torch.cat([row for pair in zip(images.split(10), restored.split(10), strict=True) for row in pair])


def draw_reconstructions(autoencoder: Autoencoder, test: Dataset, path: Path) -> None:
    """Test pictures and their reconstructions."""
    save_grid(reconstruction_rows(autoencoder, test), path, columns=10)


def draw_latent_space(autoencoder: Autoencoder, test: Dataset, folder: Path) -> None:
    """Reconstructions, pictures of latents drawn from the prior, and scatter plots of the latent space."""
    draw_reconstructions(autoencoder, test, folder / "final_samples" / "reconstructions.png")
    noise = torch.randn(8 * GRID_ROWS, *autoencoder.latent_shape, generator=torch.Generator().manual_seed(1))
    images = crop(autoencoder.decode(noise)).clamp(-1, 1).cpu()
    save_pictures(images, folder / "final_samples")
    images, labels = test.batch(torch.arange(min(LATENT_PICTURES, len(test))))
    latents, labels = autoencoder.encode(images).cpu(), labels.cpu()
    for name, plot in (("positions", plot_latent_positions), ("principal_components", plot_principal_components)):
        write_whole(folder / "latent_space" / f"{name}.png", plot(latents, labels).savefig)


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


_DIFFUSION = Model(
    build=build_network,
    loss=lambda recipe: loss_of_diffusion(recipe.diffusion, recipe.condition),
    ready=ready_pipeline,
    draw_epoch=draw_samples,
    draw_final=draw_samples_and_their_way,
)
_LATENT_DIFFUSION = dataclasses.replace(
    _DIFFUSION, loss=lambda recipe: loss_of_latent_diffusion(recipe.diffusion, recipe.condition)
)
_REFLOW = dataclasses.replace(_DIFFUSION, loss=lambda recipe: loss_of_reflow(recipe.diffusion, recipe.condition))
_VAE = Model(
    build=lambda recipe: VAE(recipe.vae),
    loss=lambda recipe: loss_of_vae(recipe.elbo),
    ready=ready_autoencoder,
    settle=set_latent_scale,
    measure=measure_reconstructions,
    draw_epoch=draw_reconstructions,
    draw_final=draw_latent_space,
)
_CLASSIFIER = Model(
    build=lambda recipe: build_classifier(recipe.model),
    loss=lambda recipe: loss_of_classifier,
    ready=ready_network,
    measure=lambda network, test: {"test_accuracy": accuracy(network, test)},
)

MODELS: dict[str, Model] = {
    "ddpm": _DIFFUSION,
    "vae": _VAE,
    "vae-2d": _VAE,
    "ldm": _LATENT_DIFFUSION,
    "ldm-concat": _LATENT_DIFFUSION,
    "ldm-cross-attention": _LATENT_DIFFUSION,
    "rf": _DIFFUSION,
    "rf-reflow": _REFLOW,
    "rf-one-step": _REFLOW,
    "latent-rf": _LATENT_DIFFUSION,
    "latent-rf-class": _LATENT_DIFFUSION,
    "latent-rf-class-one-step": _REFLOW,
    "classifier": _CLASSIFIER,
    "classifier-check": _CLASSIFIER,
}
