"""Real processes to kill, and what must be left when they are gone.

A process of its own imports everything once and then forks a child for each piece of work, so that what is killed
starts within milliseconds. It never trains or draws itself: a fork of a process whose autograd has run would hang.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.system.files import WRITING

TESTS = Path(__file__).parent

PARENT = """
import json, os, sys, traceback
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
{imports}
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        _, status = os.waitpid(task["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    child = os.fork()
    if child == 0:
        code = 0
        try:
            log = os.open(task["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            exec(task["code"], dict(globals()))
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
"""


class Forks:
    """Starts pieces of Python code as processes.

    Args:
        imports: code that every child has run already.
        log: file for what the children say.
        environment: variables that differ from those of the tests.
    """

    def __init__(self, imports: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self.log = log
        path = [str(TESTS), str(TESTS.parent)]
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(path=path, imports=imports)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.run("")  # its imports take a while, which is not the first child's

    def _ask(self, **task) -> int:
        print(json.dumps(task), file=self.parent.stdin, flush=True)
        return int(self.parent.stdout.readline())

    def start(self, code: str) -> int:
        """Start a process, and give its number."""
        return self._ask(code=code, log=str(self.log))

    def wait(self, process: int) -> int:
        """Its exit code, or the signal that ended it with its sign changed."""
        return self._ask(wait=process)

    def run(self, code: str) -> int:
        """Both."""
        return self.wait(self.start(code))

    def kill(self, process: int) -> bool:
        """Kill it as nothing else does, and say whether it was still at work."""
        os.kill(process, signal.SIGKILL)
        return self.wait(process) == -signal.SIGKILL

    def said(self) -> list[str]:
        """The lines that children have said since the last call."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def close(self) -> None:
        """End the process that forks."""
        self.parent.stdin.close()
        self.parent.wait(60)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files in a folder and in those inside it."""
    return [path for path in folder.rglob("*") if path.name.startswith(WRITING)]


def assert_whole(folder: Path) -> None:
    """Every file in a folder can be read to its end, but for temporary ones."""
    for path in folder.rglob("*"):
        if path.is_dir() or any(part.startswith(WRITING) for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".pdf":
            content = path.read_bytes()
            assert content.startswith(b"%PDF"), path
            assert content.rstrip().endswith(b"%%EOF"), path
        elif path.suffix == ".pt":
            load_checkpoint(path)
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    file.get_tensor(name)
        elif path.suffix == ".jsonl":
            text = path.read_text(encoding="utf-8")
            assert text.endswith("\n")
            [json.loads(line) for line in text.splitlines()]
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            assert path.suffix == ".txt", path
            text = path.read_text(encoding="utf-8")
            assert not text or text.endswith("\n"), path


def epochs_of(folder: Path) -> list[dict]:
    """The numbers of each epoch that do not depend on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("epoch", "step", "train_loss", "eval_loss", "lr", "gradient_norm")
    return [{key: record[key] for key in keys} for record in records if record["event"] == "epoch"]


def assert_same_training(folder: Path, other: Path) -> None:
    """Same numbers, same weights, same optimiser, same pictures."""
    assert epochs_of(folder) == epochs_of(other)
    one, two = (load_checkpoint(each / "checkpoints" / "final.pt") for each in (folder, other))
    for part in ("network", "ema"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
    assert str(one["optimizer"]) == str(two["optimizer"])
    momenta = [checkpoint["optimizer"]["momentum"] for checkpoint in (one, two)]
    assert all(torch.equal(first, second) for first, second in zip(*momenta, strict=True))
    assert (one["step"], one["ema_updates"]) == (two["step"], two["ema_updates"])
    for name in ("final_samples/grid.png", "denoising_steps/denoising.png", "epoch_samples/epoch_0002.png"):
        assert np.array_equal(Image.open(folder / name), Image.open(other / name))


@contextmanager
def small_disk(path: Path, size: int):
    """A disk of so many bytes at an empty folder; gives a function that lets it grow. Needs Linux and root."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(path)
    path.mkdir(exist_ok=True)

    def mount(size: int, flags: int = 0) -> None:
        options = f"size={size}".encode()
        if libc.mount(b"tmpfs", target, b"tmpfs", ctypes.c_ulong(flags), options):
            raise OSError(ctypes.get_errno(), "mount")

    mount(size)
    try:
        yield lambda size=size, read_only=False: mount(size, 32 | int(read_only))  # MS_REMOUNT, MS_RDONLY
    finally:
        libc.umount2(target, 2)  # MNT_DETACH


def can_mount(path: Path) -> bool:
    """Whether small disks can be had here."""
    try:
        with small_disk(path, 1 << 16):
            return True
    except (OSError, AttributeError):
        return False
