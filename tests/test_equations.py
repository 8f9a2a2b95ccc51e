"""Equations of the chapters that speak of several parts of the library at once, or of a chapter's own toy.

`docs/equations.toml` says which equation each test proves.
"""

import ast
import itertools
import math
from pathlib import Path

import pytest
import torch
from tiny import SMALL_CLASS_UNETS
from torch.distributions import Normal, kl_divergence

from diffusion_book.evaluation.projection import principal_components
from diffusion_book.networks.conditioning import NO_CLASS, ConditionalUNet
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.layers import attention
from diffusion_book.objective import diffusion_loss
from diffusion_book.samplers import ddim, ddpm, euler, sample, time_grid
from diffusion_book.schedules import SCHEDULES, add_noise, betas, cosine, expand, posterior, rectified, signal_to_noise
from diffusion_book.targets import Prediction, noise, prediction, target_value, v, velocity

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PRESERVING = {name: SCHEDULES[name] for name in ("cosine", "linear")}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
preserving = pytest.mark.parametrize("schedule", PRESERVING.values(), ids=PRESERVING)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def defined_in(chapter: str, name: str, **names):
    """A function as the chapter defines it, with what it finds around it."""
    (path,) = NOTEBOOKS.rglob(f"{chapter}.py")
    (function,) = (
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if getattr(node, "name", "") == name
    )
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    return names[name]


# --- Chapter 1: DDPM -----------------------------------------------------------------------------


@every
def test_the_score_gives_the_posterior_mean(schedule):
    """Three Gaussians, one of them narrow: the score by autograd, the posterior mean by a sum over a fine mesh."""
    mesh = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    means, stds, weights = torch.tensor([[-1.0, 0.3, 0.9], [0.2, 0.05, 0.4], [0.3, 0.5, 0.2]], dtype=torch.float64)
    density = (weights / stds * torch.exp(-((mesh[:, None] - means) ** 2) / (2 * stds**2))).sum(dim=1)
    for time in (0.2, 0.5, 0.9):
        alpha, sigma = schedule(torch.tensor(time, dtype=torch.float64))
        x_t = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
        joint = density * torch.exp(-((x_t[:, None] - alpha * mesh) ** 2) / (2 * sigma**2))  # (9, mesh)
        (score,) = torch.autograd.grad(joint.sum(dim=1).log().sum(), x_t)
        mean = (joint @ mesh / joint.sum(dim=1)).detach()
        x_t = x_t.detach()
        torch.testing.assert_close((x_t + sigma**2 * score) / alpha, mean)
        found = prediction(noise, -sigma * score, x_t, alpha.expand(9), sigma.expand(9))
        torch.testing.assert_close(found.x0, mean)


def test_the_chapter_s_density_is_that_of_its_toy():
    """It integrates to 1, and by Tweedie's formula its score is the chapter's denoiser."""
    log_density = defined_in("01_ddpm", "log_density", torch=torch, math=math, cosine=cosine)
    denoiser = defined_in("01_ddpm", "toy_denoiser", torch=torch, cosine=cosine, Prediction=Prediction)
    t, x = torch.tensor(0.4, dtype=torch.float64), torch.linspace(-6, 6, 12_001, dtype=torch.float64)
    assert log_density(x, t).exp().sum().item() * 0.001 == pytest.approx(1.0)
    slope = (log_density(x + 1e-5, t) - log_density(x - 1e-5, t)) / 2e-5
    _, sigma = cosine(t)
    torch.testing.assert_close(denoiser(x, t).eps, -sigma * slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 50, 1000])
def test_the_bound_is_the_likelihood_where_the_chain_is_reversed_exactly_and_above_it_elsewhere(steps):
    """Standard normal data and their ideal denoiser, alpha x: the whole chain is Gaussian, so both sides are known."""
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha, sigma = cosine(times)
    from_x_t, from_x_0, beta_tilde = posterior(cosine, times[1:], times[:-1])
    beta = betas(cosine, steps)
    prior = 0.5 * (alpha[-1] ** 2 + sigma[-1] ** 2 - 1) - sigma[-1].log()
    decoder = 0.5 * (math.log(2 * math.pi) + sigma[1].square().log() + 1)  # the data are N(alpha x_1, sigma_1^2)
    gaps = []
    for variance in (beta, beta_tilde):  # of the steps k = 2 ... T; beta is that of the chain turned round
        # Equation (7) for any variance: E (x_0 - alpha_k x_k)^2 is sigma_k^2.
        ratio, distance = beta_tilde / variance, (from_x_0 * sigma[1:]) ** 2
        divergences = (0.5 * (ratio - 1 - ratio.log() + distance / variance))[1:]
        model = torch.tensor(1.0, dtype=torch.float64)  # the variance of p(x_T), then of p(x_{T-1}), and so on
        for k in range(steps, 0, -1):
            step = variance[k - 1] if k > 1 else sigma[1] ** 2
            model = (from_x_t[k - 1] + from_x_0[k - 1] * alpha[k]) ** 2 * model + step
        likelihood = 0.5 * (math.log(2 * math.pi) + model.log() + 1 / model)  # of standard normal data, nats
        gaps.append((prior + decoder + divergences.sum() - likelihood).item())
    assert gaps[0] == pytest.approx(0, abs=1e-7)
    assert gaps[1] > 0.1


def test_the_chapter_s_estimate_of_the_bound_is_unbiased():
    """On standard normal data with their ideal denoiser, the terms of all steps are known."""
    _, sigma = cosine(torch.arange(1001, dtype=torch.float64) / 1000)
    snr = (1 - sigma**2) / sigma**2
    probability = torch.nn.functional.pad((sigma[2:] / sigma[1:-1]).log(), (2, 0))
    names = {"torch": torch, "add_noise": add_noise, "cosine": cosine, "T": 1000, "snr": snr}
    one_step = defined_in("01_ddpm", "one_step", **names, probability=probability / probability.sum())

    def ideal(x, t):
        return expand(cosine(t)[0], x) * x

    nats, step = one_step(ideal, normal(100_000, 1, 1, 1), torch.Generator().manual_seed(1))
    exact = ((snr[1:-1] - snr[2:]) / 2 * sigma[2:] ** 2).sum()
    assert (nats.mean() - exact).abs() < 4 * nats.std() / 100_000**0.5
    assert nats.std() / 100_000**0.5 < 0.02 * exact
    assert step.min() >= 2
    assert step.max() <= 1000


def test_the_chapter_s_decoder_gives_probabilities_of_the_256_grey_levels():
    """They sum to 1, and with a narrow decoder the predicted level has nearly all."""
    for predicted, std, level in ((-1.0, 0.004, 0), (0.2, 0.01, 153), (1.0, 0.001, 255)):
        names = {
            "torch": torch,
            "add_noise": add_noise,
            "cosine": cosine,
            "k": torch.arange(1001, dtype=torch.float64),
            "T": 1000,
            "denoise": lambda x, t, predicted=predicted: torch.full_like(x, predicted),
        }
        decoder = defined_in("01_ddpm", "decoder", **names)
        levels = (torch.arange(256).double() / 127.5 - 1).reshape(256, 1, 1, 1)
        nats = decoder(levels, torch.Generator().manual_seed(0), std)
        assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-6)
        assert nats.argmin() == level


@every
def test_the_bound_weighs_an_error_by_the_signal_that_is_lost(schedule):
    """The divergence of two steps back, of the picture and of a prediction: (SNR_s - SNR_t) / 2 times the square."""
    x_t, x0, predicted = 0.3, 0.7, -0.2
    times = torch.tensor([(1.0, 0.999), (0.7, 0.2), (0.5, 0.499), (0.002, 0.001)], dtype=torch.float64)
    for t, s in times:
        from_x_t, from_x_0, variance = posterior(schedule, t, s)
        steps = (Normal(from_x_t * x_t + from_x_0 * picture, variance.sqrt()) for picture in (x0, predicted))
        weight = (signal_to_noise(schedule, s) - signal_to_noise(schedule, t)) / 2
        torch.testing.assert_close(kl_divergence(*steps), weight * (x0 - predicted) ** 2, rtol=1e-7, atol=1e-12)


@preserving
def test_a_step_of_ddpm_is_algorithm_2_of_its_paper(schedule):
    """With the predicted noise in the place of the picture, for all 1,000 steps: Ho et al. 2020, line 4."""
    beta = torch.cat([torch.zeros(1, dtype=torch.float64), betas(schedule)])
    alpha_bar = (1 - beta).cumprod(0)
    x, eps, z = normal(3, 5, 2)
    for k in range(1000, 0, -1):
        t, s = (torch.tensor(step / 1000, dtype=torch.float64) for step in (k, k - 1))
        alpha, sigma = schedule(t)
        found = ddpm(Prediction((x - sigma * eps) / alpha, eps), x, t, s, schedule=schedule, noise=z)
        mean = (x - beta[k] / (1 - alpha_bar[k]).sqrt() * eps) / (1 - beta[k]).sqrt()
        variance = beta[k] * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
        torch.testing.assert_close(found, mean + variance.sqrt() * z, rtol=1e-6, atol=1e-6)


# --- Chapter 2: DDIM -----------------------------------------------------------------------------


def test_the_denoiser_of_a_mixture_is_the_mean_over_the_data():
    """The chapter's toy, against sums over a fine mesh of the plane."""
    make = defined_in("02_ddim", "mixture_denoiser", torch=torch, cosine=cosine, expand=expand, Prediction=Prediction)
    means = torch.tensor([[-0.8, 0.1], [0.6, -0.5], [0.3, 0.9]], dtype=torch.float64)
    shares, spread = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 0.25
    line = torch.linspace(-3, 3, 201, dtype=torch.float64)
    mesh = torch.cartesian_prod(line, line)
    data = (shares * torch.exp(-(torch.cdist(mesh, means) ** 2) / (2 * spread**2))).sum(dim=1)
    x_t = normal(7, 2)
    for schedule, time in itertools.product((cosine, rectified), (0.3, 0.6, 0.9)):
        t = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = schedule(t)
        weights = data * torch.exp(-(torch.cdist(x_t, alpha * mesh) ** 2) / (2 * sigma**2))
        found = make(means, shares, spread, schedule)(x_t, t)
        torch.testing.assert_close(found.x0, weights @ mesh / weights.sum(dim=1, keepdim=True), rtol=0, atol=1e-6)
        torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x_t)


@preserving
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_eta_sets_the_share_of_fresh_noise(schedule, eta):
    """What one step makes of noise 1 and 0, for the same prediction, differs by sigma_eta of Song et al., equation 16."""
    x_t, x0, one = torch.zeros(3, 2, 1, dtype=torch.float64)
    for t, s in itertools.pairwise(time_grid(50)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        guess = Prediction(x0, (x_t - alpha_t * x0) / sigma_t)
        with_noise, without = (
            ddim(guess, x_t, t, s, schedule=schedule, noise=noise, eta=eta) for noise in (one + 1, one)
        )
        expected = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).clamp(min=0).sqrt()
        torch.testing.assert_close(with_noise - without, expected.expand(2, 1), rtol=1e-7, atol=1e-9)


@every
def test_ddim_without_fresh_noise_is_euler_over_the_ratio_of_noise_to_picture(schedule):
    """x / alpha moves by the step of sigma / alpha times the noise."""
    x_t, x0, nothing = *normal(2, 5, 2), torch.zeros(5, 2, dtype=torch.float64)
    for t, s in itertools.pairwise(torch.linspace(0.95, 0, 20, dtype=torch.float64)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        guess = Prediction(x0, (x_t - alpha_t * x0) / sigma_t)
        expected = alpha_s * (x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * guess.eps)
        for step in (ddim, euler):
            found = step(guess, x_t, t, s, schedule=schedule, noise=nothing)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def mixture_in_the_plane(schedule):
    """The chapter's ideal denoiser, and log p_t for one point, by the Gaussians that are its parts."""
    make = defined_in("02_ddim", "mixture_denoiser", torch=torch, cosine=cosine, expand=expand, Prediction=Prediction)
    means = torch.tensor([[-0.8, 0.1], [0.6, -0.5], [0.3, 0.9]], dtype=torch.float64)
    weights, spread = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), 0.25

    def log_density(x, t):
        alpha, sigma = schedule(t)
        variance = (alpha * spread) ** 2 + sigma**2
        squares = (x - alpha * means).square().sum(dim=1)
        return torch.logsumexp(weights.log() - squares / (2 * variance), dim=0) - (2 * math.pi * variance).log()

    return make(means, weights, spread, schedule), log_density


@every
def test_the_velocity_of_the_flow_is_the_slope_of_a_small_step_of_euler(schedule):
    velocity = defined_in("02_ddim", "velocity", torch=torch, cosine=cosine)
    denoiser, _ = mixture_in_the_plane(schedule)
    x, h = normal(7, 2), 1e-6
    for t in torch.tensor([0.2505, 0.6005, 0.9005], dtype=torch.float64):  # between the knots of the linear schedule
        step = euler(denoiser(x, t), x, t, t - h, schedule=schedule)
        torch.testing.assert_close((x - step) / h, velocity(denoiser, x, t, schedule), rtol=1e-4, atol=1e-4)


@every
def test_the_density_of_noisy_data_satisfies_the_continuity_equation(schedule):
    """d log p / dt + u . grad log p + div u = 0, which is the equation divided by p; u is the chapter's."""
    velocity = defined_in("02_ddim", "velocity", torch=torch, cosine=cosine)
    denoiser, log_density = mixture_in_the_plane(schedule)
    for t in torch.tensor([0.2505, 0.6005, 0.9005], dtype=torch.float64):
        for x in normal(5, 2):
            score, change = torch.autograd.functional.jacobian(log_density, (x, t))
            u = velocity(denoiser, x[None], t, schedule)[0]
            jacobian = torch.autograd.functional.jacobian(lambda x, t=t: velocity(denoiser, x[None], t, schedule)[0], x)
            parts = torch.stack([change, u @ score, jacobian.trace()])
            assert parts.sum().abs() < 1e-8 * (1 + parts.abs().max())


# --- Chapter 3: VAE ------------------------------------------------------------------------------


def test_what_a_principal_component_loses_is_the_variance_in_the_others():
    """The chapter's own directions and the library's, on points with a longest direction that is known."""
    directions_of = defined_in("03_vae", "principal_directions", torch=torch)
    turn, _ = torch.linalg.qr(normal(3, 3))
    points = normal(5000, 3, seed=1) * torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64) @ turn.T + 2.0
    mean, variances, directions = directions_of(points)
    u = directions[:, :1]
    z = (points - mean) @ u
    lost = (points - mean - z @ u.T).square().sum(dim=1).mean()
    torch.testing.assert_close(lost, variances[1:].sum())
    torch.testing.assert_close((u.T @ turn[:, :1]).abs(), torch.ones(1, 1, dtype=torch.float64), rtol=0, atol=1e-3)
    other, _ = torch.linalg.qr(u + 0.1 * turn[:, 1:2])
    assert (points - mean - (points - mean) @ other @ other.T).square().sum(dim=1).mean() > lost + 0.01
    found, shares = principal_components(points, 1)
    torch.testing.assert_close(found.abs().double(), z.abs(), rtol=0, atol=1e-5)
    assert shares.item() == pytest.approx((variances[0] / variances.sum()).item(), rel=1e-5)


def test_a_direction_is_worth_half_the_logarithm_of_its_variance_over_the_decoder_s():
    """The mean divergence of the ideal encoders of N(0, w w^T + s^2) is log(v / s^2) / 2 with v = |w|^2 + s^2.

    A divergence depends on the square of w x alone, so two points at one standard deviation stand for all data.
    """
    for length, s in ((1.5, 0.5), (0.3, 0.1), (4.0, 2.0)):
        v = length**2 + s**2
        x = math.sqrt(v) * torch.tensor([1.0, -1.0], dtype=torch.float64)  # along w
        mean = (length * x / v).reshape(2, 1, 1, 1)
        ideal = DiagonalGaussian(mean, torch.full_like(mean, math.log(s**2 / v)))
        assert ideal.kl().mean().item() == pytest.approx(0.5 * math.log(v / s**2))


# --- Chapter 4: latent diffusion -----------------------------------------------------------------


@every
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_a_factor_on_the_data_is_its_square_on_the_signal_to_noise_ratio(schedule, scale):
    """Measured without alpha or sigma: a correlation of rho is a ratio of rho^2 / (1 - rho^2)."""
    t = torch.tensor(0.5, dtype=torch.float64)
    z, eps = normal(2, 400_000)
    rho = torch.corrcoef(torch.stack([scale * z, add_noise(schedule, scale * z, eps, t)]))[0, 1]
    measured = (rho**2 / (1 - rho**2)).item()
    assert measured == pytest.approx(scale**2 * signal_to_noise(schedule, t).item(), rel=0.02)


@preserving
@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_a_factor_on_the_data_is_a_shift_in_time(schedule, scale):
    """Divided by its size, a state of data s times as large is a state of the data themselves, at another time."""
    fine = torch.linspace(0.001, 0.999, 999_999, dtype=torch.float64)
    alpha, sigma = schedule(fine)
    ratio = sigma / alpha
    z, eps = normal(2, 6)
    for time in (0.3, 0.5, 0.7):
        t = torch.tensor(time, dtype=torch.float64)
        alpha_t, sigma_t = schedule(t)
        size = (scale**2 * alpha_t**2 + sigma_t**2).sqrt()
        other = fine[torch.searchsorted(ratio, sigma_t / alpha_t / scale)]
        assert (other > t) == (scale < 1)
        found = add_noise(schedule, scale * z, eps, t) / size
        torch.testing.assert_close(found, add_noise(schedule, z, eps, other), rtol=0, atol=1e-4)


# --- Chapter 5: guidance -------------------------------------------------------------------------


def test_a_map_beside_the_picture_is_a_bias_of_the_first_layer():
    """What a label adds to the first layer's answer is the same for every picture, and another for every label."""
    torch.manual_seed(0)
    network = ConditionalUNet(SMALL_CLASS_UNETS["ldm-concat"], 3).double()
    (x, y), t = normal(2, 4, 2, 4, 4), torch.full((4,), 0.5, dtype=torch.float64)
    labels, seen = torch.tensor([0, 1, 2, NO_CLASS]), []
    network.unet.conv_in.register_forward_hook(lambda layer, given, answer: seen.append(answer))
    with torch.no_grad():
        for picture in (x, y):
            network(picture, t, labels=labels)
            network(picture, t, labels=labels.roll(1))
        stem = network.unet.conv_in
        maps = network.classes(labels)
        of_map = torch.nn.functional.conv2d(maps, stem.weight[:, 2:], padding=1)
    differences = seen[0] - seen[1], seen[2] - seen[3]
    torch.testing.assert_close(*differences)
    torch.testing.assert_close(differences[0], of_map - of_map.roll(1, 0))
    assert differences[0].abs().amax(dim=(1, 2, 3)).min() > 0.1


# --- Chapter 6: cross-attention ------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 32, 512])
def test_attention_is_as_undecided_at_any_width(width):
    """The logarithms of two shares differ by two scores: with variance 2, if a score's is 1, and not d."""
    query, key = normal(20_000, 1, width), normal(20_000, 2, width, seed=1)
    _, shares = attention(query, key, key)
    apart = shares.log()[:, 0, 0] - shares.log()[:, 0, 1]
    assert apart.var().item() == pytest.approx(2.0, rel=0.1)
    assert (query * key[:, :1]).sum(dim=-1).var().item() == pytest.approx(width, rel=0.1)


# --- Chapter 7: rectified flow -------------------------------------------------------------------


def test_the_mean_velocity_has_the_smallest_loss():
    """Data at -1 and 1: whatever is added to E[eps - x0 | x_t] is added, squared, to the loss."""
    x0 = torch.randint(2, (200_000, 1), generator=torch.Generator().manual_seed(1)).double() * 2 - 1

    def exact(x, t):
        t = t[:, None]
        return (x - torch.tanh((1 - t) * x / t**2)) / t

    def loss(wrong):
        def network(x, t):
            return exact(x, t) + wrong(x, t)

        draws = torch.Generator().manual_seed(2)  # the same for all
        return diffusion_loss(network, x0, schedule=rectified, target=velocity, generator=draws).mean().item()

    least = loss(lambda x, t: 0 * x)
    for wrong, square in (
        (lambda x, t: 0.3 + 0 * x, 0.09),
        (lambda x, t: -0.3 * x.sign(), 0.09),
        (lambda x, t: 0.5 * t[:, None] + 0 * x, 0.25 / 3),
    ):
        assert loss(wrong) - least == pytest.approx(square, abs=0.01)


def test_all_of_t_along_the_velocity_leads_to_the_guess():
    """Whatever the network says: the picture in its answer is x_t less t times the velocity."""
    x_t, said = normal(2, 4, 1, 3, 3)
    t = torch.tensor([0.001, 0.3, 0.8, 1.0], dtype=torch.float64)
    found = prediction(velocity, said, x_t, *rectified(t))
    torch.testing.assert_close(found.x0, x_t - expand(t, x_t) * said)
    torch.testing.assert_close((x_t - found.x0) / expand(t, x_t), said, rtol=1e-9, atol=1e-9)


def test_a_line_is_straight_and_a_quarter_of_a_circle_is_not():
    """The chapter's own measure. On the circle the speed is pi / 2, so S = pi^2 / 4 - |chord|^2, and |chord|^2 = 2."""
    straightness = defined_in("07_rectified_flow", "straightness")
    t = torch.linspace(1, 0, 2001, dtype=torch.float64)
    ends = normal(2, 5, 2)
    line = torch.lerp(ends[0], ends[1], t[:, None, None])
    assert straightness(line)[0] == pytest.approx(0, abs=1e-12)
    hurried = torch.lerp(ends[0], ends[1], t[:, None, None] ** 2)  # a straight line, but not at constant speed
    assert straightness(hurried)[1] == pytest.approx(1 / 3, rel=1e-3)
    angle = t * math.pi / 2
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]  # (2001, 1, 2)
    off, share = straightness(circle)
    assert off == pytest.approx(math.pi**2 / 4 - 2, rel=1e-4)
    assert share == pytest.approx(off / 2)


def test_the_velocity_of_a_path_is_v_on_the_circle_and_u_on_the_line():
    """Automatic derivatives of alpha and sigma, by the angle and by t, against the targets of the library."""
    x0, eps = normal(2, 5, 3)

    def circle(angle):
        return angle.cos(), angle.sin()

    for path, target in ((circle, v), (rectified, velocity)):
        for at in (0.1, 0.6, 0.9):
            t = torch.tensor(at, dtype=torch.float64)
            t.requires_grad_()
            alpha, sigma = path(t)
            rates = [torch.autograd.grad(value, t, retain_graph=True)[0] for value in (alpha, sigma)]
            along = rates[0] * x0 + rates[1] * eps
            torch.testing.assert_close(along, target_value(target, x0, eps, alpha.detach(), sigma.detach()))


def test_the_way_from_noise_to_data_is_the_same_on_every_schedule():
    """With the exact denoiser of N(m, s^2) a point keeps its rank, at every time and not only at the end."""
    mean, std, noise = 0.3, 0.5, torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    ends = {}
    for name, schedule in SCHEDULES.items():

        def denoiser(x, t, schedule=schedule):
            alpha, sigma = schedule(t)
            off = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
            return Prediction(mean + alpha * std**2 * off, sigma * off)

        how = {"schedule": schedule, "generator": torch.Generator()}
        for state in sample(denoiser, noise, time_grid(1000), euler, **how):
            alpha, sigma = schedule(torch.tensor(state.t, dtype=torch.float64))
            standard = (state.x - alpha * mean) / (alpha**2 * std**2 + sigma**2).sqrt()
            torch.testing.assert_close(standard, noise, rtol=0, atol=0.01)
        ends[name] = state.x
    torch.testing.assert_close(ends["rectified"], ends["cosine"], rtol=0, atol=0.01)
    torch.testing.assert_close(ends["linear"], ends["cosine"], rtol=0, atol=0.01)


# --- Chapter 9: clinic ---------------------------------------------------------------------------


@every
def test_from_pure_noise_the_best_guess_is_the_mean_of_the_data(schedule):
    """Whatever the noise is. The schedules of diffusion leave a trace of the picture even at t = 1, and so a little more."""
    make = defined_in("02_ddim", "mixture_denoiser", torch=torch, cosine=cosine, expand=expand, Prediction=Prediction)
    means, shares = normal(5, 3), torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    t = torch.ones((), dtype=torch.float64)
    guess = make(means, shares, 0.4, schedule)(normal(20, 3, seed=1), t).x0
    alpha, _ = schedule(t)
    torch.testing.assert_close(guess, (shares @ means).expand(20, 3), rtol=0, atol=1e-12 + 10 * alpha.item())
