"""Measures: against closed forms, scipy, double loops and sets whose answer is known."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusion_book import data
from diffusion_book.data import quantise
from diffusion_book.evaluation import measures
from diffusion_book.evaluation.distances import frechet_distance, kernel_distance, nearest, precision_recall
from diffusion_book.evaluation.features import classifier, features, logits, reference_features
from diffusion_book.evaluation.measures import Measures, floor, measure, natural_labels, real_subset
from diffusion_book.models import weights
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


@pytest.mark.parametrize("function", [frechet_distance, kernel_distance, precision_recall, nearest])
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
    assert floor(10_000) < floor(2000) < floor(1000)
    assert floor(10_000) < 0.5
    for number in (500, 2000):
        assert floor(number, natural=True) < 0.7 * floor(number)  # spared the luck of the shares
    assert frechet_distance(reference_features()["test"], 2 * reference_features()["test"]) > 100 * floor(10_000)


def test_the_floor_is_the_mean_over_random_handfuls_of_real_pictures():
    test = reference_features()["test"]
    handfuls = [measures._handful(500, False, seed) for seed in range(measures.HANDFULS)]
    found = torch.tensor([frechet_distance(each, test) for each in handfuls])
    assert floor(500) == pytest.approx(found.mean().item())
    assert found.std() > 0.02  # a single one would be luck


def test_a_natural_handful_holds_each_digit_as_often_as_it_is_asked_for():
    found = measures._handful(1000, True, 3)
    digits = classifier().head(found).argmax(dim=1)
    assert torch.equal(digits.bincount(minlength=10), natural_labels(1000).bincount(minlength=10))
    assert not torch.equal(found, measures._handful(1000, True, 4))


def test_the_real_subset_is_the_same_at_every_call():
    assert torch.equal(real_subset(100), real_subset(100))
    assert torch.equal(real_subset(100)[:10], real_subset(10))
    every = real_subset(60_000).double().sum(0)
    torch.testing.assert_close(every, reference_features()["train"].double().sum(0))
    for number in (9, 60_001):
        with pytest.raises(BookError, match="the measures need 10 to 60000"):
            real_subset(number)


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
    monkeypatch.setattr(measures, "reference_features", lambda: part)
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


def test_models_with_classes_are_asked_for_the_digits_in_the_shares_of_the_data():
    for number in (10, 999, 10_000, 60_000):
        labels = measures.natural_labels(number)
        assert labels.shape == (number,)
        assert torch.equal(labels, measures.natural_labels(number))
        expected = torch.tensor(measures.CLASS_COUNTS) * number / 60_000
        assert ((labels.bincount(minlength=10) - expected).abs() <= 1).all()
    assert sum(measures.CLASS_COUNTS) == 60_000
    halves = measures.natural_labels(10_000).chunk(2)  # mixed, so that each batch has all digits
    assert (halves[0].bincount(minlength=10) - halves[1].bincount(minlength=10)).abs().max() < 150


def test_the_shares_are_those_of_mnist():
    try:
        labels = data.load("mnist").labels
    except BookError:
        pytest.skip("MNIST is not here")
    assert tuple(labels.bincount().tolist()) == measures.CLASS_COUNTS
