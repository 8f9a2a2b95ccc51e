"""The ground: the imports' direction, the requirements, the shipped weights' cards, the commands in the texts."""

import ast
import functools
import graphlib
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from diffusion_book import book
from diffusion_book.models import weights
from diffusion_book.system import hashes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion_book"

# What stands on what: a floor for each room, and floors within the mathematics. A module imports from its own floor and
# from those below, never from above.
FLOORS = [
    {"system"},
    {"networks"},
    {"data", "schedules", "targets"},
    {"denoiser", "objective", "elbo", "samplers", "guidance", "interpolation", "editing"},
    {"models"},
    {"training"},
    {"evaluation"},
    {"viz"},
    {"exercises"},
    {"cli", "__main__", "book"},
]
IMPORT_NAMES = {"pillow": "PIL", "scikit-learn": "sklearn", "umap-learn": "umap"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports(module: str) -> set[str]:
    """Every module that this one imports, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name: write the whole one"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found - {module}


def floor_of(module: str) -> int:
    _, _, inner = module.partition(".")
    if not inner:
        inner = "models"  # diffusion_book itself offers load(), a pipeline
    (floor,) = (number for number, names in enumerate(FLOORS) if inner.split(".")[0] in names)
    return floor


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    upward = arrows_up(module)
    assert not upward, f"{module} stands below {', '.join(sorted(upward))} and must not import it"


def arrows_up(module: str) -> set[str]:
    """What a module imports from floors above its own."""
    ours = {name for name in imports(module) if name.split(".")[0] == "diffusion_book"}
    return {name for name in ours if floor_of(name) > floor_of(module)}


def test_every_room_has_a_floor_of_its_own():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set().union(*FLOORS)
    assert all(len(floor & rooms) <= 1 for floor in FLOORS)


def test_no_module_imports_itself_by_a_detour():
    graph = {module: {name for name in imports(module) if name in MODULES} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_networks_know_nothing_of_diffusion():
    for module in MODULES:
        if module.startswith("diffusion_book.networks"):
            ours = {name for name in imports(module) if name.startswith("diffusion_book.")}
            known = ("diffusion_book.networks", "diffusion_book.system.errors", "diffusion_book.system.lazy")
            assert all(name.startswith(known) for name in ours), module


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_library_imports_only_what_it_requires():
    """In particular no diffusion library: nothing but Python, the dependencies and the book's extra."""
    declared = [
        Requirement(line).name for line in [*project()["dependencies"], *project()["optional-dependencies"]["book"]]
    ]
    allowed = {IMPORT_NAMES.get(name, name) for name in declared} | {
        "diffusion_book",
        "IPython",
        *sys.stdlib_module_names,
    }
    for module in MODULES:
        assert {name.split(".")[0] for name in imports(module)} <= allowed, module


def test_environment_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    extras = ",".join(project()["optional-dependencies"])
    assert pip == {"pip": ["-c constraints.txt", f"-e .[{extras}]"]}
    assert f"python{project()['requires-python']}" in conda


def test_constraints_pin_every_requirement_to_a_version_that_it_accepts():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (specifier,) = pin.specifier
            assert specifier.operator == "==", line
            pins.setdefault(pin.name, []).append(specifier.version)
    extras = itertools.chain.from_iterable(project()["optional-dependencies"].values())
    for line in [*project()["dependencies"], *extras]:
        requirement = Requirement(line)
        assert requirement.name in pins, f"make constraints: {requirement.name} is not pinned"
        for version in pins[requirement.name]:
            assert requirement.specifier.contains(version), f"make constraints: {line} does not accept {version}"


SHIPPED = sorted(path.relative_to(weights.FOLDER).with_suffix("") for path in weights.FOLDER.rglob("*.safetensors"))


@pytest.mark.parametrize("name", SHIPPED, ids=str)
def test_shipped_weights_have_their_card(name):
    path = weights.FOLDER / name
    card = weights.read_card(name.name, path.parent)
    assert card["sha256"] == hashes.hash_of(path.with_suffix(".safetensors"))
    assert not re.search(r'"(/|~|[A-Z]:\\)', json.dumps(card)), "the card names a path of the machine that made it"


def tracked_texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = {}
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.is_file() and path != Path(__file__) and b"\0" not in (content := path.read_bytes()):
            texts[name] = content.decode("utf-8")
    return texts


@pytest.mark.parametrize(
    "pattern",
    [
        r"--(extra-)?index-url\b|--find-links\b|/simple/?\s|files\.pythonhosted\.org|download\.pytorch\.org",
        r"(?<![\w.~-])/(home|root|Users|work)/\w",
    ],
    ids=["package index", "path of one machine"],
)
def test_no_tracked_file_names_a(pattern):
    found = [f"{name}: {hit[0]}" for name, text in tracked_texts().items() for hit in re.finditer(pattern, text)]
    assert not found


TEXTS = ["README.md", "CONTRIBUTING.md", "docs/index.md"]


@pytest.mark.parametrize("text", TEXTS)
def test_make_targets_in_the_texts_exist(text):
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / text).read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert named
    assert named <= set(book.TARGETS)


@pytest.mark.parametrize("text", TEXTS)
def test_files_that_the_texts_link_to_exist(text):
    path = ROOT / text
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    base = ROOT if text == "docs/index.md" else path.parent  # the site puts docs/ beside notebooks/
    missing = [
        link for link in links if "://" not in link and not (base / link).exists() and not (path.parent / link).exists()
    ]
    assert not missing


def test_importing_the_book_is_enough_to_list_its_models():
    """The package works from any folder, with nothing heavy but torch drawn in by the import."""
    heavy = {"matplotlib", "IPython", "sklearn", "umap", "diffusers", "torchvision", "psutil", "tyro"}
    code = f"import sys, diffusion_book; print(diffusion_book.list_models()); print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    models, drawn_in = ran.stdout.splitlines()
    assert drawn_in == "[]"
    assert models.startswith("[")


LOADED = """
import sys, time, torch
began = time.process_time()
import diffusion_book
imported = time.process_time()
diffusion_book.load("ddpm", device="cpu")
print(imported - began, time.process_time() - imported)
print(sorted({"matplotlib", "IPython", "sklearn", "umap", "diffusers", "torchvision", "psutil", "tyro"} & set(sys.modules)))
"""


def test_a_model_is_loaded_in_a_moment():
    """0.2 s for the import and 0.3 s for the weights are aimed at; in processor time, and with much to spare."""
    ran = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, drawn_in = ran.stdout.splitlines()
    importing, loading = map(float, seconds.split())
    assert drawn_in == "[]"
    assert importing < 0.6
    assert loading < 1.0
