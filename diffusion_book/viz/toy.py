"""A toy that trains inside the page: points in the plane, a small network, and what it learns, while the reader looks on.

Here only its HTML is written. Its scripts lie beside this file, in the order in which they are best read:

    toy_network.js   a small network, its gradient, AdamW
    toy_flow.js      data, schedules, targets, loss, guidance, the walk back, reflow
    toy_drawing.js   the two planes and the loss
    toy_page.js      the controls, and the clock that keeps the page from stalling

They travel inside the figure, so that it works wherever scripts may run: on the site, in JupyterLab, from a file.
`networks.mlp` is the same network in PyTorch, and the tests hold both against each other.
"""

from __future__ import annotations

import html
from pathlib import Path

from diffusion_book.system.errors import BookError, choose, whole
from diffusion_book.viz.html import ASLEEP, Html

SCRIPTS = ("toy_network.js", "toy_flow.js", "toy_drawing.js", "toy_page.js")
POINTS = {"moons": "two moons", "ring": "a ring", "mixture": "a mixture of three", "own": "your own, drawn on the left"}
TARGETS = {
    "noise": "ε, the noise (diffusion)",
    "image": "x₀, the clean point (diffusion)",
    "v": "v (diffusion)",
    "velocity": "u, the velocity (flow)",
}
COLOURS = ("blue", "orange", "green")  # the classes' names: as many as in toy_drawing.js
STRONGEST = 8.0  # guidance scale
MOST_STEPS = 50

_TEMPLATE = """\
<figure class="toy" data-seed="{seed}">
<style>{style}</style>
<p class="toy-still">Here a small network learns {points} inside the page, as soon as the page may run scripts.</p>
<div class="toy-live">
<div class="toy-controls">
<button type="button" class="toy-play">Play</button>
<button type="button" class="toy-step">One step</button>
<button type="button" class="toy-reflow">Reflow</button>
<button type="button" class="toy-again">Start again</button>
<button type="button" class="toy-wipe" hidden>Wipe the points</button>
</div>
<div class="toy-panels">
<div><p class="toy-title">Data, and the field at time t</p>
<canvas class="toy-data" tabindex="0" role="img" aria-label="The data"></canvas></div>
<div><p class="toy-title">Drawn from noise</p>
<canvas class="toy-draws" role="img" aria-label="What the network draws"></canvas></div>
</div>
<canvas class="toy-loss" role="img" aria-label="The loss"></canvas>
<div class="toy-controls">
{controls}
</div>
</div>
<figcaption class="toy-live"><span class="toy-numbers"></span> <span class="toy-said" role="status"></span>
<span class="toy-key">Left, arrows: which way points move at time t. Right, dots: where 400 points end; lines: the ways of \
40 of them; rings: where these are at time t.</span></figcaption>
{asleep}
<script>{script}</script>
</figure>"""

_RANGE = (
    '<label><span>{label}</span><input type="range" name="{name}" min="{low}" max="{high}" step="{apart}" '
    'value="{value}" aria-label="{label}" autocomplete="off"><output aria-hidden="true">{value}</output></label>'
)
_SELECT = '<label><span>{label}</span><select name="{name}" aria-label="{label}" autocomplete="off">{options}</select></label>'


def toy(
    points: str = "moons",
    target: str = "velocity",
    *,
    label: int | None = None,
    guidance_scale: float = 1.0,
    steps: int = 20,
    t: float = 0.5,
    seed: int = 0,
) -> Html:
    """A denoiser or a flow that the reader's browser trains on points in the plane; press Play.

    All of it can be changed on the page; the arguments say what it begins with.

    Args:
        points: "moons", "ring", "mixture", or "own", which the reader draws.
        target: what the network predicts: "noise", "image" or "v" on the cosine path, "velocity" on the straight one.
        label: the class that is drawn, 0, 1 or (of the mixture) 2; None draws without one.
        guidance_scale: how strongly the class is insisted on, 0 to 8.
        steps: from noise to the points, 1 to 50, by `ddim`, on the straight path Euler's.
        t: time of the field, 0 (data) to 1 (noise).
        seed: of the network, the data and the noise.

    Raises:
        BookError: no such points or target, or a number outside its range.
    """
    choose("points", points, POINTS)
    choose("target", target, TARGETS)
    if label is not None and label not in range(3 if points in ("mixture", "own") else 2):
        raise BookError(f"'{points}' has no class {label}")
    for name, value, low, high in (
        ("guidance_scale", guidance_scale, 0, STRONGEST),
        ("steps", steps, 1, MOST_STEPS),
        ("t", t, 0, 1),
    ):
        if not low <= value <= high:
            raise BookError(f"{name} must be {low} to {high:g}, not {value}")
    classes = [(str(number), name) for number, name in enumerate(COLOURS)]
    controls = [
        _select("points", "points", POINTS.items(), points),
        _select("pen", "draw in", classes, "0"),
        _select("target", "predicts", TARGETS.items(), target),
        _select("label", "class", [("-1", "any"), *classes], "-1" if label is None else str(label)),
        _range("scale", "guidance scale", 0, STRONGEST, 0.5, float(guidance_scale)),
        _range("t", "time t", 0, 1, 0.02, t),
        _range("steps", "steps from noise", 1, MOST_STEPS, 1, steps),
    ]
    text = _TEMPLATE.format(
        seed=whole("seed", seed),
        points=POINTS[points],
        style=_read("toy.css"),
        controls="\n".join(controls),
        asleep=ASLEEP,
        script=toy_script(),
    )
    return Html(text, f"A small network that learns {POINTS[points]} inside the page")


def toy_mathematics() -> str:
    """The JavaScript of the network and the flow, for whoever wants to hold it against PyTorch."""
    return "\n".join(map(_read, SCRIPTS[:2]))


def toy_script() -> str:
    """All of the JavaScript, as one function that wakes the figure in which it stands."""
    return "\n".join(
        ['"use strict";(() => {', *map(_read, SCRIPTS), 'setUp(document.currentScript.closest("figure"));', "})();"]
    )


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _range(name: str, label: str, low: float, high: float, apart: float, value: float) -> str:
    return _RANGE.format(name=name, label=label, low=low, high=high, apart=apart, value=value)


def _select(name: str, label: str, options, chosen: str) -> str:
    marks = ((value, " selected" if value == chosen else "", html.escape(words)) for value, words in options)
    texts = "".join(f'<option value="{value}"{mark}>{words}</option>' for value, mark, words in marks)
    return _SELECT.format(name=name, label=label, options=texts)
