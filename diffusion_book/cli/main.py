"""The command `diffusion-book`: finds the file of a command, and turns mistakes into one line."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import time
from collections.abc import Sequence

from diffusion_book.system import processes
from diffusion_book.system.errors import BookError, choose

COMMANDS = {
    "train": "train a model on your own",
    "generate": "draw pictures with a trained model",
    "evaluate": "measure how good a model's pictures are",
    "visualize": "draw what a trained model has learned",
    "diagnose": "find out what is wrong with a trained model",
    "pretrain": "make the weights that come with the book again",
    "bench": "measure how fast the models train and sample here",
    "doctor": "check that everything the book needs is here",
}
"""name -> what it does; its code is `diffusion_book/cli/NAME.py`"""

TOGETHER = ("train", "generate", "evaluate")
"""those that several processes can do together"""

PRECEDENCE = 3.0
"""seconds that the main process is given to report a mistake alone: then its launcher ends the others, which met the same"""

HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Raises:
        SystemExit: with 2, after one line on stderr, when something was asked that cannot be done;
            with 128 + n when signal n ended it.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name in HELP:
            print(usage())
            return
        choose("command", name, COMMANDS)
        if name not in TOGETHER and processes.launched() > 1:
            raise BookError(f"{name} is the work of one process: leave out the launcher")
        code = importlib.import_module(f"diffusion_book.cli.{name}").main(rest)
    except BookError as error:
        if not processes.is_main():
            time.sleep(PRECEDENCE)
        print("error:", error, file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    if code:
        raise SystemExit(code)


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: diffusion-book COMMAND ...", "", *lines, "", "diffusion-book COMMAND --help: its options"]
    )


def choose_model(
    arguments: Sequence[str], command: str, models: dict[str, type], what: str = "model"
) -> tuple[str, type | None, list[str]]:
    """Split `MODEL options ...`: the model, its class of options (None after printing help), and the rest.

    Args:
        arguments: after the command.
        command: its name.
        models: name -> class of options.
        what: a command may do its work on something else than a model; then it is called so.

    Raises:
        BookError: no model, or one that this command does not know.
    """
    names = ", ".join(models)
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in HELP:
            raise BookError(f"diffusion-book {command} needs a {what} before the options: choose one of {names}")
        print(f"usage: diffusion-book {command} {what.upper()} ...\n\n{what}s: {names}\n")
        print(f"diffusion-book {command} {what.upper()} --help: its options")
        return "", None, []
    return arguments[0], choose(what, arguments[0], models), list(arguments[1:])


def parse(kind: type, arguments: Sequence[str], command: str, description: str, default=None):
    """Read a command's options into the dataclass `kind`.

    The options are its fields and those of the dataclasses in it, written with - or with _.

    Raises:
        BookError: an option is unknown, missing, or has a value that it cannot have.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                args=list(arguments),
                prog=f"diffusion-book {command}",
                description=description,
                default=tyro.MISSING if default is None else default,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        cause: BaseException | None = stop
        while cause is not None:  # what the options' own class said against a value
            if isinstance(cause, BookError):
                raise BookError(str(cause)) from None
            cause = cause.__context__
        raise BookError(f"{first_line(said.getvalue())} (diffusion-book {command} --help: its options)") from None


def first_line(box: str) -> str:
    """What tyro's box of several lines says, in one: without its frame, its title, its colours and its hints."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()  # the first is the title
    lines = [line.strip("│╰╯ ") for line in lines]
    text = " ".join(" ".join(line for line in lines if line.strip("─-")).split())  # no rules
    return re.split(r" (?:Argument helptext|For full helptext)", text)[0]
