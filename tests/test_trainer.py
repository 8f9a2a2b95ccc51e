"""Training: it learns, it repeats itself to the last digit, and it stops before it breaks anything."""

import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion_book.data import Dataset
from diffusion_book.models.recipes import RECIPES, DiffusionConfig, Recipe, TrainingConfig, recipe_from_dict, recipe_of
from diffusion_book.networks.classifier import build_classifier
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.errors import BookError
from diffusion_book.training.ema import ExponentialMovingAverage
from diffusion_book.training.losses import loss_of_classifier, loss_of_diffusion, random_affine
from diffusion_book.training.trainer import NonFiniteLoss, Trainer, learning_rate, seed_of

TINY = UNetConfig(base_channels=8, channel_multipliers=(1, 2), layers_per_block=1, attention_levels=(), patch_size=4)


def digits(number: int) -> Dataset:
    """Bright rectangles, each of its own place and size: as good as digits for these tests."""
    images = torch.zeros(number, 1, 28, 28, dtype=torch.uint8)
    for index in range(number):
        images[index, 0, 3 + index % 9 : 12 + index % 11, 5 + index % 7 : 9 + index % 13] = 255
    return Dataset("digits", images, torch.arange(number) % 10)


def trainer(number=32, network=TINY, diffusion=None, **options) -> Trainer:
    torch.manual_seed(0)
    config = TrainingConfig(**{"epochs": 3, "batch_size": 8, "warmup_steps": 2, "lr": 3e-3} | options)
    loss = loss_of_diffusion(diffusion or DiffusionConfig())
    return Trainer(UNet(network), loss, digits(number), config, device="cpu", precision="fp32")


def numbers(reports) -> list[tuple]:
    return [report[:5] for report in reports]  # all but the seconds


def weights_of(network: nn.Module) -> dict:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- Learning rate and average -------------------------------------------------------------------


def test_the_learning_rate_is_a_trapezoid():
    config = TrainingConfig(lr=2.0, warmup_steps=4, cooldown=0.25)
    rates = [learning_rate(config, step, step / 100) for step in range(100)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[4:76] == [2.0] * 72
    assert rates[80] == pytest.approx(2.0 * 0.20 / 0.25)
    assert rates[99] == pytest.approx(2.0 * 0.01 / 0.25)
    assert learning_rate(config, 100, 1.0) == 0.0
    falling = [before - after for before, after in itertools.pairwise(rates[75:])]
    assert falling == pytest.approx([falling[0]] * len(falling))
    flat = TrainingConfig(lr=2.0, warmup_steps=0, cooldown=0.0)
    assert {learning_rate(flat, step, step / 10) for step in range(10)} == {2.0}


def test_the_average_follows_its_formula():
    """e_n = d_n e_{n-1} + (1 - d_n) w_n with d_n = min(decay, (1 + n) / (10 + n)), unrolled by hand."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 5.0)
    average = ExponentialMovingAverage(network, decay=0.5)
    expected = 5.0
    for updates in range(30):
        nn.init.constant_(network.weight, math.sin(updates))
        average.update(network)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * math.sin(updates)
        assert average.network.weight.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (1 + 7) / (10 + 7) < 0.5 < (1 + 9) / (10 + 9)  # the warm-up ended on the way


def test_the_first_update_takes_most_of_the_new_weights():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = ExponentialMovingAverage(network, decay=0.9999)
    nn.init.constant_(network.weight, 1.0)
    average.update(network)
    assert average.network.weight.item() == pytest.approx(0.9)


def test_the_average_is_a_copy_in_eval_mode_with_the_buffers_of_the_original():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    average = ExponentialMovingAverage(network)
    network.train()(torch.randn(16, 2))
    average.update(network)
    assert not average.network.training
    assert network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert torch.equal(average.network[1].running_mean, network[1].running_mean)
    assert average.network[1].num_batches_tracked == 1
    assert average.network[0].weight.data_ptr() != network[0].weight.data_ptr()


# --- Learning ------------------------------------------------------------------------------------


def test_it_learns_eight_pictures_by_heart():
    """The loss of eight pictures falls to less than half in 150 steps, for the network and for its average."""
    network = UNetConfig(
        base_channels=32, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=4
    )
    overfit = trainer(8, network, epochs=150, lr=5e-3, ema_decay=0.9)
    before = overfit.evaluate(overfit.dataset)
    losses = [report.loss for report in overfit.steps()]
    assert before > 0.5
    assert overfit.evaluate(overfit.dataset) < before / 2
    assert sum(losses[-20:]) < sum(losses[:5]) / 5 * 20 / 2


def test_a_classifier_learns_too():
    torch.manual_seed(0)
    config = TrainingConfig(epochs=30, batch_size=10, warmup_steps=2, lr=2e-3, ema_decay=0.9)
    dataset = digits(10)
    learner = Trainer(
        build_classifier("classifier"), loss_of_classifier, dataset, config, device="cpu", precision="fp32"
    )
    before = learner.evaluate(dataset)
    list(learner.steps())
    assert before == pytest.approx(math.log(10), abs=0.3)
    assert learner.evaluate(dataset) < before / 3


def test_reports_count_steps_and_epochs():
    reports = list(trainer(20, epochs=3, batch_size=8).steps())
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == [1, 1, 2, 2, 3, 3]
    seconds = [report.seconds for report in reports]
    assert seconds == sorted(seconds)
    assert all(report.gradient_norm > 0 for report in reports)
    assert reports[0].lr == pytest.approx(3e-3 / 2)


def test_each_epoch_sees_each_picture_once_in_a_new_order():
    seen = []

    def loss(network, images, labels, generator):
        seen.append(labels.clone())
        return network(images, torch.zeros(len(images))).square().mean(dim=(1, 2, 3))

    config = TrainingConfig(epochs=2, batch_size=5)
    list(Trainer(UNet(TINY), loss, digits(10), config, device="cpu", precision="fp32").steps())
    epochs = torch.cat(seen[:2]), torch.cat(seen[2:])
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_the_gradient_is_clipped():
    """With plain steps in the place of AdamW, no step is longer than lr times the clip."""
    clipped = trainer(gradient_clip=0.01, warmup_steps=0, cooldown=0.0, lr=1.0)
    clipped.optimizer = torch.optim.SGD(clipped.network.parameters(), lr=1.0)
    before = weights_of(clipped.network)
    report = next(clipped.steps())
    moved = [(value - before[name]).square().sum() for name, value in clipped.network.state_dict().items()]
    assert report.gradient_norm > 0.01  # what is reported is the norm before the clip
    assert sum(moved).sqrt().item() == pytest.approx(0.01, rel=1e-2)


def test_time_ends_a_training_too(monkeypatch):
    """A clock that says one second a step: ten seconds are ten steps, the last three of them cooling down."""
    ticks = itertools.count()
    monkeypatch.setattr("diffusion_book.training.trainer.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    hurried = trainer(epochs=1000, lr=1.0, cooldown=0.3, warmup_steps=0)
    hurried.max_seconds = 10.0
    reports = list(hurried.steps())
    assert [report.seconds for report in reports] == [step + 1 for step in range(10)]
    assert [report.lr for report in reports] == pytest.approx([1.0] * 8 + [2 / 3, 1 / 3])
    assert hurried.progress >= 1
    assert list(hurried.steps()) == []


# --- Repeatable ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_seed_gives_the_same_numbers(dropout):
    network = UNetConfig(**TINY.__dict__ | {"dropout": dropout})

    def run(seed, noise):
        made = trainer(network=network, seed=seed)
        torch.manual_seed(noise)  # the global generator is not what decides
        return numbers(made.steps()), weights_of(made.ema.network)

    (first, weights), (second, others) = run(1, 11), run(1, 22)
    assert first == second
    assert same(weights, others)
    assert run(2, 11)[0] != first


def test_dropout_changes_the_loss():
    """So that the test above says something: with dropout the losses are other ones."""
    without, with_it = (
        [report.loss for report in trainer(network=UNetConfig(**TINY.__dict__ | {"dropout": dropout})).steps()]
        for dropout in (0.0, 0.5)
    )
    assert without != with_it


def test_training_leaves_the_global_generator_as_it_was():
    made = trainer(network=UNetConfig(**TINY.__dict__ | {"dropout": 0.3}))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    next(made.steps())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_training_gives_the_numbers_of_an_uninterrupted_one(stop, tmp_path):
    network = UNetConfig(**TINY.__dict__ | {"dropout": 0.2})
    whole = trainer(network=network)
    expected = numbers(whole.steps())
    assert len(expected) == 12

    first = trainer(network=network)
    part = numbers(itertools.islice(first.steps(), stop))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    second = Trainer(UNet(network), first.loss, digits(32), first.config, device="cpu", precision="fp32")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert part + numbers(second.steps()) == expected
    assert same(weights_of(second.network), weights_of(whole.network))
    assert same(weights_of(second.ema.network), weights_of(whole.ema.network))
    assert second.ema.updates == 12


def test_state_has_plain_names_and_contiguous_tensors():
    """No prefix of torch.compile or of the average, and no memory layout of this machine."""
    made = trainer()
    next(made.steps())
    state = made.state_dict()
    assert state["network"].keys() == state["ema"].keys() == UNet(TINY).state_dict().keys()
    assert all(value.is_contiguous() for value in (state["network"] | state["ema"]).values())


def test_evaluation_is_repeatable_and_changes_nothing():
    made = trainer()
    list(itertools.islice(made.steps(), 3))
    before, generator = weights_of(made.network), torch.get_rng_state()
    first, second = made.evaluate(digits(20)), made.evaluate(digits(20))
    assert first == second
    assert same(before, weights_of(made.network))
    assert torch.equal(generator, torch.get_rng_state())
    assert made.step == 3


def test_seeds_are_mixed_well():
    assert len({seed_of(a, b, c) for a in range(4) for b in range(4) for c in range(64)}) == 4 * 4 * 64
    assert seed_of(1, 2) != seed_of(2, 1)
    assert 0 <= seed_of(0) < 2**63


# --- What goes wrong -----------------------------------------------------------------------------


def tensors_in(state) -> list[torch.Tensor]:
    """All tensors of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in inside for tensor in tensors_in(part)]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_before_it_spoils_the_network(broken):
    made = trainer()
    healthy = made.loss

    def loss(network, images, labels, generator):
        value = healthy(network, images, labels, generator)
        if made.step < 3:
            return value
        if broken == "loss":
            return value * math.nan
        return value + (0.0 * sum(parameter.sum() for parameter in network.parameters())).sqrt()  # 0 with slope inf

    made.loss = loss
    steps = made.steps()
    list(itertools.islice(steps, 3))
    network, average = weights_of(made.network), weights_of(made.ema.network)
    moments = [value.clone() for value in tensors_in(made.optimizer.state_dict())]
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 4 with learning rate 0\.003") as info:
        next(steps)
    assert "\n" not in str(info.value)
    assert "lower --lr" in str(info.value)
    assert same(network, weights_of(made.network))
    assert same(average, weights_of(made.ema.network))
    after = tensors_in(made.optimizer.state_dict())
    assert moments
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert made.step == 3
    assert all(parameter.grad is None for parameter in made.network.parameters())


@pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"])
def test_a_batch_that_does_not_fit_names_the_option(message):
    made = trainer()

    def loss(*_):
        raise RuntimeError(message)

    made.loss = loss
    with pytest.raises(BookError, match=r"^out of memory: lower --batch_size$"):
        next(made.steps())


def test_bugs_are_not_taken_for_a_lack_of_memory():
    made = trainer()

    def loss(*_):
        raise RuntimeError("shapes do not match")

    made.loss = loss
    with pytest.raises(RuntimeError, match="shapes do not match"):
        next(made.steps())


def test_bad_settings_are_refused():
    with pytest.raises(BookError, match="more than the data set's 4: lower --batch_size"):
        trainer(4)
    for name, value in (
        ("epochs", 0),
        ("batch_size", 0),
        ("sample_every", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("gradient_clip", 0.0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("seed", -1),
        ("cooldown", 1.0),
        ("ema_decay", 1.0),
    ):
        with pytest.raises(BookError, match=name):
            TrainingConfig(**{name: value})
    for options, words in (
        ({"schedule": "square"}, "cosine, linear"),
        ({"target": "score"}, "noise, image, v"),
        ({"time_sampling": "beta"}, "uniform, logit_normal"),
        ({"timesteps": 0}, "timesteps is 0"),
        ({"min_snr_gamma": -1.0}, "min_snr_gamma is -1"),
    ):
        with pytest.raises(BookError, match=words):
            DiffusionConfig(**options)
    with pytest.raises(BookError, match="max_minutes is 0"):
        Trainer(
            UNet(TINY), loss_of_diffusion(DiffusionConfig()), digits(8), TrainingConfig(batch_size=8), max_minutes=0
        )


# --- Recipes and losses --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    recipe = recipe_of(name)
    assert recipe.model == name
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_what_is_no_recipe_is_refused():
    for values in ({}, {"model": "ddpm", "training": {"speed": 3}}, {"model": "ddpm", "training": None}):
        with pytest.raises(BookError, match="not a recipe of this version"):
            recipe_from_dict(values)
    with pytest.raises(BookError, match="unknown model 'gan'"):
        recipe_of("gan")


@pytest.mark.parametrize("name", ["min_snr_gamma", "target", "schedule", "time_sampling", "timesteps"])
def test_every_setting_of_the_diffusion_reaches_the_loss(name):
    other = {
        "min_snr_gamma": 5.0,
        "target": "noise",
        "schedule": "linear",
        "time_sampling": "logit_normal",
        "timesteps": 7,
    }
    images, labels = digits(8).batch(torch.arange(8))

    def loss(config):
        generator = torch.Generator().manual_seed(0)
        return loss_of_diffusion(config)(lambda x, t: 0.5 * x, images, labels, generator)

    assert torch.equal(loss(DiffusionConfig()), loss(DiffusionConfig()))
    assert not torch.allclose(loss(DiffusionConfig()), loss(DiffusionConfig(**{name: other[name]})))


def test_random_affine_moves_each_picture_its_own_way_and_keeps_the_background():
    images, _ = digits(1).batch(torch.zeros(6, dtype=torch.long))
    moved = random_affine(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= -1 - 1e-5
    assert moved.max() <= 1 + 1e-5
    torch.testing.assert_close(moved[..., 0, :], torch.full_like(moved[..., 0, :], -1.0))
    assert len({picture.numpy().tobytes() for picture in moved}) == 6
    still = random_affine(images, torch.Generator().manual_seed(0), degrees=0, shift=0, scale=0, shear=0)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)


def test_a_recipe_is_all_that_a_training_needs():
    """Recipe -> network, loss and settings: the same network size as the configuration says."""
    recipe = Recipe("ddpm", TrainingConfig(epochs=1, batch_size=8), TINY, DiffusionConfig(target="noise"))
    again = recipe_from_dict(recipe.to_dict())
    assert UNet(again.network).state_dict().keys() == UNet(TINY).state_dict().keys()
