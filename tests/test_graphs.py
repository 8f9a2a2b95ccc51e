"""When a network's kernels are recorded, and what a replay is given: the logic, which needs no GPU."""

import pytest
import torch
from torch import nn

from diffusion_book.system import graphs
from diffusion_book.system.graphs import MOST, Graphed


class Sum(nn.Module):
    """x + t, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = nn.Identity(), 0

    def forward(self, x, t, context=None):
        self.calls += 1
        return self.inner(x) + t[:, None] + (0 if context is None else context)


@pytest.fixture
def recorded(monkeypatch):
    """Takes the CPU for a GPU; the shapes that were recorded."""
    found = []

    def record(network, inputs):
        found.append(inputs["x"].shape)
        return lambda inputs: inputs["x"] + inputs["t"][:, None] + inputs.get("context", 0)

    monkeypatch.setattr(graphs, "record", record)
    can_replay = Graphed.can_replay

    class OnGPU:
        device = torch.device("cuda")

    monkeypatch.setattr(Graphed, "can_replay", lambda self, x: can_replay(self, OnGPU))
    return found


@torch.no_grad()
def test_the_second_call_of_a_shape_is_recorded_and_replayed_from_then_on(recorded):
    network = Sum()
    graphed = Graphed(network)
    for number in range(5):
        x, t = torch.full((2, 3), float(number)), torch.tensor([0.0, 1.0])
        assert torch.equal(graphed(x, t), x + t[:, None])
    assert (network.calls, recorded) == (1, [(2, 3)])
    graphed(torch.ones(4, 3), torch.ones(4))
    assert (network.calls, recorded) == (2, [(2, 3)])
    graphed(x, t, context=torch.ones(2, 3))  # with a condition it is another call
    assert network.calls == 3


@torch.no_grad()
def test_old_shapes_make_room(recorded):
    graphed = Graphed(Sum())
    for size in range(1, 2 * MOST):
        graphed(torch.ones(size, 1), torch.ones(size))
        assert len(graphed.replays) <= MOST


def test_gradients_and_hooks_and_the_cpu_run_the_network_itself(recorded, monkeypatch):
    network, x, t = Sum(), torch.ones(2, 3), torch.ones(2)
    graphed = Graphed(network)
    for _ in range(3):
        graphed(x, t)
    assert network.calls == 3
    seen = []
    handle = network.inner.register_forward_pre_hook(lambda *arguments: seen.append(1))
    with torch.no_grad():
        for _ in range(3):
            graphed(x, t)
        assert len(seen) == 3
        handle.remove()
        for _ in range(3):
            graphed(x, t)
        assert len(recorded) == 1
        monkeypatch.undo()
        before = network.calls
        Graphed(network)(x, t), Graphed(network)(x, t)
        assert network.calls == before + 2
