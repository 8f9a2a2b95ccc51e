"""Denoiser: the border between networks and mathematics, and the only place where anything is clipped."""

import pytest
import torch

from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.schedules import SCHEDULES, add_noise, expand
from diffusion_book.targets import TARGETS, Prediction, target_value

schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def pictures(batch: int = 3):
    return torch.randn(2, batch, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@schedules
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_perfect_network_gives_back_picture_and_noise(schedule, target):
    x0, eps = pictures()
    for t in (torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)):

        def network(x, times):
            assert times.shape == (3,)
            assert times.dtype == x.dtype
            alpha, sigma = schedule(times)
            return target_value(target, x0, eps, alpha, sigma)

        found = Denoiser(network, schedule, target)(add_noise(schedule, x0, eps, t), t)
        torch.testing.assert_close(found.x0, x0)
        torch.testing.assert_close(found.eps, eps)


def test_conditions_reach_the_network_untouched():
    seen = {}

    def network(x, t, **condition):
        seen.update(condition)
        return x

    context = torch.randn(3, 2, 5)
    denoiser = Denoiser(network, SCHEDULES["cosine"], TARGETS["v"])
    clipped(denoiser, SCHEDULES["cosine"])(pictures()[0], torch.tensor(0.5), context=context)
    assert list(seen) == ["context"]
    assert seen["context"] is context


@schedules
def test_clipping_keeps_the_pair_consistent(schedule):
    """x_t = alpha x0 + sigma eps holds after the clip as before it, with x_t as it was."""
    x_t, guess = pictures()
    x_t, guess = 2 * x_t, 3 * guess
    before = x_t.clone()
    t = torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = (expand(value, x_t) for value in schedule(t))

    def wild(x, t):
        return Prediction(guess, (x - alpha * guess) / sigma)

    x0, eps = clipped(wild, schedule)(x_t, t)
    assert torch.equal(x0, guess.clamp(-1, 1))
    assert (guess.abs() > 1).any()
    torch.testing.assert_close(alpha * x0 + sigma * eps, before)
    assert torch.equal(x_t, before)
    assert not torch.allclose(eps, wild(x_t, t).eps)


@schedules
def test_clipping_changes_nothing_inside_the_range(schedule):
    x_t, guess = pictures()
    guess = guess.tanh()
    t = torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)
    alpha, sigma = (expand(value, x_t) for value in schedule(t))

    def tame(x, t):
        return Prediction(guess, (x - alpha * guess) / sigma)

    for mine, theirs in zip(clipped(tame, schedule)(x_t, t), tame(x_t, t), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_half_precision_network_does_not_lower_the_arithmetic():
    def network(x, t):
        return x.to(torch.bfloat16)

    found = Denoiser(network, SCHEDULES["cosine"], TARGETS["v"])(pictures()[0].float(), torch.tensor(0.5))
    assert found.x0.dtype == found.eps.dtype == torch.float32
