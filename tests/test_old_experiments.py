"""Experiment folders and checkpoints of an earlier version load, draw the same pictures, and can be trained further.

`old/experiments.tar.xz` holds one folder of each kind, of tiny networks on scikit-learn's digits, written by the version of
26 November 2026, before there was a choice of optimiser, and `expected.safetensors`, what that version drew with them.
"""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusion_book.cli.main import main
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import load

ARCHIVE = Path(__file__).parent / "old" / "experiments.tar.xz"
MODELS = ("ddpm", "vae", "ldm", "ldm-concat", "ldm-cross-attention", "rf", "rf-reflow", "latent-rf")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The experiment folders, unpacked."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "experiments"


def drawn(path: Path) -> torch.Tensor:
    """What the archive holds of each model: four samples; of the VAE, four latents decoded."""
    model = load(path, device="cpu", precision="fp32")
    if isinstance(model, Autoencoder):
        noise = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        return model.decode(noise)
    return model.sample(4, sampler="ddim", steps=3, seed=1)


@pytest.mark.parametrize("model", MODELS)
def test_an_old_checkpoint_draws_the_same_pictures(folder, model):
    expected = load_file(folder / "expected.safetensors")[model]
    assert expected.std() > 0.05
    torch.testing.assert_close(drawn(folder / model), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_an_old_training_goes_on(folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    before = (folder / model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    parent = ["--reflow-from", "rf"] if model == "rf-reflow" else []
    main(["train", model, "--resume", model, "--epochs", "3", "--device", "cpu", "--precision", "fp32", *parent])
    after = (folder / model / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert after[: len(before)] == before
    epochs = [json.loads(line)["epoch"] for line in after if json.loads(line)["event"] == "epoch"]
    assert epochs == [1, 2, 3]
    checkpoint = torch.load(folder / model / "checkpoints" / "final.pt", weights_only=True)
    assert checkpoint["recipe"]["training"]["optimizer"] == "adamw", "the optimiser that it began with"
    assert checkpoint["step"] == json.loads(after[-1])["step"]
