"""Digits from anywhere are read as they are, measured as a model's are, and other pictures are refused."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from commands import refused
from PIL import Image
from test_own import shape
from tiny import part_of_the_reference
from torchvision.utils import save_image

from diffusion_book import data
from diffusion_book.cli.main import main
from diffusion_book.data import samples
from diffusion_book.data.samples import read_samples
from diffusion_book.evaluation.digits import TURNS, check_digits, distance_to_training
from diffusion_book.evaluation.distances import closest
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.evaluation.measures import measure
from diffusion_book.system import streams
from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import save_grid

DIGITS = data.load("digits")
IMAGES, LABELS = DIGITS.images[:23], DIGITS.labels[:23]


@pytest.fixture(autouse=True)
def notices():
    streams.say_once.cache_clear()


def write_folder(folder, suffix="png", by_class=False):
    for number, (image, label) in enumerate(zip(IMAGES, LABELS.tolist(), strict=True)):
        place = folder / str(label) if by_class else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{number}.{suffix}")
    return folder


# Read as they are


def test_a_folder_in_the_order_of_its_names(tmp_path):
    images, labels = read_samples(write_folder(tmp_path / "mine"))
    assert torch.equal(images, IMAGES)  # 2 comes before 10
    assert labels is None


def test_a_folder_for_each_digit(tmp_path):
    images, labels = read_samples(write_folder(tmp_path / "mine", by_class=True))
    order = torch.argsort(LABELS, stable=True)
    assert torch.equal(images, IMAGES[order])
    assert torch.equal(labels, LABELS[order])


def test_a_border_is_cut_off_and_blocks_are_pixels_again(tmp_path):
    folder = write_folder(tmp_path / "mine")
    large = torch.nn.functional.pad(IMAGES, [2] * 4)
    Image.fromarray(large[0, 0].numpy()).save(folder / "0.png")
    Image.fromarray(IMAGES[1, 0].numpy()).resize((224, 224), Image.Resampling.NEAREST).save(folder / "1.png")
    Image.fromarray(large[2, 0].numpy()).resize((224, 224), Image.Resampling.NEAREST).save(folder / "2.png")
    Image.fromarray(IMAGES[3, 0].numpy()).convert("RGBA").save(folder / "3.png")
    assert torch.equal(read_samples(folder).images, IMAGES)


@pytest.mark.parametrize("form", ["bytes", "floats", "signed", "arr_0"])
def test_arrays(tmp_path, form):
    values = {"floats": IMAGES.numpy() / 255, "signed": IMAGES.numpy() / np.float32(127.5) - 1}.get(
        form, IMAGES.numpy()
    )
    names = ("arr_0", "arr_1") if form == "arr_0" else ("images", "labels")
    np.savez(tmp_path / "mine.npz", **dict(zip(names, (values, LABELS.numpy()), strict=True)))
    images, labels = read_samples(tmp_path / "mine.npz")
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)


def grids(folder):
    """Grids of the same 23 digits, whose last rows are not full."""
    floats, large = IMAGES / 255, torch.nn.functional.pad(IMAGES / 255, [2] * 4)
    save_grid(IMAGES, folder / "ours.png", columns=7)
    save_grid(IMAGES, folder / "once.png", columns=5, scale=1)
    save_image(floats, folder / "torchvision.png", nrow=6)
    save_image(floats, folder / "white.png", nrow=6, pad_value=1.0)
    save_image(floats, folder / "touching.png", nrow=4, padding=0)
    save_image(large, folder / "large.png", nrow=8)
    save_image(large, folder / "large_touching.png", nrow=7, padding=0)  # 224 wide, as eight of 28
    return sorted(folder.glob("*.png"))


def test_grids_are_cut_whoever_made_them(tmp_path):
    for path in grids(tmp_path):
        found = read_samples(path).images
        assert torch.equal(found, IMAGES), path.name


def test_a_grid_where_two_cuts_fit(tmp_path):
    """17 tiles of 28 and 15 of 32, with gaps of 2, are equally wide: 512 pixels; so are 8 of 28 and 7 of 32 without."""
    many = DIGITS.images[: 17 * 17]
    save_image(many / 255, tmp_path / "a.png", nrow=17)
    save_image(torch.nn.functional.pad(many[:225] / 255, [2] * 4), tmp_path / "b.png", nrow=15)
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size == (512, 512)
    assert torch.equal(read_samples(tmp_path / "a.png").images, many)
    assert torch.equal(read_samples(tmp_path / "b.png").images, many[:225])


@pytest.mark.parametrize("name", ["labels.npy", "labels.txt", "labels.csv", "labels.npz"])
def test_labels_from_a_file(tmp_path, name):
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, LABELS.numpy())
    elif name.endswith("npz"):
        np.savez(path, labels=LABELS.numpy())
    else:
        path.write_text(("," if name.endswith("csv") else "\n").join(map(str, LABELS.tolist())) + "\n")
    folder = write_folder(tmp_path / "mine")
    (folder / "1.png").write_bytes(b"damaged")  # its label goes with it
    images, labels = read_samples(folder, path)
    kept = torch.arange(len(LABELS)) != 1
    assert torch.equal(images, IMAGES[kept])
    assert torch.equal(labels, LABELS[kept])


def test_damaged_and_strange_files_are_named_and_counted(tmp_path, capsys):
    folder = write_folder(tmp_path / "mine", by_class=True)
    whole = next(folder.rglob("*.png")).read_bytes()
    (folder / "3" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "3" / "notes.txt").write_text("of my model")
    (folder / "stray.png").write_bytes(whole)
    assert len(read_samples(folder).images) == len(IMAGES)
    said = capsys.readouterr().err
    assert said.startswith("notice: skipped 3 files in ")
    for named in ("broken.png (damaged)", "notes.txt (no PNG", "stray.png (beside the folders of the classes)"):
        assert named in said


# What is refused


def bad_places(folder):
    """What is refused, and what is said."""

    def changed(name, number, picture):
        picture.save(write_folder(folder / name) / f"{number}.png")

    first = Image.fromarray(IMAGES[0, 0].numpy())
    changed("large", 4, first.resize((64, 64)))
    changed("oblong", 0, first.resize((28, 56)))
    colour = Image.merge("RGB", [first, first.point(lambda value: value // 2), first])
    changed("colour", 9, colour)
    see_through = first.convert("RGBA")
    see_through.putalpha(first)
    changed("transparent", 2, see_through)
    (folder / "few").mkdir()
    first.save(folder / "few" / "0.png")
    (folder / "empty").mkdir()
    write_folder(folder / "named" / "circle")
    write_folder(folder / "made" / "sample_000")
    first.save(folder / "made" / "grid.png")
    first.save(folder / "one.png")
    Image.new("L", (300, 200)).save(folder / "photo.png")
    (folder / "broken.png").write_bytes(b"nothing")
    np.savez(folder / "words.npz", images=IMAGES.numpy(), labels=np.array(["dress"] * len(IMAGES)))
    np.savez(folder / "ten.npz", images=IMAGES.numpy(), labels=np.full(len(IMAGES), 10))
    np.savez(folder / "small.npz", images=IMAGES.numpy()[..., :8, :8])
    np.savez(folder / "many.npz", images=np.zeros((60_001, 1, 1), np.uint8))
    return {
        "large": "4.png is 64 x 64 pixels: digits of MNIST's form are 28 x 28",
        "oblong": "0.png is 28 x 56 pixels",
        "colour": "9.png is in colour",
        "transparent": "2.png is transparent",
        "few": "holds 1 pictures: the measures need 10 to 60,000",
        "empty": "holds 0 pictures",
        "named": "the folder circle in",
        "made": "is what `generate` has written: give",
        "one.png": "one.png holds 1 pictures",
        "photo.png": "photo.png, 300 x 200 pixels, is no grid of digits",
        "broken.png": "broken.png cannot be read (no PNG, JPEG or WebP)",
        "words.npz": "a label in",
        "ten.npz": "is '10': labels of digits are whole numbers 0 to 9",
        "small.npz": "images[0] is 8 x 8 pixels",
        "many.npz": "holds 60,001 pictures",
        "missing.npz": "there is no",
        "missing/": "there is no",
    }


def test_what_is_not_of_the_form_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion_book.cli.evaluate.measure", lambda *_: pytest.fail("it was measured"))
    for place, said in bad_places(tmp_path).items():
        line = refused(capsys, "evaluate", f"{tmp_path}/{place}", "--output_dir", tmp_path / "new")
        assert said in line
    assert not (tmp_path / "new").exists()
    assert "or give a folder, an .npz or a picture of digits that is there" in refused(capsys, "evaluate", "nowhere")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("0 1 2", "holds 3 labels for 23 pictures: give one for each"),
        ("0 1 x" + " 1" * 20, "a label in"),
        ("0 1 1.5" + " 1" * 20, "is '1.5': labels of digits are whole numbers 0 to 9"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, capsys, content, said):
    folder = write_folder(tmp_path / "mine")
    if content is not None:
        (tmp_path / "labels.txt").write_text(content)
    assert said in refused(capsys, "evaluate", folder, "--labels", tmp_path / "labels.txt")


def drawn_shapes(number):
    kinds = ("circle", "square", "triangle")
    made = [
        np.asarray(shape(kinds[each % 3], each, 0).resize((28, 28), Image.Resampling.BOX)) for each in range(number)
    ]
    return torch.from_numpy(np.stack(made))[:, None]


def other_pictures(number=60):
    """Pictures of MNIST's size that are no digits."""
    generator = torch.Generator().manual_seed(0)
    yield "noise", torch.randint(0, 256, (number, 1, 28, 28), generator=generator, dtype=torch.uint8)
    yield "shapes", drawn_shapes(number)
    try:
        yield "clothes", data.load("fashion-mnist", "test").images[:number]
    except BookError:
        return


def test_what_is_no_digit_is_refused_and_digits_of_any_hand_are_not():
    check_digits(DIGITS.images[:200])
    for name, images in other_pictures():
        with pytest.raises(BookError, match="the pictures are no digits as MNIST's: as features they lie") as info:
            check_digits(images)
        assert "--anyway" in str(info.value), name


def test_blank_and_dark_pictures_are_refused():
    with pytest.raises(BookError, match="nothing is brighter than 1 of 255"):
        check_digits((DIGITS.images[:20] > 127).byte())
    with pytest.raises(BookError, match="60% of the pictures are blank"):
        check_digits(torch.cat([DIGITS.images[:8], torch.zeros(12, 1, 28, 28, dtype=torch.uint8)]))


def test_digits_of_mnist_that_were_turned_or_inverted_are_told_so():
    try:
        images = data.load("mnist", "test").images[:60]
    except BookError:
        pytest.skip("MNIST is not here")
    check_digits(images)
    undone = {"turned by a quarter": 3, "turned by three quarters": 1}
    for what, (remedy, mend) in TURNS.items():
        given = images.rot90(undone[what], (2, 3)) if what in undone else mend(images)
        with pytest.raises(BookError) as info:
            check_digits(given.contiguous())
        assert str(info.value) == f"the pictures are digits, but {what}: {remedy}"


# Measured as a model's


def test_the_measures_are_the_models(tmp_path, capsys):
    np.savez(tmp_path / "mine.npz", images=IMAGES.numpy(), labels=LABELS.numpy())
    with part_of_the_reference():
        main(["evaluate", str(tmp_path / "mine.npz"), "--output_dir", str(tmp_path / "out")])
        expected = measure(IMAGES, LABELS).to_dict()
        copies = closest(features(IMAGES), reference_features()["train"])
    said = capsys.readouterr().out.splitlines()
    (folder,) = (tmp_path / "out").iterdir()
    assert said[-1] == str(folder)
    found = json.loads((folder / "measures.json").read_text())
    assert {key: found[key] for key in expected if key != "class_share"} == {
        key: value for key, value in expected.items() if key != "class_share"
    }
    assert found["class_accuracy"] > 0.5
    assert found["nearest"]["training"] == copies.training.tolist()
    assert {"grid.png", "measures.json"} <= {path.name for path in folder.iterdir()}
    assert Image.open(folder / "grid.png").size == (8 * (10 * 30 + 2), 8 * (3 * 30 + 2))
    for measured in ("R", "doubtful", "cFID", "KID", "precision", "recall", "nearest", "class", "digits 0-9"):
        assert any(line.startswith(measured) for line in said)
    assert any(line.startswith("pictures: ") and "times the distance of real digits" in line for line in said)


def test_the_nearest_training_pictures_are_found():
    """A copy of a training picture is told by its number, and its distance is 0."""
    try:
        train = data.load("mnist").images
    except BookError:
        pytest.skip("MNIST is not here")
    copies = closest(features(torch.cat([IMAGES, train[[4321, 77]]])), reference_features()["train"], count=3)
    assert set(copies.training[:2].tolist()) == {4321, 77}
    assert copies.distances[:2].max() < 0.05
    assert set(copies.pictures[:2].tolist()) == {23, 24}
    assert copies.distances[2] > 0.1


def test_without_mnist_the_nearest_are_told_by_their_numbers(tmp_path, capsys, monkeypatch):
    def gone(name, *_):
        raise BookError("no files")

    monkeypatch.setattr(data, "load", gone)
    folder = write_folder(tmp_path / "mine")
    with part_of_the_reference():
        main(["evaluate", str(folder), "--output_dir", str(tmp_path / "out")])
    assert "notice: the nearest training pictures are told by their numbers alone (no files)" in capsys.readouterr().err
    (made,) = (tmp_path / "out").iterdir()
    assert {path.name for path in made.iterdir()} == {"grid.png", "measures.json"}


def test_other_pictures_are_measured_where_that_is_wanted(tmp_path, capsys):
    np.savez(tmp_path / "shapes.npz", images=drawn_shapes(30).numpy())
    with part_of_the_reference():
        where = ["--output_dir", str(tmp_path / "out")]
        assert "no digits as MNIST's" in refused(capsys, "evaluate", tmp_path / "shapes.npz", *where)
        main(["evaluate", str(tmp_path / "shapes.npz"), *where, "--anyway"])
    assert "pictures: " in capsys.readouterr().out


def test_a_launcher_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "is the work of one process" in refused(capsys, "evaluate", write_folder(tmp_path / "mine"))


@pytest.mark.filterwarnings("ignore:Matrix is singular")
def test_the_distance_is_that_of_the_textbook(tmp_path):
    """Of files that were read, by scipy's matrix root: |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2))."""
    many = DIGITS.images[:300]
    save_grid(many, tmp_path / "grid.png", columns=20)
    read = read_samples(tmp_path / "grid.png").images
    a, b = features(read).double().numpy(), reference_features()["test"][:500].double().numpy()
    covariances = [np.cov(each, rowvar=False) for each in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    with part_of_the_reference():
        assert measure(read).cfid == pytest.approx(expected, rel=1e-5)


def test_the_look_is_at_pictures_from_all_over():
    """The first half being digits does not hide that the rest is noise."""
    noise = torch.randint(0, 256, (900, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with part_of_the_reference():
        with pytest.raises(BookError, match="no digits as MNIST's"):
            check_digits(torch.cat([DIGITS.images[:400], noise]))
        assert distance_to_training(DIGITS.images[:50]) < 4
    assert samples.FEWEST == 10
