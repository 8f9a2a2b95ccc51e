"""The page of equations: formulas from the chapters, and their code and proof from `equations.toml`.

Sphinx puts the rows in the place of `MARK` in `equations.md`, and gives each numbered equation of a chapter an
address, so that the page can lead to it. The glossary and the notation share its care for unfinished chapters.
"""

import functools
import re
import tomllib
from pathlib import Path

import jupytext
from docutils import nodes

ROOT = Path(__file__).parents[1]
MARK = "<!-- the rows of equations.toml -->"
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(notebooks/(\w+)\.ipynb\)")
NUMBER = re.compile(r"\\tag\{(\d+)\}")


def rows() -> dict[str, dict[int, dict]]:
    """Chapter -> number -> says, code, proof and note."""
    text = (ROOT / "docs" / "equations.toml").read_text(encoding="utf-8")
    return {chapter: {int(n): row for n, row in found.items()} for chapter, found in tomllib.loads(text).items()}


def source_of(chapter: str) -> Path:
    """The script of a chapter, also of one that is not finished yet."""
    (path,) = (ROOT / "notebooks").rglob(f"{chapter}.py")
    return path


@functools.cache
def text_of(chapter: str) -> str:
    """All that a chapter says between its code."""
    cells = jupytext.read(source_of(chapter)).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def formulas(chapter: str) -> list[tuple[int, str]]:
    """Numbers and formulas of a chapter's numbered equations, in its order."""
    displayed = DISPLAY.findall(text_of(chapter))
    numbered = [(found[1], each) for each in displayed if (found := NUMBER.search(each))]
    return [(int(number), NUMBER.sub("", each).strip(" \n.,")) for number, each in numbered]


def title_of(chapter: str) -> str:
    """Number and name of a chapter, from its first line: "1 · DDPM"."""
    first = text_of(chapter).partition("\n")[0]
    return f"{int(chapter[:2])} · {first.removeprefix('# ').partition(':')[0]}"


def entry(chapter: str, number: int, formula: str, row: dict, on_site: bool) -> str:
    """One equation of the page, as Markdown."""
    place = f"{{ref}}`({number}) <{chapter}-{number}>`" if on_site else f"({number})"
    code = [
        f"{{any}}`{name} <diffusion_book.{name}>`" if "." in name else f"`{name}` (in the chapter)"
        for name in row["code"]
    ]
    facts = [f"Code: {', '.join(code)}"] if code else []
    facts.append("Proof: " + ", ".join(f"`{name}`" for name in row["proof"]))
    lines = [f"$${formula}$$", "\\\n".join(facts)]  # a backslash breaks the line
    if "note" in row:
        lines.append(row["note"])
    head, *rest = "\n\n".join(lines).splitlines()
    return "\n".join([f"{place} {row['says']}", f": {head}", *(f"  {line}" if line else "" for line in rest)])


def page(chapters_on_site: set[str]) -> str:
    """All rows as Markdown, chapter by chapter."""
    parts = []
    for chapter, of_chapter in rows().items():
        on_site = chapter in chapters_on_site
        parts.append(f"## [{title_of(chapter)}](notebooks/{chapter}.ipynb)")
        listed = [(n, formula) for n, formula in formulas(chapter) if n in of_chapter]
        parts += [entry(chapter, n, formula, of_chapter[n], on_site) for n, formula in listed]
    return "\n\n".join(parts)


def without_links_to_the_unfinished(text: str, chapters_on_site: set[str]) -> str:
    """The same Markdown, in which the name of a chapter that has no page yet is no link."""
    return LINK.sub(lambda link: link[0] if link[2] in chapters_on_site else link[1], text)


def complete(app, docname: str, source: list[str]) -> None:
    if docname not in ("equations", "glossary", "notation"):
        return
    chapters = {name.removeprefix("notebooks/") for name in app.env.found_docs if name.startswith("notebooks/")}
    if docname == "equations":
        source[0] = source[0].replace(MARK, page(chapters))
    source[0] = without_links_to_the_unfinished(source[0], chapters)


def give_addresses(app, document: nodes.document) -> None:
    """`notebooks/01_ddpm.html#equation-3`, and the name `01_ddpm-3` for references from other pages."""
    folder, _, chapter = app.env.current_document.docname.rpartition("/")
    if folder != "notebooks":
        return
    for block in document.findall(nodes.math_block):
        if found := NUMBER.search(block.astext()):
            identifier, name = f"equation-{found[1]}", f"{chapter}-{found[1]}"
            block["ids"].append(identifier)
            standard = app.env.get_domain("std")
            standard.note_hyperlink_target(name, f"{folder}/{chapter}", identifier, f"({found[1]})")


def setup(app) -> dict:
    app.add_css_file("reference.css")
    app.connect("source-read", complete)
    app.connect("doctree-read", give_addresses)
    return {"parallel_read_safe": False}
