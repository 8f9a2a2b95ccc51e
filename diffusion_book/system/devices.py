"""Where the arithmetic runs, and with how many digits."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shutil
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from diffusion_book.system.errors import BookError, choose

PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device that is there.

    "auto" is the first GPU, else the CPU.

    Raises:
        BookError: no such device here.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise BookError(f"unknown device '{name!s:.60}': use auto, cpu or cuda (cuda:1 for the second GPU)") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BookError(f"device '{name}' is not there ({torch.cuda.device_count()} GPUs found): use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise BookError(f"device '{name}' is not supported: use auto, cpu or cuda")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Turn "auto", "fp32" or "bf16" into a dtype for autocast.

    "auto" is bf16 where the hardware multiplies it natively, and fp32 elsewhere: a CPU without
    such instructions emulates bf16, at a third of the speed or far less.

    Raises:
        BookError: unknown name.
    """
    dtype = choose("precision", name, PRECISIONS)
    if dtype is not None:
        return dtype
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def check_compiler(device: torch.device) -> None:
    """Refuse to compile a network where no compiler is: torch.compile writes C++ for a CPU, and for a GPU some C.

    Raises:
        BookError: there is none.
    """
    programs = ("CC", "gcc", "clang") if device.type == "cuda" else ("CXX", "g++", "clang++")
    programs = (os.environ.get(programs[0], programs[1]), *programs[1:])
    if not any(map(shutil.which, programs)):
        raise BookError(
            f"--compile needs a compiler, and {programs[1]} is not here: install it (apt-get install g++), or leave out --compile"
        )


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bf16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN also says yes where it only emulates them, with AVX-512 alone.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a network's arithmetic runs with `dtype`."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def place(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Move a network to the device, its weights in the layout that is fastest there for arithmetic with `dtype`.

    Convolutions like channels last, except in bf16 on the CPU, where group normalisation is several times
    slower in it.
    """
    slow = device.type == "cpu" and dtype == torch.bfloat16
    return network.to(device=device, memory_format=torch.contiguous_format if slow else torch.channels_last)


def prepare_device(device: torch.device) -> None:
    """Set this process up for work on a device. Programs call it where they start; the library never does."""
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high")  # TF32 for products in fp32, as it is for convolutions anyway


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, instead of giving it to the system and asking for it again.

    Each step of a network frees as much as the next one needs. Without this, thousands of pages a step are fetched
    anew, which costs a training on the CPU some percent of its time. Other C libraries are left as they are.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 32 * 2**20)  # the most that it takes


OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc")
"""how the CPU's allocators say it"""


@contextlib.contextmanager
def out_of_memory_names(option: str) -> Iterator[None]:
    """Turn running out of memory into one line that names the option to lower."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY):
            raise BookError(f"out of memory: lower {option}") from None
        raise
    except MemoryError:
        raise BookError(f"out of memory: lower {option}") from None


def trained(
    make: Callable[[], nn.Module],
    tensors: dict[str, Tensor],
    model: str,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> tuple[nn.Module, torch.device, torch.dtype]:
    """A network with these weights, in eval mode and without gradients, where it is to run.

    Args:
        make: gives the network with any weights.
        tensors: by name.
        model: its name, for messages.
        device, precision: as in `load`.

    Returns:
        The network, its device, and the dtype for autocast.

    Raises:
        BookError: the weights are another network's; no such device or precision; out of memory.
    """
    with out_of_memory_names("the size of the network"):
        network = make()
    try:
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError):
        raise BookError(f"these weights do not fit the network of '{model}': use those that belong to it") from None
    place_to_run = resolve_device(device)
    dtype = resolve_precision(precision, place_to_run)
    return place(network.eval().requires_grad_(False), place_to_run, dtype), place_to_run, dtype
