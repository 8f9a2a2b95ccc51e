"""The commands of the latent models with classes from end to end, on tiny settings."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from tiny import (
    SMALL_CLASS_UNETS,
    SMALL_UNET,
    measured_entry,
    part_of_the_reference,
    random_autoencoder,
    random_class_pipeline,
)

import diffusion_book
from diffusion_book import data
from diffusion_book.cli import pretrain
from diffusion_book.cli.generate import ModelOptions, load_model
from diffusion_book.cli.main import main
from diffusion_book.cli.options import evaluate_options
from diffusion_book.evaluation import measures
from diffusion_book.models import weights
from diffusion_book.models.checkpoints import load_checkpoint, save_checkpoint
from diffusion_book.models.configs import ClassSetting
from diffusion_book.models.recipes import RECIPES, ConditionConfig, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.conditioning import cross_attention_maps
from diffusion_book.system.hashes import hash_of_tensors
from diffusion_book.training import run

MODELS = ("ldm-concat", "ldm-cross-attention")
TIMESTEPS = 6
CPU = ["--device", "cpu", "--precision", "fp32"]
FP32 = {"device": "cpu", "precision": "fp32"}  # the same for `load`
SMALL = "--base_channels 8 --channel_multipliers 1 --layers_per_block 1 --attention_levels 0"
RUN = f"--dataset digits --batch_size 256 --warmup_steps 2 --sample_every 2 --timesteps {TIMESTEPS}"
STEPS_PER_EPOCH = 1497 // 256
models = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """No test fills the user's cache with its latents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The checkpoint of a VAE that has learned nothing, which is quick."""
    autoencoder = random_autoencoder()
    state = autoencoder.network.state_dict()
    checkpoint = {"recipe": autoencoder.recipe.to_dict(), "network": state, "ema": state}
    return save_checkpoint(tmp_path_factory.mktemp("vae") / "vae.pt", checkpoint)


def train(model, output_dir, vae, *options):
    """Train on tiny settings, and give the experiment folder."""
    where = ["--vae", str(vae), "--output-dir", str(output_dir), *CPU]
    main(["train", model, *SMALL.split(), *RUN.split(), *where, *map(str, options)])
    (folder,) = output_dir.iterdir()
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vae):
    """Both models after two epochs that nothing interrupted: name -> experiment folder."""
    return {model: train(model, tmp_path_factory.mktemp(model), vae, "--epochs", 2) for model in MODELS}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Checkpoints of both models with random weights, whose pictures differ: name -> file."""
    folder, autoencoder = tmp_path_factory.mktemp("untrained"), random_autoencoder()
    found = {}
    for model in MODELS:
        pipe = random_class_pipeline(autoencoder, model, timesteps=TIMESTEPS)
        state = {"ema": pipe.network.state_dict(), "autoencoder": autoencoder.state_dict()}
        found[model] = save_checkpoint(folder / f"{model}.pt", {"recipe": pipe.recipe.to_dict(), **state})
    return found


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def epochs_of(folder):
    """The numbers of each epoch that do not depend on the clock."""
    keys = ("epoch", "step", "train_loss", "eval_loss", "lr", "gradient_norm")
    return [{key: record[key] for key in keys} for record in records_of(folder) if record["event"] == "epoch"]


def names_in(folder):
    return {path.name for path in folder.iterdir()}


# --- train ---------------------------------------------------------------------------------------


@models
def test_the_folder_of_a_model_with_classes_is_complete(trained, vae, model):
    folder = trained[model]
    assert folder.name.endswith(f"-{model}")
    files = {
        "config.txt",
        "training_log.txt",
        "metrics.jsonl",
        "loss_curves.png",
        "device_use.png",
        "performance_metrics.txt",
    }
    assert names_in(folder) == files | {"epoch_samples", "final_samples", "checkpoints", "denoising_steps"}
    assert names_in(folder / "checkpoints") == {"last.pt", "final.pt", "epoch_0002.pt"}
    assert names_in(folder / "final_samples") == {"grid.png", *(f"sample_{number:03d}.png" for number in range(80))}
    assert len(names_in(folder / "denoising_steps")) == 1 + TIMESTEPS + 1
    assert Image.open(folder / "final_samples" / "grid.png").size == (
        8 * (10 * 30 + 2),
        8 * (8 * 30 + 2),
    )  # a column a class
    config = (folder / "config.txt").read_text().splitlines()
    assert {"[condition]", "num_classes: 10", "unconditional_probability: 0.1", "guidance_scale: 3.0"} <= set(config)
    checkpoint = load_checkpoint(folder / "checkpoints" / "final.pt")
    assert hash_of_tensors(checkpoint["autoencoder"]["weights"]) == hash_of_tensors(load_checkpoint(vae)["ema"])


@models
def test_what_was_trained_knows_classes(trained, model):
    pipe = diffusion_book.load(trained[model], **FP32)
    assert pipe.num_classes == 10
    start = RECIPES[model].condition
    assert pipe.recipe.condition == start
    pictures = pipe.sample(10, steps=2)
    assert pictures.shape == (10, 1, 28, 28)
    drawn = np.array(Image.open(trained[model] / "final_samples" / "grid.png"))[::8, ::8]
    expected = data.quantise(pipe.sample(80, steps=TIMESTEPS, seed=1))[10:20, 0].numpy()
    tiles = np.stack([drawn[32:60, 2 + 30 * column : 30 + 30 * column] for column in range(10)])
    assert np.abs(tiles.astype(int) - expected.astype(int)).max() <= 1
    with cross_attention_maps(pipe.network) as maps:
        pipe.sample(2, steps=1, guidance_scale=1.0)
    assert len(maps) == (0 if model == "ldm-concat" else 4)  # down, middle, twice up


def asked_for(monkeypatch, tmp_path, *arguments):
    """The recipe that `train` would follow."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "diffusion_book.cli.train.run_training", lambda *given, **named: asked.append(given[0]) or tmp_path
        )
        main(["train", *map(str, arguments)])
    return asked[0]


@pytest.mark.parametrize("sign", ["-", "_"])
def test_defaults_are_the_recipe_and_options_change_it(monkeypatch, tmp_path, vae, sign):
    def recipe_of(options):
        words = [word.replace("_", sign) if word.startswith("--") else word for word in options.split()]
        return asked_for(monkeypatch, tmp_path, *words, "--vae", vae)

    for model in MODELS:
        assert recipe_of(model) == RECIPES[model]
    common = "--unconditional_probability 0.25 --guidance_scale 1.5 --num_classes 12 --epochs 7"
    concat, tokens = RECIPES["ldm-concat"], RECIPES["ldm-cross-attention"]
    condition = ConditionConfig(12, 4, 0.25, 1.5)
    assert recipe_of(f"ldm-concat {common} --concat_channels 2") == dataclasses.replace(
        concat,
        training=dataclasses.replace(concat.training, epochs=7),
        network=dataclasses.replace(concat.network, concat_channels=2),
        condition=condition,
    )
    assert recipe_of(f"ldm-cross-attention {common} --cross_attention_dim 64 --num_tokens 3") == dataclasses.replace(
        tokens,
        training=dataclasses.replace(tokens.training, epochs=7),
        network=dataclasses.replace(tokens.network, context_dim=64),
        condition=dataclasses.replace(condition, num_tokens=3),
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "ldm-concat --unconditional_probability 1",
            "unconditional_probability is 1.0: it must be at least 0 and below",
        ),
        ("ldm-concat --unconditional-probability -0.1", "unconditional_probability is -0.1: it must be at least 0"),
        ("ldm-cross-attention --unconditional_probability nan", "unconditional_probability is nan: it must be"),
        (
            "ldm-cross-attention --unconditional_probability often",
            "--unconditional-probability is 'often': give a number",
        ),
        ("ldm-concat --guidance_scale nan", "guidance_scale is nan: it must be a finite number"),
        ("ldm-concat --num_classes 0", "num_classes is 0: it must be at least 1"),
        ("ldm-cross-attention --num_tokens 0", "num_tokens is 0: it must be at least 1"),
        ("ldm-cross-attention --cross_attention_dim 0", "needs either concat_channels or context_dim"),
        ("ldm-concat --concat_channels 0", "needs either concat_channels or context_dim"),
        ("ldm-concat --num_classes 9", "digits has 10 classes, the model 9: raise --num_classes"),
        ("ldm-cross-attention --num-classes 5", "digits has 10 classes, the model 5: raise --num_classes"),
        ("ldm-concat --cross_attention_dim 64", "Unrecognized options: --cross_attention_dim, 64"),
        ("ldm-concat --num_tokens 4", "Unrecognized options: --num_tokens, 4"),
        ("ldm-cross-attention --concat_channels 4", "Unrecognized options: --concat_channels, 4"),
        ("ldm-cross-attention --context_dim 4", "Unrecognized options: --context_dim, 4"),
        ("ldm --unconditional_probability 0.1", "Unrecognized options: --unconditional_probability, 0.1"),
        ("ldm --num_classes 10", "Unrecognized options: --num_classes, 10"),
    ],
)
def test_train_refuses(arguments, said, vae, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = ["--vae", vae, "--dataset", "digits", *CPU]
    assert said in refused(capsys, "train", *arguments.split(), *where)
    assert not list(tmp_path.iterdir())


def test_no_class_need_be_left_over(tmp_path, vae):
    """More classes than the data have is fine; they are drawn too, untrained."""
    folder = train("ldm-concat", tmp_path, vae, "--epochs", 1, "--num_classes", 12, "--unconditional_probability", 0)
    pipe = diffusion_book.load(folder, **FP32)
    assert pipe.num_classes == 12
    assert pipe.sample(1, labels=11, steps=1).isfinite().all()
    assert Image.open(folder / "final_samples" / "grid.png").size == (8 * (12 * 30 + 2), 8 * (8 * 30 + 2))


class Killed(Exception):
    """In the place of SIGKILL."""


@pytest.mark.parametrize(("model", "how"), [("ldm-concat", "killed"), ("ldm-cross-attention", "signalled")])
def test_an_interrupted_training_gives_the_numbers_of_an_uninterrupted_one(
    tmp_path, monkeypatch, trained, vae, model, how
):
    """So the same labels are hidden again, whichever step it was."""
    show, last = run._Run.show, STEPS_PER_EPOCH + 2  # within the second epoch

    def interrupted(self, bar, report):
        show(self, bar, report)
        if report.step == last and how == "signalled":
            signal.raise_signal(signal.SIGTERM)
        elif report.step == last + 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run._Run, "show", interrupted)
        patch.setattr(run, "SAVE_EVERY", 0.0)
        with pytest.raises(Killed if how == "killed" else SystemExit):
            train(model, tmp_path, vae, "--epochs", 2)
    (folder,) = tmp_path.iterdir()
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["step"] == last
    main(["train", model, "--resume", str(folder), *CPU])
    assert epochs_of(folder) == epochs_of(trained[model])
    one, two = (load_checkpoint(each / "checkpoints" / "final.pt") for each in (folder, trained[model]))
    for part in ("network", "ema"):
        assert hash_of_tensors(one[part]) == hash_of_tensors(two[part])
    for name in ("final_samples/grid.png", "epoch_samples/epoch_0002.png"):
        assert np.array_equal(Image.open(folder / name), Image.open(trained[model] / name))


@pytest.mark.parametrize(
    ("model", "option", "value", "before"),
    [
        ("ldm-concat", "unconditional_probability", "0.5", "0.1"),
        ("ldm-concat", "concat_channels", "2", "4"),
        ("ldm-cross-attention", "num_tokens", "2", "4"),
        ("ldm-cross-attention", "cross_attention_dim", "64", "128"),
    ],
)
def test_a_training_is_not_continued_as_another_one(trained, capsys, model, option, value, before):
    line = refused(capsys, "train", model, "--resume", trained[model], f"--{option}", value)
    assert f"--{option} {value} contradicts the checkpoint, which was trained with {before}" in line


def test_a_model_of_the_other_route_is_refused(untrained, capsys, tmp_path):
    one, other = MODELS
    for command, option in (("train", "--resume"), ("generate", "--checkpoint"), ("evaluate", "--checkpoint")):
        where = ["--output-dir", tmp_path / "new"]
        said = refused(capsys, command, one, option, untrained[other], *where)
        assert f"holds a '{other}', not a '{one}'" in said
    assert not (tmp_path / "new").exists()


# --- generate ------------------------------------------------------------------------------------


def generate(model, tmp_path, checkpoint, *options):
    """Run `generate` and give the folder that it made."""
    before = set(tmp_path.iterdir())
    main(["generate", model, "--checkpoint", str(checkpoint), "--output-dir", str(tmp_path), *CPU, *options])
    (folder,) = set(tmp_path.iterdir()) - before
    return folder


def tiles_of(path, number, columns):
    drawn = np.array(Image.open(path))[::8, ::8].astype(int)
    corners = [(2 + 30 * (index // columns), 2 + 30 * (index % columns)) for index in range(number)]
    return np.stack([drawn[row : row + 28, column : column + 28] for row, column in corners])


@models
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (
            "--class_label 7 --guidance_scale 2.5 --num_samples 3 --sampling_steps 4 --eta 0.5",
            {"num_samples": 3, "labels": 7, "guidance_scale": 2.5, "steps": 4, "eta": 0.5},
        ),
        (
            "--class-label 7 --guidance-scale 2.5 --num-samples 3 --sampling-steps 4 --eta 0.5 --batch-size 2",
            {"num_samples": 3, "labels": 7, "guidance_scale": 2.5, "steps": 4, "eta": 0.5},
        ),
        ("--sampling_steps 3", {"num_samples": 10, "guidance_scale": 3.0, "steps": 3}),
        (
            "--class_label -1 --num_samples 2 --sampling_steps 2 --seed 4",
            {"num_samples": 2, "labels": -1, "steps": 2, "seed": 4},
        ),
        (
            "--guidance_scale -1 --num_samples 2 --sampling_steps 2 --sampler heun",
            {"num_samples": 2, "guidance_scale": -1.0, "steps": 2, "sampler": "heun"},
        ),
    ],
)
def test_generated_pictures_are_those_of_the_pipeline(tmp_path, untrained, model, options, arguments):
    folder = generate(model, tmp_path, untrained[model], *options.split())
    number, columns = arguments["num_samples"], 10
    assert names_in(folder) == {"grid.png", "grid.pdf", *(f"sample_{index:03d}" for index in range(number))}
    for sample in folder.glob("sample_*"):
        assert names_in(sample) == {"final.pdf", "denoising_strip.pdf", "denoising_steps"}
        assert len(names_in(sample / "denoising_steps")) == arguments["steps"] + 1
    pipe = load_model(model, ModelOptions(untrained[model], **FP32))
    expected = data.quantise(pipe.sample(**arguments))[:, 0].numpy().astype(int)
    assert np.abs(tiles_of(folder / "grid.png", number, columns) - expected).max() <= 1
    other = data.quantise(pipe.sample(**{**arguments, "labels": 5}))[:, 0].numpy().astype(int)
    assert np.abs(other - expected).max() > 5  # the class is to be seen


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--class_label 10", "labels from 10 to 10: 'ldm-concat' knows the classes 0 to 9, and -1 for none"),
        ("--class_label -2", "labels from -2 to -2"),
        (
            "--class_label seven",
            "--class_label is 'seven': 'ldm-concat' knows the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        ),
        ("--class_label 1.5", "--class_label is '1.5': 'ldm-concat' knows the classes 0, 1, "),
        ("--guidance_scale nan", "guidance_scale is nan: give a finite number"),
        ("--guidance_scale inf", "guidance_scale is inf: give a finite number"),
        ("--guidance_scale much", "--guidance-scale is 'much': give a number"),
        ("--num_samples 0", "0 samples: give at least 1"),
        ("--sampling_steps 0", f"0 steps: the number of steps must be 1 to {TIMESTEPS}"),
        ("--sampling_steps 7", f"7 steps: the number of steps must be 1 to {TIMESTEPS}"),
        ("--sampling_steps 3 --eta 1.5", "eta is 1.5: it must be between 0"),
        ("--sampling_steps 3 --sampler leapfrog", "unknown sampler 'leapfrog': choose one of ddpm, ddim"),
        ("--sampling_steps 3 --seed -1", "seed is -1: it must be 0 or more"),
        ("--mode ddim", "Unrecognized options: --mode, ddim"),
    ],
)
def test_generate_refuses(options, said, tmp_path, untrained, capsys):
    given = ["--checkpoint", untrained["ldm-concat"], "--output-dir", tmp_path / "new", *CPU]
    if "--sampling_steps" not in options:
        given += ["--sampling_steps", "3"]
    assert said in refused(capsys, "generate", "ldm-concat", *given, *options.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("option", ["--class_label 3", "--guidance_scale 2"])
def test_a_model_without_classes_has_no_such_options(option, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("generate ldm", "generate ddpm", "evaluate ldm"):
        assert "Unrecognized options" in refused(capsys, *command.split(), *option.split())
    assert not list(tmp_path.iterdir())


# --- evaluate ------------------------------------------------------------------------------------


@models
def test_evaluate_asks_for_classes_at_random_and_says_how_many_were_met(tmp_path, untrained, model, capsys):
    options = ["--num_samples", "30", "--steps", "2", "--guidance_scale", "2", "--seed", "3", "--batch_size", "20"]
    where = ["--checkpoint", str(untrained[model]), "--output-dir", str(tmp_path), *CPU]
    with part_of_the_reference():
        main(["evaluate", model, *options, *where])
        said = capsys.readouterr().out.splitlines()
        pipe = load_model(model, ModelOptions(untrained[model], **FP32))
        labels = measures.random_labels(30)
        images = pipe.sample(30, labels=labels, guidance_scale=2.0, steps=2, seed=3)
        expected = measures.measure(images, labels).to_dict()
    (folder,) = tmp_path.iterdir()
    assert said[-1] == str(folder)
    found = json.loads((folder / "measures.json").read_text())
    assert found["cfid"] == pytest.approx(expected["cfid"], rel=1e-3)
    assert found["class_accuracy"] == expected["class_accuracy"]
    assert (found["guidance_scale"], found["steps"], found["num_samples"], found["seed"]) == (2.0, 2, 30, 3)
    assert any("guidance 2" in line for line in said)
    assert any(line.startswith("class ") for line in said)


def test_evaluate_refuses(tmp_path, untrained, capsys):
    where = ["--checkpoint", untrained["ldm-concat"], "--output-dir", tmp_path / "new", *CPU, "--steps", "3"]
    for options, said in (
        ("--guidance_scale nan", "guidance_scale is nan: give a finite number"),
        ("--class_label 3", "Unrecognized options: --class_label, 3"),
        ("--num_samples 3", "3 samples: the measures need 10 to 60000"),
    ):
        assert said in refused(capsys, "evaluate", "ldm-concat", *where, *options.split())
    assert not (tmp_path / "new").exists()


# --- pretrain ------------------------------------------------------------------------------------


@pytest.fixture
def tiny_recipes(monkeypatch):
    """Recipes on the small digits that are done in seconds, under the names of the real ones."""
    training = TrainingConfig(dataset="digits", epochs=1, batch_size=256, warmup_steps=2, ema_decay=0.5)
    for model, network in SMALL_CLASS_UNETS.items():
        diffusion = DiffusionConfig(timesteps=TIMESTEPS)
        monkeypatch.setitem(
            RECIPES, model, Recipe(model, training, network, diffusion, ConditionConfig(), is_latent=True)
        )
        settings = (ClassSetting("ddim", 2, guidance_scale=0.0), ClassSetting("ddim", 2, guidance_scale=3.0))
        monkeypatch.setitem(pretrain.SETTINGS, model, settings)
    assert SMALL_UNET.image_size == 4  # fits the VAE below


@models
def test_pretrain_measures_at_several_scales_and_once(tiny_recipes, tmp_path, monkeypatch, model):
    autoencoder = random_autoencoder()
    card = {"model": "vae", "recipe": autoencoder.recipe.to_dict()}
    weights.write_weights("vae", autoencoder.network.state_dict(), card, tmp_path)
    measured = []

    def evaluate(pipe, setting):
        measured.append(setting.guidance_scale)
        images = pipe.sample(**{**dataclasses.asdict(setting), "num_samples": 10})
        return images, measured_entry(setting, images)

    def score(images, labels):
        assert labels.tolist() == [number % 10 for number in range(20)]
        return round(images.mean().abs().item(), 4)

    monkeypatch.setattr(pretrain, "evaluate", evaluate)
    monkeypatch.setattr(pretrain, "SUBSTITUTE", ClassSetting("ddim", 2, num_samples=20))
    monkeypatch.setattr(pretrain, "classification_accuracy_score", score)
    options = [*CPU, "--weights-dir", str(tmp_path)]
    main(["pretrain", model, *options, "--output-dir", f"{tmp_path}/runs"])
    (folder,) = (tmp_path / "runs").iterdir()
    card, tensors = weights.read_card(model, tmp_path), weights.read_weights(model, tmp_path)
    ema = load_checkpoint(folder / "checkpoints" / "final.pt")["ema"]
    assert all(torch.equal(tensors[name], ema[name].half().float()) for name in ema)
    assert card["recipe"] == RECIPES[model].to_dict()
    assert card["vae_sha256"] == weights.read_card("vae", tmp_path)["sha256"]
    assert [entry["guidance_scale"] for entry in card["metrics"]] == measured == [0.0, 3.0]
    assert card["classification_accuracy_score"]["num_samples"] == 20
    assert card["classification_accuracy_score"]["guidance_scale"] == 1.0

    again = ["--from-checkpoint", str(folder), "--replace"]
    main(["pretrain", model, *options, *again])  # the same weights: nothing is measured twice
    assert measured == [0.0, 3.0]
    assert weights.read_card(model, tmp_path)["metrics"] == card["metrics"]

    more = (*pretrain.SETTINGS[model], ClassSetting("ddim", 3, guidance_scale=1.0))
    monkeypatch.setitem(pretrain.SETTINGS, model, more)
    main(["pretrain", model, *options, "--no-train"])  # what the card does not tell yet, and nothing else
    assert measured == [0.0, 3.0, 1.0]
    again = weights.read_card(model, tmp_path)
    assert again == {**card, "metrics": again["metrics"]}
    assert again["metrics"][:2] == card["metrics"]
    assert all(torch.equal(tensors[name], value) for name, value in weights.read_weights(model, tmp_path).items())


def test_pretrain_refuses_a_model_of_another_vae(tiny_recipes, tmp_path, capsys):
    for number in range(2):
        autoencoder = random_autoencoder(seed=number)
        card = {"model": "vae", "recipe": autoencoder.recipe.to_dict()}
        weights.write_weights("vae", autoencoder.network.state_dict(), card, tmp_path / str(number))
    options = [*CPU, "--no-measure", "--output-dir", f"{tmp_path}/runs"]
    main(["pretrain", "ldm-concat", *options, "--weights-dir", str(tmp_path / "0")])
    (folder,) = (tmp_path / "runs").iterdir()
    line = refused(
        capsys, "pretrain", "ldm-concat", "--from-checkpoint", folder, *options, "--weights-dir", tmp_path / "1"
    )
    assert "was trained with another VAE than the one in" in line
    assert not (tmp_path / "1" / "ldm-concat.safetensors").exists()


def test_no_train_only_measures(capsys):
    for option in (["--from-checkpoint", "x.pt"], ["--resume", "x"], ["--no-measure"]):
        assert "--no-train only measures" in refused(capsys, "pretrain", "ldm-concat", "--no-train", *option)


def test_the_default_of_evaluate_stands_on_every_card():
    """Whoever types `diffusion-book evaluate NAME` gets the figure to compare with."""
    for name, settings in pretrain.SETTINGS.items():
        assert evaluate_options(name).setting == settings[0], name


def test_measures_of_digits_are_refused_to_other_pictures(capsys, tmp_path, untrained):
    checkpoint = load_checkpoint(untrained["ldm-concat"])
    checkpoint["recipe"]["training"]["dataset"] = "kmnist"
    torch.save(checkpoint, tmp_path / "letters.pt")
    line = refused(capsys, "evaluate", "ldm-concat", "--checkpoint", tmp_path / "letters.pt", *CPU, "--steps", 3)
    assert "this model draws kmnist, and the measures know mnist" in line
    assert line.endswith("alone: give a model of these")
