"""The one training loop of this book.

`Trainer.steps()` is a generator: it trains one step, tells what happened, and hands control back.
Whoever iterates decides what to log, draw or save, and may stop at any time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_book import data
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.system import processes
from diffusion_book.system.devices import autocast, out_of_memory_names, place, resolve_device, resolve_precision
from diffusion_book.system.errors import BookError
from diffusion_book.training.ema import ExponentialMovingAverage
from diffusion_book.training.losses import Loss
from diffusion_book.training.optimizers import build_optimizer
from diffusion_book.training.sharing import PartOfBatch, distribute


class Report(NamedTuple):
    """What one step did. `seconds` counts training alone, over all resumed parts."""

    step: int
    epoch: int
    loss: float
    lr: float
    gradient_norm: float
    seconds: float


class NonFiniteLoss(BookError):
    """The loss is no longer a number."""


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Rise over the first steps, stay, and fall in a straight line over the last share.

    Args:
        step: steps done.
        progress: share of the training done, in [0, 1].

    Source: the trapezoid of Zhai et al. 2022, figure 3 ("cooldown"): unlike a cosine it can be
    prolonged or cut short without having chosen the length first.
    """
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cooldown = min(1.0, (1.0 - progress) / config.cooldown) if config.cooldown else 1.0
    return config.lr * warmup * cooldown


def seed_of(*numbers: int) -> int:
    """One well-mixed seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Trainer:
    """A network, its optimiser and its average, and where they are in the training.

    All that is random in a step is drawn from generators seeded with (seed, step), so a training
    resumed from a checkpoint gives the numbers of one that was never interrupted. With several processes (see
    `processes`) each draws the same and works on its part of every batch: together they are one training, with the
    numbers of a single process but for rounding.

    Args:
        network: is moved to the device and trained in place.
        loss: one number a picture (see `Loss`).
        dataset: is moved to the device whole.
        config: see `TrainingConfig`.
        device, precision: see `devices`.
        compile: run the network through torch.compile.
        max_minutes: stop (and cool down) after so many minutes if the epochs are not done by then.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        dataset: data.Dataset,
        config: TrainingConfig,
        *,
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool = False,
        max_minutes: float | None = None,
    ) -> None:
        if len(dataset) < config.batch_size:
            raise BookError(
                f"a batch of {config.batch_size} is more than the data set's {len(dataset)}: lower --batch_size"
            )
        if config.batch_size < processes.number():
            raise BookError(
                f"a batch of {config.batch_size} for {processes.number()} processes: raise --batch_size, or start fewer"
            )
        if max_minutes is not None and not max_minutes > 0:
            raise BookError(f"max_minutes is {max_minutes}: it must be above 0")
        self.device = resolve_device(device)
        self.dtype = resolve_precision(precision, self.device)
        self.network = place(network, self.device, self.dtype)
        self.loss = loss
        with out_of_memory_names("the size of the data set"):
            self.dataset = dataset.to(self.device)
        self.config = config
        self.max_seconds = math.inf if max_minutes is None else 60.0 * max_minutes
        with out_of_memory_names("--base_channels"):
            self.ema = ExponentialMovingAverage(self.network, config.ema_decay)
        self.optimizer = build_optimizer(self.network, config)
        distributed = distribute(self.network)
        self.compiled = torch.compile(distributed) if compile else distributed
        self.step = 0
        self.seconds = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the data set."""
        return len(self.dataset) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, unless the time is up before."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the training that is done, by steps or by time, whichever is further."""
        return max(self.step / self.total_steps, self.seconds / self.max_seconds)

    def steps(self) -> Iterator[Report]:
        """Train to the end, one step a turn.

        Raises:
            NonFiniteLoss: the loss or its gradient is not a number; the network is as it was before the step.
            BookError: the batch does not fit into memory.
        """
        while self.progress < 1.0:
            epoch = self.epoch
            order = torch.Generator().manual_seed(seed_of(self.config.seed, 0, epoch))
            batches = list(data.shuffled_batches(len(self.dataset), self.config.batch_size, order))
            for index in batches[self.step % self.steps_per_epoch :]:
                if self.progress >= 1.0:
                    return
                yield self._train_step(index.to(self.device))

    def _train_step(self, index: Tensor) -> Report:
        started = time.perf_counter()
        lr = learning_rate(self.config, self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.network.train()
        with out_of_memory_names("--batch_size"):
            try:
                loss = self._loss(index, seed_of(self.config.seed, 1, self.step))
                # Averaged over the processes, the gradient of each one's part times their number is that of the whole.
                (loss * processes.number()).backward()
                norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip, foreach=True)
                if not (math.isfinite(loss_value := _total(loss)) and math.isfinite(norm_value := norm.item())):
                    self._refuse(index, lr)
                self.optimizer.step()
            finally:  # an interrupted step leaves no gradient for the next one
                self.optimizer.zero_grad(set_to_none=True)
            self.ema.update(self.network)
        self.step += 1
        # The rate depends on the time, so that all must go by one clock: the main process's.
        self.seconds += processes.gather(time.perf_counter() - started)[0]
        return Report(self.step, (self.step - 1) // self.steps_per_epoch + 1, loss_value, lr, norm_value, self.seconds)

    def _refuse(self, index: Tensor, lr: float) -> None:
        if not self.dataset.batch(index)[0].isfinite().all():
            raise NonFiniteLoss("the data hold numbers that are not finite: look at what they were made from")
        raise NonFiniteLoss(
            f"the loss is not finite at step {self.step + 1} with learning rate {lr:.2g}: try a lower --lr"
        )

    def _loss(self, index: Tensor, seed: int, network: nn.Module | None = None, dataset=None) -> Tensor:
        """This process's part of the mean loss of a batch: summed over the processes, it is that mean."""
        generator = torch.Generator(self.device).manual_seed(seed)
        images, labels = (dataset or self.dataset).batch(index)
        # Dropout draws from the global generator: seed that too, and give it back as it was.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed + processes.rank())
            asked = network or self.compiled
            if processes.number() > 1:
                asked = PartOfBatch(asked, network or self.network)
            with autocast(self.device, self.dtype):
                losses = self.loss(asked, images, labels, generator)  # (B,)
        part = processes.part(len(index))
        return losses[part.start : part.stop].sum() / len(index)

    @torch.no_grad()
    def evaluate(self, dataset: data.Dataset, batches: int = 8) -> float:
        """Loss of the averaged network on other data, with the same times and noise at every call."""
        dataset = dataset.to(self.device)
        size = min(self.config.batch_size, len(dataset))
        losses = []
        for number in range(min(batches, len(dataset) // size)):
            index = torch.arange(number * size, (number + 1) * size, device=self.device)
            losses.append(self._loss(index, seed_of(self.config.seed, 2, number), self.ema.network, dataset))
        return _total(torch.stack(losses).mean())

    def state_dict(self) -> dict:
        """All that a resumed training needs: tensors, numbers and lists only."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "network": _contiguous(self.network.state_dict()),
            "ema": _contiguous(self.ema.network.state_dict()),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`'s result."""
        self.network.load_state_dict(state["network"])
        self.ema.network.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def _total(part: Tensor) -> float:
    """The sum over the processes of what each has a part of."""
    return sum(processes.gather(part.item()))


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().contiguous() for name, value in state.items()}
