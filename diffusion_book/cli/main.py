"""The command `diffusion-book`: finds the file of a command, and turns mistakes into one line."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import os
import re
import sys
import time
from collections.abc import Collection, Sequence

from diffusion_book import __version__
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.streams import say, steady

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

HELP = ("-h", "--help", "help")
VERSION = ("--version", "version")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Nobody ends its work by closing the pipe or the terminal that it speaks to.

    Raises:
        SystemExit: with 2, after one line on stderr, when something was asked that cannot be done;
            with 128 + n when signal n ended it.
    """
    with steady() as out:
        code = run(list(sys.argv[1:] if arguments is None else arguments))
        out.flush()
        if out.failure is not None:
            print(f"error: stdout cannot be written ({out.failure.strerror}): free some space", file=sys.stderr)
            code = code or 1
    if code:
        raise SystemExit(code)


def run(arguments: list[str]) -> int:
    """Run a command, and turn a mistake into one line on stderr; gives the exit code."""
    name, *rest = arguments or ["--help"]
    if "MPLBACKEND" in os.environ:
        os.environ["MPLBACKEND"] = "agg"  # commands write files, and open no window
    try:
        if name in HELP:
            print(usage())
            return 0
        if name in VERSION:
            print(f"diffusion-book {__version__}")
            return 0
        choose("command", name, COMMANDS)
        if name not in TOGETHER and processes.launched() > 1:
            raise BookError(f"{name} is the work of one process: leave out the launcher")
        # Read before what does the work is imported.
        values = importlib.import_module("diffusion_book.cli.options").READ[name](rest)
        if values is None:
            return 0
        if name != "doctor":
            say("starting ...")  # importing torch takes seconds
        return importlib.import_module(f"diffusion_book.cli.{name}").main(*values)
    except BookError as error:
        if not processes.is_main():
            time.sleep(PRECEDENCE)
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: diffusion-book COMMAND ...", "", *lines, "", "diffusion-book COMMAND --help: its options; --version"]
    )


def choose_model(
    arguments: Sequence[str], command: str, models: Collection[str], what: str = "model"
) -> tuple[str, list[str]]:
    """Split `MODEL options ...`: the model, "" after printing which there are, and the rest.

    Args:
        arguments: after the command.
        command: its name.
        models: those that it knows.
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
        return "", []
    choose(what, arguments[0], dict.fromkeys(models))
    return arguments[0], list(arguments[1:])


def parse(kind: type, arguments: Sequence[str], command: str, description: str, default=None):
    """Read a command's options into the dataclass `kind`.

    The options are its fields and those of the dataclasses in it, written with - or with _.

    Raises:
        BookError: an option is unknown, missing, or has a value that it cannot have.
    """
    import tyro

    for option, value in itertools.pairwise(["", *arguments]):
        if value == "" or (value.startswith("--") and value.endswith("=")):
            raise BookError(f"{(value or option).rstrip('=') or 'the first argument'} is empty: give it a value")
    errors, shown = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(shown):
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
            print(re.sub(r"\{None\}\|(\S+)", r"\1       ", shown.getvalue()), end="")  # as wide as before
            raise
        cause: BaseException | None = stop
        while cause is not None:  # what the options' own class said against a value
            if isinstance(cause, BookError):
                raise BookError(str(cause)) from None
            cause = cause.__context__
        line = plain_words(first_line(errors.getvalue()))
        raise BookError(f"{line} (diffusion-book {command} --help: its options)") from None


def plain_words(line: str) -> str:
    """What tyro says of a value that is no number, without the names of Python's types."""
    kinds = {
        "invalid literal for int() with base 10": "a whole number",
        "could not convert string to float": "a number",
    }
    for words, kind in kinds.items():
        match = re.search(rf"(--[\w-]+).*{re.escape(words)}: '(.*?)'", line)
        if match:
            return f"{match[1]} is '{match[2]}': give {kind}"
    return line.replace("Expected 1 values.", "Give one.").replace("{None}|", "")


def first_line(box: str) -> str:
    """What tyro's box of several lines says, in one: without its frame, its title, its colours and its hints."""
    _, *lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()  # the first is the title
    lines = [line.strip("│╰╯ ") for line in lines]
    text = " ".join(" ".join(line for line in lines if line.strip("─-")).split())  # no rules
    return re.split(r" (?:Argument helptext|For full helptext)", text)[0]
