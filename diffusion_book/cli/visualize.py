"""`diffusion-book visualize SUBJECT`: pictures of what a trained model has learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book import data
from diffusion_book.cli.main import choose_model, parse
from diffusion_book.cli.visualize_distribution import Distribution, draw_distribution
from diffusion_book.cli.visualize_guidance import Guidance, draw_guidance
from diffusion_book.data import crop
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import make_folder, timestamped_folder, write_whole
from diffusion_book.viz import latents
from diffusion_book.viz.experiment import draw_reconstructions
from diffusion_book.viz.grids import save_grid

FEWEST_PICTURES = 20  # UMAP needs as many
PAIRS = ((0, 1), (2, 3), (4, 9), (5, 8), (6, 7))  # digits to walk between
STOPS = 11  # pictures on such a walk


@dataclass(frozen=True)
class LatentSpace:
    """Options of `visualize latent-space`."""

    checkpoint: Path | None = None
    """.pt file or experiment folder of a VAE; without one, weights that come with the book"""
    model: str = "vae"
    """which of the book's weights, where no checkpoint is given: vae or vae-2d"""
    dataset: str = "auto"
    """auto, mnist, fashion-mnist, kmnist or digits"""
    num_pictures: int = 2000
    """test pictures in the scatter plots, at least 20; no more than the data set has are taken"""
    picture: int = 0
    """test picture whose latent's numbers are changed one by one"""
    no_umap: bool = False
    """leave out the UMAP, which takes longest"""
    output_dir: Path = Path("visualizations")
    """folder for the folder of pictures"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    kinds = {name: subject.options for name, subject in SUBJECTS.items()}
    name, kind, rest = choose_model(arguments, "visualize", kinds, "subject")
    if kind is None:
        return 0
    subject = SUBJECTS[name]
    print(subject.draw(parse(kind, rest, f"visualize {name}", subject.about, kind())))
    return 0


# The latent space of an autoencoder


def draw_latent_space(options: LatentSpace) -> Path:
    """Fill a folder with pictures of a VAE's latent space.

    Raises:
        BookError: an option that cannot be followed.
    """
    if options.num_pictures < FEWEST_PICTURES:
        raise BookError(f"--num_pictures is {options.num_pictures}: it must be at least {FEWEST_PICTURES}")
    autoencoder = load_autoencoder(options)
    test = data.load(options.dataset, "test")
    if not 0 <= options.picture < len(test):
        raise BookError(f"--picture is {options.picture}: {test.name} has test pictures 0 to {len(test) - 1}")
    make_folder(options.output_dir)
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
    if path is not None:
        path = find_checkpoint(path)
        load_checkpoint(path)  # says what is wrong with it
    loaded = pipelines.load(path or options.model, device=options.device, precision=options.precision)
    if not isinstance(loaded, Autoencoder):
        raise BookError(f"{path or 'this'} is a '{loaded.recipe.model}', not a VAE: give one of vae, vae-2d")
    return loaded


def drawings(autoencoder: Autoencoder, test: data.Dataset, options: LatentSpace) -> dict[str, Callable[[Path], object]]:
    """Name -> what writes that picture to a file."""
    images, labels = test.batch(torch.arange(min(options.num_pictures, len(test))))
    found, names = autoencoder.encode(images).cpu(), test.label_names
    chosen = autoencoder.encode(test.batch(torch.tensor([options.picture]))[0])[0].cpu()
    noise = torch.randn(64, *autoencoder.latent_shape, generator=torch.Generator().manual_seed(0))

    def saving(plot, *arguments, **named) -> Callable[[Path], object]:
        return lambda path: write_whole(path, plot(*arguments, **named).savefig)

    result = {
        "reconstructions": lambda path: draw_reconstructions(autoencoder, test, path),
        "positions": saving(latents.plot_latent_positions, found, labels, names),
        "principal_components": saving(latents.plot_principal_components, found, labels, names),
        "traversals": saving(latents.show_traversals, autoencoder, chosen),
        "interpolation": lambda path: save_grid(walks(autoencoder, test), path, columns=STOPS),
        "prior": lambda path: save_grid(latents.decoded(autoencoder, noise), path),
    }
    if autoencoder.latent_shape == (2, 1, 1):
        result["map"] = saving(latents.plot_map, autoencoder, found, labels, names=names)
    if not options.no_umap:
        result["umap"] = saving(latents.plot_umap, found, labels, names)
    return result


def walks(autoencoder: Autoencoder, test: data.Dataset) -> Tensor:
    """Straight ways between digits: for each pair a row through the latent space, and below it one through pixels.

    Returns:
        Pictures, row by row: (2 * len(PAIRS) * STOPS, 1, 28, 28) in [-1, 1].
    """
    first = {label: int((test.labels == label).nonzero()[0]) for label in test.labels.unique().tolist()}
    rows = []
    for pair in PAIRS:
        images, _ = test.batch(torch.tensor([first[label] for label in pair]))
        rows.append(latents.decoded(autoencoder, latents.between(*autoencoder.encode(images), count=STOPS)))
        rows.append(latents.between(*crop(images), count=STOPS))
    return torch.cat(rows)


@dataclass(frozen=True)
class Subject:
    """Something that can be drawn.

    Attributes:
        options: a dataclass.
        about: one line for --help.
        draw: options -> the folder that was filled.
    """

    options: type
    about: str
    draw: Callable[..., Path]


SUBJECTS = {
    "latent-space": Subject(
        LatentSpace,
        "Draw the latent space of a VAE: scatter plots by digit, what single numbers do, ways between digits.",
        draw_latent_space,
    ),
    "guidance": Subject(
        Guidance,
        "Draw every digit at every guidance scale with the models that know classes, and measure what a scale does.",
        draw_guidance,
    ),
    "distribution": Subject(
        Distribution,
        "Draw maps (UMAP) of a model's pictures beside real digits, and the ways of some samples across them.",
        draw_distribution,
    ),
}
"""name -> what can be drawn; a new one is one entry"""
