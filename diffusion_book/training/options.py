"""Where and how long a training runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_FOLDER = Path("experiments")


@dataclass(frozen=True)
class RunOptions:
    """Where and how long a training runs; nothing here changes what is trained."""

    output_dir: Path = DEFAULT_FOLDER
    """folder for the experiment folders"""
    resume: Path | None = None
    """experiment folder or .pt file to continue"""
    rewind: bool = False
    """with --resume of an earlier checkpoint: throw away what came after it"""
    max_minutes: float | None = None
    """end after so many minutes of training (resumed parts count), even if epochs are left"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    compile: bool = False
    """run the network through torch.compile"""
    name: str | None = None
    """of the experiment folder; without one, TIMESTAMP-MODEL"""
    tensorboard: bool = False
    """keep the figures of each epoch for TensorBoard too, in the experiment folder"""
