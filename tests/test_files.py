"""Files and folders: devices and links stay what they are, a folder has one writer, and nothing is refused late."""

import multiprocessing
import os
import stat
import threading
import time

import pytest

from diffusion_book.system.errors import BookError
from diffusion_book.system.files import (
    check_file,
    check_folder,
    only_writer,
    timestamped_folder,
    write_text,
    write_whole,
)


def test_a_pipe_stays_a_pipe_and_is_given_the_text(tmp_path):
    path, heard = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: heard.append(path.read_text()), daemon=True)
    reader.start()
    write_text(path, "figures\n")
    reader.join(20)
    assert heard == ["figures\n"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_stays_a_device(tmp_path):
    before = os.stat("/dev/null")
    write_text("/dev/null", "nobody reads this")
    assert (os.stat("/dev/null").st_mode, os.stat("/dev/null").st_ino) == (before.st_mode, before.st_ino)
    with pytest.raises(BookError, match=r"cannot write /dev/full .*No space left.*free some space"):
        write_text("/dev/full", "there is no room for this")


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    path, real = tmp_path / "last.pt", tmp_path / "real" / "last.pt"
    real.write_text("old")
    path.symlink_to(real)
    assert write_text(path, "new") == path
    assert path.is_symlink()
    assert real.read_text() == "new"
    assert [each.name for each in real.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("-", "- is no file: give a name"),
        ("", "is a folder"),
        ("{folder}", "is a folder"),
        ("{folder}/file/x", "choose another folder"),
    ],
)
def test_what_is_no_file_is_refused_before_and_when_it_is_written(tmp_path, path, said):
    (tmp_path / "file").write_text("mine")
    path = path.format(folder=tmp_path)
    for refuse in (check_file, lambda path: write_text(path, "text")):
        with pytest.raises(BookError, match=said):
            refuse(path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
def test_a_folder_that_cannot_be_is_refused_and_one_that_can_is_not_made(tmp_path):
    with pytest.raises(BookError, match="cannot make the folder /proc/none/here"):
        check_folder("/proc/none/here")
    check_folder(tmp_path / "not" / "yet")
    check_file(tmp_path / "not" / "yet" / "file.json")
    assert not list(tmp_path.iterdir())


def test_an_error_that_is_not_the_systems_keeps_its_words(tmp_path):
    def fail(path):
        raise OSError("broken data stream when writing image file")

    with pytest.raises(BookError) as told:
        write_whole(tmp_path / "grid.pdf", fail)
    assert str(told.value) == f"cannot write {tmp_path / 'grid.pdf'}: broken data stream when writing image file"


def test_cleaning_does_not_follow_links(tmp_path):
    outside, parent = tmp_path / "outside", tmp_path / "samples"
    old = time.time() - 86_400
    ours = parent / "20240101_000000-ddpm" / "sample_000"
    for folder in (outside / "deep", ours):
        folder.mkdir(parents=True)
        leftover = folder / ".writing-half.pdf"
        leftover.write_text("half")
        os.utime(leftover, (old, old))
    (parent / "20240101_000001-ddpm").symlink_to(outside)
    (ours / "linked").symlink_to(outside)
    timestamped_folder(parent, "ddpm")
    assert (outside / "deep" / ".writing-half.pdf").exists()
    assert not (ours / ".writing-half.pdf").exists()


def _hold(folder, held, release):
    with only_writer(folder):
        held.set()
        release.wait(60)


def test_a_folder_has_one_writer_and_a_killed_one_is_none(tmp_path):
    fork = multiprocessing.get_context("fork")
    held, release = fork.Event(), fork.Event()
    process = fork.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(60)
    with pytest.raises(BookError, match=f"another process writes to {tmp_path}"), only_writer(tmp_path):
        pass
    process.kill()
    process.join()
    assert list(tmp_path.iterdir())  # what it left does not matter
    with only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
