"""How Sphinx builds the site: `make book`.

The pages load nothing from outside, so that they can be read from a folder with no network.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the library, and the extensions that lie beside the pages

from pages import MATHJAX_PARTS  # noqa: E402  (it lies in docs/)

project = "The Diffusion Book"
author = "The Diffusion Book authors"
copyright = f"2026, {author}"

extensions = ["myst_nb", "sphinx_external_toc", "pages"]
extensions += ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "docstrings", "register", "cards"]
extensions += ["sphinx.ext.githubpages"]  # .nojekyll: folders that begin with _ are published too
extensions += ["sets"]  # samples of both data sets, on their page
extensions += ["live"]  # docs/live: figures that sample inside the page
external_toc_path = str(ROOT / "_toc.yml")
external_toc_exclude_missing = True

nb_execution_mode = "off"  # the Makefile has executed the chapters
nb_ipywidgets_js = {}  # the chapters' controls are plain HTML
# A chapter saved from JupyterLab carries a live control's widget too: a page without a kernel takes the HTML beside it.
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist", "html_image"]
myst_heading_anchors = 3

# The equations: MathJax's SVG output, for it needs no fonts, which some browsers refuse to load for a page that is
# opened from a folder. docs/pages.py copies the files.
mathjax_path = "mathjax/startup.js"
mathjax3_config = {
    "loader": {"load": MATHJAX_PARTS},
    "svg": {"fontCache": "local", "displayAlign": "left", "displayIndent": "1em"},
}

html_theme = "sphinx_book_theme"
html_title = project
html_logo = "docs/_static/logo.svg"
html_favicon = "docs/_static/logo.svg"
templates_path = ["docs/_templates"]
html_static_path = ["docs/_static"]
html_css_files = ["book.css"]
html_js_files = ["reach.js"]
html_show_sphinx = False
html_use_index = False  # it would be empty
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_baseurl = os.environ.get("BOOK_URL", "")  # where the site will stand, if anywhere: make site BOOK_URL=https://...
html_theme_options = {
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "logo": {"text": project},
    "navbar_persistent": [],  # the search field stands in the side bar
}
# Where the sources lie, if anywhere: make site BOOK_URL=https://... BOOK_REPOSITORY=https://... Then each chapter has
# buttons that open it where it can be run.
if html_baseurl and os.environ.get("BOOK_REPOSITORY"):
    html_theme_options |= {
        "repository_url": os.environ["BOOK_REPOSITORY"],
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }
# Where several versions stand side by side, each page offers the others: docs/publish.py.
if html_baseurl and os.environ.get("BOOK_VERSION"):
    html_theme_options |= {
        "switcher": {
            "json_url": urljoin(html_baseurl, "../versions.json"),
            "version_match": os.environ["BOOK_VERSION"],
        },
        "check_switcher": False,  # the list is not there before it is published
    }
    parts = ("navbar-logo", "version-switcher", "icon-links", "search-button-field", "sbt-sidebar-nav")
    html_sidebars = {"**": [f"{part}.html" for part in parts]}
exclude_patterns = ["_static", "_templates"]

# The API pages, from the docstrings.
add_module_names = False
autodoc_default_options = {"members": True, "member-order": "bysource", "no-value": True}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    name: name for name in ("DenoiserFunction", "Loss", "Schedule", "Step", "Target", "TimeSampling")
}
default_role = "code"  # what docstrings put between single backticks
napoleon_custom_sections = [("Attributes", "params_style")]  # a list, without a link target for each field
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
