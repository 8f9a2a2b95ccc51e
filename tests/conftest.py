"""What tests share: one thread, and for those in a browser, the browser."""

import os
import shutil

import pytest
import torch

from diffusion_book.system import streams

# No GPU, nothing in the background, and no network but this machine's own.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
LONGEST = ["test_site", "test_live", "test_lab", "test_toy", "test_nothing_lost", "test_exercises"]
PATIENCE = 180_000  # milliseconds; only a failure, or a very busy machine, takes as long


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first: a worker that began one of them last would leave the others idle."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums come out the same bit for bit only with the same number of threads, and tiny tensors are faster with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fresh_cache(tmp_path_factory, monkeypatch):
    """A cache in which nothing lies, and notices that nobody has read: for tests of what is made and said once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    streams.say_once.cache_clear()


@pytest.fixture(scope="module")  # Playwright keeps an event loop running, which other modules could not live with
def browser():
    """A Chromium of the system: $BOOK_BROWSER or one on the path.

    Without one the tests are skipped, or, where $BOOK_NEEDS_BROWSER is set, fail.
    """
    names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
    path = os.environ.get("BOOK_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        give_up = pytest.fail if os.environ.get("BOOK_NEEDS_BROWSER") else pytest.skip
        give_up("no browser: apt-get install chromium, or name the path of one in $BOOK_BROWSER")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


def failure(request) -> list[str]:
    """What a request failed of; nothing, where the reader went on to another page before the answer."""
    return [] if "ERR_ABORTED" in request.failure else [f"{request.failure}: {request.url[:200]}"]


@pytest.fixture
def open_page(browser):
    """A function that opens an empty page and records what goes wrong on it; all are closed after the test."""
    contexts = []

    def open_page(width: int = 1280, height: int = 900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.troubles, page.asked = [], []
        page.on("pageerror", lambda error: page.troubles.append(f"error: {error}"))
        page.on("console", lambda said: page.troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("requestfailed", lambda request: page.troubles.extend(failure(request)))
        page.on("request", lambda request: None if request.url.startswith("data:") else page.asked.append(request.url))
        return page

    yield open_page
    for context in contexts:
        context.close()
