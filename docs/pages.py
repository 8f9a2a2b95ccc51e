"""What the site's pages need beyond Sphinx: words for every figure, descriptions, and light scripts.

A Sphinx extension, loaded by conf.py.
"""

import base64
import hashlib
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from html import escape
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from PIL import Image

MATHJAX_PARTS = ["core", "input/tex", "output/svg", "a11y/assistive-mml"]
WIDE = 700  # pixels of a figure, from which on a phone scrolls it: see book.css
# Alphabets of MathJax's font that the equations do without, two fifths of it: those that are fonts of their own, and
# among Unicode's mathematical alphabets. Upright, italic, bold, calligraphic and double-struck letters are left.
UNUSED_FONTS = r"fraktur\w*|monospace|sansSerif\w*|texCalligraphicBold|texOldstyle\w*"
UNUSED_LETTERS = [
    range(0x1D468, 0x1D538),  # bold italic, script, fraktur
    range(0x1D552, 0x1D6A8),  # small double-struck, bold fraktur, sans serif, monospace
    range(0x1D71C, 0x1D7CE),  # bold italic and sans serif Greek
    range(0x1D7D8, 0x1D800),  # double-struck, sans serif and monospace digits
]
EMBEDDED = re.compile(
    r'src="data:image/(?P<kind>\w+);base64,(?P<content>[A-Za-z0-9+/=]{4000,})"(?=[^>]*loading="lazy")'
)
DESCRIPTION = "Diffusion models on handwritten digits: a book to run, and the library behind it."


def setup(app):
    app.connect("doctree-read", describe_figures)
    app.connect("doctree-read", keep_numbers)
    app.connect("html-page-context", describe_page)
    app.connect("build-finished", write_scripts)
    app.connect("build-finished", write_list)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def describe_figures(app, doctree: nodes.document) -> None:
    """Give every picture that a cell shows words for those who do not see it, and its size."""
    for bundle in doctree.findall(nodes.container):
        if bundle.get("nb_element") != "mime_bundle":
            continue
        plain = next((part.astext() for part in bundle.children if part.get("mime_type") == "text/plain"), "")
        words = "Figure" if plain.startswith("<") else plain  # the book's own figures describe themselves
        for image in bundle.findall(nodes.image):
            image["alt"] = words if ":" in words else f"{words} of the section “{heading_above(bundle)}”"
            # It is loaded when the reader comes near. With its size known, the page does not jump then.
            image["loading"] = "lazy"
            with Image.open(Path(app.srcdir, image["uri"])) as picture:
                image["width"], image["height"] = map(str, picture.size)
            if int(image["width"]) > WIDE:
                image["classes"].append("wide")


def heading_above(node: nodes.Node) -> str:
    """The title of the section that a node stands in."""
    while not isinstance(node, nodes.section):
        node = node.parent
    return node.next_node(nodes.title).astext()


def keep_numbers(app, doctree: nodes.document) -> None:
    """Leave an equation with a number of its own as it is: Sphinx would wrap its lines in `split`, which allows none."""
    for equation in doctree.findall(nodes.math_block):
        text = equation.astext()
        if r"\tag" in text and not equation.get("nowrap"):
            equation["nowrap"] = True
            equation.children = [nodes.Text(rf"\[{text}\]")]


def describe_page(app, pagename: str, templatename: str, context: dict, doctree: nodes.document | None) -> None:
    """What a search engine shows of a page, and what a link to it looks like elsewhere."""
    if doctree is None:
        return
    # Parameters of a signature, each on a line, are a list without terms: it must not call itself a list of definitions.
    context["body"] = context["body"].replace("<dl>\n<dd><em", '<dl role="presentation">\n<dd><em')
    context["body"] = pictures_as_files(context["body"], Path(app.outdir, "_images"), context["pathto"])
    title, words = doctree.next_node(nodes.title).astext(), next(paragraphs(doctree))
    if pagename == app.config.root_doc:
        context["docstitle"], words = "", DESCRIPTION  # the title would be there twice
    base = app.config.html_baseurl
    picture = f"{base.rstrip('/')}/_static/social.png" if base else context["pathto"]("_static/social.png", 1)
    said = {
        "description": textwrap.shorten(words, 200, placeholder=" ..."),
        "og:title": title,
        "og:description": textwrap.shorten(words, 200, placeholder=" ..."),
        "og:type": "article",
        "og:site_name": app.config.project,
        "og:image": picture,
        "og:image:alt": "Handwritten digits appearing out of noise",
        "twitter:card": "summary_large_image",
    }
    for name, content in said.items():
        key = "property" if name.startswith("og:") else "name"
        context["metatags"] += f'<meta {key}="{name}" content="{escape(content)}">\n'


def pictures_as_files(body: str, folder: Path, pathto: Callable[[str, int], str]) -> str:
    """The same page with the pictures that its figures carry as files, which are loaded when the reader comes near.

    In a notebook they have to travel inside; on the site they would be a third of what a page loads first.
    """

    def file_of(picture: re.Match) -> str:
        content = base64.b64decode(picture["content"])
        path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.{picture['kind']}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f'src="{pathto(f"_images/{path.name}", 1)}"'

    return EMBEDDED.sub(file_of, body)


def paragraphs(doctree: nodes.document) -> Iterator[str]:
    """The paragraphs of a page that are neither a picture nor set in italics, as the line on its running time is."""
    for paragraph in doctree.findall(nodes.paragraph):
        if not isinstance(paragraph.children[0], nodes.image | nodes.emphasis):
            yield paragraph.astext()


def write_list(app, exception: Exception | None) -> None:
    """Write llms.txt: what the site is, and each of its pages with its first words, for programs that read it."""
    if exception is not None or app.builder.name != "html":
        return
    lines = [f"# {app.config.project}", "", f"> {DESCRIPTION}", ""]
    for page in [app.config.root_doc, *app.env.toctree_includes.get(app.config.root_doc, [])]:
        doctree = app.env.get_doctree(page)
        words = textwrap.shorten(next(paragraphs(doctree), ""), 200, placeholder=" ...")
        address = f"{app.config.html_baseurl}{app.builder.get_target_uri(page)}"
        lines.append(f"- [{doctree.next_node(nodes.title).astext()}]({address}): {words}")
    Path(app.outdir, "llms.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_scripts(app, exception: Exception | None) -> None:
    """Copy the parts of MathJax, of its font and of the theme's 2,000 icons that the pages show.

    With all that these bring along, a page would load two and a half megabytes more.
    """
    if exception is not None:
        return
    static = Path(app.outdir, "_static")
    for file in files("sphinx-mathjax-offline"):
        _, _, part = file.as_posix().partition("static/mathjax/")
        # They bring in further ones by themselves: the font, and extensions for commands that they do not know.
        further = part.startswith(("output/svg/fonts/", "input/tex/extensions/"))
        if part.removesuffix(".js") in ["startup", *MATHJAX_PARTS] or further:
            (static / "mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), static / "mathjax" / part)
    font = static / "mathjax" / "output" / "svg" / "fonts" / "tex.js"
    font.write_text(only_letters(font.read_text(encoding="utf-8")), encoding="utf-8")

    places = [*Path(app.outdir).rglob("*.html"), *static.glob("scripts/*theme.js")]
    used = set(re.findall(r"\bfa-([a-z0-9-]+)", " ".join(place.read_text(encoding="utf-8") for place in places)))
    script = Path("theme", "pydata_sphinx_theme", "static", "scripts", "fontawesome.js")
    whole = Path(find_spec("pydata_sphinx_theme").origin).parent / script
    (static / "scripts" / script.name).write_text(only_icons(used, whole.read_text(encoding="utf-8")), encoding="utf-8")


def only_icons(used: set[str], script: str) -> str:
    """Font Awesome's script with no other icons than these.

    An icon is written as `moon:[512,512,[aliases],"f186","outline"],`.
    """
    return re.sub(
        r'"?([a-z0-9-]+)"?:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]*",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?',
        lambda icon: icon[0] if used & {icon[1], *re.findall(r'"([^"]+)"', icon[2])} else "",
        script,
    )


def only_letters(script: str) -> str:
    """MathJax's font without the alphabets that are not used. A letter that is missing is shown in the page's font.

    A shape is written as `120016:"0 7Q0 ...",`, or, at round numbers, as `12e4:"...",`.
    """
    font = r"\.(?P<font>\w+)=\(0,\w+\.AddPaths\)\(\w+\.\w+,\{"
    shape = r'(?P<number>\d+(?:e\d+)?):"[^"]*",?'
    now = ""

    def kept(match: re.Match) -> str:
        nonlocal now
        if match["font"]:
            now = match["font"]
            return match[0]
        number = int(float(match["number"]))
        unused = re.fullmatch(UNUSED_FONTS, now) or any(number in letters for letters in UNUSED_LETTERS)
        return "" if unused else match[0]

    return re.sub(f"{font}|{shape}", kept, script)
