"""The commands of rectified flow, reflow and distillation from end to end, on tiny settings."""

import dataclasses
import json
import math

import numpy as np
import pytest
from commands import refused
from PIL import Image

import diffusion_book
from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.models import pipelines
from diffusion_book.models.checkpoints import load_checkpoint
from diffusion_book.models.recipes import RECIPES, recipe_from_dict
from diffusion_book.system.hashes import hash_of_tensors
from diffusion_book.training import datasets

CPU = ["--device", "cpu", "--precision", "fp32"]
FP32 = {"device": "cpu", "precision": "fp32"}  # the same for `load`
RUN = ["--batch_size", "128", "--epochs", "1", "--warmup_steps", "5", *CPU]
DATA = ["--dataset", "digits"]
PIXELS = "--base_channels 8 --channel_multipliers 1 --layers_per_block 1 --attention_levels 0 --patch_size 8".split()  # noqa: SIM905
LATENTS = "--base_channels 8 --channel_multipliers 1 2 --layers_per_block 1".split()  # noqa: SIM905
VAE = "--base_channels 8 --channel_multipliers 1 2 --layers_per_block 1 --patch_size 4 --latent_channels 3".split()  # noqa: SIM905
COUPLINGS = ["--couplings", "256", "--steps", "2"]
GRID = ["--timesteps", "8"]


@pytest.fixture(autouse=True, scope="module")
def small_world(tmp_path_factory):
    """A cache of its own, few couplings to test on, and no weights that came with the book."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(datasets, "TEST_COUPLINGS", 128)
        patch.setattr(pipelines, "list_models", lambda dataset="mnist": [])
        yield


def train(tmp_path, model, *options):
    """Run `train MODEL`, and give its experiment folder."""
    before = set(tmp_path.iterdir())
    main(["train", model, *RUN, "--output-dir", str(tmp_path), *map(str, options)])
    (folder,) = set(tmp_path.iterdir()) - before
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One experiment folder for each model of the chapter, each from those that it needs."""
    path = tmp_path_factory.mktemp("experiments")
    found = {"vae": train(path, "vae", *DATA, *VAE)}
    vae = ["--vae", found["vae"]]
    found["rf"] = train(path, "rf", *DATA, *PIXELS, *GRID)
    found["rf-reflow"] = train(path, "rf", "--reflow-from", found["rf"], *COUPLINGS, *GRID)
    found["rf-one-step"] = train(path, "rf-one-step", "--reflow_from", found["rf-reflow"], *COUPLINGS, *GRID)
    found["latent-rf"] = train(path, "latent-rf", *DATA, *vae, *LATENTS, *GRID)
    found["latent-rf-class"] = train(path, "latent-rf-class", *DATA, *vae, *LATENTS, *GRID)
    parent = ["--reflow-from", found["latent-rf-class"], "--coupling-guidance-scale", 2]
    found["latent-rf-class-one-step"] = train(path, "latent-rf-class-one-step", *parent, *COUPLINGS, *GRID)
    return found


def final(folder):
    return load_checkpoint(folder / "checkpoints" / "final.pt")


FLOWS = ("rf", "rf-reflow", "rf-one-step", "latent-rf", "latent-rf-class", "latent-rf-class-one-step")
FILES = {
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


# --- train ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FLOWS)
def test_each_model_leaves_its_folder_and_draws(folders, model):
    folder = folders[model]
    assert folder.name.endswith(f"-{model}")
    assert {path.name for path in folder.iterdir()} == FILES
    recipe = recipe_from_dict(final(folder)["recipe"])
    assert recipe.model == model
    assert (recipe.diffusion.schedule, recipe.diffusion.target, recipe.diffusion.timesteps) == (
        "rectified",
        "velocity",
        8,
    )
    assert recipe.diffusion.time_sampling == RECIPES[model].diffusion.time_sampling
    assert recipe.training.dataset == "digits"  # that of the parent, where there is one
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for record in records for value in record.values() if isinstance(value, float))
    steps = min(recipe.diffusion.sampling_steps, 8)
    assert len(list((folder / "denoising_steps").iterdir())) == 1 + steps + 1  # the strip; the noise and each step
    pictures = diffusion_book.load(folder, **FP32).sample(2, steps=1, sampler="euler")
    assert pictures.shape == (2, 1, 28, 28)
    assert pictures.isfinite().all()
    assert Image.open(folder / "final_samples" / "sample_000.png").size == (28, 28)


@pytest.mark.parametrize(
    ("model", "parent"),
    [("rf-reflow", "rf"), ("rf-one-step", "rf-reflow"), ("latent-rf-class-one-step", "latent-rf-class")],
)
def test_a_successor_takes_over_from_its_parent(folders, model, parent):
    """Its network without a word about it, its VAE, and a note of who it was."""
    mine, theirs = final(folders[model]), final(folders[parent])
    assert mine["recipe"]["network"] == theirs["recipe"]["network"]
    assert mine["recipe"]["reflow"]["couplings"] == 256
    assert mine["parent"] == {"model": parent, "sha256": hash_of_tensors(theirs["ema"])}
    assert ("autoencoder" in mine) == ("autoencoder" in theirs)
    if "autoencoder" in mine:
        assert hash_of_tensors(mine["autoencoder"]["weights"]) == hash_of_tensors(theirs["autoencoder"]["weights"])
        assert mine["recipe"]["network"]["in_channels"] == 3  # of this VAE's latents, not of the book's
        assert mine["recipe"]["reflow"]["guidance_scale"] == 2
    # It started there: after two steps it is closer to its parent than a network with other random weights.
    moved, size = (
        math.sqrt(sum(value.square().sum().item() for value in values))
        for values in (
            [mine["network"][name] - theirs["ema"][name] for name in theirs["ema"]],
            theirs["ema"].values(),
        )
    )
    assert 0 < moved < 0.2 * size


def test_reflow_from_is_a_name_for_the_same_model(folders, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "diffusion_book.cli.train.run_training", lambda *given, **named: asked.append(given) or tmp_path
    )
    for command in (
        ["rf", "--reflow-from", folders["rf"]],
        ["rf", f"--reflow_from={folders['rf']}"],
        ["rf-reflow", "--reflow-from", folders["rf"] / "checkpoints" / "final.pt"],
    ):
        main(["train", *map(str, command), "--lr", "0.5"])
    parent = recipe_from_dict(final(folders["rf"])["recipe"])
    expected = dataclasses.replace(
        RECIPES["rf-reflow"],
        network=parent.network,
        training=dataclasses.replace(RECIPES["rf-reflow"].training, lr=0.5),
    )
    assert [recipe for recipe, *_ in asked] == [expected] * 3
    assert all(given[3].recipe == parent for given in asked)
    main(["train", "rf"])
    assert asked[-1][0] == RECIPES["rf"]
    assert asked[-1][3] is None


def test_a_reflow_is_continued_with_its_own_parent_alone(folders, tmp_path, capsys):
    folder = train(tmp_path, "rf", "--reflow-from", folders["rf"], *COUPLINGS, *GRID)
    again = ["train", "rf-reflow", "--resume", folder, "--epochs", 2, *CPU]
    line = refused(capsys, *again, "--reflow-from", folders["rf-reflow"])
    assert line.endswith("this training began with another 'rf': give that one as --reflow-from")
    assert "'rf-reflow' learns from a 'rf': give one as --reflow-from" in refused(capsys, *again)
    line = refused(capsys, *again, "--reflow-from", folders["rf"], "--couplings", 300)
    assert "--couplings 300 contradicts the checkpoint, which was trained with 256" in line
    assert "holds a 'rf-reflow', not a 'rf'" in refused(capsys, "train", "rf", "--resume", folder)
    step = final(folder)["step"]
    main([str(each) for each in [*again, "--reflow-from", folders["rf"]]])
    assert final(folder)["step"] == 2 * step


def test_a_parent_that_is_none_is_refused(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = ["train", "rf", *COUPLINGS, *CPU, "--reflow-from"]
    assert "there is no checkpoint" in refused(capsys, *new, tmp_path / "none.pt")
    assert "holds a VAE, not a flow" in refused(capsys, *new, folders["vae"])
    said = "'rf-reflow' starts with the weights of 'latent-rf', whose network is another one"
    assert said in refused(capsys, *new, folders["latent-rf"])
    line = refused(capsys, *new, folders["rf"], "--base_channels", 16)
    assert "whose network is another one: leave out the options of the network" in line
    latent = ["train", "latent-rf-class-one-step", *COUPLINGS, *CPU, "--reflow-from"]
    for parent in ("rf", "latent-rf"):
        assert f"weights of '{parent}', whose network is another one" in refused(capsys, *latent, folders[parent])
    assert "whose network is another one" in refused(capsys, *latent, folders["latent-rf-class"], "--num_classes", 12)
    for model, parent in (("rf-one-step", "rf-reflow"), ("latent-rf-class-one-step", "latent-rf-class")):
        assert f"'{model}' learns from a '{parent}': give one as --reflow-from" in refused(capsys, "train", model)
    assert not list(tmp_path.iterdir())


def test_a_diffusion_model_is_no_parent(folders, tmp_path, capsys):
    ddpm = train(tmp_path, "ddpm", *DATA, *PIXELS, *GRID)
    line = refused(capsys, "train", "rf", *COUPLINGS, *CPU, "--reflow-from", ddpm, "--output-dir", tmp_path / "new")
    assert line == "error: reflow starts from a rectified flow, not from a 'ddpm': give one of those"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "train rf --time_sampling midnight",
            "unknown time sampling 'midnight': choose one of uniform, logit_normal, u_shaped, last",
        ),
        ("train rf --time_sampling logit-normal", "unknown time sampling 'logit-normal'"),
        ("train rf --target noise", "Unrecognized options: --target, noise"),
        ("train rf --schedule cosine", "Unrecognized options: --schedule, cosine"),
        ("train rf --couplings 10", "Unrecognized options: --couplings, 10"),
        ("train ddpm --schedule rectified --target noise", "ends in pure noise, where no picture follows from it"),
        ("train ddpm --reflow-from somewhere", "Unrecognized options: --reflow-from, somewhere"),
        ("train rf-reflow --sampler ddim", "unknown sampler 'ddim': choose one of euler, midpoint, heun"),
        ("train rf-reflow --couplings 0", "couplings is 0: it must be at least 1"),
        ("train rf-reflow --steps 0", "steps is 0: it must be at least 1"),
        ("train rf-one-step --coupling-guidance-scale 2", "Unrecognized options: --coupling-guidance-scale, 2"),
        ("train latent-rf-class-one-step --coupling-guidance-scale inf", "guidance_scale is inf: it must be a finite"),
        ("train rf --vae somewhere.pt", "Unrecognized options: --vae"),
        ("generate rf --eta 0.5", "Unrecognized options: --eta, 0.5"),
        ("generate rf --class_label 3", "Unrecognized options: --class_label, 3"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal", "u_shaped", "last"])
def test_times_are_drawn_as_asked(sampling, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "diffusion_book.cli.train.run_training", lambda *given, **named: asked.append(given) or tmp_path
    )
    main(["train", "rf", "--time-sampling", sampling])
    assert asked[0][0].diffusion.time_sampling == sampling


# --- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "asked"),
    [
        ("rf", "--sampler euler --sampling_steps 5", {"sampler": "euler", "steps": 5}),
        ("rf", "--sampler midpoint --sampling-steps 3", {"sampler": "midpoint", "steps": 3}),
        ("rf", "--sampler heun --sampling_steps 3", {"sampler": "heun", "steps": 3}),
        ("rf", "--sampler dpm++ --sampling_steps 4", {"sampler": "dpm++", "steps": 4}),
        ("rf-reflow", "--sampling_steps 2", {"sampler": "midpoint", "steps": 2}),
        ("rf-one-step", "", {"sampler": "euler", "steps": 1}),
        ("latent-rf", "--sampler heun --sampling_steps 4", {"sampler": "heun", "steps": 4}),
        (
            "latent-rf-class",
            "--sampler euler --sampling_steps 4 --class_label 3 --guidance_scale 2",
            {"sampler": "euler", "steps": 4, "labels": 3, "guidance_scale": 2.0},
        ),
        ("latent-rf-class-one-step", "", {"sampler": "euler", "steps": 1, "guidance_scale": 1.0}),
    ],
)
def test_samples_are_those_of_the_pipeline(folders, model, options, asked, tmp_path):
    expected = diffusion_book.load(folders[model], **FP32).sample(3, seed=7, **asked)
    command = ["generate", model, "--checkpoint", str(folders[model]), "--output-dir", str(tmp_path), *CPU]
    main([*command, "--num_samples", "3", "--nrow", "3", "--seed", "7", *options.split()])
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "grid.png",
        "grid.pdf",
        *(f"sample_{number:03d}" for number in range(3)),
    }
    for sample in folder.glob("sample_*"):
        assert {path.name for path in sample.iterdir()} == {"final.pdf", "denoising_strip.pdf", "denoising_steps"}
        assert len(list((sample / "denoising_steps").iterdir())) == asked["steps"] + 1
    drawn = np.array(Image.open(folder / "grid.png"))[::8, ::8]
    tiles = np.stack([drawn[2:30, 2 + 30 * column : 30 + 30 * column] for column in range(3)])
    difference = tiles.astype(int) - data.quantise(expected)[:, 0].numpy().astype(int)
    assert np.abs(difference).max() <= 1
    assert tiles.std() > 1


def test_generate_refuses_what_it_cannot_draw(folders, tmp_path, capsys):
    here = ["--output-dir", tmp_path / "new", *CPU]
    given = ["generate", "rf", "--checkpoint", folders["rf"], *here]
    line = refused(capsys, *given, "--sampler", "runge", "--sampling_steps", 4)
    assert "unknown sampler 'runge': choose one of ddpm, ddim, euler, midpoint, heun, dpm++" in line
    for steps in (0, 9):
        line = refused(capsys, *given, "--sampling_steps", steps)
        assert f"{steps} steps: the number of steps must be 1 to 8" in line
    assert "give a whole number" in refused(capsys, *given, "--sampling_steps", "few")
    other = ["generate", "rf", "--checkpoint", folders["rf-reflow"], *here]
    assert "holds a 'rf-reflow', not a 'rf'" in refused(capsys, *other)
    classes = ["generate", "latent-rf-class", "--checkpoint", folders["latent-rf-class"], "--sampling_steps", 2, *here]
    assert "knows the classes 0 to 9" in refused(capsys, *classes, "--class_label", 10)
    assert "guidance" in refused(capsys, *classes, "--guidance_scale", "nan")
    assert not (tmp_path / "new").exists()
