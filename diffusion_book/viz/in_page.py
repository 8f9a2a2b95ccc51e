"""Figures that sample inside the page: no kernel, no server, no network.

Here only their HTML is written. What makes them live is the site's own script (`docs/live/`), which a page with such a
figure loads. Wherever that script is not, as in JupyterLab, a figure stays the picture that was drawn beforehand.
"""

from __future__ import annotations

import html
import json
import math

from diffusion_book import weights
from diffusion_book.errors import BookError
from diffusion_book.samplers import SAMPLERS
from diffusion_book.training.recipes import Recipe, recipe_from_dict
from diffusion_book.viz.html import Html

COUNT = 10  # pictures in a row
SIDE = 28  # pixels of a picture
MOST_STEPS = 100
LAST_SEED = 9999
STRONGEST, APART = 10.0, 0.5  # guidance scales: 0 to STRONGEST, so far apart

_TEMPLATE = """\
<figure class="live" data-model="{model}" data-classes="{classes}" data-fixed="{fixed}">
<div class="live-picture">{still}
<canvas width="{width}" height="{side}" role="img" aria-label="{alt}"{hidden}></canvas></div>
<div class="live-controls"><button type="button" class="live-start" hidden>{button}</button>
{controls}</div>
<figcaption><span class="live-said" role="status">Drawn beforehand</span>: <code class="live-call">{call}</code></figcaption>
</figure>"""

_RANGE = (
    '<label><span>{label}</span><input type="range" name="{name}" min="{low}" max="{high}" step="{apart}" '
    'value="{value}" aria-label="{label}" autocomplete="off" disabled><output aria-hidden="true">{value}</output></label>'
)
_SELECT = (
    '<label><span>{label}</span><select name="{name}" aria-label="{label}" autocomplete="off" disabled>'
    "{options}</select></label>"
)


def start_of(recipe: Recipe) -> dict[str, float | int | str]:
    """What a live figure of a model begins with, in the words of `Pipeline.sample`: few steps, so that it is quick."""
    flow = recipe.diffusion.schedule == "rectified"
    learned = recipe.diffusion.sampling_steps  # of a model that was made for few
    start = {"sampler": "euler" if flow else "ddim", "steps": min(learned, 10 if flow or recipe.is_latent else 20)}
    if recipe.condition:
        start["guidance_scale"] = APART * round(recipe.condition.guidance_scale / APART)
    return {**start, "seed": 0}


def live_figure(model: str, still: str = "", **start) -> Html:
    """A row of ten pictures that the reader's own browser draws, with a control for all that can be asked.

    Args:
        model: a diffusion model that comes with the book.
        still: the address of a picture to begin with, 280 x 28 pixels, drawn with what the controls stand at.
        start: what they stand at, where it is not `start_of` the model's recipe: sampler, steps, guidance_scale, seed.

    Raises:
        BookError: no such model, or one that draws nothing.
    """
    recipe = recipe_from_dict(weights.read_card(model)["recipe"])
    if recipe.diffusion is None:
        raise BookError(f"a '{model}' draws no pictures: choose a diffusion model")
    start = {**start_of(recipe), **start}
    steps = min(MOST_STEPS, recipe.diffusion.timesteps)
    controls = []
    if recipe.condition:
        every = [("", "all"), *((str(label), str(label)) for label in range(recipe.condition.num_classes))]
        controls.append(_select("label", "digit", every, ""))
        controls.append(_range("scale", "guidance scale", 0, STRONGEST, APART, start["guidance_scale"]))
    controls.append(_range("steps", "steps", 1, steps, 1, start["steps"]))
    controls.append(_range("seed", "seed", 0, LAST_SEED, 1, start["seed"]))
    controls.append(_select("sampler", "sampler", [(name, name) for name in SAMPLERS], start["sampler"]))
    call = ", ".join([f"{COUNT}", *(f"{name}={value!r}" for name, value in start.items())])
    text = _TEMPLATE.format(
        model=model,
        classes=recipe.condition.num_classes if recipe.condition else "",
        fixed=html.escape(json.dumps({"eta": 0})),
        still=f'<img class="live-still dark-light" src="{still}" alt="Ten digits of {model}" width="{COUNT * SIDE}" height="{SIDE}">'
        if still
        else "",
        width=COUNT * SIDE,
        side=SIDE,
        alt=f"Ten digits of {model}",
        hidden=" hidden" if still else "",
        button=f"Draw live (loads {megabytes(model)} MB)",
        controls="\n".join(controls),
        call=html.escape(f"load({model!r}).sample({call})"),
    )
    return Html(text, f"Ten digits of '{model}', drawn by the reader's browser")


def megabytes(model: str) -> int:
    """What a press of the button loads, in MB, rounded up: the weights in half precision, written in base64."""
    recipe = recipe_from_dict(weights.read_card(model)["recipe"])
    names = [model, "vae"] if recipe.is_latent else [model]
    size = sum((weights.FOLDER / f"{name}.safetensors").stat().st_size for name in names)
    return math.ceil(size * 4 / 3 / 1e6)


def _range(name: str, label: str, low: float, high: float, apart: float, value: float) -> str:
    return _RANGE.format(name=name, label=label, low=low, high=high, apart=apart, value=value)


def _select(name: str, label: str, options: list[tuple[str, str]], chosen: str) -> str:
    marks = ((value, " selected" if value == chosen else "", words) for value, words in options)
    texts = "".join(f'<option value="{value}"{mark}>{words}</option>' for value, mark, words in marks)
    return _SELECT.format(name=name, label=label, options=texts)
