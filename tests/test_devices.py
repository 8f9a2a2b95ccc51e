"""Where and how exactly a network computes changes how fast it is, and nothing else."""

import platform

import pytest
import torch
from torch import nn

from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.devices import autocast, keep_freed_memory, place, resolve_device, resolve_precision
from diffusion_book.system.errors import BookError

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    made = UNet(UNetConfig(8, (1, 2), layers_per_block=1, attention_levels=(1,), patch_size=4)).eval()
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return made


def layouts(network: nn.Module) -> set[bool]:
    """Whether the kernels larger than 1 x 1 lie channels last."""
    kernels = [value for value in network.parameters() if value.ndim == 4 and value.shape[-1] > 1]
    assert kernels
    return {value.is_contiguous(memory_format=torch.channels_last) for value in kernels if value.shape[1] > 1}


def test_weights_lie_channels_last_but_in_bf16_on_the_cpu():
    assert layouts(place(network(), CPU)) == {True}
    assert layouts(place(network(), CPU, torch.float32)) == {True}
    assert layouts(place(network(), CPU, torch.bfloat16)) == {False}
    again = place(place(network(), CPU), CPU, torch.bfloat16)  # it is undone, too
    assert layouts(again) == {False}


@torch.no_grad()
def test_the_layout_changes_no_output():
    x, t = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.5, 0.9])
    expected = network()(x, t)
    for dtype in (torch.float32, torch.bfloat16):
        placed = place(network(), CPU, dtype)
        assert all(value.dtype == torch.float32 for value in placed.parameters())  # autocast makes the bf16
        torch.testing.assert_close(placed(x, t), expected, rtol=1e-4, atol=1e-5)
        with autocast(CPU, dtype):
            torch.testing.assert_close(placed(x, t).float(), expected, rtol=0.1, atol=0.1)


# What the CPU is, which of its instructions multiply bf16, what oneDNN says of itself, and what must follow.
CPUS = {
    "avx512_bf16": ("x86_64", True, False, True, torch.bfloat16),
    "amx": ("AMD64", False, True, True, torch.bfloat16),
    "emulated by AVX-512": ("x86_64", False, False, True, torch.float32),
    "older": ("x86_64", False, False, False, torch.float32),
    "arm with bf16": ("aarch64", False, False, True, torch.bfloat16),
    "arm without": ("arm64", False, False, False, torch.float32),
}


@pytest.mark.parametrize(("machine", "avx", "amx", "onednn", "expected"), CPUS.values(), ids=CPUS)
def test_auto_is_bf16_where_the_cpu_multiplies_it(machine, avx, amx, onednn, expected, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16


def test_unknown_precision():
    with pytest.raises(BookError, match="unknown precision 'fp8': choose one of auto, fp32, bf16"):
        resolve_precision("fp8", CPU)


def test_fp32_means_no_autocast():
    with autocast(CPU, torch.float32):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with autocast(CPU, torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_devices_that_are_not_there_are_refused():
    assert resolve_device("cpu") == CPU
    assert resolve_device().type in ("cpu", "cuda")
    for name, words in (("abacus", "unknown device"), ("cuda:99", "is not there"), ("meta", "is not supported")):
        with pytest.raises(BookError, match=words) as info:
            resolve_device(name)
        assert "\n" not in str(info.value)


def test_freed_memory_is_kept_for_the_next_step():
    """Where glibc is the C library, the pages that one step frees are not fetched again by the next."""
    resource = pytest.importorskip("resource")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("another C library than glibc is left as it is")
    keep_freed_memory()

    def step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(2**18) for _ in range(16)]  # 16 MB in pieces of 1 MB
        del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    step()
    assert min(step() for _ in range(5)) < 400  # of 4,096 pages
