"""CUDA graphs: the hundreds of kernels of a small network, launched as one.

A GPU does the arithmetic of this book's networks faster than Python can ask for it, kernel by kernel. So the kernels of
one call are recorded once for each shape of the inputs, and replayed after that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

MOST = 8  # shapes whose kernels are kept; each holds the memory of one call

Replay = Callable[[dict[str, Tensor]], Tensor]


class Graphed:
    """A network in eval mode whose calls on a GPU are recorded and replayed.

    Called as the network is. The first call of a shape runs as usual, for there may be no second. A call that needs a
    gradient, or that a forward hook watches, always does: a replay runs no Python.

    Args:
        network: its weights may change in place, but must stay where they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.replays: dict[tuple, Replay | None] = {}

    def __call__(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """(B, C, H, W), times (B,) and conditions (B, ...) -> (B, C, H, W)."""
        inputs = {"x": x, "t": t, **condition}
        if not self.can_replay(x):
            return self.network(**inputs)
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if shapes not in self.replays:
            if len(self.replays) == MOST:
                self.replays.clear()
            self.replays[shapes] = None
            return self.network(**inputs)
        if self.replays[shapes] is None:
            self.replays[shapes] = record(self.network, inputs)
        return self.replays[shapes](inputs)

    def can_replay(self, x: Tensor) -> bool:
        """Whether a call is one that a replay can stand for."""
        watched = any(module._forward_pre_hooks or module._forward_hooks for module in self.network.modules())
        return x.device.type == "cuda" and not torch.is_grad_enabled() and not watched


def record(network: nn.Module, inputs: dict[str, Tensor]) -> Replay:
    """Record the kernels of a call.

    Args:
        network: in eval mode.
        inputs: on a GPU.

    Returns:
        What copies other inputs of the same shapes into place, replays the kernels, and gives a copy of the output.
    """
    with torch.cuda.device(inputs["x"].device):
        static = {name: value.clone() for name, value in inputs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is done only at a first call must not be recorded
            for _ in range(2):
                network(**static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = network(**static)

    def replay(inputs: dict[str, Tensor]) -> Tensor:
        for name, value in inputs.items():
            static[name].copy_(value)
        graph.replay()
        return output.clone()

    return replay
