"""The diagonal Gaussian: against torch.distributions, finite differences and many draws."""

import dataclasses
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion_book.networks.gaussian import LOG_VARIANCE_RANGE, DiagonalGaussian

SHAPE = (3, 2, 4, 4)


def numbers(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(seed: int = 0) -> DiagonalGaussian:
    return DiagonalGaussian(numbers(seed), 2 * numbers(seed + 1))


# --- KL divergence -------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions_summed_over_the_latent():
    found = gaussian()
    expected = kl_divergence(Normal(found.mean, found.std), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert found.kl().shape == (3,)
    torch.testing.assert_close(found.kl(), expected)


def test_kl_is_the_mean_log_ratio_of_the_densities():
    """Its definition, E_q[log q(z) - log p(z)], with 200,000 draws of one number."""
    q = DiagonalGaussian(torch.tensor([[[[0.7]]]]), torch.tensor([[[[-1.0]]]]))
    z = q.sample(torch.randn(200_000, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    ratio = Normal(q.mean, q.std).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = ratio.std().item() / math.sqrt(len(z))
    assert q.kl().item() == pytest.approx(ratio.mean().item(), abs=4 * error)


def test_kl_is_zero_at_the_standard_normal_alone():
    zero = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    same = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    kl = DiagonalGaussian(zero, same).kl()
    assert torch.equal(kl, torch.zeros(3, dtype=torch.float64))
    kl.sum().backward()
    assert not zero.grad.any()
    assert not same.grad.any()
    for step in (-0.1, 0.1):
        assert (DiagonalGaussian(zero + step, same).kl() > 0).all()
        assert (DiagonalGaussian(zero, same + step).kl() > 0).all()


def test_kl_has_the_gradient_of_finite_differences():
    mean, log_variance = (numbers(seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda m, v: DiagonalGaussian(m, v).kl(), (mean, log_variance))
    DiagonalGaussian(mean, log_variance).kl().sum().backward()
    torch.testing.assert_close(mean.grad, mean.detach())
    torch.testing.assert_close(log_variance.grad, 0.5 * (log_variance.detach().exp() - 1))


# --- Draws ---------------------------------------------------------------------------------------


def test_draws_have_the_mean_and_the_standard_deviation():
    q = DiagonalGaussian(torch.tensor([[[[1.5]], [[-2.0]]]]), torch.tensor([[[[0.5]], [[-3.0]]]]))
    z = q.sample(torch.randn(100_000, 2, 1, 1, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(z.mean(dim=0, keepdim=True), q.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(z.std(dim=0, keepdim=True), q.std, rtol=0.01, atol=0)


def test_a_draw_is_differentiable_in_mean_and_variance():
    """Finite differences, and the two derivatives on paper: 1 and std * noise / 2."""
    mean, log_variance, noise = numbers(0).requires_grad_(), numbers(1).requires_grad_(), numbers(2)
    assert torch.autograd.gradcheck(lambda m, v: DiagonalGaussian(m, v).sample(noise), (mean, log_variance))
    q = DiagonalGaussian(mean, log_variance)
    q.sample(noise).sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_variance.grad, 0.5 * q.std.detach() * noise)


def test_the_gradient_of_an_expectation_is_the_mean_gradient_of_draws():
    """E[z^3] = m^3 + 3 m v, so its slopes are 3 m^2 + 3 v in m, and 3 m v in log v."""
    number, m, v = 400_000, 0.8, 0.5
    mean = torch.full((number, 1, 1, 1), m, dtype=torch.float64, requires_grad=True)
    log_variance = torch.full_like(mean, math.log(v)).detach().requires_grad_()
    DiagonalGaussian(mean, log_variance).sample(numbers(0, (number, 1, 1, 1))).pow(3).sum().backward()
    for gradient, expected in ((mean.grad, 3 * m**2 + 3 * v), (log_variance.grad, 3 * m * v)):
        error = gradient.std().item() / math.sqrt(number)
        assert error < 0.02 * expected
        assert gradient.mean().item() == pytest.approx(expected, abs=4 * error)


def test_without_noise_a_draw_is_the_mode():
    q = gaussian()
    assert torch.equal(q.sample(torch.zeros(SHAPE)), q.mode)
    assert torch.equal(q.mode, q.mean)


# --- Moments -------------------------------------------------------------------------------------


def test_moments_are_the_mean_and_then_the_log_variance():
    moments = numbers(0, (3, 4, 2, 2))
    found = DiagonalGaussian.from_moments(moments)
    assert torch.equal(found.mean, moments[:, :2])
    assert torch.equal(found.log_variance, moments[:, 2:])
    assert torch.equal(found.moments, moments)
    again = DiagonalGaussian.from_moments(gaussian().moments)
    assert torch.equal(again.mean, gaussian().mean)
    assert torch.equal(again.log_variance, gaussian().log_variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_untrained_encoder_may_say_anything_and_all_stays_finite(dtype):
    low, high = LOG_VARIANCE_RANGE
    said = torch.tensor([-math.inf, -1e4, low, -1.0, high, 1e4, math.inf], dtype=dtype)
    moments = torch.stack([torch.zeros_like(said), said])[None, :, None]  # (1, 2, 1, 7)
    found = DiagonalGaussian.from_moments(moments)
    assert found.log_variance.flatten().tolist() == [low, low, low, -1.0, high, high, high]
    assert (found.std > 0).all()
    assert found.std.isfinite().all()
    assert found.kl().isfinite().all()
    assert found.sample(torch.ones_like(found.mean)).isfinite().all()


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        gaussian().mean = torch.zeros(SHAPE)
