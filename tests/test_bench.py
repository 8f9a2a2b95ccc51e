"""`bench`: what is counted is what closed forms say, every kind of model is measured, and mistakes are refused."""

import json

import pytest
import torch
from commands import refused
from torch import nn

from diffusion_book.cli import bench
from diffusion_book.cli.main import main
from diffusion_book.evaluation import speed
from diffusion_book.evaluation.speed import drawing_of, flops_of, made_up, matrix_rate, measure_speed, training_flops
from diffusion_book.models import pipelines

CPU = torch.device("cpu")
QUICK = ["--batch_size", "2", "--seconds", "0.001", "--device", "cpu", "--precision", "fp32", "--threads", "1"]


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    monkeypatch.setitem(speed.MATRIX, "cpu", 64)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_operations_are_counted_as_the_formulas_say():
    """A product of (n, k) and (k, m) is 2 n k m; a convolution 2 B H W k^2 in out, and its backward pass twice that."""
    assert flops_of(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7
    convolution, x = nn.Conv2d(4, 6, 3, padding=1), torch.ones(2, 4, 8, 8, requires_grad=True)
    once = 2 * 2 * 8 * 8 * 9 * 4 * 6
    assert flops_of(lambda: convolution(x)) == once
    assert flops_of(lambda: convolution(x).sum().backward()) == 3 * once


def test_the_matrix_product_is_timed_with_a_clock(monkeypatch):
    """Two looks at a clock that are half a second apart make so many products of 2 n^3 operations."""
    ticks = iter([10.0, 10.5])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(ticks))
    assert matrix_rate(CPU, torch.float32, 16) == 2 * 16**3 * speed.PRODUCTS / 0.5


@pytest.mark.parametrize("name", pipelines.list_models())
def test_every_model_has_made_up_data_that_its_loss_takes(name):
    model = pipelines.load(name, device="cpu", precision="fp32")
    trainer = speed.trainer_of(model, 2)
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    report = next(trainer.steps())
    assert report.loss == pytest.approx(report.loss)  # no NaN
    assert report.gradient_norm > 0
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items()), "a copy learned"
    forward = drawing_of(model, 1, 1).forward_flops
    whole = training_flops(trainer) / (2 if model.recipe.model.startswith("vae") else 1)  # the encoder works there too
    assert 2 * forward < whole < 3.5 * forward
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


def test_guidance_asks_twice_and_pictures_of_latents_are_decoded():
    concat, plain = (pipelines.load(name, device="cpu", precision="fp32") for name in ("ldm-concat", "ldm"))
    assert drawing_of(concat, 1, 3).evaluations == 6
    drawing = drawing_of(plain, 2, 3)
    assert drawing.evaluations == drawing.steps == 3
    decoder = drawing_of(plain.autoencoder, 1)
    assert drawing.picture_flops == 3 * drawing.forward_flops + decoder.forward_flops
    assert drawing.draw().shape == (2, 1, 28, 28)
    assert drawing_of(pipelines.load("rf-one-step", device="cpu"), 1).evaluations == 1  # its recipe's steps


def test_shares_and_rates_belong_together():
    model = pipelines.load("ldm-concat", device="cpu", precision="fp32")
    found = measure_speed(model, batch_size=2, seconds=1e-3, steps=2)
    assert found.rounds == 3
    assert found.evaluations == pytest.approx(4 * found.sampling)
    assert min(found.training, found.sampling, found.training_share, found.sampling_share, found.matrix) > 0
    assert found.training_flops > found.forward_flops > 0


def test_the_command_prints_a_table_and_writes_the_figures(tmp_path, capsys):
    path = tmp_path / "figures" / "bench.json"
    main(["bench", "--model", "ldm", "--sampling-steps", "2", *QUICK, "--json", str(path)])
    first, *_, row, _, last = capsys.readouterr().out.splitlines()
    assert "1 threads, fp32, batches of 2" in first
    assert row.split()[0] == "ldm"
    assert last == str(path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert (stored["batch_size"], stored["precision"], stored["device"], stored["threads"]) == (2, "fp32", "cpu", 1)
    figures = stored["models"]["ldm"]
    assert figures["steps"] == 2
    assert row.split()[1] == f"{figures['training']:.1f}"
    assert row.split()[3] == f"{figures['sampling']:.2f}"


def test_the_command_measures_an_autoencoder_and_without_a_model_all(capsys, monkeypatch):
    monkeypatch.setattr(pipelines, "list_models", lambda dataset="mnist": ["vae-2d", "rf-one-step"])
    main(["bench", *QUICK])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:-1]] == ["vae-2d", "rf-one-step"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "gan"], "unknown model 'gan'"),
        (["gan"], "unknown model 'gan'"),
        (["--batch_size", "0"], "--batch_size is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--threads", "99999999999999999999"], "at most 1,024"),
        (["--batch_size", "99999999999999999999"], "at most 100,000"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--model", "ldm", "--sampling-steps", "0"], "--sampling_steps is 0"),
        (["--model", "ldm", "--sampling-steps", "1001"], "1001 steps"),
        (["--precision", "fp8"], "fp8"),
        (["--device", "abacus"], "unknown device"),
    ],
)
def test_mistakes_are_refused(options, words, capsys):
    assert words in refused(capsys, "bench", *options)


@pytest.mark.parametrize(("path", "words"), [("-", "- is no file"), ("/", "is a folder"), ("", "--json is empty")])
def test_a_file_that_cannot_be_is_refused_before_anything_is_measured(path, words, capsys, monkeypatch):
    monkeypatch.setattr(bench, "measure_speed", lambda *_, **__: pytest.fail("it measured"))
    assert words in refused(capsys, "bench", "rf", *QUICK, "--json", path)


def test_noise_stands_in_for_every_kind_of_data():
    kinds = {name: pipelines.load(name, device="cpu").recipe for name in ("ddpm", "ldm", "rf-reflow")}
    assert made_up(kinds["ddpm"], (1, 32, 32), 3).batch(torch.arange(3))[0].shape == (3, 1, 32, 32)
    assert made_up(kinds["ldm"], (2, 4, 4), 3).batch(torch.arange(3))[0].shape == (3, 4, 4, 4)
    assert made_up(kinds["rf-reflow"], (1, 32, 32), 3).batch(torch.arange(3))[0].shape == (3, 2, 32, 32)
