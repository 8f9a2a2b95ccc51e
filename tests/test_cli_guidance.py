"""`visualize guidance` from end to end, on models that have learned nothing."""

import json

import pytest
import torch
from commands import refused
from PIL import Image
from tiny import random_autoencoder, random_class_pipeline

from diffusion_book.cli import visualize_guidance
from diffusion_book.cli.main import main, parse
from diffusion_book.cli.visualize_guidance import Guidance, draw_cells, request_of
from diffusion_book.models.checkpoints import save_checkpoint

FAST = ["--sampling_steps", "2", "--samples_per_cell", "2", "--device", "cpu", "--precision", "fp32"]
MODELS = {"ldm-concat": "--concat_checkpoint", "ldm-cross-attention": "--cross_attention_checkpoint"}


@pytest.fixture(scope="module")
def pipes():
    autoencoder = random_autoencoder()
    return {model: random_class_pipeline(autoencoder, model, timesteps=20) for model in MODELS}


@pytest.fixture(scope="module")
def checkpoints(pipes, tmp_path_factory):
    """model -> its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for model, pipe in pipes.items():
        content = {"recipe": pipe.recipe.to_dict(), "ema": pipe.network.state_dict()}
        save_checkpoint(folder / f"{model}.pt", {**content, "autoencoder": pipe.autoencoder.state_dict()})
    return {model: folder / f"{model}.pt" for model in pipes}


def run(tmp_path, *options):
    """Run the command, and give its folder."""
    main(["visualize", "guidance", "--output-dir", str(tmp_path / "out"), *FAST, *map(str, options)])
    (folder,) = (tmp_path / "out").iterdir()
    return folder


def test_both_models_with_figures(checkpoints, tmp_path, capsys):
    given = [word for model, option in MODELS.items() for word in (option, checkpoints[model])]
    folder = run(tmp_path, *given, "--guidance_scales", 0, 2.5, "--num_measured", 20)
    assert {path.name for path in folder.iterdir()} == {
        "guidance.png", "measures.txt", "measures.json", "measures.png",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert said == (folder / "measures.txt").read_text() + f"{folder}\n"
    values = json.loads((folder / "measures.json").read_text())
    assert list(values["models"]) == list(MODELS)
    for rows in values["models"].values():
        assert [row["guidance_scale"] for row in rows] == [0.0, 2.5]
        assert all(row["num_samples"] == 20 and row["cfid"] > row["floor"] for row in rows)
    width, height = Image.open(folder / "guidance.png").size
    assert height > 10 * 28
    assert width > 2 * 2 * 2 * 28


def test_one_checkpoint_draws_that_model_alone(checkpoints, tmp_path, capsys):
    folder = run(tmp_path, "--concat_checkpoint", checkpoints["ldm-concat"], "--num_measured", 0)
    assert [path.name for path in folder.iterdir()] == ["guidance.png"]
    options = Guidance(concat_checkpoint=checkpoints["ldm-concat"], device="cpu")
    assert list(visualize_guidance.load_pipes(options)) == ["ldm-concat"]
    assert capsys.readouterr().out == f"{folder}\n"


def test_without_checkpoints_all_shipped_models_are_drawn(monkeypatch):
    asked = []
    monkeypatch.setattr(visualize_guidance, "list_models", lambda dataset="mnist": ["ddpm", *MODELS])
    monkeypatch.setattr(
        visualize_guidance, "load_model", lambda model, options: asked.append((model, options.checkpoint))
    )
    visualize_guidance.load_pipes(Guidance())
    assert asked == [(model, None) for model in MODELS]


def test_cells_are_the_samples_of_their_digit_and_scale(pipes):
    """Rows, columns and samples are where they should be, and a row's noise is the same in all columns."""
    pipe = pipes["ldm-concat"]
    options = Guidance(guidance_scales=(0.0, 1.0, 4.0), samples_per_cell=2, sampling_steps=2, seed=5)
    cells = draw_cells("ldm-concat", pipe, request_of(pipe, options), options)
    assert cells.shape == (10, 3, 2, 1, 28, 28)
    noise = pipe.noise(20, seed=5)
    for digit, column, number in ((3, 2, 1), (9, 0, 0), (0, 1, 1)):
        index = 2 * digit + number
        alone = pipe.sample(
            1,
            labels=digit,
            guidance_scale=options.guidance_scales[column],
            steps=2,
            noise=noise[index : index + 1],
        )
        torch.testing.assert_close(cells[digit, column, number], alone[0], atol=1e-4, rtol=0)


def test_defaults_are_those_of_the_original():
    options = parse(Guidance, ["--guidance-scales", "0.0", "1", "10"], "", "", Guidance())
    assert options.guidance_scales == (0.0, 1.0, 10.0)
    assert (Guidance().samples_per_cell, Guidance().sampling_steps, Guidance().eta, Guidance().seed) == (4, 50, 0.0, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples_per_cell", 0], "--samples_per_cell is 0"),
        (["--num_measured", 5], "--num_measured is 5"),
        (["--guidance_scales", "nan"], "guidance_scale is nan: give a finite number"),
        (["--eta", 2], "eta"),
        (["--sampling_steps", 21], "21"),
        (["--cross_attention_checkpoint", "CONCAT"], "holds a 'ldm-concat'"),
        (["--concat_checkpoint", "nowhere.pt"], "there is no checkpoint nowhere.pt"),
    ],
)
def test_refuses_what_it_cannot_draw(options, says, checkpoints, tmp_path, capsys):
    path = checkpoints["ldm-concat"]
    options = [path if word == "CONCAT" else word for word in options]
    out = ["--output_dir", tmp_path / "out", "--device", "cpu"]
    assert says in refused(capsys, "visualize", "guidance", "--concat_checkpoint", path, *out, *options)
    assert not (tmp_path / "out").exists()
