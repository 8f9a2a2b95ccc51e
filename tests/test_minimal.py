"""The whole in one screen, examples/minimal.py: it stands alone, and it is what the library is."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_book.denoiser import Denoiser
from diffusion_book.objective import diffusion_loss
from diffusion_book.samplers import euler, sample, time_grid
from diffusion_book.schedules import rectified
from diffusion_book.targets import velocity

FILE = Path(__file__).parents[1] / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(minimal):
    torch.manual_seed(0)
    return minimal.UNet(width=16).eval()


def test_it_fits_on_one_screen_and_stands_alone():
    text = FILE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert "diffusion_book" not in text.lower().replace("diffusion_book_data", "")


def test_its_loss_is_the_library_s(minimal, network):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 1, 28, 28, generator=generator)
    t = torch.tensor([0.001, 0.2, 0.4, 0.6, 0.8, 1.0])
    with torch.no_grad():
        found = minimal.flow_loss(network, x0, eps, t)
        expected = diffusion_loss(
            network, x0, schedule=rectified, target=velocity, generator=generator, time_sampling=lambda *_: t, eps=eps
        )
    assert found.item() == pytest.approx(expected.mean().item(), rel=1e-6)
    wrong = diffusion_loss(
        network, x0, schedule=rectified, target=velocity, generator=generator, time_sampling=lambda *_: t, eps=-eps
    )
    assert found.item() != pytest.approx(wrong.mean().item(), rel=1e-3)


def test_its_sampler_is_the_library_s(minimal, network):
    network = network.double()
    noise = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    *_, last = sample(
        Denoiser(network, rectified, velocity),
        noise,
        time_grid(5),
        euler,
        schedule=rectified,
        generator=torch.Generator(),
    )
    found = minimal.sample(network, noise, steps=5)
    network.float()
    torch.testing.assert_close(found, last.x, atol=1e-6, rtol=0)
    assert (found - noise).std() > 0.01


def write_idx(root: Path, pictures: np.ndarray) -> None:
    """Pictures (N, 28, 28) of bytes, as MNIST's training file."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    head = struct.pack(">4I", 0x803, *pictures.shape)
    (folder / "train-images-idx3-ubyte").write_bytes(head + pictures.tobytes())


def test_it_reads_the_idx_file(minimal, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_idx(tmp_path, pictures)
    images = minimal.load_mnist(tmp_path)
    assert (images.min(), images.max()) == (-1, 1)
    assert images.shape == (5, 1, 28, 28)
    np.testing.assert_allclose((images[:, 0].numpy() + 1) * 127.5, pictures, atol=1e-4)


def test_it_learns_and_draws(minimal, tmp_path, capsys, monkeypatch):
    """From a folder with a few bars to a grid, in a few steps: it draws bars."""
    pictures = np.zeros((40, 28, 28), dtype=np.uint8)
    pictures[:, 4:24, 12:16] = 255
    write_idx(tmp_path, pictures)
    small = minimal.UNet
    monkeypatch.setattr(minimal, "UNet", lambda: small(width=8))
    monkeypatch.setattr(minimal.train, "__defaults__", (8, 1e-2))  # batch size and learning rate
    minimal.main(["--data", str(tmp_path), "--steps", "100", "--output", str(tmp_path / "bars.png")])
    assert capsys.readouterr().out.startswith("step 100 of 100, loss 0.")
    with Image.open(tmp_path / "bars.png") as grid:
        assert grid.size == (224, 224)
        drawn = np.asarray(grid).reshape(8, 28, 8, 28).mean(axis=(0, 2))  # the mean of all 64
    assert drawn[6:22, 13:15].min() > drawn[:, :8].max()
