"""Rectified flow: straight paths, the velocity along them, and what reflow and distillation do to a crossing."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.models.recipes import DiffusionConfig
from diffusion_book.objective import TIME_SAMPLINGS, diffusion_loss, last, logit_normal, u_shaped, uniform
from diffusion_book.samplers import euler, heun, midpoint, sample, time_grid
from diffusion_book.schedules import SCHEDULES, add_noise
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS, prediction, target_value

RECTIFIED, VELOCITY = SCHEDULES["rectified"], TARGETS["velocity"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def states(network, x, steps, step=heun):
    """The walk of a flow from noise x; the network gives the velocity."""
    denoiser = Denoiser(network, RECTIFIED, VELOCITY)
    return list(sample(denoiser, x, time_grid(steps), step, schedule=RECTIFIED, generator=generator()))


# --- The velocity --------------------------------------------------------------------------------


def test_velocity_is_the_derivative_of_the_path():
    """By automatic differentiation of x_t = alpha x0 + sigma eps over t: eps - x0 at all times."""
    x0, eps = torch.randn(2, 3, dtype=torch.float64, generator=generator())
    for time in (0.0, 0.3, 1.0):
        t = torch.tensor([time], dtype=torch.float64, requires_grad=True)
        for pixel in range(3):
            (slope,) = torch.autograd.grad(add_noise(RECTIFIED, x0[pixel : pixel + 1], eps[pixel : pixel + 1], t), t)
            expected = target_value(VELOCITY, x0, eps, *RECTIFIED(t.detach()))[pixel]
            assert slope.item() == pytest.approx(expected.item()) == pytest.approx((eps - x0)[pixel].item())


def test_velocity_makes_the_round_trip_at_both_ends_too():
    """In single precision: an error of the output comes back t-fold in x0 and (1 - t)-fold in eps, never enlarged."""
    t = torch.tensor([0.0, 0.001, 0.25, 0.5, 0.999, 1.0])
    x0, eps = torch.randn(2, 6, 1, 4, 4, generator=generator())
    alpha, sigma = RECTIFIED(t)
    x_t = add_noise(RECTIFIED, x0, eps, t)
    output = target_value(VELOCITY, x0, eps, alpha, sigma)
    found = prediction(VELOCITY, output, x_t, alpha, sigma)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=2e-6)
    off = prediction(VELOCITY, output + 0.1, x_t, alpha, sigma)
    shape = (6, 1, 1, 1)
    torch.testing.assert_close(x0 - off.x0, (0.1 * t).reshape(shape).expand_as(x0), rtol=0, atol=2e-6)
    torch.testing.assert_close(off.eps - eps, (0.1 * (1 - t)).reshape(shape).expand_as(x0), rtol=0, atol=2e-6)


def test_noise_cannot_be_the_target_of_a_straight_path():
    with pytest.raises(BookError, match=r"^the rectified path ends in pure noise, .*: use target velocity$"):
        DiffusionConfig("rectified", "noise")
    for target in set(TARGETS) - {"noise"}:  # each of the others says what the picture is, at t = 1 as well
        DiffusionConfig("rectified", target)
        alpha, sigma = RECTIFIED(torch.ones(1))
        x0, eps = torch.randn(2, 1, 1, 4, 4, generator=generator())
        output = target_value(TARGETS[target], x0, eps, alpha, sigma)
        torch.testing.assert_close(prediction(TARGETS[target], output, eps, alpha, sigma).x0, x0)
    for schedule in set(SCHEDULES) - {"rectified"}:
        DiffusionConfig(schedule, "noise")


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(BookError, match="where min_snr_gamma gives every loss the weight 0"):
        DiffusionConfig("rectified", "velocity", time_sampling="last", min_snr_gamma=5.0)
    DiffusionConfig("rectified", "velocity", time_sampling="uniform", min_snr_gamma=5.0)


# --- A flow with a known answer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "steps"), [(euler, 250), (midpoint, 25), (heun, 25)], ids=["euler", "midpoint", "heun"]
)
def test_the_flow_between_gaussians_carries_the_noise_to_mean_and_variance(step, steps):
    """N(0, 1) to N(m, s^2): the velocity in closed form, as if a network had learned it; it ends at m + s z."""
    mean, std, walkers = 0.7, 0.4, 10_000

    def velocity(x, t):  # E[eps - x0 | x_t]
        t = t[:, None]
        gain = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
        return gain * (x - (1 - t) * mean) - mean

    z = torch.randn(walkers, 1, dtype=torch.float64, generator=generator())
    x = states(velocity, z, steps, step)[-1].x
    torch.testing.assert_close(x, mean + std * z, rtol=0, atol=0.02)
    assert abs(x.mean().item() - mean) < 4 * std / math.sqrt(walkers) + 1e-3
    assert abs(x.std().item() / std - 1) < 4 / math.sqrt(2 * walkers) + 5e-3


def test_in_flows_of_pictures_only_x0_is_clipped():
    """The picture that is predicted stays in [-1, 1]; the state on the way does not, and ends at a picture."""

    def wild(x, t):
        return 3 * torch.sin(5 * x) - 2 * x

    x = 2 * torch.randn(200, 1, dtype=torch.float64, generator=generator())
    free = Denoiser(wild, RECTIFIED, VELOCITY)
    for step in (euler, heun):
        walk = list(sample(clipped(free, RECTIFIED), x, time_grid(20), step, schedule=RECTIFIED, generator=generator()))
        assert all(state.prediction.x0.abs().max() <= 1 for state in walk[1:])
        assert all(state.x.abs().max() > 1.5 for state in walk if state.t >= 0.5)
        assert walk[-1].x.abs().max() <= 1 + 1e-12
        for before, state in pairwise(walk):  # and the pair that a step starts from still adds up to its state
            again = (1 - before.t) * state.prediction.x0 + before.t * state.prediction.eps
            torch.testing.assert_close(again, before.x)
    assert states(wild, x, 20)[-1].x.abs().max() > 1


# --- Times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.5)])
def test_logit_normal_times_have_the_moments_of_the_integral(mean, std):
    """E[t^k] of t = sigmoid(mean + std z), z standard normal, by the trapezoidal rule."""
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    t = logit_normal(20_000, generator(), mean, std)
    for power in (1, 2, 3, 4):
        expected = torch.trapezoid(torch.sigmoid(mean + std * z) ** power * density, z).item()
        assert t.pow(power).mean().item() == pytest.approx(expected, abs=1e-4)
    for edge in (0.1, 0.5, 0.9):
        expected = torch.special.ndtr(torch.tensor((math.log(edge / (1 - edge)) - mean) / std)).item()
        assert (t < edge).double().mean().item() == pytest.approx(expected, abs=1e-3)


def test_logit_normal_times_prefer_the_middle():
    middle = [
        ((sampling(10_000, generator()) - 0.5).abs() < 0.25).double().mean() for sampling in (logit_normal, uniform)
    ]
    assert middle[0] > 0.7
    assert middle[1].item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("steepness", [2.0, 4.0])
def test_u_shaped_times_have_the_moments_of_their_density(steepness):
    """E[t^k] under the density cosh(steepness (2t - 1)), by the trapezoidal rule; both ends alike."""
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    density = torch.cosh(steepness * (2 * grid - 1))
    density /= torch.trapezoid(density, grid)
    t = u_shaped(20_000, generator(), steepness)
    assert t.min() > 0
    assert t.max() <= 1
    for power in (1, 2, 3, 4):
        expected = torch.trapezoid(grid**power * density, grid).item()
        assert t.pow(power).mean().item() == pytest.approx(expected, abs=1e-4)
    for edge in (0.1, 0.5, 0.9):
        expected = (math.sinh(steepness * (2 * edge - 1)) / math.sinh(steepness) + 1) / 2
        assert (t < edge).double().mean().item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_last_is_always_pure_noise(batch_size):
    draws = generator(4)
    t = last(batch_size, draws)
    assert torch.equal(t, torch.ones(batch_size, dtype=torch.float64))
    assert torch.equal(draws.get_state(), generator(4).get_state())
    assert TIME_SAMPLINGS["last"] is last


def test_a_model_of_one_step_sees_its_noise_and_nothing_of_the_picture():
    x0, eps = torch.randn(2, 4, 1, 3, 3, generator=generator())
    seen = []

    def network(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    loss = diffusion_loss(
        network,
        x0,
        schedule=RECTIFIED,
        target=VELOCITY,
        generator=generator(),
        time_sampling=last,
        timesteps=1000,
        eps=eps,
    )
    assert torch.equal(seen[0][0], eps)
    assert torch.equal(seen[0][1], torch.ones(4))
    torch.testing.assert_close(loss, (eps - x0).square().mean(dim=(1, 2, 3)))


def test_the_loss_uses_the_noise_that_belongs_to_the_picture():
    """With eps given, x_t lies on the line between the two, and nothing but the times is drawn."""
    x0, eps = torch.randn(2, 6, 1, 2, 2, dtype=torch.float64, generator=generator())
    seen = []
    arguments = {"schedule": RECTIFIED, "target": VELOCITY, "eps": eps}

    def network(x, t):
        seen.append((x, t))
        return eps - x0

    for seed in (0, 1):
        loss = diffusion_loss(network, x0, generator=generator(seed), **arguments)
        assert torch.equal(loss, torch.zeros(6, dtype=torch.float64))
        x_t, t = seen[-1]
        torch.testing.assert_close(x_t, torch.lerp(x0, eps, t.reshape(6, 1, 1, 1)))
        assert torch.equal(t, uniform(6, generator(seed)))
    assert not torch.equal(seen[0][1], seen[1][1])


# --- Reflow in the plane -------------------------------------------------------------------------
#
# Noise: two clouds on the left, above and below. Data: two clouds on the right. Drawn independently, half of the
# lines between them cross, and where they cross the flow can only follow their mean: its paths bend.

BATCH, STEPS = 256, 400


class Perceptron(nn.Module):
    """A small network of the plane: (B, 2) and times (B,) -> velocities (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


def clouds(number: int, position: float, draws: torch.Generator):
    """Points of two clouds at this horizontal position, 1 above and 1 below the axis: (number, 2)."""
    height = 2.0 * torch.randint(2, (number, 1), generator=draws) - 1
    centre = torch.cat([torch.full_like(height, position), height], dim=1)
    return centre + 0.15 * torch.randn(number, 2, generator=draws)


def trained(network, pairs, time_sampling=uniform):
    """A copy of the network after STEPS steps on what `pairs(generator)` draws: (x0, eps)."""
    network = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for number in range(STEPS):
        draws = generator(number)
        x0, eps = pairs(draws)
        arguments = {"schedule": RECTIFIED, "target": VELOCITY, "time_sampling": time_sampling, "eps": eps}
        diffusion_loss(network, x0, generator=draws, **arguments).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network


def straightness(network, noise):
    """How far paths bend: the integral over t of E |(eps - x0) - dx_t/dt|^2, with x0 the path's own end; 0 is straight.

    Source: Liu et al. 2022, section 3 (there S(Z)).
    """
    walk = states(network, noise, 40, euler)
    end = walk[-1].x
    velocities = torch.stack([(before.x - after.x) * 40 for before, after in pairwise(walk)])  # (40, B, 2)
    return ((noise - end) - velocities).square().sum(dim=2).mean().item()


def in_one_step(network, noise):
    return states(network, noise, 1, euler)[-1].x


@pytest.fixture(scope="module")
def plane():
    """A flow of independent pairs, its reflow, and two models of one step: distilled from its couplings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def independent(draws):
        return clouds(BATCH, 2.0, draws), clouds(BATCH, -2.0, draws)

    flow = trained(Perceptron(), independent)
    noise = clouds(4000, -2.0, generator(7))
    ends = states(flow, noise, 20)[-1].x

    def coupled(draws):
        index = torch.randint(len(noise), (BATCH,), generator=draws)
        return ends[index], noise[index]

    reflowed = trained(flow, coupled)
    one_step = trained(reflowed, coupled, last)
    torch.set_num_threads(threads)
    return flow, reflowed, one_step


@pytest.fixture(scope="module")
def noise():
    """Noise that no training saw."""
    return clouds(1000, -2.0, generator(99))


def test_the_flow_finds_the_data(plane, noise):
    for network in plane[:2]:
        end = states(network, noise, 20)[-1].x
        assert end[:, 0].mean().item() == pytest.approx(2.0, abs=0.1)
        assert (end[:, 1].abs() - 1).abs().mean().item() < 0.25  # half of it is the clouds' own width
        assert 0.4 < (end[:, 1] > 0).float().mean().item() < 0.6


def test_the_flow_does_not_cost_more_than_the_pairs_that_it_learned_from(plane, noise):
    """Liu et al. 2022, theorem 3.5: rectifying a coupling shortens its ways; here by the crossings, 2 on average."""
    end = states(plane[0], noise, 20)[-1].x
    independent = (clouds(1000, 2.0, generator(1)) - noise).square().sum(dim=1).mean().item()
    assert (end - noise).square().sum(dim=1).mean().item() < independent - 1


def test_reflow_straightens_the_paths(plane, noise):
    """Liu et al. 2022, section 3: the flow of independent pairs bends, that of its own couplings hardly."""
    flow, reflowed, _ = plane
    before, after = straightness(flow, noise), straightness(reflowed, noise)
    assert before > 0.3
    assert after < before / 50


def test_reflow_keeps_the_coupling(plane, noise):
    flow, reflowed, _ = plane
    ends = [states(network, noise, 20)[-1].x for network in (flow, reflowed)]
    assert (ends[0] - ends[1]).square().sum(dim=1).mean().sqrt().item() < 0.1


def test_one_step_is_enough_only_after_reflow(plane, noise):
    """At pure noise the first flow knows the mean of the data alone, which lies between the clouds."""
    first, then, _ = (in_one_step(network, noise) for network in plane)
    assert first[:, 0].mean().item() == pytest.approx(2.0, abs=0.1)
    assert first[:, 1].abs().mean().item() < 0.3
    assert then[:, 1].abs().mean().item() > 0.8


def test_distillation_brings_one_step_closer_to_the_whole_walk(plane, noise):
    flow, reflowed, one_step = plane
    end = states(flow, noise, 20)[-1].x

    def distance(network):
        return (in_one_step(network, noise) - end).square().sum(dim=1).mean().sqrt().item()

    assert distance(flow) > 0.8
    assert distance(reflowed) < 0.2
    assert distance(one_step) < distance(reflowed) / 3
