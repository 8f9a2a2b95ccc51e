"""How Sphinx reads the docstrings. They are plain text with `code` in single backticks, not reStructuredText."""

import re

CODE_OR_MARK = re.compile(r"(`[^`]*`)|([*|])")


def to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Change the lines in place: `|` and `*` outside of code stand for themselves, an indented block is a formula."""
    found = []
    for number, line in enumerate(lines):
        # Below a heading such as "Args:" a block begins at once; one that stands apart is a formula.
        apart = number > 1 and not lines[number - 1] and lines[number - 2] and not lines[number - 2].startswith(" ")
        if apart and line.startswith("    "):
            found += [".. code-block:: text", ""]
        found.append(CODE_OR_MARK.sub(lambda match: match[1] or "\\" + match[2], line))
    if what in ("attribute", "data", "property"):
        # Napoleon would take for its type what stands before a colon in the first line, but not at its end.
        found[:1] = found[0].replace(": ", ":\n", 1).splitlines()
    lines[:] = found


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True}
