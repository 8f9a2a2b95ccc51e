"""The folder of one training: what it was asked, and how it went."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.models.recipes import SECTIONS
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import LOCK, check_folder, make_folder, write_text
from diffusion_book.system.machine import ENVIRONMENT
from diffusion_book.training.monitor import in_words
from diffusion_book.training.options import DEFAULT_FOLDER


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


_START = {"step": int, "recipe": dict, "parameters": int}
_EPOCH = dict.fromkeys(("train_loss", "eval_loss", "lr", "images_per_second", "epoch_seconds", "seconds"), int | float)
RECORD = {"start": _START, "resume": _START, "epoch": {"step": int, "epoch": int, "memory_mb": int | float, **_EPOCH}}
"""event -> what its record holds at least"""


def read_records(folder: Path, step: int) -> list[dict]:
    """What an experiment folder's `metrics.jsonl` tells up to a step; nothing where there is none.

    Raises:
        BookError: the file is damaged.
    """
    path = folder / "metrics.jsonl"
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        for record in records:
            missing = [key for key, kind in RECORD[record["event"]].items() if not isinstance(record[key], kind)]
            if missing:
                raise ValueError(f"{', '.join(missing)} of a record cannot be read")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BookError(f"{path} is damaged ({error!s:.80}): delete it to go on without what it tells") from None
    return [record for record in records if record["step"] <= step]


"""for experiment folders"""

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
    check_name(parent, name)
    return make_folder(Path(parent) / name)


def check_name(parent: str | Path, name: str) -> None:
    """Refuse a name that `named_folder` would refuse; nothing is made.

    Raises:
        BookError: so it is.
    """
    if Path(name).name != name or name in ("", ".."):
        raise BookError(f"--name is {name!r}: give a name without slashes")
    folder = Path(parent) / name
    check_folder(folder)
    if folder.is_dir() and {path.name for path in folder.iterdir()} - {LOG, LOCK}:
        raise BookError(f"{folder} is not empty: give another --name, or --resume {folder} to go on with it")


def claim(folder: Path) -> Path:
    """Begin the log of a detached training in a folder that no other one has claimed; gives the log.

    Raises:
        BookError: another one has.
    """
    try:
        (folder / LOG).touch(exist_ok=False)
    except FileExistsError:
        raise BookError(f"another training was started in {folder}: give another --name") from None
    return folder / LOG


def check_place(output_dir: Path, name: str | None, resume: Path | None, step: int, rewind: bool) -> None:
    """Refuse what would end in no experiment folder, in another than asked for, or would destroy one's results.

    Args:
        output_dir, name: for the folder.
        resume: the checkpoint to continue, if any.
        step: its step.
        rewind: whether to throw away what came after it.

    Raises:
        BookError: so it is.
    """
    folder = experiment_of(resume)
    if folder is None:
        if rewind:
            raise BookError("--rewind goes with --resume of a checkpoint in an experiment folder: leave it out")
        check_name(output_dir, name) if name is not None else check_folder(output_dir)
        return
    if name not in (None, folder.name):
        raise BookError(f"--name {name} contradicts --resume, which goes on in {folder}: leave out --name")
    if output_dir != DEFAULT_FOLDER and output_dir.resolve() != folder.parent.resolve():
        raise BookError(f"--output_dir {output_dir} contradicts --resume, which goes on in {folder}: leave it out")
    check_folder(folder)
    newest = folder / "checkpoints" / "last.pt"
    if rewind or resume.name == newest.name or not newest.is_file():
        return
    try:
        latest = load_checkpoint(newest)["step"]
    except BookError:
        return  # it is damaged: an earlier one is all there is
    if latest > step:
        raise BookError(
            f"{resume} is of step {step:,}, and {folder} has come to step {latest:,}: --resume {folder} goes on there; "
            "--rewind throws away what came after the checkpoint"
        )


def experiment_of(checkpoint: Path | None) -> Path | None:
    """The experiment folder that a checkpoint lies in; None where there is none."""
    inside = checkpoint is not None and checkpoint.parent.name == "checkpoints"
    return checkpoint.parent.parent if inside else None
