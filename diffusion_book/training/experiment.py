"""The folder of one training: what it was asked, and how it went."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from diffusion_book.models.recipes import SECTIONS
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import make_folder, write_text
from diffusion_book.system.machine import ENVIRONMENT
from diffusion_book.training.monitor import in_words


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
