"""The control of guidance: what it plays without a kernel, what it samples with one, and what it leaves undone."""

import base64
import dataclasses
import io
import queue
import re
import threading
import time

import jupyter_client
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL_UNET, random_autoencoder, random_latent_pipeline, wake

from diffusion_book import viz
from diffusion_book.models.pipelines import Pipeline, build, build_network
from diffusion_book.models.recipes import ConditionConfig, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.samplers import SAMPLERS
from diffusion_book.system.errors import BookError
from diffusion_book.viz.explorer import APART, COLUMNS, STRONGEST, Wish, sample_unless
from diffusion_book.viz.grids import grid
from diffusion_book.viz.live import LatestOnly

STEPS = 3
PATIENCE = 180  # seconds; only a failure, or a very busy machine, takes as long


def random_pipeline(timesteps: int = 50) -> Pipeline:
    """A latent model with classes that has learned nothing."""
    recipe = Recipe(
        "ldm-concat",
        TrainingConfig(dataset="digits"),
        network=dataclasses.replace(SMALL_UNET, concat_channels=2),
        diffusion=DiffusionConfig(timesteps=timesteps),
        condition=ConditionConfig(),
    )
    torch.manual_seed(0)
    weights = wake(build_network(recipe)).state_dict()
    return build(recipe, weights, autoencoder=random_autoencoder(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pipe():
    return random_pipeline()


@pytest.fixture(scope="module")
def explorer(pipe):
    return viz.guidance_explorer(pipe, steps=STEPS)


def wait_until(true, what: str):
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, f"still waiting until {what}"
        time.sleep(0.005)


def workers() -> list:
    return [thread for thread in threading.enumerate() if thread.name == "latest-only"]


def decode(text: str) -> np.ndarray:
    kind, code = re.search(r'src="data:image/(\w+);base64,([^"]+)"', text).groups()
    assert kind == "webp"
    return np.array(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"))


class TestWithoutKernel:
    def test_frames_are_what_the_pipeline_draws_at_each_scale(self, pipe, explorer):
        scales = np.arange(0, STRONGEST + APART, APART)
        assert explorer.frames.shape == (len(scales), 2 * 28, COLUMNS * 28)
        for scale in (0.0, 3.0, 10.0):
            drawn = pipe.sample(10, guidance_scale=scale, steps=STEPS)
            frame = explorer.frames[list(scales).index(scale)]
            # In batches of another size the last bit of a sum may differ.
            assert (frame.int() - grid(drawn, COLUMNS, padding=0).int()).abs().max() <= 1
        assert not torch.equal(explorer.frames[0], explorer.frames[-1])

    def test_sheet_holds_every_frame_below_the_one_before(self, explorer):
        sheet = decode(explorer._repr_html_())
        assert sheet.shape == (explorer.frames.shape[0] * 56, 140)
        off = np.abs(sheet.reshape(explorer.frames.shape).astype(int) - explorer.frames.numpy())
        assert off.mean() < 15  # WebP is not exact; frames in another order are off by far more
        other = np.abs(sheet.reshape(explorer.frames.shape)[::-1].astype(int) - explorer.frames.numpy())
        assert other.mean() > 1.5 * off.mean()

    def test_html_is_small_and_names_its_inputs(self, explorer):
        text = explorer._repr_html_()
        assert len(text) < 250_000
        assert re.search(r"<label>digit <select", text)
        assert re.search(r"<label[^>]*>\s*<span>guidance scale</span>\s*<input type=\"range\"", text)
        assert re.findall(r'<option value="(\d*)"', text) == ["", *map(str, range(10))]
        assert 'alt="All digits at guidance scale 3.0"' in text

    def test_html_asks_nothing_of_the_outside(self, explorer):
        addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>]{,12})""", explorer._repr_html_())
        assert addresses == ["data:image/w"]
        assert "//" not in re.sub(r'src="[^"]+"', "", explorer._repr_html_())

    def test_model_without_classes_is_refused_in_one_line(self):
        without = random_latent_pipeline(random_autoencoder())
        for model in (without, without.autoencoder):
            with pytest.raises(BookError, match="knows no classes") as refusal:
                viz.guidance_explorer(model)
            assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 51}, {"seed": -1}])
    def test_bad_steps_and_seeds_are_refused(self, pipe, options):
        with pytest.raises(BookError):
            viz.guidance_explorer(pipe, **options)

    def test_unknown_names_are_not_there(self):
        with pytest.raises(AttributeError, match="guidance_slider"):
            _ = viz.guidance_slider


class TestLatestOnly:
    def test_of_a_burst_the_first_gives_up_and_only_the_last_is_done(self):
        begun, done, started = [], [], threading.Event()

        def work(request, stale):
            begun.append(request)
            started.set()
            until = time.monotonic() + (PATIENCE if request == 0 else 0)
            while time.monotonic() < until:
                if stale():
                    return
                time.sleep(0.001)
            done.append(request)

        latest = LatestOnly(work)
        latest.ask(0)
        assert started.wait(PATIENCE)
        for request in range(1, 50):
            latest.ask(request)
        wait_until(lambda: not workers(), "the worker has gone")
        assert done[-1] == 49
        assert 0 not in done
        assert begun == sorted(begun)

    def test_never_two_at_a_time_and_no_request_is_lost(self):
        busy, results = threading.Lock(), []

        def work(request, stale):
            assert busy.acquire(blocking=False)
            results.append(request)
            busy.release()

        latest = LatestOnly(work)
        for request in range(300):
            latest.ask(request)
            if request % 50 == 0:
                wait_until(lambda: not workers(), "the worker has gone")
                assert results[-1] == request
        wait_until(lambda: not workers(), "the worker has gone")
        assert results[-1] == 299


class TestControls:
    def parts(self, controls):
        picture, line, *inputs = controls.children
        return picture, line, Wish(*inputs)

    def test_every_control_draws_what_it_says(self, pipe, explorer):
        picture, line, inputs = self.parts(explorer.controls())
        moves = {"digit": 7, "scale": 5.5, "steps": 4, "seed": 3, "sampler": "dpm++"}
        for name, value in moves.items():
            before = picture.value
            getattr(inputs, name).value = value
            wait_until(lambda: not workers(), "the move is drawn")
            assert picture.value != before, name
            wish = Wish(*(each.value for each in inputs))
            drawn = pipe.sample(
                10, guidance_scale=wish.scale, sampler=wish.sampler, steps=wish.steps, seed=wish.seed
            )  # the digit alone is the digit among all
            shown = decode(picture.value).astype(int)
            assert shown.shape == (28, 28)
            assert np.abs(shown - grid(drawn[7:8], padding=0).numpy()).max() <= 1, name
            assert f"digit 7 at guidance scale {wish.scale}" in line.value
            assert f'alt="digit 7 at guidance scale {wish.scale}' in picture.value

    def test_samplers_are_all_but_the_double(self, explorer):
        inputs = self.parts(explorer.controls())[2]
        assert {*inputs.sampler.options, "euler"} == set(SAMPLERS)
        for name in inputs.sampler.options:
            assert sample_unless(lambda: False, explorer.pipe, explorer.start._replace(sampler=name)).isfinite().all()

    def test_starts_with_all_digits_chosen(self, explorer):
        inputs = self.parts(explorer.controls())[2]
        assert inputs.digit.index == 0
        assert inputs.digit.label == "all 10"

    def test_inputs_have_their_names(self, explorer):
        inputs = self.parts(explorer.controls())[2]
        assert [each.description for each in inputs] == ["digit", "guidance scale", "steps", "seed", "sampler"]

    def test_sampling_gives_up_between_steps(self, explorer):
        asked = []

        def stale():
            asked.append(True)
            return len(asked) == 2

        assert sample_unless(stale, explorer.pipe, explorer.start._replace(steps=40)) is None
        assert len(asked) == 2

    def test_errors_are_one_line_in_the_control(self, pipe, capfd):
        class Broken:
            num_classes = 10
            recipe = pipe.recipe

            def states(self, *arguments, **options):
                raise RuntimeError("no <memory>\n  at all")

        explorer = dataclasses.replace(viz.guidance_explorer(pipe, steps=1), pipe=Broken())
        picture, line, inputs = self.parts(explorer.controls())
        before = picture.value
        inputs.scale.value = 9.0
        wait_until(lambda: not workers(), "the move is done")
        assert re.sub("<[^>]+>", "", line.value) == "Error: no &lt;memory&gt; at all"
        assert 'role="alert"' in line.value
        assert picture.value == before
        assert capfd.readouterr() == ("", "")

    def test_closing_and_running_again_leaves_no_thread(self, pipe, explorer):
        before = threading.active_count()
        for _ in range(5):
            controls = explorer.controls()
            inputs = self.parts(controls)[2]
            inputs.steps.value = 40
            inputs.seed.value = 5
            controls.close_all()
        wait_until(lambda: threading.active_count() <= before, "the threads have gone")


SET_UP = """\
import sys
sys.path.insert(0, {folder!r})
from test_guidance_explorer import STEPS, random_pipeline
from diffusion_book import viz
pipe = random_pipeline()
"""
SHOW = "viz.guidance_explorer(pipe, steps=STEPS)"
VIEW = "application/vnd.jupyter.widget-view+json"


def set_up() -> str:
    return SET_UP.format(folder=__file__.rpartition("/")[0])


def test_executed_notebook_stores_the_control_that_needs_no_kernel():
    cells = [nbformat.v4.new_code_cell(source) for source in (set_up(), SHOW)]
    notebook = nbclient.execute(nbformat.v4.new_notebook(cells=cells), kernel_name="python3", timeout=PATIENCE)
    (output,) = notebook.cells[1].outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert "<select" in output.data["text/html"]


class Page:
    """A page with one kernel behind it, as far as the control needs one: it links, shows and moves widgets."""

    def __init__(self, client):
        self.client, self.widgets, self.shown, self.pictures, self.errors = client, {}, [], [], []

    def read(self, until, what: str):
        """Read what the kernel says until something is true, and answer as a page does."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"still waiting until {what}"
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind in ("display_data", "update_display_data"):
                self.shown.append((kind, content["data"]))
            elif kind in ("error", "stream"):
                self.errors.append(content)
            elif kind == "comm_open":
                state = self.widgets[content["comm_id"]] = content["data"]["state"]
                if "Link" in state["_model_name"]:
                    (source, read), (target, write) = state["source"], state["target"]
                    value = self.widgets[source.removeprefix("IPY_MODEL_")][read]
                    self.move(target.removeprefix("IPY_MODEL_"), **{write: value})
            elif kind == "comm_msg" and content["data"]["method"] == "update":
                state = content["data"]["state"]
                self.widgets[content["comm_id"]].update(state)
                if "<img" in str(state.get("value")):
                    self.pictures.append(state["value"])

    def move(self, widget: str, **state):
        content = {"comm_id": widget, "data": {"method": "update", "state": state, "buffer_paths": []}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))

    def find(self, description: str) -> str:
        return next(key for key, state in self.widgets.items() if state.get("description") == description)

    def says(self, words: str) -> bool:
        return any(
            words in str(state.get("value")) for state in self.widgets.values() if "HTML" in state["_model_name"]
        )


@pytest.fixture(scope="module")
def page():
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", startup_timeout=PATIENCE)
    try:
        page = Page(client)
        client.execute(set_up())
        client.execute(SHOW)
        page.read(lambda: any(kind == "update_display_data" for kind, _ in page.shown), "the widget is shown")
        yield page
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_page_that_answers_is_shown_the_widget_in_place_of_the_pictures(page):
    (first, stored), (second, live) = page.shown
    assert (first, second) == ("display_data", "update_display_data")
    assert VIEW not in stored
    assert live[VIEW]["model_id"] in page.widgets
    assert live["text/html"] == stored["text/html"]  # for whoever reads a saved copy


def test_of_a_burst_of_moves_the_kernel_draws_only_the_latest_to_the_end(page, pipe):
    page.move(page.find("steps"), value=50)
    page.read(lambda: page.says("50 steps"), "the picture with more steps is there")
    page.pictures.clear()
    slider = page.find("guidance scale")
    scales = [9.5 - 0.5 * number for number in range(19)]
    for scale in scales:
        page.move(slider, value=scale)
    page.read(lambda: page.says("scale 0.5, 50 steps of ddim, seed 0: 50 evaluations"), "the last move is drawn")
    assert len(page.pictures) < len(scales) / 2
    drawn = grid(pipe.sample(10, guidance_scale=0.5, steps=50), COLUMNS, padding=0)
    assert np.abs(decode(page.pictures[-1]).astype(int) - drawn.numpy()).max() <= 1
    assert page.errors == []


def test_kernel_answers_while_it_draws(page):
    page.move(page.find("sampler"), value="heun")
    page.move(page.find("seed"), value=1)
    asked = page.client.execute("import threading; print(threading.active_count())")
    reply = page.client.get_shell_msg(timeout=PATIENCE)
    while reply["parent_header"].get("msg_id") != asked:
        reply = page.client.get_shell_msg(timeout=PATIENCE)
    assert reply["content"]["status"] == "ok"
    assert not page.says("seed 1:")  # none of what was read so far
    page.read(lambda: page.says("seed 1:"), "the picture is there")
