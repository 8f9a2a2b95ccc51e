"""The appendix of reference keeps up with the book: equations, papers, terms and the description of the library."""

import ast
import doctest
import functools
import importlib
import re
import sys
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
sys.path.insert(0, str(ROOT / "docs"))
import register  # noqa: E402

ROWS = register.rows()
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").rglob("[0-9][0-9]_*.py"))
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS)
every_row = pytest.mark.parametrize(
    ("chapter", "number"), [(chapter, number) for chapter, found in ROWS.items() for number in found]
)


# --- Equations -----------------------------------------------------------------------------------


def source(chapter: str) -> str:
    return register.source_of(chapter).read_text(encoding="utf-8")


@every_chapter
def test_every_numbered_equation_is_in_the_register_and_no_other(chapter):
    numbers = [int(number) for number in re.findall(r"\\tag\{(\d+)\}", source(chapter))]
    assert numbers == list(range(1, len(numbers) + 1)), "the equations of a chapter are numbered from 1, in order"
    listed = list(ROWS.get(chapter, {}))
    assert listed == numbers, f"docs/equations.toml: [{chapter}.N] must be there for each \\tag{{N}}, in its order"


@every_chapter
def test_the_page_has_the_formula_of_every_equation(chapter):
    found = register.formulas(chapter)
    assert [number for number, _ in found] == [int(n) for n in re.findall(r"\\tag\{(\d+)\}", source(chapter))]
    plain = re.sub(r"\n# ?", "\n", source(chapter))
    for _, formula in found:
        assert formula
        assert "tag" not in formula
        assert formula in plain
    shown = register.page({chapter})
    assert all(f"$${formula}$$" in shown.replace("\n  ", "\n") for _, formula in found)


def test_the_register_knows_no_chapter_that_is_not_there():
    assert set(ROWS) <= set(CHAPTERS)
    assert [chapter for chapter in CHAPTERS if chapter in ROWS] == list(ROWS), "in the order of the chapters"


def names_defined_in(path: Path) -> set[str]:
    """Functions, classes and, as Class::name, their methods."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def find(name: str):
    """What a dotted name below `diffusion_book` stands for; None where it stands for nothing."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(["diffusion_book", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(lambda outer, inner: getattr(outer, inner, None), parts[length:], found)
    return None


@every_row
def test_code_and_proof_of_an_equation_exist(chapter, number):
    row = ROWS[chapter][number]
    assert set(row) <= {"says", "code", "proof", "note"}
    assert row["says"][0].isupper() or row["says"][0].isdigit()
    assert row["code"] or row.get("note"), "an equation without code needs a note that says why"
    for name in row["code"]:
        if "." in name:
            assert callable(find(name)), f"diffusion_book.{name} does not exist"
        else:
            assert name in names_defined_in(register.source_of(chapter)), f"the chapter defines no {name}"
    assert row["proof"], "no test proves it"
    for proof in row["proof"]:
        file, _, name = proof.partition("::")
        assert name in names_defined_in(TESTS / file), f"tests/{proof} does not exist"
        assert name.rpartition("::")[2].startswith("test_")


# --- Papers --------------------------------------------------------------------------------------

REFERENCES = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
NAME = r"[A-Z][\w'’-]+"
AUTHORS = rf"{NAME}(?:, {NAME})*(?: & {NAME})?(?: et al\.)?"
CITED = re.compile(rf"({AUTHORS}),? \(?(\d{{4}})\)?(?: \(([A-Z][\w+-]*)\))?")


def folded(text: str) -> str:
    """Without accents, in small letters, on one line."""
    text = unicodedata.normalize("NFKD", text.replace("ø", "o").replace("Ø", "O"))
    return " ".join("".join(letter for letter in text if not unicodedata.combining(letter)).casefold().split())


def surnames(authors: str) -> list[str]:
    """Of "J. Song, C. Meng, S. Ermon" as of "Song, Meng & Ermon" and "Song et al."."""
    return [part.split()[-1] for part in re.split(r", | & ", folded(authors).removesuffix(" et al."))]


ENTRIES = [folded(item) for item in REFERENCES.split("\n- ")[1:]]


def entries_of(authors: str, year: str, words: str = "") -> list[str]:
    """The entries that a citation can mean: its names, its year, and words of the title or the short name."""
    found = []
    for entry in ENTRIES:
        theirs, _, rest = entry.partition(f" ({year}). ")
        if not rest or not re.search(rf"(?<!\w){re.escape(folded(words))}(?![\w+])", rest):
            continue
        named, known = surnames(authors), surnames(theirs)
        more = " et al." in authors
        fits = known[: len(named)] == named and (more or len(known) == len(named) or " et al." in theirs)
        if fits and not (more and len(known) <= 2 and " et al." not in theirs):
            found.append(entry)
    return found


def listed_in(chapter: str) -> list[tuple[str, str, str, str]]:
    """Authors, year, title and, where it is given, arXiv number of a chapter's list of references."""
    text = re.sub(r"\n#[ \n]*", " ", source(chapter)).partition("## References")[2]
    items = [part for item in text.split(" - ")[1:] for part in re.split(r"; (?=[A-Z])", item)]
    found = []
    for item in items:
        match = re.match(r"(.+?) \((\d{4})\)[,.] \*(.+?)\.?\*(.*)", item)
        assert match, f"not read as a reference: {item}"
        number = re.search(r"arXiv:(\d{4}\.\d{4,5})", match[4])
        found.append((match[1], match[2], match[3], number[1] if number else ""))
    return found


@every_chapter
def test_every_reference_of_a_chapter_is_in_the_list(chapter):
    for authors, year, title, number in listed_in(chapter):
        entries = entries_of(authors, year, title)
        assert len(entries) == 1, f"docs/references.md: {authors} ({year}), {title}"
        assert number in entries[0], f"another arXiv number than {number}: {entries[0]}"


@every_chapter
def test_every_citation_in_a_chapter_is_in_the_list(chapter):
    text = register.text_of(chapter).partition("## References")[0]
    for authors, year, words in CITED.findall(" ".join(text.split())):
        if "&" in authors or "et al." in authors:
            assert len(entries_of(authors, year, words)) == 1, f"docs/references.md: {authors} {year}"


def docstrings(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return [" ".join(text.split()) for node in nodes if isinstance(node, kinds) and (text := ast.get_docstring(node))]


SOURCES = sorted((ROOT / "diffusion_book").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_source_of_a_docstring_is_in_the_list(path):
    for text in docstrings(path):
        for found in CITED.finditer(text):
            authors, year, words = found.groups(default="")
            named_as_source = "Source:" in text[: found.start()]
            if named_as_source or "&" in authors or "et al." in authors:
                assert len(entries_of(authors, year, words)) == 1, f"docs/references.md: {found[0]}"


def test_the_list_of_papers_is_whole_and_in_order():
    assert len(ENTRIES) == len(set(ENTRIES))
    first = [(surnames(entry.partition(" (")[0])[0]) for entry in ENTRIES]
    assert first == sorted(first)
    for item in REFERENCES.split("\n- ")[1:]:
        assert re.match(rf"{AUTHORS} \(\d{{4}}\)\. \*[^*]+\*( \(\w+\))?\. ", " ".join(item.split())), item
        kind, number, address = re.search(r"\[(arXiv|doi|openreview):(\S+)\]\((\S+)\)\s*$", item).groups()
        places = {"arXiv": "arxiv.org/abs/", "doi": "doi.org/", "openreview": "openreview.net/forum?id="}
        assert unquote(address) == f"https://{places[kind]}{number}"  # Markdown needs %28 for a bracket


def test_every_paper_of_the_list_is_cited():
    cited = set()
    for chapter in CHAPTERS:
        cited |= {entry for authors, year, title, _ in listed_in(chapter) for entry in entries_of(authors, year, title)}
    for path in SOURCES:
        for found in CITED.findall("\n".join(docstrings(path))):
            cited |= set(entries_of(*found))
    assert set(ENTRIES) == cited


# --- Terms ---------------------------------------------------------------------------------------

GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^(\S.*)\n((?:  \S.*\n)+)", GLOSSARY.partition("```{glossary}\n")[2], flags=re.MULTILINE)
CHAPTER_LINK = re.compile(r"\[(\d)\]\(notebooks/(\w+)\.ipynb\)")


def test_terms_are_in_order_and_none_is_there_twice():
    names = [folded(name) for name, _ in TERMS]
    assert len(names) > 50
    assert names == sorted(set(names))


@pytest.mark.parametrize(("name", "meaning"), TERMS, ids=[name for name, _ in TERMS])
def test_a_term_is_explained_in_two_lines_and_leads_to_its_chapter(name, meaning):
    assert meaning.count("\n") <= 2
    assert all(len(line) <= 120 for line in meaning.splitlines())
    links = CHAPTER_LINK.findall(meaning)
    assert links
    for number, chapter in links:
        assert chapter in CHAPTERS
        assert int(number) == int(chapter[:2])


# --- The description of the library --------------------------------------------------------------

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_every_page_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in PAGES}
    assert {file for file in listed if not file.startswith("notebooks/")} == pages - {"index"}


# The commands describe themselves: `diffusion-book COMMAND --help`. The exercises of a chapter hold their solutions.
LEFT_OUT = re.compile(r"diffusion_book\.(cli|__main__|exercises\.(?!exercise$))")


def module_text(name: str) -> str:
    return importlib.import_module(name).__doc__ or ""


def test_every_module_is_described_once():
    described = re.findall(r"automodule:: (\S+)", "".join(path.read_text(encoding="utf-8") for path in PAGES))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
    public = {name for name in names if module_text(name) and not LEFT_OUT.match(name)}
    assert sorted(described) == sorted(public), "docs/api/*.md"


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if ">>> " in path.read_text(encoding="utf-8")],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_examples_in_docstrings_run(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert tried
    assert not failed
