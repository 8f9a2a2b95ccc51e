"""Set the book up, build it, read it and test it: `python -m diffusion_book.book TARGET`, from the book's folder.

This is what the Makefile calls, and all that a machine without make needs. It uses nothing but Python's own library,
for it is what installs the rest.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_book.system.errors import BookError
from diffusion_book.system.files import write_text

REQUIREMENTS = ("pyproject.toml", "constraints.txt")
READY = ".ready"  # in the environment: when the requirements were last installed
CHAPTERS = "[0-9][0-9]_*"
LIBRARY = ("*.py", "*.js", "*.safetensors", "*.json")
# The libraries of an accelerator are not pinned: PyTorch brings its own.
UNPINNED = ("nvidia", "cuda", "triton")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Book:
    """Where the book lies, and how it is built.

    Attributes:
        root: the folder of its sources.
        venv: the environment that everything is installed into.
        build: what is built comes here.
        notebooks: the executed chapters that `site` shows.
        jobs: chapters that are executed at a time; two of one thread are faster than one of two.
        port: of JupyterLab.
        as_is: install nothing, use the environment as it is.
        words: what stands behind the target: the chapters of `execute`, options of `test`.
    """

    root: Path
    venv: Path
    build: Path
    notebooks: Path
    jobs: int = 2
    port: int = 8888
    as_is: bool = False
    words: Sequence[str] = ()

    @property
    def chapters(self) -> list[str]:
        """The names of the chapters in their order."""
        return sorted(path.stem for path in (self.root / "notebooks").glob(f"{CHAPTERS}.py"))

    def program(self, name: str) -> str:
        """The path of a program of the environment."""
        return str(self.venv / ("Scripts" if os.name == "nt" else "bin") / name)

    def run(self, *command: str | Path, **options) -> None:
        """Run a program in the book's folder.

        Raises:
            SystemExit: it failed; the exit code is the program's.
        """
        ended = subprocess.run(list(map(str, command)), cwd=self.root, **options)
        if ended.returncode:
            sys.exit(ended.returncode)

    def python(self, *arguments: str | Path, **options) -> None:
        """Run the environment's Python."""
        self.run(self.program("python"), *arguments, **options)


def setup(book: Book) -> None:
    """create .venv with everything in it (done by the other targets too)"""
    ready = book.venv / READY
    newest = max((book.root / name).stat().st_mtime for name in REQUIREMENTS)
    if book.as_is or (ready.is_file() and ready.stat().st_mtime >= newest):
        return
    uv = shutil.which("uv")
    if not Path(shutil.which(book.program("python")) or "").is_file():
        print(f"Creating {book.venv} ...", flush=True)
        if uv:
            book.run(uv, "venv", "--quiet", "--clear", "--python", ">=3.11", book.venv)
        else:
            book.run(sys.executable, "-m", "venv", "--clear", book.venv)
    print(f"Installing what the book needs into {book.venv} (about 6 GB, most of it PyTorch) ...", flush=True)
    what = ("--constraint", "constraints.txt", "--editable", ".[book,dev]")
    if uv:
        book.run(uv, "pip", "install", "--quiet", "--python", book.program("python"), *what)
    else:
        book.python("-m", "pip", "install", "-qq", "--disable-pip-version-check", *what)
    ready.touch()


def execute(book: Book) -> None:
    """execute some chapters into _build/chapters: execute 02_ddim"""
    threads = str(max(1, cores() // book.jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    library = max(path.stat().st_mtime for kind in LIBRARY for path in (book.root / "diffusion_book").rglob(kind))
    (book.build / "chapters").mkdir(parents=True, exist_ok=True)

    def one(chapter: str) -> None:
        source, copy = (book.root / "notebooks" / f"{chapter}.{kind}" for kind in ("py", "ipynb"))
        made, unfinished = (book.build / "chapters" / name for name in (f"{chapter}.ipynb", f"{chapter}.part.ipynb"))
        if made.is_file() and made.stat().st_mtime >= max(library, source.stat().st_mtime):
            return
        print(f"Executing {source.relative_to(book.root)} ...", flush=True)
        began = time.monotonic()
        # The committed copy lends its cell ids, so that executing it again changes only outputs. In two commands:
        # --update beside --execute would throw the new outputs away and keep the old ones.
        if copy.is_file():
            shutil.copyfile(copy, unfinished)
        jupytext = (book.program("jupytext"), "--quiet")
        book.run(*jupytext, "--update", "--to", "ipynb", "--output", unfinished, source)
        run = (*jupytext, "--execute", "--run-path", "notebooks", str(unfinished))
        ended = subprocess.run(run, cwd=book.root, env=environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        # without the kernel's own chatter
        complaints = [line for line in ended.stderr.splitlines() if "IPKernelApp" not in line]
        if complaints:
            print(*complaints, sep="\n", file=sys.stderr)
        if ended.returncode:
            sys.exit(ended.returncode)
        unfinished.replace(made)
        print(f"Executed {source.relative_to(book.root)} in {time.monotonic() - began:.0f} s", flush=True)

    unknown = sorted(set(book.words) - set(book.chapters))
    if unknown:
        raise BookError(f"no chapter '{unknown[0]}': give some of {', '.join(book.chapters)}")
    with ThreadPoolExecutor(book.jobs) as pool:
        list(pool.map(one, book.words or book.chapters))


def site(book: Book) -> None:
    """build the site of the executed chapters as they are (NOTEBOOKS=notebooks)"""
    source, html = book.build / "source", book.build / "html"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(book.root / "docs", source)
    (source / "notebooks").mkdir()
    for chapter in book.chapters:
        executed = book.notebooks / f"{chapter}.ipynb"
        if not executed.is_file():
            raise BookError(f"no executed chapter {executed}: make book")
        shutil.copy(executed, source / "notebooks")
    strict = ("--quiet", "--fail-on-warning", "--keep-going", "--fresh-env")
    book.python("-m", "sphinx", *strict, "-c", ".", "--doctree-dir", book.build / "doctrees", source, html)
    for chapter in book.chapters:  # a build that lacks some can end without a word
        if not (html / "notebooks" / f"{chapter}.html").is_file():
            raise BookError(f"the site has no page for the chapter {chapter}: is it in _toc.yml?")
    print(html / "index.html")


def ebook(book: Book, kind: str) -> None:
    """Build the site, and write it as one file."""
    site(book)
    book.python("docs/ebook.py", kind, book.build / "html", book.build / f"the-diffusion-book.{kind}")


def epub(book: Book) -> None:
    """build the site, and of it an EPUB for readers (needs Chromium)"""
    ebook(book, "epub")


def pdf(book: Book) -> None:
    """build the site, and of it a PDF on A4 paper (needs Chromium)"""
    ebook(book, "pdf")


def pairs(book: Book) -> None:
    """refuse to go on where a notebook was changed by itself: that edit would be lost"""
    book.python("docs/pairs.py", *(f"notebooks/{chapter}.py" for chapter in book.chapters))


def book_and_site(book: Book) -> None:
    """execute every chapter from the shipped weights and build the site"""
    pairs(book)
    execute(book)
    site(replace(book, notebooks=book.build / "chapters"))


def notebooks(book: Book) -> None:
    """execute the chapters and write them back into notebooks/ (to commit)"""
    pairs(book)
    execute(book)
    for chapter in book.words or book.chapters:
        shutil.copy(book.build / "chapters" / f"{chapter}.ipynb", book.root / "notebooks")


def lint(book: Book) -> None:
    """check the style of the code and of the notebooks"""
    formatted = subprocess.run([book.program("ruff"), "format", "--check", "--quiet", "."], cwd=book.root)
    if formatted.returncode:
        raise BookError("some files are not formatted: make format")
    book.run(book.program("ruff"), "check", "--quiet", ".")


def test(book: Book) -> None:
    """check the style, run the tests and every chapter"""
    lint(book)
    workers = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
    chapters = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    book.python("-m", "pytest", *workers, *chapters, *(book.words or ("tests", "notebooks")), env=environment)


def format_(book: Book) -> None:
    """format the code and the notebooks"""
    pairs(book)
    book.run(book.program("ruff"), "check", "--quiet", "--fix-only", ".")
    book.run(book.program("ruff"), "format", "--quiet", ".")
    for chapter in book.chapters:
        book.run(book.program("jupytext"), "--quiet", "--update", "--to", "ipynb", f"notebooks/{chapter}.py")


def lab(book: Book) -> None:
    """open the chapters in JupyterLab (PORT=8888)"""
    copies = sorted((book.root / "notebooks").glob(f"{CHAPTERS}.ipynb"))
    first = "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb"
    # JupyterLab takes the scripts out of stored outputs unless the notebook is trusted. These are the book's own.
    book.run(
        book.program("jupyter"), "trust", *(f"notebooks/{path.name}" for path in copies), stdout=subprocess.DEVNULL
    )
    root = ("--allow-root", "--no-browser") if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
    book.run(book.program("jupyter"), "lab", "--port", str(book.port), first, *root)


def pictures(book: Book) -> None:
    """draw the README's picture, the logo and the social card again from the shipped weights"""
    book.python("docs/pictures.py")


def constraints(book: Book) -> None:
    """choose the newest versions that fit together and pin them (needs uv)"""
    uv = shutil.which("uv")
    if uv is None:
        raise BookError("uv is not installed: python -m pip install uv")
    plain = ("--quiet", "--universal", "--python-version", "3.11", "--upgrade", "--no-header", "--no-annotate")
    extras = ("--extra", "book", "--extra", "dev")
    compiled = subprocess.run(
        [uv, "pip", "compile", *plain, *extras, "pyproject.toml"], cwd=book.root, stdout=subprocess.PIPE, text=True
    )
    if compiled.returncode:
        sys.exit(compiled.returncode)
    head = [
        "# The versions that the book was tested with; written by `make constraints`.",
        "# The libraries of an accelerator are left out: PyTorch brings its own.",
    ]
    pins = [line for line in compiled.stdout.splitlines() if not line.startswith(UNPINNED)]
    write_text(book.root / "constraints.txt", "\n".join([*head, *pins, ""]))


def listing(prefix: str) -> str:
    """The targets, a line each."""
    return "\n".join(f"  {prefix}{name:<13}{target.__doc__}" for name, target in TARGETS.items())


def help_(book: Book) -> None:
    """list the targets"""
    print("The Diffusion Book", listing("make "), sep="\n")


def clean(book: Book) -> None:
    """remove the built book"""
    shutil.rmtree(book.build, ignore_errors=True)


TARGETS: dict[str, Callable[[Book], None]] = {
    "setup": setup,
    "book": book_and_site,
    "lab": lab,
    "test": test,
    "site": site,
    "epub": epub,
    "pdf": pdf,
    "notebooks": notebooks,
    "execute": execute,
    "lint": lint,
    "format": format_,
    "pairs": pairs,
    "pictures": pictures,
    "constraints": constraints,
    "clean": clean,
    "help": help_,
}
"""target -> what does it; its docstring is the line that `make help` shows."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for; options that are not given come from variables, as make hands them over."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_book.book",
        description="Set the book up, build it, read it and test it.",
        epilog="targets:\n" + listing(""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = os.environ.get
    parser.add_argument("target", choices=TARGETS, metavar="TARGET", help="what to do, see below")
    parser.add_argument("words", nargs="*", metavar="WORD", help="chapters for execute and notebooks, tests for test")
    parser.add_argument("--venv", default=default("VENV") or ".venv", help="the environment (default: .venv)")
    parser.add_argument("--build", default=default("BUILD") or "_build", help="what is built comes here (_build)")
    parser.add_argument(
        "--notebooks", default=default("NOTEBOOKS") or "notebooks", help="the executed chapters of the site (notebooks)"
    )
    parser.add_argument("--jobs", type=int, default=default("JOBS") or 2, help="chapters executed at a time (2)")
    parser.add_argument("--port", type=int, default=default("PORT") or 8888, help="of JupyterLab (8888)")
    parser.add_argument(
        "--as-is",
        action="store_true",
        default=bool(default("AS_IS")),
        help="install nothing: use the environment as it is",
    )
    values = vars(parser.parse_args(arguments))
    target = values.pop("target")
    root = Path.cwd()
    if not all((root / name).is_file() for name in REQUIREMENTS):
        parser.error(f"{root} is not the folder of the book: go to its clone, where README.md and notebooks/ lie")
    values |= {name: root / values[name] for name in ("venv", "build", "notebooks")}
    book = Book(root, **values)
    try:
        if target not in ("setup", "clean", "help"):
            setup(book)
        TARGETS[target](book)
    except KeyboardInterrupt:
        sys.exit(130)
    except (BookError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
