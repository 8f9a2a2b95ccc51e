"""One batch for several processes: each sends its part through the network, and the gradient is that of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_book.system import processes


def distribute(network: nn.Module) -> nn.Module:
    """The same network; with several processes, one whose gradients are averaged over them as they are computed.

    Source: Li et al. 2020, section 3.2 (PyTorch Distributed).
    """
    return DistributedDataParallel(network) if processes.number() > 1 else network


class PartOfBatch:
    """A network that is asked about a whole batch and answers for this process's part of it, with zeros for the rest.

    So a loss draws its times and its noise for the whole batch, whatever the number of processes: it need not know
    of them, and from the same seed all draw the same. Only the network's work, which is nearly all, is shared.

    Args:
        run: `run(*inputs, **condition)`, all with the batch as first axis.
        network: whose attributes are shown as its own.
    """

    def __init__(self, run: Callable, network: nn.Module) -> None:
        self.run = run
        self.network = network

    def __call__(self, *inputs: Tensor, **condition: Tensor):
        size = len(inputs[0])
        part = processes.part(size)
        mine = slice(part.start, part.stop)
        output = self.run(
            *(value[mine] for value in inputs), **{name: value[mine] for name, value in condition.items()}
        )
        return _fill(output, part.start, size - part.stop)

    def __getattr__(self, name: str):
        return getattr(self.network, name)


def _fill(output, before: int, after: int):
    """The output of a network with so many rows of zeros before and after."""
    if isinstance(output, Tensor):
        return F.pad(output, [0, 0] * (output.ndim - 1) + [before, after])
    if isinstance(output, tuple):
        return tuple(_fill(each, before, after) for each in output)
    return dataclasses.replace(  # a posterior
        output,
        **{field.name: _fill(getattr(output, field.name), before, after) for field in dataclasses.fields(output)},
    )
