"""Editing by a denoiser: on normal distributions, where everything is known in closed form."""

import math

import pytest
import torch

from diffusion_book import editing
from diffusion_book.samplers import SAMPLERS, sample, time_grid
from diffusion_book.schedules import SCHEDULES, cosine, rectified
from diffusion_book.system.errors import BookError
from diffusion_book.targets import Prediction

MEAN, VARIANCE = 0.5, 0.3  # of the pictures, each a single number
MANY = 20_000


def gaussian(schedule, mean=MEAN, covariance=VARIANCE):
    """The denoiser of N(mean, covariance): pictures (B, D), where covariance is (D, D), or one number for D = 1."""
    covariance = torch.as_tensor(covariance, dtype=torch.float64).reshape(-1, 1 if isinstance(covariance, float) else 2)

    def denoiser(x_t, t):
        alpha, sigma = schedule(t)
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(len(covariance))  # the covariance of x_t
        whitened = (x_t - alpha * mean) @ torch.linalg.inv(noisy)
        return Prediction(mean + alpha * whitened @ covariance, sigma * whitened)  # E[x0 | x_t], E[eps | x_t]

    return denoiser


def column(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)[:, None]


def last(states) -> torch.Tensor:
    *_, state = states
    return state.x


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("schedule", [cosine, rectified])
@pytest.mark.parametrize("t", [0.3, 0.6, 1.0])
def test_sdedit_moves_a_picture_as_far_as_theory_says(schedule, t):
    """With fresh noise at every step the picture is a draw from the posterior; along the flow its quantile is kept."""
    start = -0.7
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    noisy = alpha**2 * VARIANCE + sigma**2  # the variance of x_t
    left = alpha * (start - MEAN)  # what is left of the picture at time t
    gain = VARIANCE * alpha / noisy
    laws = {
        "ddpm": (MEAN + gain * left, VARIANCE * sigma**2 / noisy + gain**2 * sigma**2),
        "ddim": (MEAN + math.sqrt(VARIANCE / noisy) * left, VARIANCE * sigma**2 / noisy),
    }
    for name, (mean, variance) in laws.items():
        x0, times, step = column([start] * MANY), time_grid(500), SAMPLERS[name]
        found = last(editing.sdedit(gaussian(schedule), x0, t, times, step, schedule=schedule, generator=seeded()))
        assert abs(found.mean() - mean) < 0.02, name
        assert abs(found.var() - variance) < 0.02, name


def test_sdedit_begins_at_t_and_walks_down_the_grid():
    step, x0 = SAMPLERS["ddim"], column([0.0, 1.0])
    states = editing.sdedit(gaussian(cosine), x0, 0.45, time_grid(10), step, schedule=cosine, generator=seeded())
    assert [state.t for state in states] == pytest.approx([0.45, 0.4, 0.3, 0.2, 0.1, 0.0])
    assert editing.times_from(1.0, time_grid(4)).tolist() == time_grid(4).tolist()
    for t in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(BookError, match="it must be above 0"):
            editing.times_from(t, time_grid(4))


def test_inpainting_draws_from_the_conditional_distribution_once_it_resamples():
    """Two numbers that belong together, one of them known: replacement alone hardly looks at it, resampling does."""
    rho, first = 0.9, 1.5
    denoiser = gaussian(rectified, 0.0, [[1.0, rho], [rho, 1.0]])
    x0 = torch.tensor([[first, -9.0]], dtype=torch.float64).expand(4000, 2)  # what is missing does not matter
    known, rest = torch.tensor([1.0, 0.0]), {"schedule": rectified}
    error, spread = {}, {}
    for times in (1, 10):
        x = last(
            editing.inpaint(
                denoiser, x0, known, time_grid(50), SAMPLERS["ddpm"], generator=seeded(), resamplings=times, **rest
            )
        )
        assert (x[:, 0] == first).all(), "what is known is kept as it is"
        error[times], spread[times] = abs(x[:, 1].mean().item() - rho * first), x[:, 1].std().item()
    assert error[10] < 0.1
    assert error[10] < error[1] / 2
    assert abs(spread[10] - math.sqrt(1 - rho**2)) < 0.1


def test_inpainting_with_nothing_missing_gives_the_picture_back():
    x0, step = column(torch.linspace(-1, 1, 8)), SAMPLERS["ddim"]
    known, times = torch.ones(1), time_grid(5)
    states = list(editing.inpaint(gaussian(cosine), x0, known, times, step, schedule=cosine, generator=seeded()))
    assert [state.t for state in states] == times.tolist()
    assert torch.equal(states[-1].x, x0)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["euler", "midpoint", "heun"])
def test_inversion_finds_the_noise_and_leads_back(schedule, name):
    """For a normal distribution the noise of a picture is its distance from the mean in standard deviations."""
    x0, times, step = column(torch.linspace(-1, 2, 7)), time_grid(200), SAMPLERS[name]
    noise = last(editing.invert(gaussian(schedule), x0, times, step, schedule=schedule))
    tolerance = 0.1 if name == "euler" else 0.02
    assert (noise - (x0 - MEAN) / math.sqrt(VARIANCE)).abs().max() < tolerance
    back = last(sample(gaussian(schedule), noise, times, step, schedule=schedule, generator=seeded()))
    assert (back - x0).abs().max() < tolerance


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])
def test_steps_that_cannot_be_walked_backwards_are_refused(name):
    with pytest.raises(BookError, match="cannot be walked backwards: use euler, midpoint or heun"):
        list(editing.invert(gaussian(cosine), column([0.0]), time_grid(2), SAMPLERS[name], schedule=cosine))


def test_masks_and_numbers_that_do_not_fit_are_refused():
    rest = {"schedule": cosine, "generator": seeded()}
    x0, times, step = torch.zeros(2, 1, 4, 4), time_grid(2), SAMPLERS["ddim"]
    with pytest.raises(BookError, match=r"the mask \(3, 3\) does not fit the picture \(2, 1, 4, 4\)"):
        list(editing.inpaint(gaussian(cosine), x0, torch.ones(3, 3), times, step, **rest))
    with pytest.raises(BookError, match="resamplings is 0: it must be at least 1"):
        list(editing.inpaint(gaussian(cosine), x0, x0, times, step, resamplings=0, **rest))
