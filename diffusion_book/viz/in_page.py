"""Figures that sample inside the page: no kernel, no server, no network.

Here only their HTML is written. What makes them live is the site's own script (`docs/live/`), which a page with such a
figure loads. Wherever that script is not, as in JupyterLab, a figure stays the picture that was drawn beforehand.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence

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
CLASSIFIER = "classifier"  # whose opinion stands below what is made of a drawing

_TEMPLATE = """\
<figure class="live{kind}" data-model="{model}" data-task="{task}" data-classes="{classes}" data-fixed="{fixed}"{marks}>
{before}<canvas width="{width}" height="{side}" role="img" aria-label="{alt}"{hidden}></canvas>
{after}<figcaption><span class="live-said" role="status">{said}</span> <code class="live-call">{call}</code></figcaption>
</figure>"""

_CONTROLS = """\
<div class="live-controls" hidden><button type="button" class="live-start">Draw live (loads {size} MB)</button>
{controls}</div>
"""

_READ = '<ol class="live-read" aria-label="What the classifier takes each picture for"></ol>\n'
_MAPS = '<table class="live-maps" data-colours="{colours}" hidden><caption aria-live="polite"></caption></table>\n'

_PAPER = """\
<p class="live-asleep">On the book's web page you can draw a digit here, and see what the models make of it.</p>
<div class="live-paper" hidden>
<canvas width="28" height="28" tabindex="0" role="img" aria-label="Your drawing, 28 x 28 pixels. The arrow keys move \
the pen, the space bar puts it down and takes it up."></canvas>
<div class="live-controls">{scissors}<button type="button" class="live-wipe">Wipe all</button></div>
</div>"""

_SCISSORS = """\
<label><span>tool</span><select name="tool" aria-label="tool" autocomplete="off">
<option value="pen" selected>pen</option><option value="scissors">scissors</option></select></label>
<button type="button" class="live-mend">Mend the holes</button>
"""

_RANGE = (
    '<label data-live><span>{label}</span><input type="range" name="{name}" min="{low}" max="{high}" step="{apart}" '
    'value="{value}" aria-label="{label}" autocomplete="off" disabled><output aria-hidden="true">{value}</output></label>'
)
_SELECT = (
    '<label data-live><span>{label}</span><select name="{name}" aria-label="{label}" autocomplete="off" disabled>'
    "{options}</select></label>"
)


def paper(scissors: bool = True) -> Html:
    """A sheet to draw on, one a page, with scissors or without; `drawing_figure` begins from what is drawn."""
    return Html(_PAPER.format(scissors=_SCISSORS if scissors else ""), "A sheet to draw on")


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
    controls = _panel([model], _controls(recipe, start))
    text = _figure(
        model, recipe, "sample", COUNT, alt,
        before=before, after=controls, words="Drawn beforehand:", call=f"load({model!r}).sample({given})",
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
    controls = _panel([model], _controls(recipe, {**start_of(recipe), **start}))
    text = _figure(
        model, recipe, "sample", COUNT, f"Ten digits of {model}",
        kind=" live-after", before=_stored(stored), after=controls,
    )  # fmt: skip
    return Html(text, stored.summary)


def live_maps(model: str, stored: Html, colours: Sequence[str], **start) -> Html:
    """The same for cross-attention: predictions on the way, and what each layer reads at a place that the reader chooses.

    It samples by `ddim`, as `sampling.watch` does.

    Args:
        model: whose network reads tokens. One that does not come with the book keeps the stored control.
        stored: the control.
        colours: one a token.
        start: what the controls stand at: `until`, the time that is shown; guidance_scale, steps, seed.

    Raises:
        BookError: a model without cross-attention, or not one colour a token.
    """
    if model not in weights.shipped():
        return stored
    recipe = _diffusion(model)
    if not recipe.condition or not recipe.network.context_dim:
        raise BookError(f"'{model}' has no cross-attention to watch: give a model like ldm-cross-attention")
    if len(colours) != recipe.condition.num_tokens:
        raise BookError(f"{len(colours)} colours for the {recipe.condition.num_tokens} tokens of '{model}'")
    controls = _controls(recipe, {**start_of(recipe), "until": 0.0, **start}, samplers=False)
    table = _MAPS.format(colours=html.escape(json.dumps(list(colours))))
    text = _figure(
        model, recipe, "watch", COUNT, f"Ten digits of {model}, on the way",
        kind=" live-after", before=_stored(stored), after=table + _panel([model], controls), fixed={"sampler": "ddim"},
    )  # fmt: skip
    return Html(text, stored.summary)


def live_beside(models: Sequence[str], stored: Html, **start) -> Html:
    """The same for several models: what each makes of one noise, under each other, with one set of controls.

    Args:
        models: diffusion models of pictures or of latents. If one does not come with the book, the stored control stays.
        stored: the control.
        start: what the controls stand at, as for `live_figure`; guidance_scale is for those with classes.
    """
    if not set(models) <= set(weights.shipped()):
        return stored
    recipes = {model: _diffusion(model) for model in models}
    most = min(recipes.values(), key=lambda recipe: recipe.condition is None)  # one with classes has all the controls
    controls = _panel(models, _controls(most, {**start_of(most), "sampler": "ddim", **start}))
    *first, last = models
    rows = [  # the controls stand below the last one's pictures
        _figure(model, recipes[model], "sample", COUNT, f"Ten digits of {model}", hidden=True, after=after)
        for model, after in (*((model, "") for model in first), (last, controls))
    ]
    text = "\n".join(rows)
    return Html(f'<div class="live-beside live-after">{_stored(stored)}{text}</div>', stored.summary)


def _stored(control: Html) -> str:
    return f'<div class="live-still">{control.text}</div>'


def _diffusion(model: str) -> Recipe:
    recipe = recipe_from_dict(weights.read_card(model)["recipe"])
    if recipe.diffusion is None:
        raise BookError(f"a '{model}' draws no pictures: choose a diffusion model")
    return recipe


def _controls(recipe: Recipe, start: dict, samplers: bool = True) -> list[str]:
    controls = []
    if recipe.condition:
        controls.append(_select("label", "digit", [("", "all"), *_classes(recipe)], ""))
        controls.append(_range("scale", "guidance scale", 0, STRONGEST, APART, start["guidance_scale"]))
    if "until" in start:
        controls.append(_range("until", "time", 0, 1, 0.02, start["until"]))
    controls.append(_range("steps", "steps", 1, min(MOST_STEPS, recipe.diffusion.timesteps), 1, start["steps"]))
    controls.append(_range("seed", "seed", 0, LAST_SEED, 1, start["seed"]))
    if samplers:
        controls.append(_select("sampler", "sampler", [(name, name) for name in SAMPLERS], start["sampler"]))
    return controls


def drawing_figure(model: str, task: str) -> Html:
    """Pictures that begin from the reader's drawing, on a page that has a `paper`, and what the classifier says of them.

    Args:
        model: "vae" to reconstruct, a model with classes to change the class, the classifier to classify, else any
            diffusion model that comes with the book.
        task: one of `TASKS`; see `editing`.

    Raises:
        BookError: no such model or task, or one that the model cannot do.
    """
    choose("task", task, TASKS)
    recipe = recipe_from_dict(weights.read_card(model)["recipe"])
    pixels = recipe.diffusion and not recipe.is_latent
    able = {
        "classify": model == CLASSIFIER,
        "reconstruct": recipe.vae,
        "sdedit": recipe.diffusion,
        "inpaint": pixels,
        "change": recipe.condition,
        "invert": pixels and not recipe.condition,
    }
    if not able[task]:
        raise BookError(f"'{model}' cannot {task}: it {TASKS[task]}")
    count = {"classify": 1, "reconstruct": 1, "invert": 2, "change": COUNT}.get(task, COUNT // 2)
    controls, fixed = [], {}
    if task == "change":
        controls.append(_select("from", "I drew", _classes(recipe), "3"))
        fixed.update(seed=0, label=None, sampler="heun")
    if task == "sdedit" and recipe.condition:
        controls.append(_select("label", "digit", [("-1", "any"), *_classes(recipe)], "8"))
    if task in ("sdedit", "change"):
        controls.append(_range("t", "time t", 0.05, 1, 0.05, 0.6 if task == "sdedit" else 1))
    if task in ("sdedit", "change", "inpaint"):
        if recipe.condition:
            controls.append(_range("scale", "guidance scale", 0, STRONGEST, APART, 2.0))
        else:
            fixed["scale"] = 1
    if task in ("sdedit", "change", "inpaint", "invert"):
        controls.append(_range("steps", "steps", 1, MOST_STEPS, 1, 50 if task == "invert" else 20))
    if task in ("sdedit", "inpaint", "invert"):
        controls.append(_range("seed", "seed", 0, LAST_SEED, 1, 0))
        fixed["sampler"] = {"sdedit": "ddim", "inpaint": "ddpm", "invert": "euler"}[task]
    text = _figure(
        model, recipe, task, count, "Made from your drawing",
        after=_READ + _panel([model, CLASSIFIER], controls), fixed=fixed,
        marks=f' data-paper data-classifier="{CLASSIFIER}"', hidden=True,
    )  # fmt: skip
    return Html(text, f"What '{model}' makes of a drawing, in the reader's browser")


TASKS = {
    "classify": "is no classifier",
    "reconstruct": "is no autoencoder",
    "sdedit": "is no diffusion model",
    "inpaint": "is no diffusion model of pictures, and a latent has no place for each pixel",
    "change": "knows no classes",
    "invert": "is no diffusion model of pictures without classes",
}
"""what can be done with a drawing, and what is said of a model that cannot do it"""


def drawing_board(*tasks: tuple[str, str]) -> Html:
    """A sheet to draw on, and what models make of the drawing; one a page.

    Args:
        tasks: model and task of each figure below the sheet, as for `drawing_figure`.
    """
    figures = "\n".join(drawing_figure(*each).text for each in tasks)
    sheet = paper(scissors=any(task == "inpaint" for _, task in tasks)).text
    return Html(f"{sheet}\n{figures}", "A sheet to draw on, and what models make of the drawing")


def _figure(
    model: str,
    recipe: Recipe,
    task: str,
    count: int,
    alt: str,
    *,
    kind: str = "",
    before: str = "",
    after: str = "",
    fixed: dict | None = None,
    marks: str = "",
    hidden: bool = False,
    words: str = "",
    call: str = "",
) -> str:
    """A live figure: `before` stands there until the first picture, `after` below the pictures.

    `fixed` is what is asked beside the controls, `marks` are further attributes.
    """
    return _TEMPLATE.format(
        model=model,
        task=task,
        kind=kind,
        classes=recipe.condition.num_classes if recipe.condition else "",
        fixed=html.escape(json.dumps({"eta": 0, **(fixed or {})})),
        marks=marks,
        before=before,
        width=count * SIDE,
        side=SIDE,
        alt=alt,
        hidden=" hidden" if before or hidden else "",
        after=after,
        said=words,
        call=html.escape(call),
    )


def _panel(models: Sequence[str], controls: list[str]) -> str:
    """The button, which says what it loads, and the controls."""
    return _CONTROLS.format(size=megabytes(*models), controls="\n".join(controls))


def _classes(recipe: Recipe) -> list[tuple[str, str]]:
    return [(str(label), str(label)) for label in range(recipe.condition.num_classes)]


def megabytes(*models: str) -> int:
    """What a press of the button loads, in MB, rounded up: the weights in half precision, written in base64."""
    latent = any(recipe_from_dict(weights.read_card(name)["recipe"]).is_latent for name in models)
    names = {*models, *(["vae"] if latent else [])}
    size = sum((weights.FOLDER / f"{name}.safetensors").stat().st_size for name in names)
    return math.ceil(size * 4 / 3 / 1e6)


def _range(name: str, label: str, low: float, high: float, apart: float, value: float) -> str:
    return _RANGE.format(name=name, label=label, low=low, high=high, apart=apart, value=value)


def _select(name: str, label: str, options: list[tuple[str, str]], chosen: str) -> str:
    marks = ((value, " selected" if value == chosen else "", words) for value, words in options)
    texts = "".join(f'<option value="{value}"{mark}>{words}</option>' for value, mark, words in marks)
    return _SELECT.format(name=name, label=label, options=texts)
