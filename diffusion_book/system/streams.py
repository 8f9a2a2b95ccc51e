"""What a command says, on a terminal that may go away: nobody who listens ends the work by going."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Iterator
from typing import TextIO

GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe has ended; the terminal was closed: nobody misses what follows


class Steady:
    """A stream whose first failure redirects it into nothing, instead of raising.

    Attributes:
        failure: what failed; None while it works, and where only the reader has gone.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """As a stream's."""
        with self._redirected():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As a stream's."""
        with self._redirected():
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _redirected(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                self.failure = self.failure or error
            # Under the stream, so that what it still holds goes nowhere too, rather than fail when Python ends.
            with contextlib.suppress(OSError, ValueError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)


@contextlib.contextmanager
def steady() -> Iterator[Steady]:
    """While inside, neither stdout nor stderr can fail, or be missing; gives stdout."""
    before = sys.stdout, sys.stderr
    # Opened in this order, these take the numbers of the streams that the caller closed: no file of ours gets them.
    with contextlib.ExitStack() as stack:
        out, err = (stream or stack.enter_context(open(os.devnull, "w", encoding="utf-8")) for stream in before)
        sys.stdout, sys.stderr = Steady(out), Steady(err)
        try:
            yield sys.stdout
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def say(line: str) -> None:
    """Tell whoever sits at the terminal what takes so long; nothing where stderr is no terminal, as a progress bar."""
    from diffusion_book.system import processes

    if processes.is_main() and sys.stderr is not None and sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


@functools.cache
def say_once(notice: str) -> None:
    """Print a notice on stderr, the first time in a process."""
    print(notice, file=sys.stderr)
