"""Schedules: the papers' numbers, and the Markov chain behind x_t = alpha x_0 + sigma eps."""

import itertools
import math

import pytest
import torch

from diffusion_book.schedules import (
    SCHEDULES,
    add_noise,
    betas,
    cosine,
    expand,
    linear,
    posterior,
    rectified,
    signal_to_noise,
    transition,
)

T = 1000
GRID = torch.arange(T + 1, dtype=torch.float64) / T
PRESERVING = ("cosine", "linear")  # alpha^2 + sigma^2 = 1, as in every chain of DDPM
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
preserving = pytest.mark.parametrize("schedule", [SCHEDULES[name] for name in PRESERVING], ids=PRESERVING)


def nichol_alpha_bar(t: float, s: float = 0.008) -> float:
    """Nichol & Dhariwal 2021, equation 17, before the cap on beta."""

    def f(time):
        return math.cos((time + s) / (1 + s) * math.pi / 2) ** 2

    return f(t) / f(0.0)


def test_cosine_is_equation_17():
    alpha, _ = cosine(GRID)
    for step in (0, 1, 10, 250, 500, 750, 999):
        assert alpha[step].square().item() == pytest.approx(nichol_alpha_bar(step / T), rel=1e-12)


def test_cosine_has_these_values():
    """The equation's numbers, written down: so a mistake made here and in the library alike is noticed too."""
    alpha, _ = cosine(torch.tensor([0.0, 0.25, 0.5, 0.75, 0.999], dtype=torch.float64))
    expected = [1.0, 0.847012, 0.493844, 0.144272, 2.42877e-6]
    assert alpha.square().tolist() == pytest.approx(expected, rel=1e-5)


def test_cosine_caps_beta_at_0_999():
    alpha, _ = cosine(GRID)
    expected = [min(1 - nichol_alpha_bar(k / T) / nichol_alpha_bar((k - 1) / T), 0.999) for k in range(1, T + 1)]
    assert expected[-1] == 0.999  # without the cap it would be 1: no signal at all
    assert expected[-2] < 0.999  # and it is the only step that needs it
    assert alpha[-1].square().item() == pytest.approx(0.001 * nichol_alpha_bar(0.999), rel=1e-12)
    torch.testing.assert_close(betas(cosine), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-15)


def test_linear_betas_are_those_of_ho():
    expected = [1e-4 + (0.02 - 1e-4) * k / (T - 1) for k in range(T)]
    torch.testing.assert_close(betas(linear), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-14)


def test_linear_is_the_product_of_its_alphas():
    alpha, _ = linear(GRID)
    product = 1.0
    for k in range(T):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / (T - 1))
        if k + 1 in (1, 10, 500, 1000):
            assert alpha[k + 1].square().item() == pytest.approx(product, rel=1e-12)


def test_linear_between_its_steps_lies_between_them():
    t = torch.linspace(0, 1, 3 * T + 1, dtype=torch.float64)
    alpha, _ = linear(t)
    assert (alpha.diff() < 0).all()
    middle, _ = linear(torch.tensor(0.5005, dtype=torch.float64))
    ends, _ = linear(torch.tensor([0.5, 0.501], dtype=torch.float64))
    assert middle.item() == pytest.approx(ends.prod().sqrt().item(), rel=1e-12)


@every
def test_it_starts_at_the_data_and_ends_at_noise(schedule):
    alpha, sigma = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert (alpha[0].item(), sigma[0].item()) == (1.0, 0.0)
    assert alpha[1].item() < 0.01
    assert sigma[1].item() > 0.9999


@preserving
def test_it_preserves_variance(schedule):
    alpha, sigma = schedule(torch.linspace(0, 1, 7777, dtype=torch.float64))
    torch.testing.assert_close(
        alpha.square() + sigma.square(), torch.ones(7777, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_the_straight_path_is_straight():
    """x_t = (1 - t) x0 + t eps: the shares add up to 1, and nowhere between its ends does it preserve variance."""
    t = torch.linspace(0, 1, 7777, dtype=torch.float64)
    alpha, sigma = rectified(t)
    assert torch.equal(alpha, 1 - t)
    assert torch.equal(sigma, t)
    assert sigma is not t  # whoever changes what came back does not change the time
    inside = (alpha.square() + sigma.square())[1:-1]
    assert (inside < 1).all()
    assert inside.min().item() == pytest.approx(0.5)
    x0, eps = torch.randn(2, 7777, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(add_noise(rectified, x0, eps, t), torch.lerp(x0, eps, t[:, None]))


def test_the_chain_behind_the_straight_path():
    """Its one Markov chain, worked out by hand: a_ts = (1 - t) / (1 - s), v_ts = (t - s)(t + s - 2 t s) / (1 - s)^2.

    It is no chain of DDPM: a_ts^2 + v_ts falls short of 1, by 2 (t - s)(1 - t) / (1 - s).
    """
    t, s = GRID[1:], GRID[:-1]
    a, v = transition(rectified, t, s)
    torch.testing.assert_close(a, (1 - t) / (1 - s))
    torch.testing.assert_close(v, (t - s) * (t + s - 2 * t * s) / (1 - s).square(), rtol=1e-9, atol=1e-15)
    assert (v > 0).all()
    torch.testing.assert_close(1 - a.square() - v, 2 * (t - s) * (1 - t) / (1 - s), rtol=0, atol=1e-12)
    from_x_t, from_x_0, variance = posterior(rectified, t, s)
    torch.testing.assert_close(from_x_t, (1 - t) / (1 - s) * (s / t).square(), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(from_x_0, (t - s) * (t + s - 2 * t * s) / (t.square() * (1 - s)), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(variance, from_x_0 * s.square() / (1 - s), rtol=1e-9, atol=1e-15)


@every
def test_signal_falls_at_every_step(schedule):
    ratio = signal_to_noise(schedule, GRID)
    assert ratio[0] == math.inf
    assert (ratio.diff() < 0).all()
    alpha, sigma = schedule(GRID)
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()


@every
def test_single_precision_keeps_its_digits_near_the_data(schedule):
    """sqrt(1 - alpha^2) would keep two of seven digits at t = 0.001."""
    t = torch.tensor([1e-5, 1e-4, 1e-3, 2e-3, 1e-2, 0.1, 0.5, 0.9])
    for single, double in zip(schedule(t), schedule(t.double()), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=0)
    assert schedule(torch.tensor(0.0))[1].item() == 0.0


@every
def test_iterating_q_gives_q_of_x0_in_closed_form(schedule):
    """Mean and variance of x_k, one step q(x_k | x_{k-1}) = N(a x, v) at a time, for all 1,000 steps."""
    a, v = transition(schedule, GRID[1:], GRID[:-1])
    alpha, sigma = schedule(GRID)
    mean, variance = 1.0, 0.0
    for k in range(T):
        mean, variance = a[k].item() * mean, a[k].item() ** 2 * variance + v[k].item()
        assert mean == pytest.approx(alpha[k + 1].item(), rel=1e-9)
        assert variance == pytest.approx(sigma[k + 1].item() ** 2, rel=1e-9)


@preserving
def test_each_step_is_ddpm_s_own(schedule):
    """q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k): Ho et al. 2020, equation 2."""
    a, v = transition(schedule, GRID[1:], GRID[:-1])
    torch.testing.assert_close(a.square(), 1 - v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(betas(schedule), v)
    assert (v > 0).all()


@every
def test_simulating_the_chain_gives_the_same_moments(schedule):
    """The same by drawing: 40,000 walkers through 50 steps end as one draw of q(x_t | x_0) does."""
    generator = torch.Generator().manual_seed(0)
    walkers, x0, times = 40_000, 0.7, GRID[:501:10]
    x = torch.full((walkers,), x0, dtype=torch.float64)
    for s, t in itertools.pairwise(times):
        a, v = transition(schedule, t, s)
        x = a * x + v.sqrt() * torch.randn(walkers, generator=generator, dtype=torch.float64)
    alpha, sigma = (value.item() for value in schedule(times[-1]))
    error = sigma / math.sqrt(walkers)
    assert abs(x.mean().item() - alpha * x0) < 4 * error
    assert abs(x.std().item() / sigma - 1) < 4 / math.sqrt(2 * walkers)
    eps = torch.randn(walkers, 1, generator=generator, dtype=torch.float64)
    direct = add_noise(schedule, torch.full((walkers, 1), x0, dtype=torch.float64), eps, times[-1])
    assert abs(direct.mean().item() - x.mean().item()) < 6 * error


@every
def test_transitions_compose(schedule):
    """q(x_t | x_r) through a stop at s, for any three times and not only neighbours of a grid."""
    r, s, t = (torch.tensor(value, dtype=torch.float64) for value in (0.123, 0.4567, 0.9))
    a_sr, v_sr = transition(schedule, s, r)
    a_ts, v_ts = transition(schedule, t, s)
    a_tr, v_tr = transition(schedule, t, r)
    assert (a_ts * a_sr).item() == pytest.approx(a_tr.item(), rel=1e-12)
    assert (a_ts.square() * v_sr + v_ts).item() == pytest.approx(v_tr.item(), rel=1e-12)


@every
def test_the_posterior_is_bayes_rule(schedule):
    """q(x_s | x_t, x_0) from the product of two Gaussians, in precisions: a way the library does not take."""
    for t_value, s_value in ((1.0, 0.999), (0.5, 0.499), (0.7, 0.2), (0.002, 0.001)):
        t, s = torch.tensor(t_value, dtype=torch.float64), torch.tensor(s_value, dtype=torch.float64)
        a_ts, v_ts = (value.item() for value in transition(schedule, t, s))
        alpha_s, sigma_s = (value.item() for value in schedule(s))
        precision = 1 / sigma_s**2 + a_ts**2 / v_ts
        from_x_t, from_x_0, variance = (value.item() for value in posterior(schedule, t, s))
        assert variance == pytest.approx(1 / precision, rel=1e-9)
        assert from_x_t == pytest.approx(a_ts / v_ts / precision, rel=1e-9)
        assert from_x_0 == pytest.approx(alpha_s / sigma_s**2 / precision, rel=1e-9)


@preserving
def test_the_posterior_on_the_grid_is_equation_7_of_ho(schedule):
    alpha, sigma = schedule(GRID)
    alpha_bar, beta = alpha.square(), betas(schedule)
    from_x_t, from_x_0, variance = posterior(schedule, GRID[1:], GRID[:-1])
    before, after = alpha_bar[:-1], alpha_bar[1:]
    close = {"rtol": 1e-8, "atol": 1e-13}
    torch.testing.assert_close(from_x_0, before.sqrt() * beta / sigma[1:].square(), **close)
    torch.testing.assert_close(from_x_t, (1 - beta).sqrt() * (1 - before) / (1 - after), rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(variance, (1 - before) / (1 - after) * beta, rtol=1e-7, atol=1e-11)


@every
def test_the_last_step_back_ends_at_the_picture(schedule):
    zero = torch.tensor(0.0, dtype=torch.float64)
    from_x_t, from_x_0, variance = posterior(schedule, torch.tensor(0.02, dtype=torch.float64), zero)
    assert (from_x_t.item(), variance.item()) == (0.0, 0.0)
    assert from_x_0.item() == pytest.approx(1.0, rel=1e-12)


@every
def test_add_noise_takes_one_time_or_one_a_picture(schedule):
    x0, eps = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    together = add_noise(schedule, x0, eps, t)
    for row in range(3):
        torch.testing.assert_close(
            add_noise(schedule, x0[row : row + 1], eps[row : row + 1], t[row]), together[row : row + 1]
        )
        alpha, sigma = schedule(t[row])
        torch.testing.assert_close(together[row], alpha * x0[row] + sigma * eps[row])


def test_expand_adds_the_missing_dimensions_at_the_end():
    like = torch.zeros(3, 1, 4, 4)
    assert expand(torch.ones(3, dtype=torch.float64), like).shape == (3, 1, 1, 1)
    assert expand(torch.ones(()), like).shape == (1, 1, 1, 1)
    assert expand(torch.ones(3, dtype=torch.float64), like).dtype == torch.float32
