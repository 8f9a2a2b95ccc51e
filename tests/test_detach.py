"""A training that outlives its terminal, in a real session of GNU screen."""

import os
import shutil
import subprocess
import time

import pytest
from commands import refused

from diffusion_book.cli import detach
from diffusion_book.cli.main import main
from diffusion_book.models.checkpoints import find_checkpoint
from diffusion_book.training.experiment import LOG, read_records

TINY = ["--dataset", "digits", "--device", "cpu", "--precision", "fp32", "--batch_size", "256", "--timesteps", "6"]
TINY += ["--base_channels", "8", "--channel_multipliers", "1", "--attention_levels", "0", "--patch_size", "4"]
PATIENCE = 300  # seconds: a busy machine takes long to start Python

needs_screen = pytest.mark.skipif(shutil.which("screen") is None, reason="the program screen is not here")


def sessions() -> str:
    return subprocess.run(["screen", "-ls"], capture_output=True, text=True).stdout


def wait_until(what) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


@pytest.fixture
def screens(tmp_path, monkeypatch):
    """Sessions of their own, all ended at the end."""
    folder = tmp_path / "screens"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("SCREENDIR", str(folder))
    yield
    for line in sessions().splitlines():
        if "tached" in line:
            subprocess.run(["screen", "-S", line.split()[0], "-X", "quit"], capture_output=True)


@needs_screen
def test_it_trains_in_a_session_of_its_name_and_keeps_a_log(screens, tmp_path, capsys):
    main(["train", "ddpm", *TINY, "--epochs", "2", "--detach", "--output-dir", str(tmp_path / "runs with space")])
    said = capsys.readouterr().out.splitlines()
    (folder,) = (tmp_path / "runs with space").iterdir()
    assert said[-1] == str(folder)
    assert folder.name.endswith("-ddpm")
    assert any(line.endswith(f"tail -f {folder / LOG}") for line in said)
    assert any(f"screen -r {folder.name} " in line for line in said)
    wait_until(lambda: (folder / "checkpoints" / "final.pt").is_file() and folder.name not in sessions())
    assert [record["epoch"] for record in read_records(folder, 10**9) if record["event"] == "epoch"] == [1, 2]
    assert str(folder) in (folder / LOG).read_text()


@needs_screen
def test_it_is_alive_meanwhile_saves_when_stopped_and_goes_on(screens, tmp_path, capsys):
    main(["train", "ddpm", *TINY, "--epochs", "100000", "--detach", "--name", "mine", "--output-dir", str(tmp_path)])
    folder = tmp_path / "mine"
    assert "mine" in sessions()
    wait_until(lambda: (folder / "checkpoints" / "last.pt").is_file())
    subprocess.run(["screen", "-S", "mine", "-X", "stuff", "\003"], check=True)
    wait_until(lambda: "mine" not in sessions())
    assert "is saved" in (folder / LOG).read_text()
    done = read_records(folder, 10**9)[-1]["epoch"]
    capsys.readouterr()
    main(["train", "ddpm", "--epochs", str(done + 1), "--resume", str(folder), "--detach", "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    wait_until(lambda: (folder / "checkpoints" / "final.pt").is_file() and "mine" not in sessions())
    assert read_records(folder, 10**9)[-1]["epoch"] == done + 1
    assert find_checkpoint(folder).is_file()


def test_without_screen_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detach.shutil, "which", lambda name: None)
    line = refused(capsys, "train", "ddpm", *TINY, "--detach", "--output-dir", tmp_path / "runs")
    assert "needs the program screen: install it" in line
    assert not (tmp_path / "runs").exists()


def test_screen_that_cannot_start_says_why(tmp_path, monkeypatch, capsys):
    program = tmp_path / "screen"
    program.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    line = refused(capsys, "train", "ddpm", *TINY, "--detach", "--output-dir", tmp_path / "runs")
    assert "screen could not start (no room): leave out --detach" in line


def test_a_bad_option_is_refused_before_anything_starts(tmp_path, capsys):
    line = refused(capsys, "train", "ddpm", "--detach", "--lr", "-1", "--output-dir", tmp_path / "runs")
    assert "lr is -1" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "said"), [("a/b", "give a name without slashes"), ("used", "is not empty")])
def test_names_that_cannot_be_given(tmp_path, capsys, name, said):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "something.txt").write_text("mine")
    assert said in refused(capsys, "train", "ddpm", *TINY, "--epochs", "1", "--name", name, "--output-dir", tmp_path)
    assert (tmp_path / "used" / "something.txt").read_text() == "mine"


def test_a_training_has_the_name_it_is_given(tmp_path, capsys):
    main(["train", "ddpm", *TINY, "--epochs", "1", "--name", "my first", "--output-dir", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "my first")
    assert (tmp_path / "my first" / "device_use.png").is_file()
