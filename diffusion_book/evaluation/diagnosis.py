"""Measurements on a trained diffusion model that tell what is wrong with it. What they mean is said in `findings`."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_book import data
from diffusion_book.elbo import latent_statistics
from diffusion_book.evaluation.features import logits
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.networks.conditioning import NO_CLASS, ConditionalUNet, cross_attention_maps
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.system.errors import BookError
from diffusion_book.training.models import KINDS

CONFIDENT = 0.9  # probability from which the second classifier counts as sure


@dataclass(frozen=True)
class Batch:
    """Training pictures as the model's loss takes them.

    Attributes:
        images: (B, C, H, W), or for a latent model the moments of their posteriors, (B, 2 C, H, W).
        labels: (B,).
    """

    images: Tensor
    labels: Tensor


def training_batch(pipe: Pipeline, dataset: data.Dataset, size: int, seed: int = 0) -> Batch:
    """Some pictures of a data set, as this model is trained on them: at most `size`, on its device.

    Raises:
        BookError: the data set has classes that the model does not know.
    """
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:size]
    images, labels = dataset.batch(chosen)
    if pipe.num_classes and labels.max() >= pipe.num_classes:
        raise BookError(
            f"{dataset.name} has a class {labels.max()}, the model knows 0 to {pipe.num_classes - 1}: "
            "name the data set it was trained on"
        )
    if pipe.autoencoder is not None:
        images = pipe.autoencoder.posterior(images).moments
    return Batch(images.to(pipe.device), labels.to(pipe.device))


# Weights


def broken_weights(network: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold a number that is not finite."""
    return [name for name, value in network.state_dict().items() if not value.isfinite().all()]


# The latents


def latent_scale(pipe: Pipeline, batch: Batch) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of encoded data, channel by channel: the schedule expects 0 and 1."""
    mean, std = latent_statistics(DiagonalGaussian.from_moments(batch.images.double()))
    return mean.tolist(), std.tolist()


def share_told(posterior: DiagonalGaussian) -> list[float]:
    """The share of the latents' variance that lies between pictures, channel by channel, 0 to 1.

    The rest is the posteriors' own. 0 is posterior collapse: every picture has the same posterior, the prior, so that its
    latent says nothing of it (Bowman et al. 2015, section 3).
    """
    between = posterior.mean.double().var(dim=(0, 2, 3), correction=0)
    within = posterior.std.double().square().mean(dim=(0, 2, 3))
    return (between / (between + within)).tolist()


# The loss, with the true label, with none, and with a wrong one


@dataclass(frozen=True)
class Losses:
    """The training's own loss on the same pictures, times and noise.

    Attributes:
        zero: of a network whose output is always 0.
        true: of this network; with classes, told the true label.
        none: told no label, and `wrong`: told a wrong one. None where there are no classes.
    """

    zero: float
    true: float
    none: float | None = None
    wrong: float | None = None


class Zero(nn.Module):
    """A network that has learned nothing."""

    def forward(self, x: Tensor, t: Tensor, **condition) -> Tensor:
        """(B, C, H, W) -> zeros of the same shape."""
        return torch.zeros_like(x)


@torch.no_grad()
def losses(pipe: Pipeline, batch: Batch, seed: int = 0) -> Losses:
    """Ask the network with the true labels, without any, and with wrong ones.

    The best answer without a label is the average over what the labels could be. No label must therefore cost less
    than a wrong one, and a wrong one more than the true one, wherever the network has learned to listen.
    """
    loss = KINDS[pipe.recipe.kind].loss(pipe.recipe)
    network = copy.deepcopy(pipe.network).float().eval()

    def mean(network: nn.Module, labels: Tensor) -> float:
        generator = torch.Generator(pipe.device).manual_seed(seed)  # the same times and noise for all
        return loss(network, batch.images, labels, generator).double().mean().item()

    zero, true = mean(Zero().eval(), batch.labels), mean(network, batch.labels)
    if not pipe.num_classes:
        return Losses(zero, true)
    none = mean(network, torch.full_like(batch.labels, NO_CLASS))
    if pipe.num_classes == 1:
        return Losses(zero, true, none)
    shift = torch.randint(1, pipe.num_classes, batch.labels.shape, generator=torch.Generator().manual_seed(seed))
    return Losses(zero, true, none, mean(network, (batch.labels + shift.to(pipe.device)) % pipe.num_classes))


# The gradient


def gradient_norms(pipe: Pipeline, batch: Batch, seed: int = 0) -> dict[str, float]:
    """Size of the loss's gradient in each layer, for one step of the training, nothing being changed.

    Returns:
        Layer, in the order of the network -> root mean square of the gradient over its parameters. The rows of
        the class embedding that the batch calls for count one by one, as `class 3` and `no class`.
    """
    network = copy.deepcopy(pipe.network).float().requires_grad_(True).train()
    generator = torch.Generator(pipe.device).manual_seed(seed)
    KINDS[pipe.recipe.kind].loss(pipe.recipe)(network, batch.images, batch.labels, generator).mean().backward()
    norms = {}
    for name, module in network.named_modules():
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in module.parameters(recurse=False)]
        if isinstance(network, ConditionalUNet) and module is network.classes:
            present = [*batch.labels.unique().tolist(), pipe.num_classes]  # the last row is that of NO_CLASS
            names = [f"class {row}" if row < pipe.num_classes else "no class" for row in present]
            norms |= {name: _rms([gradients[0][row]]) for name, row in zip(names, present, strict=True)}
        elif gradients:
            norms[name] = _rms(gradients)
    return norms


def _rms(tensors: list[Tensor]) -> float:
    return torch.cat([each.flatten() for each in tensors]).double().square().mean().sqrt().item()


# The class embeddings


@dataclass(frozen=True)
class Embeddings:
    """What was learned for each class, and in the last place for no class; K classes.

    Attributes:
        distances: (K + 1, K + 1), Euclidean.
        norms: (K + 1,).
    """

    distances: Tensor
    norms: Tensor

    @property
    def between(self) -> float:
        """Mean distance of two classes, as a share of the mean norm of a class; NaN where there is but one class."""
        classes = self.distances[:-1, :-1]
        number = len(classes)
        mean = classes.sum() / (number * (number - 1)) if number > 1 else torch.tensor(math.nan)
        return (mean / self.norms[:-1].mean().clamp(min=1e-12)).item()

    @property
    def to_null(self) -> list[float]:
        """Distance of each class to the null class: K numbers."""
        return self.distances[:-1, -1].tolist()

    @property
    def nearest(self) -> list[tuple[int, int, float]]:
        """Pairs of classes and their distance, the nearest first."""
        number = len(self.distances) - 1
        pairs = [(i, j, self.distances[i, j].item()) for i in range(number) for j in range(i + 1, number)]
        return sorted(pairs, key=lambda pair: pair[2])


def embeddings(pipe: Pipeline) -> Embeddings:
    """Distances and norms of the learned class embeddings."""
    table = pipe.network.classes.table.detach().double().flatten(1).cpu()  # (K + 1, D)
    return Embeddings(torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist"), table.norm(dim=1))


# The two branches of guidance


@torch.no_grad()
def branch_difference(
    pipe: Pipeline, labels: Tensor, steps: int = 50, seed: int = 0
) -> tuple[list[float], list[float]]:
    """How far the class moves the predicted noise, along the way of plain conditional samples.

    Returns:
        Times, and |eps_c - eps_u| / |eps_u| at each, averaged over the samples.
    """
    times, shares = [], []
    labels = labels.to(pipe.device)
    for state in pipe.states(range(len(labels)), labels=labels, guidance_scale=1.0, steps=steps, seed=seed):
        if state.t <= 0:
            continue
        t = torch.tensor(state.t, dtype=torch.float64, device=pipe.device)
        with_class = pipe.denoiser(state.x, t, labels=labels).eps.double().flatten(1)
        without = pipe.denoiser(state.x, t, labels=torch.full_like(labels, NO_CLASS)).eps.double().flatten(1)
        times.append(state.t)
        share = (with_class - without).norm(dim=1) / without.norm(dim=1).clamp(min=1e-12)
        shares.append(share.mean().item())
    return times, shares


# Cross-attention


@torch.no_grad()
def attention_entropy(pipe: Pipeline, batch: Batch, seed: int = 0) -> dict[str, float]:
    """How evenly each cross-attention layer looks at the tokens, in one step of the training.

    Returns:
        Layer -> entropy over log(tokens), averaged over pictures, heads and places: 1 = all tokens alike, 0 = one
        token alone. Empty where nothing attends to tokens, or there is but one.
    """
    network = copy.deepcopy(pipe.network).float().eval()
    loss = KINDS[pipe.recipe.kind].loss(pipe.recipe)
    with cross_attention_maps(network) as maps:
        loss(network, batch.images, batch.labels, torch.Generator(pipe.device).manual_seed(seed))
    entropies = {}
    for name, (weights,) in maps.items():  # (B, heads, positions, tokens)
        if weights.shape[-1] > 1:
            entropy = -(weights.double() * weights.double().clamp(min=1e-30).log()).sum(dim=-1).mean()
            entropies[name] = (entropy / math.log(weights.shape[-1])).item()
    return entropies


# Samples


@dataclass(frozen=True)
class Way:
    """One way to draw pictures, and what the second classifier says of them.

    Attributes:
        sampler, steps, guidance_scale: how; the scale is None where there are no classes.
        confident: share of the pictures that it is sure about; None where the model draws no digits.
        accuracy: share that it takes for the class that was asked for; None without classes.
        shown_accuracy: the same of the pictures of the one class that was picked.
        finite: whether all pictures were numbers at all.
    """

    sampler: str
    steps: int
    guidance_scale: float | None
    confident: float | None = None
    accuracy: float | None = None
    shown_accuracy: float | None = None
    finite: bool = True


def ways_of(pipe: Pipeline, steps: int, ddpm_steps: int) -> dict[str, Way]:
    """Name -> the ways of drawing that are compared: both samplers, and for classes all kinds of guidance."""
    scale = pipe.recipe.condition.guidance_scale if pipe.num_classes else None
    ways = {"DDIM": Way("ddim", steps, scale), "DDPM": Way("ddpm", ddpm_steps, scale)}
    if pipe.num_classes:
        ways["conditional"] = Way("ddim", steps, 1.0)
        ways["unconditional"] = Way("ddim", steps, 0.0)
    return ways


def judge(way: Way, images: Tensor, labels: Tensor | None, shown: int, digits: bool) -> Way:
    """The same way with what was seen in its pictures.

    Args:
        way: how they were drawn.
        images: (N, 1, 28, 28).
        labels: (N,), what was asked for; the first `shown` are of one class, the others of all in turn. None: no classes.
        shown: as above; 0 without classes.
        digits: whether the model draws digits, which is all that the classifier knows.
    """
    if not images.isfinite().all():
        return dataclasses.replace(way, finite=False)
    if not digits:
        return way
    certain = logits(images).softmax(dim=1)
    sure = (certain.max(dim=1).values[shown:] >= CONFIDENT).double().mean().item()
    if labels is None:
        return dataclasses.replace(way, confident=sure)
    right = (certain.argmax(dim=1) == labels.cpu()).double()
    return dataclasses.replace(
        way, confident=sure, accuracy=right[shown:].mean().item(), shown_accuracy=right[:shown].mean().item()
    )
