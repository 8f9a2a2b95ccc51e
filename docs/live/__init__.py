"""The models inside the page: the scripts and weights that a live figure needs. A Sphinx extension, loaded by conf.py.

The JavaScript of this folder is the book's second implementation of its models, in this order:

    kernels.wat    the loops that take the time, for WebAssembly; plain.js says the same in JavaScript
    layers.js      memory, weights, and the parts that networks are made of
    networks.js    U-Net, encoder and decoder
    noise.js       PyTorch's random numbers
    diffusion.js   schedules, targets, guidance, samplers
    editing.js     what begins from a picture
    model.js       noise in, pictures out
    worker.js      all of these run in a worker, and talk to
    page.js        which reads the controls and paints
    paper.js       a sheet to draw on, for the figures that begin from a drawing
    maps.js        where attention looks, at the place that the reader chooses

The toy, which trains in the page, stands apart: it brings its own scripts along, see `diffusion_book.viz.toy`.

A page opened from a folder may load classic scripts and nothing else. So the worker's code travels as a script, and so
do the weights of each model, which are loaded when the reader asks for them.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import wasmtime
from docutils import nodes
from docutils.parsers.rst import Directive
from torch import Tensor

from diffusion_book.models import weights
from diffusion_book.models.recipes import Recipe, recipe_from_dict
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import write_text
from diffusion_book.viz.in_page import CLASSIFIER, drawing_figure, live_figure, paper
from diffusion_book.viz.toy import toy

FOLDER = Path(__file__).parent
ENGINE = ("plain.js", "layers.js", "networks.js", "noise.js", "diffusion.js", "editing.js", "model.js")
STILLS = FOLDER / "stills"  # what the figures begin with: `make pictures` draws them
PARTS = {"live-paper": "paper.js", "live-maps": "maps.js"}  # part of a figure -> the script that it needs
FIGURE = re.compile(r'<figure class="live[^"]*" data-model="([^"]+)"')


def setup(app):
    app.add_directive("live", LiveFigure)
    app.add_directive("paper", Paper)
    app.add_directive("toy", Toy)
    app.connect("html-page-context", load_page_script)
    app.connect("build-finished", write_models)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class LiveFigure(Directive):
    """A live figure of the model that is named: `diffusion_book.viz.in_page.live_figure`."""

    required_arguments = 1
    optional_arguments = 1  # a task that begins from a drawing

    def run(self) -> list[nodes.Node]:
        model, *task = self.arguments
        try:
            figure = drawing_figure(model, *task) if task else live_figure(model, still(model))
        except (BookError, OSError) as error:
            raise self.error(
                f"no live figure of '{model}': {error} (`make pictures` draws what it begins with)"
            ) from None
        return [nodes.raw("", figure.text, format="html")]


class Paper(Directive):
    """A sheet to draw on, for the figures of a page that begin from a drawing."""

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", paper().text, format="html")]


class Toy(Directive):
    """A toy that trains in the page, on these points: `diffusion_book.viz.toy.toy`."""

    required_arguments = 1
    optional_arguments = 1  # what the network predicts

    def run(self) -> list[nodes.Node]:
        return [nodes.raw("", toy(*self.arguments).text, format="html")]


def still(model: str) -> str:
    """The address of the picture that a figure begins with, which needs no file beside the page."""
    return "data:image/webp;base64," + base64.b64encode((STILLS / f"{model}.webp").read_bytes()).decode()


def load_page_script(app, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """Have a page with a live figure load the script and the style that it needs; no other page does."""
    if FIGURE.search(context.get("body", "")):
        for part, script in PARTS.items():
            if part in context["body"]:
                app.add_js_file(f"live/{script}", loading_method="defer")
        app.add_js_file("live/page.js", loading_method="defer")
        app.add_css_file("live/live.css")


def write_models(app, exception: Exception | None) -> None:
    """Write the scripts of the engine and of every model that a page shows."""
    if exception is None:
        pages = Path(app.outdir).rglob("*.html")
        named = {model for page in pages for model in FIGURE.findall(page.read_text(encoding="utf-8"))}
        write_scripts(Path(app.outdir, "_static", "live"), sorted(named))


def engine() -> str:
    """The second implementation, all of it but the worker's own few lines."""
    return "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in ENGINE)


def kernels() -> list[str]:
    """kernels.wat assembled, base64: with the instruction that multiplies and adds in one go, and without it.

    Not every browser knows `f32x4.relaxed_madd`, which rounds once or twice, as the processor likes.
    """
    text = (FOLDER / "kernels.wat").read_text(encoding="utf-8")
    local = r"(\(local\.get \$\w+\))"
    twice = re.sub(rf"\(f32x4\.relaxed_madd {local} {local} {local}\)", r"(f32x4.add (f32x4.mul \1 \2) \3)", text)
    return [base64.b64encode(wasmtime.wat2wasm(each)).decode() for each in (text, twice)]


def engine_script() -> str:
    """A classic script that hands the page what it makes the worker of."""
    source = "\n".join(['"use strict";', engine(), (FOLDER / "worker.js").read_text(encoding="utf-8")])
    return f"liveEngine({json.dumps({'source': source, 'kernels': kernels()})});\n"


def weights_script(name: str, recipe: Recipe, tensors: dict[str, Tensor], vae: str | None = None) -> str:
    """A classic script that hands the page a model: its recipe, and its tensors in half precision.

    Args:
        name: of the model in the page.
        recipe: how it is built.
        tensors: of its network.
        vae: of a latent model: the name of the autoencoder, which is loaded before.

    Raises:
        ValueError: half precision would lose more than digits, or the engine cannot run the network.
    """
    check_runs(name, recipe, tensors)
    return _script(name, recipe.to_dict(), tensors, vae)


def classifier_script() -> str:
    """The script of the classifier, whose opinion stands below what is made of a drawing."""
    tensors = weights.read_weights(CLASSIFIER)
    counts = [key for key in tensors if key.endswith("num_batches_tracked")]  # nothing that is computed with
    return _script(CLASSIFIER, {}, {key: value for key, value in tensors.items() if key not in counts})


def _script(name: str, recipe: dict, tensors: dict[str, Tensor], vae: str | None = None) -> str:
    places, parts, begin = {}, [], 0
    for key, value in tensors.items():
        whole = value.numpy()
        with np.errstate(over="ignore"):
            half = whole.astype(np.float16)
        # Rounded to 11 binary digits, and near 0 to steps of 2^-24; beyond 65,504 there is nothing.
        if not np.allclose(half.astype(np.float32), whole, rtol=2**-11, atol=2**-25):
            raise ValueError(f"half precision cannot hold {key} of '{name}'")
        places[key] = [begin, list(whole.shape)]
        parts.append(half.tobytes())
        begin += half.size
    model = {"name": name, "recipe": recipe, "vae": vae, "tensors": places}
    model["data"] = base64.b64encode(b"".join(parts)).decode()
    return f"liveWeights({json.dumps(model, separators=(',', ':'))});\n"


def check_runs(name: str, recipe: Recipe, tensors: dict[str, Tensor]) -> None:
    """Refuse a network that the engine cannot run: it takes eight channels at a time.

    Raises:
        ValueError: a level's channels are no multiple of 8, or there are more of them than the engine expects.
    """
    config = recipe.network or recipe.vae
    for multiplier in config.channel_multipliers:
        channels = multiplier * config.base_channels
        if channels % 8 or channels > 4096:
            raise ValueError(
                f"a level of '{name}' has {channels} channels: in a page it takes a multiple of 8 to 4,096"
            )


def shipped_script(name: str) -> str:
    """The script of a model that comes with the book."""
    recipe = recipe_from_dict(weights.read_card(name)["recipe"])
    return weights_script(name, recipe, weights.read_weights(name), "vae" if recipe.is_latent else None)


def write_scripts(folder: Path, models: list[str]) -> None:
    """Write what live figures of these models load into a folder."""
    for name in ("page.js", *PARTS.values(), "live.css"):
        write_text(folder / name, (FOLDER / name).read_text(encoding="utf-8"))
    write_text(folder / "engine.js", engine_script())
    write_text(folder / f"{CLASSIFIER}.js", classifier_script())
    models = [name for name in models if name != CLASSIFIER]
    latent = [name for name in models if recipe_from_dict(weights.read_card(name)["recipe"]).is_latent]
    for name in sorted({*models, *(["vae"] if latent else [])}):
        write_text(folder / f"{name}.js", shipped_script(name))
