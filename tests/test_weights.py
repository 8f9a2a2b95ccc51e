"""Shipped weights: whole, hashed, and refused when a single bit is off."""

import json
from pathlib import Path

import pytest
import torch

from diffusion_book.models import weights
from diffusion_book.system import hashes
from diffusion_book.system.errors import BookError


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(5, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "bias": torch.randn(5, generator=generator, dtype=torch.float64),
        "count": torch.tensor(7),
    }


def test_round_trip_in_half_precision(tmp_path):
    path = weights.write_weights("model", tensors(), {"recipe": {"model": "model"}}, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    read = weights.read_weights("model", tmp_path)
    assert read.keys() == tensors().keys()
    for name, value in tensors().items():
        if value.is_floating_point():
            assert read[name].dtype == torch.float32
            assert torch.equal(read[name], value.half().float())
        else:
            assert torch.equal(read[name], value)
            assert read[name].dtype == value.dtype
    card = weights.read_card("model", tmp_path)
    assert card == {"recipe": {"model": "model"}, "sha256": hashes.hash_of(path)}


def test_the_same_tensors_give_the_same_hash(tmp_path):
    first = weights.write_weights("one", tensors(), {}, tmp_path)
    second = weights.write_weights("two", tensors(), {}, tmp_path)
    assert hashes.hash_of(first) == hashes.hash_of(second)


def test_a_flipped_bit_is_noticed_and_both_hashes_are_named(tmp_path):
    path = weights.write_weights("model", tensors(), {}, tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BookError) as info:
        weights.read_weights("model", tmp_path)
    message = str(info.value)
    assert hashes.hash_of(path)[:12] in message
    assert weights.read_card("model", tmp_path)["sha256"][:12] in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("kept", [0, 10, -1])
def test_a_truncated_file_is_noticed(tmp_path, kept):
    path = weights.write_weights("model", tensors(), {}, tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BookError, match="damaged"):
        weights.read_weights("model", tmp_path)


def test_a_missing_file_is_noticed(tmp_path):
    weights.write_weights("model", tensors(), {}, tmp_path).unlink()
    with pytest.raises(BookError, match="no file"):
        weights.read_weights("model", tmp_path)


def test_a_file_with_the_right_hash_that_holds_no_tensors_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not tensors")
    weights.write_card("model", {"sha256": hashes.hash_of(path)}, tmp_path)
    with pytest.raises(BookError, match="cannot be read") as info:
        weights.read_weights("model", tmp_path)
    assert "\n" not in str(info.value)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(BookError, match="no weights are shipped for 'gan'"):
        weights.read_card("gan", tmp_path)
    with pytest.raises(BookError, match="no weights are shipped for 'gan'"):
        weights.read_weights("gan")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = weights.write_weights("model", tensors(), {}, tmp_path)
    before = path.read_bytes()

    def fail(temporary, content):
        temporary.write_text("half of i")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(BookError, match="No space left on device"):
        weights.write_weights("model", tensors(), {}, tmp_path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_all_that_is_shipped_is_what_its_card_says():
    assert {"classifier", "classifier-check", "reference"} <= set(weights.shipped())
    for name in weights.shipped():
        card = weights.read_card(name)
        json.dumps(card)
        read = weights.read_weights(name)
        assert all(value.isfinite().all() for value in read.values())
        assert (weights.FOLDER / f"{name}.safetensors").stat().st_size < 50e6
