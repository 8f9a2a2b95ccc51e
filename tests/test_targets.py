"""Targets: whatever the network predicts, the same pair (x0, eps) comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_book.schedules import SCHEDULES, add_noise
from diffusion_book.targets import TARGETS, prediction, target_value

targets = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def pictures(batch: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(2, batch, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@targets
@schedules
@settings(max_examples=40, deadline=None)
@given(
    times=st.lists(st.integers(1, 1000), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_round_trip(target, schedule, times, seed):
    """(x0, eps) -> target -> (x0, eps), with another time for each picture of the batch."""
    t = torch.tensor(times, dtype=torch.float64) / 1000  # (B,)
    if target is TARGETS["noise"] and schedule is SCHEDULES["rectified"]:
        t = t.clamp(max=0.999)  # at t = 1 nothing of the picture is left, which is why this pair cannot be trained
    x0, eps = pictures(len(times), seed)
    alpha, sigma = schedule(t)
    x_t = add_noise(schedule, x0, eps, t)
    found = prediction(target, target_value(target, x0, eps, alpha, sigma), x_t, alpha, sigma)
    # At t = 1 of the cosine schedule x0 is 2e4 times amplified rounding where eps is predicted.
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-9)


@targets
@schedules
def test_what_comes_back_adds_up_to_x_t_whatever_the_network_says(target, schedule):
    t = torch.tensor([0.001, 0.3, 0.7, 0.95], dtype=torch.float64)
    x_t, output = pictures(4)
    alpha, sigma = schedule(t)
    x0, eps = prediction(target, output, x_t, alpha, sigma)
    again = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
    torch.testing.assert_close(again, x_t, rtol=0, atol=1e-9)


def test_each_target_is_the_formula_of_its_paper():
    x0, eps = pictures(3)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for schedule in SCHEDULES.values():
        alpha, sigma = schedule(t)
        a, s = alpha[:, None, None, None], sigma[:, None, None, None]
        assert torch.equal(target_value(TARGETS["noise"], x0, eps, alpha, sigma), eps)
        assert torch.equal(target_value(TARGETS["image"], x0, eps, alpha, sigma), x0)
        torch.testing.assert_close(target_value(TARGETS["v"], x0, eps, alpha, sigma), a * eps - s * x0)


def test_v_is_the_tangent_of_the_path():
    """With alpha = cos(phi), sigma = sin(phi): v = d x_t / d phi (Salimans & Ho 2022, appendix D)."""
    x0, eps = pictures(1)
    phi = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    for pixel in range(4):
        x_t = phi.cos() * x0[0, 0, 0, pixel] + phi.sin() * eps[0, 0, 0, pixel]
        (slope,) = torch.autograd.grad(x_t, phi)
        v = target_value(TARGETS["v"], x0, eps, phi.detach().cos(), phi.detach().sin())[0, 0, 0, pixel]
        torch.testing.assert_close(slope[0], v)


@targets
@schedules
def test_in_single_precision_only_noise_amplifies_errors_at_the_end(target, schedule):
    """Why v is the default: at t = 1 an error of 1e-3 in the output stays one of 1e-3 in x0."""
    x0, eps = pictures(2, dtype=torch.float32)
    t = torch.ones(2, dtype=torch.float64)
    alpha, sigma = schedule(t)
    x_t = add_noise(schedule, x0, eps, t)
    off = target_value(target, x0, eps, alpha, sigma) + 1e-3
    error = (prediction(target, off, x_t, alpha, sigma).x0 - x0).abs().max().item()
    if target is TARGETS["noise"]:
        assert error > 0.1
    else:
        assert error < 2e-3
