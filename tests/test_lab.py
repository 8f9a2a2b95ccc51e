"""JupyterLab in a browser: `make lab` opens at the start, a chapter runs without an error, its slider samples live."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import controls
import pytest

from diffusion_book.book import REQUIREMENTS

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LIVE = "05_guidance_by_concatenation"  # the chapter with a control that a kernel answers,
EXPLORER = r"guidance_explorer\("  # in this cell
START = "notebooks/00_start_here.ipynb"
TOKEN = "test"
PATIENCE = 600  # seconds that a chapter may take

CONFIG = {
    "LabApp": {
        "expose_app_in_browser": True,
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
}


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    """The folder of the chapters that JupyterLab shows."""
    return tmp_path_factory.mktemp("lab") / "notebooks"


@pytest.fixture(scope="module")
def lab(browser, notebooks):
    """The address of the server that `make lab` starts, over a copy of the chapters."""
    folder = notebooks.parent
    for name in REQUIREMENTS:  # by which the folder is known for the book's
        shutil.copy(ROOT / name, folder)
    notebooks.mkdir()
    for path in (ROOT / "notebooks").glob("[0-9][0-9]_*"):
        shutil.copy(path, notebooks)
    (folder / "config").mkdir()
    (folder / "config" / "jupyter_lab_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    scratch |= {f"JUPYTERLAB_{kind.upper()}_DIR": str(folder / kind) for kind in ("workspaces", "settings")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **scratch, "JUPYTER_TOKEN": TOKEN, "BROWSER": "true", "PYTHONPATH": path}
    command = [sys.executable, "-m", "diffusion_book.book", "lab", "--as-is", "--venv", sys.prefix, "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + PATIENCE
        while not answers(f"{address}/api"):
            dead = server.poll() is not None or time.monotonic() > until
            assert not dead, (folder / "log").read_text(encoding="utf-8")
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server, which stops its kernels
        server.wait(PATIENCE)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def page(lab, open_page):
    """JupyterLab as `make lab` opens it, ready to be used."""
    page = open_page(height=1200)
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{lab}/?token={TOKEN}")
    page.wait_for_function("window.jupyterapp?.restored")
    page.evaluate("jupyterapp.restored.then(() => null)")
    page.wait_for_function(f"jupyterapp.shell.currentWidget?.context?.path === '{START}'")
    return page


RUN = """async ([path, pattern]) => {
  const panel = await jupyterapp.commands.execute('docmanager:open', {path});
  await panel.context.ready;
  await panel.sessionContext.ready;
  const all = [...panel.content.model.cells], chosen = new RegExp(pattern, 'm');
  const cells = all.filter(cell => cell.type === 'code' && chosen.test(cell.sharedModel.getSource()));
  cells.forEach(cell => cell.clearExecution());  // what was stored is no proof that anything ran
  // The command runs the notebook in front, and the start page may still push itself there.
  for (let tries = 0; tries < 100 && cells.every(cell => cell.executionCount === null); tries++) {
    jupyterapp.shell.activateById(panel.id);
    await new Promise(resolve => setTimeout(resolve, 100));
    if (jupyterapp.shell.currentWidget !== panel) continue;
    panel.content.deselectAll();
    for (const cell of cells) panel.content.select(panel.content.widgets[all.indexOf(cell)]);
    panel.content.activeCellIndex = all.indexOf(cells.at(-1));
    await jupyterapp.commands.execute('notebook:run-cell');
  }
  return cells.map(cell => ({
    source: cell.sharedModel.getSource(), count: cell.executionCount, outputs: cell.outputs.toJSON()}));
}"""


def run(page, chapter: str, pattern: str = "") -> None:
    """Run the cells of a chapter with a line of this pattern, all by default: each has run, in order, without an error."""
    cells = page.evaluate(RUN, [f"notebooks/{chapter}.ipynb", pattern])
    cells = [cell for cell in cells if cell["source"].strip()]
    assert len(cells) > (1 if pattern else 5)
    for cell in cells:
        assert not any(output["output_type"] == "error" for output in cell["outputs"]), cell
    assert [cell["count"] for cell in cells] == list(range(1, len(cells) + 1))


def test_make_lab_opens_at_the_start(page):
    page.get_by_role("heading", name="Start here").wait_for()
    errors = [trouble for trouble in page.troubles if trouble.startswith("error:")]
    assert not errors


OPEN = """async path => {
  const panel = await jupyterapp.commands.execute('docmanager:open', {path});
  await panel.context.ready;
  const index = panel.content.widgets.findIndex(cell => /scrubber\\(frames/.test(cell.model.sharedModel.getSource()));
  panel.content.activeCellIndex = index;
  await panel.content.scrollToItem(index, 'center');
  return panel.content.widgets[index].model.trusted;
}"""
HINT = "run the cell to wake it"


def test_committed_chapter_works_before_anything_runs(page):
    assert page.evaluate(OPEN, START)
    slider = page.get_by_role("slider", name="time").locator("visible=true").first
    slider.wait_for()
    figure = slider.locator("xpath=ancestor::figure[1]")
    picture = figure.locator(":scope > div").first
    before = picture.evaluate(controls.PLACES)
    slider.fill("12")
    assert picture.evaluate(controls.PLACES) != before, "its handler works"
    assert figure.get_by_text(HINT).bounding_box()["height"] == 0


SHOW_TOY = """async path => {
  const panel = await jupyterapp.commands.execute('docmanager:open', {path});
  await panel.context.ready;
  const index = panel.content.widgets.findIndex(cell => /\\btoy\\.toy\\(/.test(cell.model.sharedModel.getSource()));
  panel.content.activeCellIndex = index;
  for (let tries = 0; tries < 600; tries++) {
    jupyterapp.shell.activateById(panel.id);
    await panel.content.scrollToItem(index, 'center');
    const figure = panel.node.querySelector('figure.toy');
    if (figure?.toy?.states) {
      figure.querySelector('.toy-play').click();
      while (figure.toy.losses.length < 20) await new Promise(resolve => setTimeout(resolve, 50));
      return [figure.querySelector('.toy-still').checkVisibility(), figure.toy.losses.slice(0, 20)];
    }
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  throw new Error('the toy does not wake');
}"""


def test_toy_of_a_committed_chapter_trains_before_anything_runs(page):
    asleep, losses = page.evaluate(SHOW_TOY, "notebooks/01_ddpm.ipynb")
    assert not asleep
    assert sum(losses[10:]) < sum(losses[:10])


# The start page may come to the front at any time, which hides whatever is looked at: so all of it is read in one go.
SIZES = """async ([path, alt, hint]) => {
  const panel = await jupyterapp.commands.execute('docmanager:open', {path});
  for (let tries = 0; tries < 600; tries++) {
    jupyterapp.shell.activateById(panel.id);
    await panel.content.scrollToItem(panel.content.activeCellIndex, 'center');
    await new Promise(resolve => setTimeout(resolve, 100));
    const seen = [...panel.node.querySelectorAll(`img[alt^='${alt}']`)].filter(image => image.checkVisibility());
    if (!seen.length || !seen[0].complete || !seen[0].naturalWidth) continue;
    const said = [...seen[0].closest('figure').querySelectorAll('*')].filter(element => element.textContent.includes(hint));
    const sizes = [seen[0].parentElement, seen[0], said.at(-1)].map(element => element.getBoundingClientRect().toJSON());
    if (sizes[0].height) return sizes;
  }
  throw new Error(`no picture '${alt}' is in sight`);
}"""


def test_notebook_that_is_not_trusted_shows_the_first_frame_and_how_to_wake_it(page, notebooks):
    text = (ROOT / START).read_text(encoding="utf-8")
    (notebooks / "strange.ipynb").write_text(text.replace("Eight digits", "8 digits"), encoding="utf-8")
    assert not page.evaluate(OPEN, "notebooks/strange.ipynb")
    box, sheet, hint = page.evaluate(SIZES, ["notebooks/strange.ipynb", "8 digits", HINT])
    assert box["height"] > 100
    assert sheet["width"] > 3 * box["width"], "one frame of many, as large as its box"
    assert hint["height"] > 10


def test_slider_of_a_chapter_samples_live(page):
    run(page, LIVE, rf"^import |^{EXPLORER}")
    # By its path again: the start page may have come to the front meanwhile.
    show = """async path => {
      const {content: notebook} = await jupyterapp.commands.execute('docmanager:open', {path});
      const index = notebook.widgets.findIndex(cell => /^EXPLORER/m.test(cell.model.sharedModel.getSource()));
      if (index < 0) throw new Error('no cell of this notebook shows the explorer');
      notebook.activeCellIndex = index;
      return notebook.scrollToItem(index, 'center');
    }"""
    page.evaluate(show.replace("EXPLORER", EXPLORER), f"notebooks/{LIVE}.ipynb")
    explorer = page.locator(".jupyter-widgets")  # the chapter has other sliders for a guidance scale, of plain HTML
    slider = explorer.get_by_role("slider", name="guidance scale").locator("visible=true").first
    slider.wait_for()
    picture = page.locator(".widget-html img").first
    source, words = picture.get_attribute("src"), picture.get_attribute("alt")
    assert re.search(r"all digits at guidance scale \d", words)
    slider.focus()
    before = float(slider.get_attribute("aria-valuenow"))
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    scale = float(slider.get_attribute("aria-valuenow"))
    assert scale == before + 1.5
    page.locator(f".widget-html img[alt*='guidance scale {scale:.1f}']").wait_for()
    assert page.locator(".widget-html img").first.get_attribute("src") != source
    assert f"scale {scale:.1f}" in explorer.get_by_role("status").first.inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_runs(page, chapter):
    run(page, chapter)
