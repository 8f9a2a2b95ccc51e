"""The one exception for mistakes that the reader can mend."""


class BookError(ValueError):
    """A mistake with a remedy: its message is a single line that names both.

    Commands print the line and exit with code 2; notebooks show it as the last line of the
    traceback.
    """


def choose(kind: str, name: str, choices) -> object:
    """Look `name` up in the mapping `choices`.

    Raises:
        BookError: `name` is not among them; the message lists those that are.
    """
    if name in choices:
        return choices[name]
    raise BookError(f"unknown {kind} '{name}': choose one of {', '.join(choices)}")
