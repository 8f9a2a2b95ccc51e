"""Several processes that work as one: who this one is, what part is its own, and what all of them agree on.

A launcher (`accelerate launch`, `torchrun`, `mpirun`) starts the same command several times. Inside `together` these
processes find each other; everywhere else, and without a launcher, a process is alone, and each function here is the
plain thing: its part is the whole, and what it says is agreed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diffusion_book.system.errors import BookError

if TYPE_CHECKING:  # else neither would be imported before it is needed: commands without work know no torch
    from accelerate import PartialState
    from torch import Tensor

# A process may wait long for the main one, which draws and measures: longer than the default half hour. A process that
# died need not be waited for, since launchers end the others.
PATIENCE = datetime.timedelta(days=1)

_joined: PartialState | None = None


def launched() -> int:
    """How many processes a launcher started, this one among them; 1 without a launcher."""
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")  # torchrun, Open MPI, other MPIs
    return max(int(os.environ.get(name, 1)) for name in sizes)


def number() -> int:
    """How many processes work together."""
    return _joined.num_processes if _joined else 1


def rank() -> int:
    """Which one of them this is, from 0."""
    if _joined:
        return _joined.process_index
    ranks = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
    return max(int(os.environ.get(name, 0)) for name in ranks) if launched() > 1 else 0


def is_main() -> bool:
    """Whether this is the one process that writes and speaks."""
    return rank() == 0


def no_bar() -> bool | None:
    """What tqdm is told as `disable`: to show a bar on the main process, and there only on a terminal."""
    return None if is_main() else True


@contextlib.contextmanager
def together(device: str = "auto") -> Iterator[str]:
    """While inside, the processes that a launcher started work together.

    Args:
        device: "auto", "cpu" or "cuda"; with several processes, "cuda" gives each process of a machine its own GPU.

    Yields:
        The device of this process.

    Raises:
        BookError: the processes do not fit the devices, or a launcher started fewer than it was asked for.
    """
    global _joined
    if launched() == 1:
        # Asked for several processes without a GPU, accelerate starts a single one, and leaves only these traces.
        if {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys():
            raise BookError(
                "accelerate started a single process, since it saw no GPU: add --multi_gpu, which starts them on CPUs too"
            )
        yield device
        return
    from accelerate import PartialState

    kind = _device_kind(device)
    _joined = PartialState(cpu=kind == "cpu", timeout=PATIENCE)
    try:
        yield str(_joined.device)
        _joined.wait_for_everyone()
        _joined.destroy_process_group()
    finally:  # after an error the others cannot be waited for
        _joined = None


def _device_kind(device: str) -> str:
    """The kind of device, "cpu" or "cuda", if every process of this machine can have its own."""
    import torch

    from diffusion_book.system.devices import resolve_device

    if ":" in device:
        raise BookError(f"--device {device} names one device for {launched()} processes: give cuda, for one each")
    kind = resolve_device(device).type
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if kind == "cuda" and here > torch.cuda.device_count():
        raise BookError(
            f"{here} processes for {torch.cuda.device_count()} GPUs: start one process a GPU, or give --device cpu"
        )
    return kind


def main_first() -> contextlib.AbstractContextManager:
    """While inside, the first process of each machine works alone; the others follow. For what is kept in a cache."""
    return _joined.local_main_process_first() if _joined else contextlib.nullcontext()


def wait() -> None:
    """Wait until every process is here."""
    if _joined:
        _joined.wait_for_everyone()


def part(size: int, unit: int = 1) -> range:
    """This process's part of `size` things in a row.

    The parts of all processes, in the order of their ranks, are the whole; they differ by at most one unit.

    Args:
        size: 0 or more.
        unit: things that stay together; only the very last unit may have fewer.
    """
    units = -(-size // unit)
    first, last = (units * place // number() * unit for place in (rank(), rank() + 1))
    return range(first, min(last, size))


def part_of_samples(size: int, batch_size: int) -> range:
    """This process's part of `size` samples: whole batches, the very ones that a single process would draw.

    Only where these are too few for all processes they are smaller ones.

    Raises:
        BookError: there are fewer samples than processes.
    """
    if size < number():
        raise BookError(f"{size} samples for {number()} processes: raise --num_samples, or start fewer")
    return part(size, min(batch_size, size // number()))


def gather(value: float) -> list[float]:
    """One number from every process, in the order of their ranks, on every process."""
    if not _joined:
        return [value]
    import torch

    mine = torch.tensor([value], dtype=torch.float64, device=_joined.device)
    all_of_them = [torch.empty_like(mine) for _ in range(number())]
    torch.distributed.all_gather(all_of_them, mine)
    return torch.cat(all_of_them).tolist()


def collect(tensor: Tensor) -> Tensor | None:
    """Tensors from every process, joined along their first axis on the main process; None on the others.

    Args:
        tensor: on the CPU; the first axis may differ among processes.
    """
    if not _joined:
        return tensor
    import torch

    parts = [None] * number() if is_main() else None
    torch.distributed.gather_object(tensor, parts)
    return torch.cat(parts) if parts else None
