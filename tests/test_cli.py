"""The commands: how they are asked, how they refuse, and `pretrain` and `doctor` from end to end."""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from commands import refused
from tiny import measured_entry

import diffusion_book
from diffusion_book import data
from diffusion_book.cli import doctor, pretrain
from diffusion_book.cli.main import COMMANDS, first_line, main
from diffusion_book.models import weights
from diffusion_book.models.checkpoints import load_checkpoint, save_checkpoint
from diffusion_book.models.configs import Setting
from diffusion_book.models.recipes import RECIPES, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNetConfig

ROOT = Path(__file__).parents[1]
CPU = ["--device", "cpu", "--precision", "fp32"]


def test_without_arguments_it_lists_the_commands_and_imports_no_torch():
    code = "import sys; from diffusion_book.cli.main import main; main([]); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    *listed, torch_was_imported = said.splitlines()
    assert torch_was_imported == "False"
    assert all(any(line.split()[:1] == [name] for line in listed) for name in COMMANDS)


def test_as_a_process_it_refuses_with_one_line_and_code_2():
    command = [sys.executable, "-m", "diffusion_book", "walk"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: unknown command 'walk': choose one of {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize(
    "command",
    [
        *("train ddpm", "train vae", "train ldm", "train ldm-concat", "train ldm-cross-attention"),
        *("generate ldm", "generate ldm-concat", "evaluate vae", "evaluate ldm-cross-attention", "pretrain"),
    ],
)
def test_help_tells_every_option_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    options = re.findall(r"^[│ ] (--[a-z][a-z-]*)", said, re.MULTILINE)  # a box, with or without its fine characters
    assert len(options) > 5
    assert "--device" in options
    assert said.count("(default:") >= len(options)
    assert "{None}" not in said


@pytest.mark.parametrize("word", ["--version", "version"])
def test_it_tells_its_version(word, capsys):
    main([word])
    assert capsys.readouterr().out == f"diffusion-book {diffusion_book.__version__}\n"


def test_what_a_reader_calls_first_is_listed_and_there():
    assert {"load", "list_models", "Pipeline", "BookError"} <= set(dir(diffusion_book))
    code = "import diffusion_book; diffusion_book.evaluation.clinic.examine"  # as the README says it
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_line_bridges_a_silence_on_a_terminal_alone(capsys, monkeypatch):
    monkeypatch.setattr("diffusion_book.cli.bench.main", lambda arguments: 0)
    main(["bench"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["bench"])
    assert capsys.readouterr().err == "starting ...\n"


def test_boxes_of_the_parser_become_one_line():
    said = "Error parsing --lr: invalid literal 'x' Perhaps: --lr FLOAT"
    fine = """\x1b[31m╭─ Value error ──────────────────────╮\x1b[0m
│ Error parsing --lr: invalid        │
│ literal 'x'                        │
│ ────────────────────────────────── │
│ Perhaps:                           │
│     --lr FLOAT                     │
╰────────────────────────────────────╯
"""
    plain = """ Value error
 -----------------------------------
  Error parsing --lr: invalid
  literal 'x'
  -----------------------------------
  Perhaps:
      --lr FLOAT
  -----------------------------------
  For full helptext, see train --help

"""
    assert first_line(fine) == first_line(plain) == said


def test_models_are_listed(capsys):
    for command in ("train", "generate", "evaluate"):
        for arguments in ([command], [command, "--help"]):
            main(arguments)
            assert "models: ddpm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("walk", "unknown command 'walk': choose one of train, generate"),
        ("train gan", "unknown model 'gan': choose one of ddpm"),
        ("train --epochs 3", "needs a model before the options"),
        ("train ddpm --epochs three", "--epochs is 'three': give a whole number (diffusion-book train"),
        ("train ddpm --max-minutes soon", "--max-minutes is 'soon': give a number (diffusion-book train"),
        ("bench --threads three", "--threads is 'three': give a whole number (diffusion-book bench"),
        ("train ddpm --output-dir=", "--output-dir is empty: give it a value"),
        ("train ddpm --rewind", "--rewind goes with --resume"),
        ("train ddpm --epochs", "Missing value for argument '--epochs'"),
        ("train ddpm --epcohs 3", "Unrecognized options: --epcohs, 3 Perhaps you meant: --epochs"),
        ("train ddpm --image_size 30", "image_size is 30: choose 28, 32 or 64"),
        ("train ddpm --epochs 0", "epochs is 0: it must be at least 1"),
        ("train ddpm --schedule sigmoid", "unknown schedule 'sigmoid': choose one of cosine, linear"),
        ("train ddpm --target x", "unknown target 'x': choose one of"),
        ("train ddpm --attention_levels 5", "attention level 5 does not exist"),
        ("train ddpm --patch_size 64", "cannot be folded by 64"),
        ("train ddpm --dataset digits --device cuda:99", "device 'cuda:99' is not there"),
        ("train ddpm --dataset digits --device abacus", "unknown device 'abacus'"),
        ("train ddpm --dataset digits --precision fp8", "unknown precision 'fp8'"),
        ("train ddpm --dataset digits --batch_size 100000", "lower --batch_size"),
        ("train ddpm --dataset digits --max-minutes 0", "max_minutes is 0.0: it must be above 0"),
        ("train ddpm --resume nowhere", "there is no checkpoint nowhere"),
        (
            "pretrain",
            "nothing to make: name one of classifier, classifier-check, reference, ddpm, vae, vae-2d, ldm, ldm-concat,",
        ),
        ("pretrain gan", "unknown name 'gan'"),
        ("pretrain classifier ddpm --resume nowhere", "belong to one name"),
        ("pretrain ddpm --from-checkpoint nowhere.pt", "there is no checkpoint nowhere.pt"),
        ("doctor --fast", "Unrecognized options: --fast"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *arguments.split())
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("a file, not a folder")
    for arguments in (["train", "ddpm", "--dataset", "digits"],):
        line = refused(capsys, *arguments, "--output-dir", tmp_path / "file" / "inside")
        assert "cannot make the folder" in line
        assert "choose another folder" in line


def test_defaults_are_the_recipe(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "diffusion_book.cli.train.run_training", lambda *given, **named: asked.append(given) or tmp_path
    )
    main(["train", "ddpm"])
    main(
        [
            "train",
            "ddpm",
            "--epochs",
            "7",
            "--lr",
            "0.5",
            "--batch_size",
            "9",
            "--timesteps",
            "11",
            "--base-channels",
            "8",
            "--sample_every",
            "3",
        ]
    )
    main(
        [
            "train",
            "ddpm",
            "--channel_multipliers",
            "1",
            "3",
            "--layers_per_block",
            "4",
            "--attention-levels",
            "0",
            "1",
            "--patch_size",
            "4",
        ]
    )
    assert [recipe for recipe, *_ in asked] == [
        RECIPES["ddpm"],
        dataclasses.replace(
            RECIPES["ddpm"],
            training=dataclasses.replace(RECIPES["ddpm"].training, epochs=7, lr=0.5, batch_size=9, sample_every=3),
            network=dataclasses.replace(RECIPES["ddpm"].network, base_channels=8),
            diffusion=dataclasses.replace(RECIPES["ddpm"].diffusion, timesteps=11),
        ),
        dataclasses.replace(
            RECIPES["ddpm"],
            network=dataclasses.replace(
                RECIPES["ddpm"].network,
                channel_multipliers=(1, 3),
                layers_per_block=4,
                attention_levels=(0, 1),
                patch_size=4,
            ),
        ),
    ]


# --- pretrain ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_recipes(monkeypatch):
    """Recipes on the small digits that are done in seconds, under the names of the real ones."""
    training = TrainingConfig(dataset="digits", epochs=2, lr=2e-3, warmup_steps=5, ema_decay=0.9, sample_every=2)
    for name in ("classifier", "classifier-check"):
        monkeypatch.setitem(RECIPES, name, Recipe(name, training))
    network = UNetConfig(8, (1, 2), layers_per_block=1, attention_levels=(1,), patch_size=4)
    monkeypatch.setitem(RECIPES, "ddpm", Recipe("ddpm", training, network, DiffusionConfig(timesteps=8)))


def test_pretrained_classifier_has_a_card_with_its_accuracy(tiny_recipes, tmp_path, capsys):
    main(
        [
            "pretrain",
            "classifier",
            "--device",
            "cpu",
            "--output-dir",
            f"{tmp_path}/runs",
            "--weights-dir",
            str(tmp_path),
        ]
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "classifier.safetensors")
    card = weights.read_card("classifier", tmp_path)
    assert card["recipe"] == RECIPES["classifier"].to_dict()
    assert card["command"] == "diffusion-book pretrain classifier"
    assert card["data_set"] == "digits"
    assert card["torch"] == torch.__version__
    assert [point["epoch"] for point in card["learning_curve"]] == [1, 2]
    # What the card tells is measured with what was stored, in half precision.
    network = pretrain.load_classifier("classifier", tmp_path)
    assert card["test_accuracy"] == pretrain.accuracy(network, data.load("digits", "test"))
    assert card["test_accuracy"] == pytest.approx(card["learning_curve"][-1]["test_accuracy"], abs=0.01)


def test_pretrained_model_is_its_averaged_weights_and_keeps_its_measures(tiny_recipes, tmp_path, monkeypatch, capsys):
    measured = []

    def evaluate(pipe, setting):
        measured.append(setting)
        images = pipe.sample(**{**dataclasses.asdict(setting), "num_samples": 2})
        return images, measured_entry(setting, images)

    monkeypatch.setattr(pretrain, "evaluate", evaluate)
    monkeypatch.setitem(pretrain.SETTINGS, "ddpm", (Setting("ddim", 4), Setting("ddpm", 8)))
    options = ["--device", "cpu", "--precision", "fp32", "--weights-dir", str(tmp_path)]
    main(["pretrain", "ddpm", *options, "--output-dir", f"{tmp_path}/runs"])
    (folder,) = (tmp_path / "runs").iterdir()
    card, tensors = weights.read_card("ddpm", tmp_path), weights.read_weights("ddpm", tmp_path)
    ema = load_checkpoint(folder / "checkpoints" / "final.pt")["ema"]
    assert all(torch.equal(tensors[name], ema[name].half().float()) for name in ema)
    assert {"minutes", "machine", "threads", "date", "parameters", "sha256"} <= card.keys()
    assert [point["step"] for point in card["learning_curve"]] == [11, 22]
    assert [(entry["sampler"], entry["steps"]) for entry in card["metrics"]] == [("ddim", 4), ("ddpm", 8)]

    # The same weights again: nothing is measured twice. Other weights: nothing old is kept.
    options += ["--replace"]
    main(["pretrain", "ddpm", *options, "--from-checkpoint", str(folder)])
    assert len(measured) == 2
    assert weights.read_card("ddpm", tmp_path)["metrics"] == card["metrics"]
    checkpoint = load_checkpoint(folder / "checkpoints" / "final.pt")
    checkpoint["ema"] = {name: value + 1 for name, value in checkpoint["ema"].items()}
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    main(["pretrain", "ddpm", *options, "--from-checkpoint", str(tmp_path / "other.pt"), "--no-measure"])
    assert "metrics" not in weights.read_card("ddpm", tmp_path)


def test_weights_that_are_there_stay_until_the_new_ones_are_measured(tiny_recipes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(pretrain.SETTINGS, "ddpm", (Setting("ddim", 4),))
    main(["pretrain", "ddpm", *CPU, "--no-measure"])
    assert capsys.readouterr().out.splitlines()[-1] == "pretrained/ddpm.safetensors"
    before = {path.name: path.read_bytes() for path in (tmp_path / "pretrained").iterdir()}
    (folder,) = (tmp_path / "experiments").iterdir()
    other = load_checkpoint(folder / "checkpoints" / "final.pt")
    other["ema"] = {name: value + 1 for name, value in other["ema"].items()}
    again = ["pretrain", "ddpm", *CPU, "--from-checkpoint", str(save_checkpoint(tmp_path / "other.pt", other))]
    assert "pretrained has weights of ddpm already" in refused(capsys, *again)

    def interrupted(pipe, setting):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "evaluate", interrupted)
    again += ["--weights-dir", "pretrained", "--replace"]
    with pytest.raises(SystemExit, match="130"):
        main(again)
    assert {path.name: path.read_bytes() for path in (tmp_path / "pretrained").iterdir() if path.is_file()} == before
    measured = {**measured_entry(Setting("ddim", 4), torch.zeros(2, 1, 28, 28)), "cfid": 2.0}
    monkeypatch.setattr(pretrain, "evaluate", lambda pipe, setting: (None, measured))
    main(again)
    assert {path.name for path in (tmp_path / "pretrained").iterdir()} == set(before)
    tensors = weights.read_weights("ddpm", tmp_path / "pretrained")
    assert all(torch.equal(tensors[name], value.half().float()) for name, value in other["ema"].items())
    assert [entry["cfid"] for entry in weights.read_card("ddpm", tmp_path / "pretrained")["metrics"]] == [2.0]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
def test_a_folder_for_weights_that_cannot_be_is_refused_before_the_training(capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "train", lambda *_: pytest.fail("it trained"))
    assert "cannot make the folder /proc/x" in refused(capsys, "pretrain", "vae", "--weights_dir", "/proc/x")


def test_doctor_notices_weights_that_were_made_with_others(tmp_path, monkeypatch):
    made = {
        "vae": {},
        "ldm": {"vae_sha256": "of another"},
        "ldm-concat": {},
        "reference": {"classifiers": {"vae": "x"}},
    }
    for name, card in made.items():
        weights.write_weights(name, {"w": torch.ones(2)}, card, tmp_path)
    own = weights.read_card("vae", tmp_path)["sha256"]
    weights.write_card("ldm-concat", {**weights.read_card("ldm-concat", tmp_path), "vae_sha256": own}, tmp_path)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(weights, "shipped", lambda: list(made))
    said = {text.split()[1].strip(":"): (level, text) for level, text in doctor.shipped_weights()}
    assert {name: level for name, (level, _) in said.items()} == {
        "vae": "ok",
        "ldm": "fail",
        "ldm-concat": "ok",
        "reference": "fail",
    }
    assert "made with another VAE than is here" in said["ldm"][1]


def test_weights_that_are_trained_longer_start_where_they_were_and_their_card_counts_both(
    tiny_recipes, tmp_path, capsys
):
    options = ["--device", "cpu", "--precision", "fp32", "--no-measure", "--weights-dir", str(tmp_path)]
    main(["pretrain", "ddpm", *options, "--output-dir", f"{tmp_path}/runs"])
    first, stored = weights.read_card("ddpm", tmp_path), weights.read_weights("ddpm", tmp_path)
    standing_still = dataclasses.replace(RECIPES["ddpm"].training, lr=1e-30)
    RECIPES["ddpm"] = dataclasses.replace(RECIPES["ddpm"], training=standing_still)
    options += ["--replace"]
    main(["pretrain", "ddpm", *options, "--output-dir", f"{tmp_path}/more", "--longer"])
    second, longer = weights.read_card("ddpm", tmp_path), weights.read_weights("ddpm", tmp_path)
    assert all(torch.equal(longer[name], stored[name]) for name in stored)
    assert second["steps"] == 2 * first["steps"] == second["learning_curve"][-1]["step"]
    assert [point["epoch"] for point in second["learning_curve"]] == [1, 2, 3, 4]
    assert second["learning_curve"][:2] == first["learning_curve"]
    assert second["commands"] == [first["command"], "diffusion-book pretrain ddpm --longer"]

    wider = dataclasses.replace(RECIPES["ddpm"].network, base_channels=16)
    RECIPES["ddpm"] = dataclasses.replace(RECIPES["ddpm"], network=wider)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "ddpm", *options, "--output-dir", f"{tmp_path}/wider", "--longer"])
    assert "another network" in capsys.readouterr().err
    assert not (tmp_path / "wider").exists()
    assert weights.read_card("ddpm", tmp_path) == second


def test_reference_is_what_the_classifiers_see(tmp_path, monkeypatch):
    for name in ("classifier", "classifier-check"):
        for suffix in (".json", ".safetensors"):
            (tmp_path / (name + suffix)).write_bytes((weights.FOLDER / (name + suffix)).read_bytes())
    digits = {split: data.load("digits", split) for split in ("train", "test")}
    monkeypatch.setattr(pretrain.data, "load", lambda name, split: digits[split])
    main(["pretrain", "reference", "--weights-dir", str(tmp_path)])
    found = weights.read_weights("reference", tmp_path)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "train": (1497, 64),
        "test": (300, 64),
        "confident": (),
    }
    network = pretrain.load_classifier("classifier", tmp_path)
    expected = network.features(digits["test"].images[:5].float() / 127.5 - 1)
    torch.testing.assert_close(found["test"][:5], expected, rtol=2e-3, atol=2e-3)  # stored as float16
    assert 0 < found["confident"] <= 1


# --- doctor -----------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong_here(capsys):
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[0] in ("ok", "warn") for line in lines)
    for word in ("Python", "torch and torchvision", "--device auto", "--precision auto", "MNIST", "weights classifier"):
        assert any(word in line for line in lines), word


def test_doctor_names_what_is_wrong_and_what_to_do(tmp_path, monkeypatch, capsys):
    for file in weights.FOLDER.glob("classifier*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "classifier.safetensors").write_bytes(b"damaged")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(doctor, "LIBRARY", ("torch", "no-such-package"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("DIFFUSION_BOOK_DATA", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "fail packages of the library are missing: no-such-package: pip install" in said
    assert "classifier.safetensors are damaged" in said
    assert "ok   weights classifier-check" in said
    assert "warn no MNIST in" in said
    assert "warn the cache folder" in said


def test_doctor_tells_of_a_package_once(monkeypatch):
    """One that is missing is not also one that is too old."""
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "tqdm" else "1.0")
    lines = ["tqdm is not installed, needed is >=4", "tyro 0.1 is installed, needed is >=0.9"]
    monkeypatch.setattr(doctor, "too_old", lambda: lines)
    found = [text for level, text in doctor.packages() if level == "fail"]
    assert [sum(name in text for text in found) for name in ("tqdm", "tyro")] == [1, 1]


def test_doctor_knows_every_package_that_the_library_needs():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {requirement.split(">")[0] for requirement in needed} == set(doctor.LIBRARY)


def test_doctor_reports_a_torch_that_cannot_be_imported(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    ((level, text),) = doctor.torch_pair()
    assert level == "fail"
    assert "torchvision::nms" in text
    assert "install anew" in text
