"""What lies beside the sources for those who publish, cite or run the book elsewhere. None of it can be tried here."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_names_the_version_and_the_licence_that_are_here():
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said["version"] == PROJECT["version"]
    assert said["license"] == PROJECT["license"]
    assert [author["name"] for author in said["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert {"cff-version", "message", "title", "type"} <= set(said)


def make_targets() -> set[str]:
    """The targets that the Makefile knows."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.search(r"^TARGETS := (.*)$", text, re.MULTILINE)[1].split())


@pytest.mark.parametrize("name", [".github/workflows/pages.yml", "Dockerfile", ".devcontainer/devcontainer.json"])
def test_what_is_run_elsewhere_calls_targets_that_there_are(name):
    called = set(re.findall(r"make\W+([a-z]+)", (ROOT / name).read_text(encoding="utf-8").replace("make git", "")))
    assert called
    assert called <= make_targets()


def test_the_workflow_publishes_what_it_builds():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text(encoding="utf-8"))
    build, deploy = workflow["jobs"]["build"], workflow["jobs"]["deploy"]
    assert deploy["needs"] == "build"
    variables = [step["env"] for step in build["steps"] if step.get("run", "").startswith("make site")]
    assert set(variables[0]) == {"BOOK_URL", "BOOK_REPOSITORY"}
    upload = next(step for step in build["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "_build/html"
    assert workflow["permissions"]["pages"] == "write"


def test_the_container_is_the_same_for_an_editor():
    described = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert (ROOT / ".devcontainer" / described["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("url", "repository", "shown"),
    [("", "", False), ("https://book.example/", "", False), ("https://book.example/", "https://git.example/b", True)],
)
def test_buttons_that_open_a_chapter_elsewhere_need_an_address(monkeypatch, url, repository, shown):
    monkeypatch.setenv("BOOK_URL", url)
    monkeypatch.setenv("BOOK_REPOSITORY", repository)
    options = runpy.run_path(str(ROOT / "conf.py"))["html_theme_options"]
    assert ("launch_buttons" in options) == shown
    assert ("repository_url" in options) == shown
