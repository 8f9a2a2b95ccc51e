"""One training of several processes: each works on its part of every batch, and all go by one clock.

They draw the same numbers, so that together they have the loss and the gradient of a single process, but for rounding.
Alone, each function here gives back what it is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.training.losses import Loss


def check_batch(batch_size: int) -> None:
    """Refuse a batch that some process would have no part of.

    Raises:
        BookError: it is too small.
    """
    if batch_size < processes.number():
        raise BookError(
            f"a batch of {batch_size} for {processes.number()} processes: raise --batch_size, or start fewer"
        )


def distribute(network: nn.Module, compile: bool = False) -> nn.Module | PartOfBatch:
    """The same network, compiled if asked; with several processes, one whose gradients are averaged over them.

    Source: Li et al. 2020, section 3.2 (PyTorch Distributed).
    """
    several = processes.number() > 1
    run = DistributedDataParallel(network) if several else network
    run = torch.compile(run) if compile else run
    return PartOfBatch(run, network) if several else run


def share(loss: Loss) -> Loss:
    """The same loss (B,); with several processes, that of this one's part of the batch, times their number, and else 0.

    The average over the processes of its mean, or of that mean's gradient, is then that of the whole batch.
    """
    if processes.number() == 1:
        return loss

    def shared(network: nn.Module | PartOfBatch, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        torch.manual_seed(torch.initial_seed() + processes.rank())  # of dropout: other pictures, other numbers
        whole = network if isinstance(network, PartOfBatch) else PartOfBatch(network, network)
        losses = loss(whole, images, labels, generator)
        part = processes.part(len(losses))
        mine = losses[part.start : part.stop] * processes.number()
        return _fill(mine, part.start, len(losses) - part.stop)

    return shared


def average(value: float) -> float:
    """Over the processes."""
    values = processes.gather(value)
    return sum(values) / len(values)


def agreed(seconds: float) -> float:
    """The main process's time: the learning rate depends on it, so that all must go by one clock."""
    return processes.gather(seconds)[0]


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
