"""Moves the controls of a page as a reader does, and looks whether the picture follows."""

import contextlib
import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

# Where the frames of a picture stand.
PLACES = "picture => [picture, ...picture.querySelectorAll('[style]')].map(part => part.style.cssText)"


def move_slider(slider) -> None:
    """Move a slider (a Locator of an `input`) by keys and by mouse: picture, words and what a reader hears follow.

    The slider stands in a `figure`, whose first part is the picture.
    """
    slider.scroll_into_view_if_needed()
    named = re.search(r'slider "([^"]+)"', slider.aria_snapshot())
    assert named, f"a slider without a name: {slider.aria_snapshot()}"
    figure = slider.locator("xpath=ancestor::figure[1]")
    picture, words = figure.locator(":scope > div").first, figure.locator("output")
    low, high, step = (float(slider.get_attribute(name) or "1") for name in ("min", "max", "step"))

    def look() -> tuple[float, str, list[str]]:
        value, said = float(slider.input_value()), slider.get_attribute("aria-valuetext")
        assert words.inner_text() == (said or f"{value:.1f}"), "a screen reader says what the others read"
        return value, words.inner_text(), picture.evaluate(PLACES)

    first = look()
    there, back = ("ArrowRight", "ArrowLeft") if first[0] < high else ("ArrowLeft", "ArrowRight")
    slider.press(there)
    second = look()
    assert abs(second[0] - first[0]) == step, "an arrow key moves it by one step"
    assert second[1] != first[1], "the words follow the keys"
    assert second[2] != first[2], "the picture follows the keys"
    moved = picture.screenshot()
    slider.press(back)
    assert look()[:2] == first[:2]
    pixels = picture.screenshot()
    assert pixels != moved, "and one can see it"
    slider.press(there)
    assert look() == second
    slider.press(back)

    box = slider.bounding_box()
    start = (first[0] - low) / (high - low)
    aim = 0.9 if start < 0.5 else 0.1
    mouse, height = slider.page.mouse, box["y"] + box["height"] / 2
    mouse.move(box["x"] + 8 + start * (box["width"] - 16), height)  # the knob's middle stays within its width
    mouse.down()
    mouse.move(box["x"] + aim * box["width"], height, steps=4)
    mouse.up()
    dragged = look()
    assert abs(dragged[0] - low - aim * (high - low)) < step + 0.05 * (high - low), "it goes where the mouse drags it"
    assert dragged[1] not in (first[1], second[1]), "the words follow the mouse"
    assert dragged[2] not in (first[2], second[2]), "the picture follows the mouse"
    assert picture.screenshot() != pixels, "and one can see it"


def choose(list_of_choices) -> None:
    """Choose in a list (a Locator of a `select`) by mouse and keys, and assert that the picture follows."""
    assert re.search(r'combobox "[^"]+"', list_of_choices.aria_snapshot()), "a list without a name"
    picture = list_of_choices.locator("xpath=ancestor::figure[1]").locator(":scope > div").first
    before = picture.screenshot()
    list_of_choices.press("End")
    last = picture.screenshot()
    assert last != before
    list_of_choices.select_option(index=0)
    assert picture.screenshot() == before


def watch_tasks(browser, page) -> None:
    """From now on the browser notes what the page's own thread does; `tasks_seen` tells."""
    browser.start_tracing(page=page, categories=["toplevel", "__metadata"])


def tasks_seen(browser) -> list[float]:
    """How long each task of the page's own thread took since `watch_tasks`, in milliseconds of the thread's own time."""
    events = json.loads(browser.stop_tracing())["traceEvents"]
    (main,) = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    } & {(event["pid"], event["tid"]) for event in events if event["name"].endswith("RunTask")}
    return [
        event.get("tdur", event.get("dur", 0)) / 1000
        for event in events
        if (event["pid"], event["tid"]) == main and event["name"].endswith("RunTask")
    ]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a folder on a server of this machine."""
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
