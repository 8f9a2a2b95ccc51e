"""The clinic must name each planted fault, and accuse no healthy model, loss, sampler or guidance."""

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from tiny import SMALL_UNET, SMALL_VAE, random_vae
from torch import nn

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.evaluation import clinic, oracles
from diffusion_book.guidance import guided
from diffusion_book.models.autoencoder import Autoencoder, build_autoencoder
from diffusion_book.models.pipelines import build
from diffusion_book.models.recipes import DiffusionConfig, ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.networks.unet import UNet
from diffusion_book.objective import diffusion_loss
from diffusion_book.schedules import SCHEDULES, add_noise, cosine, expand, linear, rectified
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS, Prediction, target_value
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.models import set_latent_scale
from diffusion_book.viz.clinic import plot_loss_by_time, plot_suppositions, show_case

V, FLOW = DiffusionConfig(), DiffusionConfig("rectified", "velocity")


def patterns(number: int = 400) -> data.Dataset:
    """Pictures that are easy to learn: a bright block in one of ten places."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 10
    images = torch.zeros(number, 1, 28, 28, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 14 * (label // 5), 5 * (label % 5)
        image[:, top : top + 14, left : left + 8] = int(torch.randint(120, 256, (), generator=generator))
    return data.Dataset("digits", images, labels)


IMAGES = data.normalise(patterns(48).images)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    """An encoder that has learned nothing, but knows the scale of the patterns, which is not 1."""
    network = random_vae()
    with torch.no_grad():
        network.encoder.conv_out.weight[:2] *= 8
    set_latent_scale(network, patterns())
    assert ((network.latent_std - 1).abs() > 0.6).all()
    recipe = Recipe("vae", TrainingConfig(dataset="digits"), vae=SMALL_VAE, elbo=ELBOConfig())
    return build_autoencoder(recipe, network.state_dict(), device="cpu", precision="fp32")


def loss_of(config: DiffusionConfig, twice: bool = False):
    """The library's loss, or one whose target has a noise of its own."""
    schedule, target = SCHEDULES[config.schedule], TARGETS[config.target]

    def wrong(network, x0, generator):
        t = torch.rand(len(x0), generator=generator)
        alpha, sigma = schedule(t)
        mixed, other = (torch.randn(x0.shape, generator=generator) for _ in range(2))
        output = network(add_noise(schedule, x0, mixed, t), t)
        return (output - target_value(target, x0, other, alpha, sigma)).square().flatten(1).mean(1)

    def right(network, x0, generator):
        return diffusion_loss(network, x0, schedule=schedule, target=target, generator=generator)

    return wrong if twice else right


def trained(autoencoder, config: DiffusionConfig, x0=None, twice: bool = False, steps: int = 150):
    """A small model of the patterns' latents, or of other data, after some seconds of training."""
    x0 = autoencoder.encode(data.normalise(patterns().images)) if x0 is None else x0
    loss, generator = loss_of(config, twice), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = UNet(SMALL_UNET).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network, x0[torch.randint(len(x0), (64,), generator=generator)], generator).mean().backward()
        optimizer.step()
    recipe = Recipe("ldm", TrainingConfig(dataset="digits"), network=SMALL_UNET, diffusion=config, is_latent=True)
    return build(recipe, network.state_dict(), autoencoder=autoencoder, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def latent(autoencoder):
    return trained(autoencoder, V)


@pytest.fixture(scope="module")
def flow(autoencoder):
    return trained(autoencoder, FLOW)


@pytest.fixture(scope="module")
def pixels():
    """The shipped model of pictures, and pictures of its own kind, so that no data set is needed."""
    pipe = diffusion_book.load("ddpm", device="cpu", precision="fp32")
    return pipe, pipe.sample(8, steps=10)


class Changed(nn.Module):
    """A network that is asked, or answers, through a change."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x, t, **condition):
        return self.change(self.network, x, t)


def changed(pipe, change):
    return dataclasses.replace(pipe, network=Changed(pipe.network, change))


def configured(pipe, **config):
    diffusion = dataclasses.replace(pipe.recipe.diffusion, **config)
    return dataclasses.replace(pipe, recipe=dataclasses.replace(pipe.recipe, diffusion=diffusion))


def fault(pipe, images=IMAGES, **options) -> str:
    """The subject of the only fault that was found; empty where there is none."""
    ill = clinic.faults(clinic.examine(pipe, images, **options))
    assert len(ill) <= 1
    return ill[0].subject if ill else ""


# Healthy models


@pytest.mark.parametrize("name", [name for name in diffusion_book.list_models() if not name.startswith("vae")])
def test_no_shipped_model_is_accused(name):
    """Not even with the digits of scikit-learn, which none of them was trained on."""
    pipe = diffusion_book.load(name, device="cpu", precision="fp32")
    images, labels = data.load("digits", "test").batch(torch.arange(16))
    found = clinic.examine(pipe, images, labels)
    assert clinic.verdict(found) == "nothing found"
    assert {"weights", "data range", "training data"} <= {each.subject for each in found}
    if pipe.num_classes:
        assert fault(pipe, images) == ""  # asked without labels


def test_no_young_model_is_accused(latent, flow):
    for pipe in (latent, flow):
        found = clinic.examine(pipe, IMAGES, last=pipe.network)
        assert clinic.verdict(found) == "nothing found"
        subjects = ["weights", "data range", "latent scale", "training data", "time and target", "stale average"]
        assert [each.subject for each in found] == [*subjects, "untrained or stale weights"]


def test_one_step_models_are_not_asked_at_times_that_they_never_saw(latent):
    found = clinic.examine(configured(latent, time_sampling="last"), IMAGES)
    assert [each.subject for each in found] == ["weights", "data range", "latent scale", "training data"]


# Faults that a pipeline carries

WRONG_TIMES = {
    "wrong time, 1/1,000 of it": lambda net, x, t: net(x, 1000 * t),
    "wrong time, 20 times": lambda net, x, t: net(x, t / 20),
    "wrong time, backwards, 1 - t": lambda net, x, t: net(x, 1 - t),
}


@pytest.mark.parametrize("name", WRONG_TIMES)
def test_wrong_time_is_named(latent, flow, pixels, name):
    assert fault(changed(latent, WRONG_TIMES[name])) == name
    assert fault(changed(flow, WRONG_TIMES[name])) == name
    assert fault(changed(pixels[0], WRONG_TIMES[name]), pixels[1]) == name


@pytest.mark.parametrize("shift", [-0.05, 0.1])
def test_shifted_time_is_named(pixels, shift):
    pipe, images = pixels
    name = f"wrong time, {'earlier' if shift > 0 else 'later'} by {abs(shift):g}"
    assert fault(changed(pipe, lambda net, x, t: net(x, (t + shift).clamp(0, 1))), images) == name


def test_table_of_another_schedule_is_named(pixels):
    pipe, images = pixels
    assert fault(configured(pipe, schedule="linear"), images) == "wrong time, that of the cosine schedule"


def test_flipped_sign_is_named(latent, flow, pixels):
    def flip(net, x, t):
        return -net(x, t)

    assert fault(changed(latent, flip)) == fault(changed(flow, flip)) == "flipped sign"
    assert fault(changed(pixels[0], flip), pixels[1]) == "flipped sign"


@pytest.mark.parametrize("target", ["noise", "image", "velocity"])
def test_wrong_target_is_named(latent, pixels, target):
    assert fault(configured(latent, target=target)) == "target v"
    assert fault(configured(pixels[0], target=target), pixels[1]) == "target v"


@pytest.mark.parametrize("config", [V, FLOW], ids=["v", "velocity"])
def test_noise_that_is_not_the_targets_is_named(autoencoder, config):
    pipe = trained(autoencoder, config, twice=True)
    assert fault(pipe) == "unrelated noise"


def test_missing_latent_scale_is_named(latent):
    network = copy.deepcopy(latent.autoencoder.network)
    network.latent_mean.zero_()
    network.latent_std.fill_(1)
    without = dataclasses.replace(latent.autoencoder, network=network)
    assert fault(dataclasses.replace(latent, autoencoder=without)) == "latent scale"


def test_network_that_was_trained_without_the_scale_is_named(autoencoder):
    network = autoencoder.network
    latents = autoencoder.encode(data.normalise(patterns().images))
    raw = latents * network.latent_std[:, None, None] + network.latent_mean[:, None, None]
    assert fault(trained(autoencoder, V, raw)) == "latent scale"


def test_pictures_in_the_wrong_range_are_named(latent, pixels):
    for pipe in (latent, pixels[0]):
        assert fault(pipe, (IMAGES + 1) / 2) == "data range"
        assert fault(pipe, (IMAGES + 1) * 127.5) == "data range"


def zero_to_one(network, x, t):
    """The network that would have been learned from pictures in [0, 1], made from one for [-1, 1].

    With y = (x0 + 1) / 2, the state 2 y_t - alpha has the picture of x0 and twice the noise.
    """
    times = torch.linspace(1e-4, 1, 10_001, dtype=torch.float64)
    alphas, sigmas = cosine(times)
    alpha, sigma = cosine(t.double())
    place = torch.searchsorted(sigmas / alphas, 2 * sigma / alpha).clamp(max=10_000)
    size = (alpha.square() + 4 * sigma.square()).sqrt()
    state = (2 * x - expand(alpha, x)) / expand(size, x)
    then = times[place]
    a, s = cosine(then)
    x0 = expand(a, x) * state - expand(s, x) * network(state, then.float())
    y0 = (x0 + 1) / 2
    eps = (x - expand(alpha, x) * y0) / expand(sigma, x)
    return expand(alpha, x) * eps - expand(sigma, x) * y0


def test_network_that_was_trained_on_zero_to_one_is_named(pixels):
    pipe, images = pixels
    assert fault(changed(pipe, zero_to_one), images) == "data range"


def test_untrained_and_stale_weights_are_named(latent):
    torch.manual_seed(0)
    start = UNet(SMALL_UNET)
    assert fault(dataclasses.replace(latent, network=start)) == "untrained or stale weights"
    lagging = copy.deepcopy(start)  # after 150 updates with decay 0.9999 it has come 1.5 per cent of the way
    with torch.no_grad():
        torch._foreach_lerp_(list(lagging.parameters()), list(latent.network.parameters()), 1 - 0.9999**150)
    stale = dataclasses.replace(latent, network=lagging.eval())
    assert fault(stale) == "untrained or stale weights"
    assert fault(stale, last=latent.network) == "stale average"


def test_weights_that_are_no_numbers_are_named(latent):
    network = copy.deepcopy(latent.network)
    with torch.no_grad():
        next(network.parameters())[0] = torch.nan
    assert fault(dataclasses.replace(latent, network=network)) == "weights"


def test_verdict_says_what_to_do(latent):
    said = clinic.verdict(clinic.examine(changed(latent, lambda net, x, t: -net(x, t)), IMAGES))
    assert said.startswith("flipped sign: Read with the other sign, the network errs 0.")
    assert "compare the sign in the loss with the sampler's" in said


def test_pictures_that_are_none_are_refused(latent, pixels):
    with pytest.raises(BookError, match="at least 8"):
        clinic.admit(latent, IMAGES[:4])
    with pytest.raises(BookError, match=r"must be \(B, 1, 28, 28\)"):
        clinic.examine(pixels[0], IMAGES[..., :20, :20])


# The loss


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("schedule", [cosine, linear, rectified])
def test_right_losses_are_healthy(name, schedule):
    def loss(network, x0, generator):
        return diffusion_loss(network, x0, schedule=schedule, target=TARGETS[name], generator=generator)

    (found,) = oracles.examine_loss(loss, schedule, TARGETS[name])
    assert found.healthy, found.text


def test_wrong_losses_are_not():
    assert clinic.faults(oracles.examine_loss(loss_of(V, twice=True), cosine, TARGETS["v"]))
    right = loss_of(V)

    def other_sign(network, x0, generator):
        return right(lambda x, t: -network(x, t), x0, generator)

    def other_index(network, x0, generator):
        return right(lambda x, t: network(x, (t - 0.001).clamp(min=1e-3)), x0, generator)

    for wrong in (other_sign, other_index):
        assert clinic.faults(oracles.examine_loss(wrong, cosine, TARGETS["v"]))


# The sampler


def walk_with(denoiser, x, *, tell=lambda t, s: t, after=lambda x: x, times=None, schedule=cosine):
    """DDIM, with the places where it can be broken."""
    for t, s in pairwise(samplers.time_grid(20) if times is None else times):
        x0, eps = denoiser(x, tell(t, s))
        alpha, sigma = schedule(s)
        x = after(alpha * x0 + sigma * eps)
    return x


def subjects(draw, schedule=cosine) -> set[str]:
    return {each.subject for each in clinic.faults(oracles.examine_sampler(draw, schedule))}


@pytest.mark.parametrize("schedule", [cosine, linear, rectified])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_librarys_samplers_are_healthy(name, schedule):
    for eta in (0.0, 1.0) if name == "ddim" else (0.0,):

        def draw(denoiser, x, eta=eta):
            *_, end = samplers.sample(
                denoiser,
                x,
                samplers.time_grid(20),
                samplers.SAMPLERS[name],
                schedule=schedule,
                generator=torch.Generator().manual_seed(0),
                eta=eta,
            )
            return end.x

        found = oracles.examine_sampler(draw, schedule)
        assert not clinic.faults(found), clinic.verdict(found)
        assert len(found) == 4


def test_broken_samplers_are_named():
    assert subjects(walk_with) == set()
    assert "wrong time" in subjects(lambda d, x: walk_with(d, x, tell=lambda t, s: s.clamp(min=1e-3)))
    assert "wrong time" in subjects(lambda d, x: walk_with(d, x, tell=lambda t, s: (2 * t - s).clamp(max=1)))
    assert "wrong time" in subjects(lambda d, x: walk_with(d, x, tell=lambda t, s: t / 20))
    assert "clamped state" in subjects(lambda d, x: walk_with(d, x, after=lambda x: x.clamp(-1, 1)))
    late = torch.arange(980, -1, -20) / 1000  # range(0, 1000, 20), backwards
    assert "start" in subjects(lambda d, x: walk_with(d, x, times=late.double()))
    early = samplers.time_grid(20)[:-1]
    assert "end" in subjects(lambda d, x: walk_with(d, x, times=early))


def test_an_index_that_is_off_by_one_in_a_thousand_is_found():
    told = lambda t, s: (t - 0.001).clamp(min=0.0005)  # noqa: E731
    assert "wrong time" in subjects(lambda d, x: walk_with(d, x, tell=told, times=samplers.time_grid(50)))


def test_a_sampler_that_never_asks_is_refused():
    with pytest.raises(BookError, match="never asked"):
        oracles.examine_sampler(lambda denoiser, x: x, cosine)


# Guidance


def guidance_with(mix):
    def guide(denoiser, w):
        def both(x_t, t, labels):
            u, c = (denoiser(x_t, t, labels=each) for each in (torch.full_like(labels, NO_CLASS), labels))
            return Prediction(*(mix(a, b, w) for a, b in zip(u, c, strict=True)))

        return both

    return guide


def test_guidance_is_examined():
    (found,) = oracles.examine_guidance(guided)
    assert found.healthy, found.text
    advice = {}
    for name, mix in {
        "minus": lambda u, c, w: u - w * (c - u),
        "swapped": lambda u, c, w: c + w * (u - c),
        "paper": lambda u, c, w: (1 + w) * c - w * u,
        "half": lambda u, c, w: u + w / 2 * (c - u),
    }.items():
        (found,) = oracles.examine_guidance(guidance_with(mix))
        assert not found.healthy
        advice[name] = found.advice
    assert "sign is flipped" in advice["minus"]
    assert "sign is flipped" in advice["swapped"]
    assert "Ho & Salimans" in advice["paper"]
    assert "It must be" in advice["half"]


# Pictures


def test_a_case_shows_sick_pictures_the_measurement_and_cured_ones():
    samples = torch.zeros(4, 1, 28, 28)
    bars = show_case(samples, samples, {"healthy": 1.0, "sick": 3.0}, "loss")
    assert [axes.get_title() for axes in bars.axes] == ["sick", "diagnosis", "cured"]
    assert [patch.get_width() for patch in bars.axes[1].patches] == [1.0, 3.0]
    lines = show_case(samples, samples, {"healthy": ([0, 1], [2, 3]), "sick": ([0, 1], [4, 5])}, "t", yscale="log")
    assert [line.get_ydata().tolist() for line in lines.axes[1].lines] == [[2, 3], [4, 5]]
    assert lines.axes[1].get_yscale() == "log"
    with pytest.raises(BookError, match="3 sick and 4 cured"):
        show_case(samples[:3], samples, {"healthy": 1.0}, "loss")


def test_the_band_reaches_from_the_lowest_to_the_highest_healthy_loss():
    band = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    figure = plot_loss_by_time([0.2, 0.8], band, {"sick": [4.0, 5.0]}, "loss")
    (filled,) = figure.axes[0].collections
    heights = sorted({tuple(point) for point in filled.get_paths()[0].vertices.round(6).tolist()})
    assert heights == [(0.2, 1.0), (0.2, 3.0), (0.8, 1.0), (0.8, 2.0)]
    assert figure.axes[0].lines[-1].get_ydata().tolist() == [4.0, 5.0]


def test_suppositions_beyond_the_axis_stand_at_its_edge(latent):
    ratios = clinic.differential(clinic.admit(latent, IMAGES)) | {"flipped sign": 1e6}
    figure = plot_suppositions({"one": ratios, "two": ratios, "three": ratios}, clinic.BETTER)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["one", "two", "three"]
    low, high = figure.axes[0].get_xlim()
    assert all(low < x < high for line in figure.axes[0].lines for x in line.get_xdata())


# The loss by time, and patients


def test_the_loss_by_time_is_0_for_who_knows_the_answer_and_1_for_the_best_constant(latent):
    x0 = torch.randn(32, *latent.shape, generator=torch.Generator().manual_seed(0))
    times = (0.1, 0.5, 0.9)

    def constant(x_t, t, **condition):
        return -expand(cosine(t.double())[1], x_t).to(x_t) * x0.mean(0)

    found = clinic.loss_by_time(clinic.Patient(latent, constant, x0, {}), times)
    torch.testing.assert_close(found, torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
    knows = oracles.knowing_network(x0[0], cosine, TARGETS["v"])
    alone = clinic.Patient(latent, knows, x0[:1].expand(32, -1, -1, -1), {})
    torch.testing.assert_close(clinic.loss_by_time(alone, times), torch.zeros(3, dtype=torch.float64))


def test_a_trained_network_lies_in_between_and_is_best_where_the_noise_can_be_seen(latent):
    early, late = clinic.loss_by_time(clinic.admit(latent, IMAGES), (0.3, 1.0)).tolist()
    assert 0 < early < 0.9
    assert early < late < 1.5


def test_training_goes_on_with_a_copy(latent, autoencoder):
    moments = autoencoder.posterior(data.normalise(patterns().images)).moments
    dataset = LatentDataset("digits", moments, patterns().labels)
    before = copy.deepcopy(latent.network.state_dict())
    patient, losses = clinic.train_on(latent, loss_of_latent_diffusion(V), dataset, steps=13, batch_size=50)
    assert len(losses) == 16  # two whole passes over 400 pictures
    assert all(torch.equal(value, before[name]) for name, value in latent.network.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in patient.network.state_dict().items())
    assert not patient.network.training
    assert patient.recipe is latent.recipe
