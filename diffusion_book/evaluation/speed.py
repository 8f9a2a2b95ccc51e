"""How fast a model trains and samples, and how much of what the device can do at all it uses."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_book.data import CROP_SIZE, Dataset
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import Recipe
from diffusion_book.samplers import evaluations
from diffusion_book.system.devices import out_of_memory_names
from diffusion_book.training.couplings import CouplingDataset
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.models import KINDS
from diffusion_book.training.trainer import Trainer

MATRIX = {"cpu": 1024, "cuda": 8192}
"""rows and columns of the matrices whose product is timed: large enough that nothing else counts"""
PRODUCTS = 4  # timed together


@dataclass(frozen=True)
class Speed:
    """What was measured of a model: medians over rounds.

    Attributes:
        training: images a second.
        sampling: images a second, from noise to picture; of an autoencoder, latents decoded a second.
        evaluations: answers of the network for one picture, a second of sampling; with guidance a picture asks twice.
        training_share, sampling_share: floating-point operations of the network a second, over those of a plain
            matrix product in the same precision in the same round.
        matrix: floating-point operations a second of that product.
        forward_flops, training_flops: of an answer and of a training step, an image.
        steps: of the sampler; 0 for an autoencoder.
        rounds: how many there were.
    """

    training: float
    sampling: float
    evaluations: float
    training_share: float
    sampling_share: float
    matrix: float
    forward_flops: float
    training_flops: float
    steps: int
    rounds: int


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Floating-point operations a second of a plain matrix product: what the device can do right now."""
    size = size or MATRIX[device.type]
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    a @ b
    seconds = seconds_of(lambda: [a @ b for _ in range(PRODUCTS)], device)
    return 2.0 * size**3 * PRODUCTS / seconds


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes, to its end on the device."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def flops_of(work: Callable[[], object]) -> float:
    """Floating-point operations of the convolutions, matrix products and attention in some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def made_up(recipe: Recipe, shape: tuple[int, int, int], number: int) -> Dataset | LatentDataset | CouplingDataset:
    """Noise in the shape of a model's training data: the time that a step takes does not depend on what it sees.

    Args:
        recipe: of the model.
        shape: of what its network works on.
        number: of samples.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 10
    if recipe.reflow:
        samples, noise = torch.randn(2, number, *shape, generator=generator)
        return CouplingDataset("noise", samples, noise, labels)
    if recipe.is_latent:
        channels, height, width = shape
        return LatentDataset("noise", torch.randn(number, 2 * channels, height, width, generator=generator), labels)
    images = torch.randint(256, (number, 1, CROP_SIZE, CROP_SIZE), generator=generator, dtype=torch.uint8)
    return Dataset("noise", images, labels)


def trainer_of(model: Pipeline | Autoencoder, batch_size: int, compile: bool = False) -> Trainer:
    """A trainer that goes on with a copy of the model's network, on made-up data."""
    recipe = model.recipe
    shape = model.latent_shape if isinstance(model, Autoencoder) else model.shape
    config = dataclasses.replace(recipe.training, batch_size=batch_size, epochs=10**9)
    precision = "bf16" if model.dtype == torch.bfloat16 else "fp32"
    with out_of_memory_names("--batch_size"):
        return Trainer(
            copy.deepcopy(model.network).requires_grad_(True),
            KINDS[recipe.kind].loss(recipe),
            made_up(recipe, shape, batch_size),
            config,
            device=model.device,
            precision=precision,
            compile=compile,
        )


def training_flops(trainer: Trainer) -> float:
    """Floating-point operations of a training step, an image: forward and backward."""
    images, labels = trainer.dataset.batch(torch.zeros(2, dtype=torch.int64, device=trainer.device))
    generator = torch.Generator(trainer.device).manual_seed(0)
    flops = flops_of(lambda: trainer.loss(trainer.network, images, labels, generator).mean().backward())
    trainer.optimizer.zero_grad(set_to_none=True)
    return flops / 2


@dataclass(frozen=True)
class Drawing:
    """How a model makes pictures.

    Attributes:
        draw: makes one batch.
        steps: of the sampler; 0 for an autoencoder.
        evaluations: of the network, a picture.
        forward_flops: of an evaluation.
        picture_flops: of all that makes a picture.
    """

    draw: Callable[[], Tensor]
    steps: int
    evaluations: int
    forward_flops: float
    picture_flops: float


@torch.no_grad()
def drawing_of(model: Pipeline | Autoencoder, batch_size: int, steps: int | None = None) -> Drawing:
    """How a model makes a batch of pictures: an autoencoder from latents, the others from noise in so many steps.

    Args:
        model: of any kind.
        batch_size: pictures.
        steps: of DDIM, or of Euler on a straight path; default the recipe's.
    """
    if isinstance(model, Autoencoder):
        latents = torch.randn(batch_size, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        flops = flops_of(lambda: model.decode(latents[:1]))
        return Drawing(lambda: model.decode(latents), 0, 1, flops, flops)
    diffusion = model.recipe.diffusion
    steps = min(diffusion.sampling_steps, diffusion.timesteps) if steps is None else steps
    sampler = "euler" if diffusion.schedule == "rectified" else "ddim"
    request = model.ask(batch_size, sampler=sampler, steps=steps, batch_size=batch_size)
    labels, scale = request.labels, request.guidance_scale
    branches = 1 if labels is None or scale[0].item() in (0.0, 1.0) else 2
    x, t = torch.zeros(1, *model.shape, device=model.device), torch.ones(1, device=model.device)
    known = {} if labels is None else {"labels": labels[:1].to(model.device)}
    forward = flops_of(lambda: model.network(x, t, **known))
    calls = branches * evaluations(sampler, steps)
    return Drawing(
        lambda: model.draw(request),
        steps,
        calls,
        forward,
        calls * forward + flops_of(lambda: model.to_images(x)),
    )


def measure_speed(
    model: Pipeline | Autoencoder,
    *,
    batch_size: int = 64,
    seconds: float = 5.0,
    steps: int | None = None,
    compile: bool = False,
) -> Speed:
    """Train and sample in turns with the matrix product that both are compared with, and take medians.

    In turns, since a machine that others use is at times three times slower than at others.

    Args:
        model: its network is copied, and stays as it is.
        batch_size: images a training step, and pictures drawn at once.
        seconds: go on with rounds for so long; there are at least three.
        steps: of the sampler; default the recipe's.
        compile: train through torch.compile.
    """
    trainer, drawing = trainer_of(model, batch_size, compile), drawing_of(model, batch_size, steps)
    reports, device = trainer.steps(), trainer.device
    next(reports)  # the first of everything allocates, and compiles
    drawing.draw()
    flops = training_flops(trainer)
    began, rounds = time.perf_counter(), []
    while len(rounds) < 3 or time.perf_counter() - began < seconds:
        matrix = matrix_rate(device, trainer.dtype)
        sampling = batch_size / seconds_of(drawing.draw, device)
        # As long as the sampling, that neither is a single short look.
        trained = 0
        training_began = time.perf_counter()
        while trained < 3 or time.perf_counter() - training_began < batch_size / sampling:
            next(reports)
            trained += 1
        training = trained * batch_size / (time.perf_counter() - training_began)
        shares = training * flops / matrix, sampling * drawing.picture_flops / matrix
        rounds.append((training, sampling, sampling * drawing.evaluations, *shares, matrix))
    medians = (statistics.median(values) for values in zip(*rounds, strict=True))
    return Speed(*medians, drawing.forward_flops, flops, drawing.steps, len(rounds))
