import pytest
import torch

from diffusion_book.interpolation import slerp
from diffusion_book.system.errors import BookError


def test_the_ends_are_the_two_noises():
    a, b = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)


def test_on_a_circle_the_angle_grows_evenly():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for weight in (0.1, 1 / 3, 0.5, 0.9):
        angle = torch.tensor(weight * torch.pi / 2)
        torch.testing.assert_close(slerp(a, b, weight), torch.stack([angle.cos(), angle.sin()])[None])


def test_the_norm_stays_where_the_straight_line_loses_it():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(64, 1024, generator=generator), torch.randn(64, 1024, generator=generator)
    middle = slerp(a, b, 0.5)
    assert (middle.norm(dim=1) / 32 - 1).abs().max() < 0.1
    straight = (a + b) / 2
    torch.testing.assert_close(straight.norm(dim=1).mean() / 32, torch.tensor(0.5**0.5), atol=0.02, rtol=0)


def test_one_weight_for_each_sample():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 1, 4, 4, generator=generator)
    weights = torch.tensor([0.0, 0.25, 1.0])
    together = slerp(a, b, weights)
    for index, weight in enumerate(weights.tolist()):
        torch.testing.assert_close(together[index], slerp(a[index : index + 1], b[index : index + 1], weight)[0])


@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_parallel_noises_fall_back_to_the_straight_line(scale):
    a = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(slerp(a, scale * a, 0.25), (0.75 + 0.25 * scale) * a)


def test_opposite_noises_give_finite_numbers():
    a = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))
    assert slerp(a, -a, 0.5).isfinite().all()


def test_shapes_must_agree():
    with pytest.raises(BookError, match="one shape"):
        slerp(torch.zeros(1, 4), torch.zeros(1, 5), 0.5)
