"""Several processes that work as one: the same numbers as a single one, one writer, and nothing that hangs.

The real launcher starts real processes, which talk through gloo. Run as a script, this file is what it starts.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from tiny import SMALL_CLASS_UNETS, SMALL_VAE, pictures, random_autoencoder, random_class_pipeline

from diffusion_book.cli.main import main
from diffusion_book.evaluation import settings
from diffusion_book.evaluation.measures import random_labels
from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.models.configs import ClassSetting
from diffusion_book.models.recipes import RECIPES, TrainingConfig
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.training import models as training_models
from diffusion_book.training import run
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
BATCH = 499  # odd, so that two processes have unequal parts
STEPS_PER_EPOCH = 1497 // BATCH
TINY = ["--dataset", "digits", "--base_channels", "8", "--channel_multipliers", "1", "--attention_levels", "0"]
TINY += ["--layers_per_block", "1", "--patch_size", "4", "--batch_size", str(BATCH), "--timesteps", "8"]
TINY += ["--warmup_steps", "2", "--sample_every", "2", "--device", "cpu", "--precision", "fp32", "--epochs", "4"]
STOP_AT = STEPS_PER_EPOCH + 1  # within the second epoch
PATIENCE = 600  # seconds: a busy machine takes long to start three Pythons


def launch(*what) -> subprocess.CompletedProcess:
    """Start a command twice by the launcher, and wait for its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*LAUNCH, *(str(word) for word in what)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


def book(*arguments) -> subprocess.CompletedProcess:
    """A command of the book, by two processes that did it without complaint."""
    ended = launch("-m", "diffusion_book", *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended


def epochs_of(folder):
    """The numbers of each epoch that do not depend on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("epoch", "step", "train_loss", "eval_loss", "lr", "gradient_norm")
    return [[record[key] for key in keys] for record in records if record["event"] == "epoch"]


def assert_same_training(folder, other):
    """The same curve to 1e-5, the same files, and nearly the same weights."""
    np.testing.assert_allclose(epochs_of(folder), epochs_of(other), rtol=1e-5)
    names = [{path.relative_to(each) for path in each.rglob("*")} for each in (folder, other)]
    assert names[0] == names[1]
    one, two = (load_checkpoint(each / "checkpoints" / "final.pt") for each in (folder, other))
    assert (one["step"], one["ema_updates"]) == (two["step"], two["ema_updates"])
    for part in ("network", "ema"):
        torch.testing.assert_close(one[part], two[part], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The training of a single process that nothing interrupted."""
    parent = tmp_path_factory.mktemp("alone")
    main(["train", "ddpm", *TINY, "--name", "run", "--output-dir", str(parent)])
    return parent / "run"


# What is computed


SMALL = {
    "ddpm": dataclasses.replace(
        SMALL_CLASS_UNETS["ldm-concat"], concat_channels=0, in_channels=1, image_size=32, patch_size=8
    ),
    **SMALL_CLASS_UNETS,
}


def curve(model: str, steps: int = 5) -> tuple[list[list[float]], dict]:
    """Loss and gradient of each step of a short training, the loss on other data after it, and the averaged weights."""
    config = TrainingConfig(dataset="digits", batch_size=31, epochs=9, lr=1e-2, warmup_steps=2)
    recipe = dataclasses.replace(RECIPES[model], training=config)
    if recipe.vae:
        recipe = dataclasses.replace(recipe, vae=SMALL_VAE)
    else:
        recipe = dataclasses.replace(recipe, network=SMALL[model])
    data = pictures(64)
    if recipe.is_latent:
        moments = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        data = LatentDataset("digits", moments, data.labels)
    torch.manual_seed(0)
    network = training_models.KINDS[recipe.kind].build(recipe)
    trainer = Trainer(
        network, training_models.KINDS[recipe.kind].loss(recipe), data, config, device="cpu", precision="fp32"
    )
    reports = [[report.loss, report.gradient_norm] for _, report in zip(range(steps), trainer.steps())]
    return [*reports, [trainer.evaluate(data), float(trainer.step)]], trainer.ema.network.state_dict()


KINDS = ("ddpm", "vae", "ldm-concat", "ldm-cross-attention")


def test_two_processes_take_the_steps_of_one_for_every_kind_of_model(tmp_path):
    ended = launch(__file__, "curves", tmp_path / "curves.pt")
    assert ended.returncode == 0, ended.stderr
    theirs = torch.load(tmp_path / "curves.pt")
    assert theirs["ranks"] == [0.0, 1.0]
    for model in KINDS:
        numbers, weights = curve(model)
        np.testing.assert_allclose(theirs[model][0], numbers, rtol=1e-5, err_msg=model)
        torch.testing.assert_close(theirs[model][1], weights, rtol=1e-3, atol=1e-5)
    assert torch.equal(theirs["collected"], torch.arange(7))


def test_training_is_that_of_one_process_with_one_writer(tmp_path, alone):
    ended = book("train", "ddpm", *TINY, "--name", "run", "--output-dir", tmp_path)
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "run")
    assert ended.stdout.count(str(tmp_path / "run")) == 1
    assert ended.stderr.count("epoch    1:") + ended.stdout.count("epoch    1:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert_same_training(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_processes_continue_what_one_began(tmp_path, alone, monkeypatch):
    show = run._Run.show

    def signalled(self, bar, report):
        show(self, bar, report)
        if report.step == STOP_AT:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "show", signalled)
        with pytest.raises(SystemExit):
            main(["train", "ddpm", *TINY, "--name", "run", "--output-dir", str(tmp_path)])
    book("train", "ddpm", "--resume", tmp_path / "run", "--device", "cpu", "--precision", "fp32")
    assert_same_training(tmp_path / "run", alone)


def test_signal_to_the_launcher_saves_and_ends_and_one_process_continues(tmp_path, alone):
    ended = launch(__file__, "signalled", "train", "ddpm", *TINY, "--name", "run", "--output-dir", tmp_path)
    folder = tmp_path / "run"
    assert ended.returncode != 0
    assert ended.stderr.count(f"is saved; continue with: diffusion-book train ddpm --resume {folder}") == 1
    assert STOP_AT <= load_checkpoint(folder / "checkpoints" / "last.pt")["step"] < 4 * STEPS_PER_EPOCH
    assert not (folder / "checkpoints" / "final.pt").exists()
    main(["train", "ddpm", "--resume", str(folder), "--device", "cpu", "--precision", "fp32"])
    assert_same_training(folder, alone)


def test_error_on_one_process_ends_all(tmp_path):
    ended = launch(__file__, "failing", "train", "ddpm", *TINY, "--name", "run", "--output-dir", tmp_path)
    assert ended.returncode != 0
    assert ended.stderr.count("error: out of memory: lower --batch_size") == 1
    assert not (tmp_path / "run" / "checkpoints" / "final.pt").exists()


def test_they_generate_the_pictures_of_one_process(tmp_path, alone):
    asked = ["generate", "ddpm", "--checkpoint", alone, "--ddim_steps", "4", "--eta", "1", "--num_samples", "15"]
    asked += ["--batch_size", "5", "--device", "cpu", "--precision", "fp32", "--output_dir"]
    ended = book(*asked, tmp_path / "two")
    main([str(word) for word in [*asked, tmp_path / "one"]])
    (one,), (two,) = ((tmp_path / name).iterdir() for name in ("one", "two"))
    assert ended.stdout.splitlines() == [str(two)]
    files = sorted(path.relative_to(one) for path in one.rglob("*"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*"))
    assert sum(path.name == "final.pdf" for path in files) == 15
    assert np.array_equal(Image.open(one / "grid.png"), Image.open(two / "grid.png"))


def test_evaluation_draws_each_sample_once_and_only_the_main_process_measures(monkeypatch):
    """In one process that plays three in turn."""
    pipe = random_class_pipeline(random_autoencoder())
    setting = ClassSetting(steps=2, num_samples=11, guidance_scale=2.0, seed=3)
    asked = {"labels": random_labels(11), "guidance_scale": 2.0, "steps": 2, "seed": 3}
    parts = []
    monkeypatch.setattr(processes, "number", lambda: 3)
    monkeypatch.setattr(processes, "collect", lambda part: parts.append(part))
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        assert settings.evaluate(pipe, setting) is None
    assert [len(part) for part in parts] == [3, 3, 5]
    torch.testing.assert_close(torch.cat(parts), pipe.sample(11, **asked), rtol=0, atol=1e-4)


# What is refused, and how the parts are cut


@pytest.mark.parametrize(
    ("size", "unit", "number"), [(10, 1, 3), (499, 1, 2), (10_000, 100, 3), (250, 100, 2), (2, 1, 4)]
)
def test_parts_are_the_whole_in_order_and_nearly_equal(monkeypatch, size, unit, number):
    monkeypatch.setattr(processes, "number", lambda: number)
    parts = []
    for rank in range(number):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.part(size, unit))
    assert [index for part in parts for index in part] == list(range(size))
    assert all(part.start % unit == 0 for part in parts if part)
    units = [-(-len(part) // unit) for part in parts]
    assert max(units) - min(units) <= 1


def test_samples_are_drawn_in_the_batches_of_one_process_or_in_smaller_ones(monkeypatch):
    monkeypatch.setattr(processes, "number", lambda: 3)
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert processes.part_of_samples(10_000, 100) == range(3300, 6600)
    assert processes.part_of_samples(10, 100) == range(3, 6)
    with pytest.raises(BookError, match="2 samples for 3 processes: raise --num_samples"):
        processes.part_of_samples(2, 100)


def test_a_process_alone_is_the_whole():
    assert (processes.number(), processes.rank(), processes.is_main(), processes.no_bar()) == (1, 0, True, None)
    assert processes.part(7) == range(7)
    assert processes.gather(0.25) == [0.25]
    assert torch.equal(processes.collect(torch.arange(3)), torch.arange(3))
    with processes.together("cpu") as device:
        assert device == "cpu"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["visualize", "latent-space"], "visualize is the work of one process: leave out the launcher"),
        (["evaluate", "vae"], "evaluate vae is the work of one process: leave out the launcher"),
        (["train", "ddpm", "--device", "cuda:1"], "--device cuda:1 names one device for 2 processes: give cuda"),
        (["train", "ddpm", "--detach"], "--detach starts one process: leave it out"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_before_it_begins(monkeypatch, capsys, arguments, said):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert said in refused(capsys, *arguments)


def test_launcher_that_started_one_process_of_several_is_named(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "accelerate started a single process, since it saw no GPU: add --multi_gpu" in refused(
        capsys, "train", "ddpm"
    )


def test_processes_without_a_gpu_of_their_own_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "3 processes for 2 GPUs: start one process a GPU" in refused(capsys, "train", "ddpm")


def test_batch_of_fewer_pictures_than_processes_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "number", lambda: 4)
    with pytest.raises(BookError, match="a batch of 3 for 4 processes: raise --batch_size, or start fewer"):
        Trainer(torch.nn.Linear(1, 1), None, pictures(8), TrainingConfig(batch_size=3), device="cpu")


# What the launcher starts


def started(what: str, *arguments: str) -> None:
    """The part of one process."""
    show, loss = run._Run.show, Trainer._loss

    def signalled(self, bar, report):
        show(self, bar, report)
        if report.step >= STOP_AT:
            if report.step == STOP_AT and processes.rank() == 1:
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1)  # the launcher has this and each further step to pass it on

    def failing(self, index, seed, *rest):
        if self.step == 2 and processes.rank() == 1:
            raise BookError("out of memory: lower --batch_size")
        return loss(self, index, seed, *rest)

    if what == "signalled":
        run._Run.show = signalled
    elif what == "failing":
        Trainer._loss = failing
    else:
        with processes.together("cpu"):
            found = {model: curve(model) for model in KINDS}
            found["ranks"] = processes.gather(processes.rank())
            found["collected"] = processes.collect(
                torch.arange(7)[slice(processes.part(7).start, processes.part(7).stop)]
            )
            if processes.is_main():
                torch.save(found, arguments[0])
        return
    main(list(arguments))


if __name__ == "__main__":
    started(*sys.argv[1:])
