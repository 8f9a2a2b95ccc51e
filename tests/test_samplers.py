"""Samplers: their theorems, an exactly solvable model, and reproducible randomness."""

import itertools
import math

import pytest
import torch

from diffusion_book.denoiser import clipped
from diffusion_book.samplers import (
    SAMPLERS,
    check_eta,
    ddim,
    ddpm,
    dpm_plus_plus,
    evaluations,
    randn,
    sample,
    sample_generators,
    time_grid,
)
from diffusion_book.schedules import SCHEDULES, posterior
from diffusion_book.system.errors import BookError
from diffusion_book.targets import Prediction

T = 1000
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def last(states):
    *_, state = states
    return state


class Gaussian:
    """The best possible denoiser of data drawn from N(mean, std^2): E[x0 | x_t], in closed form.

    x0 and x_t are jointly normal, so E[x0 | x_t] = m + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha m).
    """

    def __init__(self, schedule, mean=0.5, std=0.3):
        self.schedule, self.mean, self.std, self.times = schedule, mean, std, []

    def __call__(self, x_t, t):
        self.times.append(float(t))
        alpha, sigma = self.schedule(t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        return Prediction(x0, (x_t - alpha * x0) / sigma)


# --- The grid of times ---------------------------------------------------------------------------


def test_every_number_of_steps_is_walked_exactly_from_1_to_0():
    for steps in range(1, T + 1):
        times = time_grid(steps)
        assert len(times) == steps + 1
        assert (times[0].item(), times[-1].item()) == (1.0, 0.0)
        assert (times.diff() < 0).all()
        whole = times * T
        assert torch.equal(whole.round() / T, times)  # on the grid of the training
        gaps = -whole.diff()
        assert gaps.max() - gaps.min() <= 1 + 1e-9  # and as even as it allows


def test_all_steps_are_the_whole_grid():
    assert torch.equal(time_grid(T), torch.arange(T, -1, -1, dtype=torch.float64) / T)
    assert time_grid(4, timesteps=4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_grid_are_refused(steps):
    with pytest.raises(BookError, match=rf"^{steps} steps: .* must be 1 to 1000, the timesteps .*--ddim_steps"):
        time_grid(steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(BookError, match="between 0"):
        check_eta(eta)
    check_eta(0.0)
    check_eta(1.0)


def times_asked(sampler: str, times: list[float]) -> list[float]:
    """When the denoiser is called on a walk over these times."""
    asked = []
    for t, s in itertools.pairwise(times):
        asked.append(t)
        if sampler == "midpoint":
            asked.append((t + s) / 2)
        if sampler == "heun" and s > 0:
            asked.append(s)
    return asked


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 30, 333, 1000])
def test_the_denoiser_is_called_as_often_as_stated_at_the_right_times(sampler, steps):
    schedule = SCHEDULES["cosine"]
    denoiser = Gaussian(schedule)
    x = torch.randn(2, 1, generator=generator())
    states = list(sample(denoiser, x, time_grid(steps), SAMPLERS[sampler], schedule=schedule, generator=generator()))
    assert denoiser.times == times_asked(sampler, time_grid(steps).tolist())
    assert len(denoiser.times) == evaluations(sampler, steps)
    assert [state.t for state in states] == time_grid(steps).tolist()
    assert states[0].x is x
    assert states[0].prediction is None
    assert all(state.prediction is not None for state in states[1:])
    if sampler != "midpoint":
        # The last step ends at the predicted picture itself: no noise is left in it.
        torch.testing.assert_close(states[-1].x, states[-1].prediction.x0)


# --- Theorems ------------------------------------------------------------------------------------


@schedules
def test_ddim_with_eta_1_on_the_full_grid_is_ddpm(schedule):
    """Song et al. 2020, section 4.1, for each of the 1,000 steps, with any picture in mind and any noise."""
    x0, x_t, noise = torch.randn(3, 5, 2, dtype=torch.float64, generator=generator())
    times = time_grid(T)
    for t, s in itertools.pairwise(times):
        alpha, sigma = schedule(t)
        found = Prediction(x0, (x_t - alpha * x0) / sigma)
        mine = ddim(found, x_t, t, s, schedule=schedule, noise=noise, eta=1.0)
        theirs = ddpm(found, x_t, t, s, schedule=schedule, noise=noise)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@schedules
def test_ddpm_draws_from_the_posterior(schedule):
    """Mean and variance of one step are those of q(x_s | x_t, x0)."""
    t, s = torch.tensor([0.6, 0.2], dtype=torch.float64)
    x0, x_t = 0.4, -1.1
    draws = torch.full((200_000, 1), x_t, dtype=torch.float64)
    noise = torch.randn(draws.shape, generator=generator(), dtype=torch.float64)
    found = Prediction(torch.full_like(draws, x0), torch.zeros_like(draws))
    x_s = ddpm(found, draws, t, s, schedule=schedule, noise=noise)
    from_x_t, from_x_0, variance = (value.item() for value in posterior(schedule, t, s))
    std = math.sqrt(variance)
    assert abs(x_s.mean().item() - (from_x_t * x_t + from_x_0 * x0)) < 4 * std / math.sqrt(200_000)
    assert abs(x_s.std().item() / std - 1) < 4 / math.sqrt(400_000)


@schedules
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_ddim_step_keeps_the_marginal(schedule, eta):
    """If x_t is alpha_t x0 + sigma_t eps, then x_s is alpha_s x0 + noise of variance sigma_s^2, for every eta."""
    t, s = torch.tensor([0.8, 0.3], dtype=torch.float64)
    x0 = 0.7
    eps, noise = torch.randn(2, 200_000, 1, generator=generator(), dtype=torch.float64)
    alpha, sigma = schedule(t)
    x_t = alpha * x0 + sigma * eps
    x_s = ddim(Prediction(torch.full_like(eps, x0), eps), x_t, t, s, schedule=schedule, noise=noise, eta=eta)
    alpha_s, sigma_s = (value.item() for value in schedule(s))
    assert abs(x_s.mean().item() - alpha_s * x0) < 4 * sigma_s / math.sqrt(200_000)
    assert abs(x_s.std().item() / sigma_s - 1) < 4 / math.sqrt(400_000)


@schedules
@pytest.mark.parametrize(("step", "eta"), [(ddpm, 0.0), (ddim, 0.0), (ddim, 1.0), (dpm_plus_plus, 0.0)])
def test_a_step_from_t_0_is_refused(schedule, step, eta):
    """Nothing tells which noise x_0 holds, for it holds none: better one line than NaN in every picture."""
    x = torch.zeros(2, 1, dtype=torch.float64)
    found = Prediction(x, x)
    for t, s in ((0.0, 0.0), (0.0, 0.5)):
        t, s = torch.tensor([t, s], dtype=torch.float64)
        with pytest.raises(BookError, match="cannot start at t = 0"):
            step(found, x, t, s, schedule=schedule, noise=x, eta=eta)
    first, end = torch.tensor([1 / T, 0.0], dtype=torch.float64)
    with pytest.raises(BookError, match="cannot start at t = 0"):
        step(found, x, torch.tensor([0.0, 0.5]), torch.zeros(2), schedule=schedule, noise=x, eta=eta)
    assert step(found, x, first, end, schedule=schedule, noise=x, eta=eta).isfinite().all()


def test_ddim_with_eta_0_needs_no_noise():
    schedule = SCHEDULES["cosine"]
    x = torch.randn(3, 1, generator=generator())

    def run(seed, **options):
        draws = generator(seed)
        end = last(sample(Gaussian(schedule), x, time_grid(20), ddim, schedule=schedule, generator=draws, **options))
        return end.x, torch.equal(draws.get_state(), generator(seed).get_state())

    first, untouched = run(1)
    second, _ = run(2)
    assert untouched
    assert torch.equal(first, second)
    noisy, untouched = run(1, eta=0.5)
    assert not untouched
    assert not torch.allclose(noisy, run(2, eta=0.5)[0])


# --- A model with a known answer -----------------------------------------------------------------


@schedules
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0)])
def test_the_gaussian_comes_out_with_its_mean_and_variance(schedule, sampler, eta):
    mean, std, walkers = 0.5, 0.3, 20_000
    x = torch.randn(walkers, 1, generator=generator(), dtype=torch.float64)
    denoiser = Gaussian(schedule, mean, std)
    step = SAMPLERS[sampler]
    x = last(sample(denoiser, x, time_grid(T), step, schedule=schedule, generator=generator(1), eta=eta)).x
    assert abs(x.mean().item() - mean) < 4 * std / math.sqrt(walkers)
    assert abs(x.std().item() / std - 1) < 4 / math.sqrt(2 * walkers) + 0.01  # and 1 % for the finite grid
    standard = (x - mean) / std
    assert abs(standard.pow(3).mean().item()) < 0.1  # no skew: still a Gaussian
    assert abs(standard.pow(4).mean().item() - 3) < 0.2


@schedules
def test_ddim_converges_to_the_exact_flow(schedule):
    """eta = 0 maps the quantiles of the noise on those of the data; the error halves with the step."""
    mean, std = 0.5, 0.3
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    alpha, sigma = (value.item() for value in schedule(torch.tensor(1.0, dtype=torch.float64)))
    exact = mean + std * (x - alpha * mean) / math.sqrt(alpha**2 * std**2 + sigma**2)

    def error(steps):
        states = sample(
            Gaussian(schedule, mean, std), x, time_grid(steps), ddim, schedule=schedule, generator=generator()
        )
        return (last(states).x - exact).abs().max().item()

    errors = [error(steps) for steps in (125, 250, 500, 1000)]
    assert errors[-1] < 0.01
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.4  # first order


@schedules
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_point_is_found_in_one_step_and_in_many(schedule, sampler):
    """Data without variance: whatever the number of steps, every sample is the point."""
    x = torch.randn(50, 1, generator=generator(), dtype=torch.float64)
    for steps in (1, 3, 100):
        denoiser = Gaussian(schedule, mean=-0.4, std=0.0)
        step = SAMPLERS[sampler]
        end = last(sample(denoiser, x, time_grid(steps), step, schedule=schedule, generator=generator()))
        torch.testing.assert_close(end.x, torch.full_like(x, -0.4))


def test_the_noisy_state_is_never_clamped():
    """Only x0 is clipped. Clamping x_t at every step would leave every state inside [-1, 1]."""
    schedule = SCHEDULES["cosine"]
    denoiser = clipped(Gaussian(schedule, mean=0.0, std=2.0), schedule)
    x = torch.randn(500, 1, generator=generator(), dtype=torch.float64)
    for name, sampler in SAMPLERS.items():
        for state in sample(denoiser, x, time_grid(50), sampler, schedule=schedule, generator=generator()):
            if state.prediction is not None:
                assert state.prediction.x0.abs().max() <= 1
            if state.t > 0.5:
                assert state.x.abs().max() > 1.5
        # The last state is the clipped picture; midpoint goes there by a picture that it saw half a step before.
        assert state.x.abs().max() <= (1 + 1e-3 if name == "midpoint" else 1 + 1e-12)


# --- Randomness ----------------------------------------------------------------------------------


def test_each_sample_has_its_own_noise_whatever_the_batch():
    together = randn((6, 1, 4, 4), sample_generators(7, range(6)))
    for split in ([range(1), range(1, 6)], [range(4), range(4, 6)], [[index] for index in range(6)]):
        apart = torch.cat([randn((len(part), 1, 4, 4), sample_generators(7, part)) for part in split])
        assert torch.equal(together, apart)
    assert torch.equal(together[[4, 2]], randn((2, 1, 4, 4), sample_generators(7, [4, 2])))


def test_seeds_and_indices_are_not_interchangeable():
    shape = (1, 64)
    draws = [randn(shape, sample_generators(seed, [index])) for seed in range(8) for index in range(8)]
    assert len({draw.numpy().tobytes() for draw in draws}) == 64


def test_the_noise_of_samples_is_standard_normal_and_uncorrelated():
    noise = randn((2000, 200), sample_generators(0, range(2000))).double()
    assert abs(noise.mean().item()) < 4 / math.sqrt(noise.numel())
    assert abs(noise.var().item() - 1) < 4 * math.sqrt(2 / noise.numel())
    neighbours = (noise[:-1] * noise[1:]).mean().item()
    assert abs(neighbours) < 4 / math.sqrt(noise.numel())


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.7)])
def test_fresh_noise_is_each_sample_s_own_too(sampler, eta):
    schedule = SCHEDULES["linear"]

    def run(indices):
        generators = sample_generators(3, indices)
        x = randn((len(indices), 2), generators)
        times, step = time_grid(7), SAMPLERS[sampler]
        return last(sample(Gaussian(schedule), x, times, step, schedule=schedule, generator=generators, eta=eta)).x

    together = run(range(5))
    torch.testing.assert_close(torch.cat([run(range(2)), run(range(2, 5))]), together)
    torch.testing.assert_close(run(range(3)), together[:3])


def test_one_generator_serves_a_whole_batch():
    assert torch.equal(randn((3, 2), generator(5)), torch.randn(3, 2, generator=generator(5)))


def test_a_negative_seed_is_refused():
    with pytest.raises(BookError, match="0 or more"):
        sample_generators(-1, range(2))
