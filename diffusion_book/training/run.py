"""One training from its recipe to its finished experiment folder."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import Recipe
from diffusion_book.system import processes
from diffusion_book.system.devices import out_of_memory_names
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import remove_leftovers, timestamped_folder, write_text
from diffusion_book.system.machine import environment, peak_memory
from diffusion_book.training.datasets import TrainingData, identity, training_data
from diffusion_book.training.experiment import Experiment, log_line, named_folder, read_records, summary_text
from diffusion_book.training.models import MODELS, Model, Trained
from diffusion_book.training.monitor import Monitor, monitoring
from diffusion_book.training.trainer import NonFiniteLoss, Report, Trainer


def _nothing(*arguments) -> None:
    pass


SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch


@dataclass(frozen=True)
class RunOptions:
    """Where and how long a training runs; nothing here changes what is trained."""

    output_dir: Path = Path("experiments")
    """folder for the experiment folders"""
    resume: Path | None = None
    """experiment folder or .pt file to continue"""
    max_minutes: float | None = None
    """end after so many minutes of training (resumed parts count), even if epochs are left"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    compile: bool = False
    """run the network through torch.compile"""
    name: str | None = None
    """of the experiment folder; without one, TIMESTAMP-MODEL"""
    tensorboard: bool = False
    """keep the figures of each epoch for TensorBoard too, in the experiment folder"""


@dataclass(frozen=True)
class Callbacks:
    """What else happens in a training: pictures, for instance. Called on the main process alone.

    Attributes:
        recorded: (experiment), after each new record.
        epoch: (model, test set, file), after every `sample_every` epochs; the file is named after the epoch.
        finished: (model, test set, experiment folder), at the end.
    """

    recorded: Callable[[Experiment], object] = _nothing
    epoch: Callable[[Trained, TrainingData, Path], object] = _nothing
    finished: Callable[[Trained, TrainingData, Path], object] = _nothing


NO_CALLBACKS = Callbacks()


class Stopped(Exception):
    """A signal ended the training early, after its checkpoint was saved in `folder`."""

    def __init__(self, signal_number: int, folder: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}, which is saved")
        self.signal_number = signal_number
        self.folder = folder


def run_training(
    recipe: Recipe,
    options: RunOptions,
    autoencoder: Autoencoder | None = None,
    parent: Pipeline | None = None,
    callbacks: Callbacks = NO_CALLBACKS,
    start: dict[str, Tensor] | None = None,
) -> Path:
    """Train a model, or continue training it, and fill its experiment folder.

    Args:
        recipe: what to train; to continue, the checkpoint's own but for the number of epochs.
        options: where, and for how long. Without max_minutes, a continued training keeps its own.
        autoencoder: for a latent model, whose latents it learns; to continue, the checkpoint's own.
        parent: for a model that learns from another flow: that flow. Its weights are where the training starts, and
            its couplings what it learns.
        callbacks: what else happens on the way; `viz.experiment.PICTURES` draws.
        start: weights that the network starts with, in place of random ones or the parent's.

    Returns:
        The experiment folder; its `checkpoints/final.pt` holds the trained model.

    Raises:
        BookError: the recipe or an option cannot be followed, or the loss is not finite any more.
        Stopped: by SIGINT or SIGTERM.
    """
    model = choose("model", recipe.model, MODELS)
    if options.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BookError(
                "--tensorboard needs the package tensorboard: pip install tensorboard, or leave it out"
            ) from None
    path = find_checkpoint(options.resume) if options.resume is not None else None
    checkpoint = load_checkpoint(path, recipe.model) if path is not None else {}
    with processes.main_first():  # downloads, and what is kept in caches, are made once
        recipe, dataset, test = training_data(recipe, autoencoder, parent, checkpoint.get("parent"))
    torch.manual_seed(recipe.training.seed)
    with out_of_memory_names("--base_channels"):
        network = model.build(recipe)
    if start is not None:
        network.load_state_dict(start)
    elif parent is not None:
        network.load_state_dict(parent.network.state_dict())
    trainer = Trainer(
        network,
        model.loss(recipe),
        dataset,
        recipe.training,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        max_minutes=options.max_minutes if options.max_minutes is not None else checkpoint.get("max_minutes"),
    )
    if path is not None and path.parent.name == "checkpoints":
        folder = path.parent.parent
    elif not processes.is_main():
        folder = options.output_dir  # the main process makes the folder, and alone writes into it
    elif options.name is not None:
        folder = named_folder(options.output_dir, options.name)
    else:
        folder = timestamped_folder(options.output_dir, recipe.model)
    run = _Run(recipe, model, trainer, Experiment(folder), test, autoencoder, parent, callbacks)
    if checkpoint:
        run.load_state_dict(checkpoint)
    if options.tensorboard and processes.is_main():
        # What came after the checkpoint is about to happen again, here too.
        run.board = SummaryWriter(folder / "tensorboard", purge_step=trainer.step + 1)
    with stop_signals() as stopping, monitoring(trainer.device) as run.monitor:
        run.train(stopping)
        run.finish()
    return folder


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, the first SIGINT or SIGTERM only appends its number to the list; a second one acts as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread can handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


class _Run:
    """A training in progress: the trainer, its folder, and the epoch so far.

    Of several processes the main one alone writes, draws and shows; the others take part in what is computed together.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        trainer: Trainer,
        experiment: Experiment,
        test: TrainingData,
        autoencoder: Autoencoder | None,
        parent: Pipeline | None,
        callbacks: Callbacks,
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.trainer = trainer
        self.experiment = experiment
        self.test = test
        self.autoencoder = autoencoder
        self.callbacks = callbacks
        self.parent = identity(parent) if parent is not None else None
        self.loss_sum, self.loss_count, self.epoch_began = 0.0, 0, 0.0
        self.last_good: Path | None = None
        self.monitor = Monitor(trainer.device)
        self.board = None

    def load_state_dict(self, checkpoint: dict) -> None:
        """Continue from a checkpoint of `save`."""
        self.trainer.load_state_dict(checkpoint)
        self.loss_sum, self.loss_count, self.epoch_began = checkpoint["epoch_so_far"]
        # What came after the checkpoint is about to happen again.
        self.experiment.records = read_records(self.experiment.folder, checkpoint["step"])
        if processes.is_main():
            folder = self.experiment.folder
            remove_leftovers(folder, *(inside for inside in folder.iterdir() if inside.is_dir()), age=0)

    def save(self, *names: str) -> None:
        """Write the checkpoint under these names, unless a weight is not a number."""
        if not processes.is_main():
            return
        trainer = self.trainer
        if not all(value.isfinite().all() for value in trainer.network.state_dict().values()):
            raise NonFiniteLoss(f"the weights are not finite after step {trainer.step}: try a lower --lr")
        checkpoint = {
            "recipe": self.recipe.to_dict(),
            **trainer.state_dict(),
            "max_minutes": trainer.max_seconds / 60,
            "epoch_so_far": [self.loss_sum, self.loss_count, self.epoch_began],
            **({"autoencoder": self.autoencoder.state_dict()} if self.autoencoder else {}),
            **({"parent": self.parent, "coupling_seconds": trainer.dataset.seconds} if self.parent else {}),
        }
        for name in names:
            self.last_good = save_checkpoint(self.experiment.checkpoints / name, checkpoint)

    def train(self, stopping: list[int]) -> None:
        """Train to the end, or to a signal."""
        trainer = self.trainer
        if processes.is_main():
            self.experiment.add(
                {
                    "event": "resume" if self.experiment.records else "start",
                    "step": trainer.step,
                    "recipe": self.recipe.to_dict(),
                    "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
                    **environment(trainer.device, trainer.dtype),
                }
            )
            self.callbacks.recorded(self.experiment)
        saved = time.monotonic()
        bar = tqdm(
            initial=trainer.step, desc=self.recipe.model, unit="step", disable=processes.no_bar(), dynamic_ncols=True
        )
        try:
            for report in trainer.steps():
                self.loss_sum += report.loss
                self.loss_count += 1
                self.show(bar, report)
                # A signal may reach one process only, or each at another step: all stop at the same.
                signal_number = next(filter(None, processes.gather(stopping[0] if stopping else 0)), 0)
                if report.step % trainer.steps_per_epoch == 0 or trainer.progress >= 1:
                    self.end_epoch(report, bar)
                    saved = time.monotonic()
                elif signal_number or time.monotonic() - saved > SAVE_EVERY:
                    self.save("last.pt")
                    saved = time.monotonic()
                if signal_number:
                    processes.wait()  # a launcher ends all when the first has ended: not before it is saved
                    raise Stopped(int(signal_number), self.experiment.folder, report.step)
        except NonFiniteLoss as error:
            good = f"the last good checkpoint is {self.last_good}" if self.last_good else "no checkpoint was saved yet"
            raise NonFiniteLoss(f"{error}; {good}") from None
        finally:
            bar.close()

    def show(self, bar: tqdm, report: Report) -> None:
        """Move the progress bar."""
        bar.total = max(report.step, round(report.step / self.trainer.progress))  # the time may be up before the epochs
        rate = self.loss_count * self.recipe.training.batch_size / (report.seconds - self.epoch_began)
        bar.set_postfix_str(f"loss {self.loss_sum / self.loss_count:.4f}, {rate:.0f} images/s", refresh=False)
        bar.update()

    def end_epoch(self, report: Report, bar: tqdm) -> None:
        """Measure and record what an epoch made, and save."""
        trainer = self.trainer
        self.model.settle(trainer.ema.network, trainer.dataset)
        for mine, theirs in zip(trainer.network.buffers(), trainer.ema.network.buffers(), strict=True):
            mine.copy_(theirs)
        eval_loss = trainer.evaluate(self.test)
        record = self.record(report, eval_loss) if processes.is_main() else None
        self.loss_sum, self.loss_count, self.epoch_began = 0.0, 0, trainer.seconds
        if record is None:
            return
        self.experiment.add(record)
        self.callbacks.recorded(self.experiment)
        if self.board:
            for name, value in record.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, report.step)
            self.board.flush()
        keep = report.epoch % self.recipe.training.sample_every == 0
        if keep or trainer.progress >= 1:
            path = self.experiment.folder / "epoch_samples" / f"epoch_{report.epoch:04d}.png"
            self.callbacks.epoch(self.trained, self.test, path)
        # Saved last: whatever interrupts an epoch's end, a resumed training does all of it again.
        self.save("last.pt", *([f"epoch_{report.epoch:04d}.pt"] if keep else []))
        bar.write(log_line(record))

    def record(self, report: Report, eval_loss: float) -> dict:
        """What is told of an epoch."""
        trainer = self.trainer
        seconds = trainer.seconds - self.epoch_began
        return {
            "event": "epoch",
            "epoch": report.epoch,
            "step": report.step,
            "train_loss": self.loss_sum / self.loss_count,
            "eval_loss": eval_loss,
            **self.model.measure(self.trained, self.test),
            "lr": report.lr,
            "gradient_norm": report.gradient_norm,
            "images_per_second": self.loss_count * self.recipe.training.batch_size / seconds,
            "epoch_seconds": seconds,
            "seconds": trainer.seconds,
            "memory_mb": peak_memory(trainer.device),
            **self.monitor.take(),
        }

    @property
    def trained(self) -> Trained:
        """The model with the averaged weights as they are now, ready for use."""
        trainer = self.trainer
        return self.model.ready(self.recipe, trainer.ema.network, trainer.device, trainer.dtype, self.autoencoder)

    def finish(self) -> None:
        """Write what a finished training leaves: the final checkpoint and the summary."""
        if not processes.is_main():
            return
        folder = self.experiment.folder
        self.save("last.pt", "final.pt")
        if self.experiment.epochs:  # none where a finished checkpoint from elsewhere was "continued"
            write_text(folder / "performance_metrics.txt", summary_text(self.experiment))
        self.callbacks.finished(self.trained, self.test, folder)
