"""Maps of cross-attention: whose they are, what they sum to, and where on the picture they land."""

import matplotlib

matplotlib.use("Agg")

import dataclasses

import pytest
import torch
from matplotlib.colors import to_rgb
from tiny import SMALL_UNET, random_autoencoder, random_latent_pipeline, wake

from diffusion_book.data import IMAGE_SIZE, crop
from diffusion_book.models import sampling
from diffusion_book.models.pipelines import build, build_network
from diffusion_book.models.recipes import ConditionConfig, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.conditioning import NO_CLASS, cross_attention_maps
from diffusion_book.system.errors import BookError
from diffusion_book.viz import attention
from diffusion_book.viz.grids import grid

STEPS = 3
LABELS = [3, 8, 8]


@pytest.fixture(scope="module")
def autoencoder():
    return random_autoencoder()


def pipeline(autoencoder, num_tokens=4):
    """A model with cross-attention at 4 x 4 and, in the middle, at 2 x 2, which has learned nothing."""
    network = dataclasses.replace(
        SMALL_UNET, base_channels=16, channel_multipliers=(1, 4), attention_levels=(0,), context_dim=8
    )
    recipe = Recipe(
        "ldm-cross-attention",
        TrainingConfig(dataset="digits"),
        network=network,
        diffusion=DiffusionConfig(),
        condition=ConditionConfig(num_tokens=num_tokens),
        is_latent=True,
    )
    torch.manual_seed(0)
    weights = wake(build_network(recipe)).state_dict()
    return build(recipe, weights, autoencoder=autoencoder, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def pipe(autoencoder):
    return pipeline(autoencoder)


@pytest.fixture(scope="module")
def watched(pipe):
    return sampling.watch(pipe, LABELS, guidance_scale=3.0, steps=STEPS, seed=1)


class TestWatch:
    def test_every_layer_has_a_map_a_step_and_a_picture(self, watched):
        assert {name: tuple(maps.shape) for name, maps in watched.maps.items()} == {
            "down.0.0": (STEPS, 3, 16, 4),
            "middle.0": (STEPS, 3, 4, 4),
            "up.1.0": (STEPS, 3, 16, 4),
            "up.1.1": (STEPS, 3, 16, 4),
        }
        assert watched.pictures.shape == (STEPS, 3, 1, 28, 28)
        assert watched.times == pytest.approx([1, 2 / 3, 1 / 3], abs=1e-3)

    def test_each_place_divides_its_attention(self, watched):
        for maps in watched.maps.values():
            assert maps.min() >= 0
            torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]))

    def test_it_draws_what_sample_draws(self, pipe, watched):
        drawn = pipe.sample(3, labels=LABELS, guidance_scale=3.0, steps=STEPS, seed=1)
        torch.testing.assert_close(watched.pictures[-1], drawn, rtol=0, atol=1e-5)

    def test_the_maps_are_those_with_the_label(self, pipe, watched):
        """With guidance the network sees both halves at once; ask it by hand for the one with labels."""
        x, t = pipe.noise(3, seed=1), torch.ones(3)
        with cross_attention_maps(pipe.network) as noted, torch.no_grad():
            pipe.network(x, t, labels=torch.tensor(LABELS))
            pipe.network(x, t, labels=torch.full((3,), NO_CLASS))
        for name, maps in watched.maps.items():
            with_label, without = (weights.mean(dim=1) for weights in noted[f"unet.{name}.cross_attention"])
            torch.testing.assert_close(maps[0], with_label, rtol=1e-4, atol=1e-5)
            assert (with_label - without).abs().max() > 1e-3

    def test_plain_conditional_sampling_begins_with_the_same_maps(self, pipe, watched):
        plain = sampling.watch(pipe, LABELS, guidance_scale=1.0, steps=STEPS, seed=1)
        for name, maps in plain.maps.items():
            assert maps.shape == watched.maps[name].shape
            torch.testing.assert_close(maps[0], watched.maps[name][0], rtol=1e-4, atol=1e-5)

    def test_maps_move_when_the_label_does(self, pipe):
        noise = pipe.noise(1, seed=2).expand(3, -1, -1, -1)
        maps = sampling.watch(pipe, LABELS, steps=2, noise=noise).maps
        for each in maps.values():
            assert (each[0, 0] - each[0, 1]).abs().max() > 1e-3  # a 3 and an 8 from one noise
            torch.testing.assert_close(each[0, 1], each[0, 2])  # an 8 and an 8

    def test_a_single_token_is_all_there_is_to_look_at(self, autoencoder):
        maps = sampling.watch(pipeline(autoencoder, num_tokens=1), LABELS, steps=2).maps
        assert all(torch.equal(each, torch.ones_like(each)) for each in maps.values())
        assert {each.shape[-1] for each in maps.values()} == {1}

    def test_a_network_without_cross_attention_is_refused(self, autoencoder):
        with pytest.raises(BookError, match="cross-attention"):
            sampling.watch(random_latent_pipeline(autoencoder), LABELS, steps=2)


class TestPaint:
    def test_each_position_fills_its_part_of_the_picture(self):
        weights = torch.rand(2, 3, 16, 4)
        pixels = attention.paint(weights)
        assert pixels.shape == (2, 3, 4, 28, 28)
        for row, column in ((0, 0), (1, 3), (3, 2)):
            block = torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
            block[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = True
            inside = pixels[1, 2, 3][crop(block)[0, 0]]
            assert (inside == weights[1, 2, 4 * row + column, 3]).all()

    def test_the_middle_of_the_network_has_two_by_two(self):
        pixels = attention.paint(torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]]))
        assert pixels[0, [0, 0, -1, -1], [0, -1, 0, -1]].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])

    @pytest.mark.parametrize("positions", [3, 9])
    def test_other_positions_are_refused(self, positions):
        with pytest.raises(BookError, match=f"{positions} positions"):
            attention.paint(torch.ones(positions, 4))

    def test_light_falls_where_the_token_is_read(self):
        weights = torch.zeros(1, 16, 2)
        weights[:, :8, 0], weights[:, 8:, 1] = 1.0, 1.0  # token 1 above, token 2 below
        pictures = torch.full((1, 1, 28, 28), -1.0)
        pictures[..., 14] = 1.0  # a stroke from top to bottom
        lit = attention.lit(pictures, weights)[0, :, 0]
        assert lit.shape == (2, 28, 28)
        assert lit[0, 3, 14] == lit[1, 24, 14] == 1
        assert (lit[0, 14:] == -1).all()
        assert (lit[1, :14] == -1).all()
        assert -1 < lit[0, 3, 3] < 0  # the ground is lit too


class TestFigures:
    def test_a_guess_and_its_tokens_stand_in_one_column(self, watched):
        pictures = attention.tokens_of_step(watched, "up.1.1", 1)
        assert pictures.shape == (5, 3, 1, 28, 28)
        assert torch.equal(pictures[0], watched.pictures[1])
        expected = attention.lit(watched.pictures[1, [2]], watched.maps["up.1.1"][1, [2]])
        assert torch.equal(pictures[1:, 2], expected[0])

    def test_figure_names_pictures_and_tokens(self, watched):
        (axes,) = attention.show_tokens(watched, "middle.0", ["3", "8", "8"]).axes
        assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "8", "8"]
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "prediction",
            *(f"token {n}" for n in range(1, 5)),
        ]

    def test_unknown_layers_and_steps_are_refused(self, watched):
        with pytest.raises(BookError, match=r"down\.0\.0"):
            attention.show_tokens(watched, "down.7", ["3", "8", "8"])
        with pytest.raises(BookError, match="step 3"):
            attention.tokens_of_step(watched, "down.0.0", STEPS)

    def test_film_has_a_frame_a_step(self, watched):
        frames = attention.film(watched, "down.0.0")
        assert len(frames) == STEPS
        assert torch.equal(frames[1], grid(attention.tokens_of_step(watched, "down.0.0", 1).flatten(0, 1), columns=3))

    def test_slider_names_the_times(self, watched):
        page = attention.scrub_tokens(watched, "down.0.0", start=2).text
        assert "t = 1.00" in page
        assert "t = 0.33" in page
        assert "down.0.0" in attention.animate_tokens(watched, "down.0.0").text

    def test_places_have_the_colour_of_what_they_read(self):
        weights = torch.zeros(16, 3)
        weights[:8, 0], weights[8:, 2] = 1.0, 1.0
        figure = attention.show_readers(torch.full((1, 1, 1, 28, 28), -1.0), [[weights]], ["a row"], ["a column"])
        (axes,) = figure.axes
        picture = axes.images[0].get_array()
        for row, token in ((5, 0), (25, 2)):
            expected = [round(255 * part) for part in to_rgb(attention.TOKEN_COLOURS[token])]
            assert picture[row, 10].tolist() == pytest.approx(expected, abs=1)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["token 1", "token 2", "token 3"]

    def test_readers_of_other_shapes_or_too_many_tokens_are_refused(self):
        pictures = torch.zeros(1, 1, 1, 28, 28)
        with pytest.raises(BookError, match="same"):
            attention.show_readers(pictures, [[torch.ones(16, 2)] * 2], ["a row"], ["a column"])
        with pytest.raises(BookError, match="5 tokens"):
            attention.show_readers(pictures, [[torch.ones(16, 5)]], ["a row"], ["a column"])

    def test_matrices_carry_their_numbers(self):
        figure = attention.show_matrices(
            {"left": torch.tensor([[0.25, 0.75]]), "right": torch.eye(2)}, columns=["a", "b"]
        )
        left, right = figure.axes
        assert [text.get_text() for text in left.texts] == ["0.25", "0.75"]
        assert left.get_title() == "left"
        assert [text.get_text() for text in right.texts] == ["1.00", "0.00", "0.00", "1.00"]
        assert [label.get_text() for label in right.get_xticklabels()] == ["a", "b"]
        with pytest.raises(BookError, match="panel"):
            attention.show_matrices({})
