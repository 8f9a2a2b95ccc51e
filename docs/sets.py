"""The page of both data sets: the same models, side by side, as far as their weights are here.

Sphinx puts the rows in the place of `MARK` in `two_sets.md`, and draws the pictures that they show.
"""

from dataclasses import asdict
from pathlib import Path

import diffusion_book
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.evaluation.settings import find_entry
from diffusion_book.models import weights
from diffusion_book.models.recipes import MODELS
from diffusion_book.viz.grids import save_grid

MARK = "<!-- both sets -->"
TITLES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
SHOWN = ("ddpm", "ldm-concat", "latent-rf-class")
COLUMNS, SAMPLES, STEPS = 5, 20, 20


def here(name: str) -> list[str]:
    """The sets that the book has weights of this name for."""
    return [dataset for dataset in weights.SETS if name in diffusion_book.list_models(dataset)]


def draw(name: str, dataset: str, folder: Path) -> str:
    """The samples of seed 0 as they come; gives the file's name."""
    pipe = diffusion_book.load(name, dataset=dataset, device="cpu")
    sampler = "euler" if pipe.recipe.is_flow else "ddim"
    labels = [number // 2 for number in range(SAMPLES)] if pipe.num_classes else None  # two of each class
    images = pipe.sample(SAMPLES, labels=labels, sampler=sampler, steps=STEPS, seed=0)
    return save_grid(images, folder / f"{name}-{dataset}.png", COLUMNS, scale=2).name


def said(name: str, dataset: str) -> str:
    """What the card tells of the figure that stands for the model, or else first."""
    card = weights.read_card(name, weights.folder_of(dataset))
    found = find_entry(card, asdict(MODELS[name].figures[0])) or next(iter(figures(card)), None)
    if found is None:
        return "not measured with today's measures yet"
    return sentence(found, "digits" if dataset == weights.MNIST else "pictures")


def cell(name: str, dataset: str, folder: Path) -> str:
    """One model of one set: its samples and what was measured, or the command that makes it."""
    if dataset not in here(name):
        return f"not trained yet: `diffusion-book pretrain {name} --dataset {dataset}`"
    alt = f"Samples of {name}, trained on {TITLES[dataset]}"
    return f"![{alt}](sets/{draw(name, dataset, folder)})<br>{said(name, dataset)}"


def page(folder: Path) -> str:
    """The rows, as Markdown; the pictures come into the folder."""
    lines = []
    for name in SHOWN:
        lines += [f"## {name}: {MODELS[name].idea}", "", f"| {' | '.join(TITLES.values())} |", "|---|---|"]
        lines += [f"| {' | '.join(cell(name, dataset, folder) for dataset in TITLES)} |", ""]
    return "\n".join(lines)


def complete(app, docname: str, source: list[str]) -> None:
    if docname == "two_sets":
        source[0] = source[0].replace(MARK, page(Path(app.srcdir, "sets")))


def setup(app) -> dict:
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}
