"""The site: it has every page and needs nothing from outside, and in a browser everything on its pages works."""

import functools
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import controls
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diffusion_book.viz import distribution

ROOT = Path(__file__).parents[1]
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"], *(entry["file"] for part in TOC["parts"] for entry in part["chapters"])]
CHAPTERS = [name.removeprefix("notebooks/") for name in PAGES if name.startswith("notebooks/")]
PHONE = 390  # pixels
FIRST_LOAD = 3_000_000  # bytes of a page with all that it loads before the reader scrolls

every_page = pytest.mark.parametrize("name", PAGES)


def build(*options: str) -> subprocess.CompletedProcess:
    """`make site`, without the set-up."""
    command = [sys.executable, "-m", "diffusion_book.book", "site", "--as-is", "--venv", sys.prefix, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site of the committed chapters, built as `make book` does it; any warning fails it."""
    folder = tmp_path_factory.mktemp("site")
    ran = build("--build", str(folder))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == str(folder / "html" / "index.html")
    return folder / "html"


# The files


class Addresses(HTMLParser):
    """What a page loads by itself (scripts, styles, pictures, frames), what it links to, and what can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded, self.linked, self.anchors = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        address = attributes.get("src") or attributes.get("href") or attributes.get("data")
        if address and tag in {"script", "img", "iframe", "source", "video", "audio", "object", "link"}:
            self.loaded.append(address)
        elif address and tag == "a":
            self.linked.append(address)


@functools.cache
def addresses(path: Path) -> Addresses:
    return Addresses(path)


@every_page
def test_page_is_there_and_loads_nothing_from_outside(site, name):
    page = site / f"{name}.html"
    for address in addresses(page).loaded:
        parts = urlsplit(address)
        assert parts.scheme in ("", "data"), f"loads {address[:80]}"
        assert not parts.netloc, f"loads {address[:80]}"
        if not parts.scheme:
            assert (page.parent / unquote(parts.path)).is_file(), f"loads {address}, which is not there"


def test_styles_load_nothing_from_outside(site):
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


@every_page
def test_links_lead_somewhere(site, name):
    page = site / f"{name}.html"
    for address in addresses(page).linked:
        parts = urlsplit(address)
        if parts.scheme:
            assert parts.scheme == "https", f"{address}: not a safe address"
            assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), f"{address}: no address at all"
        else:
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), f"{address}: no such page"
            if target.suffix == ".html":
                assert parts.fragment in addresses(target).anchors, f"{address}: no such place on the page"


def test_pages_follow_each_other(site):
    for number, name in enumerate(PAGES):
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        for kind, other in (("left-prev", number - 1), ("right-next", number + 1)):
            link = re.search(rf'<a class="{kind}"\s+href="([^"]+)"', text)
            if 0 <= other < len(PAGES):
                assert (site / f"{name}.html").parent.joinpath(link[1]).resolve() == site / f"{PAGES[other]}.html"
            else:
                assert link is None


@every_page
def test_page_tells_search_engines_and_others_what_it_is(site, name):
    text = (site / f"{name}.html").read_text(encoding="utf-8")
    said = dict(re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)">', text))
    assert 40 < len(said["description"]) <= 200
    assert said["og:description"] == said["description"]
    assert f"<h1>{said['og:title']}<" in text
    assert re.search(rf"<title>{re.escape(said['og:title'])}(?!\w)", text)
    with Image.open((site / f"{name}.html").parent / said["og:image"]) as picture:
        assert picture.size == (1200, 630)


def test_site_fails_where_a_chapter_is_missing(tmp_path):
    """A build without one of its chapters must not pass for a book."""
    (tmp_path / "notebooks").mkdir()
    chapter = ROOT / "notebooks" / f"{CHAPTERS[1]}.ipynb"
    (tmp_path / "notebooks" / chapter.name).symlink_to(chapter)
    ran = build("--notebooks", str(tmp_path / "notebooks"), "--build", str(tmp_path / "build"))
    assert ran.returncode != 0
    assert CHAPTERS[0] in ran.stdout + ran.stderr


# In a browser

EQUATIONS = """() => {
  const walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT), raw = [];
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (/\\$|\\\\[([]/.test(text.data) && !text.parentElement.closest('pre, code, .sig, script, style, mjx-container'))
      raw.push(text.data);
  }
  const all = [...document.querySelectorAll('.math')];
  return {raw, wrong: [...document.querySelectorAll('[data-mjx-error]')].map(error => error.dataset.mjxError),
          unknown: document.querySelectorAll('mjx-container [fill=red], mjx-container [mathcolor=red]').length,
          letterless: [...document.querySelectorAll('mjx-container svg text')].map(each => each.textContent.trim())
                      .filter(text => text),
          undrawn: all.filter(equation => !equation.querySelector('mjx-container svg')).map(each => each.textContent)};
}"""

PICTURES = """async () => {
  const pictures = [...document.images], broken = [];
  for (const picture of pictures) {
    picture.loading = 'eager';
    await picture.decode().catch(() => broken.push(picture.src.slice(0, 100)));
  }
  return {broken, words: [...document.querySelectorAll('article img')].map(picture => picture.alt)};
}"""

# What the reader of a narrow page cannot get at: parts that reach beyond its right edge and do not scroll by
# themselves, and parts to the left of everything, where nothing scrolls to. A control's frames are meant to be hidden.
OUT_OF_REACH = """() => [...document.querySelectorAll('article *:not(svg *, mjx-assistive-mml *, figure *)')].filter(part => {
  const box = part.getBoundingClientRect();
  if (box.width < 2 || box.right <= innerWidth + 1 && box.left >= -1) return false;
  for (let around = part.parentElement; box.left >= -1 && around.tagName !== 'ARTICLE'; around = around.parentElement)
    if (getComputedStyle(around).overflowX === 'auto') return false;
  return true;
}).map(part => part.outerHTML.slice(0, 150))"""


def load(page, address: str) -> None:
    """Open an address and wait until the equations are drawn."""
    page.goto(address)
    page.evaluate("async () => { await window.MathJax?.startup?.promise }")


def own_size(page) -> int:
    """Bytes of the files that a page has asked for."""
    files = {without_query(address) for address in page.asked if address.startswith("file:")}
    return sum(Path(unquote(urlsplit(address).path)).stat().st_size for address in files)


def without_query(address: str) -> str:
    return urldefrag(address).url.partition("?")[0]


AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


def barriers(page, contrast: bool = True) -> list[str]:
    """What axe finds on a page that some readers cannot use: rules of WCAG's levels A and AA, and where they are broken.

    contrast: of every word with what is behind it, too; it is most of the work.
    """
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    options = {"runOnly": LEVELS, "resultTypes": ["violations"], "preload": False}
    options["rules"] = {"color-contrast": {"enabled": contrast}}
    found = page.evaluate("options => axe.run(options)", options)["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


@every_page
def test_page_works_in_a_browser(site, open_page, name):
    """Opened from its folder: all of it is drawn, in little time, and every control moves its picture."""
    page = open_page(color_scheme="light")
    load(page, (site / f"{name}.html").as_uri())
    assert own_size(page) < FIRST_LOAD

    equations = page.evaluate(EQUATIONS)
    assert not any(equations.values()), equations
    pictures = page.evaluate(PICTURES)
    assert not pictures["broken"]
    for words in pictures["words"]:
        assert len(words) > 10, "a picture without words for those who do not see it"
        assert "_images/" not in words

    # Those that play what was drawn beforehand. The others compute: see test_live.py and test_toy.py.
    for slider in page.locator("article figure input[type=range]:enabled:not(.toy *)").all():
        controls.move_slider(slider)
    for choices in page.locator("article figure select:enabled:not(.toy *)").all():
        controls.choose(choices)

    # API pages have the same colours, and so have chapters: one of each is looked at for all.
    alike = name.startswith(("api/", "notebooks/")) and name not in ("api/diffusion", PAGES[1])
    assert not barriers(page, contrast=not alike)
    page.set_viewport_size({"width": PHONE, "height": 844})
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE, f"the {theme} page scrolls sideways"
        assert not page.evaluate(OUT_OF_REACH)
    if not alike:
        assert not barriers(page), "dark, on a phone"
    assert not page.troubles
    assert all(address.startswith("file:") for address in page.asked), page.asked


def test_chapters_have_the_controls_that_they_speak_of(site):
    """Those that move without a kernel; the test above moves whatever there is."""
    for chapter, label in (
        ("00_start_here", "time"),
        ("01_ddpm", "denoise"),
        ("02_ddim", "DDIM"),
        ("05_guidance_by_concatenation", "guidance scale"),
        ("07_rectified_flow", "Euler"),
        ("08_scoreboard", "step from noise to digit"),  # on a map by UMAP
    ):
        text = (site / "notebooks" / f"{chapter}.html").read_text(encoding="utf-8")
        assert re.search(rf'<input type="range"[^>]*\saria-label="{label}"', text), chapter


@pytest.fixture
def served(site):
    """The address of the site on a server of this machine."""
    with controls.serving(site) as address:
        yield address


def test_site_works_on_a_server_too(served, open_page):
    page = open_page()
    load(page, f"{served}/{PAGES[2]}.html")
    assert not any(page.evaluate(EQUATIONS).values())
    assert not page.troubles
    assert all(address.startswith(served) for address in page.asked), page.asked


def search(page, address: str) -> None:
    """Look for a word as a reader does, and wait for a chapter that has it."""
    page.goto(address)
    page.keyboard.press("Control+K")
    page.keyboard.type("posterior")
    page.keyboard.press("Enter")
    page.locator("#search-results a[href*='01_ddpm.html']").wait_for()


def test_search_finds_a_word_in_the_folder(site, open_page):
    page = open_page()
    search(page, (site / "index.html").as_uri())
    page.locator("#search-results a[href*='01_ddpm.html']").click()
    page.wait_for_url("**/01_ddpm.html*")
    assert "posterior" in page.locator("article").inner_text()


def test_search_finds_a_word_on_a_server_and_shows_where_it_stands(served, open_page):
    page = open_page()
    search(page, f"{served}/index.html")
    page.locator("#search-results li:has(a[href*='01_ddpm.html']) .context", has_text="posterior").wait_for()
    assert not page.troubles


def contrast(first: str, second: str) -> float:
    """How far two CSS colours are apart, 1 to 21. Source: WCAG 2, relative luminance."""

    def luminance(colour: str) -> float:
        channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(part) -> tuple[str, str]:
    return part.evaluate("""part => {
      let paper = part;
      while (getComputedStyle(paper).backgroundColor === 'rgba(0, 0, 0, 0)') paper = paper.parentElement;
      return [getComputedStyle(part).color, getComputedStyle(paper).backgroundColor];
    }""")


def test_dark_theme_can_be_chosen_and_everything_stays_legible(site, open_page):
    page = open_page(color_scheme="light")
    load(page, (site / "notebooks" / "00_start_here.html").as_uri())
    page.get_by_role("button", name="Color mode").click()
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    for kind in ("p", "figure output", "figure label span", "div.cell_input pre", "div.cell_output pre", "table td"):
        part = page.locator(f"article {kind}:visible").first
        assert contrast(*colours(part)) > 6, f"{kind}: {colours(part)}"
    _, paper = colours(page.locator("article p").first)
    assert contrast(paper, "rgb(255, 255, 255)") > 10, "the page is dark"
    chart = page.locator("article div.cell_output figure img.wide").last
    chart.scroll_into_view_if_needed()
    chart.evaluate("image => image.decode()")  # what is not painted yet shows the page behind it
    pixels = np.array(Image.open(io.BytesIO(chart.screenshot())).convert("L"))
    assert np.median(pixels) > 180, "a figure brings its own paper"
    assert np.percentile(pixels, 1) < 100, "and its ink is dark on it"


def test_playground_draws_on_a_dark_phone(site, open_page):
    """What test_live.py proves of a bare page holds under the site's theme: seen, legible, and nothing from outside."""
    page = open_page(width=PHONE, height=844, color_scheme="dark")
    load(page, (site / "playground.html").as_uri())
    before = own_size(page)
    figure = page.locator("figure.live[data-model=ldm-concat][data-task=sample]")
    figure.locator("button.live-start").click()
    page.wait_for_function("figure => figure.dataset.drawn", arg=figure.element_handle())
    assert figure.locator("canvas").is_visible()
    assert own_size(page) > before + 5_000_000, "the weights come with the press, not before"
    for part in ("label span", ".live-said", ".live-call", "select"):
        assert contrast(*colours(figure.locator(part).first)) > 4.5, part
    button = page.locator("button.live-start:visible").first
    assert contrast(*colours(button)) > 4.5
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert not page.troubles
    assert all(address.startswith((site.as_uri(), "blob:")) for address in page.asked), page.asked


def test_a_toy_trains_on_a_dark_phone(site, open_page):
    """What test_toy.py proves of a bare page holds under the site's theme."""
    page = open_page(width=PHONE, height=844, color_scheme="dark")
    load(page, (site / "playground.html").as_uri())
    figure = page.locator("figure.toy")
    play = figure.get_by_role("button", name="Play")
    assert contrast(*colours(play)) > 4.5
    play.click()
    page.wait_for_function("document.querySelector('figure.toy').toy.shown > 5")
    for part in ("label span", ".toy-numbers", ".toy-title", "select"):
        assert contrast(*colours(figure.locator(part).first)) > 4.5, part
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert not page.troubles


def test_only_pages_with_a_live_figure_load_its_script(site):
    live = {name for name in PAGES if '<figure class="live' in (site / f"{name}.html").read_text(encoding="utf-8")}
    loading = {
        name for name in PAGES if any("live/page.js" in each for each in addresses(site / f"{name}.html").loaded)
    }
    assert "playground" in live
    assert loading == live
    scripts = site / "_static" / "live"
    assert sum((scripts / name).stat().st_size for name in ("page.js", "paper.js", "live.css")) < 50_000


def test_ways_across_a_map_move_without_a_kernel(tmp_path, open_page):
    """The page that `diffusion-book visualize distribution` writes."""
    random = torch.Generator().manual_seed(0)
    labels = {name: torch.arange(40) % 10 for name in ("real", "drawn")}
    places = {name: torch.randn(40, 2, generator=random) for name in labels}
    control = distribution.ways_across(
        {"features": places, "pixels": places},
        {space: torch.randn(3, 6, 2, generator=random) for space in ("features", "pixels")},
        torch.rand(3, 6, 1, 28, 28, generator=random) * 2 - 1,
        labels,
        torch.tensor([3, 1, 4]),
        [f"t = {1 - step / 5:.1f}" for step in range(6)],
    )
    (tmp_path / "ways.html").write_text(distribution.page(control, "Ways"), encoding="utf-8")
    page = open_page()
    page.goto((tmp_path / "ways.html").as_uri())
    slider = page.get_by_role("slider", name="step from noise to digit")
    controls.move_slider(slider)
    digits = page.get_by_role("img", name=re.compile("^sample"))
    assert digits.count() == 3 * 3  # on either map, and beside them
    assert page.get_by_role("img", name=re.compile("^Map of")).count() == 2
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('button').textContent === 'Stop'")
    page.wait_for_function("document.querySelector('button').textContent === 'Play'")
    assert slider.input_value() == "5"
    page.set_viewport_size({"width": PHONE, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert not page.troubles
    assert page.asked == [page.url]
