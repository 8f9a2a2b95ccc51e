"""The commands of the VAE and of latent diffusion from end to end, on tiny settings."""

import dataclasses
import json
import math
import signal

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image

import diffusion_book
from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import load_checkpoint, save_checkpoint
from diffusion_book.models.recipes import RECIPES
from diffusion_book.system.hashes import hash_of_tensors
from diffusion_book.training import run
from diffusion_book.viz.grids import SCALE
from diffusion_book.viz.style import colour_of_label

CPU = ["--device", "cpu", "--precision", "fp32"]
FP32 = {"device": "cpu", "precision": "fp32"}  # the same for `load`
TINY = {
    "vae": "--base_channels 8 --channel_multipliers 1 2 --layers_per_block 1 --patch_size 4 --lr 3e-3",
    "vae-2d": "--base_channels 8 --channel_multipliers 1 2 2 2 --patch_size 4",
    "ldm": "--base_channels 8 --channel_multipliers 1 2 --layers_per_block 1 --timesteps 8",
}
STEPS_PER_EPOCH = 1497 // 128


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """No test fills the user's cache with its latents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(model):
    """The command `train MODEL` on settings that take seconds."""
    run = "--dataset digits --batch_size 128 --warmup_steps 5 --sample_every 2"
    return ["train", model, *run.split(), *CPU, *TINY[model].split()]


def train(model, output_dir, *options):
    """Train on tiny settings, and give the experiment folder."""
    main([*tiny(model), "--output-dir", str(output_dir), *map(str, options)])
    (folder,) = output_dir.iterdir()
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A VAE of three epochs that nothing interrupted."""
    return train("vae", tmp_path_factory.mktemp("vae"), "--epochs", 3)


@pytest.fixture(scope="module")
def other_vae(tmp_path_factory):
    """Another VAE, whose latents have three channels of 8 x 8."""
    options = ("--epochs", 1, "--seed", 1, "--latent_channels", 3, "--channel_multipliers", 1)
    return train("vae", tmp_path_factory.mktemp("other"), *options)


@pytest.fixture(scope="module")
def ldm(tmp_path_factory, vae):
    """A diffusion model of its latents, of three epochs that nothing interrupted."""
    return train("ldm", tmp_path_factory.mktemp("ldm"), "--vae", vae, "--epochs", 3)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory, ldm):
    """What a checkpoint of a pixel model looks like."""
    path = tmp_path_factory.mktemp("ddpm") / "ddpm.pt"
    return save_checkpoint(path, {"recipe": RECIPES["ddpm"].to_dict(), "ema": {}})


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def epochs_of(folder):
    """The numbers of each epoch that do not depend on the clock."""
    keys = ("epoch", "step", "train_loss", "eval_loss", "reconstruction_error", "lr", "gradient_norm")
    return [
        {key: record[key] for key in keys if key in record}
        for record in records_of(folder)
        if record["event"] == "epoch"
    ]


def final(folder):
    return load_checkpoint(folder / "checkpoints" / "final.pt")


def names_in(folder):
    return {path.name for path in folder.iterdir()}


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
}
PICTURES = {"grid.png", *(f"sample_{number:03d}.png" for number in range(64))}


# --- train vae -----------------------------------------------------------------------------------


def test_the_folder_of_a_vae_is_complete(vae):
    assert vae.name.endswith("-vae")
    assert names_in(vae) == FILES | {"latent_space"}
    assert names_in(vae / "latent_space") == {"positions.png", "principal_components.png"}
    assert names_in(vae / "final_samples") == PICTURES | {"reconstructions.png"}
    assert names_in(vae / "checkpoints") == {"last.pt", "final.pt", "epoch_0002.pt"}
    assert names_in(vae / "epoch_samples") == {"epoch_0002.png", "epoch_0003.png"}
    for path in vae.rglob("*.png"):
        low, high = Image.open(path).convert("L").getextrema()
        assert high - low > 20, path  # something is to be seen
    config = (vae / "config.txt").read_text().splitlines()
    assert {"[vae]", "latent_channels: 2", "channel_multipliers: [1, 2]", "[elbo]", "kl_weight: 1e-06"} <= set(config)
    assert len((vae / "training_log.txt").read_text().splitlines()) == 3
    assert "steps: 33" in (vae / "performance_metrics.txt").read_text()


def test_a_vae_learns_and_says_so(vae):
    epochs = epochs_of(vae)
    assert [record["step"] for record in epochs] == [STEPS_PER_EPOCH * number for number in (1, 2, 3)]
    for key in ("train_loss", "eval_loss", "reconstruction_error"):
        assert epochs[-1][key] < epochs[0][key]


def test_a_vae_knows_the_scale_of_its_latents(vae):
    """Measured on the averaged weights that are used, and stored in every checkpoint."""
    loaded = diffusion_book.load(vae, **FP32)
    assert isinstance(loaded, Autoencoder)
    images = data.load("digits").batch(torch.arange(1497))[0]
    latents = loaded.encode(images)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-3)
    assert (latents.std(dim=(0, 2, 3)) <= 1.001).all()  # the posterior's own variance makes up the rest
    for name in ("last.pt", "final.pt", "epoch_0002.pt"):
        checkpoint = load_checkpoint(vae / "checkpoints" / name)
        assert checkpoint["ema"]["latent_std"].tolist() != [1.0, 1.0]
        assert torch.equal(checkpoint["ema"]["latent_std"], checkpoint["network"]["latent_std"])


def test_reconstructions_are_drawn_below_their_pictures(vae):
    loaded = diffusion_book.load(vae, **FP32)
    images = data.load("digits", "test").batch(torch.arange(10))[0]
    restored = loaded.reconstruct(data.crop(images))
    drawn = np.array(Image.open(vae / "final_samples" / "reconstructions.png"))[::SCALE, ::SCALE]
    for row, expected in ((0, data.crop(images)), (1, restored)):
        for column in (0, 9):
            tile = drawn[2 + 30 * row : 30 + 30 * row, 2 + 30 * column : 30 + 30 * column].astype(int)
            assert np.abs(tile - data.quantise(expected)[column, 0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("model", "options", "shape"),
    [
        ("vae-2d", "", (2, 1, 1)),
        ("vae-2d", "--latent_channels 1", (1, 1, 1)),
        ("vae", "--latent_channels 1", (1, 4, 4)),
        ("vae", "--latent_channels 5 --kl-weight 0.01", (5, 4, 4)),
    ],
)
def test_latents_of_any_shape_are_trained_and_drawn(tmp_path, model, options, shape):
    folder = train(model, tmp_path, "--epochs", 1, *options.split())
    assert folder.name.endswith(f"-{model}")
    assert diffusion_book.load(folder, **FP32).latent_shape == shape
    assert names_in(folder / "latent_space") == {"positions.png", "principal_components.png"}
    assert names_in(folder / "final_samples") == PICTURES | {"reconstructions.png"}
    assert (folder / "checkpoints" / "final.pt").is_file()


def test_defaults_are_the_recipe_and_options_change_it(monkeypatch, tmp_path, vae):
    asked = []
    monkeypatch.setattr(
        "diffusion_book.cli.train.run_training", lambda *given, **named: asked.append(given) or tmp_path
    )
    main(["train", "vae"])
    main(["train", "vae-2d"])
    options = "--kl_weight 0.5 --latent-channels 4 --base_channels 16 --epochs 7"
    main(["train", "vae", *options.split()])
    recipe = RECIPES["vae"]
    assert [recipe for recipe, *_ in asked] == [
        recipe,
        RECIPES["vae-2d"],
        dataclasses.replace(
            recipe,
            training=dataclasses.replace(recipe.training, epochs=7),
            vae=dataclasses.replace(recipe.vae, latent_channels=4, base_channels=16),
            elbo=dataclasses.replace(recipe.elbo, kl_weight=0.5),
        ),
    ]
    main(["train", "ldm", "--vae", str(vae)])
    assert asked[-1][0] == RECIPES["ldm"]
    assert asked[-1][2].recipe == diffusion_book.load(vae).recipe


# --- train ldm -----------------------------------------------------------------------------------


def test_the_folder_of_a_latent_model_is_complete_and_brings_its_vae(ldm, vae):
    assert ldm.name.endswith("-ldm")
    assert names_in(ldm) == FILES | {"denoising_steps"}
    assert names_in(ldm / "final_samples") == PICTURES
    assert len(names_in(ldm / "denoising_steps")) == 1 + 9  # the strip; the noise and 8 steps
    assert Image.open(ldm / "final_samples" / "sample_000.png").size == (28, 28)
    epochs = epochs_of(ldm)
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    own, given = final(ldm)["autoencoder"], final(vae)
    assert own["recipe"] == given["recipe"]
    assert hash_of_tensors(own["weights"]) == hash_of_tensors(given["ema"])
    loaded = diffusion_book.load(ldm, **FP32)
    assert loaded.sample(2, steps=4).shape == (2, 1, 28, 28)


def test_the_network_takes_the_shape_of_the_latents_from_the_vae(other_vae, tmp_path):
    folder = train("ldm", tmp_path, "--vae", other_vae / "checkpoints" / "final.pt", "--epochs", 1)
    network = final(folder)["recipe"]["network"]
    assert (network["in_channels"], network["image_size"]) == (3, 8)
    assert diffusion_book.load(folder, device="cpu").shape == (3, 8, 8)


def test_a_training_is_continued_without_naming_the_vae(ldm, vae, tmp_path):
    folder = train("ldm", tmp_path, "--vae", vae, "--epochs", 2)
    main(["train", "ldm", "--resume", str(folder), "--epochs", "3", *CPU])
    assert [record["epoch"] for record in epochs_of(folder)] == [1, 2, 3]
    assert [record["event"] for record in records_of(folder)].count("resume") == 1
    # In its second epoch the shorter training already cooled down.
    assert epochs_of(folder)[0]["train_loss"] == epochs_of(ldm)[0]["train_loss"]
    main(["train", "ldm", "--resume", str(folder), "--vae", str(vae), "--epochs", "4", *CPU])  # nor is it forbidden
    assert len(epochs_of(folder)) == 4


def test_what_is_not_the_vae_is_refused(ldm, vae, other_vae, ddpm, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new = [*tiny("ldm"), "--vae"]
    assert "there is no checkpoint nowhere" in refused(capsys, *new, "nowhere")
    assert "there is no checkpoint" in refused(capsys, *new, tmp_path / "none.pt")
    assert "no checkpoint in" in refused(capsys, *new, tmp_path)
    assert "holds a 'ddpm', not a 'vae'" in refused(capsys, *new, ddpm)
    assert "holds a 'ldm', not a 'vae'" in refused(capsys, *new, ldm)
    again = ["train", "ldm", "--resume", ldm, "--epochs", 4, "--vae"]
    assert "is not the one that the model was trained with" in refused(capsys, *again, other_vae)
    assert "is not the one" in refused(capsys, *again, vae / "checkpoints" / "epoch_0002.pt")
    assert "there is no checkpoint" in refused(capsys, *again, tmp_path / "none.pt")
    assert "holds a 'ldm', not a VAE" in refused(capsys, *again, ldm)
    assert not list(tmp_path.iterdir())
    assert len(epochs_of(ldm)) == 3


def test_latents_that_cannot_be_halved_are_refused(tmp_path, capsys):
    flat = train("vae-2d", tmp_path, "--epochs", 1)
    checkpoint = final(flat)
    checkpoint["recipe"]["model"] = "vae"  # one position, under the name that `train ldm` takes
    path = save_checkpoint(tmp_path / "flat.pt", checkpoint)
    line = refused(capsys, *tiny("ldm"), "--vae", path)
    assert "1 pixels cannot be folded by 1 and halved 1 times: give fewer channel_multipliers" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train vae --kl_weight -1", "kl_weight is -1.0: it must be at least 0"),
        ("train vae --kl_weight nan", "kl_weight is nan: it must be at least 0"),
        ("train vae --latent_channels 0", "latent_channels is 0: it must be at least 1"),
        ("train vae --channel_multipliers 1 1 1 1 1 1", "cannot be folded by 2 and halved 5 times"),
        ("train vae --image_size 30", "image_size is 30: choose 28, 32 or 64"),
        ("train vae --timesteps 10", "Unrecognized options: --timesteps, 10"),
        ("train vae --vae somewhere.pt", "Unrecognized options: --vae"),
        ("train ddpm --vae somewhere.pt", "Unrecognized options: --vae"),
        ("train ldm --in_channels 4", "Unrecognized options: --in_channels, 4"),
        ("train ldm --kl_weight 1", "Unrecognized options: --kl_weight, 1"),
        ("generate vae", "unknown model 'vae': choose one of ddpm, ldm"),
        ("generate ddpm --vae somewhere.pt", "'ddpm' works without a VAE: leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


def test_only_the_number_of_epochs_may_change(vae, ldm, capsys):
    for folder, model, option, value, before in (
        (vae, "vae", "kl_weight", "0.5", "1e-06"),
        (vae, "vae", "latent_channels", "4", "2"),
        (ldm, "ldm", "base_channels", "16", "8"),
    ):
        line = refused(capsys, "train", model, "--resume", folder, f"--{option}", value)
        assert f"--{option} {value} contradicts the checkpoint, which was trained with {before}" in line
    assert "holds a 'vae', not a 'ldm'" in refused(capsys, "train", "ldm", "--resume", vae)
    assert "holds a 'vae', not a 'vae-2d'" in refused(capsys, "train", "vae-2d", "--resume", vae)


# --- Interrupted ---------------------------------------------------------------------------------


class Killed(Exception):
    """In the place of SIGKILL: nothing of the training's own runs after it but what leaves the `with` blocks."""


@pytest.mark.parametrize("how", ["killed", "signalled"])
@pytest.mark.parametrize("model", ["vae", "ldm"])
def test_an_interrupted_training_gives_the_numbers_of_an_uninterrupted_one(
    tmp_path, monkeypatch, request, vae, model, how
):
    undisturbed = request.getfixturevalue(model)
    show = run._Run.show
    last = STEPS_PER_EPOCH + 4  # within the second epoch

    def interrupted(self, bar, report):
        show(self, bar, report)
        if report.step == last and how == "signalled":
            signal.raise_signal(signal.SIGTERM)
        elif report.step == last + 1:
            raise Killed

    options = ["--vae", vae] if model == "ldm" else []
    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "show", interrupted)
        patch.setattr(run, "SAVE_EVERY", 0.0)
        with pytest.raises(Killed if how == "killed" else SystemExit):
            train(model, tmp_path, "--epochs", 3, *options)
    (folder,) = tmp_path.iterdir()
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == last
    assert not (folder / "checkpoints" / "final.pt").exists()
    main(["train", model, "--resume", str(folder), *CPU])
    assert epochs_of(folder) == epochs_of(undisturbed)
    one, two = final(folder), final(undisturbed)
    for part in ("network", "ema"):
        assert hash_of_tensors(one[part]) == hash_of_tensors(two[part])
    assert (one["step"], one["ema_updates"]) == (two["step"], two["ema_updates"])
    for name in ("final_samples/grid.png", "epoch_samples/epoch_0002.png"):
        assert np.array_equal(Image.open(folder / name), Image.open(undisturbed / name))


# --- generate ldm --------------------------------------------------------------------------------


def generate(tmp_path, checkpoint, *options):
    """Run `generate ldm` and give the folder that it made."""
    before = set(tmp_path.iterdir())
    where = ["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path), *CPU]
    main(["generate", "ldm", *where, *map(str, options)])
    (folder,) = set(tmp_path.iterdir()) - before
    return folder


@pytest.mark.parametrize(
    ("options", "sampler", "steps"),
    [(["--mode", "ddpm"], "ddpm", 8), (["--mode", "ddim", "--ddim_steps", "4"], "ddim", 4)],
)
def test_samples_are_those_of_the_pipeline_with_and_without_the_vae(tmp_path, ldm, vae, options, sampler, steps):
    pipe = diffusion_book.load(ldm, **FP32)
    expected = pipe.sample(4, sampler=sampler, steps=steps, seed=7)
    for more in ([], ["--vae", vae]):
        folder = generate(tmp_path, ldm, "--num_samples", 4, "--seed", 7, *options, *more)
        assert names_in(folder) == {"grid.png", "grid.pdf", *(f"sample_{number:03d}" for number in range(4))}
        for sample in folder.glob("sample_*"):
            assert names_in(sample) == {"final.pdf", "denoising_strip.pdf", "denoising_steps"}
            assert len(names_in(sample / "denoising_steps")) == steps + 1
        drawn = np.array(Image.open(folder / "grid.png"))[::8, ::8]
        tiles = np.stack([drawn[2:30, 2 + 30 * column : 30 + 30 * column] for column in range(4)])
        difference = tiles.astype(int) - data.quantise(expected)[:, 0].numpy().astype(int)
        assert np.abs(difference).max() <= 1


def test_generate_refuses_what_does_not_belong_together(tmp_path, ldm, vae, other_vae, ddpm, capsys):
    here = ["--output-dir", tmp_path / "new"]
    given = ["generate", "ldm", "--checkpoint", ldm, *here]
    assert "is not the one that the model was trained with" in refused(capsys, *given, "--vae", other_vae)
    assert "there is no checkpoint" in refused(capsys, *given, "--vae", tmp_path / "none.pt")
    assert "holds a 'ldm', not a VAE" in refused(capsys, *given, "--vae", ldm)
    assert "holds a 'vae', not a 'ldm'" in refused(capsys, "generate", "ldm", "--checkpoint", vae, *here)
    assert "holds a 'ddpm', not a 'ldm'" in refused(capsys, "generate", "ldm", "--checkpoint", ddpm, *here)
    assert "9 steps: the number of steps must be 1 to 8" in refused(capsys, *given, "--ddim_steps", 9)
    assert not (tmp_path / "new").exists()


def test_figures_are_finite(vae, ldm):
    for folder in (vae, ldm):
        for record in records_of(folder):
            assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))


# --- Pictures of one's own ------------------------------------------------------------------------


def test_letters_are_trained_on_and_drawn_in_their_own_colours(tmp_path, monkeypatch):
    """Labels from 1 to 26, as EMNIST has them: more than the ten of MNIST."""
    digits = {split: data.load("digits", split) for split in ("train", "test")}
    letters = {
        split: data.Dataset("mnist", found.images, 1 + torch.arange(len(found)) % 26) for split, found in digits.items()
    }
    monkeypatch.setattr(data, "load", lambda name, split="train", **_: letters[split])
    folder = train("vae", tmp_path / "runs", "--epochs", 1)
    assert {path.name for path in (folder / "latent_space").iterdir()} == {"positions.png", "principal_components.png"}
    assert (folder / "checkpoints" / "final.pt").is_file()
    options = ["--checkpoint", str(folder), "--num_pictures", "60", "--no_umap", *CPU, "--output_dir", str(tmp_path)]
    main(["visualize", "latent-space", *options])
    colours = [colour_of_label(label) for label in range(27)]
    assert len(set(colours)) == 27
