"""Objective: the loss, its weights, and how times are drawn."""

import math

import pytest
import torch

from diffusion_book.objective import (
    TIME_SAMPLINGS,
    diffusion_loss,
    logit_normal,
    min_snr_weight,
    on_grid,
    uniform,
)
from diffusion_book.schedules import SCHEDULES, add_noise, signal_to_noise
from diffusion_book.targets import TARGETS, prediction, target_value

schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
GRID = torch.arange(1, 1001, dtype=torch.float64) / 1000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SCHEDULES["cosine"], SCHEDULES["linear"]], ids=["cosine", "linear"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_paper_s_three_formulas(schedule, gamma):
    """Hang et al. 2023, section 3.4: for eps min(SNR, g) / SNR, for x0 min(SNR, g), for v min(SNR, g) / (SNR + 1)."""
    snr = signal_to_noise(schedule, GRID)
    capped = snr.clamp(max=gamma)
    for target, expected in (("noise", capped / snr), ("image", capped), ("v", capped / (snr + 1))):
        weight = min_snr_weight(TARGETS[target], *schedule(GRID), gamma)
        torch.testing.assert_close(weight, expected, rtol=1e-7, atol=0)


@schedules
@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("name", TARGETS)
def test_min_snr_weights_on_every_path(schedule, gamma, name):
    """The weight is min(SNR, g) over the square of d output / d x0, with x_t held: worked out for each target."""
    t = GRID[:-1]  # at t = 1 of the straight path no output of "noise" tells anything of x0
    alpha, sigma = schedule(t)
    # eps = (x_t - alpha x0) / sigma in each definition gives the slope of the output over x0.
    slope = {
        "noise": -alpha / sigma,
        "image": torch.ones_like(t),
        "v": -alpha.square() / sigma - sigma,
        "velocity": -alpha / sigma - 1,
    }[name]
    expected = (alpha / sigma).square().clamp(max=gamma) / slope.square()
    weight = min_snr_weight(TARGETS[name], alpha, sigma, gamma)
    torch.testing.assert_close(weight, expected, rtol=1e-7, atol=0)
    if schedule is SCHEDULES["rectified"] and name == "velocity":  # there x0 = x_t - t velocity
        torch.testing.assert_close(weight, ((1 - t) / t).square().clamp(max=gamma) * t.square())


@schedules
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_weighted_losses_agree_for_all_targets(schedule, target):
    """The same network, asked for something else, has the same weighted loss: min(SNR, g) |x0 error|^2."""
    x0 = torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=generator(1)).tanh()

    def picture(x, t):
        return (0.3 * x).tanh()  # some guess of x0

    def network(x, t):
        alpha, sigma = schedule(t)
        guess = picture(x, t)
        eps = (x - alpha[:, None, None, None] * guess) / sigma[:, None, None, None]
        return target_value(target, guess, eps, alpha, sigma)

    arguments = {"schedule": schedule, "min_snr_gamma": 5.0, "timesteps": 1000}
    mine = diffusion_loss(network, x0, target=target, generator=generator(), **arguments)
    image = diffusion_loss(picture, x0, target=TARGETS["image"], generator=generator(), **arguments)
    torch.testing.assert_close(mine, image, rtol=1e-6, atol=0)


# --- Loss ----------------------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_loss_is_the_mean_squared_error_of_the_target(schedule, target):
    """Redo by hand what the network saw: nothing but its (x_t, t), the target and the clean pictures is used."""
    x0 = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=generator(1))
    calls = []

    def network(x, t):
        calls.append((x, t))
        return torch.full_like(x, 0.25)

    loss = diffusion_loss(network, x0, schedule=schedule, target=target, generator=generator())
    ((x_t, t),) = calls
    assert (x_t.shape, t.shape, loss.shape) == (x0.shape, (6,), (6,))
    alpha, sigma = schedule(t)
    eps = (x_t - alpha[:, None, None, None] * x0) / sigma[:, None, None, None]
    expected = (target_value(target, x0, eps, alpha, sigma) - 0.25).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    assert (eps.mean().abs().item(), eps.std().item()) == (pytest.approx(0, abs=0.25), pytest.approx(1, abs=0.2))


def test_a_perfect_network_has_no_loss():
    x0 = torch.randn(6, 1, 4, 4, dtype=torch.float64, generator=generator(1))
    schedule, target = SCHEDULES["cosine"], TARGETS["v"]

    def network(x, t):
        alpha, sigma = (value[:, None, None, None] for value in schedule(t))
        return alpha * (x - alpha * x0) / sigma - sigma * x0

    assert diffusion_loss(network, x0, schedule=schedule, target=target, generator=generator()).max() < 1e-18


def test_an_untrained_network_on_noise_has_loss_one():
    """A network that says 0 and a target of unit variance: the loss is 1, whatever the time."""
    x0 = torch.zeros(400, 1, 8, 8)
    loss = diffusion_loss(
        lambda x, t: torch.zeros_like(x),
        x0,
        schedule=SCHEDULES["linear"],
        target=TARGETS["noise"],
        generator=generator(),
    )
    assert loss.mean().item() == pytest.approx(1.0, abs=0.03)


def test_all_that_is_random_comes_from_the_generator():
    x0 = torch.randn(5, 1, 4, 4)

    def loss(seed):
        torch.manual_seed(int(torch.randint(1000, ())))  # what others draw must not matter
        return diffusion_loss(
            lambda x, t: x, x0, schedule=SCHEDULES["cosine"], target=TARGETS["v"], generator=generator(seed)
        )

    assert torch.equal(loss(3), loss(3))
    assert not torch.equal(loss(3), loss(4))


def test_conditions_reach_the_network():
    seen = []
    diffusion_loss(
        lambda x, t, *, context: seen.append(context) or x,
        torch.zeros(2, 1, 4, 4),
        schedule=SCHEDULES["cosine"],
        target=TARGETS["v"],
        generator=generator(),
        context="tokens",
    )
    assert seen == ["tokens"]


def test_pictures_and_noise_are_not_mixed_up_along_the_batch():
    """Each picture keeps its own time: a picture of value n at its time t has mean alpha_t n."""
    x0 = torch.arange(6.0, dtype=torch.float64).reshape(6, 1, 1, 1).expand(6, 1, 64, 64) * 10
    calls = []
    schedule = SCHEDULES["cosine"]
    diffusion_loss(
        lambda x, t: calls.append((x, t)) or x, x0, schedule=schedule, target=TARGETS["v"], generator=generator()
    )
    x_t, t = calls[0]
    torch.testing.assert_close(x_t.mean(dim=(1, 2, 3)), schedule(t)[0] * x0[:, 0, 0, 0], rtol=0, atol=0.1)


# --- Times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_uniform_times_fall_one_in_each_slice(batch_size):
    t = uniform(batch_size, generator())
    assert t.shape == (batch_size,)
    assert (t > 0).all()
    assert (t <= 1).all()
    slices = ((1 - t) * batch_size).floor().long()
    assert slices.sort().values.tolist() == list(range(batch_size))
    if batch_size == 128:
        assert not torch.equal(slices, slices.sort().values)  # in random order


def test_each_uniform_time_alone_is_uniform():
    first = torch.stack([uniform(4, generator(seed))[0] for seed in range(4000)])
    deviation = (first.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max().item()
    assert deviation < 1.63 / math.sqrt(4000)  # Kolmogorov and Smirnov's bound at 1 %


def test_logit_normal_times_have_the_moments_of_their_logits():
    for mean, std in ((0.0, 1.0), (-0.5, 1.5)):
        t = logit_normal(20_000, generator(), mean, std)
        assert (t > 0).all()
        assert (t < 1).all()
        logits = torch.logit(t)
        assert logits.mean().item() == pytest.approx(mean, abs=0.01)
        assert logits.std().item() == pytest.approx(std, rel=0.01)
        inner = ((logits - mean).abs() < std).double().mean().item()
        assert inner == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.005)


def test_on_grid_gives_each_step_its_equal_share():
    t = torch.arange(1, 10_001, dtype=torch.float64) / 10_000 - 1e-9
    steps = on_grid(t, 10) * 10
    assert steps.round().long().bincount(minlength=11).tolist() == [0] + [1000] * 10


@pytest.mark.parametrize("name", TIME_SAMPLINGS)
@pytest.mark.parametrize("timesteps", [1, 2, 1000])
def test_on_grid_stays_within_1_to_T(name, timesteps):
    t = on_grid(TIME_SAMPLINGS[name](3000, generator()), timesteps)
    steps = t * timesteps
    assert torch.equal(steps, steps.round()) or torch.allclose(steps, steps.round(), rtol=0, atol=1e-9)
    assert steps.min() >= 1 - 1e-9
    assert steps.max() <= timesteps + 1e-9
    edges = on_grid(torch.tensor([0.0, 1e-12, 1.0], dtype=torch.float64), timesteps) * timesteps
    assert edges.round().tolist() == [1, 1, timesteps]


def test_grid_points_stay_where_they_are():
    assert torch.equal(on_grid(GRID, 1000), GRID)


def test_the_loss_trains_on_the_grid_when_asked():
    times = []
    for seed in range(3):
        diffusion_loss(
            lambda x, t: times.append(t) or x,
            torch.zeros(64, 1, 2, 2, dtype=torch.float64),
            schedule=SCHEDULES["cosine"],
            target=TARGETS["v"],
            generator=generator(seed),
            timesteps=10,
        )
    assert sorted({round(time * 10, 6) for time in torch.cat(times).tolist()}) == list(range(1, 11))


def test_prediction_and_loss_speak_of_the_same_target():
    """What the loss asks for is what `prediction` takes apart: zero loss means the true x0 comes back."""
    x0 = torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=generator(1))
    eps = torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=generator(2))
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    for schedule in SCHEDULES.values():
        for target in TARGETS.values():
            alpha, sigma = schedule(t)
            asked = target_value(target, x0, eps, alpha, sigma)
            found = prediction(target, asked, add_noise(schedule, x0, eps, t), alpha, sigma)
            torch.testing.assert_close(found.x0, x0)
