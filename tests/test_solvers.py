"""Solvers of the flow: orders of convergence, what each step costs, and an independent implementation of two of them."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch

from diffusion_book.denoiser import Denoiser
from diffusion_book.samplers import (
    DETERMINISTIC,
    SAMPLERS,
    ddim,
    dpm_plus_plus,
    euler,
    evaluations,
    heun,
    log_ratio,
    midpoint,
    sample,
    time_grid,
)
from diffusion_book.schedules import SCHEDULES, betas
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS, Prediction

T = 1000
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
solvers = pytest.mark.parametrize("step", DETERMINISTIC, ids=lambda step: step.__name__)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed: int = 0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def walk(denoiser, x, times, step, schedule):
    *_, state = sample(denoiser, x, times, step, schedule=schedule, generator=generator())
    return state.x


class Mixture:
    """The best possible denoiser of numbers drawn from two Gaussians, and the exact flow that follows from it.

    In one dimension no path of the flow crosses another, so each keeps its quantile: it stands at
    F_t^-1(q) at every time t, with F_t the distribution function of x_t.
    """

    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    means = torch.tensor([-0.8, 0.9], dtype=torch.float64)
    stds = torch.tensor([0.5, 0.4], dtype=torch.float64)

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, 0

    def parts(self, t):
        """Means and standard deviations of both parts of x_t."""
        alpha, sigma = self.schedule(t)
        return alpha * self.means, (alpha**2 * self.stds**2 + sigma**2).sqrt()

    def __call__(self, x_t, t):
        self.calls += 1
        alpha, sigma = self.schedule(t)
        means, stds = self.parts(t)
        z = (x_t - means) / stds  # (B, 1) -> (B, 2), one column a part
        share = (self.weights.log() - stds.log() - z**2 / 2).softmax(dim=1)
        x0 = (share * (self.means + alpha * self.stds**2 / stds * z)).sum(dim=1, keepdim=True)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    def below(self, x_t, t):
        """The share of x_t's distribution that lies below each number."""
        means, stds = self.parts(t)
        return (self.weights * torch.special.ndtr((x_t - means) / stds)).sum(dim=1, keepdim=True)

    def at(self, quantiles, t):
        """Where a quantile stands at time t, by bisection."""
        low, high = torch.full_like(quantiles, -20.0), torch.full_like(quantiles, 20.0)
        for _ in range(80):
            middle = (low + high) / 2
            left = self.below(middle, t) < quantiles
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        return (low + high) / 2


QUANTILES = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)[:, None]


def error(name, step, steps, start, end):
    """The largest distance from the exact flow after `steps` equal steps from time start to time end."""
    schedule = SCHEDULES[name]
    mixture = Mixture(schedule)
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    found = walk(mixture, mixture.at(QUANTILES, times[0]), times, step, schedule)
    return (found - mixture.at(QUANTILES, times[-1])).abs().max().item()


def slope(steps, errors):
    """Of log error over log step size: the order of convergence."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


# --- Orders of convergence -----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["rectified", "cosine"])
@pytest.mark.parametrize(
    ("step", "order"),
    [(euler, 1), (midpoint, 2), (heun, 2), (dpm_plus_plus, 2)],
    ids=["euler", "midpoint", "heun", "dpm++"],
)
def test_each_solver_has_its_order(schedule, step, order):
    """Away from both ends, where the schedules are smooth; against the exact flow of a mixture of two Gaussians."""
    steps = (64, 128, 256)
    errors = [error(schedule, step, number, 0.8, 0.2) for number in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.15)
    assert errors[-1] < (1e-2 if order == 1 else 1e-3)


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (midpoint, 2), (heun, 2)], ids=["euler", "midpoint", "heun"])
def test_on_the_straight_path_the_order_holds_from_noise_to_data(step, order):
    """All the way, through the end steps too: Heun's last step is Euler's, and costs no order."""
    steps = (50, 100, 200)
    errors = [error("rectified", step, number, 1.0, 0.0) for number in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("schedule", ["rectified", "cosine"])
def test_the_same_number_of_evaluations_is_better_spent_on_a_second_order(schedule):
    """What the solvers are for: 40 calls of the network each, from noise to data."""
    first = error(schedule, euler, 40, 1.0, 0.0)
    for step, steps in ((midpoint, 20), (heun, 20), (dpm_plus_plus, 40)):
        assert error(schedule, step, steps, 1.0, 0.0) < first / 2


# --- What a step is ------------------------------------------------------------------------------


def test_euler_on_the_straight_path_follows_the_velocity():
    """x_s = x_t + (s - t) (eps - x0), whatever is predicted."""
    x_t, x0, eps = noise(3, 5, 2)
    for t, s in ((1.0, 0.7), (0.7, 0.001), (0.3, 0.0), (0.2, 0.6)):
        t, s = torch.tensor([t, s], dtype=torch.float64)
        mine = euler(Prediction(x0, eps), x_t, t, s, schedule=SCHEDULES["rectified"])
        torch.testing.assert_close(mine, x_t + (s - t) * (eps - x0), rtol=0, atol=1e-14)


@schedules
def test_euler_is_ddim_with_eta_0_on_every_schedule(schedule):
    """For any prediction whose parts add up to x_t, and for a whole walk."""
    x_t, x0 = noise(2, 5, 2)
    for t, s in itertools.pairwise(time_grid(20)):
        alpha, sigma = schedule(t)
        found = Prediction(x0, (x_t - alpha * x0) / sigma)
        theirs = ddim(found, x_t, t, s, schedule=schedule, noise=torch.zeros_like(x_t), eta=0.0)
        torch.testing.assert_close(euler(found, x_t, t, s, schedule=schedule), theirs, rtol=0, atol=1e-12)
    x = noise(6, 1)
    ends = [walk(Mixture(schedule), x, time_grid(20), step, schedule) for step in (euler, ddim)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-11)


@schedules
def test_one_step_of_dpm_plus_plus_is_one_of_ddim(schedule):
    """Without a prediction before it, and at the end, where it takes the predicted picture as it is."""
    x_t, x0, x0_before = noise(3, 5, 2)
    for t, s in ((1.0, 0.9), (0.8, 0.1), (0.02, 0.0)):
        t, s = torch.tensor([t, s], dtype=torch.float64)
        alpha, sigma = schedule(t)
        found = Prediction(x0, (x_t - alpha * x0) / sigma)
        theirs = ddim(found, x_t, t, s, schedule=schedule, noise=torch.zeros_like(x_t))
        mine = dpm_plus_plus(found, x_t, t, s, schedule=schedule)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    before = (torch.tensor(0.04, dtype=torch.float64), Prediction(x0_before, x0_before))
    torch.testing.assert_close(dpm_plus_plus(found, x_t, t, s, schedule=schedule, before=before), x0)


@schedules
def test_a_step_of_dpm_plus_plus_knows_how_fast_the_picture_moves(schedule):
    """One step where x0 moves in a straight line over lambda, against the integral in closed form.

    With the prediction before it the step's error falls with the third power of its length, alone with the second.
    """
    constant, drift, x = 0.4, 0.7, 1.3

    def predicted(t):
        x0 = (constant + drift * log_ratio(schedule, t)).reshape(1, 1)
        return Prediction(x0, x0)

    def integral(value):  # of exp(lambda) (constant + drift lambda): Lu et al. 2022 (DPM-Solver++), equation 8
        return value.exp() * (constant + drift * (value - 1))

    lengths = (0.1, 0.05, 0.025)
    errors = {"with": [], "without": []}
    for length in lengths:
        before, t, s = (torch.tensor(value, dtype=torch.float64) for value in (0.5 + 1.5 * length, 0.5, 0.5 - length))
        (_, sigma_t), (_, sigma_s) = schedule(t), schedule(s)
        area = integral(log_ratio(schedule, s)) - integral(log_ratio(schedule, t))
        exact = (sigma_s * (x / sigma_t + area)).item()
        x_t = torch.full((1, 1), x, dtype=torch.float64)
        for how, earlier in (("with", (before, predicted(before))), ("without", None)):
            found = dpm_plus_plus(predicted(t), x_t, t, s, schedule=schedule, before=earlier)
            errors[how].append(abs(found.item() - exact))
    assert slope(1 / np.array(lengths), errors["with"]) == pytest.approx(3, abs=0.35)
    assert slope(1 / np.array(lengths), errors["without"]) == pytest.approx(2, abs=0.35)


@schedules
def test_midpoint_and_heun_are_two_methods(schedule):
    """They ask at other times, of other states, and end elsewhere, however often they are taken for one another."""
    t, s = torch.tensor([0.8, 0.4], dtype=torch.float64)
    x_t, x0, eps, x0_then, eps_then = noise(5, 4, 2)
    first, then = Prediction(x0, eps), Prediction(x0_then, eps_then)
    asked = []

    def ask(x, time):
        asked.append((x, time.item()))
        return then

    ends = [step(first, x_t, t, s, schedule=schedule, ask=ask) for step in (midpoint, heun)]
    middle = torch.tensor(0.6, dtype=torch.float64)
    assert [time for _, time in asked] == [pytest.approx(0.6), 0.4]
    torch.testing.assert_close(asked[0][0], euler(first, x_t, t, middle, schedule=schedule))
    torch.testing.assert_close(asked[1][0], euler(first, x_t, t, s, schedule=schedule))
    torch.testing.assert_close(ends[0], euler(then, x_t, t, s, schedule=schedule))
    mean = (euler(first, x_t, t, s, schedule=schedule) + euler(then, x_t, t, s, schedule=schedule)) / 2
    torch.testing.assert_close(ends[1], mean)
    assert not torch.allclose(*ends, atol=0.1)


def test_heun_does_not_ask_where_no_noise_is_left():
    t, s = torch.tensor([0.1, 0.0], dtype=torch.float64)
    x_t, x0, eps = noise(3, 4, 2)
    schedule = SCHEDULES["rectified"]
    end = heun(Prediction(x0, eps), x_t, t, s, schedule=schedule, ask=None)
    assert torch.equal(end, euler(Prediction(x0, eps), x_t, t, s, schedule=schedule))


def test_dpm_plus_plus_does_not_start_at_the_data():
    x = torch.zeros(2, 1, dtype=torch.float64)
    t, s = torch.tensor([0.0, 0.0], dtype=torch.float64)
    with pytest.raises(BookError, match="cannot start at t = 0"):
        dpm_plus_plus(Prediction(x, x), x, t, s, schedule=SCHEDULES["rectified"])


# --- What a walk costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 17])
def test_the_stated_number_of_evaluations_is_the_true_one(name, steps):
    schedule = SCHEDULES["rectified"]
    mixture = Mixture(schedule)
    walk(mixture, noise(2, 1), time_grid(steps), SAMPLERS[name], schedule)
    assert mixture.calls == evaluations(name, steps)


def test_evaluations_are_these():
    assert {name: evaluations(name, 10) for name in SAMPLERS} == {
        "ddpm": 10,
        "ddim": 10,
        "euler": 10,
        "midpoint": 20,
        "heun": 19,
        "dpm++": 10,
    }


@solvers
def test_solvers_draw_nothing(step):
    schedule, draws = SCHEDULES["cosine"], generator(3)
    x = noise(3, 1)
    *_, end = sample(Mixture(schedule), x, time_grid(7), step, schedule=schedule, generator=draws, eta=1.0)
    assert torch.equal(draws.get_state(), generator(3).get_state())
    assert torch.equal(end.x, walk(Mixture(schedule), x, time_grid(7), step, schedule))


def test_conditions_reach_every_evaluation():
    """The second question of a step is asked under the same condition as the first."""
    schedule, seen = SCHEDULES["rectified"], []

    def denoiser(x_t, t, *, labels):
        seen.append(labels)
        return Mixture(schedule)(x_t, t)

    for name in ("midpoint", "heun"):
        seen.clear()
        list(
            sample(
                denoiser,
                noise(2, 1),
                time_grid(3),
                SAMPLERS[name],
                schedule=schedule,
                generator=generator(),
                labels="seven",
            )
        )
        assert seen == ["seven"] * evaluations(name, 3)


# --- diffusers as an oracle ----------------------------------------------------------------------


def network(x, t):
    """Some function of state and time in the place of a network; t of shape (B,)."""
    return torch.tanh(0.7 * x + t[:, None].to(x))


@pytest.mark.parametrize("name", ["cosine", "linear", "rectified"])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_dpm_plus_plus_walks_as_theirs(name, steps):
    """DPMSolverMultistepScheduler, second order, midpoint type, "zero" at the end; it computes in single precision."""
    schedule, times = SCHEDULES[name], time_grid(steps)
    flow = name == "rectified"
    target = "velocity" if flow else "v"
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T,
        trained_betas=None if flow else betas(schedule).tolist(),
        prediction_type="flow_prediction" if flow else "v_prediction",
        use_flow_sigmas=flow,
        timestep_spacing="trailing",
    )
    assert (theirs.config.algorithm_type, theirs.config.solver_order) == ("dpmsolver++", 2)
    assert (theirs.config.solver_type, theirs.config.final_sigmas_type) == ("midpoint", "zero")
    theirs.set_timesteps(steps)
    # The same steps to the last digit: theirs start a flow at 0.999, and round the ratios of sigma to alpha.
    alpha, sigma = schedule(times)
    theirs.sigmas = sigma if flow else sigma / alpha
    theirs.timesteps = (times[:-1] * T - 1).round().long()
    x = noise(5, 2)
    mine = walk(Denoiser(network, schedule, TARGETS[target]), x, times, dpm_plus_plus, schedule)
    other = x
    for t, k in zip(times[:-1], theirs.timesteps, strict=True):
        other = theirs.step(network(other.double(), t.expand(len(x))), k, other).prev_sample
    torch.testing.assert_close(mine, other.double(), rtol=0, atol=2e-5)
    if steps == 10:  # and the oracle can tell: the first order ends elsewhere
        first = walk(Denoiser(network, schedule, TARGETS[target]), x, times, ddim, schedule)
        assert not torch.allclose(first, other.double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("step", "kind"), [(euler, "Euler"), (heun, "Heun")], ids=["euler", "heun"])
def test_a_flow_walks_as_theirs(step, kind):
    theirs = getattr(diffusers, f"FlowMatch{kind}DiscreteScheduler")(num_train_timesteps=T)
    times, schedule = time_grid(8), SCHEDULES["rectified"]
    theirs.set_timesteps(8)
    twice = kind == "Heun"  # theirs counts Heun's two evaluations as two steps
    visited = torch.cat([times[:1], times[1:-1].repeat_interleave(2)]) if twice else times[:-1]
    theirs.sigmas = torch.cat([visited, times[-1:]] + ([times[-1:]] if twice else []))
    theirs.timesteps = visited * T
    x = noise(5, 2)
    mine = walk(Denoiser(network, schedule, TARGETS["velocity"]), x, times, step, schedule)
    other = x
    for t, k in zip(visited, theirs.timesteps, strict=True):
        other = theirs.step(network(other.double(), t.expand(len(x))), k, other).prev_sample
    torch.testing.assert_close(mine, other.double(), rtol=0, atol=2e-5)


def test_the_log_ratio_is_half_the_logarithm_of_the_signal_to_noise_ratio():
    t = torch.tensor([0.2, 0.5, 0.75], dtype=torch.float64)
    expected = [math.log((1 - value) / value) for value in t.tolist()]
    assert log_ratio(SCHEDULES["rectified"], t).tolist() == pytest.approx(expected)
