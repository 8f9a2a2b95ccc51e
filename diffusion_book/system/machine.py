"""The machine at work: what it is called, and how much memory was needed."""

from __future__ import annotations

import datetime
import platform
import sys
from pathlib import Path

import torch

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
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
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
