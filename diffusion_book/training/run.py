"""One training from its recipe to its finished experiment folder."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book import data, processes
from diffusion_book.autoencoder import Autoencoder, check_fits
from diffusion_book.devices import out_of_memory_names
from diffusion_book.errors import BookError, choose
from diffusion_book.files import remove_leftovers, write_text
from diffusion_book.pipelines import Pipeline
from diffusion_book.training.checkpoint import load_checkpoint, save_checkpoint
from diffusion_book.training.couplings import CouplingDataset, draw_couplings
from diffusion_book.training.experiment import (
    Experiment,
    environment,
    find_checkpoint,
    log_line,
    named_folder,
    peak_memory,
    read_records,
    summary_text,
    timestamped_folder,
)
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.models import MODELS, Model, Trained
from diffusion_book.training.monitor import Monitor, monitoring
from diffusion_book.training.recipes import Recipe
from diffusion_book.training.trainer import NonFiniteLoss, Report, Trainer, seed_of
from diffusion_book.weights import hash_of_tensors

TrainingData = data.Dataset | LatentDataset | CouplingDataset

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
    start: dict[str, Tensor] | None = None,
) -> Path:
    """Train a model, or continue training it, and fill its experiment folder.

    Args:
        recipe: what to train; to continue, the checkpoint's own but for the number of epochs.
        options: where, and for how long. Without max_minutes, a continued training keeps its own.
        autoencoder: for a latent model, whose latents it learns; to continue, the checkpoint's own.
        parent: for a model that learns from another flow: that flow. Its weights are where the training starts, and
            its couplings what it learns.
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
    run = _Run(recipe, model, trainer, Experiment(folder), test, autoencoder, parent)
    if checkpoint:
        run.load_state_dict(checkpoint)
    if options.tensorboard and processes.is_main():
        # What came after the checkpoint is about to happen again, here too.
        run.board = SummaryWriter(folder / "tensorboard", purge_step=trainer.step + 1)
    with stop_signals() as stopping, monitoring(trainer.device) as run.monitor:
        run.train(stopping)
        run.finish()
    return folder


def training_data(
    recipe: Recipe, autoencoder: Autoencoder | None, parent: Pipeline | None, expected_parent: dict | None
) -> tuple[Recipe, TrainingData, TrainingData]:
    """What a model is trained and tested on, and its recipe with the name of the data set that was found.

    Raises:
        BookError: the data are not there, or do not fit the recipe, or what they are made with is missing.
    """
    if recipe.reflow:
        recipe, dataset, test = reflow_data(recipe, parent, expected_parent)
    else:
        dataset = data.load(recipe.training.dataset)
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, dataset=dataset.name))
        test = data.load(dataset.name, "test")
    if recipe.condition and dataset.labels.max() >= recipe.condition.num_classes:
        raise BookError(
            f"{dataset.name} has {dataset.labels.max() + 1} classes, the model {recipe.condition.num_classes}: "
            "raise --num_classes"
        )
    if recipe.is_latent:
        if autoencoder is None:
            raise BookError(f"'{recipe.model}' learns the latents of a VAE: give one")
        check_fits(recipe.network, autoencoder)
    if recipe.is_latent and not recipe.reflow:
        dataset, test = encode_dataset(autoencoder, dataset), encode_dataset(autoencoder, test)
    return recipe, dataset, test


TEST_COUPLINGS = 1024


def reflow_data(
    recipe: Recipe, parent: Pipeline | None, expected: dict | None
) -> tuple[Recipe, CouplingDataset, CouplingDataset]:
    """What a model that learns from another flow is trained and tested on, and its recipe with that flow's data set.

    Raises:
        BookError: there is no such flow, its network is another one, or a training to continue began with another.
    """
    if parent is None:
        raise BookError(f"'{recipe.model}' learns from a trained flow: give one")
    if _kind(parent.recipe) != _kind(recipe):
        raise BookError(
            f"'{recipe.model}' starts with the weights of '{parent.recipe.model}', whose network is another one: "
            "leave out the options of the network, or give another flow"
        )
    if expected and identity(parent) != expected:
        raise BookError(f"this training began with another '{expected['model']}': give that one as --reflow-from")
    known = parent.recipe.training.dataset
    if recipe.training.dataset not in ("auto", known):
        raise BookError(
            f"'{recipe.model}' learns from a flow of {known}, not of {recipe.training.dataset}: leave out --dataset"
        )
    training = dataclasses.replace(recipe.training, dataset=known)
    # Seeds that nobody samples with: else the samples that a reader draws, or a card measures, would grow from the very
    # noise that the model was trained on.
    seeds = [seed_of(recipe.training.seed, number) for number in (3, 4)]
    dataset = draw_couplings(parent, recipe.reflow, recipe.reflow.couplings, seeds[0])
    test = draw_couplings(parent, recipe.reflow, TEST_COUPLINGS, seeds[1])
    return dataclasses.replace(recipe, training=training), dataset, test


def _kind(recipe: Recipe) -> tuple:
    """All that decides the shapes of the weights, and whether they are at work on latents."""
    condition = recipe.condition and (recipe.condition.num_classes, recipe.condition.num_tokens)
    return recipe.is_latent, recipe.network, condition


def identity(pipe: Pipeline) -> dict[str, str]:
    """Which model this is, for those that learn from it."""
    return {"model": pipe.recipe.model, "sha256": hash_of_tensors(pipe.network.state_dict())}


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
    ) -> None:
        self.recipe = recipe
        self.model = model
        self.trainer = trainer
        self.experiment = experiment
        self.test = test
        self.autoencoder = autoencoder
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
        """Measure, record and draw what an epoch made, and save."""
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
        if self.board:
            for name, value in record.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, report.step)
            self.board.flush()
        keep = report.epoch % self.recipe.training.sample_every == 0
        if keep or trainer.progress >= 1:
            path = self.experiment.folder / "epoch_samples" / f"epoch_{report.epoch:04d}.png"
            self.model.draw_epoch(self.trained, self.test, path)
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
        """Write what a finished training leaves: the final checkpoint, the summary, pictures."""
        if not processes.is_main():
            return
        folder = self.experiment.folder
        self.save("last.pt", "final.pt")
        if self.experiment.epochs:  # none where a finished checkpoint from elsewhere was "continued"
            write_text(folder / "performance_metrics.txt", summary_text(self.experiment))
        self.model.draw_final(self.trained, self.test, folder)
