"""The page of the weights: how each of them was made, from its card.

Sphinx puts the tables in the place of `MARK` in `weights.md`.
"""

from diffusion_book.models import weights
from diffusion_book.models.recipes import RECIPES

MARK = "<!-- the cards of the weights -->"
TODAY = (
    "A command trains by the recipe of the version that runs it (`diffusion_book/models/recipes.py`). Where that differs from "
    "the table, `diffusion-book train` takes the values of the table as options: `--optimizer`, `--lr`, `--batch_size`."
)
PICTURES = 60_000  # of MNIST's training set
HEAD = (
    "| weights | size | optimiser | rate | batch | epochs | minutes | training loss | test loss |",
    "|---|---:|---|---:|---:|---:|---:|---:|---:|",
)


def names() -> list[str]:
    """The weights that were trained, in the order of the recipes."""
    return [name for name in RECIPES if name in weights.shipped()]


def row(card: dict) -> str:
    """One line of the table."""
    training, last = card["recipe"]["training"], card["learning_curve"][-1]
    cells = (
        f"`{card['model']}`",
        f"{card['parameters'] / 1e6:.2f} M",
        training.get("optimizer", "adamw"),
        f"{training['lr']:g}",
        training["batch_size"],
        f"{card['steps'] * training['batch_size'] / PICTURES:.1f}",
        f"{card['minutes']:g}",
        *(f"{last[key]:.4f}" if key in last else "" for key in ("train_loss", "eval_loss")),
    )
    return f"| {' | '.join(map(str, cells))} |"


def origin(card: dict) -> str:
    """How one set of weights is made again, and what it began with."""
    commands = " and then ".join(f"`{command}`" for command in card.get("commands", [card["command"]]))
    began = ""
    if "parent" in card:
        drawn = card["recipe"]["reflow"]["couplings"]
        began = (
            f" It began with the weights of `{card['parent']}` and learned from {drawn:,} of its couplings, "
            f"which took {card['coupling_minutes']:g} minutes to draw."
        )
    elif "vae_sha256" in card:
        began = " It learned the latents of `vae`."
    where = f"{card['threads']} thread{'s' if card['threads'] > 1 else ''} of {card['machine']}, {card['precision']}"
    day = card["date"].split()[0]
    return f"- `{card['model']}`: {commands}, on {day}, on {where}, torch {card['torch']}.{began}"


def page() -> str:
    """The table, and the list below it, as Markdown."""
    cards = [weights.read_card(name) for name in names()]
    return "\n".join([*HEAD, *map(row, cards), "", "## The commands", "", TODAY, "", *map(origin, cards)])


def complete(app, docname: str, source: list[str]) -> None:
    if docname == "weights":
        source[0] = source[0].replace(MARK, page())


def setup(app) -> dict:
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}
