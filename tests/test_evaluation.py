"""Measures: against closed forms, scipy, double loops and sets whose answer is known."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusion_book import data
from diffusion_book.data import quantise
from diffusion_book.evaluation import measures
from diffusion_book.evaluation.distances import (
    frechet_distance,
    frechet_error,
    kernel_distance,
    nearest,
    precision_recall,
)
from diffusion_book.evaluation.features import classifier, features, logits, reference_features
from diffusion_book.evaluation.measures import Measures, floor, measure, random_labels, real_features, sentence
from diffusion_book.models import weights
from diffusion_book.models.pipelines import load
from diffusion_book.system.errors import BookError


def gaussian(number: int, mean, covariance, seed: int = 0) -> torch.Tensor:
    """Exactly this mean and (N - 1) covariance, and not only about it."""
    mean, covariance = torch.as_tensor(mean).double(), torch.as_tensor(covariance).double()
    x = torch.randn(number, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def covariance(seed: int, dim: int = 6) -> torch.Tensor:
    root = torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.1 * torch.eye(dim)


# --- Frechet distance ----------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_with_diagonal_covariance():
    """|m_a - m_b|^2 + sum (s_a - s_b)^2 when the covariances commute."""
    a = gaussian(500, [0.0, 1.0, -2.0], torch.diag(torch.tensor([1.0, 4.0, 9.0])), 1)
    b = gaussian(300, [1.0, 1.0, 0.0], torch.diag(torch.tensor([4.0, 4.0, 1.0])), 2)
    assert frechet_distance(a, b) == pytest.approx((1 + 0 + 4) + (1 + 0 + 4), rel=1e-9)


def test_frechet_distance_agrees_with_scipy_s_matrix_root():
    a = gaussian(200, range(6), covariance(1), 1)
    b = gaussian(200, [0.5] * 6, covariance(2), 2)
    root = scipy.linalg.sqrtm(covariance(1).numpy() @ covariance(2).numpy()).real
    mean = (torch.arange(6) - 0.5).square().sum().item()
    expected = mean + (covariance(1).trace() + covariance(2).trace()).item() - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_a_set_to_itself_is_zero_also_when_its_covariance_is_singular():
    a = gaussian(100, [0.0] * 4, torch.eye(4))
    flat = torch.cat([a, a[:, :2], torch.zeros(100, 3)], dim=1)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(flat, flat.flip(0)) == pytest.approx(0.0, abs=1e-6)


def test_frechet_distance_falls_with_the_number_of_samples():
    """The bias that the floor is there for: samples of one and the same distribution."""
    draw = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    distances = [frechet_distance(draw[:number], draw[2000:]) for number in (50, 200, 2000)]
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


def test_the_error_of_a_frechet_distance_on_a_line_is_that_of_its_closed_form():
    """In one dimension d^2 = (m_a - m_b)^2 + (s_a - s_b)^2, whose slopes are known, as are the errors of m_a and s_a."""
    number = 400
    a, b = torch.randn(2, number, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = 2 + 3 * a
    x = a - a.mean()
    of_spread = (x.square() - x.square().mean()) / (2 * a.std())  # what each point adds to s_a, times N
    added = 2 * (a.mean() - b.mean()) * x + 2 * (a.std() - b.std()) * of_spread
    assert frechet_error(a, b) == pytest.approx(added.std().item() / number**0.5, rel=2e-3)


@pytest.mark.parametrize(
    ("shift", "stretch", "lowest", "highest"),
    [
        (0.5, 1.0, 0.85, 1.15),  # far apart in the means
        (0.0, 1.5, 0.85, 1.15),  # in the covariances
        (0.0, 1.0, 1.2, 1.65),  # not at all: a perfect model, where the error is sqrt(2) too large
    ],
)
def test_the_error_of_a_frechet_distance_is_its_scatter_over_many_draws(shift, stretch, lowest, highest):
    generator = torch.Generator().manual_seed(0)
    dim, number = 8, 300
    b = gaussian(2000, [0.0] * dim, torch.eye(dim), 1)
    draws = [shift + stretch * torch.randn(number, dim, dtype=torch.float64, generator=generator) for _ in range(400)]
    scatter = torch.tensor([frechet_distance(draw, b) for draw in draws]).std().item()
    claimed = torch.tensor([frechet_error(draw, b) for draw in draws]).mean().item()
    assert lowest < claimed / scatter < highest


def test_the_error_of_a_frechet_distance_falls_as_the_root_and_bears_flat_directions():
    a, b = (gaussian(1000, [0.0, mean], torch.eye(2), seed) for mean, seed in ((1.0, 1), (0.0, 2)))
    assert frechet_error(a.repeat(4, 1), b) == pytest.approx(frechet_error(a, b) / 2, rel=1e-2)
    flat = torch.cat([a, a, torch.zeros(1000, 3)], dim=1)
    assert math.isfinite(frechet_error(flat, flat.flip(0) + 1))
    few = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert math.isfinite(frechet_error(few, gaussian(100, [0.0] * 20, torch.eye(20))))


def test_the_error_of_real_digits_is_the_scatter_of_disjoint_draws():
    reference = reference_features()
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
    draws = [reference["train"][part] for part in order.split(2000)]
    scatter = torch.tensor([frechet_distance(draw, reference["test"]) for draw in draws]).std().item()
    claimed = torch.tensor([frechet_error(draw, reference["test"]) for draw in draws]).mean().item()
    assert 0.8 < claimed / scatter < 1.5


# --- Kernel distance -----------------------------------------------------------------------------


def test_kernel_distance_agrees_with_a_double_loop():
    a = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)).double()
    b = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double() + 1

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within_a = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    within_b = [kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    between = [kernel(x, y) for x in a for y in b]
    expected = sum(within_a) / 42 + sum(within_b) / 20 - 2 * sum(between) / 35
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_the_same_in_chunks(monkeypatch):
    a, b = torch.randn(2, 25, 4, generator=torch.Generator().manual_seed(0))
    whole = kernel_distance(a, b)
    monkeypatch.setattr("diffusion_book.evaluation.distances.CHUNK", 4)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_is_unbiased():
    """Twenty samples are enough for a mean of zero over many draws; a biased estimate would not come near it."""
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor([kernel_distance(*torch.randn(2, 20, 4, generator=generator)) for _ in range(400)])
    error = found.std().item() / math.sqrt(len(found))
    assert abs(found.mean().item()) < 3 * error
    assert (found < 0).any()
    assert (
        kernel_distance(torch.randn(50, 4, generator=generator), 1 + torch.randn(50, 4, generator=generator))
        > 20 * error
    )


# --- Precision, recall, neighbours ---------------------------------------------------------------


def clusters(centres, number=40, seed=0) -> torch.Tensor:
    draw = 0.05 * torch.randn(len(centres), number, 2, generator=torch.Generator().manual_seed(seed))
    return (draw + torch.tensor(centres, dtype=torch.float32)[:, None]).flatten(0, 1)


def test_precision_and_recall_of_sets_with_a_known_answer():
    left, right, far = [0.0, 0.0], [10.0, 0.0], [0.0, 99.0]
    real = clusters([left, right])
    same = precision_recall(clusters([left, right], seed=1), real)
    assert min(same) > 0.8
    precision, recall = precision_recall(clusters([left, left], seed=1), real)  # a mode is missing
    assert precision > 0.8
    assert recall == pytest.approx(0.5, abs=0.1)
    precision, recall = precision_recall(clusters([left, right, far, far], seed=1), real)  # half is rubbish
    assert precision == pytest.approx(0.5, abs=0.1)
    assert recall > 0.8
    assert precision_recall(clusters([far]), real) == (0.0, 0.0)


def test_precision_and_recall_on_a_line_by_hand():
    """Balls of the real points 0, 1, 2, 6 to their second neighbours: radii 2, 1, 2, 5."""
    real = torch.tensor([[0.0], [1.0], [2.0], [6.0]])
    generated = torch.tensor([[-2.0], [-2.1], [11.0], [11.1], [4.5], [30.0]])
    precision, recall = precision_recall(generated, real, neighbours=2)
    assert precision == pytest.approx(3 / 6)  # -2, 11 and 4.5 are inside
    # Radii of the generated, sorted -2.1, -2, 4.5, 11, 11.1, 30: 6.6, 6.5, 6.5, 6.5, 6.6, 19.
    assert recall == pytest.approx(4 / 4)
    few = torch.tensor([[2.0], [2.1], [2.2], [2.3]])
    assert precision_recall(few, real, neighbours=2) == (1.0, 0.25)


def test_precision_and_recall_are_the_same_in_chunks(monkeypatch):
    a, b = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    whole = precision_recall(a, b)
    monkeypatch.setattr("diffusion_book.evaluation.distances.CHUNK", 7)
    assert precision_recall(a, b) == whole


def test_nearest_finds_distance_and_index(monkeypatch):
    monkeypatch.setattr("diffusion_book.evaluation.distances.CHUNK", 2)
    members = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    distance, index = nearest(torch.tensor([[3.0, 3.0], [0.1, 0.0], [-9.0, 0.0], [3.0, 4.0]]), members)
    torch.testing.assert_close(distance, torch.tensor([1.0, 0.1, 8.0, 0.0]), atol=1e-5, rtol=1e-5)
    assert index.tolist() == [1, 0, 2, 1]


@pytest.mark.parametrize("function", [frechet_distance, frechet_error, kernel_distance, precision_recall, nearest])
def test_features_that_cannot_be_compared_are_refused(function):
    good = torch.randn(9, 4)
    for bad in (torch.randn(9, 3), torch.randn(1, 4), torch.randn(9), torch.randn(9, 4).fill_(math.nan)):
        with pytest.raises(BookError) as info:
            function(good, bad)
        assert "\n" not in str(info.value)
        with pytest.raises(BookError):
            function(bad, good)
    with pytest.raises(BookError, match="more than 3 pictures"):
        precision_recall(good[:3], good)


# --- The shipped classifiers and reference -------------------------------------------------------


def test_the_reference_is_that_of_all_pictures_and_a_frozen_classifier():
    reference = reference_features()
    assert reference["train"].shape == (60_000, 64)
    assert reference["test"].shape == (10_000, 64)
    assert all(value.isfinite().all() for value in reference.values())
    for name in ("classifier", "classifier-check"):
        network = classifier(name)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert network is classifier(name)


def test_the_card_of_the_classifier_promises_what_the_measures_need():
    for name in ("classifier", "classifier-check"):
        card = weights.read_card(name)
        assert card["recipe"]["model"] == name
        assert card["learning_curve"][-1]["test_accuracy"] >= 0.995


def test_the_floor_is_small_and_falls_with_the_number():
    assert floor(10_000).mean < floor(2000).mean < floor(1000).mean
    assert floor(10_000).mean < 0.5
    assert floor(10_000).std < floor(2000).std < floor(1000).std
    assert frechet_distance(reference_features()["test"], 2 * reference_features()["test"]) > 100 * floor(10_000).mean


def test_the_floor_is_mean_and_scatter_of_ten_draws_of_training_pictures():
    reference = reference_features()
    draws = [reference["train"][measures.real_indices(500, draw)] for draw in range(10)]
    found = torch.tensor([frechet_distance(draw, reference["test"]) for draw in draws])
    assert floor(500) == pytest.approx((found.mean().item(), found.std().item()), rel=1e-5)
    assert found.unique().numel() == 10


def test_a_draw_of_real_pictures_is_the_same_at_every_call():
    assert torch.equal(real_features(100), real_features(100))
    assert torch.equal(real_features(100)[:10], real_features(10))
    assert not torch.equal(real_features(100), real_features(100, draw=1))
    every = real_features(60_000).double().sum(0)
    torch.testing.assert_close(every, reference_features()["train"].double().sum(0))
    for number in (9, 60_001):
        with pytest.raises(BookError, match="the measures need 10 to 60000"):
            real_features(number)


def pictures(number: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_see_pictures_as_files_hold_them():
    images = pictures(5)
    stored = quantise(images).float() / 127.5 - 1
    assert torch.equal(features(images), features(stored))
    assert features(images).shape == (5, 64)
    torch.testing.assert_close(features(images, batch_size=2), features(images), rtol=1e-4, atol=1e-4)
    assert logits(images).shape == (5, 10)
    for bad in (torch.zeros(2, 1, 32, 32), torch.zeros(2, 28, 28), torch.zeros(2, 3, 28, 28)):
        with pytest.raises(BookError, match=r"must be \(N, 1, 28, 28\)"):
            features(bad)


@pytest.fixture
def smaller_reference(monkeypatch):
    """A part of the reference: finding the neighbours of 10,000 pictures among 60,000 takes a while."""
    remembered = (measures.floor, measures._precision_recall_of_real, measures._nearest_of_real)
    whole = reference_features()
    part = whole | {"train": whole["train"][:6000], "test": whole["test"][:1000]}
    monkeypatch.setattr(measures, "reference_features", lambda *_: part)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def test_measures_of_rubbish_are_bad_and_complete(smaller_reference):
    images = pictures(40)
    labels = logits(images).argmax(dim=1)
    found = measure(images, labels)
    assert found.num_samples == 40
    assert found.ratio == pytest.approx(found.cfid / found.floor)
    assert found.ratio_error == pytest.approx(found.cfid_error / found.floor)
    assert (found.floor, found.floor_std) == floor(40)
    assert found.ratio > 10
    assert found.kid > 0
    assert found.precision < 0.5
    assert 0.5 < found.precision_real <= 1
    assert found.nearest_train > 2 * found.nearest_train_real
    assert found.class_accuracy == 1.0  # the labels were the second classifier's own
    assert sum(found.class_share) == pytest.approx(1.0)
    assert measure(images).class_accuracy is None
    plain = found.to_dict()
    assert plain.keys() == Measures.__dataclass_fields__.keys()
    assert all(isinstance(value, (int, float, list)) for value in plain.values())


def test_pictures_that_cannot_be_measured_are_refused():
    with pytest.raises(BookError, match="9 samples"):
        measure(pictures(9))
    with pytest.raises(BookError, match="not finite"):
        measure(pictures(10).fill_(math.nan))


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (lambda x: (x + 1) / 2, r"between 0 and 1, .* \[0, 1\]: give 2 x - 1"),
        (lambda x: ((x + 1) / 2 - 0.1307) / 0.3081, "standardised"),
        (lambda x: (x + 1) / 2 - 0.1307, "standardised"),
        (lambda x: (x + 1) * 127.5, "look like bytes"),
        (lambda x: quantise(x).long(), "type int64: give bytes"),
        (lambda x: quantise(x) > 127, "type bool: give bytes"),
    ],
)
def test_pictures_in_other_units_are_refused_with_cause_and_remedy(digits, units, words):
    """Else standardised digits are measured as if they were hundreds of floors away."""
    with pytest.raises(BookError, match=words) as info:
        measure(units(digits))
    assert "\n" not in str(info.value)


@pytest.fixture(scope="module", params=["mnist", "rf-one-step"])
def digits(request):
    """Real ones, where MNIST is here, and samples of a shipped model."""
    if request.param == "rf-one-step":
        return load("rf-one-step", device="cpu").sample(20, sampler="euler", steps=1)
    try:
        return quantise(data.crop(data.load("mnist", "test").batch(torch.arange(20))[0])).float() / 127.5 - 1
    except BookError:
        pytest.skip("MNIST is not here")


def test_bytes_are_as_good_as_floats_and_overshoot_is_no_fault(digits, smaller_reference):
    found = measure(digits)
    assert measure(quantise(digits)) == found
    assert measure(1.2 * digits).num_samples == 20  # as a sampler leaves them that does not clamp


def test_a_sentence_says_how_far_and_how_doubtful(smaller_reference):
    found = measure(pictures(40))
    text = found.sentence()
    assert text.startswith(
        f"{found.ratio:.1f} times the distance of real digits; {100 * found.doubtful:.0f} in a hundred"
    )
    assert "(with 40 samples; compare only with as many)" in text
    assert "(real: 3)" in text
    headline = {"ratio": 2.44, "doubtful": 0.061, "doubtful_real": 0.0317, "num_samples": 10_000}
    assert sentence(headline) == "2.4 times the distance of real digits; 6 in a hundred doubtful (real: 3)"


def test_how_classes_are_drawn_shifts_the_distance_of_real_digits():
    """Equal numbers are wrong proportions, and stay far off; exact ones leave less to chance than a random draw."""
    found = measures.real_distances((500, 10_000), draws=3)
    assert list(found) == list(measures.CLASS_DRAWS)
    assert all(each.shape == (2, 3) for each in found.values())
    at_random, equal, exact = (each.mean(1) for each in found.values())
    assert at_random[1].item() == pytest.approx(floor(10_000).mean, abs=4 * floor(10_000).std)
    assert equal[1] > 1.4 * at_random[1]
    assert exact[1] < at_random[1]
    assert at_random[0] > 3 * at_random[1]
    assert exact[0] > 3 * exact[1]
    with pytest.raises(BookError, match="the measures need 10 to"):
        measures.real_distances((5,))


def test_doubtful_is_what_the_second_classifier_is_less_sure_of(smaller_reference):
    images = pictures(40)
    sure = logits(images).softmax(dim=1).amax(dim=1) >= 0.9
    share = 1 - sure.double().mean().item()
    assert 0 < share < 1
    found = measure(images)
    assert found.doubtful == pytest.approx(share)
    assert measures.is_doubtful(images).double().mean().item() == pytest.approx(share)
    assert found.doubtful_error == pytest.approx((share * (1 - share) / 40) ** 0.5)
    assert found.doubtful_real == pytest.approx(1 - reference_features()["confident"].item())


def test_models_with_classes_are_asked_for_digits_at_random():
    """In the test set's proportions, and with as much luck in the shares as a random set of digits has."""
    number = 10_000
    labels = random_labels(number)
    assert torch.equal(labels, random_labels(number))
    assert random_labels(0).shape == (0,)
    expected = torch.tensor(measures.CLASS_COUNTS) * number / 10_000
    assert sum(measures.CLASS_COUNTS) == 10_000
    chi = ((labels.bincount(minlength=10) - expected).square() / expected).sum().item()
    assert 2 < chi < 22  # chi-squared with 9 degrees of freedom: neither exact shares nor others
    assert random_labels(9000, 3).bincount().tolist() == pytest.approx([3000] * 3, abs=150)


def test_the_shares_are_those_of_mnist():
    try:
        labels = data.load("mnist", "test").labels
    except BookError:
        pytest.skip("MNIST is not here")
    assert tuple(labels.bincount().tolist()) == measures.CLASS_COUNTS
