"""What a control with a kernel behind it needs: a page that answers, and no time lost on moves that are past."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

Work = Callable[[Any, Callable[[], bool]], None]


class LatestOnly:
    """Does the newest of many requests, in the background, and drops the others.

    A slider that is dragged asks faster than anything can be drawn. A thread lives only while there is work, so
    that none is left behind when a control is closed or its cell is run again.

    Args:
        work: (request, stale) -> None. It must not raise, and should return as soon as `stale()` is true: a newer
            request has come. Never two at a time.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._next: Any = None  # the newest request that nobody has begun
        self._working = False

    def ask(self, request: Any) -> None:
        """Work on this as soon as possible, and on nothing older. Returns at once."""
        with self._lock:
            self._next = request
            if not self._working:
                self._working = True
                threading.Thread(target=self._run, name="latest-only").start()

    def _stale(self) -> bool:
        return self._next is not None

    def _run(self) -> None:
        while True:
            with self._lock:
                request, self._next = self._next, None
                if request is None:
                    self._working = False
                    return
            self._work(request, self._stale)


def when_live(show: Callable[[], None]) -> None:
    """Call `show` once, as soon as a page that moves widgets answers; never, where there is none.

    A kernel is not told who reads it. Something that only executes and stores a notebook looks like JupyterLab, but
    would keep a widget that nobody can move. What tells them apart is a link between two properties of a widget: it
    lives in the page. If the second property follows the first, there is a page.

    The answer comes after the cell, in whichever thread reads the page's messages.
    """
    from ipywidgets import Layout, jsdlink  # only a notebook needs it, and only the book's extra installs it

    probe = Layout(width="1px")
    jsdlink((probe, "width"), (probe, "height"))

    def answered(_) -> None:
        # The probe is not closed: with the first widget that is closed, JupyterLab may give up the subshell that it
        # moves all widgets through, and every later move is lost.
        probe.unobserve(answered, "height")
        show()

    probe.observe(answered, "height")
