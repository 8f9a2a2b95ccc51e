"""What lies beside the sources for those who publish, cite or run the book elsewhere. None of it can be tried here."""

import json
import re
import runpy
import subprocess
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
    (step,) = (step for step in build["steps"] if "docs/publish.py" in step.get("run", ""))
    assert set(step["env"]) == {"BASE", "BOOK_REPOSITORY"}
    assert step["run"].split("#")[0].split()[-2:] == ['"$BASE"', "published"]
    upload = next(step for step in build["steps"] if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "published"
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


def test_a_page_offers_other_versions_where_there_are_some(monkeypatch):
    monkeypatch.setenv("BOOK_URL", "https://book.example/v1.0/")
    monkeypatch.delenv("BOOK_VERSION", raising=False)
    assert "switcher" not in runpy.run_path(str(ROOT / "conf.py"))["html_theme_options"]
    monkeypatch.setenv("BOOK_VERSION", "v1.0")
    options = runpy.run_path(str(ROOT / "conf.py"))["html_theme_options"]
    assert options["switcher"] == {"json_url": "https://book.example/versions.json", "version_match": "v1.0"}


def test_every_version_with_a_tag_is_built_from_its_own_sources(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import publish

    root = tmp_path / "sources"
    root.mkdir()

    def git(*words: str) -> None:
        identity = ("-c", "user.name=reader", "-c", "user.email=reader@book.example")
        subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)

    git("init")
    for version in ("v1.9", "v1.10", "newest"):
        (root / "text").write_text(version)
        git("add", "text")
        git("commit", "-m", version)
        if version.startswith("v"):
            git("tag", version)

    def build(sources, target, base, name):
        target.mkdir()
        (target / "index.html").write_text(f"{base} {name} {(sources / 'text').read_text()}")

    names = publish.publish("https://book.example/", tmp_path / "out", root, build)
    assert names == ["latest", "v1.10", "v1.9"]
    said = {name: (tmp_path / "out" / name / "index.html").read_text().split()[1:] for name in names}
    assert said == {"latest": ["latest", "newest"], "v1.10": ["v1.10", "v1.10"], "v1.9": ["v1.9", "v1.9"]}
    listed = json.loads((tmp_path / "out" / "versions.json").read_text())
    assert [each["url"] for each in listed] == [f"https://book.example/{name}/" for name in names]
    assert "url=latest/index.html" in (tmp_path / "out" / "index.html").read_text()
    worktrees = subprocess.run(["git", "worktree", "list"], cwd=root, capture_output=True, text=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1, "nothing is left behind"
