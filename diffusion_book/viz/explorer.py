"""Guidance that the reader moves: sampled live where a kernel answers, drawn beforehand everywhere else."""

from __future__ import annotations

import html
import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from diffusion_book.samplers import SAMPLERS, evaluations
from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import grid
from diffusion_book.viz.html import ASLEEP, Html, data_uri, script
from diffusion_book.viz.in_page import live_after
from diffusion_book.viz.live import LatestOnly, when_live

if TYPE_CHECKING:
    from ipywidgets import VBox

    from diffusion_book.models.pipelines import Pipeline

STEPS = 15  # ten digits in about 0.2 seconds
STRONGEST, APART = 10.0, 0.5  # guidance scales: 0 to STRONGEST, so far apart
COLUMNS = 5  # digits in a row
HEIGHT = 224  # of the picture on the screen, in pixels: eight for each of a digit's, four in two rows
QUALITY = 50  # of WebP: the digits have thin strokes

_HANDLER = script("explorer.js")
_NAME_HANDLES = script("name_handles.js")

_TEMPLATE = """\
<figure data-columns="{columns}" data-rows="{rows}" data-apart="{apart}" oninput="{handler}" \
style="margin:0;max-width:{width}px;color:inherit">
<div style="position:relative;overflow:hidden;width:100%;height:0;padding-bottom:{high}%">
<img src="{source}" alt="All digits at guidance scale {start}" style="position:absolute;left:0;top:{top}%;width:100%;\
max-width:none;height:auto;margin:0;image-rendering:pixelated">
</div>
<div style="display:flex;flex-wrap:wrap;gap:0.4em 1.2em;align-items:center;margin-top:0.4em">
<label>digit <select autocomplete="off" aria-label="digit" style="font:inherit">{options}</select></label>
<label style="display:flex;gap:0.8em;align-items:center;flex:1;min-width:min(18em,100%)">
<span>guidance scale</span>
<input type="range" min="0" max="{strongest}" step="{apart}" value="{start}" autocomplete="off" \
aria-label="guidance scale" style="flex:1;min-width:0;height:2em">
<output style="min-width:4ch;text-align:right;font-variant-numeric:tabular-nums">{start}</output>
</label>
</div>
{asleep}
<figcaption style="font-size:0.85em">Drawn beforehand: {how}.</figcaption>
</figure>"""


ALL = -1  # not None, by which a drop-down list means that nothing is chosen


class Wish(NamedTuple):
    """What the controls stand at. `digit` is one of them, or ALL."""

    digit: int
    scale: float
    steps: int
    seed: int
    sampler: str


@dataclass(frozen=True)
class GuidanceExplorer:
    """A control of guidance as the value of a cell. See `guidance_explorer`.

    Attributes:
        pipe: draws the digits.
        start: what the control stands at when it appears.
        frames: all digits at every scale, bytes, (scales, height, width).
        still: the control that plays them without a kernel.
    """

    pipe: Pipeline
    start: Wish
    frames: Tensor
    still: Html

    def _ipython_display_(self) -> None:
        from IPython.display import display

        handle = display(self.still, display_id=True)
        if handle is None or importlib.util.find_spec("ipywidgets") is None:
            return

        def show() -> None:
            # What plays without a kernel stays beside the widget, for whoever reads a saved copy.
            handle.update({**self.controls()._repr_mimebundle_(), "text/html": self.still.text}, raw=True)

        when_live(show)

    def _repr_html_(self) -> str:
        return self.still.text

    def __repr__(self) -> str:
        return self.still.summary

    def controls(self) -> VBox:
        """The widget that samples live: digit, scale, steps, seed and sampler, the picture, and a line about it."""
        import ipywidgets

        count, start = self.pipe.num_classes, self.start
        wide = {"style": {"description_width": "9em"}, "layout": {"width": "32em", "max_width": "100%"}}
        limit = max(min(100, self.pipe.recipe.diffusion.timesteps), start.steps)
        # `euler` is left out: on every schedule it is `ddim` without fresh noise, which is the ddim drawn here.
        samplers = [name for name in SAMPLERS if name != "euler"]
        every = (f"all {count}", ALL)
        inputs = Wish(
            ipywidgets.Dropdown(
                options=[every, *((str(digit), digit) for digit in range(count))],
                value=start.digit,
                description="digit",
                **wide,
            ),
            ipywidgets.FloatSlider(
                min=0,
                max=STRONGEST,
                step=APART,
                value=start.scale,
                readout_format=".1f",
                description="guidance scale",
                **wide,
            ),
            ipywidgets.IntSlider(min=1, max=limit, value=start.steps, description="steps", **wide),
            ipywidgets.BoundedIntText(min=0, max=2**31 - 1, value=start.seed, description="seed", **wide),
            ipywidgets.Dropdown(options=samplers, value=start.sampler, description="sampler", **wide),
        )
        picture = ipywidgets.HTML(to_html(self.frames[round(start.scale / APART)], start))
        line = ipywidgets.HTML(f'<span role="status">{describe(start)}</span>')

        def draw(wish: Wish, stale: Callable[[], bool]) -> None:
            begun = time.perf_counter()
            try:
                images = sample_unless(stale, self.pipe, wish)
                if images is None:
                    return
                picture.value = to_html(grid(images, COLUMNS, padding=0), wish)
                calls = evaluations(wish.sampler, wish.steps)
                words = f"{describe(wish)}: {calls} evaluations, {time.perf_counter() - begun:.2f} s"
                line.value = f'<span role="status">{words}</span>'
            except Exception as error:  # in a thread it would be a traceback in a log that no reader sees
                message = " ".join(str(error).split()) or type(error).__name__
                line.value = f'<span role="alert" style="color:#c00">Error: {html.escape(message)}</span>'

        latest = LatestOnly(draw)
        for control in inputs:
            control.observe(lambda _: latest.ask(Wish(*(each.value for each in inputs))), "value")
        return ipywidgets.VBox([picture, line, *inputs])


def guidance_explorer(pipe: Pipeline, steps: int = STEPS, seed: int = 0) -> GuidanceExplorer:
    """A control of what guidance does: a digit, or all of them, at a guidance scale from 0 to 10.

    With a kernel, as in JupyterLab, every move samples anew, and steps, seed and sampler can be moved as well; while
    a slider is dragged only its latest place is drawn to the end. Everywhere else (on the site, in a stored notebook,
    without ipywidgets) the same control plays pictures that are drawn now, for each digit and every half of scale.
    Mouse, touch and keys move both. Neither needs a network. On the book's site one press of a button has the page
    itself sample, where the weights are those that come with the book.

    With the book's latent models, an evaluation of ten guided digits takes 14 milliseconds on one free CPU core. A
    move should be answered within 0.3 seconds, so 15 steps are the default: 0.2 seconds. Drawing beforehand takes
    about two seconds.

    Args:
        pipe: a model with classes.
        steps: of the sampler, `ddim`; live, where the control starts.
        seed: of the noise; live, where the control starts.

    Raises:
        BookError: a model that knows no classes, or bad steps or seed.
    """
    if not getattr(pipe, "num_classes", 0):
        raise BookError(
            f"'{pipe.recipe.model}' knows no classes, so there is nothing to guide: "
            "use a model with classes, such as ldm-concat"
        )
    scale = min(STRONGEST, max(0.0, APART * round(pipe.recipe.condition.guidance_scale / APART)))
    start = Wish(ALL, scale, steps, seed, "ddim")
    frames = draw_frames(pipe, start)
    still = still_control(frames, pipe, start)
    if pipe.card:  # the weights that come with the book: a page has them too
        still = live_after(pipe.recipe.model, still, guidance_scale=scale, steps=steps, seed=seed)
    return GuidanceExplorer(pipe, start, frames, still)


def draw_frames(pipe: Pipeline, wish: Wish) -> Tensor:
    """All digits at every scale, from the same noise: bytes (scales, rows x 28, columns x 28)."""
    count, scales = pipe.num_classes, torch.arange(0, STRONGEST + APART, APART)
    for state in pipe.states(
        list(range(count)) * len(scales),
        guidance_scale=scales.repeat_interleave(count),
        sampler=wish.sampler,
        steps=wish.steps,
        seed=wish.seed,
    ):
        x = state.x  # (scales x count, *shape)
    return torch.stack([grid(images, COLUMNS, padding=0) for images in pipe.to_images(x).split(count)])


def still_control(frames: Tensor, pipe: Pipeline, start: Wish) -> Html:
    """The control that plays `frames` with no kernel: a picture, a list and a slider in plain HTML."""
    count = pipe.num_classes
    columns, rows = min(COLUMNS, count), math.ceil(count / COLUMNS)
    digits = "".join(f'<option value="{digit}">{digit}</option>' for digit in range(count))
    text = _TEMPLATE.format(
        columns=columns,
        rows=rows,
        high=100 * rows / columns,
        asleep=ASLEEP,
        apart=APART,
        strongest=STRONGEST,
        width=max(280, HEIGHT * columns // rows),
        handler=_HANDLER,
        source=data_uri(Image.fromarray(frames.flatten(0, 1).numpy()), quality=QUALITY),
        start=start.scale,
        top=-100 * round(start.scale / APART),
        options=f'<option value="" selected>all {count}</option>{digits}',
        how=html.escape(f"{pipe.recipe.model}, {start.steps} steps of {start.sampler}, seed {start.seed}"),
    )
    return Html(text, f"Digits of '{pipe.recipe.model}' at guidance scales 0 to {STRONGEST:g} ({len(frames)} frames)")


def sample_unless(stale: Callable[[], bool], pipe: Pipeline, wish: Wish) -> Tensor | None:
    """The pictures that are wished for, (B, 1, 28, 28), or None as soon as `stale()` is true."""
    labels = list(range(pipe.num_classes)) if wish.digit == ALL else [wish.digit]
    for state in pipe.states(
        labels,  # picture i of a seed is of digit i, alone as among all
        labels=labels,
        guidance_scale=wish.scale,
        sampler=wish.sampler,
        steps=wish.steps,
        seed=wish.seed,
    ):
        if stale():
            return None
        x = state.x
    return pipe.to_images(x)


def describe(wish: Wish) -> str:
    """What a picture shows, for those who do not see it."""
    what = "all digits" if wish.digit == ALL else f"digit {wish.digit}"
    return f"{what} at guidance scale {wish.scale:.1f}, {wish.steps} steps of {wish.sampler}, seed {wish.seed}"


def to_html(picture: Tensor, wish: Wish) -> str:
    """A picture (height, width), bytes, of one digit or of all, with its words.

    A single digit becomes as high as all together, so that the page does not jump. It is decoded before anything is
    shown, so that no empty frame flashes between two pictures.
    """
    wide = HEIGHT * picture.shape[1] // picture.shape[0]
    source = data_uri(Image.fromarray(picture.numpy()), lossless=True)
    return (
        f'<img src="{source}" alt="{describe(wish)}" decoding="sync" onload="{_NAME_HANDLES}" '
        f'width="{wide}" height="{HEIGHT}" '
        'style="display:block;max-width:100%;object-fit:contain;object-position:left;image-rendering:pixelated">'
    )
