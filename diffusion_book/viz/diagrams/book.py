"""The library as a house: which room stands on which."""

from __future__ import annotations

from diffusion_book.viz.diagrams.kit import CLASS, DDPM, FLOW, LATENT, NOISE, SMALL, Canvas, Diagram

# From the top down, and on a floor from the left: a room imports only what stands lower, or to its right.
FLOORS: list[tuple[str, dict[str, str], str]] = [
    ("the book", {"notebooks": "the chapters"}, NOISE),
    ("doors", {"cli": "commands", "exercises": "that answer back", "book": "set up, build, test"}, CLASS),
    ("work", {"viz": "pictures", "evaluation": "measures", "training": "loops, EMA"}, LATENT),
    ("models", {"models": "recipes, weights, the pipeline"}, FLOW),
    (
        "mathematics",
        {
            "editing": "pictures changed",
            "guidance": "$ε_u$, $ε_c$, $w$",
            "samplers": "steps",
            "objective": "the loss",
            "interpolation": "between noises",
            "elbo": "the VAE's bound",
            "denoiser": "$x_t$ to $x_0$, $ε$",
            "targets": "$ε$, $x_0$, $v$, $u$",
            "schedules": "$α_t$, $σ_t$",
            "data": "digits in memory",
        },
        DDPM,
    ),
    ("ground", {"networks": "U-Net, VAE", "system": "files, devices, errors"}, NOISE),
]
"""name of a floor, its rooms with what is in them, and its colour"""

COLUMNS = 3


def library_map() -> Diagram:
    """The rooms of the package, floor by floor: imports point down, or to the right."""
    high, gap, left, right = 44.0, 6.0, 20.0, 358.0
    rows = sum(-(-len(rooms) // COLUMNS) for _, rooms, _ in FLOORS)
    canvas = Canvas(rows * (high + gap) + (len(FLOORS) - 1) * 8 + 28)
    y = 4.0
    for _, rooms, colour in FLOORS:
        names = list(rooms)
        for start in range(0, len(names), COLUMNS):
            row = names[start : start + COLUMNS]
            wide = (right - left - gap * (len(row) - 1)) / len(row)
            for number, name in enumerate(row):
                x = left + number * (wide + gap)
                canvas.box(x, y, wide, high, colour=colour)
                canvas.text(x + wide / 2, y + 14, name, bold=True)
                canvas.text(x + wide / 2, y + 31, rooms[name], size=SMALL)
            y += high + gap
        y += 8
    canvas.arrow([(8, 8), (8, y - 16)], NOISE)
    canvas.text(left, y + 4, "imports point down, or to the right", NOISE, "start", SMALL)
    return canvas.finish(
        "The rooms of the library, one floor upon the other, from the top: "
        + "; ".join(f"{name}: {', '.join(rooms)}" for name, rooms, _ in FLOORS)
        + ". Imports point down, or to the right."
    )
