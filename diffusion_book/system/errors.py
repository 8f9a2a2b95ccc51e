"""The one exception for mistakes that the reader can mend."""

import math
from numbers import Integral, Real


class BookError(ValueError):
    """A mistake with a remedy: its message is a single line that names both.

    Commands print the line and exit with code 2; notebooks show it as the last line of the
    traceback.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.split()))  # what it quotes, a tensor or a path, may have several lines


class NotFinite(BookError):
    """What a model made holds infinities, or is not a number at all."""


def whole(name: str, value: object) -> int:
    """The value, if it is a whole number.

    Raises:
        BookError: it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise BookError(f"{name} is {value!r:.60}: give a whole number")
    return int(value)


def positive(name: str, value: object) -> float:
    """The value, if it is a finite number above 0.

    Raises:
        BookError: it is not.
    """
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise BookError(f"{name} is {value!r:.60}: give a number above 0")
    return float(value)


def choose(kind: str, name: str, choices) -> object:
    """Look `name` up in the mapping `choices`.

    Raises:
        BookError: `name` is not among them; the message lists those that are.
    """
    if isinstance(name, str) and name in choices:
        return choices[name]
    raise BookError(f"unknown {kind} '{name!s:.60}': choose one of {', '.join(choices)}")
