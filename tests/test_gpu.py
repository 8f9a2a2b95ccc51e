"""On a GPU the same pictures come out as on the CPU, in every precision and whether compiled or not.

`pytest -m gpu` runs these tests; without a GPU they are skipped.
"""

import json

import pytest
import torch

from diffusion_book.cli.main import main
from diffusion_book.evaluation.speed import trainer_of
from diffusion_book.models import pipelines
from diffusion_book.models.autoencoder import Autoencoder

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
