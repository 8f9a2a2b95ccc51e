"""The one exception for mistakes that the reader can mend."""

import math
import operator
from numbers import Integral, Real


class BookError(ValueError):
    """A mistake with a remedy: its message is a single line that names both.

    Commands print the line and exit with code 2; notebooks show it as the last line of the
    traceback.
    """

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.split())  # what it quotes, a tensor or a path, may have several lines
        # ... or, from a file that somebody made, codes that a terminal obeys
        super().__init__(
            "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
        )


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


def check_range(
    values: object,
    names: str,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    prefix: str = "",
) -> None:
    """Refuse numbers outside a range.

    Args:
        values: an object whose attributes are looked at.
        names: of the attributes, with spaces between.
        low, high: the smallest and the largest number that is in the range.
        above, below: the same where the ends do not belong to it. What is not a number is in no range.
        prefix: before the names in the message, "--" for options of a command.

    Raises:
        BookError: one of the numbers lies outside.
    """
    ends = (
        ("at least", operator.ge, low),
        ("above", operator.gt, above),
        ("at most", operator.le, high),
        ("below", operator.lt, below),
    )
    ends = [(words, holds, end) for words, holds, end in ends if end is not None]
    limits = " and ".join(f"{words} {end:,}" for words, _, end in ends if math.isfinite(end))
    for name in names.split():
        value = getattr(values, name)
        if not all(holds(value, end) for _, holds, end in ends):
            raise BookError(f"{prefix}{name} is {value!s:.60}: it must be {limits or 'a finite number'}")


def choose(kind: str, name: str, choices) -> object:
    """Look `name` up in the mapping `choices`.

    Raises:
        BookError: `name` is not among them; the message lists those that are.
    """
    if isinstance(name, str) and name in choices:
        return choices[name]
    raise BookError(f"unknown {kind} '{name!s:.60}': choose one of {', '.join(choices)}")
