"""Muon against PyTorch's own, and what it leaves to AdamW."""

import copy

import pytest
import torch
from torch import nn

from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.training.optimizers import Muon, build_optimizer, orthogonalize


class Small(nn.Module):
    """One weight of every kind: a tall, a wide and a square matrix, a kernel, a bias, and the convolutions at both ends."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(1, 4, 3)
        self.kernel = nn.Conv2d(4, 6, 3)
        self.tall = nn.Linear(4, 16, bias=False)
        self.wide = nn.Linear(16, 4, bias=False)
        self.square = nn.Linear(4, 4)
        self.conv_out = nn.Conv2d(6, 1, 3)


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 4, 30), (3, 30, 4), (1, 1, 9)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalize(matrices) @ right.mT  # diagonal where the singular vectors are the same
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    assert torch.allclose(found, torch.diag_embed(diagonal), atol=1e-4)
    large = values > 0.05 * values[:, :1]
    assert ((diagonal[large] > 0.6) & (diagonal[large] < 1.25)).all()


def test_the_scale_of_a_gradient_does_not_matter():
    matrices = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(orthogonalize(matrices), orthogonalize(1e4 * matrices), atol=1e-5)


def test_matrices_move_as_with_torchs_muon_and_the_rest_as_with_adamw():
    ours, theirs = small(), small()
    matrices = {"kernel.weight", "tall.weight", "wide.weight", "square.weight"}
    rest = [weight for name, weight in theirs.named_parameters() if name not in matrices]
    views = {name: nn.Parameter(theirs.get_parameter(name).detach().flatten(1)) for name in matrices}
    muon = torch.optim.Muon(
        [views[name] for name in sorted(matrices)],
        lr=0.01,
        momentum=0.95,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.1)
    optimizer = Muon(ours, lr=0.01, weight_decay=0.1)
    for step in range(5):
        gradients(ours, step)
        gradients(theirs, step)
        for name, view in views.items():
            view.grad = theirs.get_parameter(name).grad.flatten(1)
        optimizer.step()
        muon.step()
        adamw.step()
    before = dict(small().named_parameters())
    for name, weight in ours.named_parameters():
        if name in matrices:  # PyTorch iterates in bfloat16
            moved = (weight - before[name]).norm()
            assert (weight - views[name].view_as(weight)).norm() < 0.02 * moved, name
        else:
            assert torch.allclose(weight, theirs.get_parameter(name), atol=1e-7), name


def test_continued_from_its_state_it_goes_the_same_way():
    one, two = small(), None
    first = Muon(one, lr=0.01)
    for step in range(3):
        gradients(one, step)
        first.step()
    two = copy.deepcopy(one)
    second = Muon(two, lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for group in (*first.param_groups, *second.param_groups):
        group["lr"] = 0.02
    for network, optimizer in ((one, first), (two, second)):
        gradients(network, 7)
        optimizer.step()
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_every_weight_of_the_unet_belongs_to_one_group():
    network = UNet(UNetConfig(base_channels=8, layers_per_block=1))
    groups = build_optimizer(network, TrainingConfig()).param_groups
    found = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(found) == sorted(id(weight) for weight in network.parameters())
    assert sum(weight.numel() for weight in groups[0]["params"]) > 0.9 * sum(w.numel() for w in network.parameters())
