"""The book as one file: `python docs/ebook.py epub|pdf SITE FILE`, from the built site. `make epub` and `make pdf` call it.

A page is opened in Chromium, where MathJax sets its equations; what stands in its article, without what only a script moves, is
taken as XML. An EPUB is these articles in a zip file. A PDF is all of them as one page, which Chromium prints.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import sys
import tempfile
import uuid
import zipfile
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote, urldefrag

import yaml

from diffusion_book.system.errors import BookError
from diffusion_book.system.files import write_whole

ROOT = Path(__file__).parents[1]
TITLE = "The Diffusion Book"
PARTS = ("Chapters", "Appendix")  # what the docstrings say belongs beside the code
ALIVE = ("playground",)  # pages of live figures alone
PATIENCE = 600_000  # milliseconds for a page; a busy machine takes long
PAPER = {"format": "A4", "margin": {"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"}}
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".svg": "image/svg+xml", ".gif": "image/gif"}
XHTML = "http://www.w3.org/1999/xhtml"

# The article of a page, made ready to stand alone. Equations stay as MathJax has drawn them, with their source as words for those
# who do not see them; folded solutions are open, for paper cannot unfold.
TAKE = """async () => {
  await window.MathJax?.startup?.promise;
  const article = document.querySelector("article.bd-article");
  const source = new Map([...(window.MathJax?.startup?.document?.math ?? [])].map(item => [item.typesetRoot, item.math]));
  for (const drawn of article.querySelectorAll("mjx-container")) {
    const svg = drawn.querySelector("svg"), words = source.get(drawn) ?? "equation";
    for (const title of svg.querySelectorAll("title")) title.remove();
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", words.trim());
    drawn.replaceWith(svg);
  }
  for (const figure of article.querySelectorAll("figure"))
    if (figure.querySelector("canvas") && !figure.querySelector("img")) {
      const note = document.createElement("p");
      note.className = "live-note";
      note.textContent = "A live figure stands here on the site.";
      figure.replaceWith(note);
    }
  for (const words of article.querySelectorAll("output")) {
    const plain = document.createElement("span");
    plain.textContent = words.textContent;
    words.replaceWith(plain);
  }
  const scripted = "script, style, link, button, input, select, label, canvas, dialog, iframe, nav, footer, a.headerlink";
  for (const part of article.querySelectorAll(scripted)) part.remove();
  const walk = document.createTreeWalker(article, NodeFilter.SHOW_COMMENT), comments = [];
  while (walk.nextNode()) comments.push(walk.currentNode);
  for (const comment of comments) comment.remove();
  for (const part of article.querySelectorAll("details")) part.setAttribute("open", "open");
  for (const part of article.querySelectorAll("*")) {
    for (const {name} of [...part.attributes])
      if (/^(on|data-|sizes$|srcset$|loading$|tabindex$|autocomplete$)/.test(name)) part.removeAttribute(name);
    if (part.style?.contentVisibility) part.remove();
  }
  return new XMLSerializer().serializeToString(article);
}"""

STYLE = """
body { font-family: Georgia, serif; line-height: 1.45; margin: 0 0.4em; }
h1, h2, h3, h4 { font-family: Helvetica, Arial, sans-serif; line-height: 1.2; break-after: avoid; }
pre { font-size: 0.72em; line-height: 1.35; white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.5em; margin: 0.6em 0;
  border: 1px solid #ccc; border-radius: 3px; background: #fcfcfa; color: #080808; }
code { font-size: 0.85em; overflow-wrap: anywhere; }
pre code { font-size: 1em; }
img { max-width: 100%; height: auto; }
figure { margin: 1em 0; break-inside: avoid; }
figcaption, .live-note { font-size: 0.9em; }
svg { max-width: 100%; }
div.math { margin: 0.8em 0; overflow-x: auto; break-inside: avoid; }
table { border-collapse: collapse; font-size: 0.85em; max-width: 100%; }
th, td { border-bottom: 1px solid #ccc; padding: 0.2em 0.5em; text-align: left; vertical-align: top; }
details { border-left: 3px solid #ccc; padding-left: 0.8em; margin: 1em 0; }
summary { font-weight: bold; }
nav ol { list-style: none; padding-left: 1.2em; }
.cell_output pre { border-style: none none none solid; border-width: 3px; }
"""
PRINT = """
@page { size: A4; }
body { font-size: 10.5pt; }
article { break-before: page; }
.title { text-align: center; padding-top: 30vh; }
nav a { color: inherit; text-decoration: none; }
nav li { margin: 0.25em 0; }
"""


@dataclass(frozen=True)
class Article:
    """A page of the book.

    Attributes:
        page: its address on the site without the ending, as "notebooks/01_ddpm".
        title: in the table of contents.
        part: of the book.
        body: well-formed XML, its addresses as on the site.
    """

    page: str
    title: str
    part: str
    body: str

    @property
    def name(self) -> str:
        """What it is called in one file."""
        return PurePosixPath(self.page).name


def contents() -> list[tuple[str, str, str]]:
    """Page, title (empty where the page says it itself) and part, in the book's order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found = [(toc["root"], "", "")]
    for part in toc["parts"]:
        if part["caption"] in PARTS:
            found += [(entry["file"], entry.get("title", ""), part["caption"]) for entry in part["chapters"]]
    return [row for row in found if row[0] not in ALIVE]


def browser_path() -> str:
    """A Chromium: `$BOOK_BROWSER` or one on the path.

    Raises:
        BookError: there is none.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("BOOK_BROWSER") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise BookError("the equations are set by Chromium: install it, or name its path in BOOK_BROWSER")
    return path


def articles(site: Path, browser) -> list[Article]:
    """The articles of the built site.

    Raises:
        BookError: a page is not there.
    """
    found, page = [], browser.new_page()
    page.set_default_timeout(PATIENCE)
    for name, title, part in contents():
        path = site / f"{name}.html"
        if not path.is_file():
            raise BookError(f"the site has no page {path}: make site")
        page.goto(path.resolve().as_uri())
        body = page.evaluate(TAKE)
        heading = re.search(r"<h1[^>]*>(.*?)</h1>", body, re.DOTALL)
        found.append(Article(name, title or re.sub("<[^>]+>", "", heading[1]).strip(), part, body))
    page.close()
    return found


ADDRESS = re.compile(r'\b(src|href|xlink:href)="([^"]*)"')
TAG = re.compile(r"<[A-Za-z][^>]*>")
NAMED = re.compile(r'\bid="([^"]*)"')


def placed(article: Article, known: dict[str, str], site: Path, images: dict[str, Path], single: bool) -> str:
    """The article with its addresses as they are in one file.

    Args:
        article: as it stands on the site.
        known: page -> name, of all articles.
        site: its folder, where the pictures are.
        images: gets what is shown: name -> file.
        single: whether all articles stand on one page, so that their own marks need their name before them.
    """
    folder = PurePosixPath(article.page).parent

    def moved(found: re.Match) -> str:
        kind, address = found[1], found[2]
        if kind == "src":
            if address.startswith("data:"):
                return found[0]
            path = site / normpath(folder / unquote(address))
            images[path.name] = path
            return f'src="images/{path.name}"'
        page, mark = urldefrag(address.replace("&amp;", "&"))
        if re.match(r"\w+:", page):
            return found[0]
        target = article.page if not page else normpath(folder / page.removesuffix(".html"))
        if target not in known:  # the pages of the docstrings, and the playground
            return ""
        if single:
            return f'{kind}="#{known[target]}{f"--{mark}" if mark else ""}"'
        if not page:
            return f'{kind}="#{mark}"'
        return f'{kind}="{known[target]}.xhtml{f"#{mark}" if mark else ""}"'

    def tag(found: re.Match) -> str:  # not what looks like an address in the text between tags
        text = ADDRESS.sub(moved, found[0])
        return NAMED.sub(lambda mark: f'id="{article.name}--{mark[1]}"', text) if single else text

    return TAG.sub(tag, article.body)


def document(title: str, body: str, style: str) -> str:
    """An XHTML file."""
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n<html xmlns="{XHTML}" '
        f'xmlns:epub="http://www.idpf.org/2007/ops" lang="en" xml:lang="en">\n<head><title>{escape(title)}</title>\n'
        f"{style}</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def listed(found: list[Article], address: str) -> str:
    """The table of contents as nested lists; `address` has the place of a name in it."""
    lines, parts = [], dict.fromkeys(article.part for article in found)
    for part in parts:
        rows = "".join(
            f'<li><a href="{address.format(article.name)}">{escape(article.title)}</a></li>'
            for article in found
            if article.part == part
        )
        lines.append(f"<li><span>{part}</span><ol>{rows}</ol></li>" if part else rows)
    return f"<ol>{''.join(lines)}</ol>"


CONTAINER = (
    '<?xml version="1.0"?>\n<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="book/package.opf" media-type="application/oebps-package+xml"/></rootfiles></container>\n'
)


def package(found: list[Article], images: dict[str, Path], version: str) -> str:
    """The list of all files, and their order."""
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"diffusion-book {version}")
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    items = [
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>',
        '<item id="style" href="style.css" media-type="text/css"/>',
        '<item id="cover" href="images/cover.png" media-type="image/png" properties="cover-image"/>',
    ]
    for article in found:
        drawn = ' properties="svg"' if "<svg" in article.body else ""
        items.append(
            f'<item id="p-{article.name}" href="{article.name}.xhtml" media-type="application/xhtml+xml"{drawn}/>'
        )
    items += [
        f'<item id="i-{number}" href="images/{name}" media-type="{KINDS[Path(name).suffix]}"/>'
        for number, name in enumerate(images)
        if name != "cover.png"
    ]
    order = "".join(f'<itemref idref="p-{article.name}"/>' for article in found)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<package xmlns="http://www.idpf.org/2007/opf" version="3.0" '
        'unique-identifier="number" xml:lang="en">\n<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:identifier id="number">urn:uuid:{number}</dc:identifier><dc:title>{TITLE}</dc:title>'
        f"<dc:language>en</dc:language><dc:creator>{TITLE} authors</dc:creator>"
        f'<meta property="dcterms:modified">{now}</meta></metadata>\n<manifest>{"".join(items)}</manifest>\n'
        f"<spine>{order}</spine>\n</package>\n"
    )


def write_epub(found: list[Article], site: Path, file: Path, version: str) -> Path:
    """The articles as an EPUB 3."""
    known, images = {article.page: article.name for article in found}, {}
    link = '<link rel="stylesheet" type="text/css" href="style.css"/>\n'
    pages = {
        f"{article.name}.xhtml": document(article.title, placed(article, known, site, images, False), link)
        for article in found
    }
    images["cover.png"] = site / "_static" / "social.png"
    nav = f'<nav epub:type="toc"><h1>Contents</h1>{listed(found, "{}.xhtml")}</nav>'
    pages |= {"nav.xhtml": document("Contents", nav, link), "style.css": STYLE + colours(site)}
    pages["package.opf"] = package(found, images, version)

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
            book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)  # the first file, and not packed
            book.writestr("META-INF/container.xml", CONTAINER)
            for name, text in pages.items():
                book.writestr(f"book/{name}", text)
            for name, source in images.items():
                book.write(source, f"book/images/{name}", zipfile.ZIP_STORED)

    return write_whole(file, write)


def colours(site: Path) -> str:
    """The site's colours of code, those for bright paper alone."""
    text = (site / "_static" / "pygments.css").read_text(encoding="utf-8")
    bright = re.findall(r'^html\[data-theme="light"\] (\.highlight \.\w+ \{[^}]*\})', text, re.MULTILINE)
    return "\n".join(bright or re.findall(r"^\.highlight \.\w+ \{[^}]*\}", text, re.MULTILINE))


def whole_page(found: list[Article], site: Path, images: dict[str, Path]) -> str:
    """All articles on one page, behind a title and a table of contents."""
    known = {article.page: article.name for article in found}
    sections = "".join(
        placed(article, known, site, images, True).replace("<article", f'<article id="{article.name}"', 1)
        for article in found
    )
    head = f'<div class="title"><h1>{TITLE}</h1></div><article><h2>Contents</h2><nav>{listed(found, "#{}")}</nav></article>'
    return document(TITLE, head + sections, f"<style>{escape(STYLE + colours(site) + PRINT, quote=False)}</style>\n")


def write_pdf(found: list[Article], site: Path, file: Path, browser) -> Path:
    """The articles as a PDF on A4 paper, with page numbers, links and bookmarks."""
    images: dict[str, Path] = {}
    text = whole_page(found, site, images)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        for name, source in images.items():
            shutil.copy(source, Path(folder) / "images" / name)
        (Path(folder) / "book.xhtml").write_text(text, encoding="utf-8")
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto((Path(folder) / "book.xhtml").as_uri())
        number = '<div style="font-size:8px;width:100%;text-align:center"><span class="pageNumber"></span></div>'
        foot = {"display_header_footer": True, "header_template": "<span></span>", "footer_template": number}
        return write_whole(file, lambda path: page.pdf(path=path, outline=True, tagged=True, **PAPER, **foot))


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("epub", "pdf"))
    parser.add_argument("site", type=Path, help="folder of the built site")
    parser.add_argument("file", type=Path, help="to write")
    asked = parser.parse_args()
    try:
        path = browser_path()
        from playwright.sync_api import sync_playwright

        from diffusion_book import __version__

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            found = articles(asked.site, browser)
            if asked.kind == "epub":
                print(write_epub(found, asked.site, asked.file, __version__))
            else:
                print(write_pdf(found, asked.site, asked.file, browser))
            browser.close()
    except ImportError:
        print("error: playwright, which drives Chromium, is not installed: pip install -e '.[dev]'", file=sys.stderr)
        return 2
    except (BookError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
