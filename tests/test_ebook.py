"""The book as one file: an EPUB whose files are all there and well formed, and the page that becomes a PDF."""

import re
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
OPF, HTML, SVG = "{http://www.idpf.org/2007/opf}", "{http://www.w3.org/1999/xhtml}", "{http://www.w3.org/2000/svg}"
PAGES = (("index", "", ""), ("notebooks/01_first", "1 · First", "Chapters"), ("more", "", "Appendix"))

PAGE = """<!doctype html><html><head><meta charset="utf-8"></head><body><article class="bd-article"><section id="top">
<h1>{title}<a class="headerlink" href="#top">#</a></h1><!-- said -- to none -->
<p data-x="1" onclick="alert()">Less &lt; more &amp; "so" &nbsp;on.<br>A <a href="{other}.html#deep">link</a>, one to the
<a href="{up}api/models.html#load">code</a>, one <a href="https://example.org/?a=1&amp;b=2">out</a>, and one <a href="#top">up</a>.</p>
<pre>print('id="top" href="x"')</pre>
<p id="deep"><img src="{up}_images/picture.png" alt="A picture"><img alt="Inside" src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></p>
<figure><canvas></canvas><button>Play</button></figure>
<figure><img src="{up}_images/picture.png" alt="A still"><input type="range"><output>step 3</output></figure>
<details><summary>Solution</summary><p>Open it.</p></details><script>1 < 2</script></section></article></body></html>"""


@pytest.fixture
def ebook(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import ebook

    monkeypatch.setattr(ebook, "contents", lambda: list(PAGES))
    return ebook


@pytest.fixture
def site(tmp_path) -> Path:
    """A small site of three pages."""
    for name in ("_images", "_static", "notebooks"):
        (tmp_path / "html" / name).mkdir(parents=True)
    for name in ("_images/picture.png", "_static/social.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "html" / name)
    (tmp_path / "html" / "_static" / "pygments.css").write_text(
        'html[data-theme="light"] .highlight .k { color: #6730C5 }\n'
    )
    for page, other in (("index", "notebooks/01_first"), ("notebooks/01_first", "../more"), ("more", "index")):
        up = "../" if "/" in page else ""
        text = PAGE.format(title=page.rpartition("/")[2], other=other, up=up)
        (tmp_path / "html" / f"{page}.html").write_text(text, encoding="utf-8")
    return tmp_path / "html"


def check_epub(path: Path) -> dict[str, ET.Element]:
    """Refuse an EPUB that lacks something that it names, or names not all that it has; gives its pages."""
    with zipfile.ZipFile(path) as book:
        assert book.testzip() is None
        first, names = book.infolist()[0], book.namelist()
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert book.read("mimetype") == b"application/epub+zip"
        assert len(set(names)) == len(names)
        container = ET.fromstring(book.read("META-INF/container.xml"))
        (root,) = container.iter("{urn:oasis:names:tc:opendocument:xmlns:container}rootfile")
        package = ET.fromstring(book.read(root.get("full-path")))
        items = {item.get("id"): item for item in package.iter(f"{OPF}item")}
        files = {f"book/{item.get('href')}" for item in items.values()}
        assert files | {"mimetype", "META-INF/container.xml", root.get("full-path")} == set(names)
        pages = {name: ET.fromstring(book.read(name)) for name in sorted(files) if name.endswith(".xhtml")}
        spine = [items[each.get("idref")].get("href") for each in package.iter(f"{OPF}itemref")]
        assert {f"book/{name}" for name in spine} == set(pages) - {"book/nav.xhtml"}
        for item in items.values():
            drawn = f"book/{item.get('href')}" in pages and any(pages[f"book/{item.get('href')}"].iter(f"{SVG}svg"))
            assert drawn == ("svg" in (item.get("properties") or "").split())
    marks = {name: {part.get("id") for part in page.iter() if part.get("id")} for name, page in pages.items()}
    for name, page in pages.items():
        ids = [part.get("id") for part in page.iter() if part.get("id") and not part.tag.startswith(SVG)]
        assert len(set(ids)) == len(ids), name
        for part in page.iter():
            assert not any(key.startswith("on") for key in part.keys()), (name, part.tag)  # noqa: SIM118
            for address in (part.get("src"), part.get("href")):
                if address is None or re.match(r"\w+:", address):
                    continue
                target, mark = urldefrag(address)
                target = f"book/{unquote(target)}" if target else name
                assert target in files, (name, address)
                assert not mark or target not in marks or mark in marks[target], (name, address)
        assert not any(page.iter(f"{HTML}script")), name
        assert all(picture.get("alt") for picture in page.iter(f"{HTML}img")), name
    return pages


def test_an_epub_is_whole(ebook, site, tmp_path, browser):
    found = ebook.articles(site, browser)
    assert [(article.page, article.title) for article in found] == [
        ("index", "index"),
        ("notebooks/01_first", "1 · First"),
        ("more", "more"),
    ]
    pages = check_epub(ebook.write_epub(found, site, tmp_path / "book.epub", "1.0"))
    chapter = pages["book/01_first.xhtml"]
    said = " ".join("".join(chapter.itertext()).split())
    assert 'Less < more & "so"' in said
    assert "A live figure stands here on the site." in said
    assert "step 3" in said
    assert """print('id="top" href="x"')""" in said  # text is left as it is
    assert "Play" not in said
    links = [link.get("href") for link in chapter.iter(f"{HTML}a")]
    assert links == ["more.xhtml#deep", None, "https://example.org/?a=1&b=2", "#top"]  # the code's page is not in it
    assert [part.get("open") for part in chapter.iter(f"{HTML}details")] == ["open"]
    assert [link.get("href") for link in pages["book/nav.xhtml"].iter(f"{HTML}a")] == [
        "index.xhtml",
        "01_first.xhtml",
        "more.xhtml",
    ]


def test_all_articles_on_one_page_keep_their_links_apart(ebook, site, browser):
    images = {}
    page = ET.fromstring(ebook.whole_page(ebook.articles(site, browser), site, images))
    ids = [part.get("id") for part in page.iter() if part.get("id")]
    assert len(set(ids)) == len(ids)
    inner = [link.get("href") for link in page.iter(f"{HTML}a") if (link.get("href") or "").startswith("#")]
    assert {address[1:] for address in inner} <= set(ids)
    assert {"#more--deep", "#01_first--top", "#index"} <= set(inner)
    assert set(images) == {"picture.png"}


def test_a_pdf_has_all_pages_and_links(ebook, site, tmp_path, browser):
    path = ebook.write_pdf(ebook.articles(site, browser), site, tmp_path / "book.pdf", browser)
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) == 5  # title, contents, and the three
    assert b"/Outlines" in content


def test_a_page_that_is_not_there_is_named(ebook, site, browser):
    (site / "more.html").unlink()
    with pytest.raises(Exception, match=r"the site has no page .*more\.html: make site"):
        ebook.articles(site, browser)


def test_without_a_browser_it_says_what_to_install(ebook, monkeypatch):
    monkeypatch.delenv("BOOK_BROWSER", raising=False)
    monkeypatch.setattr(ebook.shutil, "which", lambda name: None)
    with pytest.raises(Exception, match="install it, or name its path in BOOK_BROWSER"):
        ebook.browser_path()


def test_the_contents_are_those_of_the_book(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import ebook

    pages = [page for page, _, _ in ebook.contents()]
    chapters = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py")}
    assert {page.removeprefix("notebooks/") for page in pages if page.startswith("notebooks/")} == chapters
    assert "playground" not in pages
    assert not any(page.startswith("api/") for page in pages)
