"""Data: what the networks see, and that every failure ends in one line that helps."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import math
import os
import socket
import struct
import threading

import pytest
import torch
import torchvision.datasets

from diffusion_book import data
from diffusion_book.data import sources
from diffusion_book.system import streams
from diffusion_book.system.errors import BookError

FILES = {
    "train-images-idx3-ubyte": 12,
    "train-labels-idx1-ubyte": 12,
    "t10k-images-idx3-ubyte": 5,
    "t10k-labels-idx1-ubyte": 5,
}


@pytest.fixture(autouse=True)
def no_packages(monkeypatch, tmp_path):
    """As on a machine whose system has no data sets."""
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "none")


def idx(name: str) -> bytes:
    """A small file in MNIST's own format: big-endian header, then bytes."""
    count = FILES[name]
    if "images" in name:
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        body = bytes((picture + pixel) % 256 for picture in range(count) for pixel in range(28 * 28))
    else:
        header = struct.pack(">II", 0x801, count)
        body = bytes(picture % 10 for picture in range(count))
    return header + body


def write_files(root, kind: str = "MNIST", **damaged: bytes):
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_bytes(damaged.get(name.split("-ubyte")[0].replace("-", "_"), idx(name)))
    return root


def one_line(info) -> str:
    """The message of the error, which must be a single line."""
    message = str(info.value)
    assert "\n" not in message
    assert message
    return message


# --- What the networks see -----------------------------------------------------------------------


def test_normalise_and_crop_are_inverses_on_all_256_bytes():
    images = torch.arange(28 * 28).remainder(256).to(torch.uint8).reshape(1, 1, 28, 28)
    assert len(images.unique()) == 256
    assert torch.equal(data.quantise(data.crop(data.normalise(images))), images)


def test_padding_is_background_and_nothing_else():
    images = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    seen = data.normalise(images)
    assert seen.shape == (2, 1, 32, 32)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[2:30, 2:30] = True
    assert (seen[..., inside] == 1.0).all()
    assert (seen[..., ~inside] == -1.0).all()


def test_quantise_clips_and_rounds_to_the_nearest_byte():
    values = torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0, 0.5 / 127.5, 0.49 / 127.5])
    assert data.quantise(values).tolist() == [0, 0, 128, 255, 255, 128, 128]


def test_shuffled_batches_are_full_disjoint_and_repeatable():
    def batches(seed):
        return list(data.shuffled_batches(23, 5, torch.Generator().manual_seed(seed)))

    drawn = torch.cat(batches(1))
    assert [len(batch) for batch in batches(1)] == [5] * 4
    assert len(drawn.unique()) == 20
    assert drawn.max() < 23
    assert torch.equal(drawn, torch.cat(batches(1)))
    assert not torch.equal(drawn, torch.cat(batches(2)))


@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_files_are_read_as_they_are(tmp_path, name, kind):
    write_files(tmp_path, kind)
    train, test = data.load(name, "train", root=tmp_path), data.load(name, "test", root=tmp_path)
    assert (train.name, len(train), len(test)) == (name, 12, 5)
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert train.images.shape == (12, 1, 28, 28)
    assert train.images[3, 0].flatten()[:4].tolist() == [3, 4, 5, 6]
    assert test.labels.tolist() == [0, 1, 2, 3, 4]
    assert len(train.class_names) == 10
    images, labels = train.batch(torch.tensor([3, 1]))
    assert images.shape == (2, 1, 32, 32)
    assert labels.tolist() == [3, 1]
    assert torch.equal(data.quantise(data.crop(images)), train.images[[3, 1]])


def test_auto_takes_mnist_from_the_environment_without_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFUSION_BOOK_DATA", str(write_files(tmp_path)))
    assert data.load("auto").name == "mnist"
    assert capsys.readouterr() == ("", "")


def test_digits_come_with_scikit_learn():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert len(train) + len(test) == 1797
    assert train.images.shape[1:] == (1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert int(train.images.max()) == 255
    assert (train.images[..., :4] == 0).all()  # the margin that MNIST has too
    assert (train.labels.bincount() > 100).all()
    assert (test.labels.bincount() > 20).all()
    seen = {picture.numpy().tobytes() for picture in train.images}
    assert not any(picture.numpy().tobytes() in seen for picture in test.images)


# --- What goes wrong -----------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its `mode` says; see `mirror`."""

    def __init__(self, mode, release, *args):
        self.mode, self.release = mode, release
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.strip("/").removesuffix(".gz")
        if self.mode == "missing":
            self.send_error(404)
            return
        if self.mode == "silent":
            self.release.wait(20)
            return
        body = gzip.compress(idx(name), mtime=0)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.mode == "good":
            self.wfile.write(body)
        elif self.mode == "half":
            self.wfile.write(body[: len(body) // 2])
        elif self.mode == "stalls":
            self.wfile.write(body[:5])
            self.wfile.flush()
            self.release.wait(20)
        elif self.mode == "changed":
            self.wfile.write(body[:-1] + b"!")


@pytest.fixture
def mirror(monkeypatch):
    """A function that starts a server of ours in the place of torchvision's mirrors."""
    servers, release = [], threading.Event()

    def start(mode: str) -> None:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, mode, release))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        sums = [(f"{name}.gz", hashlib.md5(gzip.compress(idx(name), mtime=0)).hexdigest()) for name in FILES]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)

    yield start
    release.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    """Every connection is refused: nothing listens on the discard port of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for kind in data.TORCHVISION_NAMES.values():
        monkeypatch.setattr(
            getattr(torchvision.datasets, kind), "mirrors", ["http://127.0.0.1:9/a/", "http://127.0.0.1:9/"]
        )


def test_a_download_that_works_is_read(tmp_path, mirror):
    mirror("good")
    assert len(data.load("mnist", "test", root=tmp_path)) == 5
    assert len(data.load("mnist", "train", root=tmp_path)) == 12


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("missing", "mnist cannot be downloaded (HTTP Error 404: Not Found)"),
        ("half", "mnist came down damaged (File not found or corrupted)"),
        ("changed", "mnist came down damaged (File not found or corrupted)"),
    ],
)
def test_a_download_that_fails_says_why_and_what_to_do(tmp_path, mirror, mode, words):
    mirror(mode)
    with pytest.raises(BookError) as info:
        data.load("mnist", root=tmp_path)
    assert one_line(info).startswith(words)
    assert "DIFFUSION_BOOK_DATA" in one_line(info)


@pytest.mark.parametrize("mode", ["silent", "stalls"])
def test_a_download_that_stands_still_is_given_up(tmp_path, mirror, monkeypatch, mode):
    monkeypatch.setattr(sources, "DOWNLOAD_TIMEOUT", 0.2)
    mirror(mode)
    with pytest.raises(BookError, match="stood still for 0 s") as info:
        data.load("mnist", root=tmp_path)
    one_line(info)


def test_a_download_that_failed_half_way_can_be_repeated(tmp_path, mirror):
    mirror("half")
    with pytest.raises(BookError):
        data.load("mnist", root=tmp_path)
    mirror("good")
    assert len(data.load("mnist", root=tmp_path)) == 12


def test_the_time_out_does_not_outlive_the_download(tmp_path, mirror):
    mirror("missing")
    with pytest.raises(BookError):
        data.load("mnist", root=tmp_path)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", list(data.TORCHVISION_NAMES))
def test_asked_by_name_it_never_falls_back(tmp_path, no_network, name):
    with pytest.raises(BookError, match="Connection refused") as info:
        data.load(name, root=tmp_path)
    message = one_line(info)
    assert message.startswith(f"{name} cannot be downloaded")
    assert message.count("refused") == 1  # two mirrors, one reason
    assert str(tmp_path) in message


def test_auto_falls_back_with_a_notice(tmp_path, no_network, capsys):
    dataset = data.load("auto", root=tmp_path)
    assert dataset.name == "digits"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("notice: no MNIST (mnist cannot be downloaded")
    assert "refused" in err
    assert "scikit-learn" in err


def test_the_notice_comes_once_and_leaves_the_home_folder_out(tmp_path, monkeypatch, no_network, capsys):
    """It ends up in executed chapters, which load both splits and which others read."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DIFFUSION_BOOK_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    streams.say_once.cache_clear()
    assert [data.load("auto", split).name for split in ("train", "test", "train")] == ["digits"] * 3
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "~/.cache/diffusion-book/data/MNIST/raw" in err
    assert str(tmp_path) not in err


def test_the_data_folder_is_the_environment_s_else_the_cache_s(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DIFFUSION_BOOK_DATA", raising=False)
    assert data.data_folder() == tmp_path / "diffusion-book" / "data"
    monkeypatch.setenv("DIFFUSION_BOOK_DATA", str(tmp_path / "mine"))
    assert data.data_folder() == tmp_path / "mine"


def header(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        idx("train-images-idx3-ubyte")[:3],
        idx("train-images-idx3-ubyte")[:-1],
        idx("train-images-idx3-ubyte") + b"\0",
        b"\x1f\x8b" + idx("train-images-idx3-ubyte"),
        header(0x803, 11, 28, 28) + bytes(11 * 28 * 28),
        header(0xA03, 12, 28, 28) + bytes(12 * 28 * 28),
        header(0x901, 12) + bytes(12),
        header(0x801, 12) + bytes(12),
    ],
    ids=["empty", "cut in the header", "cut", "longer", "not unpacked", "a picture short", "no such type",
         "signed", "labels for pictures"],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, no_network, content):
    write_files(tmp_path, train_images_idx3=content)
    with pytest.raises(BookError, match="is damaged") as info:
        data.load("mnist", root=tmp_path)
    message = one_line(info)
    assert f"bring it anew, or move {tmp_path / 'MNIST' / 'raw'} elsewhere and try again" in message
    assert "delete" not in message
    assert len(data.load("mnist", "test", root=tmp_path)) == 5  # the other split is whole


def test_labels_that_are_pictures_are_damaged(tmp_path):
    write_files(tmp_path, train_labels_idx1=idx("train-images-idx3-ubyte"))
    with pytest.raises(BookError, match="is damaged") as info:
        data.load("mnist", root=tmp_path)
    one_line(info)


@pytest.mark.parametrize("shape", [(20, 20), (64, 64), (27, 28), (32, 32, 3)])
def test_pictures_of_another_size_are_named_with_it_and_never_replaced(tmp_path, no_network, shape):
    size = math.prod(shape)
    write_files(tmp_path, train_images_idx3=header(0x800 + 1 + len(shape), 12, *shape) + bytes(12 * size))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*-ubyte")}
    for name in ("mnist", "auto"):  # no other data set in its place
        with pytest.raises(
            BookError, match=f"have {' x '.join(map(str, shape))} pixels: the book's are 28 x 28"
        ) as info:
            data.load(name, root=tmp_path)
        assert "delete" not in one_line(info)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*-ubyte")} == before


def pack(root, place: str, spelling) -> None:
    """Bring the four files that lie in root/MNIST/raw to another place, under other names."""
    for path in sorted((root / "MNIST" / "raw").iterdir()):
        there = root / place / spelling(path.name)
        there.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        path.unlink()
        there.write_bytes(gzip.compress(content) if there.suffix == ".gz" else content)
    for folder in ("MNIST/raw", "MNIST"):
        with contextlib.suppress(OSError):
            (root / folder).rmdir()


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", ""])
@pytest.mark.parametrize(
    "spelling",
    [str, lambda name: f"{name}.gz", lambda name: name.replace("-idx", ".idx")],
    ids=["plain", "gz", "dotted"],
)
def test_the_four_files_are_found_wherever_they_lie(tmp_path, no_network, place, spelling):
    pack(write_files(tmp_path), place, spelling)
    train, test = (data.load("auto", split, root=tmp_path) for split in ("train", "test"))
    assert (train.name, len(train), len(test)) == ("mnist", 12, 5)
    assert train.images[3, 0].flatten()[:4].tolist() == [3, 4, 5, 6]
    if place:
        assert len(data.load("auto", root=tmp_path / place)) == 12  # the folder itself


def test_another_sets_files_are_not_taken_for_mnist_s(tmp_path, no_network):
    write_files(tmp_path, "FashionMNIST")
    assert data.load("auto", root=tmp_path).name == "digits"
    assert data.load("auto", root=tmp_path / "FashionMNIST").name == "digits"
    assert data.load("fashion-mnist", root=tmp_path / "FashionMNIST" / "raw").name == "fashion-mnist"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    write_files(tmp_path / "sets")
    monkeypatch.setenv("DIFFUSION_BOOK_DATA", "~/sets")
    assert data.load("auto").name == "mnist"
    assert len(data.load("mnist", root="~/sets")) == 12
    assert not list((tmp_path / "here").iterdir())


def test_files_that_lack_a_sibling_are_completed_by_nobody_else(tmp_path, mirror):
    mirror("good")
    folder = write_files(tmp_path) / "MNIST" / "raw"
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert len(data.load("mnist", root=tmp_path)) == 12
    with pytest.raises(BookError, match="but not t10k-labels-idx1-ubyte: put all four there") as info:
        data.load("auto", "test", root=tmp_path)
    assert str(folder) in one_line(info)


def test_labels_of_your_own_have_names(tmp_path):
    letters = header(0x801, 12) + bytes(1 + 2 * number for number in range(12))
    dataset = data.load("mnist", root=write_files(tmp_path, train_labels_idx1=letters))
    assert dataset.class_names == [str(label) for label in range(24)]


def test_a_cache_that_cannot_be_made_is_named(tmp_path, mirror):
    mirror("good")
    (tmp_path / "file").touch()
    with pytest.raises(BookError, match="cannot be stored in") as info:
        data.load("mnist", root=tmp_path / "file" / "data")
    assert str(tmp_path / "file" / "data") in one_line(info)


def test_a_cache_that_may_not_be_written_is_named(tmp_path, mirror, monkeypatch):
    mirror("good")

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(BookError, match="cannot write mnist to") as info:
        data.load("mnist", root=tmp_path)
    assert "that you may write" in one_line(info)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(BookError, match="choose one of auto, mnist, fashion-mnist, kmnist, digits"):
        data.load("cifar")
    with pytest.raises(BookError, match="choose one of train, test"):
        data.load("digits", "validation")


def test_the_first_pictures_are_those_in_front_with_their_labels():
    whole = data.load("digits")
    few = whole.first(7)
    assert torch.equal(few.images, whole.images[:7])
    assert torch.equal(few.labels, whole.labels[:7])
    assert (few.name, len(whole.first(10**6))) == (whole.name, len(whole))
