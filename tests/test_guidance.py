"""Guidance: what it does to two models in closed form, and what it leaves alone."""

import math

import pytest
import torch
from tiny import random_autoencoder, random_class_pipeline, random_latent_pipeline
from torch import nn

import diffusion_book
from diffusion_book.denoiser import Denoiser
from diffusion_book.guidance import drop_labels, guided
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.recipes import ConditionConfig, DiffusionConfig
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.samplers import SAMPLERS, ddim, evaluations, sample, time_grid
from diffusion_book.schedules import SCHEDULES, expand
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS, Prediction
from diffusion_book.training.losses import loss_of_diffusion

COSINE = SCHEDULES["cosine"]
MODELS = ("ldm-concat", "ldm-cross-attention")


@pytest.fixture(scope="module")
def autoencoder():
    return random_autoencoder()


@pytest.fixture(scope="module", params=MODELS)
def pipe(autoencoder, request):
    return random_class_pipeline(autoencoder, request.param)


class Toy(nn.Module):
    """A network in float64 that works on every number alone, so that no batch changes how it rounds."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        self.batches = []

    def forward(self, x, t, *, labels):
        self.batches.append(len(x))
        shift = self.table[torch.where(labels == NO_CLASS, 3, labels)]
        return torch.sin(x + expand(shift, x)) * expand(1 + t, x)


def toy(target="v", schedule="cosine"):
    return Denoiser(Toy(), SCHEDULES[schedule], TARGETS[target])


def batch(size=6):
    x = torch.randn(size, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, torch.linspace(0.1, 0.9, size, dtype=torch.float64), torch.arange(size) % 3


def same(one, other):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


# --- What the scale means ------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_one_is_the_conditional_and_zero_the_unconditional_model_to_the_bit(target, schedule):
    denoiser, (x, t, labels) = toy(target, schedule), batch()
    with_class = denoiser(x, t, labels=labels)
    without = denoiser(x, t, labels=torch.full_like(labels, NO_CLASS))
    assert same(guided(denoiser, 1.0)(x, t, labels=labels), with_class)
    assert same(guided(denoiser, 0.0)(x, t, labels=labels), without)
    # Also where both are computed, because another picture of the batch needs them.
    found = guided(denoiser, torch.tensor([0.0, 1, 7, 0, 1, -2]))(x, t, labels=labels)
    for part, plain, free in zip(found, with_class, without, strict=True):
        assert torch.equal(part[[1, 4]], plain[[1, 4]])
        assert torch.equal(part[[0, 3]], free[[0, 3]])
        assert not torch.allclose(part[2], plain[2])


@pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0, 10.0])
def test_one_batch_gives_what_two_calls_give(scale):
    denoiser, (x, t, labels) = toy(), batch()
    with_class = denoiser(x, t, labels=labels)
    without = denoiser(x, t, labels=torch.full_like(labels, NO_CLASS))
    denoiser.network.batches.clear()
    found = guided(denoiser, scale)(x, t, labels=labels)
    assert denoiser.network.batches == [2 * len(x)]
    for part, plain, free in zip(found, with_class, without, strict=True):
        torch.testing.assert_close(part, free + scale * (plain - free))


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0, 9.0])
def test_papers_that_write_one_plus_w_mean_our_scale_less_one(w):
    """Ho & Salimans 2022, equation 6: (1 + w) eps(x, c) - w eps(x)."""
    denoiser, (x, t, labels) = toy("noise"), batch()
    theirs = (1 + w) * denoiser(x, t, labels=labels).eps - w * denoiser(x, t, labels=torch.full_like(labels, -1)).eps
    torch.testing.assert_close(guided(denoiser, 1 + w)(x, t, labels=labels).eps, theirs)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
def test_guiding_picture_and_guiding_noise_agree(target, schedule):
    """The pair still adds up to x_t, so whichever a sampler reads, it is guided the same."""
    x, t, labels = batch()
    found = guided(toy(target, schedule), 4.0)(x, t, labels=labels)
    alpha, sigma = (expand(value, x) for value in SCHEDULES[schedule](t))
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x)


def test_every_sample_has_its_own_scale():
    denoiser, (x, t, labels) = toy(), batch()
    scales = torch.tensor([0.0, 1.0, 1.5, 3.0, -1.0, 20.0])
    together = guided(denoiser, scales)(x, t, labels=labels)
    for index, scale in enumerate(scales.tolist()):
        alone = guided(denoiser, scale)(*(value[index : index + 1] for value in (x, t)), labels=labels[index, None])
        for mine, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[index, None], theirs)


def test_other_conditions_reach_both_branches():
    seen = {}

    def denoiser(x, t, *, labels, style):
        seen.update(labels=labels, style=style, t=t)
        return Prediction(x, x)

    x, _, labels = batch(2)
    style = torch.tensor([[5.0], [6.0]])
    guided(denoiser, 2.0)(x, torch.tensor(0.5), labels=labels, style=style)
    assert seen["labels"].tolist() == [-1, -1, 0, 1]
    assert seen["style"].flatten().tolist() == [5.0, 6.0, 5.0, 6.0]
    assert seen["t"].tolist() == [0.5] * 4


# --- The interval --------------------------------------------------------------------------------


def test_the_interval_acts_inside_and_only_there():
    denoiser, (x, _, labels) = toy(), batch()
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.71, 1.0], dtype=torch.float64)
    found = guided(denoiser, 5.0, (0.3, 0.7))(x, t, labels=labels)
    strong, plain = guided(denoiser, 5.0)(x, t, labels=labels), denoiser(x, t, labels=labels)
    inside = torch.tensor([False, True, True, True, False, False])
    for mine, guided_part, plain_part in zip(found, strong, plain, strict=True):
        assert torch.equal(mine[inside], guided_part[inside])
        assert torch.equal(mine[~inside], plain_part[~inside])
        assert not torch.allclose(guided_part, plain_part)


def test_outside_the_interval_the_second_branch_is_not_paid_for(pipe):
    calls = []
    handle = pipe.network.register_forward_pre_hook(lambda network, given: calls.append(len(given[0])))
    pipe.sample(3, guidance_scale=4.0, steps=10, guidance_interval=(0.25, 0.75))
    handle.remove()
    # Asked at t = 1, 0.9 ... 0.1.
    assert calls == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]


def test_without_the_interval_samples_differ(pipe):
    arguments = {"num_samples": 2, "guidance_scale": 8.0, "steps": 5}
    everywhere = pipe.sample(**arguments)
    assert torch.equal(pipe.sample(**arguments, guidance_interval=(0.0, 1.0)), everywhere)
    assert not torch.allclose(pipe.sample(**arguments, guidance_interval=(0.5, 1.0)), everywhere, atol=1e-3)


@pytest.mark.parametrize("interval", [(0.7, 0.3), (0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0), (0.5,), None])
def test_what_is_no_interval_is_refused(pipe, interval):
    with pytest.raises(BookError, match=r"guidance interval is .*: give two times with 0 <= low < high <= 1") as info:
        pipe.sample(1, steps=2, guidance_interval=interval)
    assert "\n" not in str(info.value)


# --- Against the truth ---------------------------------------------------------------------------

MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.5], [0.0, -1.5]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def log_joint(x_t, t):
    """log p(x_t, c) of three Gaussians in the plane after noise: (B, 2) -> (B, 3)."""
    alpha, sigma = (value[:, None] for value in COSINE(t))
    variance = (alpha * STDS) ** 2 + sigma**2  # (B, 3)
    squares = (x_t[:, None] - alpha[..., None] * MEANS).square().sum(dim=2)
    return SHARES.log() - squares / (2 * variance) - (2 * torch.pi * variance).log()


def exact(x_t, t, *, labels):
    """The denoiser that no training can beat: E[x0 | x_t, c], and without a class E[x0 | x_t]."""
    alpha, sigma = (value[:, None] for value in COSINE(t))  # (B, 1)
    gain = alpha * STDS**2 / ((alpha * STDS) ** 2 + sigma**2)  # (B, 3)
    means = MEANS + gain[..., None] * (x_t[:, None] - alpha[..., None] * MEANS)  # E[x0 | x_t, c]: (B, 3, 2)
    belief = log_joint(x_t, t).softmax(dim=1)  # p(c | x_t)
    chosen = nn.functional.one_hot(labels.clamp(min=0), 3).double()
    weights = torch.where(labels[:, None] == NO_CLASS, belief, chosen)
    x0 = (weights[..., None] * means).sum(dim=1)
    return Prediction(x0, (x_t - alpha * x0) / sigma)


@pytest.mark.parametrize("w", [-0.5, 0.0, 0.5, 1.0, 3.0, 8.0])
def test_the_guided_score_is_that_of_the_sharpened_density(w):
    """-eps / sigma is the gradient of log p(x | c)^w p(x)^(1 - w), with densities written out and differentiated."""
    x_t = 1.5 * torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x_t.requires_grad_()
    t = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    labels = torch.arange(12) % 3
    joint = log_joint(x_t, t)
    marginal = joint.logsumexp(dim=1)
    conditional = joint.gather(1, labels[:, None])[:, 0] - SHARES[labels].log()
    (score,) = torch.autograd.grad((w * conditional + (1 - w) * marginal).sum(), x_t)
    found = guided(exact, w)(x_t.detach(), t, labels=labels)
    sigma = COSINE(t)[1][:, None]
    torch.testing.assert_close(-found.eps / sigma, score)


def test_the_guided_score_adds_that_of_a_classifier():
    """Bayes: w - 1 times the gradient of log p(c | x), on top of the conditional score."""
    x_t = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    t, labels = torch.linspace(0.1, 0.9, 6, dtype=torch.float64), torch.arange(6) % 3
    log_belief = log_joint(x_t, t).log_softmax(dim=1).gather(1, labels[:, None])
    (classifier,) = torch.autograd.grad(log_belief.sum(), x_t)
    sigma = COSINE(t)[1][:, None]
    plain = -exact(x_t.detach(), t, labels=labels).eps / sigma
    found = guided(exact, 4.0)(x_t.detach(), t, labels=labels)
    torch.testing.assert_close(-found.eps / sigma, plain + 3 * classifier)


def test_samples_leave_the_other_classes_as_the_scale_grows():
    """At w = 1 samples have the mean and spread of their class; above, they keep away from the others and vary less."""

    def draw(w):
        labels = torch.full((2000,), 1)
        noise = torch.randn(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        generator = torch.Generator().manual_seed(5)
        states = sample(
            guided(exact, w), noise, time_grid(50), ddim, schedule=COSINE, generator=generator, labels=labels
        )
        *_, state = states
        return state.x

    plain = draw(1.0)
    torch.testing.assert_close(plain.mean(dim=0), MEANS[1], rtol=0, atol=0.05)
    torch.testing.assert_close(plain.std(dim=0), STDS[[1, 1]], rtol=0.05, atol=0)
    strong = draw(3.0)
    assert strong[:, 0].mean() < plain[:, 0].mean() - 0.1  # class 0 lies to the right
    assert (strong.std(dim=0) < 0.8 * plain.std(dim=0)).all()
    belief = [
        log_joint(x, torch.full((2000,), 1e-3, dtype=torch.float64)).softmax(dim=1)[:, 1] for x in (plain, strong)
    ]
    assert (belief[1] > 0.5).double().mean() > (belief[0] > 0.5).double().mean()
    everything = draw(0.0)
    torch.testing.assert_close(everything.mean(dim=0), SHARES @ MEANS, rtol=0, atol=0.1)


# --- Pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_branches_are_one_call_of_the_network(pipe, sampler):
    """As many calls as the sampler makes evaluations, each of twice the batch."""
    calls = []
    handle = pipe.network.register_forward_pre_hook(lambda network, given: calls.append(len(given[0])))
    steps, expected = 4, evaluations(sampler, 4)
    for scale, size in ((3.0, 6), (1.0, 3), (0.0, 3), (torch.tensor([1.0, 0.0, 1.0]), 6)):
        calls.clear()
        pipe.sample(3, guidance_scale=scale, sampler=sampler, steps=steps)
        assert calls == [size] * expected
    handle.remove()


def test_scales_of_zero_and_one_are_the_plain_models(pipe):
    plain = [state.x for state in pipe.states(range(3), labels=[4, 5, 6], guidance_scale=1.0, steps=4)]
    expected = sample(
        pipe.denoiser,
        pipe.noise(3),
        time_grid(4),
        ddim,
        schedule=pipe.schedule,
        generator=torch.Generator(),
        labels=torch.tensor([4, 5, 6]),
    )
    assert all(torch.equal(mine, theirs.x) for mine, theirs in zip(plain, expected, strict=True))
    # Without a class it makes no difference which one is not looked at, nor how hard one pushes towards none.
    free = pipe.sample(3, labels=[4, 5, 6], guidance_scale=0.0, steps=4)
    assert torch.equal(pipe.sample(3, labels=NO_CLASS, guidance_scale=1.0, steps=4), free)
    torch.testing.assert_close(pipe.sample(3, labels=NO_CLASS, guidance_scale=7.0, steps=4), free, rtol=0, atol=1e-4)
    assert not torch.allclose(pipe.sample(3, labels=[4, 5, 6], guidance_scale=1.0, steps=4), free, atol=1e-2)


def test_samples_with_their_own_scales_are_those_of_single_runs(pipe):
    scales = [0.0, 1.0, 2.5, -1.0]
    together = pipe.sample(4, guidance_scale=torch.tensor(scales), steps=4, seed=2, batch_size=3)
    for index, scale in enumerate(scales):
        alone = pipe.sample(4, guidance_scale=scale, steps=4, seed=2)
        torch.testing.assert_close(together[index], alone[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {}, {"eta": 0.5}, {"sampler": "heun"}])
def test_pictures_are_the_same_whatever_the_batch(pipe, options):
    options = {"steps": 4, "seed": 3, "guidance_scale": 2.0, **options}
    whole = pipe.sample(7, **options)
    for batch_size in (1, 3):
        torch.testing.assert_close(pipe.sample(7, batch_size=batch_size, **options), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(pipe.sample(4, **options), whole[:4], rtol=0, atol=1e-4)
    *_, state = pipe.states([6, 2], **options)
    torch.testing.assert_close(pipe.to_images(state.x), whole[[6, 2]], rtol=0, atol=1e-4)


def test_nothing_is_remembered_between_calls(pipe):
    arguments = {"num_samples": 3, "labels": [1, 2, 3], "guidance_scale": 2.0, "steps": 3}
    first = pipe.sample(**arguments)
    pipe.sample(5, labels=9, guidance_scale=-3.0, steps=2, seed=8)
    assert torch.equal(pipe.sample(**arguments), first)
    # Two ways at once, step by step in turn.
    options = ({"labels": 1, "guidance_scale": 2.0}, {"labels": 7, "guidance_scale": 5.0})
    alone = [[state.x for state in pipe.states(range(2), steps=3, **each)] for each in options]
    in_turn = zip(*(pipe.states(range(2), steps=3, **each) for each in options), strict=True)
    for number, states in enumerate(in_turn):
        assert all(torch.equal(state.x, alone[which][number]) for which, state in enumerate(states))
    assert not torch.allclose(alone[0][-1], alone[1][-1], atol=1e-2)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [0, 1, 2, 0]),
        (2, [2, 2, 2, 2]),
        ([2, 0, -1, 1], [2, 0, -1, 1]),
        (range(-1, 3), [-1, 0, 1, 2]),
        ((0, 1, 0, 1), [0, 1, 0, 1]),
        (torch.tensor([1, 1, 2, 2]), [1, 1, 2, 2]),
        (torch.tensor([1, 1, 2, 2], dtype=torch.uint8), [1, 1, 2, 2]),
        (torch.tensor([1, -1, 2, 2], dtype=torch.int32), [1, -1, 2, 2]),
        (torch.tensor(1), [1, 1, 1, 1]),
        (NO_CLASS, [-1, -1, -1, -1]),
    ],
)
def test_labels_may_be_given_in_many_ways(autoencoder, labels, expected):
    pipe = random_class_pipeline(autoencoder, num_classes=3)
    found, scale = pipe.ask(range(4), labels)
    assert found.tolist() == expected
    assert (found.dtype, scale.dtype) == (torch.int64, torch.float64)
    assert scale.tolist() == [3.0] * 4  # the recipe's
    pictures = pipe.sample(4, labels=labels, steps=2)
    assert torch.equal(pictures, pipe.sample(4, labels=expected, guidance_scale=3.0, steps=2))
    for label in (-1, 0, 1, 2):
        asked = [index for index, each in enumerate(expected) if each == label]
        alone = pipe.sample(4, labels=label, steps=2)
        torch.testing.assert_close(alone[asked], pictures[asked], rtol=0, atol=1e-4)


def test_without_labels_sample_i_is_of_class_i_in_turn(autoencoder):
    pipe = random_class_pipeline(autoencoder, num_classes=3)
    assert pipe.num_classes == 3
    assert pipe.ask([7, 2, 3])[0].tolist() == [1, 2, 0]
    whole = pipe.sample(7, steps=2)
    torch.testing.assert_close(pipe.sample(7, steps=2, batch_size=2), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(pipe.sample(7, steps=2, labels=[0, 1, 2, 0, 1, 2, 0]), whole, rtol=0, atol=1e-4)
    assert not torch.allclose(pipe.sample(7, steps=2, labels=0)[1], whole[1], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": 10}, "labels from 10 to 10: 'ldm-.*' knows the classes 0 to 9, and -1 for none"),
        ({"labels": [0, -2, 3]}, "labels from -2 to 3"),
        ({"labels": torch.tensor([0, 255, 3], dtype=torch.uint8)}, "labels from 0 to 255"),
        ({"labels": [1, 2]}, r"labels of shape \(2,\) for 3 samples: give one, or one for each"),
        ({"labels": []}, "labels"),
        ({"labels": [[1, 2, 3]]}, r"labels of shape \(1, 3\) for 3 samples"),
        ({"labels": [[1], [2, 3], [4]]}, "give whole numbers"),
        ({"labels": 1.0}, "give whole numbers"),
        ({"labels": [1.0, 2.0, 3.0]}, "labels are of type torch.float32: give whole numbers"),
        ({"labels": torch.rand(3)}, "labels are of type torch.float32: give whole numbers"),
        ({"labels": True}, "labels are of type torch.bool: give whole numbers"),
        ({"labels": [True, False, True]}, "labels are of type torch.bool: give whole numbers"),
        ({"labels": "7"}, "the labels are '7': give whole numbers"),
        ({"labels": ["1", "2", "3"]}, "give whole numbers"),
        ({"labels": [None, 1, 2]}, "give whole numbers"),
        ({"labels": 10**30}, "give whole numbers"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan: give a finite number"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf: give a finite number"),
        ({"guidance_scale": [1.0, math.nan, 2.0]}, "give a finite number, or one for each picture"),
        ({"guidance_scale": "strong"}, "guidance_scale is 'strong': give a finite number"),
        ({"guidance_scale": [1.0, 2.0]}, "2 guidance scales for 3 samples: give one, or one for each"),
        ({"guidance_scale": torch.ones(3, 1)}, "give a finite number, or one for each picture"),
    ],
)
def test_bad_labels_and_scales_are_refused_in_one_line(pipe, arguments, words):
    with pytest.raises(BookError, match=words) as info:
        pipe.sample(3, steps=2, **arguments)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "arguments", [{"labels": 3}, {"guidance_scale": 1.0}, {"labels": [0, 1], "guidance_scale": 2.0}]
)
def test_a_model_without_classes_takes_neither_labels_nor_guidance(autoencoder, arguments):
    plain = random_latent_pipeline(autoencoder)
    assert plain.num_classes == 0
    assert plain.ask(range(2)) == (None, None)
    with pytest.raises(BookError, match="'ldm' knows no classes: leave out labels and guidance_scale"):
        plain.sample(2, steps=2, **arguments)
    with pytest.raises(BookError, match="knows no classes"):
        next(plain.states(range(2), steps=2, **arguments))


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_draws_what_the_model_drew(autoencoder, model, tmp_path):
    pipe = random_class_pipeline(autoencoder, model, num_classes=4, num_tokens=3, guidance_scale=1.75)
    checkpoint = {
        "recipe": pipe.recipe.to_dict(),
        "ema": pipe.network.state_dict(),
        "autoencoder": autoencoder.state_dict(),
    }
    path = save_checkpoint(tmp_path / "model.pt", checkpoint)
    loaded = diffusion_book.load(path, device="cpu", precision="fp32")
    assert loaded.recipe == pipe.recipe
    assert loaded.num_classes == 4
    assert loaded.ask(range(1))[1].tolist() == [1.75]
    torch.testing.assert_close(loaded.sample(5, steps=3), pipe.sample(5, steps=3), rtol=0, atol=1e-5)
    other = random_class_pipeline(autoencoder, model, num_classes=5, num_tokens=3)
    save_checkpoint(tmp_path / "other.pt", {**checkpoint, "ema": other.network.state_dict()})
    with pytest.raises(BookError, match=f"do not fit the network of '{model}'"):
        diffusion_book.load(tmp_path / "other.pt", device="cpu")


# --- Training: labels are hidden -----------------------------------------------------------------


def test_labels_as_bytes_can_be_hidden_too():
    found = drop_labels(torch.tensor([3, 7], dtype=torch.uint8), 1.0, torch.Generator())
    assert found.tolist() == [NO_CLASS, NO_CLASS]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_labels_are_hidden_as_asked(probability):
    number = 100_000
    labels = torch.arange(number) % 10
    found = drop_labels(labels, probability, torch.Generator().manual_seed(0))
    hidden = found == NO_CLASS
    # Within four standard errors, over all and within each class: nobody is hidden for what they are.
    for group in (slice(None), *(labels == label for label in range(10))):
        size = hidden[group].numel()
        assert abs(hidden[group].double().mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / size)
    assert torch.equal(found[~hidden], labels[~hidden])
    assert found.dtype == labels.dtype
    assert torch.equal(labels, torch.arange(number) % 10)  # what came in is as it was


def test_with_probability_one_all_are_hidden_and_with_none_nobody():
    labels = torch.arange(1000) % 10
    assert (drop_labels(labels, 1.0, torch.Generator().manual_seed(0)) == NO_CLASS).all()
    assert torch.equal(drop_labels(labels, 0.0, torch.Generator().manual_seed(0)), labels)


def test_the_generator_alone_decides_who_is_hidden():
    labels = torch.arange(1000) % 10
    one, two, other = (drop_labels(labels, 0.5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


class Spy(nn.Module):
    """Notes the labels that it is asked with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, *, labels):
        self.seen.append(labels)
        return x


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.99])
def test_labels_are_hidden_in_training_and_never_in_evaluation(probability):
    loss = loss_of_diffusion(DiffusionConfig(), ConditionConfig(unconditional_probability=probability))
    labels, spy = torch.arange(5000) % 10, Spy()
    for training in (True, False):
        loss(spy.train(training), torch.zeros(5000, 1, 1, 1), labels, torch.Generator().manual_seed(0))
    in_training, in_evaluation = spy.seen
    share = (in_training == NO_CLASS).double().mean()
    assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / 5000)
    assert torch.equal(in_evaluation, labels)


def test_a_model_without_classes_is_never_shown_a_label():
    given = {}

    class Plain(nn.Module):
        def forward(self, x, t, **condition):
            given.update(condition)
            return x

    loss_of_diffusion(DiffusionConfig())(Plain(), torch.zeros(4, 1, 1, 1), torch.arange(4), torch.Generator())
    assert given == {}
