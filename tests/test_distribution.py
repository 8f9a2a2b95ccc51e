"""Maps of real and drawn digits: what is laid out, drawn and written, and `visualize distribution` from end to end."""

import dataclasses
import html
import itertools
import json
import re
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import pytest
import tiny
import torch
from commands import refused

from diffusion_book import data
from diffusion_book.cli import visualize_distribution
from diffusion_book.cli.main import main
from diffusion_book.cli.visualize_distribution import (
    REAL,
    Distribution,
    distances,
    first_of_each,
    real_digits,
    request_of,
)
from diffusion_book.evaluation.features import reference_features
from diffusion_book.evaluation.projection import JointMap, joint_map
from diffusion_book.models import sampling
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.recipes import DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.errors import BookError
from diffusion_book.viz import distribution
from diffusion_book.viz.style import COLOURS, DIGIT_COLOURS

# The joint map


def two_groups(seed):
    """Ten points around 0 and ten around 50, of five numbers each."""
    noise = torch.randn(20, 5, generator=torch.Generator().manual_seed(seed))
    return noise + 50 * (torch.arange(20) >= 10)[:, None]


def test_sets_share_one_map_and_new_points_find_their_places_on_it():
    sets = {"real": two_groups(0), "drawn": two_groups(1)}
    found = joint_map(sets, seed=3)
    assert list(found.places) == ["real", "drawn"]
    real, drawn = found.places.values()
    assert real.shape == drawn.shape == (20, 2)
    groups = torch.stack([torch.cat([real[:10], drawn[:10]]), torch.cat([real[10:], drawn[10:]])])  # (2, 20, 2)
    middles = groups.mean(dim=1)
    spread = (groups - middles[:, None]).norm(dim=-1).max()
    assert (middles[0] - middles[1]).norm() > 2 * spread
    located = found.locate(two_groups(2).reshape(4, 5, 5))
    assert located.shape == (4, 5, 2)
    nearer = torch.cdist(located.flatten(0, 1), middles).argmin(dim=1)
    assert nearer.tolist() == [0] * 10 + [1] * 10
    again = joint_map(sets, seed=3)
    assert torch.equal(again.places["drawn"], drawn)
    assert torch.equal(again.locate(two_groups(2)), found.locate(two_groups(2)))


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({}, "needs one set"),
        ({"a": torch.zeros(20, 1, 28, 28)}, "flatten pictures"),
        ({"a": torch.zeros(20, 3), "b": torch.zeros(20, 4)}, "different numbers"),
        ({"a": torch.zeros(8, 3), "b": torch.zeros(7, 3)}, "more than 15"),
    ],
)
def test_sets_that_make_no_map_are_refused(sets, said):
    with pytest.raises(BookError, match=said):
        joint_map(sets)


def test_pixels_are_the_bytes_that_a_file_would_hold():
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    points = distribution.pixels(images)
    assert points.shape == (3, 784)
    assert torch.equal(points, distribution.pixels(data.quantise(images)))
    assert (points - images.clamp(-1, 1).flatten(1)).abs().max() <= 1 / 255 + 1e-6


# Its picture

LABELS = {REAL: torch.tensor([0, 0, 3]), "ddpm": torch.tensor([3, 9])}
PLACES = {REAL: torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), "ddpm": torch.tensor([[4.0, 1.0], [1.0, 1.0]])}


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_both_sets_are_drawn_on_every_map_with_counts_and_the_warning():
    figure = distribution.plot_distributions({"pixels": PLACES, "features": PLACES}, LABELS)
    assert [axis.get_title() for axis in figure.axes] == [
        "pixels, by set", "pixels, by digit", "features, by set", "features, by digit",
    ]  # fmt: skip
    for axis in figure.axes:
        real, drawn = axis.collections
        assert real.get_offsets().tolist() == PLACES[REAL].tolist()
        assert drawn.get_offsets().tolist() == PLACES["ddpm"].tolist()
        assert len(real.get_paths()[0].vertices) != len(drawn.get_paths()[0].vertices)  # another marker
    by_set, by_digit = figure.axes[:2]
    hexes = [matplotlib.colors.to_hex(colour).upper() for colour in by_digit.collections[1].get_edgecolor()]
    assert hexes == [DIGIT_COLOURS[3].upper(), DIGIT_COLOURS[9].upper()]
    sets = [matplotlib.colors.to_hex(part.get_facecolor()[0]).upper() for part in by_set.collections]
    assert sets == [COLOURS["data"], COLOURS["ddpm"]]
    names, digits = figure.legends
    assert texts(names) == ["real digits (3)", "ddpm (2)"]
    assert texts(digits) == ["0:  2 / 0", "1:  0 / 0", "2:  0 / 0", "3:  1 / 1", *(f"{n}:  0 / 0" for n in range(4, 9)),
                             "9:  0 / 1"]  # fmt: skip
    assert "mean nothing" in figure.get_supxlabel()
    assert "\n" not in figure.get_supxlabel()


def check_that_all_fits(figure):
    renderer = matplotlib.backends.backend_agg.FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [part.get_window_extent(renderer) for part in (*figure.legends, figure._supxlabel)]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    right = max(axis.get_tightbbox(renderer).x1 for axis in figure.axes)
    assert all(box.x0 >= right for box in boxes[:2])
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("spaces", [("features",), ("pixels", "features")])
def test_all_of_the_figure_fits_with_its_legends(spaces):
    check_that_all_fits(distribution.plot_distributions(dict.fromkeys(spaces, PLACES), LABELS))


def test_many_models_fit_on_one_map():
    names = [
        REAL,
        "ddpm",
        "ldm",
        "ldm-concat",
        "ldm-cross-attention",
        "rf",
        "rf-reflow",
        "latent-rf",
        "latent-rf-class",
    ]
    places = {name: PLACES[REAL] + number for number, name in enumerate(names)}
    figure = distribution.plot_distributions({"features": places}, dict.fromkeys(names, LABELS[REAL]))
    assert len(figure.axes[0].collections) == 9
    assert texts(figure.legends[1]) == [str(digit) for digit in range(10)]
    assert len({handle.get_marker() for handle in figure.legends[0].legend_handles}) == 9
    check_that_all_fits(figure)


def test_small_multiples_show_each_set_alone_over_the_real_one():
    places = PLACES | {"ldm": PLACES["ddpm"] + 1}
    labels = LABELS | {"ldm": LABELS["ddpm"]}
    figure = distribution.plot_multiples(places, labels)
    assert [axis.get_title() for axis in figure.axes] == ["ddpm", "ldm"]
    for axis in figure.axes:
        real, own = axis.collections
        assert real.get_offsets().tolist() == places[REAL].tolist()
        assert own.get_offsets().tolist() == places[axis.get_title()].tolist()
        hexes = [matplotlib.colors.to_hex(colour).upper() for colour in own.get_facecolor()]
        assert hexes == [DIGIT_COLOURS[digit].upper() for digit in labels[axis.get_title()].tolist()]
    assert texts(figure.legends[0]) == [str(digit) for digit in range(10)]
    with pytest.raises(BookError, match="at least one other"):
        distribution.plot_multiples({REAL: PLACES[REAL]}, {REAL: LABELS[REAL]})


def test_a_set_takes_the_colour_of_its_family():
    assert distribution.colour_of_set("rf-mine", 1) == COLOURS["rf"]
    assert distribution.colour_of_set("latent-rf-mine", 1) == COLOURS["latent-rf"]
    assert distribution.colour_of_set("ldm-concat", 2) == COLOURS["ldm-concat"]
    assert distribution.colour_of_set("mine", 2) == DIGIT_COLOURS[2]


@pytest.mark.parametrize("maps", [{}, {"pixels": {REAL: PLACES[REAL]}}])
def test_maps_without_their_sets_are_refused(maps):
    with pytest.raises(BookError, match="the same sets"):
        distribution.plot_distributions(maps, LABELS)


# The ways


def test_predictions_lead_from_the_first_guess_to_the_sample():
    pipe = tiny.random_latent_pipeline(tiny.random_autoencoder(), timesteps=100)
    seen = []
    times, stills = sampling.predictions(pipe, [5, 2], steps=4, seed=1, callback=seen.append)
    assert times == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert seen == [0, 1, 2, 3, 4]
    assert stills.shape == (2, 5, 1, 28, 28)
    samples = pipe.sample(6, steps=4, seed=1)
    torch.testing.assert_close(stills[:, -1], samples[[5, 2]], atol=1e-4, rtol=0)
    guess = pipe.denoiser(pipe.noise(6, seed=1)[[5, 2]], torch.ones(2)).x0
    torch.testing.assert_close(stills[:, 0], pipe.to_images(guess), atol=1e-4, rtol=0)
    times, _ = sampling.predictions(pipe, [0], frames=3, steps=4, seed=1)
    assert times == [1.0, 0.5, 0.0]


def control(**changed):
    ways = torch.tensor([[[0.0, 0.0], [4.0, 2.0]], [[0.0, 2.0], [1.0, 1.0]], [[4.0, 0.0], [2.0, 1.0]]])  # (3, 2, 2)
    given = {
        "maps": {"features": PLACES},
        "ways": {"features": ways},
        "stills": torch.zeros(3, 2, 1, 28, 28),
        "labels": LABELS,
        "digits": torch.tensor([3, 9, 3]),
        "captions": ["t = 1 & <far>", "t = 0"],
    }
    return distribution.ways_across(**{**given, **changed})


def test_the_page_holds_the_ways_and_asks_for_nothing_outside():
    text = distribution.page(control(), "Ways & means")
    assert text.startswith("<!doctype html>")
    assert "<title>Ways &amp; means</title>" in text
    assert not re.search(r"(?:src|href|action)=\"(?!data:)|url\((?!data:)|@import|//", text.replace("</", ""))
    stored = json.loads(html.unescape(re.search(r'data-ways="([^"]*)"', text)[1]))
    assert stored["captions"] == ["t = 1 & <far>", "t = 0"]
    ((first, *_),) = stored["maps"]
    margin = 100 * 0.04 / 1.08
    assert first[0] == pytest.approx([margin, 100 - margin], abs=0.01)  # left and at the bottom
    assert first[1] == pytest.approx([100 - margin, margin], abs=0.01)  # right and at the top
    assert text.count("<polyline") == 3
    assert text.count('data-way="') == 6  # on the map, and in the row beside it
    assert "mean nothing" in text


@pytest.mark.parametrize(
    "changed",
    [
        {"ways": {}},
        {"captions": ["one"]},
        {"digits": torch.tensor([1])},
        {"stills": torch.zeros(2, 2, 1, 28, 28)},
        {"maps": {"pixels": PLACES}},
    ],
)
def test_ways_that_do_not_fit_are_refused(changed):
    with pytest.raises(BookError, match="do not fit together"):
        control(**changed)


# What the command asks for


def options_for(pipe, **changed):
    request = request_of(pipe, Distribution(**changed))
    assert len(request) == 1000
    scale = {} if request.guidance_scale is None else {"guidance_scale": request.guidance_scale.unique().item()}
    return {"sampler": request.sampler, "steps": request.steps, "seed": request.seed, **scale}


def test_steps_and_samplers_follow_the_options():
    pipe = tiny.random_latent_pipeline(tiny.random_autoencoder(), timesteps=100)
    assert options_for(pipe) == {"sampler": "ddim", "steps": 50, "seed": 0}
    assert options_for(pipe, mode="ddpm") == {"sampler": "ddpm", "steps": 100, "seed": 0}
    assert options_for(pipe, sampler="heun", ddim_steps=7, seed=2) == {"sampler": "heun", "steps": 7, "seed": 2}
    one_step = dataclasses.replace(pipe, recipe=dataclasses.replace(pipe.recipe, model="rf-one-step"))
    assert options_for(one_step)["steps"] == 1
    with pytest.raises(BookError, match="knows no classes"):
        options_for(pipe, guidance_scale=2.0)
    with_classes = tiny.random_class_pipeline(tiny.random_autoencoder(), guidance_scale=4.0)
    assert options_for(with_classes, model="ldm-concat")["guidance_scale"] == 4.0
    assert options_for(with_classes, model="ldm-concat", guidance_scale=2.0)["guidance_scale"] == 2.0


def test_distances_are_to_the_nearest_real_point():
    real = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    ways = torch.tensor([[[5.0, 0.0], [0.0, 1.0]], [[7.0, 0.0], [0.0, 1.5]], [[9.0, 0.0], [2.0, 0.0]]])
    assert distances(real, ways) == {"ways": [7.0, 0.5], "real": 1.0}


def test_the_first_of_each_digit_is_taken():
    assert first_of_each(torch.tensor([7, 1, 7, 0, 1])) == [3, 1, 0]


def no_mnist(name, split):
    raise BookError("mnist cannot be downloaded: connect to a network")


def a_mnist(name, split):
    assert (name, split) == ("mnist", "test")
    labels = torch.arange(10_000) % 10
    return data.Dataset("mnist", (labels * 20).to(torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28), labels)


def test_real_digits_come_with_the_same_features_with_and_without_mnist(monkeypatch, capsys):
    monkeypatch.setattr(visualize_distribution.data, "load", a_mnist)
    there = real_digits(30, seed=5)
    assert (there.images[:, 0, 0, 0] == there.labels * 20).all()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(visualize_distribution.data, "load", no_mnist)
    missing = real_digits(30, seed=5)
    (line,) = capsys.readouterr().out.splitlines()
    assert "no MNIST here" in line
    assert "no map of pixels" in line
    assert missing.images is None
    assert torch.equal(missing.features, there.features)
    chosen = (reference_features()["test"][:, None] == missing.features[None, :3]).all(dim=-1).nonzero()
    assert sorted(chosen[:, 1].tolist()) == [0, 1, 2]
    assert len(missing.labels.unique()) > 5
    assert not torch.equal(real_digits(30, seed=6).features, missing.features)


# From end to end

NETWORK = UNetConfig(base_channels=8, channel_multipliers=(1,), attention_levels=(), layers_per_block=1)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    recipe = Recipe("ddpm", TrainingConfig(dataset="digits"), network=NETWORK, diffusion=DiffusionConfig(timesteps=100))
    network = tiny.wake(UNet(NETWORK))
    return save_checkpoint(tmp_path / "tiny.pt", {"recipe": recipe.to_dict(), "ema": network.state_dict()})


def flat_map(sets, seed=0):
    """In the place of UMAP, whose first start takes many seconds: the first two numbers of every point, shifted."""
    reducer = SimpleNamespace(transform=lambda points: points[:, :2] + seed)
    return JointMap({name: points[:, :2] + seed for name, points in sets.items()}, reducer)


def run(checkpoint, output, *more):
    where = ["--checkpoint", str(checkpoint), "--output_dir", str(output), "--device", "cpu", "--precision", "fp32"]
    few = ["--num_generated", "24", "--num_real", "20", "--ddim_steps", "3"]
    main(["visualize", "distribution", *where, *few, *more])
    (folder,) = output.iterdir()
    return folder


@pytest.mark.parametrize(("load", "spaces"), [(a_mnist, 2), (no_mnist, 1)], ids=["with MNIST", "without"])
def test_command_fills_a_folder_and_prints_it_last(load, spaces, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(visualize_distribution.data, "load", load)
    monkeypatch.setattr(visualize_distribution, "joint_map", flat_map)
    folder = run(checkpoint, tmp_path / "new", "--seed", "4")
    assert folder.name.endswith("-distribution-ddpm")
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert {path.name for path in folder.iterdir()} == {"distribution.png", "distribution.json", "ways.html"}
    record = json.loads((folder / "distribution.json").read_text())
    assert {name: sum(each) for name, each in record["counts"].items()} == {REAL: 20, "ddpm": 24}
    assert list(record["maps"]) == ["pixels", "features of a classifier"][-spaces:]
    for sets in record["maps"].values():
        assert {name: len(places) for name, places in sets.items()} == {REAL: 20, "ddpm": 24}
    assert record["setting"]["steps"] == 3
    ways = record["ways"]
    assert ways["times"] == pytest.approx([1, 2 / 3, 1 / 3, 0], abs=0.01)
    for space, each in ways["maps"].items():
        ends = [way[-1] for way in each]  # on this map a point lies where it lies alone
        drawn = [record["maps"][space]["ddpm"][number] for number in ways["samples"]]
        torch.testing.assert_close(torch.tensor(ends), torch.tensor(drawn), atol=0.02, rtol=0)


def test_the_same_seed_writes_the_same_files(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(visualize_distribution.data, "load", no_mnist)  # and with UMAP itself
    first, second = (run(checkpoint, tmp_path / name) for name in ("one", "two"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--model cats", "unknown model 'cats'"),
        ("--model vae", "unknown model 'vae'"),
        ("--mode sde", "unknown mode 'sde'"),
        ("--sampler sde", "unknown sampler 'sde'"),
        ("--num_generated 19", "--num_generated is 19: it must be at least 20"),
        ("--num_real 5", "--num_real is 5: it must be at least 20"),
        ("--num_real 10001", "the test set of MNIST has 10,000 pictures"),
        ("--seed -1", "seed is -1"),
        ("--ddim_steps 0", "steps"),
        ("--ddim_steps 101", "steps"),
        ("--guidance_scale 2", "knows no classes"),
        ("--model ldm", "'ddpm'"),
        ("--vae no.pt", "works without a VAE"),
        ("--batch_size 0", "batch_size is 0"),
        ("--checkpoint no.pt", "there is no checkpoint"),
        ("--output_dir FILE/inside", "cannot make the folder"),
    ],
)
def test_command_refuses_in_one_line(arguments, said, checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = ["--checkpoint", checkpoint, "--output_dir", tmp_path / "new", "--device", "cpu"]
    rest = arguments.replace("FILE", str(tmp_path / "file")).split()
    assert said in refused(capsys, "visualize", "distribution", *given, *rest)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_a_model_of_other_things_than_digits_is_refused(tmp_path, capsys):
    recipe = Recipe("ddpm", TrainingConfig(dataset="kmnist"), network=NETWORK, diffusion=DiffusionConfig())
    path = save_checkpoint(tmp_path / "k.pt", {"recipe": recipe.to_dict(), "ema": UNet(NETWORK).state_dict()})
    line = refused(capsys, "visualize", "distribution", "--checkpoint", path, "--device", "cpu")
    assert "was trained on kmnist" in line


def test_without_umap_it_says_what_to_install(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(visualize_distribution.importlib.util, "find_spec", lambda name: None)
    assert "pip install umap-learn" in refused(capsys, "visualize", "distribution", "--checkpoint", checkpoint)


def test_the_model_is_the_checkpoint_s(tmp_path):
    pipe = tiny.random_latent_pipeline(tiny.random_autoencoder())
    content = {"recipe": pipe.recipe.to_dict(), "ema": pipe.network.state_dict()}
    path = save_checkpoint(tmp_path / "l.pt", {**content, "autoencoder": pipe.autoencoder.state_dict()})
    assert visualize_distribution.load_pipe(Distribution(checkpoint=path, device="cpu")).recipe.model == "ldm"
    assert visualize_distribution.load_pipe(Distribution(device="cpu")).recipe.model == "ddpm"


@pytest.mark.parametrize("number", [100, 12_000])
def test_pictures_of_ones_own_are_not_given_mnist_s_features(number, monkeypatch, capsys):
    """The features that the book ships are those of MNIST's ten thousand, in their order."""
    own = data.Dataset("mnist", torch.zeros(number, 1, 28, 28, dtype=torch.uint8), torch.full((number,), 3))
    monkeypatch.setattr(data, "load", lambda *_: own)
    found = real_digits(200, seed=5)
    assert found.images is None
    assert len(found.labels.unique()) == 10
    assert f"pictures of your own, {number:,} for testing, lie in its place" in capsys.readouterr().out
