"""Diagrams and numbered figures: what they show is so, and it can be read, also on a phone and in the dark."""

import functools
import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from urllib.parse import unquote

import pytest
import torch
from matplotlib.font_manager import findfont, get_font
from test_ground import MODULES, imports

from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.schedules import cosine, rectified
from diffusion_book.viz import diagrams
from diffusion_book.viz.diagrams import book, chain, flow, kit, learning, network
from diffusion_book.viz.figures import show
from diffusion_book.viz.grids import show_grid, show_rows
from diffusion_book.viz.scrubber import scrubber
from diffusion_book.viz.style import new_figure

PHONE, MARGIN = 390, 24  # pixels: of a page, and beside its text
SMALLEST = 11  # pixels of letters on it

LATENT_UNET = UNetConfig(
    base_channels=48, channel_multipliers=(1, 2), layers_per_block=1, attention_levels=(0,), patch_size=1,
    in_channels=2, image_size=4, context_dim=128,
)  # fmt: skip
DEEP_UNET = UNetConfig(base_channels=16, channel_multipliers=(1, 2, 4, 8), layers_per_block=1, attention_levels=(3,))
ALL = {name: getattr(diagrams, name) for name in diagrams.__all__ if name != "Diagram"} | {
    "unet of latents": lambda: diagrams.unet(LATENT_UNET),
    "deep unet": lambda: diagrams.unet(DEEP_UNET),
    "residual block without 1 x 1": lambda: diagrams.residual_block(64, 64),
    "cross-attention block": lambda: diagrams.attention_block(tokens=4),
    "cross-attention of two tokens": lambda: diagrams.cross_attention(tokens=2),
    "posterior far back": lambda: diagrams.posterior_product(t=0.7, s=0.5),
    "noise to data, given": lambda: diagrams.noise_to_data(torch.zeros(5, 28, 28)),
}
every_diagram = pytest.mark.parametrize("name", ALL)


@functools.cache
def draw(name: str) -> kit.Diagram:
    return ALL[name]()


def parse(diagram: kit.Diagram) -> ElementTree.Element:
    return ElementTree.fromstring(re.sub(r'\sxmlns="[^"]+"', "", diagram.svg))


def texts(root: ElementTree.Element) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Each line of words with its box (left, top, right, bottom), measured in DejaVu Sans, wider than most fonts."""
    found, font = [], get_font(findfont("DejaVu Sans"))
    for text in root.iter("text"):
        width, tallest = 0.0, 0.0
        for part in text.iter("tspan"):
            size = float(part.get("font-size"))
            font.set_size(size, 72)
            font.set_text(part.text or "", 0)
            width += font.get_width_height()[0] / 64
            tallest = max(tallest, size)
        x, base = float(text.get("x")), float(text.get("y"))
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor")]
        found.append(("".join(text.itertext()), (left, base - 0.75 * tallest, left + width, base + 0.22 * tallest)))
    return found


def overlap(first: tuple, second: tuple) -> bool:
    return min(first[2], second[2]) > max(first[0], second[0]) and min(first[3], second[3]) > max(first[1], second[1])


def test_there_are_as_many_as_the_book_needs():
    assert len(diagrams.__all__) - 1 >= 16


@every_diagram
def test_words_stay_on_the_canvas_and_apart(name):
    root = parse(draw(name))
    _, _, width, height = map(float, root.get("viewBox").split())
    lines = texts(root)
    assert len(lines) > 3
    for words, (left, top, right, bottom) in lines:
        assert words.strip(), "a text without words"
        assert left >= 0, words
        assert right <= width, words
        assert top >= 0, words
        assert bottom <= height, words
    for (words, box), (others, another) in combinations(lines, 2):
        assert not overlap(box, another), (words, others)


@every_diagram
def test_letters_can_be_read_on_a_phone(name):
    root = parse(draw(name))
    scale = (PHONE - 2 * MARGIN) / float(root.get("viewBox").split()[2])
    assert min(float(part.get("font-size")) for part in root.iter("tspan")) * scale >= SMALLEST


@every_diagram
def test_a_diagram_brings_nothing_that_a_page_could_trip_over(name):
    diagram = draw(name)
    root = parse(diagram)
    assert len(diagram.alt) > 80
    assert root.get("aria-label") == diagram.alt
    assert repr(diagram) == f"Diagram: {diagram.alt}"
    assert "$" not in diagram.svg
    assert not any(part.get("id") for part in root.iter()), "two diagrams on a page would share it"
    assert "http" not in diagram.svg.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert len(diagram.svg) < 30_000
    assert ALL[name]().svg == diagram.svg, "drawn again, it is the same"


def test_formulas_become_italics_and_subscripts():
    assert kit.runs("noise $x_{k-1}$") == [("noise ", None, 0), ("x", True, 0), ("k", True, -1), ("−1", False, -1)]
    assert kit.to_html("a < $σ_t^2$") == "a &lt; <i>σ</i><sub><i>t</i></sub><sup>2</sup>"


# What they show


@pytest.mark.parametrize("config", [UNetConfig(), LATENT_UNET, DEEP_UNET])
def test_the_unet_is_drawn_with_the_shapes_of_the_real_one(config):
    unet, shapes = UNet(config), {}
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    folded = []
    unet.conv_in.register_forward_pre_hook(lambda _, given: folded.append(tuple(given[0].shape[1:])))
    x = torch.zeros(1, config.in_channels, config.image_size, config.image_size)
    context = torch.zeros(1, 4, config.context_dim) if config.context_dim else None
    with torch.no_grad():
        out = unet(x, torch.ones(1), context=context)
    found = network.stages(config)
    assert found.picture == tuple(x.shape[1:]) == tuple(out.shape[1:])
    assert [found.folded] == folded
    assert found.embedding == (unet.time[0].in_features, shapes["time"][0])
    assert shapes["middle.1"] == found.levels[-1]
    for level, shape in enumerate(found.levels):
        for block in range(config.layers_per_block):
            assert shapes[f"down.{level}.{block}"] == shape
        for block in range(config.layers_per_block + 1):
            assert shapes[f"up.{len(found.levels) - 1 - level}.{block}"] == shape
    drawn = [words for words, _ in texts(parse(diagrams.unet(config)))]
    for shape in found.levels:
        assert drawn.count(" × ".join(map(str, shape))) >= 2
    assert sum("attention" in words for words in drawn) == 2 * len(config.attention_levels) + 1


def test_the_posterior_is_drawn_as_the_product_that_it_is():
    for t, s in ((0.5, 0.4), (0.9, 0.2)):
        curves = chain.gaussians(1.0, -0.6, t, s, cosine)
        precisions = {name: 1 / std**2 for name, (_, std) in curves.items()}
        assert precisions["posterior"] == pytest.approx(precisions["likelihood"] + precisions["prior"])
        weighted = sum(precisions[name] * curves[name][0] for name in ("likelihood", "prior"))
        assert curves["posterior"][0] == pytest.approx(weighted / precisions["posterior"])


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_denoisers_of_the_drawings_are_exact(t):
    """Against Bayes' rule, summed over the data."""
    time, x = torch.tensor(t, dtype=torch.float64), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def mean(data, density, alpha, sigma):
        weights = torch.softmax(density.log() - 0.5 * ((x - alpha * data) / sigma).square(), dim=1)  # (9, M)
        return (weights * data).sum(dim=1, keepdim=True)

    expected = mean(torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.ones(2), *cosine(time))
    torch.testing.assert_close(chain.two_points(x, time).x0, expected)
    data = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    density = sum(torch.exp(-0.5 * ((data - mode) / flow.SPREAD) ** 2) for mode in (-1, 1))
    expected = mean(data, density, *rectified(time))
    torch.testing.assert_close(flow.two_modes(x, time).x0, expected, atol=1e-6, rtol=0)


def test_the_flow_carries_noise_to_data_and_never_crosses():
    """On a line a flow keeps the order, so a quantile of the noise goes to the same quantile of the data."""
    quantiles = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    paths = flow.flow_paths(torch.special.ndtri(quantiles))
    assert (paths.diff(dim=1) > 0).all()
    below = torch.special.ndtr((paths[-1, :, None] - torch.tensor([-1.0, 1.0])) / flow.SPREAD).mean(dim=1)
    torch.testing.assert_close(below, quantiles, atol=0.03, rtol=0)


def test_the_optimal_denoiser_of_a_training_set_returns_it():
    data = learning.spiral(torch.linspace(0, 1, 7, dtype=torch.float64))
    nearest = torch.cdist(learning.recalled(data, 50), data).amin(dim=1)
    assert nearest.max() < 1e-6


def test_attention_of_the_drawing_sums_to_one():
    module = diagrams.condition
    assert sum(module.weights_at(0.3, 0.9, 4)) == pytest.approx(1)


def test_the_map_of_the_library_has_every_room_and_imports_go_as_it_says():
    rooms = [room for _, floor, _ in book.FLOORS for room in floor]  # as they are read, floor by floor
    used = set()
    for module in MODULES:
        for other in imports(module):
            room, wanted = (name.split(".")[1] if name.count(".") else None for name in (module, other + "."))
            if room in (None, "__main__", wanted) or not other.startswith("diffusion_book."):
                continue
            assert rooms.index(room) < rooms.index(wanted), f"{module} imports {other}"
            used |= {room, wanted}
    assert used == set(rooms) - {"notebooks"}


# Numbered figures


def test_a_diagram_gets_a_number_and_a_caption():
    diagram = diagrams.markov_chain()
    root = ElementTree.fromstring(show(diagram, "1.3", "From $x_0$ to noise & back.")._repr_html_())
    assert (root.tag, root.get("id")) == ("figure", "figure-1-3")
    assert "".join(root.find("figcaption").itertext()) == "Figure 1.3. From x0 to noise & back."
    image = root.find("img")
    assert image.get("alt") == diagram.alt
    kind, _, picture = image.get("src").partition(",")
    assert kind == "data:image/svg+xml"
    assert unquote(picture).replace(kit.CARD, "") == diagram.svg
    assert "background:#F7F7F5" in unquote(picture), "as a picture it brings its own paper"
    other = show(diagram, "1.3", "", alt="Other words").text
    assert 'alt="Other words"' in other
    assert 'aria-label="Other words"' in unquote(other)
    assert repr(show(diagram, "1.3", "From $x_{k}$.")) == "Figure 1.3. From x_k."


def test_a_chart_keeps_its_words_and_its_size():
    figure, axes = new_figure(8, 3)
    axes.set(xlabel="time t", ylabel="loss")
    text = show(figure, "2.1", "It falls.").text
    (alt,) = re.findall(r'alt="([^"]+)"', text)
    assert "loss, time t" in alt
    width, height = (int(re.search(rf'{name}="(\d+)"', text)[1]) for name in ("width", "height"))
    assert 700 < width < 830
    assert 250 < height < 330
    assert 'class="wide"' in text


def test_what_has_letters_scrolls_on_a_phone_before_they_are_too_small():
    figure, axes = new_figure(5, 3)
    axes.set(xlabel="time t")
    assert 'class="wide"' in show(figure, "2.1", "").text
    assert 'class="wide"' not in show(new_figure(4, 3)[0], "2.1", "").text
    digits = torch.zeros(10, 1, 28, 28)
    assert 'class="wide"' not in show(show_grid(digits, columns=10), "2.1", "").text
    assert 'class="wide"' in show(show_rows({"first": digits}), "2.1", "").text


def test_a_control_stays_one_figure():
    text = show(scrubber(torch.zeros(3, 1, 8, 8), label="time"), "0.1", "Pull it.").text
    assert text.count("<figure") == text.count("</figure>") == 1
    assert text.rstrip().endswith("</figcaption>\n</figure>")
    assert 'id="figure-0-1"' in text


# In a browser

MEASURE = """() => [...document.querySelectorAll('svg')].map(svg => ({
  size: svg.getBoundingClientRect().toJSON(),
  texts: [...svg.querySelectorAll('text')].map(text => ({
    words: text.textContent, box: text.getBoundingClientRect().toJSON(), fill: getComputedStyle(text).fill,
    letters: Math.min(...[...text.querySelectorAll('tspan')].map(part => parseFloat(getComputedStyle(part).fontSize)))
             * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width})),
}))"""
THEMES = {"light": ("#222832", "#ffffff"), "dark": ("#ced6dd", "#14181e")}  # ink and paper of the site


def luminance(colour: tuple[float, ...]) -> float:
    """Of a colour with channels in [0, 1]. Source: WCAG 2, relative luminance."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour]
    return math.fsum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def channels(colour: str) -> tuple[float, ...]:
    """Of `#rrggbb`, `rgb(...)` or `color(srgb ...)`."""
    if colour.startswith("#"):
        return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    numbers = [float(value) for value in re.findall(r"[\d.]+", colour.replace("srgb", ""))[:3]]
    return tuple(numbers) if colour.startswith("color(") else tuple(value / 255 for value in numbers)


@pytest.mark.parametrize("theme", THEMES)
def test_diagrams_can_be_read_on_a_phone_in_both_themes(theme, open_page):
    foreground, background = THEMES[theme]
    page = open_page(PHONE)
    figures = "".join(show(draw(name), "1.1", "A caption.").text for name in ALL)
    style = f"margin:0;padding:{MARGIN}px;color:{foreground};background:{background};font-family:sans-serif"
    page.set_content(f'<!doctype html><meta charset="utf-8"><body style="{style}">{figures}')
    page.wait_for_function("document.images.length === 0")  # each has become part of the page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    measured = page.evaluate(MEASURE)
    assert len(measured) == len(ALL)
    paper = luminance(channels(background))
    for name, svg in zip(ALL, measured, strict=True):
        assert svg["size"]["width"] == PHONE - 2 * MARGIN
        for text in svg["texts"]:
            where, box, outer = (name, text["words"]), text["box"], svg["size"]
            assert text["letters"] >= SMALLEST, where
            assert box["left"] >= outer["left"], where
            assert box["right"] <= outer["right"] + 1, where
            dark, light = sorted((luminance(channels(text["fill"])), paper))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, where
    assert not page.troubles
