"""On a GPU the same pictures come out as on the CPU, in every precision and however the kernels are launched.

`pytest -m gpu` runs these tests; without a GPU they are skipped.
"""

import copy
import dataclasses
import json

import pytest
import torch

from diffusion_book.cli.main import main
from diffusion_book.evaluation.speed import trainer_of
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.networks.conditioning import cross_attention_maps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
MODELS = pipelines.list_models()
DIFFUSION = [name for name in MODELS if not name.startswith("vae")]


def load(name: str, device: str, precision: str = "fp32"):
    return pipelines.load(name, device=device, precision=precision)


def pictures(model, number: int = 8):
    """The same for every device: drawn in few steps, or restored."""
    if isinstance(model, Autoencoder):
        generator = torch.Generator().manual_seed(0)
        return model.decode(torch.randn(number, *model.latent_shape, generator=generator)).cpu()
    sampler = "euler" if model.recipe.diffusion.schedule == "rectified" else "ddim"
    steps = min(8, model.recipe.diffusion.sampling_steps)
    return model.sample(number, sampler=sampler, steps=steps, seed=3)


def difference(a, b) -> float:
    """Mean absolute difference, of pictures in [-1, 1]."""
    return (a - b).abs().mean().item()


@pytest.mark.parametrize("name", MODELS)
def test_the_gpu_draws_what_the_cpu_draws(name):
    expected = pictures(load(name, "cpu"))
    other = pictures(load(name, "cpu"), 9)[1:]
    found = difference(pictures(load(name, "cuda")), expected)
    assert found < 0.01  # TF32 has ten binary digits
    assert found < difference(other, expected) / 10, "another digit would be further away"


@pytest.mark.parametrize("name", MODELS)
def test_bf16_draws_what_fp32_draws(name):
    assert difference(pictures(load(name, "cuda", "bf16")), pictures(load(name, "cuda"))) < 0.05


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_kernels_draw_what_single_ones_draw(name, precision):
    replayed = dataclasses.replace(load(name, "cuda", precision), graphs=True)
    pictures(replayed), pictures(replayed)  # the first calls of a shape run as usual
    found = pictures(replayed)
    assert any(replay is not None for replay in replayed._graphed.replays.values())
    torch.testing.assert_close(found, pictures(load(name, "cuda", precision)), rtol=0, atol=2e-3)


def test_replayed_kernels_see_weights_that_changed():
    pipe = dataclasses.replace(load("ddpm", "cuda"), graphs=True)
    x, t = pipe.noise(4).cuda(), torch.full((4,), 0.5, device="cuda")
    with torch.no_grad():
        before = [pipe.denoiser(x, t).x0 for _ in range(3)][-1]
        for parameter in pipe.network.parameters():
            parameter.mul_(0.9)
        after = pipe.denoiser(x, t).x0
        torch.testing.assert_close(after, load_again(pipe).denoiser(x, t).x0, rtol=0, atol=1e-3)
    assert difference(before, after) > 1e-3


def load_again(pipe):
    """The same pipeline with nothing recorded yet."""
    return dataclasses.replace(pipe, network=copy.deepcopy(pipe.network))


def test_attention_is_seen_after_kernels_were_recorded():
    pipe = dataclasses.replace(load("ldm-cross-attention", "cuda"), graphs=True)
    pictures(pipe), pictures(pipe)
    with cross_attention_maps(pipe.network) as maps:
        pictures(pipe)
    assert all(len(calls) == 8 for calls in maps.values())


def losses(name: str, steps: int = 20, **options) -> list[float]:
    """Of the first steps of going on with a shipped model."""
    precision = options.pop("precision", "fp32")
    training = trainer_of(load(name, options.pop("device", "cuda"), precision), 32, **options)
    reports = training.steps()
    return [next(reports).loss for _ in range(steps)]


@pytest.mark.parametrize("name", ["ddpm", "vae", "ldm-cross-attention"])
def test_training_in_bf16_and_compiled_follows_training_in_fp32(name):
    expected = losses(name)
    assert losses(name, precision="bf16") == pytest.approx(expected, rel=0.1)
    assert losses(name, compile=True) == pytest.approx(expected, rel=0.02)


def test_bench_measures_the_gpu(tmp_path):
    path = tmp_path / "bench.json"
    main(["bench", "--model", "ldm", "--batch-size", "64", "--seconds", "0.1", "--device", "cuda", "--json", str(path)])
    figures = json.loads(path.read_text(encoding="utf-8"))["models"]["ldm"]
    assert 0 < figures["training_share"] < 1
    assert 0 < figures["sampling_share"] < 1
