"""The pictures that a training leaves in its experiment folder."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_book.data import Dataset, quantise
from diffusion_book.evaluation.reconstructions import reconstruction_rows
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.system.files import write_whole
from diffusion_book.training.experiment import Experiment
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.models import Trained
from diffusion_book.training.monitor import UNITS
from diffusion_book.training.run import Callbacks
from diffusion_book.viz.grids import channels_last, save_grid
from diffusion_book.viz.latents import decoded, plot_latent_positions, plot_principal_components
from diffusion_book.viz.strips import denoising_strip, show_strip
from diffusion_book.viz.style import COLOURS, new_figure, styled

GRID_ROWS = 8
STRIP_FRAMES = 11
LATENT_PICTURES = 5_000  # test pictures in the scatter plots of the latent space


# What the records tell


def draw_records(experiment: Experiment) -> None:
    """Draw the epochs so far, if there are any: the losses, and how busy the machine was."""
    if experiment.epochs:
        draw_curves(experiment)
        draw_use(experiment)


@styled
def draw_curves(experiment: Experiment) -> None:
    """Draw the losses of training and test set over the epochs."""
    figure, axes = new_figure(7.0, 4.0)
    epochs = [record["epoch"] for record in experiment.epochs]
    for key, label, colour in (
        ("train_loss", "training set, weights as they change", COLOURS["ddpm"]),
        ("eval_loss", "test set, averaged weights", COLOURS["ddim"]),
    ):
        axes.plot(epochs, [record[key] for record in experiment.epochs], marker=".", label=label, color=colour)
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.legend()
    write_whole(experiment.folder / "loss_curves.png", figure.savefig)


@styled
def draw_use(experiment: Experiment) -> None:
    """Draw how busy the machine was over the epochs, and how full its memory, where that could be read."""
    epochs = experiment.epochs
    panels = {"%": "busy, % (of one core or GPU)", "GB": "memory, GB", "W": "power, W"}
    curves = {
        unit: [name for name, own in UNITS.items() if own == unit and any(name in record for record in epochs)]
        for unit in panels
    }
    curves = {unit: names for unit, names in curves.items() if names}
    if not curves:
        return
    figure, axes = new_figure(7.0, 2.2 * len(curves), len(curves), sharex=True, squeeze=False)
    for axis, (unit, names) in zip(axes[:, 0], curves.items(), strict=True):
        for name in names:
            known = [(record["epoch"], record[name]) for record in epochs if name in record]
            colour = COLOURS["ddpm" if name.startswith("cpu") else "ddim"]
            axis.plot(*zip(*known, strict=True), marker=".", label=name[:3].upper(), color=colour)
        axis.set(ylabel=panels[unit])
        axis.set_ylim(bottom=0)
        axis.legend()
    axes[-1, 0].set(xlabel="epoch")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    write_whole(experiment.folder / "device_use.png", figure.savefig)


# What the model draws


def draw_epoch(model: Trained, test: Dataset | LatentDataset, path: Path) -> None:
    """A picture of the training so far: samples, or reconstructions; nothing of a classifier."""
    if isinstance(model, Pipeline):
        draw_samples(model, path)
    elif isinstance(model, Autoencoder):
        draw_reconstructions(model, test, path)


def draw_final(model: Trained, test: Dataset | LatentDataset, folder: Path) -> None:
    """Pictures of the trained model; nothing of a classifier."""
    if isinstance(model, Pipeline):
        draw_samples_and_their_way(model, folder)
    elif isinstance(model, Autoencoder):
        draw_latent_space(model, test, folder)


def _columns(pipe: Pipeline) -> int:
    """Columns of a grid of samples: with classes, one for each class."""
    return pipe.num_classes or 8


def draw_samples(pipe: Pipeline, path: Path) -> None:
    """A grid of samples, from the same noise every time."""
    columns = _columns(pipe)
    save_grid(pipe.sample(columns * GRID_ROWS), path, columns=columns)


def draw_samples_and_their_way(pipe: Pipeline, folder: Path) -> None:
    """A grid, its single pictures, and the way of some from noise to picture."""
    columns = _columns(pipe)
    images = pipe.sample(columns * GRID_ROWS, seed=1)
    save_pictures(images, folder / "final_samples", columns)
    states = pipe.states(range(columns), seed=1)
    times, stills = denoising_strip(states, pipe, STRIP_FRAMES)
    figure = show_strip(times, stills, title="From noise to pictures, by time t")
    write_whole(folder / "denoising_steps" / "denoising.png", figure.savefig)
    for number, (t, column) in enumerate(zip(times, stills.unbind(1), strict=True)):
        save_grid(column, folder / "denoising_steps" / f"step_{number:02d}_t{t:.3f}.png")


def save_pictures(images: Tensor, folder: Path, columns: int = 8) -> None:
    """Pictures (N, 1 or 3, H, W) in [-1, 1] as one grid and one by one."""
    save_grid(images, folder / "grid.png", columns=columns)
    for number, image in enumerate(images):
        single = Image.fromarray(channels_last(quantise(image)).numpy())
        write_whole(folder / f"sample_{number:03d}.png", single.save)


def draw_reconstructions(autoencoder: Autoencoder, test: Dataset, path: Path) -> None:
    """Test pictures and their reconstructions."""
    save_grid(reconstruction_rows(autoencoder, test), path, columns=10)


def draw_latent_space(autoencoder: Autoencoder, test: Dataset, folder: Path) -> None:
    """Reconstructions, pictures of latents drawn from the prior, and scatter plots of the latent space."""
    draw_reconstructions(autoencoder, test, folder / "final_samples" / "reconstructions.png")
    noise = torch.randn(8 * GRID_ROWS, *autoencoder.latent_shape, generator=torch.Generator().manual_seed(1))
    save_pictures(decoded(autoencoder, noise), folder / "final_samples")
    images, labels = test.batch(torch.arange(min(LATENT_PICTURES, len(test))))
    latents, labels = autoencoder.encode(images).cpu(), labels.cpu()
    for name, plot in (("positions", plot_latent_positions), ("principal_components", plot_principal_components)):
        write_whole(folder / "latent_space" / f"{name}.png", plot(latents, labels, names=test.class_names).savefig)


PICTURES = Callbacks(recorded=draw_records, epoch=draw_epoch, finished=draw_final)
"""for `run_training`: what it draws while it trains and at its end"""
