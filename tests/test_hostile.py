"""Whatever the library is given, it answers rightly, or refuses in one line; it never fails in another way.

Each property is tried on a few inputs always, and on many with `pytest -m slow`.
"""

import json
import math
import operator
import string

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import (
    SMALL_UNET,
    part_of_the_reference,
    pictures,
    random_autoencoder,
    random_class_pipeline,
    random_latent_pipeline,
    wake,
)

from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.evaluation import distances, features, measures, projection, sweep
from diffusion_book.interpolation import slerp
from diffusion_book.models import pipelines, weights
from diffusion_book.models.checkpoints import load_checkpoint, save_checkpoint
from diffusion_book.models.pipelines import build, build_network
from diffusion_book.models.recipes import DiffusionConfig, Recipe, ReflowConfig, TrainingConfig
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.objective import TIME_SAMPLINGS, diffusion_loss
from diffusion_book.samplers import SAMPLERS, sample, time_grid
from diffusion_book.schedules import SCHEDULES, posterior
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS
from diffusion_book.training import couplings
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import NonFiniteLoss, Trainer
from diffusion_book.viz import animation, grids, scrubber, strips

FORMS = pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)], ids=["few", "many"])


def tries(number: int, times: int):
    """So many examples, the same ones in the short form at every run."""
    return settings(
        max_examples=number * times,
        deadline=None,
        derandomize=times == 1,
        phases=[Phase.generate] if times == 1 else [Phase.generate, Phase.shrink],
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def outcome(call, *arguments, **named):
    """What a call gives, and None; or None, and the one line with which it refuses."""
    try:
        return call(*arguments, **named), None
    except BookError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None, said


def answer(call, *arguments, **named):
    """What a call gives, or None where it refuses in one line."""
    return outcome(call, *arguments, **named)[0]


# --- What it is given ----------------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
DTYPES += [torch.complex64]
SHAPES = [(), (0,), (3,), (0, 1, 28, 28), (2, 28, 28), (3, 1, 28, 28), (3, 1, 32, 32), (1, 3, 28, 28), (2, 2, 4, 4)]
SHAPES += [(3, 1, 5, 7), (2, 1, 0, 4), (4, 2, 1, 1)]
FILLINGS = ["uniform", "normal", "zero", "nan", "inf", "huge"]


def filled(shape, dtype=torch.float32, filling="uniform", seed=0) -> torch.Tensor:
    """A tensor of a kind; "uniform" lies in [-1, 1], and "huge" is finite."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        "uniform": lambda: torch.rand(shape, generator=generator) * 2 - 1,
        "normal": lambda: 3 * torch.randn(shape, generator=generator),
        "zero": lambda: torch.zeros(shape),
        "nan": lambda: torch.full(shape, math.nan),
        "inf": lambda: torch.full(shape, math.inf),
        "huge": lambda: torch.full(shape, 3e38),
    }[filling]()
    return values.nan_to_num().clamp(-1e9, 1e9).to(dtype) if not dtype.is_floating_point else values.to(dtype)


tensors = st.builds(filled, st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(FILLINGS))
numbers = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**40]),
    st.floats(),
    st.sampled_from([True, None, "", "3", "nan", "é", (), [1], {}, 1j, np.int64(2), np.float32(0.5), math.pi]),
    tensors,
)


# --- The mathematics -----------------------------------------------------------------------------

inside = st.floats(0.0, 1.0)
some_times = st.lists(inside, min_size=1, max_size=6)


@FORMS
def test_schedules_and_posteriors_are_finite_at_all_times(times):
    @tries(40, times)
    @given(some_times, st.sampled_from(list(SCHEDULES)), st.sampled_from([torch.float32, torch.float64]))
    def check(values, name, dtype):
        t = torch.tensor(sorted(values), dtype=dtype)
        alpha, sigma = SCHEDULES[name](t)
        assert alpha.dtype == sigma.dtype == dtype
        for value in (alpha, sigma):
            assert value.shape == t.shape
            assert ((value >= 0) & (value <= 1 + 1e-6)).all()
        assert (alpha.diff() <= 1e-6).all(), "less and less of the picture"
        assert (sigma.diff() >= -1e-6).all(), "more and more noise"
        late = t.clamp(min=1e-3)
        for value in posterior(SCHEDULES[name], late, late / 2):
            assert value.isfinite().all()
            assert (value >= 0).all()

    check()


@FORMS
def test_denoisers_and_losses_are_finite(times):
    @tries(40, times)
    @given(
        st.sampled_from(list(SCHEDULES)),
        st.sampled_from(list(TARGETS)),
        st.sampled_from(list(TIME_SAMPLINGS)),
        st.integers(1, 5),
        st.integers(1, 2000),
        st.sampled_from([None, 0.1, 5.0]),
        st.integers(0, 2**40),
    )
    def check(schedule, target, sampling, batch, timesteps, gamma, seed):
        found = answer(DiffusionConfig, schedule, target, timesteps, sampling, gamma or 0.0)
        assume(found is not None)  # pairs that the library refuses to train
        schedule, target = SCHEDULES[schedule], TARGETS[target]
        x0 = filled((batch, 1, 4, 4), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        t = TIME_SAMPLINGS[sampling](batch, generator)
        assert t.shape == (batch,)
        assert ((t > 0) & (t <= 1)).all()
        loss = diffusion_loss(
            lambda x, t: 0.5 * x,
            x0,
            schedule=schedule,
            target=target,
            generator=generator,
            time_sampling=TIME_SAMPLINGS[sampling],
            timesteps=timesteps,
            min_snr_gamma=gamma,
        )
        assert loss.shape == (batch,)
        assert loss.isfinite().all()
        assert (loss >= 0).all()
        denoiser = clipped(Denoiser(lambda x, t: 0.5 * x, schedule, target), schedule)
        t = t.clamp(min=1e-3)
        prediction = denoiser(x0, t)
        alpha, sigma = (value.float()[:, None, None, None] for value in schedule(t))
        assert prediction.x0.abs().max() <= 1
        torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x0, rtol=1e-3, atol=1e-3)

    check()


@FORMS
def test_every_sampler_walks_every_grid_to_a_finite_end(times):
    @tries(40, times)
    @given(
        st.sampled_from(list(SAMPLERS)),
        st.sampled_from(list(SCHEDULES)),
        st.integers(1, 1000),
        st.integers(1, 12),
        st.floats(0, 1),
    )
    def check(sampler, schedule, timesteps, steps, eta):
        grid = answer(time_grid, steps, timesteps)
        assert (grid is None) == (steps > timesteps)
        assume(grid is not None)
        assert len(grid) == steps + 1
        assert (grid[0], grid[-1]) == (1, 0)
        assert (grid.diff() < 0).all()
        schedule = SCHEDULES[schedule]
        denoiser = clipped(Denoiser(lambda x, t: 0.3 * x, schedule, TARGETS["v"]), schedule)
        start = filled((2, 1, 3, 3), filling="normal")
        generator = torch.Generator().manual_seed(0)
        states = list(sample(denoiser, start, grid, SAMPLERS[sampler], schedule=schedule, generator=generator, eta=eta))
        assert [state.t for state in states] == grid.tolist()
        assert all(state.x.shape == start.shape and state.x.isfinite().all() for state in states)

    check()


@FORMS
def test_what_is_no_number_of_steps_is_refused(times):
    @tries(60, times)
    @given(numbers)
    def check(steps):
        grid = answer(time_grid, steps)
        assert grid is None or len(grid) == steps + 1

    check()


@FORMS
def test_guidance_takes_finite_scales_and_real_intervals_alone(pipes, times):
    @tries(60, times)
    @given(numbers, st.one_of(st.tuples(numbers, numbers), numbers))
    def check(scale, interval):
        found = answer(pipes[2].ask, 3, guidance_scale=scale, guidance_interval=interval, steps=2)
        assert found is None or (found.guidance_scale.isfinite().all() and found.guidance_scale.shape == (3,))
        answer(pipes[2].guided, scale, interval)

    check()


@FORMS
def test_interpolation_stays_between_its_ends(times):
    @tries(60, times)
    @given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(FILLINGS), tensors, numbers)
    def check(shape, dtype, filling, other, weight):
        first = filled(shape, dtype, filling)
        for second in (filled(shape, dtype, filling, seed=1), other):
            for share in (weight, 0.0, 0.5):
                found = answer(slerp, first, second, share)
                assert found is None or found.shape == first.shape
        if dtype.is_floating_point and filling in ("uniform", "normal") and len(shape) > 1:
            middle = slerp(first, filled(shape, dtype, filling, seed=1), 0.5)
            assert middle.dtype == dtype
            assert middle.isfinite().all()

    check()


# --- Models --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder():
    return random_autoencoder()


@pytest.fixture(scope="module")
def pipes(autoencoder):
    """A model of pictures, one of latents, and two that know classes; none has learned anything."""
    network = UNetConfig(
        base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=8
    )
    recipe = Recipe("ddpm", TrainingConfig(dataset="digits"), network, DiffusionConfig(timesteps=20))
    torch.manual_seed(0)
    tensors = wake(build_network(recipe)).state_dict()
    return [
        build(recipe, tensors, device="cpu", precision="fp32"),
        random_latent_pipeline(autoencoder, timesteps=20),
        random_class_pipeline(autoencoder, timesteps=20),
        random_class_pipeline(autoencoder, "ldm-cross-attention", timesteps=20),
    ]


few = st.one_of(st.integers(-1, 4), numbers.filter(lambda value: not isinstance(value, int) or not 4 < value < 2**31))
right = {
    "labels": st.one_of(st.none(), st.integers(-1, 9), st.lists(st.integers(-1, 9), min_size=3, max_size=3)),
    "guidance_scale": st.one_of(st.none(), st.floats(-5, 20)),
    "sampler": st.sampled_from(list(SAMPLERS)),
    "steps": st.integers(1, 4),
    "eta": st.floats(0, 1),
    "seed": st.integers(0, 2**70),
    "guidance_interval": st.tuples(st.floats(0, 0.4), st.floats(0.5, 1)),
    "batch_size": st.integers(1, 4),
}
wrong = {**dict.fromkeys(right, numbers), "noise": numbers, "num_samples": few}


@FORMS
def test_samples_are_pictures_or_a_line(pipes, times):
    @tries(120, times)
    @given(st.integers(0, 3), st.data())
    def check(which, draw):
        asked = {"num_samples": 3, "steps": 2}
        asked |= draw.draw(st.fixed_dictionaries({}, optional=right))
        if not pipes[which].num_classes:
            asked = {name: value for name, value in asked.items() if name not in ("labels", "guidance_scale")}
        names = draw.draw(st.lists(st.sampled_from(list(wrong)), max_size=2))
        asked |= {name: draw.draw(wrong[name]) for name in names}
        found = answer(pipes[which].sample, **asked)
        if not names and abs(asked.get("guidance_scale") or 0.0) <= 20:
            assert found is not None, asked
        if found is not None:
            assert found.shape == (asked["num_samples"], 1, 28, 28)
            assert (found.dtype, found.device.type) == (torch.float32, "cpu")
            assert found.abs().max() <= 1  # false for NaN

    check()


@FORMS
def test_noise_and_states_are_finite_or_a_line(pipes, times):
    @tries(40, times)
    @given(st.integers(0, 3), few, numbers, st.lists(st.one_of(st.integers(-2, 2**70), numbers), max_size=3))
    def check(which, number, seed, indices):
        found = answer(pipes[which].noise, number, seed)
        assert found is None or (found.shape == (number, *pipes[which].shape) and found.isfinite().all())
        states = answer(lambda: list(pipes[which].states(indices, steps=2, seed=3)))
        assert states is None or (len(states) == 3 and states[-1].x.shape == (len(indices), *pipes[which].shape))

    check()


@FORMS
def test_autoencoders_take_pictures_and_latents_alone(autoencoder, times):
    @tries(80, times)
    @given(st.one_of(tensors, numbers))
    def check(given):
        latents = answer(autoencoder.encode, given)
        if latents is not None:
            assert latents.shape == (len(given), *autoencoder.latent_shape)
            assert latents.isfinite().all()
            restored = autoencoder.reconstruct(given)
            assert restored.shape == given.shape
            assert restored.abs().max() <= 1
        images = answer(autoencoder.decode, given)
        if images is not None:
            assert images.shape == (len(given), 1, 32, 32)
            assert images.isfinite().all()

    check()


@FORMS
def test_weights_that_are_not_finite_draw_nothing(pipes, autoencoder, times):
    @tries(20, times)
    @given(st.integers(0, 3), st.data(), st.sampled_from([math.nan, math.inf, -math.inf, 3e38]))
    def check(which, draw, value):
        pipe = pipes[which]
        state = {name: tensor.clone() for name, tensor in pipe.network.state_dict().items()}
        name = draw.draw(st.sampled_from(sorted(state)))
        state[name].fill_(value)
        broken = build(pipe.recipe, state, autoencoder=pipe.autoencoder, device="cpu", precision="fp32")
        found = answer(broken.sample, 2, steps=2)
        assert found is None or found.abs().max() <= 1

    check()


@FORMS
def test_loading_takes_names_and_paths_alone(checkpoint, times):
    @tries(40, times)
    @given(st.one_of(numbers, st.text(max_size=300)), numbers, numbers)
    def check(name, device, precision):
        assert answer(pipelines.load, name) is None
        answer(pipelines.load, checkpoint, device=device)
        assert answer(pipelines.load, checkpoint, device="cpu", precision=precision) is None

    check()


# --- Data ----------------------------------------------------------------------------------------


@FORMS
def test_data_sets_are_whole_or_a_line(monkeypatch, tmp_path, times):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for kind in data.TORCHVISION_NAMES.values():  # nothing listens there: whatever is asked for, nothing comes
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "mirrors", ["http://127.0.0.1:9/"])
    roots = st.one_of(st.none(), st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=300))

    @tries(40, times)
    @given(
        st.one_of(st.sampled_from(data.NAMES), st.text(max_size=12), numbers),
        st.one_of(st.sampled_from(["train", "test"]), st.text(max_size=12), numbers),
        roots,
    )
    def check(name, split, root):
        found = answer(data.load, name, split, root=tmp_path / "data" if root is None else tmp_path / root)
        if found is not None:
            assert found.images.dtype == torch.uint8
            assert found.images.shape == (len(found.labels), 1, 28, 28)
            images, labels = found.batch(torch.arange(3))
            assert images.shape == (3, 1, 32, 32)
            assert images.abs().max() <= 1
            assert ((labels >= 0) & (labels < len(found.class_names))).all()

    check()


@pytest.mark.parametrize("kind", ["a short file", "a changed file", "a flipped bit"])
def test_mnist_that_is_not_mnist_is_named_with_its_hash(tmp_path, kind):
    """Files of MNIST's own size must be MNIST, to the last bit."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    header = {"images-idx3": (0x803, 10_000, 28, 28), "labels-idx1": (0x801, 10_000)}
    for split in ("train", "t10k"):
        for part, values in header.items():
            body = bytes(10_000 * (784 if "images" in part else 1))
            content = b"".join(value.to_bytes(4, "big") for value in values) + body
            (folder / f"{split}-{part}-ubyte").write_bytes(content)
    images = folder / "t10k-images-idx3-ubyte"
    if kind == "a flipped bit":
        real = data.data_folder() / "MNIST" / "raw"
        if not images.parent.is_dir() or not (real / images.name).is_file():
            pytest.skip("no MNIST here")
        for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            (folder / name).write_bytes((real / name).read_bytes())
        assert len(data.load("mnist", "test", root=tmp_path)) == 10_000
        content = bytearray(images.read_bytes())
        content[5_000_000] ^= 1
        images.write_bytes(content)
    elif kind == "a short file":
        images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(BookError, match="is damaged") as info:
        data.load("mnist", "test", root=tmp_path)
    assert "\n" not in str(info.value)
    if kind != "a short file":
        assert str(images) in str(info.value)
        assert data.HASHES[images.name][:12] in str(info.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_are_not_finite_are_named(value):
    moments = torch.zeros(8, 4, 4, 4)
    moments[5, 0] = value
    config = TrainingConfig(batch_size=8, epochs=1)
    network = wake(build_network(Recipe("ldm", config, SMALL_UNET, DiffusionConfig(), is_latent=True)))
    dataset = LatentDataset("digits", moments, torch.zeros(8, dtype=torch.int64))
    trainer = Trainer(
        network, loss_of_latent_diffusion(DiffusionConfig()), dataset, config, device="cpu", precision="fp32"
    )
    before = [parameter.clone() for parameter in network.parameters()]
    with pytest.raises(NonFiniteLoss, match=r"^the data hold numbers that are not finite"):
        next(trainer.steps())
    assert all(map(torch.equal, before, network.parameters()))


def test_couplings_that_are_not_finite_are_not_kept(tmp_path):
    network = UNetConfig(
        base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=8
    )
    recipe = Recipe("rf", TrainingConfig(dataset="digits"), network, DiffusionConfig("rectified", "velocity"))
    made = wake(build_network(recipe))
    next(made.parameters()).data.fill_(math.nan)
    flow = build(recipe, made.state_dict(), device="cpu", precision="fp32")
    with pytest.raises(BookError, match="the samples of 'rf' hold numbers that are not finite"):
        couplings.draw_couplings(flow, ReflowConfig(4, steps=1), 4, cache=tmp_path)
    assert not list(tmp_path.iterdir())


# --- Measures and pictures -----------------------------------------------------------------------


@FORMS
def test_distances_are_finite_or_a_line(times):
    shapes = st.tuples(st.integers(0, 9), st.integers(1, 4))

    @tries(60, times)
    @given(shapes, shapes, st.sampled_from(DTYPES), st.sampled_from([*FILLINGS, *["normal"] * 6]), tensors, numbers)
    def check(one, two, dtype, filling, other, count):
        a, b = filled(one, dtype, filling), filled((two[0], one[1]), dtype, "normal", seed=1)
        for first, second in ((a, b), (a, other), (other, b)):
            for call in (distances.frechet_distance, distances.kernel_distance):
                found = answer(call, first, second)
                assert found is None or (isinstance(found, float) and (filling == "huge" or math.isfinite(found)))
            for pair in (answer(distances.precision_recall, first, second),):
                assert pair is None or all(0 <= share <= 1 for share in pair)
            near = answer(distances.nearest, first, second)
            assert near is None or near[0].shape == near[1].shape == (len(first),)
        laid_out = answer(projection.principal_components, a, count)
        assert laid_out is None or laid_out[0].shape == (len(a), count)
        answer(sweep.spread, a, torch.arange(len(b)) % 2)

    check()


@FORMS
def test_measures_judge_pictures_or_say_why_not(times):
    with part_of_the_reference():

        @tries(40, times)
        @given(st.one_of(tensors, numbers), st.one_of(st.none(), st.integers(0, 20)), numbers)
        def check(images, labels, number):
            labels = None if labels is None else torch.zeros(labels, dtype=torch.int64)
            found = answer(measures.measure, images, labels)
            assert found is None or math.isfinite(found.cfid)
            for look in (features.features, features.logits):
                seen = answer(look, images)
                assert seen is None or seen.isfinite().all()
            order = answer(measures.real_indices, number)
            assert order is None or len(order) == number
            drawn = answer(measures.random_labels, number)
            assert drawn is None or (len(drawn) == number and ((drawn >= 0) & (drawn < 10)).all())

        check()
        found = measures.measure(filled((12, 1, 28, 28)), torch.arange(12) % 10)
        assert math.isfinite(found.cfid)
        assert answer(measures.measure, filled((12, 1, 28, 28)), torch.zeros(1)) is None
        assert answer(measures.measure, filled((12, 1, 28, 28), filling="nan")) is None


@FORMS
def test_pictures_are_laid_out_or_a_line(tmp_path, times):
    @tries(60, times)
    @given(tensors, st.one_of(st.integers(1, 5), numbers), st.one_of(st.integers(0, 4), numbers), numbers)
    def check(images, columns, padding, scale):
        picture = answer(grids.grid, images, columns, padding)
        assert picture is None or (picture.dtype == torch.uint8 and picture.ndim == 2)
        for draw in (
            lambda: grids.show_grid(images, columns, scale=scale),
            lambda: grids.show_rows({"a": images, "b": images}, scale=scale),
            lambda: strips.show_strip([1.0, 0.0], images[None], scale=scale) if images.ndim == 4 else None,
            lambda: animation.animate(images, padding, scale),
            lambda: scrubber.scrubber(images, start=padding, scale=scale),
            lambda: grids.save_grid(images, tmp_path / "grid.png", columns),
        ):
            answer(draw)
        assert not [path for path in tmp_path.iterdir() if path.name != "grid.png"]

    check()


# --- Files ---------------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def same(one, two) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.fixture(scope="module")
def checkpoint(pipes, tmp_path_factory):
    """A checkpoint of the model of pictures."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    state = pipes[0].network.state_dict()
    return save_checkpoint(path, {"recipe": pipes[0].recipe.to_dict(), "ema": state, "step": 3, "list": [1.5, None]})


@FORMS
def test_a_damaged_checkpoint_is_named_and_never_used(checkpoint, tmp_path, times):
    content, whole = checkpoint.read_bytes(), load_checkpoint(checkpoint)
    path = save_checkpoint(tmp_path / "damaged.pt", whole)
    assert same(load_checkpoint(path), whole)  # what was read can be written again

    def check_file(changed):
        path.write_bytes(changed)
        found, said = outcome(load_checkpoint, path)
        if said is None:  # the bit was of the archive's, not of what is in it, or of the name of the hash
            assert same(whole, {key: value for key, value in found.items() if key in whole})
        else:
            assert str(path) in said

    @tries(100, times)
    @given(st.integers(0, 8 * len(content) - 1))
    def check_bits(bit):
        check_file(flipped(content, bit))

    @tries(30, times)
    @given(st.integers(0, len(content) - 1))
    def check_lengths(length):
        path.write_bytes(content[:length])
        with pytest.raises(BookError, match="is damaged"):
            load_checkpoint(path)

    check_bits()
    check_lengths()
    tensor = whole["ema"]["time.0.weight"].numpy().tobytes()
    path.write_bytes(flipped(content, 8 * content.index(tensor) + 77))
    with pytest.raises(BookError, match=r"is damaged \(hash [0-9a-f]{12}, it says [0-9a-f]{12}\)"):
        load_checkpoint(path)


@FORMS
def test_damaged_weights_and_cards_are_named_and_never_used(tmp_path, times):
    path = weights.write_weights("model", {"w": filled((20, 3))}, {"recipe": {"model": "ddpm"}}, tmp_path)
    card = tmp_path / "model.json"
    whole = {path: path.read_bytes(), card: card.read_bytes()}
    expected = weights.read_weights("model", tmp_path)

    @tries(80, times)
    @given(st.sampled_from([path, card]), st.data())
    def check(file, draw):
        content = whole[file]
        if draw.draw(st.booleans()):
            changed = flipped(content, draw.draw(st.integers(0, 8 * len(content) - 1)))
        else:
            changed = content[: draw.draw(st.integers(0, len(content) - 1))]
        for each, its in whole.items():
            each.write_bytes(its)
        file.write_bytes(changed)
        found, said = outcome(weights.read_weights, "model", tmp_path)
        if said is None:
            assert file == card
            assert same(found, expected)
        else:
            assert str(tmp_path) in said

    check()


@FORMS
def test_a_damaged_cache_is_made_again(autoencoder, tmp_path, times, capsys):
    dataset = pictures(6)
    good = encode_dataset(autoencoder, dataset, tmp_path).moments
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()

    @tries(60, times)
    @given(st.integers(0, 8 * len(content) - 1))
    def check(bit):
        path.write_bytes(flipped(content, bit))
        capsys.readouterr()
        assert torch.equal(encode_dataset(autoencoder, dataset, tmp_path).moments, good)
        said = capsys.readouterr().err.splitlines()
        assert len(said) <= 1
        if said:
            assert path.name in said[0]
            assert torch.equal(encode_dataset(autoencoder, dataset, tmp_path).moments, good)
            assert not capsys.readouterr().err  # the file is good again

    check()


@FORMS
def test_foreign_recipes_are_refused_in_one_line(checkpoint, tmp_path, times):
    whole = load_checkpoint(checkpoint)
    recipe = whole["recipe"]
    places = [(key,) for key in recipe] + [
        (key, name) for key, part in recipe.items() if isinstance(part, dict) for name in part
    ]
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.just([]),
        st.just([1]),
        st.just({}),
    )

    @tries(50, times)
    @given(st.sampled_from(places), plain)
    def check(place, value):
        changed = json.loads(json.dumps(recipe))
        if len(place) == 1:
            changed[place[0]] = value
        else:
            changed[place[0]][place[1]] = value
        path = save_checkpoint(tmp_path / "foreign.pt", {**whole, "recipe": changed})
        pipe = answer(pipelines.load, path, device="cpu", precision="fp32")
        if pipe is not None:
            found = answer(pipe.sample, 1, steps=1)
            assert found is None or found.abs().max() <= 1

    check()
    for key in ("ema", "recipe"):
        for value in (None, 3, "x", [], {}, {"a": 1}, {1: torch.zeros(2)}, torch.zeros(3)):
            path = save_checkpoint(tmp_path / "foreign.pt", {**whole, key: value})
            assert answer(pipelines.load, path, device="cpu") is None


class Code:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "recipe", "ema", "list", "key"])
def test_code_in_a_checkpoint_is_never_run(checkpoint, tmp_path, capsys, place, zipped):
    code, whole = Code(tmp_path / "ran"), load_checkpoint(checkpoint)
    contents = {
        "alone": code,
        "recipe": {**whole, "recipe": {**whole["recipe"], "model": code}},
        "ema": {**whole, "ema": {**whole["ema"], "extra": code}},
        "list": {**whole, "list": [code]},
        "key": {**whole, operator.attrgetter("x"): 1},
    }
    path = tmp_path / "code.pt"
    torch.save(contents[place], path, _use_new_zipfile_serialization=zipped)
    asks = [
        ["generate", "ddpm", "--checkpoint", path],
        ["evaluate", "ddpm", "--checkpoint", path],
        ["train", "ddpm", "--resume", path],
        ["train", "ldm", "--vae", path],
        ["train", "rf", "--reflow-from", path],
        ["visualize", "latent-space", "--checkpoint", path],
        ["visualize", "distribution", "--checkpoint", path],
        ["visualize", "guidance", "--concat_checkpoint", path],
        ["diagnose", "ldm-concat", "--unet-checkpoint", path],
        ["pretrain", "ddpm", "--from-checkpoint", path],
    ]
    for ask in asks:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in ask])
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert str(path) in line
    with pytest.raises(BookError):
        pipelines.load(path)
    assert not (tmp_path / "ran").exists()


# --- Commands ------------------------------------------------------------------------------------

WORDS = (
    "0 -1 1 2 3 1.5 nan inf -inf 1e999 1e-400 None True auto cpu bf16 fp32 meta cuda:99 99999999999999999999 é -- - 0x10 1_0 "
    "ddim ddpm euler dpm++ digits cosine linear rectified noise image v velocity"
)
hostile_words = st.one_of(
    st.sampled_from([*WORDS.split(), "", " ", "a b", "\n", "x" * 300]), st.text(string.printable, max_size=5)
)
OPTIONS = {
    "generate ddpm": "num_samples nrow seed format mode ddim_steps eta device precision batch_size vae",
    "generate ldm-concat": "num_samples nrow seed class_label guidance_scale sampler sampling_steps eta precision batch_size",
    "evaluate ddpm": "sampler steps eta seed device precision batch_size",
    "diagnose ddpm": "class_label dataset num_samples sampling_steps ddpm_steps num_pictures seed device precision",
    "visualize distribution": "mode ddim_steps num_generated num_real seed device precision",
    "train ddpm": "dataset epochs lr batch_size warmup_steps cooldown weight_decay gradient_clip ema_decay sample_every seed "
    "base_channels channel_multipliers layers_per_block attention_levels patch_size dropout schedule target timesteps "
    "time_sampling min_snr_gamma sampling_steps max_minutes device precision name resume",
}


@pytest.fixture(scope="module")
def class_checkpoint(pipes, autoencoder, tmp_path_factory):
    """A checkpoint of the model of latents with classes."""
    path = tmp_path_factory.mktemp("checkpoint") / "classes.pt"
    state = pipes[2].network.state_dict()
    return save_checkpoint(
        path, {"recipe": pipes[2].recipe.to_dict(), "ema": state, "autoencoder": autoencoder.state_dict()}
    )


def ended(capsys, words) -> int:
    """Run a command; gives its exit code, and makes sure that it has said why in one line where that is 2."""
    capsys.readouterr()
    try:
        main(words)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert code in (0, 2), (words, code)
    assert len(errors) == (code == 2), (words, said)
    assert all(line.startswith(("error: ", "notice: ")) for line in said), said
    return code


@FORMS
@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_takes_what_it_can_or_refuses_in_one_line(
    command, checkpoint, class_checkpoint, tmp_path, capsys, monkeypatch, times
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fixed = ["--output-dir", str(tmp_path / "out")]
    if command.startswith("train"):
        small = "--dataset digits --base_channels 8 --channel_multipliers 1 --attention_levels 0 --layers_per_block 1"
        fixed += [*small.split(), "--patch_size", "8", "--timesteps", "4", "--epochs", "1", "--max-minutes", "0.001"]
    else:
        fixed += ["--checkpoint", str(class_checkpoint if "concat" in command else checkpoint)]
        steps = "sampling" if "concat" in command or command.startswith("diagnose") else "ddim"
        fixed += ["--steps" if command.startswith("evaluate") else f"--{steps}_steps", "2"]
    if command.startswith("generate"):
        fixed += ["--num_samples", "2"]
    if command.startswith("evaluate"):
        fixed += ["--num_samples", "5"]  # fewer than it measures: the long work is tried elsewhere
    if command.startswith("visualize"):
        fixed += ["--num_generated", "5"]
    if command.startswith("diagnose"):
        fixed += ["--num_samples", "5"]
    options = OPTIONS[command].split()
    ends = []

    @tries(18, times)
    @given(st.lists(st.tuples(st.sampled_from(options), hostile_words), min_size=1, max_size=2))
    def check(asked):
        words = [word for name, value in asked for word in (f"--{name}", value)]
        if command == "generate ddpm" and "99999999999999999999" not in words:
            assume("--num_samples" not in words or words[words.index("--num_samples") + 1] != "1000")
        ends.append(ended(capsys, [*command.split(), *fixed, *words]))

    check()
    assert 2 in ends
    if command.split()[0] in ("generate", "train"):
        assert ended(capsys, [*command.split(), *fixed]) == 0


@FORMS
def test_words_that_are_no_command_are_refused(capsys, times):
    @tries(60, times)
    @given(
        st.sampled_from(
            ["train", "generate", "evaluate", "visualize", "diagnose", "pretrain", "bench", "doctor", "no"]
        ),
        st.lists(st.one_of(hostile_words, st.sampled_from(["--help", "ddpm", "--all", "--x", "--=", "@"])), max_size=3),
    )
    def check(command, words):
        assume(words and not {"ddpm", "--all"} & set(words) and (command != "diagnose" or words[0]))
        assume(any(word.strip("-").strip() not in ("", "help") for word in words))
        ended(capsys, [command, "--no-such-option", *words])

    check()


@FORMS
def test_folders_may_have_any_name(checkpoint, tmp_path, capsys, times):
    names = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=25).filter(
        lambda name: name not in (".", "..") and not name.startswith("-")
    )

    @tries(12, times)
    @given(names, names)
    def check(name, inner):
        parent = tmp_path / name
        parent.mkdir(exist_ok=True)
        moved = parent / f"{inner}.pt"
        moved.write_bytes(checkpoint.read_bytes())
        out = parent / "out"
        words = ["generate", "ddpm", "--checkpoint", str(moved), "--output-dir", str(out), "--num_samples", "1"]
        assert ended(capsys, [*words, "--ddim_steps", "1", "--device", "cpu"]) == 0
        (folder,) = out.iterdir()
        with Image.open(folder / "grid.png") as picture:
            assert picture.size == (8 * 32, 8 * 32)
        folder.rename(tmp_path / f"{len(list(tmp_path.iterdir()))}-done")

    check()
