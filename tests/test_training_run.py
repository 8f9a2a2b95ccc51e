"""The experiment folder, and trainings that are stopped, killed, continued or that fail."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from survival import assert_same_training, epochs_of

from diffusion_book.cli.main import main
from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.models.recipes import RECIPES, Recipe, TrainingConfig
from diffusion_book.system.files import only_writer
from diffusion_book.training import run
from diffusion_book.training.run import RunOptions, run_training
from diffusion_book.viz.experiment import PICTURES

TINY = (  # noqa: SIM905
    "--dataset digits --base_channels 8 --channel_multipliers 1 2 --attention_levels 1 --layers_per_block 1 --patch_size 4 "
    "--batch_size 128 --timesteps 8 --warmup_steps 5 --sample_every 2 --device cpu --precision fp32"
).split()
STEPS_PER_EPOCH = 1497 // 128


def train(output_dir, *options):
    """Run `train ddpm` on tiny settings and give the experiment folder that it made or continued."""
    main(["train", "ddpm", *TINY, "--output-dir", str(output_dir), *options])
    (folder,) = output_dir.iterdir()
    return folder


def fails(capsys, *options):
    """The one line that `train ddpm` on tiny settings ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["train", "ddpm", *TINY, *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A training of three epochs that nothing interrupted."""
    return train(tmp_path_factory.mktemp("undisturbed"), "--epochs", "3")


def test_experiment_folder_is_complete(undisturbed):
    assert undisturbed.name.endswith("-ddpm")
    time.strptime(undisturbed.name.removesuffix("-ddpm"), "%Y%m%d_%H%M%S")
    assert {path.name for path in undisturbed.iterdir()} == {
        "config.txt",
        "training_log.txt",
        "metrics.jsonl",
        "device_use.png",
        "loss_curves.png",
        "performance_metrics.txt",
        "epoch_samples",
        "final_samples",
        "checkpoints",
        "denoising_steps",
    }
    inside = {path.name: {file.name for file in path.iterdir()} for path in undisturbed.iterdir() if path.is_dir()}
    assert inside["checkpoints"] == {"last.pt", "final.pt", "epoch_0002.pt"}
    assert inside["epoch_samples"] == {"epoch_0002.png", "epoch_0003.png"}
    assert inside["final_samples"] == {"grid.png", *(f"sample_{number:03d}.png" for number in range(64))}
    assert len(inside["denoising_steps"]) == 1 + 9  # the strip; the noise and 8 steps
    assert all(Image.open(path).getextrema() != (0, 0) for path in undisturbed.rglob("*.png"))
    assert Image.open(undisturbed / "final_samples" / "sample_000.png").size == (28, 28)
    config = (undisturbed / "config.txt").read_text()
    assert {"base_channels: 8", "channel_multipliers: [1, 2]", "dataset: digits", "epochs: 3"} <= set(
        config.splitlines()
    )
    log = (undisturbed / "training_log.txt").read_text().splitlines()
    assert [line[:10] for line in log] == ["epoch    1", "epoch    2", "epoch    3"]
    assert "steps: 33" in (undisturbed / "performance_metrics.txt").read_text()


def test_records_tell_the_run(undisturbed):
    start, *epochs = (json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines())
    assert start["event"] == "start"
    assert start["recipe"]["diffusion"]["timesteps"] == 8
    assert start["torch"] == torch.__version__
    assert [record["step"] for record in epochs] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert epochs[-1]["eval_loss"] < epochs[0]["eval_loss"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_killed_training_continues_as_if_nothing_had_been(tmp_path, undisturbed):
    code = "import sys; from diffusion_book.training import run; run.SAVE_EVERY = 0.0; "
    code += "from diffusion_book.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "train", "ddpm", *TINY, "--epochs", "3", "--output-dir", str(tmp_path)]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while (
            not list(tmp_path.glob("*/training_log.txt")) or not next(tmp_path.glob("*/training_log.txt")).read_text()
        ):
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)  # into the second epoch
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert not (folder / "checkpoints" / "final.pt").exists()
    cut_off = folder / "checkpoints" / ".writing-last-cut-off.pt"
    cut_off.write_bytes(b"half a checkpoint")
    main(["train", "ddpm", "--resume", str(folder), "--device", "cpu", "--precision", "fp32"])
    assert_same_training(folder, undisturbed)
    assert not cut_off.exists()


@pytest.fixture
def unblocked(number):
    """The signal as a terminal hands it on: what `nohup` ignores stays ignored, in the tests as well."""
    before = signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
    yield
    signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_saves_and_says_how_to_continue(tmp_path, undisturbed, number, unblocked, monkeypatch, capsys):
    show = run._Run.show

    def signalled(self, bar, report):
        show(self, bar, report)
        if report.step == STEPS_PER_EPOCH + 4:  # within the second epoch
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "show", signalled)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, "--epochs", "3")
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is before
    (folder,) = tmp_path.iterdir()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"continue with: diffusion-book train ddpm --resume {folder}")
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == STEPS_PER_EPOCH + 4
    assert not (folder / "checkpoints" / "final.pt").exists()
    if number == signal.SIGTERM:
        train(tmp_path, "--resume", str(folder))
        assert_same_training(folder, undisturbed)


def test_earlier_checkpoint_forgets_what_came_after_it(tmp_path, undisturbed):
    folder = train(tmp_path, "--epochs", "2")
    main(["train", "ddpm", "--resume", str(folder / "checkpoints" / "epoch_0002.pt"), "--epochs", "2"])
    assert len(epochs_of(folder)) == 2
    assert epochs_of(folder)[0]["train_loss"] == epochs_of(undisturbed)[0]["train_loss"]


@pytest.fixture
def finished(tmp_path, undisturbed):
    """A copy of the training of three epochs."""
    return Path(shutil.copytree(undisturbed, tmp_path / "runs" / undisturbed.name))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_checkpoint_destroys_nothing_without_being_told(finished, capsys):
    before, earlier = contents(finished), finished / "checkpoints" / "epoch_0002.pt"
    line = fails(capsys, "--resume", str(earlier))
    assert f"{earlier} is of step 22, and {finished} has come to step 33" in line
    assert contents(finished) == before
    main(["train", "ddpm", "--resume", str(earlier), "--rewind", "--epochs", "2", "--device", "cpu"])
    assert [record["epoch"] for record in epochs_of(finished)] == [1, 2]
    assert load_checkpoint(finished / "checkpoints" / "last.pt")["step"] == 22


def test_a_damaged_last_checkpoint_leaves_the_earlier_one(finished):
    (finished / "checkpoints" / "last.pt").write_bytes(b"half")
    main(["train", "ddpm", "--resume", str(finished / "checkpoints" / "epoch_0002.pt"), "--device", "cpu"])
    assert [record["epoch"] for record in epochs_of(finished)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "other"], "--name other contradicts --resume, which goes on in"),
        (["--output_dir", "elsewhere"], "--output_dir elsewhere contradicts --resume, which goes on in"),
    ],
)
def test_a_place_that_a_continued_training_would_ignore_is_refused(finished, capsys, options, said):
    before = contents(finished)
    assert said in fails(capsys, "--resume", str(finished), *options)
    assert contents(finished) == before


def test_a_folder_that_another_process_trains_in_is_refused(finished, capsys):
    before = contents(finished)
    with only_writer(finished):
        assert "another process writes to" in fails(capsys, "--resume", str(finished), "--epochs", "4")
    assert contents(finished) == before


def test_a_training_with_nothing_left_says_so(finished, capsys):
    train(finished.parent, "--resume", str(finished))
    assert f"nothing left to train in {finished}: raise --epochs" in capsys.readouterr().err
    train(finished.parent, "--resume", str(finished), "--epochs", "9", "--max-minutes", "0.0001")
    assert f"nothing left to train in {finished}: raise --max-minutes" in capsys.readouterr().err
    assert len(epochs_of(finished)) == 3


@pytest.mark.parametrize("damaged", ['{"event": "epoch", "step": 1}', "[" * 100_000, "7", '{"event": "start"}'])
def test_damaged_records_are_named(finished, capsys, damaged):
    (finished / "metrics.jsonl").write_text(damaged + "\n")
    line = fails(capsys, "--resume", str(finished), "--epochs", "4")
    assert f"{finished / 'metrics.jsonl'} is damaged" in line
    assert "delete it to go on without what it tells" in line


def test_compile_without_a_compiler_is_refused_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "training_data", lambda *_: pytest.fail("it began to work"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    line = fails(capsys, "--compile", "--output-dir", str(tmp_path / "runs"))
    assert "--compile needs a compiler, and g++ is not here: install it" in line


def test_a_name_that_is_taken_is_refused_before_any_work(finished, capsys, monkeypatch):
    monkeypatch.setattr(run, "training_data", lambda *_: pytest.fail("it began to work"))
    line = fails(capsys, "--name", finished.name, "--output-dir", str(finished.parent))
    assert "is not empty: give another --name" in line


def test_only_the_number_of_epochs_may_change(tmp_path, capsys):
    folder = train(tmp_path, "--epochs", "1")
    for option, value, before in (
        ("base_channels", "16", "8"),
        ("lr", "0.5", f"{RECIPES['ddpm'].training.lr:g}"),
        ("schedule", "linear", "cosine"),
    ):
        line = fails(capsys, "--resume", str(folder), f"--{option}", value)
        assert f"--{option} {value} contradicts the checkpoint, which was trained with {before}" in line
    assert len(epochs_of(folder)) == 1
    train(tmp_path, "--resume", str(folder), "--epochs", "2")
    assert [record["epoch"] for record in epochs_of(folder)] == [1, 2]
    assert "epochs: 2" in (folder / "config.txt").read_text()


def test_time_limit_cools_down_and_leaves_every_file(tmp_path, undisturbed):
    folder = train(tmp_path, "--epochs", "1000", "--max-minutes", "0.02")
    names = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert names == {path.name for path in undisturbed.iterdir()}
    last = epochs_of(folder)[-1]
    assert last["step"] < 1000 * STEPS_PER_EPOCH
    assert last["lr"] < RECIPES["ddpm"].training.lr / 2
    assert (folder / "checkpoints" / "final.pt").is_file()


def test_loss_that_is_not_finite_names_step_rate_and_checkpoint(tmp_path, monkeypatch, capsys):
    line = fails(capsys, "--output-dir", str(tmp_path / "early"), "--lr", "1e30", "--warmup_steps", "0")
    assert "not finite at step 2 with learning rate 1e+30" in line
    assert "no checkpoint was saved yet" in line

    loss_of = run.KINDS["diffusion"].loss

    def turning(recipe):
        loss, calls = loss_of(recipe), []

        def turned(network, *rest):
            calls.extend([None] if torch.is_grad_enabled() else [])
            return loss(network, *rest) * (math.nan if len(calls) > STEPS_PER_EPOCH + 2 else 1)

        return turned

    monkeypatch.setitem(run.KINDS, "diffusion", dataclasses.replace(run.KINDS["diffusion"], loss=turning))
    line = fails(capsys, "--output-dir", str(tmp_path / "late"), "--epochs", "3")
    (folder,) = (tmp_path / "late").iterdir()
    last = folder / "checkpoints" / "last.pt"
    assert f"not finite at step {STEPS_PER_EPOCH + 3} with learning rate {RECIPES['ddpm'].training.lr:.2g}" in line
    assert f"the last good checkpoint is {last}" in line
    checkpoint = load_checkpoint(last)
    assert checkpoint["step"] == STEPS_PER_EPOCH
    assert all(value.isfinite().all() for value in checkpoint["network"].values())


def test_good_checkpoint_is_not_overwritten_by_broken_weights(tmp_path, monkeypatch, capsys):
    show = run._Run.show

    def breaking(self, bar, report):
        show(self, bar, report)
        if report.step == STEPS_PER_EPOCH + 2:
            next(self.trainer.network.parameters()).data.fill_(math.inf)
            monkeypatch.setattr(run, "SAVE_EVERY", 0.0)

    monkeypatch.setattr(run._Run, "show", breaking)
    line = fails(capsys, "--output-dir", str(tmp_path), "--epochs", "3")
    (folder,) = tmp_path.iterdir()
    assert f"weights are not finite after step {STEPS_PER_EPOCH + 2}" in line
    assert str(folder / "checkpoints" / "last.pt") in line
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == STEPS_PER_EPOCH


def test_batch_that_does_not_fit_names_the_option(tmp_path, monkeypatch, capsys):
    greedy = dataclasses.replace(run.KINDS["diffusion"], loss=lambda recipe: lambda *_: torch.empty(2**60))
    monkeypatch.setitem(run.KINDS, "diffusion", greedy)
    assert "out of memory: lower --batch_size" in fails(capsys, "--output-dir", str(tmp_path))


def test_classifier_run_tells_its_accuracy_and_draws_nothing(tmp_path):
    fast = {"optimizer": "adamw", "lr": 2e-3, "warmup_steps": 5, "ema_decay": 0.9}
    recipe = Recipe("classifier", TrainingConfig(dataset="digits", epochs=2, **fast))
    folder = run_training(recipe, RunOptions(output_dir=tmp_path, device="cpu", precision="fp32"), callbacks=PICTURES)
    assert not (folder / "epoch_samples").exists()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] > 0.5
    assert f"test accuracy: {last['test_accuracy']:.4f}" in (folder / "performance_metrics.txt").read_text()
    assert "test accuracy" in (folder / "training_log.txt").read_text()


def test_tensorboard_is_given_the_figures_of_each_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as where tensorboard is not installed
    line = fails(capsys, "--epochs", "1", "--tensorboard", "--output-dir", str(tmp_path / "without"))
    assert "--tensorboard needs the package tensorboard: pip install tensorboard" in line
    assert not (tmp_path / "without").exists()

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder.name, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            written.append("flushed")

    written = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    folder = train(tmp_path / "with", "--epochs", "2", "--tensorboard")
    (first, second) = epochs_of(folder)
    assert written[0] == ("tensorboard", 1)
    assert written[-1] == "flushed"
    for epoch in (first, second):
        assert ("eval_loss", epoch["eval_loss"], epoch["step"]) in written
