"""Ctrl-C: what a training or a sampler was doing is given up, and everything can be used as before."""

import itertools
import queue
import time

import pytest
import torch
from jupyter_client.manager import KernelManager
from tiny import SMALL_UNET, random_autoencoder, random_latent_pipeline, wake
from torch import nn

from diffusion_book.models.recipes import DiffusionConfig, TrainingConfig
from diffusion_book.networks.unet import UNet
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer

SETUP = """
import itertools, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import tiny
from test_interrupted import made_trainer
pipe = tiny.random_latent_pipeline(tiny.random_autoencoder())
trainer = made_trainer(epochs=10**6)
before = pipe.sample(4, steps=3)
"""
TRAINING = """
for report in trainer.steps():
    print("step", report.step, flush=True)
"""
SAMPLING = """
def tell(done, total):
    print("step", done, flush=True)
pipe.sample(100_000, steps=1000, callback=tell)
"""
AFTER = """
stopped = trainer.step
further = list(itertools.islice(trainer.steps(), 5))
assert [report.step for report in further] == list(range(stopped + 1, stopped + 6))
assert all(0 < report.loss < 10 for report in further)
assert all(value.isfinite().all() for value in trainer.ema.network.state_dict().values())
assert torch.equal(pipe.sample(4, steps=3), before)
print("usable after", stopped)
"""


def made_trainer(epochs: int = 2) -> Trainer:
    """A training of latents in its first step, always the same one."""
    torch.manual_seed(0)
    moments = torch.randn(64, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    dataset = LatentDataset("digits", moments, torch.arange(64) % 10)
    config = TrainingConfig(epochs=epochs, batch_size=8, warmup_steps=3)
    loss = loss_of_latent_diffusion(DiffusionConfig())
    return Trainer(wake(UNet(SMALL_UNET)), loss, dataset, config, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def kernel():
    """A function that executes a cell in a kernel of its own, and gives what it printed and how it ended."""
    manager = KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=300)

    def execute(code: str, interrupt_at: str | None = None) -> tuple[str, str]:
        # An error must not throw away what is asked next.
        asked, said, until = client.execute(code, stop_on_error=False), "", time.monotonic() + 300
        while time.monotonic() < until:
            try:
                message = client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                said += content["text"]
                if interrupt_at is not None and interrupt_at in said:
                    manager.interrupt_kernel()
                    interrupt_at = None
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                reply = None
                while reply is None or reply["parent_header"]["msg_id"] != asked:
                    reply = client.get_shell_msg(timeout=60)
                return said, reply["content"].get("ename", reply["content"]["status"])
        raise TimeoutError(said[-1000:])

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_cell_that_is_interrupted_leaves_models_that_can_be_used(kernel, request):
    tests = str(request.path.parent)
    assert kernel(SETUP.format(tests=tests)) == ("", "ok")
    for cell in (TRAINING, SAMPLING, TRAINING):
        said, ended = kernel(cell, interrupt_at="step 7\n" if cell == SAMPLING else "\n")
        assert ended == "KeyboardInterrupt"
        assert "step" in said
        said, ended = kernel(AFTER)
        assert ended == "ok", said
        assert "usable after" in said


@pytest.mark.parametrize("moment", ["the loss", "the gradient", "its norm"])
def test_a_step_that_is_interrupted_is_done_again_as_if_nothing_had_been(monkeypatch, moment):
    expected = made_trainer()
    reports = [report[:5] for report in expected.steps()]
    trainer, found, raised = made_trainer(), [], []

    def interrupting(call):
        def interrupted(*arguments, **named):
            result = call(*arguments, **named)
            if trainer.step == 5 and not raised:
                raised.append(True)
                raise KeyboardInterrupt
            return result

        return interrupted

    if moment == "the loss":
        trainer.loss = interrupting(trainer.loss)
    elif moment == "the gradient":
        monkeypatch.setattr(torch.Tensor, "backward", interrupting(torch.Tensor.backward))
    else:
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", interrupting(nn.utils.clip_grad_norm_))
    with pytest.raises(KeyboardInterrupt):
        found.extend(report[:5] for report in trainer.steps())
    assert len(found) == trainer.step == 5
    found += [report[:5] for report in trainer.steps()]
    assert found == reports
    for mine, theirs in itertools.chain(
        zip(trainer.network.parameters(), expected.network.parameters(), strict=True),
        zip(trainer.ema.network.parameters(), expected.ema.network.parameters(), strict=True),
    ):
        assert torch.equal(mine, theirs)


def test_a_sampler_that_is_interrupted_remembers_nothing():
    pipe = random_latent_pipeline(random_autoencoder())
    expected = pipe.sample(3, steps=4, sampler="ddpm")

    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.sample(3, steps=4, sampler="ddpm", callback=interrupt)
    assert torch.equal(pipe.sample(3, steps=4, sampler="ddpm"), expected)
