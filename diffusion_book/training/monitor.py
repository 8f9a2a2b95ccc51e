"""How busy the machine is while a model trains: read now and then by a thread, averaged for each epoch."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator

import torch

SECONDS = 5.0  # between two looks

UNITS = {
    "cpu_percent": "%",
    "cpu_memory_gb": "GB",
    "gpu_percent": "%",
    "gpu_memory_gb": "GB",
    "gpu_watts": "W",
}
"""what can be read, and its unit; the processor's share is of one core, so two busy cores are 200 %"""


class Monitor:
    """Collects readings until they are taken.

    Args:
        device: of the training.
    """

    def __init__(self, device: torch.device) -> None:
        import psutil  # a tenth of a second, which loading a model can do without

        self.device = device
        self.readings: list[dict[str, float]] = []
        self.process = psutil.Process()
        self.process.cpu_percent()  # the first call only starts the clock

    def read(self) -> None:
        """Look once, and keep what can be read on this machine."""
        reading = {
            "cpu_percent": self.process.cpu_percent(),  # since the last look
            "cpu_memory_gb": self.process.memory_info().rss / 1e9,
        }
        if self.device.type == "cuda":
            reading |= read_gpu(self.device)
        self.readings.append(reading)

    def take(self) -> dict[str, float]:
        """The mean of each reading since the last call; without the ones that cannot be read here."""
        self.read()
        readings, self.readings = self.readings, []
        values_by_name = {name: [reading[name] for reading in readings if name in reading] for name in UNITS}
        return {name: round(sum(values) / len(values), 3) for name, values in values_by_name.items() if values}


@contextlib.contextmanager
def monitoring(device: torch.device, seconds: float = SECONDS) -> Iterator[Monitor]:
    """While inside, a thread reads every few seconds."""
    monitor, done = Monitor(device), threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            monitor.read()

    thread = threading.Thread(target=watch, name="monitor", daemon=True)
    thread.start()
    try:
        yield monitor
    finally:
        done.set()
        thread.join()


def read_gpu(device: torch.device) -> dict[str, float]:
    """Use, memory and power of a GPU, by `nvidia-smi`; nothing where that is missing or says nothing.

    Args:
        device: the CUDA device; its place among all GPUs follows from its identity, not from its number here.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = "--query-gpu=utilization.gpu,memory.used,power.draw"
    uuid = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        answer = subprocess.run(
            [command, uuid, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_gpu(answer.stdout)


def parse_gpu(line: str) -> dict[str, float]:
    """What `nvidia-smi` says in one line: percent, MiB, watts. What it cannot tell ("[N/A]") is left out."""
    values = {}
    factors = {"gpu_percent": 1.0, "gpu_memory_gb": 2**20 / 1e9, "gpu_watts": 1.0}
    for (name, factor), text in zip(factors.items(), line.strip().split(","), strict=False):
        with contextlib.suppress(ValueError):
            values[name] = float(text) * factor
    return values


def in_words(record: dict) -> str:
    """The readings in a record, such as "cpu 198 %, 1.2 GB; gpu 91 %, 3.4 GB, 310 W"; "" where there are none."""
    parts = []
    for kind in ("cpu", "gpu"):
        values = [
            f"{record[name]:.3g} {unit}" for name, unit in UNITS.items() if name in record and name.startswith(kind)
        ]
        if values:
            parts.append(f"{kind} {', '.join(values)}")
    return "; ".join(parts)
