"""The models inside the page: the second implementation agrees with the first, and its figures keep their promises."""

import base64
import json
import math
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import controls
import firefox
import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageChops, ImageStat
from tiny import SMALL_VAE, random_autoencoder, wake

import diffusion_book
from diffusion_book import editing, samplers, schedules, targets
from diffusion_book.data import pad
from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.evaluation.features import logits
from diffusion_book.guidance import guided
from diffusion_book.models import sampling, weights
from diffusion_book.models.pipelines import build_network
from diffusion_book.models.recipes import (
    RECIPES,
    ConditionConfig,
    DiffusionConfig,
    Recipe,
    TrainingConfig,
)
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.samplers import SAMPLERS, randn, sample, sample_generators, time_grid
from diffusion_book.schedules import SCHEDULES
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS
from diffusion_book.viz.in_page import (
    drawing_board,
    drawing_figure,
    live_after,
    live_beside,
    live_figure,
    live_maps,
    megabytes,
    paper,
)
from diffusion_book.viz.scrubber import scrubber

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import live
import pictures

MODELS = [name for name in diffusion_book.list_models() if RECIPES[name].diffusion]
AGREE = 1e-4
PHONE = 390  # pixels


# The second implementation beside the first

GLUE = """
const models = {};
function liveWeights(model) {
  models[model.name] = {recipe: model.recipe, weights: readWeights(model), vae: models[model.vae]};
}
const floats = array => Float32Array.from(array), go = async () => {};
"""


class Engine:
    """The scripts without a worker, in a page of their own."""

    def __init__(self, page, kernels: list[str]):
        self.page = page
        page.goto("about:blank")
        page.add_script_tag(content=live.engine() + GLUE)
        page.evaluate("kernels => begin(kernels)", kernels)

    def load(self, script: str) -> None:
        self.page.add_script_tag(content=script)

    def run(self, code: str, **values):
        """The value of an expression in which these names stand for tensors, lists, numbers or words."""
        plain = {key: value.flatten().tolist() if torch.is_tensor(value) else value for key, value in values.items()}
        return self.page.evaluate(f"async ({{{', '.join(plain)}}}) => await ({code})", plain)

    def floats(self, code: str, **values) -> torch.Tensor:
        return torch.tensor(self.run(f"Promise.resolve({code}).then(found => Array.from(found))", **values))


@pytest.fixture
def engine(open_page) -> Engine:
    return Engine(open_page(), live.kernels())


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference between two tensors of so many numbers."""
    assert found.numel() == wanted.numel()
    return (found - wanted.flatten()).abs().max().item()


def load(name: str):
    return diffusion_book.load(name, device="cpu", precision="fp32")


def network_agrees(engine: Engine, name: str, network, recipe: Recipe, seed: int = 0) -> None:
    """At three times, and for the classes that there are, the network's output is the same in both."""
    config = recipe.network
    x = torch.randn(3, config.in_channels, config.image_size, config.image_size, generator=torch.manual_seed(seed))
    t, labels = torch.tensor([0.003, 0.4567, 1.0]), torch.tensor([3, -1, 9])
    with torch.no_grad():
        wanted = network(x, t, labels=labels) if recipe.condition else network(x, t)
    told = labels.tolist() if recipe.condition else None
    found = engine.floats("unet(models[name], floats(x), t, labels)", name=name, x=x, t=t, labels=told)
    assert wanted.abs().max() > 0.1
    assert far(found, wanted) < AGREE


@pytest.mark.parametrize("name", MODELS)
def test_network_of_a_shipped_model_agrees(engine, name):
    engine.load("const vae = 0;" + live.shipped_script(name))
    pipe = load(name)
    network_agrees(engine, name, pipe.network, pipe.recipe)


# What no shipped model has: other depths, widths, patches, places of attention, numbers of tokens, sizes that are odd.
CONFIGS = {
    "three levels": UNetConfig(24, (1, 3, 2), 1, (0, 2), 2, image_size=16),
    "no attention, no patches": UNetConfig(16, (1, 2), 2, (), 1, image_size=12),
    "large patches": UNetConfig(40, (1,), 3, (0,), 4, image_size=20),
    "odd channels": UNetConfig(8, (1, 7), 1, (1,), 1, in_channels=3, image_size=6, concat_channels=2),
    "odd heads": UNetConfig(24, (1, 3), 1, (1,), 1, in_channels=2, image_size=4, context_dim=10),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_network_of_any_recipe_agrees(engine, config):
    condition = ConditionConfig(num_tokens=3) if config.concat_channels or config.context_dim else None
    recipe = Recipe("any", TrainingConfig(), config, DiffusionConfig(), condition)
    torch.manual_seed(1)
    network = wake(build_network(recipe))
    tensors = {key: value.half().float() for key, value in network.state_dict().items()}
    network.load_state_dict(tensors)
    engine.load(live.weights_script("any", recipe, tensors))
    network_agrees(engine, "any", network, recipe)


@pytest.mark.parametrize("name", ["vae", "vae-2d", "small"])
def test_encoder_and_decoder_agree(engine, name):
    if name == "small":
        autoencoder = random_autoencoder(VAEConfig(**{**vars(SMALL_VAE), "layers_per_block": 2}))
        tensors = {key: value.half().float() for key, value in autoencoder.network.state_dict().items()}
        autoencoder.network.load_state_dict(tensors)
        engine.load(live.weights_script(name, autoencoder.recipe, tensors))
    else:
        autoencoder = load(name)
        engine.load(live.shipped_script(name))
    random = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 32, 32, generator=random) * 2 - 1
    latents = torch.randn(3, *autoencoder.latent_shape, generator=random)
    assert (
        far(engine.floats("encode(models[name], floats(x))", name=name, x=images), autoencoder.encode(images)) < AGREE
    )
    assert (
        far(engine.floats("decode(models[name], floats(z))", name=name, z=latents), autoencoder.decode(latents)) < AGREE
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_maps_of_attention_agree(engine, scale):
    """Of every layer, at the first step, on the way, and at the last one."""
    name, count, steps = "ldm-cross-attention", 3, 4
    for model in ("vae", name):
        engine.load(live.shipped_script(model))
    watched = sampling.watch(load(name), [3, 8, 0], scale, steps=steps, seed=5)
    code = """(async () => {
      const wish = {task: "watch", count, labels: [3, 8, 0], scale, sampler: "ddim", steps, eta: 0, seed: 5, until};
      for await (const state of states(models[name], wish, go)) var last = state;
      return [[last.t], Array.from(last.x), ...Object.values(last.maps).map(map => Array.from(map))];
    })()"""
    for until, step in ((1, 0), (0.6, 2), (0, steps - 1)):
        t, x, *maps = engine.run(code, name=name, count=count, scale=scale, steps=steps, until=until)
        assert t == [watched.times[step]]
        shown = load(name).to_images(torch.tensor(x).reshape(count, *load(name).shape))
        assert far(shown.flatten(), watched.pictures[step]) < 1 / 127.5
        assert len(maps) == len(watched.maps) > 3
        for found, wanted in zip(maps, watched.maps.values(), strict=True):
            assert far(torch.tensor(found), wanted[step]) < AGREE


def test_classifier_agrees(engine):
    engine.load("const vae = 0;" + live.classifier_script())
    real = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.cat([real, INK[None, None] * 2 - 1, load("rf-one-step").sample(4)])
    wanted = logits(images, "classifier").softmax(dim=1)
    found = engine.floats("classify(models.classifier, floats(x)).flat()", x=images)
    assert far(found, wanted) < AGREE
    assert wanted.max() > 0.9


def test_every_kernel_gives_the_same(open_page):
    """With the fused instruction, without it, and without WebAssembly, where a larger network outgrows the memory."""
    pipe = load("ddpm")
    x, t = pipe.noise(2, 5), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        wanted = pipe.network(x, t)
    for binaries in (live.kernels()[:1], live.kernels()[1:], []):
        engine = Engine(open_page(), binaries)
        engine.load(live.shipped_script("ddpm"))
        assert far(engine.floats("unet(models.ddpm, floats(x), t)", x=x, t=t), wanted) < AGREE
        assert engine.run("kernels.product.toString().includes('native')") == bool(binaries)


def test_kernels_assembled_twice_are_the_same_to_the_byte():
    first, second = live.kernels(), live.kernels()
    assert first == second
    fused, apart = map(base64.b64decode, first)
    assert fused[:4] == apart[:4] == b"\0asm"
    # f32x4.relaxed_madd is the instruction 0x105 behind the prefix 0xfd, in LEB128.
    assert fused.count(b"\xfd\x85\x02") == 16
    assert apart.count(b"\xfd\x85\x02") == 0


@pytest.mark.parametrize("size", [1, 2, 5, 15, 16, 17, 31, 32, 100, 1024])
def test_noise_is_pytorchs(engine, size):
    """Drawn three times in a row from four generators: few numbers come one by one, and an odd one is kept."""
    generators = sample_generators(7, range(2, 6))
    wanted = torch.stack([randn((4, size), generators) for _ in range(3)])
    code = "(g => [0, 1, 2].map(() => Array.from(randn(g, size))).flat())(sampleGenerators(7, 4, 2))"
    assert far(engine.floats(code, size=size), wanted) < 1e-5


def test_seeds_are_numpys(engine):
    seeds = [0, 1, 7, 9999, 2**31 - 1, 2**32 - 1, 2**32, 2**40 + 3, 2**53 - 1]
    pairs = [(seed, index) for seed in seeds for index in (0, 1, 10, 2**33)]
    wanted = [int(np.random.SeedSequence(pair).generate_state(1, np.uint64)[0]) & 0xFFFFFFFF for pair in pairs]
    assert engine.run("pairs.map(([seed, index]) => seedOf(seed, index))", pairs=pairs) == wanted


def test_times_are_the_librarys(engine):
    for steps in (*range(1, 65), 96, 125, 333, 400, 625, 800, 999, 1000):
        assert engine.run("timeGrid(steps)", steps=steps) == time_grid(steps).tolist(), steps
    assert engine.run("timeGrid(7, 50)") == time_grid(7, 50).tolist()


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_agrees(engine, name):
    t = torch.linspace(0, 1, 301, dtype=torch.float64)
    wanted = torch.stack(SCHEDULES[name](t), dim=1)
    assert far(engine.floats("t.map(t => SCHEDULES[name](t)).flat()", t=t, name=name).double(), wanted) < 1e-6


# A denoiser that anybody can compute: pictures of one normal distribution, whose mean and size the label sets.
GAUSSIAN = """
const gaussian = schedule => async (x, t, labels) => {
  const [alpha, sigma] = SCHEDULES[schedule](t), size = x.length / labels.length;
  const x0 = x.map((value, i) => {
    const label = labels[Math.floor(i / size)], mean = label / 4, variance = label < 0 ? 1 : 0.3;
    return mean + alpha * variance * (value - alpha * mean) / (alpha ** 2 * variance + sigma ** 2);
  });
  return {x0, eps: mix(1 / sigma, x, -alpha / sigma, x0)};
};
async function last(name, sampler, w, steps, eta, labels) {
  const schedule = SCHEDULES[name], generators = sampleGenerators(3, labels.length), x = randn(generators, 20);
  const denoiser = clipped(guided(gaussian(name), w), schedule);
  for await (const state of sample(denoiser, x, timeGrid(steps), sampler, {schedule, generators, eta, labels}))
    var found = state.x;
  return found;
}
"""


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["cosine", "rectified"])
def test_sampler_agrees(engine, name, sampler):
    """With guidance, clipping and fresh noise; on a denoiser in closed form, so that nothing but the sampler tells."""
    schedule = SCHEDULES[name]

    def gaussian(x, t, labels):
        alpha, sigma = (value.float()[:, None] for value in schedule(t.expand(len(x)).double()))
        mean, variance = labels[:, None] / 4, torch.where(labels < 0, 1.0, 0.3)[:, None]
        x0 = mean + alpha * variance * (x - alpha * mean) / (alpha**2 * variance + sigma**2)
        return targets.Prediction(x0, (x - alpha * x0) / sigma)

    engine.load(GAUSSIAN)
    labels = torch.tensor([-1, 0, 2, 3])
    for w, steps, eta in ((1.0, 5, 0.0), (0.0, 12, 0.5), (2.5, 30, 1.0)):
        generators = sample_generators(3, range(4))
        x = randn((4, 20), generators)
        denoiser = clipped(guided(gaussian, w), schedule)
        states = sample(
            denoiser,
            x,
            time_grid(steps),
            SAMPLERS[sampler],
            schedule=schedule,
            generator=generators,
            eta=eta,
            labels=labels,
        )
        *_, state = states
        found = engine.floats(
            "last(name, sampler, w, steps, eta, labels)",
            name=name, sampler=sampler, w=w, steps=steps, eta=eta, labels=labels.tolist(),
        )  # fmt: skip
        assert far(found, state.x) < AGREE, (w, steps, eta)


@pytest.mark.parametrize("target", TARGETS)
def test_target_agrees(engine, target):
    """The noise and the picture that an output stands for."""
    x, output = torch.randn(2, 3, 20, generator=torch.manual_seed(0)), torch.randn(2, 3, 20)[0]
    for t in (0.2, 0.7):
        wanted = Denoiser(lambda *_: output, schedules.cosine, TARGETS[target])(
            x[0], torch.tensor(t, dtype=torch.float64)
        )
        code = "denoiserOf(async () => floats(y), {schedule: 'cosine', target})(floats(x), t).then(p => [...p.x0, ...p.eps])"
        found = engine.floats(code, y=output, x=x[0], t=t, target=target)
        assert far(found, torch.cat([wanted.x0.flatten(), wanted.eps.flatten()])) < AGREE


# A drawing, and what is made of it

INK = torch.zeros(28, 28)
INK[5:23, 12:15] = 1.0
INK[12:15, 7:21] = 0.7  # a cross
HOLES = torch.zeros(28, 28)
HOLES[:, 16:] = 1.0


def made_of_a_drawing(pipe, task, count, labels, scale, t, steps, sampler, seed) -> torch.Tensor:
    """What the engine should make of the cross: the library's functions, put together."""
    x0 = pad(INK[None, None] * 2 - 1)
    if pipe.autoencoder:
        x0 = pipe.autoencoder.encode(x0)
    x0 = x0.expand(count, *x0.shape[1:])
    step, times, generators = SAMPLERS[sampler], time_grid(steps), sample_generators(seed, range(count))
    denoiser, told = pipe.denoiser, {}
    if labels:
        denoiser, told = pipe.guided(scale), {"labels": torch.tensor(labels)}
    rest = {"schedule": pipe.schedule, "generator": generators, **told}
    if task == "sdedit":
        states = editing.sdedit(denoiser, x0, t, times, step, **rest)
    if task == "inpaint":
        known = torch.nn.functional.pad(1 - HOLES, (2, 2, 2, 2), value=1.0)
        states = editing.inpaint(denoiser, x0, known, times, step, **rest)
    if task == "change":
        way, was = editing.times_from(t, times), torch.full((count,), 3)
        *_, there = editing.invert(pipe.guided(1.0), x0, way, step, schedule=pipe.schedule, labels=was)
        states = sample(denoiser, there.x, way, step, **rest)
    if task == "invert":
        return inverted(pipe, x0[:1], times, generators[:1])
    *_, state = states
    return pipe.to_images(state.x)


def inverted(pipe, x0, times, generators) -> torch.Tensor:
    """The noise of a picture, a third as strong, and what comes back from it: without clipping, from t = 0.01 on."""
    first = torch.tensor([0.01], dtype=times.dtype)
    raw = Denoiser(pipe.network, pipe.schedule, TARGETS[pipe.recipe.diffusion.target])
    way = torch.cat([times[times > first], first])
    begin = schedules.add_noise(pipe.schedule, x0, randn(x0.shape, generators), first[0])
    *_, there = editing.invert(raw, begin, way, samplers.euler, schedule=pipe.schedule)
    down = torch.cat([way, torch.zeros_like(first)])
    *_, back = sample(raw, there.x, down, samplers.euler, schedule=pipe.schedule, generator=generators)
    return pipe.to_images(torch.cat([there.x / 3, back.x]))


@pytest.mark.parametrize(
    ("name", "task", "sampler"),
    [
        ("ddpm", "invert", "euler"),
        ("ldm-concat", "sdedit", "ddim"),
        ("ddpm", "sdedit", "ddpm"),
        ("rf", "inpaint", "ddpm"),
        ("ldm-concat", "change", "heun"),
        ("latent-rf-class", "change", "euler"),
    ],
)
def test_what_is_made_of_a_drawing_agrees(engine, name, task, sampler):
    pipe = load(name)
    if pipe.recipe.is_latent:
        engine.load(live.shipped_script("vae"))
    engine.load(live.shipped_script(name))
    asked = {"task": task, "count": 2, "labels": [8, 1] if pipe.num_classes else None, "scale": 2.0, "t": 0.7}
    asked.update(steps=6, sampler=sampler, seed=4)
    code = """(async () => {
      const wish = {...asked, eta: 0, from: 3, ink: floats(ink), holes: floats(holes)};
      for await (const state of states(models[name], wish, go)) var x = state.x;
      return toImages(models[name], x);
    })()"""
    found = engine.floats(code, name=name, asked=asked, ink=INK, holes=HOLES)
    assert far(found, made_of_a_drawing(pipe, **asked)) < 1 / 127.5, "one grey level"


def test_weights_lose_nothing_but_digits():
    name = "rf-one-step"
    model = json.loads(re.fullmatch(r"liveWeights\((.*)\);\n", live.shipped_script(name))[1])
    numbers = np.frombuffer(base64.b64decode(model["data"]), np.float16).astype(np.float32)
    tensors = weights.read_weights(name)
    assert len(numbers) == sum(value.numel() for value in tensors.values())
    for key, value in tensors.items():
        begin, shape = model["tensors"][key]
        np.testing.assert_array_equal(numbers[begin : begin + value.numel()].reshape(shape), value.numpy())

    first = next(iter(tensors))
    for bad in (1e5, math.nan):
        broken = {**tensors, first: torch.full_like(tensors[first], bad)}
        with pytest.raises(ValueError, match=rf"half precision cannot hold {re.escape(first)} of 'rf-one-step'"):
            live.weights_script(name, RECIPES[name], broken)


def test_network_that_does_not_fit_is_refused():
    recipe = Recipe("odd", TrainingConfig(), UNetConfig(base_channels=12), DiffusionConfig())
    with pytest.raises(ValueError, match="a level of 'odd' has 12 channels: in a page it takes a multiple of 8"):
        live.weights_script("odd", recipe, {})


def test_memory_stays_as_it_is(engine):
    """Ten one-step pictures take room while they are drawn, and leave nothing."""
    engine.load(live.shipped_script("rf-one-step"))
    session = engine.page.context.new_cdp_session(engine.page)

    def heap() -> float:
        session.send("HeapProfiler.collectGarbage")
        return session.send("Runtime.getHeapUsage")["usedSize"] / 1e6

    code = """(async () => {
      for (let seed = 0; seed < draws; seed++)
        for await (const state of states(models['rf-one-step'],
                                         {task: 'sample', count: 10, sampler: 'euler', steps: 1, eta: 0, seed}, go))
          toImages(models['rf-one-step'], state.x);
      return [free, memory.buffer.byteLength];
    })()"""
    before = engine.run(code, draws=2), heap()
    after = engine.run(code, draws=20), heap()
    assert after[0] == before[0]
    assert after[1] < before[1] + 0.5, "megabytes of JavaScript's own"


# Figures in a page

SHOWN = ["ldm-concat", "ldm-cross-attention", "rf-one-step"]
BESIDE = ["ddpm", "rf-one-step"]
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Live</title><link rel="icon" href="data:,"><link rel="stylesheet" href="scripts/live.css">
<script defer src="scripts/paper.js"></script><script defer src="scripts/maps.js"></script>
<script defer src="scripts/page.js"></script>
<body style="margin: 8px">{figures}</body></html>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    live.write_scripts(folder / "scripts", [*SHOWN, *BESIDE])
    figures = "\n".join(live_figure(name, live.still(name)).text for name in SHOWN)
    (folder / "page.html").write_text(PAGE.format(figures=figures), encoding="utf-8")
    return folder


class Figure:
    """A live figure, as one who tests it from outside sees it."""

    def __init__(self, page, model: str):
        self.page, self.model = page, model
        self.part = page.locator(f"figure.live[data-model={model}]")

    def press(self) -> dict:
        self.part.locator("button.live-start").click()
        return self.drawn()

    def drawn(self) -> dict:
        """Wait for a finished picture; what was asked."""
        self.page.wait_for_function("figure => figure.dataset.drawn", arg=self.part.element_handle())
        assert int(self.part.get_attribute("data-ms")) > 0
        return json.loads(self.part.get_attribute("data-drawn"))

    def set(self, **values) -> dict:
        self.part.evaluate(
            """(figure, values) => {
              for (const [name, value] of Object.entries(values)) {
                const input = figure.querySelector(`[name=${name}]`);
                input.value = value;
                input.dispatchEvent(new Event("input", {bubbles: true}));
              }
            }""",
            values,
        )
        return self.drawn()

    def pixels(self) -> torch.Tensor:
        grey = """canvas => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]
                  .filter((_, i) => i % 4 === 0)"""
        return torch.tensor(self.part.locator("canvas").evaluate(grey)).reshape(28, 280)

    def wanted(self, pipe, **asked) -> torch.Tensor:
        images = pipe.sample(10, **asked)[:, 0]  # (10, 28, 28)
        return (images.permute(1, 0, 2).reshape(28, 280).clamp(-1, 1) + 1).mul(127.5).round()


WISHES = {
    "ldm-concat": [
        {"scale": 3, "steps": 10, "seed": 0, "sampler": "ddim"},
        {"scale": 0, "steps": 4, "seed": 41, "sampler": "heun"},
        {"scale": 6.5, "steps": 25, "seed": 9, "sampler": "ddpm", "label": "7"},
    ],
    "ldm-cross-attention": [
        {"scale": 3, "steps": 10, "seed": 0, "sampler": "ddim"},
        {"scale": 1, "steps": 15, "seed": 2, "sampler": "dpm++", "label": "2"},
        {"scale": 2, "steps": 5, "seed": 3, "sampler": "midpoint", "label": ""},
    ],
    "rf-one-step": [
        {"steps": 1, "seed": 0, "sampler": "euler"},
        {"steps": 1, "seed": 9999, "sampler": "ddim"},
        {"steps": 2, "seed": 5, "sampler": "heun"},
    ],
}


def test_figure_draws_pytorchs_pixels_and_loads_nothing_before_the_press(folder, open_page):
    page = open_page()
    page.goto((folder / "page.html").as_uri())
    page.wait_for_timeout(300)
    size = sum(Path(unquote(urlsplit(address).path)).stat().st_size for address in page.asked)
    assert size < (folder / "page.html").stat().st_size + 50_000
    assert [urlsplit(address).path.rpartition("/")[2] for address in page.asked] == [
        "page.html",
        "live.css",
        "paper.js",
        "maps.js",
        "page.js",
    ]

    for model, wishes in WISHES.items():
        figure, pipe = Figure(page, model), load(model)
        assert f"loads {megabytes(model)} MB" in figure.part.locator("button.live-start").inner_text()
        first = figure.press()
        assert first["model"] == model
        for wish in wishes:
            asked = figure.set(**wish)
            label = asked.get("label")
            assert {key: asked[key] for key in wish if key != "label"} == {
                key: wish[key] for key in wish if key != "label"
            }
            assert label == (int(wish["label"]) if wish.get("label") else None)
            words = {"guidance_scale": float(asked["scale"]), "labels": label} if pipe.num_classes else {}
            wanted = figure.wanted(pipe, steps=wish["steps"], seed=wish["seed"], sampler=wish["sampler"], **words)
            assert (figure.pixels() - wanted).abs().max() <= 1, (model, wish)
    assert not page.troubles
    inside = folder.as_uri()
    assert all(address.startswith((inside, "blob:")) for address in page.asked), page.asked
    loaded = [address for address in page.asked if address.endswith(".js")]
    assert len(loaded) == len(set(loaded)), "the autoencoder serves both latent models, and is loaded once"


@pytest.fixture
def served(folder):
    """The address of the same folder on a server of this machine."""
    with controls.serving(folder) as address:
        yield address


def test_figure_draws_from_a_server_too(served, open_page):
    page = open_page()
    page.goto(f"{served}/page.html")
    page.wait_for_timeout(300)
    parts = ["page.html", "live.css", "paper.js", "maps.js", "page.js"]
    assert [urlsplit(address).path.rpartition("/")[2] for address in page.asked] == parts
    figure = Figure(page, "ldm-concat")
    figure.press()
    figure.set(scale=2.5, steps=6, seed=3)
    wanted = figure.wanted(load("ldm-concat"), guidance_scale=2.5, steps=6, seed=3)
    assert (figure.pixels() - wanted).abs().max() <= 1
    assert not page.troubles
    assert all(address.startswith((served, f"blob:{served}")) for address in page.asked), page.asked


PRESS = """async (model, values) => {
  const figure = document.querySelector(`figure.live[data-model=${model}]`);
  const drawn = async () => {
    while (!figure.dataset.drawn) {
      if (/cannot|wrong/.test(figure.textContent)) throw new Error(figure.textContent);
      await new Promise(resolve => setTimeout(resolve, 50));
    }
  };
  const before = performance.getEntriesByType("resource").map(each => each.name);
  figure.querySelector("button.live-start").click();
  await drawn();
  for (const [name, value] of Object.entries(values)) {
    const input = figure.querySelector(`[name=${name}]`);
    input.value = value;
    input.dispatchEvent(new Event("input", {bubbles: true}));
  }
  await drawn();
  const {width, height} = figure.querySelector("canvas");
  const {data} = figure.querySelector("canvas").getContext("2d").getImageData(0, 0, width, height);
  const loaded = performance.getEntriesByType("resource").map(each => each.name);
  return {grey: [...data].filter((_, i) => i % 4 === 0), before, loaded, drawn: JSON.parse(figure.dataset.drawn)};
}"""


@pytest.mark.skipif(
    firefox.path() is None, reason="no Firefox: apt-get install firefox-esr, or name it in $BOOK_FIREFOX"
)
def test_firefox_draws_the_same_from_the_folder_and_from_a_server(folder, served, tmp_path):
    with firefox.started(tmp_path) as window:
        for address in (folder.as_uri(), served):
            window.goto(f"{address}/page.html")
            for model, asked in (
                ("rf-one-step", {"steps": 2, "seed": 5, "sampler": "heun"}),
                ("ldm-concat", {"steps": 5, "seed": 3, "sampler": "ddim", "scale": 2.5}),
            ):
                found = window.run(PRESS, model, asked)
                assert {key: found["drawn"][key] for key in asked} == asked
                scale = {"guidance_scale": asked.pop("scale")} if "scale" in asked else {}
                images = load(model).sample(10, **asked, **scale)[:, 0].permute(1, 0, 2).reshape(28, 280)
                wanted = (images.clamp(-1, 1) + 1).mul(127.5).round()
                assert (torch.tensor(found["grey"]).reshape(28, 280) - wanted).abs().max() <= 1, (address, model)
                assert not any(name.endswith(f"/{model}.js") for name in found["before"]), "nothing before the press"
                assert all(name.startswith(("file:", served, "blob:", "data:")) for name in found["loaded"])


@pytest.mark.parametrize("name", MODELS)
def test_picture_that_a_figure_begins_with_is_what_the_weights_draw(name):
    """Else `make pictures`. WebP costs 2 grey levels on average; the weights of another training differ by 7."""
    stored = Image.open(Path(pictures.__file__).parent / "live" / "stills" / f"{name}.webp").convert("L")
    difference = ImageChops.difference(stored, pictures.still(name).convert("L"))
    assert ImageStat.Stat(difference).mean[0] < 3.5


def test_first_picture_is_what_the_figure_began_with(folder, open_page):
    """The pictures that were drawn beforehand are those of the shipped weights: else `make pictures`."""
    page = open_page()
    page.goto((folder / "page.html").as_uri())
    figure = Figure(page, "ldm-concat")
    still = figure.part.locator("img.live-still")
    before = still.evaluate("""async image => {
      await image.decode();
      const context = new OffscreenCanvas(280, 28).getContext("2d");
      context.drawImage(image, 0, 0);
      return [...context.getImageData(0, 0, 280, 28).data].filter((_, i) => i % 4 === 0);
    }""")
    assert figure.part.locator("canvas").is_hidden()
    figure.press()
    assert still.is_hidden()
    difference = (torch.tensor(before).reshape(28, 280) - figure.pixels()).abs().float()
    assert difference.mean() < 5, "grey levels that WebP may cost"


def test_stored_control_plays_until_a_press_puts_a_live_one_in_its_place(folder, open_page):
    frames = torch.rand(4, 1, 28, 28, generator=torch.manual_seed(0)) * 2 - 1
    stored = scrubber(frames, label="Euler")
    text = live_after("rf-one-step", stored, steps=3, sampler="heun").text
    assert live_after("experiments/mine", stored) is stored, "a page has no weights of a model of the reader's own"
    (folder / "after.html").write_text(PAGE.format(figures=text), encoding="utf-8")
    page = open_page()
    page.goto((folder / "after.html").as_uri())
    figure = Figure(page, "rf-one-step")
    assert figure.part.locator("canvas").is_hidden()
    controls.move_slider(page.get_by_role("slider"))  # the only one that is there
    drawn = figure.press()
    assert (drawn["steps"], drawn["sampler"], drawn["seed"]) == (3, "heun", 0)
    assert figure.part.locator(".live-still").is_hidden()
    assert [slider.get_attribute("name") for slider in page.get_by_role("slider").all()] == ["steps", "seed"]
    wanted = figure.wanted(load("rf-one-step"), steps=3, sampler="heun", seed=0)
    assert (figure.pixels() - wanted).abs().max() <= 1
    assert not page.troubles


def test_control_of_time_stops_on_the_way(folder, open_page):
    stored = scrubber(torch.zeros(2, 1, 28, 28))
    text = live_after("rf-one-step", stored, steps=8, seed=2, until=0.5).text
    (folder / "until.html").write_text(PAGE.format(figures=text), encoding="utf-8")
    page = open_page()
    page.goto((folder / "until.html").as_uri())
    figure, pipe = Figure(page, "rf-one-step"), load("rf-one-step")
    figure.press()
    for until in (0.5, 1.0, 0.3, 0.0):
        figure.set(until=until)
        x = next(state.x for state in pipe.states(range(10), sampler="euler", steps=8, seed=2) if state.t <= until)
        wanted = (pipe.to_images(x)[:, 0].permute(1, 0, 2).reshape(28, 280).clamp(-1, 1) + 1).mul(127.5).round()
        assert (figure.pixels() - wanted).abs().max() <= 1, until
    assert not page.troubles


def open_figures(folder, open_page, text: str, **options):
    """A page with these figures alone."""
    (folder / "some.html").write_text(PAGE.format(figures=text), encoding="utf-8")
    page = open_page(**options)
    page.goto((folder / "some.html").as_uri())
    return page


COLOURS = ["#F2C14E", "#7B6BD6", "#3FB5A3", "#E0607E"]


def test_place_in_the_picture_shows_what_it_reads(folder, open_page):
    name, steps = "ldm-cross-attention", 5
    stored = scrubber(torch.zeros(2, 1, 28, 28))
    text = live_maps(name, stored, COLOURS, guidance_scale=1.0, steps=steps, until=0.5).text
    assert live_maps("experiments/mine", stored, COLOURS) is stored
    page = open_figures(folder, open_page, text)
    figure, canvas, table = Figure(page, name), page.locator("figure.live canvas"), page.get_by_role("table")
    assert table.is_hidden()
    assert figure.press()["until"] == 0.5
    assert page.get_by_role("combobox", name="sampler").count() == 0, "it watches ddim"
    pipe = load(name)

    def place(picture: int, row: int, column: int, scale: float, step: int, seed: int = 0) -> None:
        watched = sampling.watch(pipe, range(10), scale, steps=steps, seed=seed)
        shown = json.loads(figure.part.get_attribute("data-place"))
        assert (shown["picture"], shown["row"], shown["column"], shown["t"]) == (
            picture,
            row,
            column,
            watched.times[step],
        )
        assert list(shown["read"]) == list(watched.maps)
        for layer, read in shown["read"].items():
            wanted = watched.maps[layer][step, picture]  # (positions, tokens)
            side = math.isqrt(len(wanted))
            wanted = wanted[row * side // 4 * side + column * side // 4]
            assert far(torch.tensor(read), wanted) < AGREE
            line = table.get_by_role("row", name=layer).inner_text().split()
            assert line == [layer, *(f"{value:.2f}" for value in read)]
        images = watched.pictures[step][:, 0].permute(1, 0, 2).reshape(28, 280)
        assert (figure.pixels() - (images.clamp(-1, 1) + 1).mul(127.5).round()).abs().max() <= 1

    place(3, 1, 1, 1.0, 3)  # at t = 0.4, the first one below 0.5
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] * (7 * 28 + 27) / 280, box["y"] + box["height"] * 3 / 28)
    place(7, 0, 3, 1.0, 3)
    assert "What row 1, column 4 of the 8th picture reads at t = 0.40" in table.inner_text()
    mark = page.locator(".live-place").bounding_box()
    assert abs(mark["x"] + mark["width"] - box["x"] - box["width"] * 0.8) < 1.5, "a frame around the place"
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    place(8, 3, 0, 1.0, 3)
    figure.set(scale=3, until=0, seed=2)
    place(8, 3, 0, 3.0, 4, seed=2)
    assert (figure.pixels() - figure.wanted(pipe, guidance_scale=3.0, steps=steps, seed=2)).abs().max() <= 1
    assert "sampling.watch(load('ldm-cross-attention'), range(10), 3.0, steps=5, seed=2)" in figure.part.inner_text()
    assert not page.troubles


def test_models_beside_each_other_share_noise_and_controls(folder, open_page):
    stored = scrubber(torch.zeros(2, 1, 28, 28))
    text = live_beside(BESIDE, stored, steps=3).text
    assert live_beside(["ddpm", "experiments/mine"], stored) is stored
    page = open_figures(folder, open_page, text)
    ddpm, flow = figures = [Figure(page, name) for name in BESIDE]
    assert page.get_by_role("slider").count() == 1, "the stored one's"
    assert f"loads {megabytes(*BESIDE)} MB" in page.get_by_role("button").inner_text()
    flow.press()
    for wanted in ({"steps": 3, "seed": 0, "sampler": "ddim"}, {"steps": 2, "seed": 7, "sampler": "heun"}):
        flow.set(**wanted)
        for figure in figures:
            drawn = figure.drawn()
            assert {key: drawn[key] for key in wanted} == wanted
            assert (figure.pixels() - figure.wanted(load(figure.model), **wanted)).abs().max() <= 1
    assert "load('ddpm').sample(10, sampler='heun', steps=2, seed=7)" in ddpm.part.inner_text()
    assert page.locator(".live-still").is_hidden()
    assert not page.troubles


def test_classifier_says_what_it_takes_a_drawing_for(folder, open_page):
    page = open_figures(folder, open_page, drawing_board(("classifier", "classify"), ("vae", "reconstruct")).text)
    assert page.locator(".live-asleep").count() == 0
    sheet = page.locator(".live-paper")
    drawing = torch.tensor(sheet.evaluate("paper => Array.from(paper.drawing.ink)")).reshape(1, 1, 28, 28) * 2 - 1
    for model, seen in (("classifier", drawing), ("vae", load("vae").reconstruct(drawing))):
        figure = Figure(page, model)
        figure.press()
        page.wait_for_function("figure => figure.dataset.read", arg=figure.part.element_handle())
        found = torch.tensor(json.loads(figure.part.get_attribute("data-read")))
        wanted = logits(seen, "classifier").softmax(dim=1)
        assert far(found, wanted) < 0.02, "one grey level, here and there, moves it a little"
        chance, digit = wanted[0].max(dim=0)
        assert figure.part.get_by_role("listitem").inner_text().startswith(f"{digit}: {100 * chance:.0f} %")
    assert not page.troubles


def test_paper_takes_mouse_and_keys_and_what_is_made_of_it_follows(folder, open_page):
    figures = paper().text + drawing_figure("vae", "reconstruct").text
    (folder / "paper.html").write_text(PAGE.format(figures=figures), encoding="utf-8")
    page = open_page()
    page.goto((folder / "paper.html").as_uri())
    sheet, vae = page.locator(".live-paper"), load("vae")
    ink = "paper => [Array.from(paper.drawing.ink), Array.from(paper.drawing.holes)]"

    def reconstruction() -> torch.Tensor:
        drawn = torch.tensor(sheet.evaluate(ink)[0]).reshape(1, 1, 28, 28) * 2 - 1
        return (vae.reconstruct(drawn).clamp(-1, 1) + 1).mul(127.5).round().reshape(28, 28)

    def shown() -> torch.Tensor:
        page.wait_for_function("figure => figure.dataset.drawn", arg=figure.part.element_handle())
        grey = figure.part.locator("canvas").evaluate(
            "canvas => [...canvas.getContext('2d').getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0)"
        )
        return torch.tensor(grey).reshape(28, 28)

    figure = Figure(page, "vae")
    figure.press()
    first = shown()
    assert (first - reconstruction()).abs().max() <= 1
    sheet.get_by_role("button", name="Wipe all").click()
    assert not any(sheet.evaluate(ink)[0])

    box = sheet.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 3 / 4, steps=3)
    page.mouse.up()
    drawn = torch.tensor(sheet.evaluate(ink)[0]).reshape(28, 28)
    assert drawn[7:21, 13:15].min() > 0.9, "a line from top to bottom"
    assert drawn[:, :11].max() == 0
    assert (shown() - reconstruction()).abs().max() <= 1

    sheet.locator("canvas").focus()
    page.keyboard.press(" ")  # the pen stands in the middle: down
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    drawn = torch.tensor(sheet.evaluate(ink)[0]).reshape(28, 28)
    assert drawn[13, 14:19].min() > 0.9, "and a line to the right"
    sheet.locator("select").select_option("scissors")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert sum(sheet.evaluate(ink)[1]) > 20
    sheet.get_by_role("button", name="Mend").click()
    assert not any(sheet.evaluate(ink)[1])
    assert (shown() - reconstruction()).abs().max() <= 1
    assert not page.troubles


def test_a_finger_draws_moves_a_slider_and_chooses_a_place(folder, open_page):
    """By the touches that a screen reports, which the browser turns into what the page listens to."""
    stored = scrubber(torch.zeros(2, 1, 28, 28))
    maps = live_maps("ldm-cross-attention", stored, COLOURS, guidance_scale=1.0, steps=2).text
    text = paper().text + drawing_figure("vae", "reconstruct").text + maps + live_figure("rf-one-step").text
    page = open_figures(folder, open_page, text, width=PHONE, height=844, has_touch=True, is_mobile=True)
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": x, "y": y} for x, y in points]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": places})

    def swipe(part, *places: tuple[float, float]) -> None:
        """Move a finger from one place of a part to the next, in fractions of its width and height."""
        part.scroll_into_view_if_needed()
        box = part.bounding_box()
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
        touch("Start", points[0])
        for point in points[1:]:
            touch("Move", point)
        touch("End")
        page.wait_for_timeout(500)  # else the next tap would belong to this gesture

    sheet = page.locator(".live-paper")
    sheet.get_by_role("button", name="Wipe all").tap()
    scrolled = page.evaluate("scrollY")
    swipe(sheet.locator("canvas"), (0.5, 0.25), (0.5, 0.5), (0.5, 0.75))
    drawn = torch.tensor(sheet.evaluate("paper => Array.from(paper.drawing.ink)")).reshape(28, 28)
    assert drawn[8:20, 13:15].min() > 0.9, "a line from top to bottom"
    assert drawn[:, :11].max() == 0
    assert page.evaluate("scrollY") == scrolled, "the finger draws, and does not scroll"

    flow = Figure(page, "rf-one-step")
    flow.part.locator("button.live-start").tap()
    flow.drawn()
    swipe(flow.part.get_by_role("slider", name="seed"), (0.02, 0.5), (0.4, 0.5), (0.7, 0.5))
    seed = flow.drawn()["seed"]
    assert abs(seed - 7000) < 600, "the knob follows the finger"
    assert (flow.pixels() - flow.wanted(load("rf-one-step"), seed=seed)).abs().max() <= 1

    watched = Figure(page, "ldm-cross-attention")
    watched.part.locator("button.live-start").tap()
    watched.drawn()
    swipe(watched.part.locator("canvas"), (0.55, 0.5))
    assert json.loads(watched.part.get_attribute("data-place"))["picture"] == 5
    assert not page.troubles


def test_what_cannot_be_made_of_a_drawing_is_refused():
    for model, task, words in (
        ("ldm", "change", "'ldm' cannot change: it knows no classes"),
        ("ldm", "inpaint", "a latent has no place for each pixel"),
        ("ddpm", "reconstruct", "it is no autoencoder"),
        ("ddpm", "classify", "it is no classifier"),
        ("ldm-concat", "invert", "it is no diffusion model of pictures without classes"),
        ("ddpm", "dream", "dream"),
    ):
        with pytest.raises(BookError, match=words):
            drawing_figure(model, task)
    with pytest.raises(BookError, match="a 'vae' draws no pictures: choose a diffusion model"):
        live_figure("vae")
    stored = scrubber(torch.zeros(2, 1, 28, 28))
    with pytest.raises(BookError, match="'ldm' has no cross-attention to watch"):
        live_maps("ldm", stored, COLOURS)
    with pytest.raises(BookError, match="3 colours for the 4 tokens of 'ldm-cross-attention'"):
        live_maps("ldm-cross-attention", stored, COLOURS[:3])


def test_thirty_quick_moves_leave_one_finished_picture(folder, open_page):
    page = open_page()
    page.goto((folder / "page.html").as_uri())
    figure = Figure(page, "ldm-concat")
    figure.press()
    finished = figure.part.evaluate("""async figure => {
      let finished = 0;
      new MutationObserver(() => { if (figure.dataset.drawn) finished++; })
        .observe(figure, {attributeFilter: ["data-drawn"]});
      const input = figure.querySelector("[name=scale]");
      for (let move = 0; move < 30; move++) {
        input.value = move / 3;
        input.dispatchEvent(new Event("input", {bubbles: true}));
        await new Promise(resolve => setTimeout(resolve));
      }
      while (!figure.dataset.drawn) await new Promise(resolve => setTimeout(resolve, 20));
      await new Promise(resolve => setTimeout(resolve, 500));
      return finished;
    }""")
    assert finished == 1
    assert figure.drawn()["scale"] == 9.5
    assert (figure.pixels() - figure.wanted(load("ldm-concat"), guidance_scale=9.5, steps=10, seed=0)).abs().max() <= 1


def test_page_does_not_wait_for_the_worker(folder, browser, open_page):
    """No task of the page takes 50 ms of its thread's own time, while a model is loaded nor while a slider is dragged."""
    page = open_page()
    page.goto((folder / "page.html").as_uri())
    controls.watch_tasks(browser, page)
    figure = Figure(page, "ldm-concat")
    figure.press()
    figure.set(steps=20)
    tasks = controls.tasks_seen(browser)
    assert tasks
    assert max(tasks) < 50, f"milliseconds: {sorted(tasks)[-5:]}"


def test_keys_and_names(folder, open_page):
    page = open_page()
    page.goto((folder / "page.html").as_uri())
    figure = Figure(page, "ldm-cross-attention")
    button = figure.part.locator("button.live-start")
    button.focus()
    page.keyboard.press("Enter")
    first = figure.drawn()
    assert page.evaluate("document.activeElement.name") == "label", "the focus goes on to the first control"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert figure.drawn()["scale"] == first["scale"] + 0.5
    snapshot = figure.part.aria_snapshot()
    for name in (
        'combobox "digit"',
        'slider "guidance scale"',
        'slider "steps"',
        'slider "seed"',
        'combobox "sampler"',
    ):
        assert name in snapshot
    assert 'img "10 digits, guidance scale 3.5, 10 steps of ddim, seed 0"' in snapshot
    assert re.search(r"status: .*Drawn here in \d+\.\d\d s:", snapshot)
    assert "load('ldm-cross-attention').sample(10, sampler='ddim', steps=10, guidance_scale=3.5, seed=0)" in snapshot


def test_figure_fits_a_phone(folder, open_page):
    page = open_page(width=PHONE, height=844)
    page.goto((folder / "page.html").as_uri())
    figure = Figure(page, "rf-one-step")
    figure.press()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    for part in figure.part.locator("canvas, label:visible").all():
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE


def test_page_without_webassembly_draws_the_same(folder, open_page):
    page = open_page()
    page.add_init_script("""const Whole = Blob;
      window.Blob = function (parts, options) { return new Whole(["delete self.WebAssembly;", ...parts], options); };""")
    page.goto((folder / "page.html").as_uri())
    figure = Figure(page, "rf-one-step")
    asked = figure.press()
    wanted = figure.wanted(load("rf-one-step"), steps=1, seed=0, sampler=asked["sampler"])
    assert (figure.pixels() - wanted).abs().max() <= 1
    assert not page.troubles


@pytest.mark.parametrize("missing", ["Worker", "scripts"])
def test_browser_that_cannot_run_it_is_told_so_in_one_sentence(folder, open_page, missing):
    page = open_page()
    if missing == "Worker":
        page.add_init_script("delete window.Worker;")
    else:
        page.route("**/rf-one-step.js", lambda route: route.abort())
    page.goto((folder / "page.html").as_uri())
    figure = Figure(page, "rf-one-step")
    figure.part.locator("button.live-start").click()
    status = figure.part.get_by_role("status")
    page.wait_for_function("status => /cannot/.test(status.textContent)", arg=status.element_handle())
    assert figure.part.locator("img.live-still").is_visible(), "what was drawn beforehand stays"
    assert figure.part.get_attribute("data-drawn") is None
    assert status.inner_text().startswith("This browser cannot run the model here")


@pytest.mark.slow
def test_five_hundred_draws_leave_no_growing_memory(folder, open_page):
    """Neither the page's heap nor the worker's, nor the memory in which the worker computes."""
    page = open_page()
    page.goto((folder / "page.html").as_uri())
    session = page.context.new_cdp_session(page)
    figure = Figure(page, "rf-one-step")
    figure.press()
    (worker,) = page.workers

    def megabytes() -> list[float]:
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        renderers = [
            process.memory_info().rss
            for process in psutil.Process().children(recursive=True)
            if "--type=renderer" in process.cmdline()
        ]
        return [size / 1e6 for size in (heap, worker.evaluate("memory.buffer.byteLength"), max(renderers))]

    for seed in range(1, 101):  # the worker's garbage is collected when there is enough of it
        figure.set(seed=seed)
    before = megabytes()
    for seed in range(101, 601):
        figure.set(seed=seed)
    after = megabytes()
    assert after[0] < before[0] + 1, "the page's heap"
    assert after[1] == before[1], "the memory that the worker computes in"
    assert after[2] < before[2] + 25, "all that the page and its worker hold"


def test_playground_shows_every_diffusion_model():
    text = (Path(live.FOLDER).parent / "playground.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"```{live} (\S+)\n", text)) == MODELS, "and `make pictures` draws what it begins with"
    assert sorted(path.stem for path in live.STILLS.iterdir()) == MODELS


def test_flow_of_one_step_asks_for_one(folder):
    text = live_figure("rf-one-step").text
    assert "steps=1" in text
    assert 'name="scale"' not in text, "a model without classes has no guidance"
    assert samplers.evaluations("euler", 1) == 1
