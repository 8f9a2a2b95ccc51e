"""Figures that sample inside the page: no kernel, no server, no network.

Here only their HTML is written. What makes them live is the site's own script (`docs/live/`), which a page with such a
figure loads. Wherever that script is not, as in JupyterLab, a figure stays the picture that was drawn beforehand.
"""

from __future__ import annotations

import html
import json
import math

from diffusion_book.models import weights
from diffusion_book.models.recipes import Recipe, recipe_from_dict
from diffusion_book.samplers import SAMPLERS
from diffusion_book.system.errors import BookError, choose
from diffusion_book.viz.html import Html

COUNT = 10  # pictures in a row
SIDE = 28  # pixels of a picture
MOST_STEPS = 100
LAST_SEED = 9999
STRONGEST, APART = 10.0, 0.5  # guidance scales: 0 to STRONGEST, so far apart

_TEMPLATE = """\
<figure class="live{kind}" data-model="{model}" data-task="{task}" data-classes="{classes}" data-fixed="{fixed}">
{before}<canvas width="{width}" height="{side}" role="img" aria-label="{alt}"{hidden}></canvas>
<div class="live-controls" hidden><button type="button" class="live-start">{button}</button>
{controls}</div>
<figcaption><span class="live-said" role="status">{said}</span> <code class="live-call">{call}</code></figcaption>
</figure>"""

PAPER = """\
<div class="live-paper">
<canvas width="28" height="28" tabindex="0" role="img" aria-label="Your drawing, 28 x 28 pixels. The arrow keys move \
the pen, the space bar puts it down and takes it up."></canvas>
<div class="live-controls"><label><span>tool</span><select name="tool" aria-label="tool" autocomplete="off">
<option value="pen" selected>pen</option><option value="scissors">scissors</option></select></label>
<button type="button" class="live-wipe">Wipe all</button>
<button type="button" class="live-mend">Mend the holes</button></div>
</div>"""

_RANGE = (
    '<label data-live><span>{label}</span><input type="range" name="{name}" min="{low}" max="{high}" step="{apart}" '
    'value="{value}" aria-label="{label}" autocomplete="off" disabled><output aria-hidden="true">{value}</output></label>'
)
_SELECT = (
    '<label data-live><span>{label}</span><select name="{name}" aria-label="{label}" autocomplete="off" disabled>'
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


def live_figure(model: str, picture: str = "", **start) -> Html:
    """A row of ten pictures that the reader's own browser draws, with a control for all that can be asked.

    Args:
        model: a diffusion model that comes with the book.
        picture: the address of one to begin with, 280 x 28 pixels, drawn with what the controls stand at.
        start: what they stand at, where it is not `start_of` the model's recipe: sampler, steps, guidance_scale, seed.

    Raises:
        BookError: no such model, or one that draws nothing.
    """
    recipe = _diffusion(model)
    start = {**start_of(recipe), **start}
    given = ", ".join([f"{COUNT}", *(f"{name}={value!r}" for name, value in start.items())])
    alt, size = f"Ten digits of {model}", f'width="{COUNT * SIDE}" height="{SIDE}"'
    before = f'<img class="live-still dark-light" src="{picture}" alt="{alt}" {size}>' if picture else ""
    text = _figure(
        model, recipe, "sample", COUNT, _controls(recipe, start), alt,
        before=before, words="Drawn beforehand:", call=f"load({model!r}).sample({given})",
    )  # fmt: skip
    return Html(text, f"Ten digits of '{model}', drawn by the reader's browser")


def live_after(model: str, stored: Html, **start) -> Html:
    """A control that plays what was drawn beforehand, until a press of a button puts a live figure in its place.

    Args:
        model: a diffusion model. One that does not come with the book keeps the stored control: no page has its weights.
        stored: the control.
        start: as for `live_figure`; and `until`, a time from 1, noise, to 0: the figure gets a control that stops there.
    """
    if model not in weights.shipped():
        return stored
    recipe = _diffusion(model)
    controls = _controls(recipe, {**start_of(recipe), **start})
    before = f'<div class="live-still">{stored.text}</div>'
    text = _figure(
        model, recipe, "sample", COUNT, controls, f"Ten digits of {model}", kind=" live-after", before=before
    )
    return Html(text, stored.summary)


def _diffusion(model: str) -> Recipe:
    recipe = recipe_from_dict(weights.read_card(model)["recipe"])
    if recipe.diffusion is None:
        raise BookError(f"a '{model}' draws no pictures: choose a diffusion model")
    return recipe


def _controls(recipe: Recipe, start: dict) -> list[str]:
    controls = []
    if recipe.condition:
        controls.append(_select("label", "digit", [("", "all"), *_classes(recipe)], ""))
        controls.append(_range("scale", "guidance scale", 0, STRONGEST, APART, start["guidance_scale"]))
    if "until" in start:
        controls.append(_range("until", "time", 0, 1, 0.02, start["until"]))
    controls.append(_range("steps", "steps", 1, min(MOST_STEPS, recipe.diffusion.timesteps), 1, start["steps"]))
    controls.append(_range("seed", "seed", 0, LAST_SEED, 1, start["seed"]))
    controls.append(_select("sampler", "sampler", [(name, name) for name in SAMPLERS], start["sampler"]))
    return controls


def drawing_figure(model: str, task: str) -> Html:
    """Pictures that begin from the reader's drawing, on a page that has a `PAPER`.

    Args:
        model: "vae" to reconstruct, a model with classes to change the class, else any that comes with the book.
        task: "reconstruct" (encode and decode), "sdedit", "inpaint" or "change" (the class): see `editing`.

    Raises:
        BookError: no such model or task, or one that the model cannot do.
    """
    recipe = recipe_from_dict(weights.read_card(model)["recipe"])
    choose("task", task, TASKS)
    able = {
        "reconstruct": recipe.vae,
        "sdedit": recipe.diffusion,
        "inpaint": recipe.diffusion and not recipe.is_latent,
        "change": recipe.condition,
    }
    if not able[task]:
        raise BookError(f"'{model}' cannot {task}: it {TASKS[task]}")
    count = {"reconstruct": 1, "change": COUNT}.get(task, COUNT // 2)
    controls, fixed = [], {}
    if task == "change":
        controls.append(_select("from", "I drew", _classes(recipe), "3"))
        fixed.update(seed=0, label=None, sampler="heun")
    if task == "sdedit" and recipe.condition:
        controls.append(_select("label", "digit", [("-1", "any"), *_classes(recipe)], "8"))
    if task in ("sdedit", "change"):
        controls.append(_range("t", "time t", 0.05, 1, 0.05, 0.6 if task == "sdedit" else 1))
    if task != "reconstruct":
        if recipe.condition:
            controls.append(_range("scale", "guidance scale", 0, STRONGEST, APART, 2.0))
        else:
            fixed["scale"] = 1
        controls.append(_range("steps", "steps", 1, MOST_STEPS, 1, 20))
    if task in ("sdedit", "inpaint"):
        controls.append(_range("seed", "seed", 0, LAST_SEED, 1, 0))
        fixed["sampler"] = "ddim" if task == "sdedit" else "ddpm"
    return Html(
        _figure(model, recipe, task, count, controls, "Made from your drawing", fixed=fixed),
        f"What '{model}' makes of a drawing, in the reader's browser",
    )


TASKS = {
    "reconstruct": "takes an autoencoder",
    "sdedit": "takes a diffusion model",
    "inpaint": "takes a diffusion model of pictures: a latent has no place for each pixel",
    "change": "takes a model with classes",
}
"""what can be done with a drawing, and what a model must be for it"""


def _figure(
    model: str,
    recipe: Recipe,
    task: str,
    count: int,
    controls: list[str],
    alt: str,
    *,
    fixed: dict | None = None,
    kind: str = "",
    before: str = "",
    words: str = "",
    call: str = "",
) -> str:
    """A live figure: `fixed` is what is asked beside the controls, `before` stands there until the first picture."""
    return _TEMPLATE.format(
        model=model,
        task=task,
        kind=kind,
        classes=recipe.condition.num_classes if recipe.condition else "",
        fixed=html.escape(json.dumps({"eta": 0, **(fixed or {})})),
        before=before,
        width=count * SIDE,
        side=SIDE,
        alt=alt,
        hidden=" hidden" if before else "",
        button=f"Draw live (loads {megabytes(model)} MB)",
        controls="\n".join(controls),
        said=words,
        call=html.escape(call),
    )


def _classes(recipe: Recipe) -> list[tuple[str, str]]:
    return [(str(label), str(label)) for label in range(recipe.condition.num_classes)]


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
