"""Processes that are killed, disks that are full, folders that may not be written: what is left is whole."""

import functools
import gzip
import hashlib
import http.server
import json
import os
import random
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from survival import Forks, assert_same_training, assert_whole, can_mount, leftovers, small_disk
from test_data import FILES, idx
from tiny import wake

from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.pipelines import build_network
from diffusion_book.models.recipes import DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNetConfig

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")

ROUNDS = [4, pytest.param(50, marks=pytest.mark.slow)]
DAY = 86_400.0  # seconds

IMPORTS = """
import resource
import sklearn.datasets, matplotlib.pyplot, torchvision.datasets, torchvision.utils
import tiny
from pathlib import Path
from diffusion_book import data
from diffusion_book.models import pipelines, weights
from diffusion_book.cli import evaluate, generate, train
from diffusion_book.cli.main import main
from diffusion_book.evaluation import measures
from diffusion_book.training import run
from diffusion_book.training.couplings import draw_couplings
from diffusion_book.training.latents import encode_dataset
from diffusion_book.models.recipes import ReflowConfig
run.SAVE_EVERY = 0.0  # a checkpoint after every step
real = measures.reference_features()
real = real | {"train": real["train"][:2000], "test": real["test"][:500]}
measures.reference_features = lambda *_: real  # the neighbours of all would take a while
"""

CPU = "--device cpu --precision fp32"
TINY = (
    "--dataset digits --base_channels 8 --channel_multipliers 1 --attention_levels 0 --layers_per_block 1 "
    "--patch_size 8 --batch_size 128 --timesteps 8 --sampling_steps 2 --warmup_steps 5 --sample_every 2 "
    f"--epochs 3 {CPU}"
)
TRAIN = f'main("train ddpm {TINY} --output-dir".split() + ["{{folder}}"])'
RESUME = f'main("train ddpm {CPU} --resume".split() + ["{{folder}}"])'
GENERATE = (
    f'main("generate ddpm {CPU} --num_samples 4 --ddim_steps 4 --checkpoint {{ddpm}} --output-dir {{folder}}".split())'
)
EVALUATE = (
    f'main("evaluate ddpm {CPU} --num_samples 30 --steps 2 --checkpoint {{ddpm}} --output-dir {{folder}}".split())'
)
LATENTS = 'encode_dataset(tiny.random_autoencoder(), data.load("digits"), Path("{folder}"))'
COUPLINGS = (
    'draw_couplings(pipelines.load("{rf}", device="cpu", precision="fp32"), ReflowConfig(1000, steps=2), 1000, '
    'cache=Path("{folder}"))'
)
LIMIT = "resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
"""no file may grow beyond so many bytes: to a process that is what a full disk looks like"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Checkpoints of models that have learned nothing: name -> path."""
    network = UNetConfig(
        base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=8
    )
    kinds = {"ddpm": DiffusionConfig(timesteps=8), "rf": DiffusionConfig("rectified", "velocity")}
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, diffusion in kinds.items():
        recipe = Recipe(name, TrainingConfig(dataset="digits"), network, diffusion)
        torch.manual_seed(0)
        tensors = wake(build_network(recipe)).state_dict()
        found[name] = save_checkpoint(folder / f"{name}.pt", {"recipe": recipe.to_dict(), "ema": tensors})
    return found


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    made = Forks(IMPORTS, tmp_path_factory.mktemp("log") / "log")
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    """The folder of a training that nothing disturbed, and the seconds that it took."""
    parent, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    assert forks.run(TRAIN.format(folder=parent)) == 0, forks.said()
    return next(parent.iterdir()), time.monotonic() - began


def age(folder) -> None:
    """Let a day pass for temporary files."""
    for path in leftovers(folder):
        os.utime(path, (time.time() - DAY, time.time() - DAY))


# --- Killed --------------------------------------------------------------------------------------


def pictures(folder):
    """The grid that was drawn last."""
    return max(folder.iterdir()).joinpath("grid.png").read_bytes()


def figures(folder):
    """What was measured last, but for the speed."""
    found = json.loads(max(folder.iterdir()).joinpath("measures.json").read_text())
    return {key: value for key, value in found.items() if key != "images_per_second"}


def tensors(folder):
    """What the one file of a cache holds, but for the time it took."""
    (path,) = folder.iterdir()
    return {name: value.tolist() for name, value in load_file(path).items() if name != "seconds"}


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize(
    ("work", "result"),
    [(GENERATE, pictures), (EVALUATE, figures), (LATENTS, tensors), (COUPLINGS, tensors)],
    ids=["generate", "evaluate", "latents", "couplings"],
)
def test_killed_at_any_time_it_leaves_whole_files_and_can_be_done_again(forks, models, tmp_path, work, result, rounds):
    def code(folder):
        return work.format(folder=folder, **models)

    began = time.monotonic()
    assert forks.run(code(tmp_path / "undisturbed")) == 0, forks.said()
    seconds, expected = time.monotonic() - began, result(tmp_path / "undisturbed")
    chance, kills = random.Random(0), 0
    for number in range(rounds):
        folder = tmp_path / str(number)
        process = forks.start(code(folder))
        time.sleep(chance.uniform(0, seconds))
        kills += forks.kill(process)
        if folder.exists():
            assert_whole(folder)
            assert len(leftovers(folder)) <= 1
            age(folder)
        assert forks.run(code(folder)) == 0, forks.said()
        assert_whole(folder)
        assert not leftovers(folder)
        assert result(folder) == expected
    assert kills >= rounds // 4, "the work was done before it could be killed"


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_training_killed_again_and_again_ends_as_if_nothing_had_been(forks, undisturbed, tmp_path, rounds):
    expected, seconds = undisturbed
    chance, kills, number, folder = random.Random(1), 0, 0, None
    while number < rounds or folder is not None:
        if folder is None:
            parent = tmp_path / str(number)
            process = forks.start(TRAIN.format(folder=parent))
        else:
            process = forks.start(RESUME.format(folder=folder))
        if number < rounds:
            number += 1
            time.sleep(chance.uniform(0, 0.7 * seconds))
            killed = forks.kill(process)
            kills += killed
        else:
            killed = False
            assert forks.wait(process) == 0, forks.said()
        if parent.exists():
            assert_whole(parent)
            assert len(leftovers(parent)) <= 1
        if killed:  # without a checkpoint there is nothing to go on with
            folder = next((path.parent.parent for path in parent.glob("*/checkpoints/last.pt")), None)
        else:
            (folder,) = parent.iterdir()
            assert_same_training(folder, expected)
            assert not leftovers(parent)
            folder = None
    assert kills >= rounds // 4


def test_a_writer_at_work_keeps_its_temporary_file(tmp_path, forks):
    """Only what nobody has touched for an hour is taken for a leftover."""
    temporary = tmp_path / ".writing-latents-12345678.safetensors"
    temporary.write_bytes(b"half of i")
    work = LATENTS.format(folder=tmp_path)
    assert forks.run(work) == 0
    assert leftovers(tmp_path) == [temporary]
    age(tmp_path)
    assert forks.run(work) == 0  # also where the cache is only read
    assert not leftovers(tmp_path)


# --- A full disk ---------------------------------------------------------------------------------


@pytest.fixture(params=["a small disk", "a limit"])
def shortage(request, tmp_path):
    """An empty folder, and a function that gives the code that starts with room for so many bytes there."""
    folder = tmp_path / "scarce"
    folder.mkdir()
    if request.param == "a limit":
        yield folder, lambda room: LIMIT.format(limit=room)
        return
    if not can_mount(tmp_path / "probe"):
        pytest.skip("needs the right to mount")

    with small_disk(folder, 1 << 26) as resize:

        def leave(room):
            if room >= 1 << 26:
                resize(1 << 26)
                return ""
            used = os.statvfs(folder)
            resize((used.f_blocks - used.f_bfree) * used.f_frsize + max(4096, room))
            return ""

        yield folder, leave


PLENTY = 1 << 26


def the_error(forks) -> str:
    """The one line that a command ended with."""
    (line,) = forks.said()
    assert line.startswith("error: cannot ")
    return line


def test_a_training_on_a_full_disk_ends_with_a_line_and_goes_on_later(forks, undisturbed, shortage, tmp_path):
    folder, leave = shortage
    kill_after = "{limit}import itertools\nshow = run._Run.show\ndef stopping(self, *rest):\n    show(self, *rest)\n"
    kill_after += "    if rest[1].step == 14: import os; os.kill(os.getpid(), 9)\nrun._Run.show = stopping\n"
    assert forks.run(kill_after.format(limit=leave(PLENTY)) + TRAIN.format(folder=folder)) == -9
    (experiment,) = folder.iterdir()
    before = (experiment / "checkpoints" / "last.pt").read_bytes()
    forks.said()
    assert forks.run(leave(5000) + RESUME.format(folder=experiment)) == 2
    assert "cannot write" in (line := the_error(forks))
    assert "free some space" in line
    assert_whole(folder)
    assert not leftovers(folder)
    assert (experiment / "checkpoints" / "last.pt").read_bytes() == before
    assert forks.run(leave(PLENTY) + RESUME.format(folder=experiment)) == 0, forks.said()
    assert_same_training(experiment, undisturbed[0])


@pytest.mark.parametrize("work", [GENERATE, EVALUATE], ids=["generate", "evaluate"])
@pytest.mark.parametrize("room", [3000, 8000])
def test_pictures_and_figures_on_a_full_disk_end_with_a_line(forks, models, shortage, work, room):
    folder, leave = shortage
    code = work.format(folder=folder, **models)
    forks.said()
    status = forks.run(leave(room) + code)
    if status == 0:
        pytest.skip("there was room enough")
    lines = forks.said()
    assert status == 2
    assert lines[-1].startswith("error: cannot ")
    assert sum(line.startswith("error") for line in lines) == 1
    assert_whole(folder)
    assert not leftovers(folder)
    assert forks.run(leave(PLENTY) + code) == 0, forks.said()


@pytest.mark.parametrize("work", [LATENTS, COUPLINGS], ids=["latents", "couplings"])
def test_a_cache_on_a_full_disk_only_costs_the_time(forks, models, shortage, work):
    folder, leave = shortage
    code = work.format(folder=folder, **models)
    forks.said()
    assert forks.run(leave(8000) + code) == 0
    (line,) = forks.said()
    assert line.startswith("notice: the ")
    assert "are not kept for the next time" in line
    assert not list(folder.iterdir())
    assert forks.run(leave(PLENTY) + code) == 0
    assert not forks.said()
    assert_whole(folder)


def test_weights_on_a_full_disk_leave_the_old_ones(forks, shortage):
    folder, leave = shortage
    write = "weights.write_weights('model', {{'w': torch.full((20_000,), {value})}}, {{}}, Path('{folder}'))"
    assert forks.run(leave(PLENTY) + write.format(value=1.0, folder=folder)) == 0, forks.said()
    forks.said()
    assert forks.run(leave(8000) + write.format(value=2.0, folder=folder)) == 70
    assert "BookError: cannot write" in forks.said()[-1]
    assert not leftovers(folder)
    assert load_file(folder / "model.safetensors")["w"].unique().tolist() == [1.0]


# --- A folder that may not be written ------------------------------------------------------------


@pytest.fixture
def lockable(tmp_path):
    """An empty folder, and a function after which nothing in it can be written, not even by root."""
    folder = tmp_path / "locked"
    if can_mount(tmp_path / "probe"):
        with small_disk(folder, PLENTY) as resize:
            yield folder, lambda: resize(PLENTY, read_only=True)
        return
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere, and cannot mount here")
    folder.mkdir()

    def lock():
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o555 if path.is_dir() else 0o444)

    yield folder, lock
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


def test_a_folder_that_may_not_be_written_is_named_and_can_be_read(forks, models, undisturbed, lockable):
    folder, lock = lockable
    assert forks.run(TRAIN.format(folder=folder)) == 0, forks.said()
    (experiment,) = folder.iterdir()
    assert forks.run(LATENTS.format(folder=folder / "latents")) == 0, forks.said()
    lock()
    forks.said()
    resume = f'main("train ddpm --epochs 4 {CPU} --resume {experiment}".split())'
    for code in (resume, GENERATE.format(folder=folder, **models), TRAIN.format(folder=folder)):
        assert forks.run(code) == 2
        line = the_error(forks)
        assert str(folder) in line
        assert "choose another folder" in line
    assert forks.run(LATENTS.format(folder=folder / "latents")) == 0
    assert forks.said() == []  # a cache that is there needs no writing
    assert forks.run(COUPLINGS.format(folder=folder / "couplings", **models)) == 0
    assert "notice: the couplings are not kept" in forks.said()[0]
    assert forks.run(f'pipelines.load("{experiment}", device="cpu").sample(2, steps=2)') == 0, forks.said()
    assert_same_training(experiment, undisturbed[0])


# --- Two at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [LATENTS, COUPLINGS], ids=["latents", "couplings"])
def test_processes_that_fill_one_cache_at_once_do_not_disturb_each_other(forks, models, tmp_path, work):
    code = work.format(folder=tmp_path / "alone", **models)
    assert forks.run(code) == 0
    for _ in range(3):
        code = work.format(folder=tmp_path / "shared", **models)
        processes = [forks.start(code) for _ in range(4)]
        assert [forks.wait(process) for process in processes] == [0] * 4, forks.said()
        assert tensors(tmp_path / "shared") == tensors(tmp_path / "alone")
        for path in (tmp_path / "shared").iterdir():
            path.unlink()


# --- Downloads -----------------------------------------------------------------------------------

DOWNLOAD = """
import hashlib
import diffusion_book.data
kind = torchvision.datasets.MNIST
kind.mirrors = ["{address}"]
kind.resources = {resources}
assert len(data.load("mnist", "train", root="{folder}")) == 12
assert len(data.load("mnist", "test", root="{folder}")) == 5
"""


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The code that downloads a small MNIST from a slow server into a folder."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = {f"{name}.gz": gzip.compress(idx(name), mtime=0) for name in FILES}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            body = content[self.path.strip("/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for start in range(0, len(body), 1 + len(body) // 10):
                time.sleep(0.005)
                try:
                    self.wfile.write(body[start : start + 1 + len(body) // 10])
                except OSError:  # the other side was killed
                    return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    resources = [(name, hashlib.md5(body).hexdigest()) for name, body in content.items()]
    yield functools.partial(
        DOWNLOAD.format, address=f"http://127.0.0.1:{server.server_port}/", resources=repr(resources)
    )
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_killed_download_is_begun_again(forks, mirror, tmp_path, rounds):
    began = time.monotonic()
    assert forks.run(mirror(folder=tmp_path / "undisturbed")) == 0, forks.said()
    seconds, chance, kills = time.monotonic() - began, random.Random(2), 0
    for number in range(rounds):
        folder = tmp_path / str(number)
        process = forks.start(mirror(folder=folder))
        time.sleep(chance.uniform(0, seconds))
        kills += forks.kill(process)
        assert forks.run(mirror(folder=folder)) == 0, forks.said()
    assert kills >= rounds // 4


def test_processes_that_download_at_once_do_not_disturb_each_other(forks, mirror, tmp_path):
    processes = [forks.start(mirror(folder=tmp_path)) for _ in range(4)]
    assert [forks.wait(process) for process in processes] == [0] * 4, forks.said()
    assert not leftovers(tmp_path)


# --- Not enough memory ---------------------------------------------------------------------------

SCARCE = """
import psutil
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits on memory hold on Linux alone")
@pytest.mark.parametrize(
    "work",
    [
        TRAIN.replace("--base_channels 8", "--base_channels 4096"),
        TRAIN.replace("--patch_size 8", "--patch_size 1").replace("--batch_size 128", "--batch_size 1400"),
        'pipelines.load("{ddpm}", device="cpu", precision="fp32").sample(3_000_000, steps=2, batch_size=3_000_000)',
    ],
    ids=["a large network", "a large batch", "many samples at once"],
)
def test_memory_that_does_not_suffice_is_named_with_what_to_lower(forks, models, tmp_path, work):
    forks.said()
    assert forks.run(SCARCE + work.format(folder=tmp_path, **models)) in (2, 70)
    line = forks.said()[-1]
    assert "out of memory: lower --" in line
    assert not list(tmp_path.rglob("*.pt"))
