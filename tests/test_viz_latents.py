"""The pictures of latent space show what they are given, and `visualize latent-space` from end to end."""

import matplotlib

matplotlib.use("Agg")

import sys

import numpy as np
import pytest
import torch
from commands import refused
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.evaluation import rate_distortion
from diffusion_book.evaluation.projection import principal_components, umap_plane
from diffusion_book.models.autoencoder import build_autoencoder
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.recipes import DiffusionConfig, ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.system.errors import BookError
from diffusion_book.viz import latents
from diffusion_book.viz.grids import GAP, grid
from diffusion_book.viz.style import DIGIT_COLOURS
from diffusion_book.viz.tables import show_table

SMALL = VAEConfig(base_channels=8, layers_per_block=1)
TWO_DIMENSIONS = VAEConfig(base_channels=8, layers_per_block=1, channel_multipliers=(1, 1, 1, 1, 1))


def network_of(config):
    """A network whose layers all do something, unlike those of a new one."""
    torch.manual_seed(0)
    network = VAE(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def recipe_of(config):
    return Recipe("vae", TrainingConfig(dataset="digits"), vae=config, elbo=ELBOConfig())


def autoencoder_of(config):
    return build_autoencoder(recipe_of(config), network_of(config).state_dict(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def small():
    return autoencoder_of(SMALL)


@pytest.fixture(scope="module")
def two_dimensions():
    return autoencoder_of(TWO_DIMENSIONS)


LABELS = torch.arange(10).repeat(3)


def dots(axes):
    """Where the dots of a scatter plot lie, and their colours."""
    (found,) = axes.collections
    return torch.as_tensor(np.array(found.get_offsets())).float(), [to_hex(colour) for colour in found.get_facecolors()]


def test_digit_colours_are_well_apart():
    """In CIE L*a*b*, where a distance of 2 can just be seen."""
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    rgb = np.array([to_rgb(colour) for colour in DIGIT_COLOURS])
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    x, y, z = np.cbrt(linear @ to_xyz.T / to_xyz.sum(axis=1)).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(10, 1)]
    assert len(DIGIT_COLOURS) == 10
    assert apart.min() > 25


class TestScatter:
    def test_each_dot_has_its_place_and_its_digits_colour(self):
        points = torch.randn(30, 2)
        figure = latents.plot_points(points, LABELS, "across", "up")
        places, colours = dots(figure.axes[0])
        assert torch.allclose(places, points)
        assert colours == [to_hex(DIGIT_COLOURS[label]) for label in LABELS]
        assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("across", "up")

    def test_legend_names_every_label_in_its_colour(self):
        names = data.LABELS["kmnist"]
        (legend,) = latents.plot_points(torch.randn(30, 2), LABELS, names=names).legends
        assert [text.get_text() for text in legend.get_texts()] == names
        assert [to_hex(handle.get_color()) for handle in legend.legend_handles] == [c.lower() for c in DIGIT_COLOURS]

    def test_every_position_has_its_panel(self):
        codes = torch.randn(30, 3, 2, 4)
        panels = latents.plot_latent_positions(codes, LABELS).axes
        assert len(panels) == 8
        assert torch.allclose(dots(panels[5])[0], codes[:, :2, 1, 1])

    def test_a_single_position_is_one_plot(self):
        codes = torch.randn(30, 2, 1, 1)
        (axes,) = latents.plot_latent_positions(codes, LABELS).axes
        assert torch.allclose(dots(axes)[0], codes[:, :, 0, 0])

    def test_one_channel_is_drawn_against_the_label(self):
        codes = torch.randn(30, 1, 1, 1)
        (axes,) = latents.plot_latent_positions(codes, LABELS).axes
        places, _ = dots(axes)
        assert torch.allclose(places[:, 0], codes[:, 0, 0, 0])
        assert torch.equal(places[:, 1].round().long(), LABELS)
        assert len(latents.plot_principal_components(codes, LABELS).axes) == 1

    def test_principal_components_say_how_much_they_show(self):
        codes = torch.zeros(30, 1, 2, 2)
        codes[:, 0, 1, 1], codes[:, 0, 0, 0] = 3 * torch.linspace(-1, 1, 30), torch.tensor([1.0, -1.0]).repeat(15)
        axes = latents.plot_principal_components(codes, LABELS).axes[0]
        assert "first principal component, 76% of the variance" in axes.get_xlabel()

    def test_small_multiples_colour_one_digit_each(self):
        points = torch.randn(30, 2)
        panels = latents.plot_small_multiples(points, LABELS, "across", "up").axes
        assert [axes.get_title() for axes in panels] == [str(digit) for digit in range(10)]
        everything, own = panels[7].collections
        assert len(everything.get_offsets()) == 30
        assert torch.allclose(torch.as_tensor(np.array(own.get_offsets())).float(), points[LABELS == 7])
        assert {to_hex(colour) for colour in own.get_facecolors()} == {DIGIT_COLOURS[7].lower()}

    def test_planes_show_latents_prior_and_decoded_square(self):
        clouds, pictures = torch.randn(2, 30, 2), torch.rand(2, 9, 1, 28, 28) * 2 - 1
        panels = latents.plot_planes(clouds, LABELS, pictures, ["one", "two"]).axes
        assert [axes.get_title() for axes in panels] == ["one", "two", "", ""]
        assert torch.allclose(dots(panels[1])[0], clouds[1])
        for circle, radius in zip(panels[0].lines, (1, 2), strict=True):
            assert np.allclose(np.hypot(*circle.get_data()), radius)
        assert np.array_equal(panels[3].images[0].get_array(), grid(pictures[1], 3, padding=0))


class TestRateDistortion:
    def test_points_are_named_by_their_weights_and_measures_have_lines(self):
        rate, distortion = torch.tensor([0.0, 20.0]), torch.tensor([0.2, 0.05])
        measured = {"copies": torch.tensor([9.0, 1.0]), "samples": torch.tensor([8.0, 5.0])}
        above, below = latents.plot_rate_distortion(rate, distortion, measured, [1e-1, 3e-4]).axes
        assert [text.get_text() for text in above.texts] == ["$10^{-1}$"]  # powers of ten
        assert np.allclose(above.lines[0].get_data(), torch.stack([rate, distortion]))
        for line, (name, values) in zip(below.lines, measured.items(), strict=True):
            assert line.get_label() == name
            assert np.allclose(line.get_ydata(), values)
        assert below.get_yscale() == "log"

    def test_what_is_stored_is_what_the_constants_say(self):
        table = rate_distortion.stored()
        weights, shown = len(rate_distortion.KL_WEIGHTS), rate_distortion.SHOWN
        assert torch.allclose(table["kl_weight"], torch.tensor(rate_distortion.KL_WEIGHTS))
        assert torch.allclose(table["plane_kl_weight"], torch.tensor(rate_distortion.PLANE_WEIGHTS))
        assert {len(table[name]) for name in ("rate", "distortion", "active", "copies_cfid", "samples_cfid")} == {
            weights
        }
        assert table["copies"].shape == table["samples"].shape == (weights, shown, 1, 28, 28)
        assert -1 <= table["samples"].min() < table["samples"].max() <= 1

    def test_a_short_training_is_measured(self, monkeypatch):
        load = data.load
        monkeypatch.setattr(rate_distortion.data, "load", lambda name, *split: load("digits", *split))
        network = rate_distortion.trained(rate_distortion.NETWORK, 1e-3, steps=2)
        found = rate_distortion.measure_vae(network, 40)
        assert found["distortion"] > 0
        assert found["rate"] >= 0
        assert found["copies"].shape == (rate_distortion.SHOWN, 1, 28, 28)


class TestProjection:
    def test_directions_are_those_of_the_largest_variance(self):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(5000, 3, generator=generator) * torch.tensor([1.0, 3.0, 2.0]) + 7
        found, shares = principal_components(points, 2)
        for column, dimension in enumerate((1, 2)):
            correlation = torch.corrcoef(torch.stack([found[:, column], points[:, dimension]]))[0, 1]
            assert correlation > 0.99  # and the sign is the same at every run
        assert torch.allclose(shares, torch.tensor([9 / 14, 4 / 14]), atol=0.02)

    def test_umap_keeps_clusters_apart(self):
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(60, 8, generator=generator) + 30.0 * (torch.arange(60) % 2)[:, None]
        plane = umap_plane(points)
        distances = torch.cdist(plane, plane).fill_diagonal_(torch.inf)
        assert torch.equal(distances.argmin(dim=1) % 2, torch.arange(60) % 2)

    def test_umap_refuses_too_few_points_and_a_missing_package(self, monkeypatch):
        with pytest.raises(BookError, match="more than 15"):
            umap_plane(torch.randn(15, 4))
        monkeypatch.setitem(sys.modules, "umap", None)
        with pytest.raises(BookError, match="pip install umap-learn"):
            umap_plane(torch.randn(40, 4))


class TestPlane:
    def test_begins_at_the_top_left(self):
        plane = latents.plane_of_latents(limit=2.0, count=4)
        assert plane.shape == (16, 2, 1, 1)
        assert plane[0].flatten().tolist() == [-1.5, 1.5]
        assert plane[1].flatten().tolist() == [-0.5, 1.5]
        assert plane[-1].flatten().tolist() == [1.5, -1.5]

    def test_map_shows_where_pictures_lie_and_what_is_there(self, two_dimensions):
        codes = torch.randn(30, 2, 1, 1)
        figure = latents.plot_map(two_dimensions, codes, LABELS, limit=2.0, count=3)
        left, right = figure.axes
        assert torch.allclose(dots(left)[0], codes[:, :, 0, 0])
        assert left.get_xlim() == left.get_ylim() == (-2.0, 2.0)
        pictures = latents.decoded(two_dimensions, latents.plane_of_latents(2.0, 3))
        assert pictures.std(dim=0).max() > 0  # they differ, so that their order can be told
        assert np.array_equal(right.images[0].get_array(), grid(pictures, 3, padding=0).numpy())
        # Both halves have the same scale: the tick at 0 stands in the middle of the pictures.
        middle = [place for place, text in zip(right.get_xticks(), right.get_xticklabels()) if text.get_text() == "0"]
        assert middle == [3 * 28 / 2 - 0.5]

    def test_map_refuses_other_latents(self, small):
        with pytest.raises(BookError, match="two dimensions, these are 2 x 4 x 4"):
            latents.plot_map(small, torch.zeros(10, 2, 4, 4), torch.arange(10))


class TestDecoding:
    def test_decoded_keeps_the_leading_dimensions(self, small):
        codes = torch.randn(2, 3, 2, 4, 4)
        pictures = latents.decoded(small, codes)
        assert pictures.shape == (2, 3, 1, 28, 28)
        assert torch.allclose(pictures[1, 2], data.crop(small.decode(codes[1, 2:])).clamp(-1, 1)[0], atol=1e-5)

    def test_traversal_changes_one_dimension_and_no_other(self):
        latent, values = torch.randn(2, 4, 4), torch.tensor([-3.0, 0.5])
        changed = latents.traverse(latent, [0, 21], values)
        assert changed.shape == (2, 2, 2, 4, 4)
        difference = (changed != latent).flatten(2)
        assert difference.nonzero().tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 21], [1, 1, 21]]
        assert changed[1, 1].flatten()[21] == 0.5

    def test_traversals_are_labelled_by_dimension_and_value(self, small):
        figure = latents.show_traversals(small, torch.zeros(2, 4, 4), numbers=[6, 16], count=3)
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.get_yticklabels()] == ["channel 0, (1, 2)", "channel 1, (0, 0)"]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["\N{MINUS SIGN}3", "0", "3"]

    def test_between_goes_from_one_to_the_other(self):
        first, second = torch.randn(2, 2, 4, 4)
        way = latents.between(first, second, 5)
        assert torch.equal(way[0], first)
        assert torch.allclose(way[-1], second)
        assert torch.allclose(way[2], (first + second) / 2)

    def test_tiles_show_every_entry(self):
        codes = torch.zeros(1, 2, 4, 4)
        codes[0, 1, 3, 0], codes[0, 0, 0, 0] = 3.0, -9.0
        tiles = latents.latent_tiles(codes)
        assert tiles.shape == (1, 1, 12, 28)
        assert (tiles[0, 0, 9:, 14:17] == 1).all()  # channel 1, last row, first column
        assert (tiles[0, 0, :3, 2:5] == -1).all()
        assert tiles[0, 0, 0, 0] == pytest.approx(GAP / 127.5 - 1)
        assert latents.latent_tiles(torch.zeros(1, 2, 1, 1)).shape == (1, 1, 14, 28)


class TestTable:
    def test_pictures_stand_under_their_names(self):
        pictures = torch.linspace(-1, 1, 6).reshape(2, 3, 1, 1, 1).expand(2, 3, 1, 4, 4)
        (axes,) = show_table(pictures, ["a", "b"], ["x", "y", "z"]).axes
        shown = axes.images[0].get_array()
        for row, y in enumerate(axes.get_yticks()):
            for column, x in enumerate(axes.get_xticks()):
                assert abs(shown[int(y), int(x)] / 127.5 - 1 - pictures[row, column].mean()) < 0.01

    def test_refuses_another_number_of_names(self):
        with pytest.raises(BookError, match="2 rows and 2 columns"):
            show_table(torch.zeros(2, 3, 1, 4, 4), ["a", "b"], ["x", "y"])


def checkpoint_of(folder, recipe, network):
    return save_checkpoint(folder / "tiny.pt", {"recipe": recipe.to_dict(), "ema": network.state_dict()})


COMMON = ["--dataset", "digits", "--num_pictures", "30", "--device", "cpu", "--precision", "fp32"]
PICTURES = {"reconstructions", "positions", "principal_components", "traversals", "interpolation", "prior"}


@pytest.mark.parametrize(
    ("config", "more", "names"),
    [(SMALL, [], PICTURES | {"umap"}), (TWO_DIMENSIONS, ["--no-umap"], PICTURES | {"map"})],
    ids=["2 x 4 x 4", "two dimensions"],
)
def test_command_fills_a_folder_and_prints_it_last(config, more, names, tmp_path, capsys):
    checkpoint = checkpoint_of(tmp_path, recipe_of(config), network_of(config))
    output = ["--checkpoint", str(checkpoint), "--output_dir", str(tmp_path / "new")]
    main(["visualize", "latent-space", *COMMON, *output, *more])
    (folder,) = (tmp_path / "new").iterdir()
    assert folder.name.endswith("-latent-space")
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in names}
    for path in folder.iterdir():
        assert np.array(Image.open(path).convert("L")).std() > 1, path  # something is drawn
    assert Image.open(folder / "interpolation.png").size == (8 * (11 * 30 + 2), 8 * (10 * 30 + 2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "needs a subject before the options: choose one of latent-space"),
        ("cats", "unknown subject 'cats': choose one of latent-space"),
        ("latent-space --num_pictures 3", "--num_pictures is 3: it must be at least 20"),
        ("latent-space --picture 300", "--picture is 300: digits has test pictures 0 to 299"),
        ("latent-space --dataset cats", "cats"),
        ("latent-space --checkpoint MISSING", "there is no checkpoint"),
        ("latent-space --checkpoint DDPM", "is a 'ddpm', not a VAE"),
        ("latent-space --output_dir FILE/inside", "cannot make the folder"),
    ],
)
def test_command_refuses_in_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    network = UNetConfig(base_channels=8, channel_multipliers=(1, 2), attention_levels=(1,), layers_per_block=1)
    (tmp_path / "other").mkdir()
    ddpm = checkpoint_of(
        tmp_path / "other", Recipe("ddpm", TrainingConfig(), network, DiffusionConfig()), UNet(network)
    )
    vae = checkpoint_of(tmp_path, recipe_of(SMALL), network_of(SMALL))
    options = [] if not arguments.startswith("latent-space") else [*COMMON, "--checkpoint", str(vae), "--no-umap"]
    for name, path in (("MISSING", tmp_path / "no.pt"), ("DDPM", ddpm), ("FILE", tmp_path / "file")):
        arguments = arguments.replace(name, str(path))
    subject, *rest = arguments.split() or ["--seed"]
    if "--output_dir" not in rest:
        options += ["--output_dir", str(tmp_path / "new")]
    assert said in refused(capsys, "visualize", subject, *options, *rest)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_help_lists_the_subjects(capsys):
    main(["visualize", "--help"])
    assert "subjects: latent-space" in capsys.readouterr().out
