"""Other pictures than MNIST's: every training takes them by one option, and three chapters by one variable."""

from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

from diffusion_book.cli.main import main
from diffusion_book.cli.options import TRAINED, read_train, recipe_asked

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CHAPTERS = {"01_ddpm": "ddpm", "05_guidance_by_concatenation": "ldm-concat", "07_rectified_flow": "rf"}
SMALL = "--base_channels 8 --channel_multipliers 1 --layers_per_block 1 --attention_levels 0"
RUN = "--dataset digits --epochs 1 --batch_size 512 --warmup_steps 1 --device cpu --precision fp32"


@pytest.mark.parametrize("model", TRAINED)
@pytest.mark.parametrize("dataset", ["fashion-mnist", "kmnist"])
def test_every_training_takes_other_sets(model, dataset):
    _, _, options = read_train([model, "--dataset", dataset])
    assert recipe_asked(options, model).training.dataset == dataset


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_with_another_set_and_a_model_that_learned_it(chapter, tmp_path, capsys, monkeypatch):
    """A network that is small and hardly trained, on digits that come from scikit-learn."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = CHAPTERS[chapter]
    main(["train", model, *RUN.split(), *SMALL.split(), "--output_dir", str(tmp_path)])
    folder = capsys.readouterr().out.splitlines()[-1]

    notebook = jupytext.read(NOTEBOOKS / f"{chapter}.py")
    first = next(cell for cell in notebook.cells if "DATASET = " in cell.source)
    for line, other in (('DATASET = "auto"', 'DATASET = "digits"'), (f'MODEL = "{model}"', f"MODEL = {folder!r}")):
        assert first.source.count(line) == 1
        first.source = first.source.replace(line, other)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()

    said = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
    assert any("digits" in text and "mnist" not in text for text in said), "it says which set it found"
