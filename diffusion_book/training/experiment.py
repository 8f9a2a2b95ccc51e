"""The folder of one training: what it was asked, how it went, what came out."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffusion_book.errors import BookError
from diffusion_book.files import make_folder, remove_leftovers, write_text, write_whole
from diffusion_book.training.monitor import UNITS, in_words
from diffusion_book.training.recipes import SECTIONS


@dataclass
class Experiment:
    """An experiment folder and the records of its training, from which its text files are written.

    Attributes:
        folder: where it is.
        records: the lines of `metrics.jsonl`: one "start", one "epoch" for each epoch, and one "resume"
            wherever the training was continued.
    """

    folder: Path
    records: list[dict] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def epochs(self) -> list[dict]:
        """The records of the epochs."""
        return [record for record in self.records if record["event"] == "epoch"]

    def add(self, record: dict) -> None:
        """Append a record, and bring the files that show the records up to date."""
        self.records.append(record)
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in self.records))
        if record["event"] != "epoch":
            write_text(self.folder / "config.txt", config_text(record))
        write_text(self.folder / "training_log.txt", "".join(log_line(epoch) + "\n" for epoch in self.epochs))
        if self.epochs:
            self.draw_curves()
            self.draw_use()

    def draw_curves(self) -> None:
        """Draw the losses of training and test set over the epochs."""
        from diffusion_book.viz.style import COLOURS, new_figure  # matplotlib, which loading a model can do without

        figure, axes = new_figure(7.0, 4.0)
        epochs = [record["epoch"] for record in self.epochs]
        for key, label, colour in (
            ("train_loss", "training set, weights as they change", COLOURS["ddpm"]),
            ("eval_loss", "test set, averaged weights", COLOURS["ddim"]),
        ):
            axes.plot(epochs, [record[key] for record in self.epochs], marker=".", label=label, color=colour)
        axes.set(xlabel="epoch", ylabel="loss", yscale="log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_formatter("{x:.3g}")
        axes.legend()
        write_whole(self.folder / "loss_curves.png", figure.savefig)

    def draw_use(self) -> None:
        """Draw how busy the machine was over the epochs, and how full its memory, where that could be read."""
        panels = {"%": "busy, % (of one core or GPU)", "GB": "memory, GB", "W": "power, W"}
        curves = {
            unit: [name for name, its in UNITS.items() if its == unit and any(name in record for record in self.epochs)]
            for unit in panels
        }
        curves = {unit: names for unit, names in curves.items() if names}
        if not curves:
            return
        from diffusion_book.viz.style import COLOURS, new_figure

        figure, axes = new_figure(7.0, 2.2 * len(curves), len(curves), sharex=True, squeeze=False)
        for axis, (unit, names) in zip(axes[:, 0], curves.items(), strict=True):
            for name in names:
                known = [(record["epoch"], record[name]) for record in self.epochs if name in record]
                colour = COLOURS["ddpm" if name.startswith("cpu") else "ddim"]
                axis.plot(*zip(*known, strict=True), marker=".", label=name[:3].upper(), color=colour)
            axis.set(ylabel=panels[unit])
            axis.set_ylim(bottom=0)
            axis.legend()
        axes[-1, 0].set(xlabel="epoch")
        axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        write_whole(self.folder / "device_use.png", figure.savefig)


def read_records(folder: Path, step: int) -> list[dict]:
    """What an experiment folder's `metrics.jsonl` tells up to a step; nothing where there is none.

    Raises:
        BookError: the file is damaged.
    """
    path = folder / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        return [record for record in records if record["step"] <= step]
    except (ValueError, KeyError, TypeError) as error:
        raise BookError(f"{path} is damaged ({error}): delete it to go on without what it tells") from None


LOG = "terminal.log"
"""what a detached training says, in its experiment folder"""

FURTHER = {"test_accuracy": "test accuracy", "reconstruction_error": "reconstruction error"}
"""figures that some models have besides their losses, and what they are called"""


def log_line(record: dict) -> str:
    """One epoch in words."""
    further = "".join(f", {name} {record[key]:.4f}" for key, name in FURTHER.items() if key in record)
    use = in_words(record)
    return (
        f"epoch {record['epoch']:4d}: train loss {record['train_loss']:.5f}, eval loss {record['eval_loss']:.5f}"
        f"{further}, lr {record['lr']:.2e}, {record['images_per_second']:.0f} images/s, "
        f"{record['epoch_seconds']:.1f} s" + (f", {use}" if use else "")
    )


def config_text(record: dict) -> str:
    """What a "start" or "resume" record says, as lines for the eye."""
    recipe = record["recipe"]
    lines = [f"model: {recipe['model']}", f"parameters: {record['parameters']:,}"]
    for section in SECTIONS:
        if section in recipe:
            lines += ["", f"[{section}]", *(f"{key}: {value}" for key, value in recipe[section].items())]
    lines += ["", "[environment]"]
    lines += [f"{key}: {record[key]}" for key in ENVIRONMENT]
    return "\n".join([*lines, ""])


def summary_text(experiment: Experiment) -> str:
    """The whole training in a dozen lines."""
    start, epochs = experiment.records[0], experiment.epochs
    last, best = epochs[-1], min(epochs, key=lambda record: record["eval_loss"])
    images = last["step"] * start["recipe"]["training"]["batch_size"]
    lines = [
        f"model: {start['recipe']['model']}",
        f"parameters: {start['parameters']:,}",
        f"data set: {start['recipe']['training']['dataset']}",
        f"machine: {start['machine']}, {start['threads']} threads, {start['precision']}, torch {start['torch']}",
        f"epochs: {last['epoch']}",
        f"steps: {last['step']:,}",
        f"training time: {last['seconds'] / 60:.2f} minutes",
        f"speed: {images / last['seconds']:.1f} images/s, {last['step'] / last['seconds']:.2f} steps/s",
        f"peak memory: {max(record['memory_mb'] for record in epochs):.0f} MB",
        f"final train loss: {last['train_loss']:.6f}",
        f"final eval loss: {last['eval_loss']:.6f}",
        f"best eval loss: {best['eval_loss']:.6f} (epoch {best['epoch']})",
    ]
    lines += [f"{name}: {last[key]:.4f}" for key, name in FURTHER.items() if key in last]
    return "\n".join([*lines, ""])


def named_folder(parent: str | Path, name: str) -> Path:
    """Make the folder `parent/name`; one that is there already must be empty, or hold nothing but a log.

    Raises:
        BookError: it cannot be made, or is in use.
    """
    if Path(name).name != name or name in ("", ".."):
        raise BookError(f"--name is {name!r}: give a name without slashes")
    folder = make_folder(Path(parent) / name)
    if {path.name for path in folder.iterdir()} - {LOG}:
        raise BookError(f"{folder} is not empty: give another --name, or --resume {folder} to go on with it")
    return folder


def timestamped_folder(parent: str | Path, name: str) -> Path:
    """Make the folder `parent/YYYYMMDD_HHMMSS-name`, with a number appended where that exists already.

    Raises:
        BookError: it cannot be made.
    """
    parent = make_folder(parent)
    remove_leftovers(*parent.glob("????????_??????-*/**/"))  # of others like it, whose writers were killed
    stamp = f"{datetime.datetime.now():%Y%m%d_%H%M%S}-{name}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        try:
            (parent / (stamp + suffix)).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise BookError(f"cannot make a folder in {parent} ({error.strerror}): choose another folder") from None
        return parent / (stamp + suffix)
    raise BookError(f"{parent} has too many folders that begin with {stamp}: choose another folder")


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file that `path` means: itself, or the newest one of an experiment folder.

    Raises:
        BookError: it is a folder without one.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return path  # reading it will tell what is wrong with it
    last = path / "checkpoints" / "last.pt"
    if not last.is_file():
        raise BookError(f"no checkpoint in {path}: give a .pt file, or a folder with checkpoints/last.pt in it")
    return last


ENVIRONMENT = ("machine", "device", "threads", "precision", "torch", "python", "date")


def environment(device: torch.device, dtype: torch.dtype) -> dict:
    """What numbers and times depend on besides the recipe, under the names ENVIRONMENT."""
    return {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}",
    }


def cpu_name() -> str:
    """The processor's name, as well as it can be found out."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> float:
    """Largest memory in use so far, MB: the GPU's, or that of this process (0 where it cannot be told)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
