"""What the pictures, strips, animations and scrubbers of the book hold, pixel by pixel."""

import ast
import base64
import html
import io
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_book.models.recipes import RECIPES
from diffusion_book.samplers import State
from diffusion_book.schedules import SCHEDULES
from diffusion_book.system.errors import BookError
from diffusion_book.targets import Prediction
from diffusion_book.viz import grids, plots
from diffusion_book.viz.animation import animate, save_animation
from diffusion_book.viz.grids import GAP, grid, save_grid, show_grid, show_rows
from diffusion_book.viz.overview import PLACES, model_map
from diffusion_book.viz.scrubber import scrubber, sprite_sheet
from diffusion_book.viz.strips import denoising_strip, show_strip
from diffusion_book.viz.style import COLOURS, DPI, PAPER, SEQUENCE, new_figure, use_style


def flat(values, size=4):
    """One picture a value, (N, 1, size, size), all of whose pixels have it."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 1, size, size)


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.array(Image.open(buffer))[..., :3]


class TestGrid:
    def test_lays_pictures_out_row_by_row_with_grey_between(self):
        picture = grid(flat([-1.0, 0.0, 1.0]), columns=2, padding=2)
        assert picture.shape == (2 * 4 + 3 * 2, 2 * 4 + 3 * 2)
        assert picture.dtype == torch.uint8
        first, second, third, gap = picture[3, 3], picture[3, 9], picture[9, 3], picture[0, 0]
        assert [int(value) for value in (first, second, third, gap)] == [0, 128, 255, GAP]

    def test_clips_noise_and_keeps_bytes(self):
        assert int(grid(flat([7.0]))[3, 3]) == 255
        assert int(grid(torch.full((1, 1, 4, 4), 77, dtype=torch.uint8))[3, 3]) == 77

    def test_a_single_picture_has_its_border_too(self):
        picture = grid(flat([1.0]), padding=2)
        assert picture.shape == (8, 8)
        assert [int(picture[0, 0]), int(picture[2, 2])] == [GAP, 255]

    @pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4, 4), (0, 1, 4, 4)])
    def test_other_shapes_are_refused_in_one_line(self, shape):
        with pytest.raises(BookError, match=r"\(N, 1 or 3, H, W\)"):
            grid(torch.zeros(shape))

    def test_saved_grid_is_the_grid(self, tmp_path):
        images = torch.rand(5, 1, 28, 28) * 2 - 1
        path = save_grid(images, tmp_path / "new" / "grid.png", columns=3)
        drawn = torch.from_numpy(np.array(Image.open(path)))
        assert torch.equal(drawn, grid(images, columns=3).repeat_interleave(8, 0).repeat_interleave(8, 1))
        assert [file.name for file in path.parent.iterdir()] == ["grid.png"]

    def test_many_pictures_get_smaller_blocks_and_too_many_are_refused(self, tmp_path):
        tall = torch.zeros(20_000, 1, 2, 2, dtype=torch.uint8)  # a column of 80,002 pixels
        assert Image.open(save_grid(tall, tmp_path / "grid.png", columns=1)).size == (48, 640_016)
        with pytest.raises(BookError, match=r"does not fit into .*grid.jpg: .jpg ends at 65,500"):
            save_grid(tall, tmp_path / "grid.jpg", columns=1)
        assert Image.open(save_grid(tall[:3_000], tmp_path / "grid.jpg", columns=1)).size == (30, 60_010)

    def test_saving_under_an_unknown_ending_is_refused(self, tmp_path):
        with pytest.raises(BookError, match="png"):
            save_grid(flat([0.0]), tmp_path / "grid.digits")


class TestFigures:
    def test_grid_is_shown_at_its_scale(self):
        shown = pixels(show_grid(flat([-1.0, 1.0], size=28), columns=2, scale=2))
        ink = (shown == 255).all(axis=2)
        assert ink.sum() == (2 * 28) ** 2  # every pixel is two by two
        assert shown.min() < 10
        assert shown.max() > 245

    def test_rows_of_different_lengths_start_at_the_left(self):
        shown = pixels(show_rows({"long": flat([1.0] * 4, 28), "short": flat([1.0], 28)}))
        white = (shown == 255).all(axis=2)
        upper, lower = np.array_split(white, 2)
        assert abs(int(upper.any(axis=0).argmax()) - int(lower.any(axis=0).argmax())) <= 1
        assert upper.sum() == pytest.approx(4 * lower.sum(), rel=0.1)

    def test_long_labels_are_not_cut_off(self):
        shown = pixels(show_rows({"a rather long label": flat([1.0], 28)}))
        assert (shown[:, :3] == shown[0, 0]).all()

    def test_no_rows_is_refused(self):
        with pytest.raises(BookError, match="row"):
            show_rows({})

    def test_pyplot_keeps_no_figure_open(self):
        before = plt.get_fignums()
        show_grid(flat([0.0]))
        plots.plot_loss(range(3), [3.0, 2.0, 1.0])
        assert plt.get_fignums() == before

    def test_style(self):
        use_style()
        figure, _ = new_figure(2, 1)
        assert figure.dpi == DPI <= 100
        assert tuple(pixels(figure)[0, 0]) == tuple(int(PAPER[i : i + 2], 16) for i in (1, 3, 5))

    def test_every_model_has_a_colour_of_its_own(self):
        drawing = {name for name, recipe in RECIPES.items() if recipe.diffusion}
        assert set(COLOURS) == drawing | {"ddim", "vae", "data"}
        assert len(set(COLOURS.values())) == len(COLOURS)

    def test_sequence_gets_darker(self):
        grey = [sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in SEQUENCE]
        assert grey == sorted(grey, reverse=True)


class TestStrip:
    class Pipe:
        @staticmethod
        def to_images(x):
            return x

    def states(self, steps):
        for number in range(steps + 1):
            t = 1 - number / steps
            x0 = None if number == 0 else Prediction(flat([-t, t]), flat([0.0, 0.0]))
            yield State(t, flat([t, -t]), x0)

    def test_stills_are_evenly_spaced_from_the_noise_to_the_picture(self):
        times, stills = denoising_strip(self.states(100), self.Pipe, frames=5)
        assert times == pytest.approx([1, 0.75, 0.5, 0.25, 0])
        assert stills.shape == (2, 5, 1, 4, 4)
        assert stills[0, :, 0, 0, 0].tolist() == pytest.approx(times)
        assert stills[1, :, 0, 0, 0].tolist() == pytest.approx([-time for time in times])

    def test_predicted_pictures_start_a_step_later(self):
        times, stills = denoising_strip(self.states(4), self.Pipe, frames=4, what="x0")
        assert times == pytest.approx([0.75, 0.5, 0.25, 0])
        assert stills[1, :, 0, 0, 0].tolist() == pytest.approx(times)

    def test_never_more_stills_than_states(self):
        assert denoising_strip(self.states(2), self.Pipe, frames=10)[1].shape[1] == 3

    @pytest.mark.parametrize("options", [{"frames": 0}, {"what": "eps"}])
    def test_bad_requests_are_refused(self, options):
        with pytest.raises(BookError):
            denoising_strip(self.states(2), self.Pipe, **options)

    def test_neighbouring_times_are_told_apart(self):
        labels = show_strip([0.002, 0.001, 0.0], torch.zeros(1, 3, 1, 4, 4)).axes[0].get_xticklabels()
        assert [label.get_text() for label in labels] == ["0.002", "0.001", "0.000"]

    def test_shown_with_a_time_over_each_column(self):
        times, stills = denoising_strip(self.states(4), self.Pipe)
        axes = show_strip(times, stills).axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1.00", "0.75", "0.50", "0.25", "0.00"]


def decode(source):
    kind, encoded = source.split(",", 1)
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def smooth_frames(count, height=16, width=24):
    """Frames that lossy compression leaves nearly as they are, each of another brightness: (T, H, W) bytes."""
    ramp = torch.linspace(0, 60, width).expand(height, width)
    return torch.stack([(ramp + 190 * number / count) for number in range(count)]).round().to(torch.uint8)


class TestAnimation:
    def test_frames_come_back_in_order_and_loop(self):
        frames = smooth_frames(7)
        movie = decode(re.search(r'src="([^"]+)"', animate(frames).text).group(1))
        assert movie.n_frames == 7
        assert movie.info["loop"] == 0
        for number, frame in enumerate(frames):
            movie.seek(number)
            shown = torch.from_numpy(np.array(movie.convert("L"))).float()
            assert (shown - frame.float()).abs().mean() < 8

    def test_alt_text_is_escaped_and_nothing_is_fetched(self):
        text = animate(smooth_frames(2), alt='a "quoted" <digit>').text
        assert 'alt="a &quot;quoted&quot; &lt;digit&gt;"' in text
        assert "http" not in text

    @pytest.mark.parametrize("ending", ["gif", "webp"])
    def test_saved_animation_has_all_frames(self, tmp_path, ending):
        path = save_animation(smooth_frames(5)[:, None], tmp_path / f"movie.{ending}")
        assert Image.open(path).n_frames == 5

    def test_another_ending_is_refused(self, tmp_path):
        with pytest.raises(BookError, match="gif"):
            save_animation(smooth_frames(2), tmp_path / "movie.mp4")

    def test_frames_of_another_shape_are_refused(self):
        with pytest.raises(BookError, match="frames"):
            animate(torch.zeros(2, 3, 4, 4))


class TestScrubber:
    @pytest.mark.parametrize("count", [1, 2, 7, 50])
    def test_sprite_sheet_holds_every_frame_where_the_handler_looks(self, count):
        frames = torch.randint(0, 256, (count, 5, 9), dtype=torch.uint8)
        sheet, columns = sprite_sheet(frames)
        for number, frame in enumerate(frames):
            row, column = number // columns, number % columns
            assert torch.equal(sheet[row * 5 : row * 5 + 5, column * 9 : column * 9 + 9], frame)

    def test_embedded_sheet_decodes_to_the_frames(self):
        frames = smooth_frames(10)
        sheet, _ = sprite_sheet(frames)
        image = decode(re.search(r'<img src="([^"]+)"', scrubber(frames).text).group(1))
        assert (torch.from_numpy(np.array(image.convert("L"))).float() - sheet.float()).abs().mean() < 8

    def test_captions_survive_quotes_and_show_the_first_frame(self):
        captions = ['t = "1"', "<b>", "η & σ"]
        text = scrubber(smooth_frames(3), captions, start=1).text
        stored = html.unescape(re.search(r'data-captions="([^"]*)"', text).group(1))
        assert json.loads(stored) == captions
        assert re.search(r"<output[^>]*>&lt;b&gt;</output>", text)
        assert 'value="1"' in text

    def test_several_on_a_page_cannot_collide_and_nothing_is_fetched(self):
        text = scrubber(smooth_frames(3)).text
        assert not re.search(r'\bid="', text)
        assert "getElementById" not in text
        assert "http" not in text
        assert 'type="range"' in text

    def test_wrong_number_of_captions_or_start_is_refused(self):
        with pytest.raises(BookError, match="captions"):
            scrubber(smooth_frames(3), ["one"])
        with pytest.raises(BookError, match="frame 3"):
            scrubber(smooth_frames(3), start=3)


class TestPlots:
    def test_loss_mean_is_the_mean(self):
        lines = plots.plot_loss(range(1, 6), [1.0, 2.0, 3.0, 4.0, 5.0], smooth=3).axes[0].lines
        assert list(lines[1].get_xdata()) == [2, 3, 4]
        assert lines[1].get_ydata().tolist() == pytest.approx([2, 3, 4])

    def test_quality_sorts_by_work_and_colours_by_model(self):
        axes = plots.plot_quality({"ddim": [(50, 1.0), (10, 2.0)], "other": [(10, 3.0)]}, floor=0.5).axes[0]
        assert axes.lines[0].get_xdata().tolist() == [10, 50]
        assert axes.lines[0].get_color() == COLOURS["ddim"]
        assert axes.lines[2].get_ydata()[0] == 0.5
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "50"]

    @pytest.mark.parametrize("values", [(1.0, 1.3), (3.3, 4.1), (0.003, 0.2), (1.0, 600.0)])
    def test_quality_has_error_bars_where_they_are_known_and_numbers_beside_its_axis(self, values):
        low, high = values
        axes = plots.plot_quality({"ddim": [(10, high, 0.1 * high), (50, low, 0.05 * low)]}).axes[0]
        (bars,) = axes.containers[0].lines[2]
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert np.allclose(ends, [[0.9 * high, 1.1 * high], [0.95 * low, 1.05 * low]]) or np.allclose(
            ends, [[0.95 * low, 1.05 * low], [0.9 * high, 1.1 * high]]
        )
        bottom, top = axes.get_ylim()
        assert sum(bottom <= tick <= top for tick in axes.get_yticks()) >= 2

    def test_schedule_shows_both_factors_of_each(self):
        axes = plots.plot_schedule(SCHEDULES).axes[0]
        assert len(axes.lines) == 2 * len(SCHEDULES)
        alpha, sigma = axes.lines[0].get_ydata(), axes.lines[1].get_ydata()
        assert np.allclose(alpha**2 + sigma**2, 1)

    def test_bins_stay_inside_their_edges(self):
        axes = plots.plot_bins([0, 0.5, 1], {"a": [1, 2], "b": [3, 4]}, "t", "loss").axes[0]
        spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
        assert all(0 <= left < right <= 0.5 or 0.5 <= left < right <= 1 for left, right in spans)
        assert [bar.get_height() for bar in axes.patches] == [1, 2, 3, 4]

    def test_curves_and_histograms_draw_what_they_are_given(self):
        assert len(plots.plot_curves([0, 1], {"ddpm": [0, 1], "mine": [1, 0]}, "x", "y").axes[0].lines) == 2
        colours = {
            line.get_color() for line in plots.plot_curves([0, 1], {"ddpm": [0, 1], "b": [1, 0]}, "", "").axes[0].lines
        }
        assert len(colours) == 2
        histogram = plots.plot_line_histograms({"here": torch.full((10,), 2.0)}).axes[0]
        tallest = max(histogram.patches, key=lambda bar: bar.get_height())
        assert tallest.get_x() <= 2.0 <= tallest.get_x() + tallest.get_width()
        line = torch.linspace(-1, 1, 5)
        rows = plots.plot_line_histograms({"a": line, "b": line}, densities={"b": (line, line.square())}).axes
        assert [len(row.lines) for row in rows] == [0, 1]
        assert np.allclose(rows[1].lines[0].get_ydata(), line.square())

    def test_a_race_is_drawn_on_two_logarithmic_axes(self):
        runs = {"one": ([1, 10], [80, 20]), "two": ([2, 20], [90, 8]), "three": ([5, 50], [90, 8])}
        figure = plots.plot_race(runs, "cFID", {"two": (300, 4)})
        (axes,) = figure.axes
        assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "log", "cFID")
        one, two, shipped, three = axes.lines
        for line, (name, (seconds, values)) in zip((one, two, three), runs.items(), strict=True):
            assert line.get_label() == name
            assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == (seconds, values)
        assert [line.get_linestyle() for line in (one, two, three)] == ["-", "-", "--"]
        assert shipped.get_xydata().tolist() == [[300, 4]]
        assert (shipped.get_linestyle(), shipped.get_color()) == ("None", two.get_color())
        assert shipped.get_label() == "two, shipped"


class TestStyle:
    @pytest.fixture
    def set_by_the_reader(self):
        """What breaks, or changes, figures that are drawn with it."""
        mine = {"text.usetex": True, "image.cmap": "jet", "lines.linewidth": 9.0, "savefig.dpi": 30, "axes.grid": False}
        with plt.rc_context(mine):
            yield dict(plt.rcParams)

    def test_the_readers_settings_stay_and_do_not_matter(self, set_by_the_reader, tmp_path):
        images = torch.linspace(-1, 1, 28 * 28).reshape(1, 1, 28, 28)
        drawn = [show_grid(images, title="a"), show_rows({"a": images})]
        for number, figure in enumerate(drawn):
            figure.savefig(tmp_path / f"set-{number}.png")
        assert dict(plt.rcParams) == set_by_the_reader
        with plt.rc_context():
            plt.rcdefaults()
            for number, figure in enumerate((show_grid(images, title="a"), show_rows({"a": images}))):
                figure.savefig(tmp_path / f"plain-{number}.png")
        for number in range(2):
            first, second = (np.array(Image.open(tmp_path / f"{kind}-{number}.png")) for kind in ("set", "plain"))
            assert np.array_equal(first, second)

    def test_every_function_that_makes_a_figure_is_styled(self):
        """One that is not would draw its lines and words as the reader has set them."""
        for path in Path(grids.__file__).parent.glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
                makes = {
                    call.func.id
                    for call in ast.walk(function)
                    if isinstance(call, ast.Call) and hasattr(call.func, "id")
                }
                if "new_figure" in makes:
                    assert "styled" in [getattr(each, "id", "") for each in function.decorator_list], function.name


# The map


def test_arrows_of_the_map_are_straight_and_cross_no_box():
    assert len({(place.column, place.row) for place in PLACES.values()}) == len(PLACES), "two models in one place"
    for name, place in PLACES.items():
        for parent in place.parents:
            start = PLACES[parent]
            assert place.chapter >= start.chapter, f"{name} builds on what comes later"
            assert (start.column == place.column) != (start.row == place.row), f"{parent} to {name} is not straight"
            for other in PLACES.values():
                between = [
                    min(a, b) < c < max(a, b) if a != b else c == a
                    for a, b, c in (
                        (start.column, place.column, other.column),
                        (start.row, place.row, other.row),
                    )
                ]
                assert not all(between), f"{parent} to {name} crosses a box"


def test_the_map_tells_what_training_cost_where_it_is_given():
    pictures = torch.zeros(10, 1, 28, 28)
    words = [text.get_text() for text in model_map({"ddpm": pictures, "ddim": pictures}, {"ddpm": 63.2}).axes[0].texts]
    assert "63 min" in words
    assert sum("min" in word for word in words) == 1
    assert words.count("chapter 1") == words.count("chapter 2") == 1
