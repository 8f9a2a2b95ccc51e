"""Couplings: what a flow makes of its noise, kept on disk; and trainings that begin with another flow."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from tiny import SMALL_UNET, random_autoencoder, wake

from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.models.pipelines import Pipeline, build, build_network
from diffusion_book.models.recipes import (
    ConditionConfig,
    DiffusionConfig,
    Recipe,
    ReflowConfig,
    TrainingConfig,
    recipe_from_dict,
)
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.system.errors import BookError
from diffusion_book.system.hashes import hash_of_tensors
from diffusion_book.training import couplings, datasets
from diffusion_book.training.couplings import CouplingDataset, draw_couplings
from diffusion_book.training.losses import loss_of_reflow
from diffusion_book.training.run import RunOptions, run_training

TINY = UNetConfig(base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=8)
CLASSES = dataclasses.replace(SMALL_UNET, concat_channels=4)
FLOW = DiffusionConfig("rectified", "velocity", sampling_steps=2)
REFLOW = ReflowConfig(couplings=16, sampler="heun", steps=2)


def random_flow(seed: int = 0, diffusion: DiffusionConfig = FLOW, network: UNetConfig = TINY) -> Pipeline:
    """A flow of pictures that has learned nothing."""
    torch.manual_seed(seed)
    recipe = Recipe("rf", TrainingConfig(dataset="digits"), network, diffusion)
    return build(recipe, wake(build_network(recipe)).state_dict(), device="cpu", precision="fp32")


def random_class_flow(seed: int = 0, num_classes: int = 10) -> Pipeline:
    """A flow of latents with classes that has learned nothing."""
    torch.manual_seed(seed)
    condition = ConditionConfig(num_classes=num_classes, guidance_scale=1.5)
    recipe = Recipe("latent-rf-class", TrainingConfig(dataset="digits"), CLASSES, FLOW, condition, is_latent=True)
    tensors = wake(build_network(recipe)).state_dict()
    return build(recipe, tensors, autoencoder=random_autoencoder(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def flow():
    return random_flow()


@pytest.fixture(scope="module")
def class_flow():
    return random_class_flow()


@pytest.fixture
def drawn(monkeypatch):
    """How many samples were drawn from a flow."""
    counted, walk = [], Pipeline.walk

    def counting(self, request):
        counted.append(len(request))
        return walk(self, request)

    monkeypatch.setattr(Pipeline, "walk", counting)
    return counted


# --- What they are -------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "heun"])
def test_they_are_the_samples_of_the_flow_and_their_noise(flow, sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(couplings, "BATCH_SIZE", 3)
    found = draw_couplings(flow, ReflowConfig(sampler=sampler, steps=3), 7, seed=5, cache=tmp_path)
    assert (found.name, len(found)) == ("digits", 7)
    assert found.samples.shape == found.noise.shape == (7, 1, 32, 32)
    assert torch.equal(found.noise, flow.noise(7, seed=5).half())
    *_, end = flow.states(range(7), sampler=sampler, steps=3, seed=5)
    torch.testing.assert_close(found.samples.float(), end.x, rtol=1e-3, atol=1e-3)
    pictures = flow.sample(7, sampler=sampler, steps=3, seed=5)
    torch.testing.assert_close(flow.to_images(found.samples.float()), pictures, rtol=0, atol=2e-3)
    assert pictures.std() > 0.05
    assert torch.equal(found.labels, torch.zeros(7, dtype=torch.int64))


def test_with_classes_the_labels_follow_and_the_guidance_is_in_the_samples(class_flow, tmp_path, monkeypatch):
    monkeypatch.setattr(couplings, "BATCH_SIZE", 5)
    found = {
        scale: draw_couplings(class_flow, ReflowConfig(steps=2, guidance_scale=scale), 12, 1, tmp_path / str(scale))
        for scale in (1.0, 4.0)
    }
    labels = torch.arange(12) % 10
    for scale, coupled in found.items():
        assert torch.equal(coupled.labels, labels)
        *_, end = class_flow.states(range(12), labels=labels, guidance_scale=scale, sampler="midpoint", steps=2, seed=1)
        torch.testing.assert_close(coupled.samples.float(), end.x, rtol=1e-3, atol=2e-3)  # latents, before the decoder
        pictures = class_flow.sample(12, guidance_scale=scale, sampler="midpoint", steps=2, seed=1)
        torch.testing.assert_close(class_flow.to_images(coupled.samples.float()), pictures, rtol=0, atol=2e-2)
    assert torch.equal(found[1.0].noise, found[4.0].noise)
    assert not torch.allclose(found[1.0].samples, found[4.0].samples, atol=0.05)


def test_only_the_picture_that_is_predicted_is_clipped(flow, class_flow):
    for state in flow.states(range(3), sampler="heun", steps=4):
        assert state.prediction is None or state.prediction.x0.abs().max() <= 1
        assert state.t < 0.5 or state.x.abs().max() > 1.5
    latents = [state.prediction.x0 for state in class_flow.states(range(20), steps=4) if state.prediction]
    assert max(x0.abs().max() for x0 in latents) > 1  # latents have no range to be clipped to


def test_a_batch_holds_both_side_by_side(flow, tmp_path):
    found = draw_couplings(flow, REFLOW, 6, cache=tmp_path)
    pairs, labels = found.batch(torch.tensor([4, 1]))
    assert (pairs.shape, pairs.dtype) == ((2, 2, 32, 32), torch.float32)
    assert torch.equal(pairs[:, :1], found.samples[[4, 1]].float())
    assert torch.equal(pairs[:, 1:], found.noise[[4, 1]].float())
    assert torch.equal(labels, found.labels[[4, 1]])
    moved = found.to("meta")
    assert {each.device.type for each in (moved.samples, moved.noise, moved.labels)} == {"meta"}
    assert (moved.name, len(moved)) == (found.name, len(found))


def test_the_loss_takes_them_apart_again():
    """Each x_t lies on the line from a sample to its own noise, and the target is their difference."""
    samples, noise = torch.randn(2, 5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    dataset = CouplingDataset("digits", samples, noise, torch.arange(5))
    pairs, labels = dataset.batch(torch.arange(5))
    seen = []

    def network(x, t):
        seen.append((x, t))
        return noise - samples

    network.training = True
    for time_sampling in ("uniform", "last"):
        loss = loss_of_reflow(dataclasses.replace(FLOW, time_sampling=time_sampling))
        found = loss(network, pairs, labels, torch.Generator().manual_seed(0))
        assert torch.equal(found, torch.zeros(5))
        x_t, t = seen[-1]
        torch.testing.assert_close(x_t, torch.lerp(samples, noise, t.reshape(5, 1, 1, 1)))
    assert torch.equal(t, torch.ones(5))


def test_what_is_no_flow_is_refused(tmp_path):
    pipe = random_flow(diffusion=DiffusionConfig("cosine", "v"))
    other = dataclasses.replace(pipe, recipe=dataclasses.replace(pipe.recipe, model="ddpm"))
    with pytest.raises(BookError, match=r"^reflow starts from a rectified flow, not from a 'ddpm': give one of those$"):
        draw_couplings(other, REFLOW, 4, cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": "ddpm"}, "unknown sampler 'ddpm': choose one of euler, midpoint, heun"),
        ({"couplings": 0}, "couplings is 0: it must be at least 1"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan: it must be a finite number"),
    ],
)
def test_what_cannot_be_followed_is_refused(options, said):
    with pytest.raises(BookError, match=f"^{said}$"):
        ReflowConfig(**options)


# --- The cache -----------------------------------------------------------------------------------


def equal(one: CouplingDataset, two: CouplingDataset) -> bool:
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("samples", "noise", "labels"))


def test_they_are_drawn_once(flow, tmp_path, drawn, capsys):
    first = draw_couplings(flow, REFLOW, 6, cache=tmp_path)
    again = draw_couplings(random_flow(), REFLOW, 6, cache=tmp_path)  # the same weights, as after a new start
    assert sum(drawn) == 6
    assert equal(first, again)
    assert "notice" not in capsys.readouterr().err
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        assert file.metadata()["sampler"] == "heun"


def test_each_flow_seed_and_number_has_its_own(flow, tmp_path, drawn, capsys):
    kinds = [(flow, 6, 0), (random_flow(1), 6, 0), (flow, 6, 1), (flow, 5, 0)]
    found = [draw_couplings(parent, REFLOW, number, seed, tmp_path) for parent, number, seed in kinds]
    assert len(list(tmp_path.iterdir())) == 4
    again = [draw_couplings(parent, REFLOW, number, seed, tmp_path) for parent, number, seed in kinds]
    assert sum(drawn) == 23
    assert all(map(equal, found, again))
    assert not torch.equal(found[0].samples, found[1].samples)
    assert torch.equal(found[0].noise, found[1].noise)
    assert not torch.equal(found[0].noise, found[2].noise)
    assert torch.equal(found[3].noise, found[0].noise[:5])
    assert "notice" not in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"steps": 3}, {"sampler": "euler"}, {"guidance_scale": 2.0}])
def test_others_than_were_asked_for_are_drawn_again_with_a_notice(flow, tmp_path, drawn, capsys, change):
    draw_couplings(flow, REFLOW, 4, cache=tmp_path)
    asked = dataclasses.replace(REFLOW, **change)
    new = draw_couplings(flow, asked, 4, cache=tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("notice: the cached couplings rf-4-0-")
    assert line.endswith("belong to other data; computing them again")
    assert equal(draw_couplings(flow, asked, 4, cache=tmp_path), new)
    assert sum(drawn) == 8  # the file was replaced


@pytest.mark.parametrize("keep", [0, 100, -50], ids=["emptied", "cut early", "cut late"])
def test_a_damaged_file_is_made_again_with_a_notice(flow, tmp_path, drawn, capsys, keep):
    good = draw_couplings(flow, REFLOW, 4, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    assert equal(draw_couplings(flow, REFLOW, 4, cache=tmp_path), good)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"notice: the cached couplings {path.name} are damaged")
    assert line.endswith("computing them again")
    assert sum(drawn) == 8
    draw_couplings(flow, REFLOW, 4, cache=tmp_path)
    assert sum(drawn) == 8


def test_a_flipped_bit_is_noticed(flow, tmp_path, drawn, capsys):
    good = draw_couplings(flow, REFLOW, 4, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert equal(draw_couplings(flow, REFLOW, 4, cache=tmp_path), good)
    assert "are damaged; computing them again" in capsys.readouterr().err
    assert sum(drawn) == 8


def test_by_default_they_lie_in_the_user_s_cache(flow, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    draw_couplings(flow, REFLOW, 4, seed=2)
    (path,) = (tmp_path / "diffusion-book" / "couplings").iterdir()
    assert path.name.startswith("rf-4-2-")


# --- Trainings that begin with another flow ------------------------------------------------------


@pytest.fixture
def training(tmp_path, monkeypatch):
    """Run a reflow on tiny settings in a cache of its own, and give its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "TEST_COUPLINGS", 8)

    def train(parent, recipe, resume=None):
        options = RunOptions(tmp_path / "experiments", resume, device="cpu", precision="fp32")
        return run_training(recipe, options, parent and parent.autoencoder, parent)

    return train


def reflow_recipe(model="rf-reflow", network=TINY, condition=None, **training) -> Recipe:
    return Recipe(
        model,
        TrainingConfig(**{"epochs": 1, "batch_size": 8, "warmup_steps": 0} | training),
        network,
        FLOW,
        condition,
        REFLOW,
        is_latent=model.startswith("latent"),
    )


def test_it_starts_with_the_weights_of_its_parent(flow, training):
    """With a learning rate of nothing, what comes out is what went in."""
    folder = training(flow, reflow_recipe(lr=1e-30, ema_decay=0.0))
    checkpoint = load_checkpoint(folder / "checkpoints" / "final.pt")
    assert checkpoint["step"] == 2
    assert checkpoint["parent"] == {"model": "rf", "sha256": hash_of_tensors(flow.network.state_dict())}
    for part in ("network", "ema"):
        for name, value in flow.network.state_dict().items():
            assert torch.equal(checkpoint[part][name], value), name
    recipe = recipe_from_dict(checkpoint["recipe"])
    assert recipe.training.dataset == "digits"  # the data set of its parent
    assert recipe.reflow == REFLOW


def test_what_it_learns_from_is_no_noise_that_samples_grow_from(flow, training, tmp_path):
    training(flow, reflow_recipe())
    files = sorted((tmp_path / "cache" / "diffusion-book" / "couplings").iterdir())
    couplings = []
    for path in files:
        with safe_open(path, "pt") as file:
            couplings.append(file.get_tensor("noise").float().flatten(1))
    assert len(couplings) == 2  # to train on, and to test with
    for seed in (0, 1):  # those of the cards, of the epochs' grids and of the final samples
        usual = flow.noise(30, seed).flatten(1)
        for noise in couplings:
            assert torch.cdist(usual, noise).min() > 1
    assert torch.cdist(*couplings).min() > 1


def test_it_learns_from_there(flow, training):
    before = {name: value.clone() for name, value in flow.network.state_dict().items()}
    folder = training(flow, reflow_recipe(epochs=6, lr=3e-3))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [record["train_loss"] for record in records if record["event"] == "epoch"]
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in flow.network.state_dict().items())  # a copy learned


def test_a_training_is_continued_with_the_same_parent_alone(flow, training):
    folder = training(flow, reflow_recipe())
    longer = dataclasses.replace(reflow_recipe(epochs=2), training=TrainingConfig("digits", 2, batch_size=8))
    with pytest.raises(BookError, match=r"^this training began with another 'rf': give that one as --reflow-from$"):
        training(random_flow(1), longer, resume=folder)
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == 2
    assert training(flow, longer, resume=folder) == folder
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == 4


def test_without_a_parent_or_with_another_network_it_does_not_begin(flow, class_flow, training, tmp_path):
    with pytest.raises(BookError, match=r"^'rf-reflow' learns from a trained flow: give one$"):
        training(None, reflow_recipe())
    wider = dataclasses.replace(TINY, base_channels=16)
    condition = class_flow.recipe.condition
    latent = "latent-rf-class-one-step"
    for parent, recipe in (
        (flow, reflow_recipe(network=wider)),
        (class_flow, reflow_recipe()),
        (class_flow, reflow_recipe(network=CLASSES)),  # pictures do not come from latents, nor classes from none
        (class_flow, reflow_recipe("rf-one-step", CLASSES, condition)),
        (class_flow, reflow_recipe(latent, CLASSES, dataclasses.replace(condition, num_classes=12))),
        (flow, reflow_recipe(latent, CLASSES, condition)),
    ):
        with pytest.raises(BookError, match=rf"^'{recipe.model}' starts with the weights of '{parent.recipe.model}'"):
            training(parent, recipe)
    assert not (tmp_path / "experiments").exists()


def test_classes_hide_nothing_when_a_model_of_one_step_learns(class_flow, training):
    condition = ConditionConfig(unconditional_probability=0.0, guidance_scale=1.0)  # how often labels hide may differ
    folder = training(class_flow, reflow_recipe("latent-rf-class-one-step", CLASSES, condition))
    checkpoint = load_checkpoint(folder / "checkpoints" / "final.pt")
    assert checkpoint["parent"]["model"] == "latent-rf-class"
    assert "autoencoder" in checkpoint


def test_a_data_set_that_is_not_its_parent_s_is_refused(flow, training):
    recipe = reflow_recipe()
    other = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, dataset="mnist"))
    with pytest.raises(BookError, match="learns from a flow of digits, not of mnist: leave out --dataset"):
        training(flow, other)
