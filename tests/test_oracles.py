"""diffusers' schedulers as oracles: an independent implementation must give the same numbers."""

import diffusers
import pytest
import torch

from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.samplers import ddim, ddpm, time_grid
from diffusion_book.schedules import SCHEDULES, add_noise, betas, posterior
from diffusion_book.targets import TARGETS, target_value

T = 1000
THEIR_TARGETS = {"noise": "epsilon", "image": "sample", "v": "v_prediction"}
THEIR_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
schedules = pytest.mark.parametrize("name", THEIR_SCHEDULES)


def scheduler(kind: type, name: str, **options):
    """Theirs, with our betas, and with its products of alphas redone in double precision: in single
    precision they are so far off near t = 0 that little could be told from the comparison."""
    ours = betas(SCHEDULES[name])
    theirs = kind(num_train_timesteps=T, trained_betas=ours.tolist(), **options)
    theirs.alphas_cumprod = (1 - ours).cumprod(0)
    return theirs


def draws(number: int):
    return torch.randn(number, 4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def our_prediction(name, target, x_t, output, t, clip):
    schedule = SCHEDULES[name]
    denoiser = Denoiser(lambda x, time: output, schedule, TARGETS[target])
    return (clipped(denoiser, schedule) if clip else denoiser)(x_t, t)


@schedules
def test_their_named_schedules_are_ours(name):
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, beta_schedule=THEIR_SCHEDULES[name])
    torch.testing.assert_close(theirs.betas.double(), betas(SCHEDULES[name]), rtol=1e-5, atol=1e-8)
    alpha, _ = SCHEDULES[name](torch.arange(1, T + 1, dtype=torch.float64) / T)
    torch.testing.assert_close(theirs.alphas_cumprod.double(), alpha.square(), rtol=1e-3, atol=1e-9)


@schedules
def test_noising_and_velocity_are_the_same(name):
    theirs = scheduler(diffusers.DDPMScheduler, name)
    x0, eps = draws(2)
    steps = torch.tensor([0, 10, 500, 999])
    t = (steps + 1).double() / T  # their step k - 1 is our time k / T
    torch.testing.assert_close(theirs.add_noise(x0, eps, steps), add_noise(SCHEDULES[name], x0, eps, t))
    ours = target_value(TARGETS["v"], x0, eps, *SCHEDULES[name](t))
    torch.testing.assert_close(theirs.get_velocity(x0, eps, steps), ours)


@schedules
@pytest.mark.parametrize("target", THEIR_TARGETS)
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_steps_are_the_same(name, target, clip, monkeypatch):
    x_t, output, noise = draws(3)
    theirs = scheduler(
        diffusers.DDPMScheduler,
        name,
        prediction_type=THEIR_TARGETS[target],
        clip_sample=clip,
        timestep_spacing="trailing",
    )
    module = diffusers.schedulers.scheduling_ddpm
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise)
    for steps in (T, 50):
        theirs.set_timesteps(steps)
        times = time_grid(steps)
        assert [int(k) for k in theirs.timesteps] == (times[:-1] * T - 1).round().int().tolist()
        for position in (0, 1, steps // 2, steps - 2, steps - 1):
            t, s = times[position], times[position + 1]
            found = our_prediction(name, target, x_t, output, t, clip)
            mine = ddpm(found, x_t, t, s, schedule=SCHEDULES[name], noise=noise)
            step = theirs.step(output, int(theirs.timesteps[position]), x_t)
            torch.testing.assert_close(found.x0, step.pred_original_sample, rtol=1e-7, atol=1e-8)
            torch.testing.assert_close(mine, step.prev_sample, rtol=1e-7, atol=1e-7)


@schedules
@pytest.mark.parametrize("target", THEIR_TARGETS)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_are_the_same(name, target, clip, eta):
    x_t, output, noise = draws(3)
    theirs = scheduler(
        diffusers.DDIMScheduler,
        name,
        prediction_type=THEIR_TARGETS[target],
        clip_sample=clip,
        timestep_spacing="trailing",
    )
    for steps in (T, 50):
        theirs.set_timesteps(steps)
        times = time_grid(steps)
        for position in (0, 1, steps // 2, steps - 2, steps - 1):
            t, s = times[position], times[position + 1]
            found = our_prediction(name, target, x_t, output, t, clip)
            mine = ddim(found, x_t, t, s, schedule=SCHEDULES[name], noise=noise, eta=eta)
            step = theirs.step(
                output,
                int(theirs.timesteps[position]),
                x_t,
                eta=eta,
                use_clipped_model_output=True,  # theirs does not recompute eps after the clip unless asked
                variance_noise=noise if eta > 0 else None,
            )
            torch.testing.assert_close(found.x0, step.pred_original_sample, rtol=1e-7, atol=1e-8)
            torch.testing.assert_close(mine, step.prev_sample, rtol=1e-7, atol=1e-7)


@schedules
def test_posterior_variances_are_the_same(name):
    theirs = scheduler(diffusers.DDPMScheduler, name)
    times = torch.arange(T + 1, dtype=torch.float64) / T
    _, _, ours = posterior(SCHEDULES[name], times[1:], times[:-1])
    for k in (1, 2, 100, 500, 998, 999):
        assert theirs._get_variance(k).item() == pytest.approx(ours[k].item(), rel=1e-6)


@schedules
def test_a_whole_walk_ends_at_the_same_pictures(name):
    """50 DDIM steps with one and the same function as the network, errors adding up on the way."""
    x = draws(1)[0]
    schedule = SCHEDULES[name]
    denoiser = clipped(
        Denoiser(lambda x_t, t: torch.tanh(x_t + t[:, None, None, None]), schedule, TARGETS["v"]), schedule
    )
    theirs = scheduler(diffusers.DDIMScheduler, name, prediction_type="v_prediction", timestep_spacing="trailing")
    theirs.set_timesteps(50)
    mine, other = x, x
    times = time_grid(50)
    for position, k in enumerate(theirs.timesteps):
        t, s = times[position], times[position + 1]
        mine = ddim(denoiser(mine, t), mine, t, s, schedule=schedule, noise=torch.zeros_like(x))
        output = torch.tanh(other + (int(k) + 1) / T)
        other = theirs.step(output, int(k), other, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)
