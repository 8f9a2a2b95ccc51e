"""`diffusion-book visualize SUBJECT`: pictures of what a trained model has learned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book import data
from diffusion_book.cli.options import LatentSpace
from diffusion_book.cli.visualize_distribution import draw_distribution
from diffusion_book.cli.visualize_guidance import draw_guidance
from diffusion_book.data import crop
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.system.errors import BookError, check_range
from diffusion_book.system.files import check_folder, timestamped_folder, write_whole
from diffusion_book.training.datasets import pictures_of
from diffusion_book.viz import latents
from diffusion_book.viz.experiment import draw_reconstructions
from diffusion_book.viz.grids import save_grid

FEWEST_PICTURES = 20  # UMAP needs as many
PAIRS = ((0, 1), (2, 3), (4, 9), (5, 8), (6, 7))  # digits to walk between, as far as they are there
STOPS = 11  # pictures on such a walk


def main(subject: str, options: Any) -> int:
    """Run the command."""
    print(SUBJECTS[subject](options))
    return 0


# The latent space of an autoencoder


def draw_latent_space(options: LatentSpace) -> Path:
    """Fill a folder with pictures of a VAE's latent space.

    Raises:
        BookError: an option that cannot be followed.
    """
    check_range(options, "num_pictures", FEWEST_PICTURES, prefix="--")
    autoencoder = load_autoencoder(options)
    test = pictures_of(autoencoder.recipe, "test", options.dataset or data_of(autoencoder))
    if not 0 <= options.picture < len(test):
        raise BookError(f"--picture is {options.picture}: {test.name} has test pictures 0 to {len(test) - 1}")
    check_folder(options.output_dir)
    folder = timestamped_folder(options.output_dir, "latent-space")
    for name, draw in tqdm(drawings(autoencoder, test, options).items(), desc="drawing", disable=None):
        draw(folder / f"{name}.png")
    return folder


def load_autoencoder(options: LatentSpace) -> Autoencoder:
    """The VAE that the options name.

    Raises:
        BookError: there is none, or it is something else than a VAE.
    """
    path = options.checkpoint
    loaded = pipelines.load(path or options.model, device=options.device, precision=options.precision)
    if not isinstance(loaded, Autoencoder):
        raise BookError(f"{path or 'this'} is a '{loaded.recipe.model}', not a VAE: give one of vae, vae-2d")
    return loaded


def data_of(autoencoder: Autoencoder) -> str:
    """The data set whose test pictures are drawn where none is named: pictures of one's own for a VAE that learned them."""
    learned = autoencoder.recipe.training.dataset
    return learned if data.is_place(learned) else "auto"


def drawings(autoencoder: Autoencoder, test: data.Dataset, options: LatentSpace) -> dict[str, Callable[[Path], object]]:
    """Name -> what writes that picture to a file."""
    images, labels = test.batch(torch.arange(min(options.num_pictures, len(test))))
    latent, names = autoencoder.encode(images).cpu(), test.class_names
    chosen = autoencoder.encode(test.batch(torch.tensor([options.picture]))[0])[0].cpu()
    noise = torch.randn(64, *autoencoder.latent_shape, generator=torch.Generator().manual_seed(0))

    def saving(plot, *arguments, **named) -> Callable[[Path], object]:
        return lambda path: write_whole(path, plot(*arguments, **named).savefig)

    result = {
        "reconstructions": lambda path: draw_reconstructions(autoencoder, test, path),
        "positions": saving(latents.plot_latent_positions, latent, labels, names),
        "principal_components": saving(latents.plot_principal_components, latent, labels, names),
        "traversals": saving(latents.show_traversals, autoencoder, chosen),
        "interpolation": lambda path: save_grid(walks(autoencoder, test), path, columns=STOPS),
        "prior": lambda path: save_grid(latents.decoded(autoencoder, noise), path),
    }
    if autoencoder.latent_shape == (2, 1, 1):
        result["map"] = saving(latents.plot_map, autoencoder, latent, labels, names=names)
    if not options.no_umap:
        result["umap"] = saving(latents.plot_umap, latent, labels, names)
    return result


def walks(autoencoder: Autoencoder, test: data.Dataset) -> Tensor:
    """Straight ways between digits: for each pair a row through the latent space, and below it one through pixels.

    Returns:
        Pictures, row by row: (2 * pairs * STOPS, C, H, W) in [-1, 1].
    """
    first = {label: int((test.labels == label).nonzero()[0]) for label in test.labels.unique().tolist()}
    rows = []
    there = list(first)
    pairs = [pair for pair in PAIRS if set(pair) <= set(there)] or [(there[0], there[-1])]
    for pair in pairs:
        images, _ = test.batch(torch.tensor([first[label] for label in pair]))
        rows.append(latents.decoded(autoencoder, latents.between(*autoencoder.encode(images), count=STOPS)))
        rows.append(latents.between(*crop(images, test.images.shape[-1]), count=STOPS))
    return torch.cat(rows)


SUBJECTS: dict[str, Callable[[Any], Path]] = {
    "latent-space": draw_latent_space,
    "guidance": draw_guidance,
    "distribution": draw_distribution,
}
"""what can be drawn -> what fills a folder with it, by the options of the same name"""
