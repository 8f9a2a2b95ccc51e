"""A trained diffusion model end to end: noise in, pictures out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_book.data import crop
from diffusion_book.denoiser import Denoiser, DenoiserFunction, clipped
from diffusion_book.guidance import check_guidance, guided
from diffusion_book.models import weights
from diffusion_book.models.autoencoder import Autoencoder, autoencoder_from_state, build_autoencoder, check_fits
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.models.recipes import RECIPES, Recipe, recipe_from_dict
from diffusion_book.networks.conditioning import NO_CLASS, ConditionalUNet
from diffusion_book.networks.unet import UNet
from diffusion_book.samplers import SAMPLERS, State, check_eta, randn, sample, sample_generators, time_grid
from diffusion_book.schedules import SCHEDULES, Schedule
from diffusion_book.system import hashes
from diffusion_book.system.devices import autocast, out_of_memory_names, place, resolve_device, resolve_precision
from diffusion_book.system.errors import BookError, NotFinite, choose, whole
from diffusion_book.system.graphs import Graphed
from diffusion_book.targets import TARGETS

Labels = int | Sequence[int] | Tensor | None
BATCH_SIZE = 100  # samples drawn at once; more is not faster on a CPU
MOST_SAMPLES = 10_000_000  # 30 GB of pictures


@dataclass(frozen=True)
class Pipeline:
    """A trained diffusion model, of pictures or of an autoencoder's latents.

    Attributes:
        recipe: how it was trained.
        network: with its trained weights, on the device, in eval mode.
        device, dtype: where and with how many digits the network runs.
        card: what is known of the weights; empty for a checkpoint of your own.
        autoencoder: turns latents into pictures; None for a model of pictures.
        graphs: on a GPU, record the kernels of the network once and replay them (`diffusion_book.system.graphs`):
            `dataclasses.replace(pipe, graphs=True)`.
    """

    recipe: Recipe
    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    card: dict
    autoencoder: Autoencoder | None = None
    graphs: bool = False

    @property
    def schedule(self) -> Schedule:
        """t -> (alpha, sigma), as in the training."""
        return SCHEDULES[self.recipe.diffusion.schedule]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is diffused: channels, height and width."""
        config = self.recipe.network
        return config.in_channels, config.image_size, config.image_size

    @property
    def num_classes(self) -> int:
        """Classes that the model can be asked for; 0 where it knows none."""
        return self.recipe.condition.num_classes if self.recipe.condition else 0

    @property
    def denoiser(self) -> DenoiserFunction:
        """(x_t, t) -> Prediction(x0, eps), with x0 clipped to the range of pictures; latents have no such range.

        That of a model with classes is asked with labels as well: (x_t, t, labels=labels), each a class or `NO_CLASS`.
        """
        return self._clip(self._denoiser)

    def guided(
        self, guidance_scale: float | Tensor, guidance_interval: tuple[float, float] = (0.0, 1.0)
    ) -> DenoiserFunction:
        """(x_t, t, labels=labels) -> Prediction(x0, eps) with guidance, clipped after it. See `guidance.guided`.

        Raises:
            BookError: a model without classes, a scale that is not finite, or an interval that is none.
        """
        if not self.recipe.condition:
            raise BookError(f"'{self.recipe.model}' knows no classes: there is nothing to guide it to")
        return self._clip(guided(self._denoiser, guidance_scale, guidance_interval))

    @property
    def _denoiser(self) -> Denoiser:
        return Denoiser(self._run, self.schedule, TARGETS[self.recipe.diffusion.target])

    def _clip(self, denoiser: DenoiserFunction) -> DenoiserFunction:
        return denoiser if self.autoencoder else clipped(denoiser, self.schedule)

    def _run(self, x: Tensor, t: Tensor, **condition) -> Tensor:
        with autocast(self.device, self.dtype):
            if not self.graphs:
                return self.network(x, t, **condition)
            if isinstance(self.network, ConditionalUNet):  # the check of the labels could not be recorded
                condition = self.network.condition(**condition)
            return self._graphed(x, t, **condition)

    @cached_property
    def _graphed(self) -> Graphed:
        return Graphed(self.network.unet if isinstance(self.network, ConditionalUNet) else self.network)

    def noise(self, num_samples: int, seed: int = 0) -> Tensor:
        """The noise that `sample` starts from: (num_samples, *shape), on the CPU."""
        check_number(num_samples)
        return randn((num_samples, *self.shape), sample_generators(seed, range(num_samples)))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int = 64,
        labels: Labels = None,
        guidance_scale: float | Tensor | None = None,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        seed: int = 0,
        callback: Callable[[int, int], object] | None = None,
        *,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        noise: Tensor | None = None,
        batch_size: int = BATCH_SIZE,
        first: int = 0,
    ) -> Tensor:
        """Draw pictures.

        Args:
            num_samples: how many.
            labels: what to draw, for a model with classes: one class for all, or one for each picture; `NO_CLASS` (-1)
                asks for anything. Default: all classes in turn, picture i of class i modulo their number.
            guidance_scale: how strongly pictures are pushed towards their class, one for all or one for each:
                0 not to the class at all, 1 as trained, more for clearer and less varied pictures. Default: the recipe's.
            sampler: one of `samplers.SAMPLERS`: "ddpm" (random), "ddim", "euler", "midpoint", "heun", "dpm++".
            steps: of the sampler, 1 to the training's number of timesteps. "midpoint" and "heun" ask the network twice
                in a step (`samplers.evaluations`), and guidance in each case for both of its branches.
            eta: for "ddim": the share of fresh noise, 0 to 1.
            seed: sample i of a seed is the same picture whatever num_samples, batch_size and first are.
            callback: called after each step with the steps done and the steps to do, over all batches.
            guidance_interval: times t within which guidance acts.
            noise: start from this (num_samples, *shape) instead of drawing it.
            batch_size: drawn at once.
            first: index of the first sample: draw those from `first` to `first + num_samples - 1`.

        Returns:
            (num_samples, 1, 28, 28), float32, in [-1, 1], on the CPU.

        Raises:
            BookError: bad arguments, out of memory, or pictures that are not finite (`NotFinite`).
        """
        check_number(num_samples)
        if whole("batch_size", batch_size) < 1:
            raise BookError(f"{num_samples} samples in batches of {batch_size}: both must be at least 1")
        if whole("first", first) < 0:
            raise BookError(f"first is {first}: it must be 0 or more")
        labels, guidance_scale = self.ask(range(first, first + num_samples), labels, guidance_scale)
        if noise is not None:
            noise = self._checked(noise, num_samples)
        pictures, done = [], 0
        batches = range(0, num_samples, batch_size)
        for start in batches:
            stop = min(start + batch_size, num_samples)
            states = self.states(
                range(first + start, first + stop),
                labels=None if labels is None else labels[start:stop],
                guidance_scale=None if guidance_scale is None else guidance_scale[start:stop],
                sampler=sampler,
                steps=steps,
                eta=eta,
                seed=seed,
                guidance_interval=guidance_interval,
                noise=None if noise is None else noise[start:stop],
            )
            for number, state in enumerate(states):
                if callback is not None and number > 0:
                    done += 1
                    callback(done, steps * len(batches))
                x = state.x
            pictures.append(self.to_images(x))
        return torch.cat(pictures)

    def states(
        self,
        indices: range | list[int],
        *,
        labels: Labels = None,
        guidance_scale: float | Tensor | None = None,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        seed: int = 0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        noise: Tensor | None = None,
    ) -> Iterator[State]:
        """Every state on the way from noise to the samples with these indices, as one batch.

        The states are what the network sees, (B, *shape) on its device: `to_images` turns `x`
        or `prediction.x0` into pictures. Arguments and errors as in `sample`; by default sample i is of class
        i modulo their number here too.
        """
        check_number(len(indices))
        labels, guidance_scale = self.ask(indices, labels, guidance_scale)
        step = choose("sampler", sampler, SAMPLERS)
        check_eta(eta)
        times = time_grid(steps, self.recipe.diffusion.timesteps)
        with out_of_memory_names("--batch_size"):
            generators = sample_generators(seed, indices)
            # Drawn in any case: else the first fresh noise would be the very noise that came from this seed.
            drawn = randn((len(indices), *self.shape), generators)
            noise = drawn if noise is None else self._checked(noise, len(indices))
            yield from sample(
                self.denoiser if labels is None else self.guided(guidance_scale, guidance_interval),
                noise.to(self.device),
                times,
                step,
                schedule=self.schedule,
                generator=generators,
                eta=eta,
                **({} if labels is None else {"labels": labels.to(self.device)}),
            )

    def _checked(self, noise: Tensor, number: int) -> Tensor:
        """Noise for so many samples, in fp32 as if it had been drawn here."""
        if not isinstance(noise, Tensor) or noise.is_complex():
            raise BookError(f"the noise is {type(noise).__name__}: draw it with Pipeline.noise")
        if tuple(noise.shape) != (number, *self.shape):
            raise BookError(f"the noise has shape {tuple(noise.shape)}: it must be {(number, *self.shape)}")
        if not noise.isfinite().all():
            raise BookError("the noise holds numbers that are not finite: draw it with Pipeline.noise")
        return noise.float()

    def ask(
        self, indices: Sequence[int], labels: Labels = None, guidance_scale: float | Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What `sample` is asked for, spelled out: a label and a scale for each sample, or None where there are no classes.

        Args:
            indices: of the samples.
            labels, guidance_scale: as in `sample`.

        Returns:
            Labels (B,), int64, and scales (B,), float64.

        Raises:
            BookError: labels or a scale for a model without classes, labels that do not exist, or not one each.
        """
        number, model = len(indices), self.recipe.model
        if not self.recipe.condition:
            if labels is not None or guidance_scale is not None:
                raise BookError(f"'{model}' knows no classes: leave out labels and guidance_scale")
            return None, None
        if labels is None:
            labels = [whole("a sample's index", index) % self.num_classes for index in indices]
        try:
            labels = torch.as_tensor(labels if isinstance(labels, Tensor | Integral) else list(labels)).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise BookError(f"the labels are {labels!r:.60}: give whole numbers, one for each picture") from None
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise BookError(f"the labels are of type {labels.dtype}: give whole numbers")
        labels = labels.long()  # bytes cannot be compared with NO_CLASS, which is negative
        if labels.ndim > 1 or (labels.ndim == 1 and len(labels) != number):
            raise BookError(f"labels of shape {tuple(labels.shape)} for {number} samples: give one, or one for each")
        if ((labels < NO_CLASS) | (labels >= self.num_classes)).any():
            raise BookError(
                f"labels from {labels.min()} to {labels.max()}: "
                f"'{model}' knows the classes 0 to {self.num_classes - 1}, and {NO_CLASS} for none"
            )
        scale = self.recipe.condition.guidance_scale if guidance_scale is None else guidance_scale
        scale = check_guidance(scale).cpu()
        if scale.ndim == 1 and len(scale) != number:
            raise BookError(f"{len(scale)} guidance scales for {number} samples: give one, or one for each")
        return labels.expand(number), scale.expand(number)  # () or (B,) -> (B,)

    def to_images(self, x: Tensor) -> Tensor:
        """What the network works on, (B, *shape), as pictures: (B, 1, 28, 28) in [-1, 1], on the CPU.

        Raises:
            NotFinite: x holds numbers that are not finite, and would look like a picture all the same.
        """
        if not x.isfinite().all():
            raise NotFinite(
                "the pictures hold numbers that are not finite: lower the guidance scale if it is large, "
                "else the weights are broken (`diffusion-book diagnose` tells how)"
            )
        if self.autoencoder is not None:
            x = self.autoencoder.decode(x)  # (B, 2, 4, 4) -> (B, 1, 32, 32)
        return crop(x).clamp(-1, 1).float().cpu()


def check_number(num_samples: int) -> None:
    """Refuse a number of samples that cannot be drawn.

    Raises:
        BookError: it is below 1, or more than any memory holds, or no whole number.
    """
    if not 1 <= whole("num_samples", num_samples) <= MOST_SAMPLES:
        raise BookError(f"{num_samples!s:.60} samples: give at least 1, and at most {MOST_SAMPLES:,}")


def build_network(recipe: Recipe) -> nn.Module:
    """The network of a diffusion model, with random weights."""
    if recipe.condition is None:
        return UNet(recipe.network)
    return ConditionalUNet(recipe.network, recipe.condition.num_classes, recipe.condition.num_tokens)


def list_models() -> list[str]:
    """Names of the models that come with trained weights."""
    usable = (name for name in weights.shipped() if name in RECIPES)
    return [name for name in usable if RECIPES[name].diffusion or RECIPES[name].vae]


def load(
    name: str | Path,
    *,
    vae: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> Pipeline | Autoencoder:
    """Load a trained model: shipped weights by name, or a checkpoint by its path.

    Args:
        name: one of `list_models()`, or a `.pt` file or experiment folder of `train`.
        vae: for a latent model, a checkpoint of the VAE it was trained with. It is not needed: shipped models
            and checkpoints bring their own.
        device: "auto", "cpu", "cuda".
        precision: "auto", "fp32" or "bf16".

    Returns:
        An `Autoencoder` for a VAE, else a `Pipeline`.

    Raises:
        BookError: no such model, file or device, the file is damaged, or `vae` is another one than the
            model was trained with.

    Example:
        >>> pipe = load("ddpm", device="cpu")
        >>> pipe.sample(4, steps=2).shape
        torch.Size([4, 1, 28, 28])
    """
    where = {"device": device, "precision": precision}
    card, state = {}, None
    if str(name) in list_models() or not (str(name).endswith(".pt") or os.path.isdir(str(name))):
        choose("model", str(name), dict.fromkeys(list_models()))
        card = weights.read_card(str(name))
        recipe, tensors = recipe_from_dict(card.get("recipe")), weights.read_weights(str(name))
    else:
        checkpoint = load_checkpoint(find_checkpoint(name))
        recipe, tensors = recipe_from_dict(checkpoint["recipe"]), checkpoint.get("ema")
        state = checkpoint.get("autoencoder")
    if vae is not None and not recipe.is_latent:
        raise BookError(f"'{recipe.model}' works without a VAE: leave it out")
    if recipe.vae is not None:
        return build_autoencoder(recipe, tensors, card=card, **where)
    autoencoder = None
    if recipe.is_latent:
        autoencoder = autoencoder_from_state(state, **where) if state else load_shipped_vae(card, **where)
        if vae is not None:
            check_same(load(vae, **where), autoencoder, vae)
    return build(recipe, tensors, card=card, autoencoder=autoencoder, **where)


def load_shipped_vae(card: dict, **where) -> Autoencoder:
    """The VAE that shipped weights of a latent model belong to.

    Raises:
        BookError: the shipped VAE is another one.
    """
    autoencoder = load("vae", **where)
    if card.get("vae_sha256") not in (None, autoencoder.card["sha256"]):
        raise BookError(
            f"the weights of '{card['model']}' belong to another VAE than the one that is here: "
            f"diffusion-book pretrain {card['model']} makes them again"
        )
    return autoencoder


def check_same(given: Autoencoder | Pipeline, own: Autoencoder, path: str | Path) -> None:
    """Refuse a VAE that is not the one a latent model was trained with: its latents mean other things.

    Raises:
        BookError: it is not, or no VAE at all.
    """
    if not isinstance(given, Autoencoder):
        raise BookError(
            f"{path} holds a '{given.recipe.model}', not a VAE: leave out the VAE, the model brings its own"
        )
    given_hash, own_hash = (hashes.hash_of_tensors(each.network.state_dict()) for each in (given, own))
    if given_hash != own_hash:
        raise BookError(
            f"the VAE {path} is not the one that the model was trained with: leave it out, the model brings its own"
        )


def build(
    recipe: Recipe,
    tensors: dict[str, Tensor],
    *,
    card: dict | None = None,
    autoencoder: Autoencoder | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> Pipeline:
    """A pipeline from a recipe and the weights of its network.

    Raises:
        BookError: the weights are not those of this recipe's network, or a latent model has no
            autoencoder or one with other latents.
    """
    if recipe.network is None or recipe.diffusion is None:
        raise BookError(f"a '{recipe.model}' draws no pictures: choose one of {', '.join(list_models())}")
    if recipe.is_latent:
        if autoencoder is None:
            raise BookError(f"'{recipe.model}' draws latents: give the VAE that turns them into pictures")
        check_fits(recipe.network, autoencoder)
    with out_of_memory_names("the size of the network"):
        network = build_network(recipe)
    try:
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError):
        raise BookError(
            f"these weights do not fit the network of '{recipe.model}': use those that belong to it"
        ) from None
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    network = place(network.eval().requires_grad_(False), where, dtype)
    return Pipeline(recipe, network, where, dtype, card or {}, autoencoder)
