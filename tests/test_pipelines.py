"""Pipelines: the same seed gives the same pictures, however they are asked for."""

import re
import sys
from collections import Counter

import pytest
import torch
from tiny import random_autoencoder, random_class_pipeline
from torch import nn

import diffusion_book
from diffusion_book.models import pipelines, weights
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import load_checkpoint, save_checkpoint
from diffusion_book.models.pipelines import Pipeline, build
from diffusion_book.models.recipes import DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.errors import BookError

TINY = UNetConfig(base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=4)


def random_pipeline(seed: int = 0, **diffusion) -> Pipeline:
    """A tiny network with random weights in every layer: its pictures are rubbish, and different ones."""
    torch.manual_seed(seed)
    recipe = Recipe("ddpm", TrainingConfig(), TINY, DiffusionConfig(**diffusion))
    network = UNet(TINY)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return build(recipe, network.state_dict(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return random_pipeline()


SAMPLERS = pytest.mark.parametrize(
    "options",
    [
        {"sampler": "ddpm"},
        {"sampler": "ddim"},
        {"sampler": "ddim", "eta": 0.5},
        {"sampler": "midpoint"},
        {"sampler": "heun"},
        {"sampler": "dpm++"},
    ],
)


@SAMPLERS
def test_the_same_seed_gives_the_same_pictures_whatever_the_batch(pipe, options):
    whole = pipe.sample(7, steps=5, seed=3, **options)
    for batch_size in (1, 2, 3, 100):
        torch.testing.assert_close(
            pipe.sample(7, steps=5, seed=3, batch_size=batch_size, **options), whole, rtol=0, atol=1e-4
        )
    torch.testing.assert_close(pipe.sample(4, steps=5, seed=3, **options), whole[:4], rtol=0, atol=1e-4)
    torch.testing.assert_close(pipe.sample(4, steps=5, seed=3, first=3, **options), whole[3:], rtol=0, atol=1e-4)
    assert not torch.allclose(pipe.sample(7, steps=5, seed=4, **options), whole, atol=1e-2)
    assert not torch.allclose(whole[:1], whole[1:2], atol=1e-2)


@SAMPLERS
def test_states_lead_to_the_same_pictures_one_by_one(pipe, options):
    whole = pipe.sample(4, steps=3, seed=1, **options)
    *_, state = pipe.states([2, 0], steps=3, seed=1, **options)
    torch.testing.assert_close(pipe.to_images(state.x), whole[[2, 0]], rtol=0, atol=1e-4)


def test_pictures_are_as_promised(pipe):
    pictures = pipe.sample(3, steps=2)
    assert pictures.shape == (3, 1, 28, 28)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    assert pictures.device.type == "cpu"
    assert not pictures.requires_grad


def test_given_noise_is_where_it_starts(pipe):
    noise = pipe.noise(5, seed=2)
    assert noise.shape == (5, 1, 32, 32)
    expected = pipe.sample(5, steps=4, seed=2)
    # With eta = 0 the seed decides nothing but the noise; 99 is another one.
    found = pipe.sample(5, steps=4, seed=99, noise=noise, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(pipe.sample(5, steps=4, noise=-noise), expected, atol=1e-2)
    with pytest.raises(BookError, match="the noise has shape"):
        pipe.sample(5, steps=4, noise=noise[..., :28, :28])
    with pytest.raises(BookError, match="the noise has shape"):
        pipe.sample(5, steps=4, noise=noise[:3])


def test_the_callback_counts_to_the_end_over_all_batches(pipe):
    calls = []
    pipe.sample(5, steps=3, batch_size=2, callback=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 9) for done in range(1, 10)]


def test_states_begin_with_the_noise_and_show_what_the_network_thought(pipe):
    states = list(pipe.states(range(3), steps=4, sampler="ddpm", seed=5))
    assert [state.t for state in states] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(states[0].x, pipe.noise(3, seed=5))
    assert states[0].prediction is None
    for state in states[1:]:
        assert state.prediction.x0.shape == (3, 1, 32, 32)
        assert state.prediction.x0.abs().max() <= 1
    assert states[1].x.abs().max() > 1  # the state itself is not clipped
    torch.testing.assert_close(states[-1].x, states[-1].prediction.x0)


def test_the_recipe_decides_schedule_target_and_grid():
    pictures = [
        random_pipeline(**options).sample(2, steps=5)
        for options in ({}, {"schedule": "linear"}, {"target": "noise"}, {"target": "image"})
    ]
    for index, one in enumerate(pictures):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in pictures[:index])
    with pytest.raises(BookError, match="must be 1 to 10"):
        random_pipeline(timesteps=10).sample(1, steps=11)


@pytest.mark.parametrize(("sampling_steps", "timesteps", "expected"), [(1, 1000, 1), (7, 1000, 7), (50, 10, 10)])
def test_the_recipe_decides_the_steps_where_none_are_asked_for(sampling_steps, timesteps, expected):
    pipe = random_pipeline(sampling_steps=sampling_steps, timesteps=timesteps)
    assert torch.equal(pipe.sample(2), pipe.sample(2, steps=expected))
    assert len(list(pipe.states(range(2)))) == expected + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_samples": 0}, "0 samples: give at least 1"),
        ({"num_samples": -1}, "-1 samples: give at least 1"),
        ({"batch_size": 0}, "batch_size is 0: it must be 1 or more"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 1001}, "1001 steps"),
        ({"sampler": "runge"}, r"unknown sampler 'runge': choose one of ddpm, ddim, euler, midpoint, heun, dpm\+\+$"),
        ({"eta": -0.5}, "eta is -0.5"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"first": -1}, "first is -1"),
        ({"num_samples": 2.5}, "num_samples is 2.5: give a whole number"),
        ({"num_samples": "3"}, "num_samples is '3': give a whole number"),
        ({"steps": 2.5}, "steps is 2.5: give a whole number"),
        ({"steps": True}, "steps is True: give a whole number"),
        ({"seed": None}, "seed is None: give a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5: give a whole number"),
        ({"eta": "a"}, "eta is 'a'"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"guidance_interval": (0.7, 0.3)}, "the guidance interval is"),
        ({"noise": torch.zeros(3, 1, 32, 32)}, r"noise has shape \(3, 1, 32, 32\): it must be \(2, 1, 32, 32\)"),
        ({"noise": torch.full((2, 1, 32, 32), torch.nan)}, "noise holds numbers that are not finite"),
        ({"labels": [1]}, "knows no classes"),
        ({"guidance_scale": 3.0}, "knows no classes"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(pipe, arguments, words):
    with pytest.raises(BookError, match=words) as info:
        pipe.sample(**{"num_samples": 2, "steps": 2} | arguments)
    assert "\n" not in str(info.value)


def checks_in(call) -> Counter:
    """How often each function of the package that checks something ran: by its name, and by what it was asked about."""
    found = Counter()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and "diffusion_book" in code.co_filename:
            about = frame.f_locals[code.co_varnames[0]] if code.co_name in ("whole", "choose", "positive") else ""
            if about or re.search(r"check|Pipeline.ask$|request$|time_grid|labels_of|scales_of", code.co_qualname):
                found[f"{code.co_qualname} {about}"] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_a_request_is_checked_once_however_many_batches_and_steps_it_takes():
    pipe = random_class_pipeline(random_autoencoder())
    found = checks_in(lambda: pipe.sample(250, labels=3, guidance_scale=3, steps=10))
    assert {"Pipeline.ask ", "make_request ", "labels_of ", "scales_of ", "time_grid ", "whole steps"} <= set(found)
    assert set(found.values()) == {1}, found
    request = pipe.ask(250, labels=3, guidance_scale=3, steps=10)
    assert not checks_in(lambda: pipe.draw(request))


def test_what_is_asked_can_be_drawn_in_parts():
    pipe = random_class_pipeline(random_autoencoder())
    whole = pipe.sample(7, guidance_scale=2.0, steps=4, eta=0.5, seed=3, noise=pipe.noise(7, seed=1))
    request = pipe.ask(7, guidance_scale=2.0, steps=4, eta=0.5, seed=3, noise=pipe.noise(7, seed=1), batch_size=3)
    assert [len(batch) for batch in request.batches()] == [3, 3, 1]
    assert request.steps == 4
    torch.testing.assert_close(pipe.draw(request), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(pipe.draw(request.pick([5, 2])), whole[[5, 2]], rtol=0, atol=1e-4)


def test_noise_of_more_digits_is_the_same_noise(pipe):
    noise = pipe.noise(2)
    assert torch.equal(pipe.sample(2, steps=2, noise=noise.double()), pipe.sample(2, steps=2, noise=noise))


def test_nothing_guides_a_model_without_classes(pipe):
    with pytest.raises(BookError, match=r"knows no classes: there is nothing to guide it to$"):
        pipe.guided(3.0)


def test_a_pipeline_is_frozen_and_in_eval_mode(pipe):
    assert not pipe.network.training
    assert not any(parameter.requires_grad for parameter in pipe.network.parameters())


# --- Loading -------------------------------------------------------------------------------------


def checkpoint_of(pipe: Pipeline, **changes) -> dict:
    state = pipe.network.state_dict()
    return {"recipe": pipe.recipe.to_dict(), "network": state, "ema": state} | changes


def test_a_checkpoint_draws_what_the_network_drew(pipe, tmp_path):
    path = save_checkpoint(tmp_path / "model.pt", checkpoint_of(pipe))
    loaded = diffusion_book.load(path, device="cpu", precision="fp32")
    assert loaded.recipe == pipe.recipe
    torch.testing.assert_close(loaded.sample(3, steps=3), pipe.sample(3, steps=3), rtol=0, atol=1e-5)


def test_a_checkpoint_is_loaded_with_its_averaged_weights(pipe, tmp_path):
    other = {name: torch.zeros_like(value) for name, value in pipe.network.state_dict().items()}
    path = save_checkpoint(tmp_path / "model.pt", checkpoint_of(pipe, network=other))
    torch.testing.assert_close(
        diffusion_book.load(str(path), device="cpu", precision="fp32").sample(2, steps=2),
        pipe.sample(2, steps=2),
        rtol=0,
        atol=1e-5,
    )


class Code:
    """Something whose unpickling would run code."""

    def __reduce__(self):
        return print, ("this must never be printed",)


def test_bad_checkpoints_are_refused_in_one_line(pipe, tmp_path, capsys):
    good = checkpoint_of(pipe)
    whole = save_checkpoint(tmp_path / "whole.pt", good)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-200])
    text = tmp_path / "text.pt"
    text.write_text("not a checkpoint")
    empty = tmp_path / "empty.pt"
    empty.touch()
    code = save_checkpoint(tmp_path / "code.pt", good | {"extra": Code()})
    foreign = tmp_path / "foreign.pt"
    torch.save(pipe.network.state_dict(), foreign)
    listed = tmp_path / "list.pt"
    torch.save([1, 2], listed)
    later = tmp_path / "later.pt"
    torch.save({"format": 99, **good}, later)
    smaller = save_checkpoint(
        tmp_path / "smaller.pt",
        good | {"ema": {name: value for name, value in good["ema"].items() if "middle" not in name}},
    )
    for path, words in (
        (tmp_path / "missing.pt", "there is no checkpoint"),
        (cut, "damaged"),
        (text, "damaged"),
        (empty, "damaged"),
        (code, "can run code"),
        (foreign, "not a checkpoint of this version"),
        (listed, "not a checkpoint of this version"),
        (later, "not a checkpoint of this version"),
        (smaller, "do not fit the network of 'ddpm'"),
    ):
        with pytest.raises(BookError, match=words) as info:
            pipelines.load(path, device="cpu")
        assert "\n" not in str(info.value), path
    assert "this must never be printed" not in capsys.readouterr().out
    with pytest.raises(BookError, match="holds a 'ddpm', not a 'vae'"):
        load_checkpoint(whole, "vae")


def test_unknown_models_and_devices_are_refused(pipe, tmp_path):
    with pytest.raises(BookError, match="unknown model 'gan'"):
        diffusion_book.load("gan")
    path = save_checkpoint(tmp_path / "model.pt", checkpoint_of(pipe))
    with pytest.raises(BookError, match="unknown device 'gpu'"):
        diffusion_book.load(path, device="gpu")
    with pytest.raises(BookError, match="device 'cuda:77' is not there"):
        diffusion_book.load(path, device="cuda:77")
    with pytest.raises(BookError, match="choose one of auto, fp32, bf16"):
        diffusion_book.load(path, device="cpu", precision="fp8")
    with pytest.raises(BookError, match="draws no pictures"):
        build(Recipe("classifier"), {}, device="cpu")


def test_every_shipped_model_is_listed_loads_and_draws():
    assert "ddpm" in diffusion_book.list_models()
    assert set(diffusion_book.list_models()) <= set(weights.shipped())
    assert "classifier" not in diffusion_book.list_models()
    for name in diffusion_book.list_models():
        pipe = diffusion_book.load(name, device="cpu")
        assert pipe.card["recipe"]["model"] == name
        if isinstance(pipe, Autoencoder):
            latents = torch.randn(2, *pipe.latent_shape, generator=torch.Generator().manual_seed(0))
            assert pipe.decode(latents).std() > 0.1
            continue
        pictures = pipe.sample(2, steps=2, seed=1)
        torch.testing.assert_close(pipe.sample(2, steps=2, seed=1, batch_size=1), pictures, rtol=0, atol=0.05)


def test_the_shipped_ddpm_draws_digits():
    """Thirty pictures in ten steps: the second classifier is sure of most, and most of ten digits appear."""
    from diffusion_book.evaluation.features import logits

    pictures = diffusion_book.load("ddpm", device="cpu").sample(30, steps=10, seed=0)
    certain = logits(pictures).softmax(dim=1)
    assert (certain.max(dim=1).values > 0.9).float().mean() > 0.5
    assert len(certain.argmax(dim=1).unique()) >= 7


def test_noise_that_is_given_changes_nothing_when_it_is_what_the_seed_draws():
    pipe = diffusion_book.load("ddpm", device="cpu", precision="fp32")
    drawn = pipe.sample(3, steps=4, eta=1.0, seed=5)
    given = pipe.sample(3, steps=4, eta=1.0, seed=5, noise=pipe.noise(3, seed=5))
    assert torch.equal(drawn, given)
