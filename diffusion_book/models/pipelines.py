"""A trained diffusion model end to end: noise in, pictures out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion_book.data import crop
from diffusion_book.denoiser import Denoiser, DenoiserFunction, clipped
from diffusion_book.guidance import guided
from diffusion_book.models import weights
from diffusion_book.models.autoencoder import Autoencoder, autoencoder_from_state, build_autoencoder, check_fits
from diffusion_book.models.checkpoints import find_checkpoint, load_checkpoint
from diffusion_book.models.configs import BATCH_SIZE, Recipe, recipe_from_dict
from diffusion_book.models.recipes import RECIPES
from diffusion_book.models.request import Labels, Request, check_interval, check_scale, make_request
from diffusion_book.networks.conditioning import ConditionalUNet
from diffusion_book.networks.unet import UNet
from diffusion_book.samplers import SAMPLERS, State, randn, sample, sample_generators
from diffusion_book.schedules import SCHEDULES, Schedule
from diffusion_book.system import hashes
from diffusion_book.system.devices import autocast, out_of_memory_names, trained
from diffusion_book.system.errors import BookError, NotFinite, choose
from diffusion_book.targets import TARGETS


@dataclass(frozen=True)
class Pipeline:
    """A trained diffusion model, of pictures or of an autoencoder's latents.

    Attributes:
        recipe: how it was trained.
        network: with its trained weights, on the device, in eval mode.
        device, dtype: where and with how many digits the network runs.
        card: what is known of the weights; empty for a checkpoint of your own.
        autoencoder: turns latents into pictures; None for a model of pictures.
    """

    recipe: Recipe
    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    card: dict
    autoencoder: Autoencoder | None = None

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
        scale, interval = check_scale(guidance_scale), check_interval(guidance_interval)
        return self._clip(guided(self._denoiser, scale, interval))

    @property
    def _denoiser(self) -> Denoiser:
        return Denoiser(self._run, self.schedule, TARGETS[self.recipe.diffusion.target])

    def _clip(self, denoiser: DenoiserFunction) -> DenoiserFunction:
        return denoiser if self.autoencoder else clipped(denoiser, self.schedule)

    def _run(self, x: Tensor, t: Tensor, **condition) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.network(x, t, **condition)

    def ask(self, *arguments, **named) -> Request:
        """What this model is asked to draw, checked and spelled out, for `draw` and `walk`.

        Arguments as in `sample`, but for the callback; and `indices`, a list of the samples' indices, in place of
        num_samples and first.

        Raises:
            BookError: bad arguments.
        """
        return make_request(self.recipe, *arguments, **named)

    def noise(self, num_samples: int, seed: int = 0) -> Tensor:
        """The noise that `sample` starts from: (num_samples, *shape), on the CPU."""
        request = self.ask(num_samples, seed=seed, steps=1)
        return randn((len(request), *self.shape), sample_generators(request.seed, request.indices))

    def sample(
        self,
        num_samples: int = 64,
        labels: Labels = None,
        guidance_scale: float | Tensor | None = None,
        sampler: str = "ddim",
        steps: int | None = None,
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
                in a step (`samplers.evaluations`), and guidance in each case for both of its branches. Default: the
                recipe's, 50 for most models, and 1 for those that were distilled to a single step.
            eta: for "ddim": the share of fresh noise, 0 to 1.
            seed: sample i of a seed is the same picture whatever num_samples, batch_size and first are.
            callback: called after each step with the steps done and the steps to do, over all batches.
            guidance_interval: times t within which guidance acts.
            noise: start from this (num_samples, *shape) instead of drawing it.
            batch_size: drawn at once.
            first: index of the first sample: draw those from `first` to `first + num_samples - 1`.

        Returns:
            (num_samples, 1, 28, 28), or pictures of the form that the model has learned, float32, in [-1, 1], on the CPU.

        Raises:
            BookError: bad arguments, out of memory, or pictures that are not finite (`NotFinite`).
        """
        request = self.ask(
            num_samples,
            labels,
            guidance_scale,
            sampler,
            steps,
            eta,
            seed,
            guidance_interval=guidance_interval,
            noise=noise,
            batch_size=batch_size,
            first=first,
        )
        return self.draw(request, callback)

    def states(self, indices: Sequence[int], **options) -> Iterator[State]:
        """Every state on the way from noise to the samples with these indices, as one batch.

        The states are what the network sees, (B, *shape) on its device: `to_images` turns `x`
        or `prediction.x0` into pictures. Options and errors as in `sample`; by default sample i is of class
        i modulo their number here too.
        """
        return self.walk(self.ask(indices=indices, **options))

    @torch.no_grad()
    def draw(self, request: Request, callback: Callable[[int, int], object] | None = None) -> Tensor:
        """Draw the pictures of a request, batch by batch.

        Args:
            request: from `ask`, of this model or of one with the same shape and classes.
            callback: called after each step with the steps done and the steps to do, over all batches.

        Returns:
            (B, 1, 28, 28), float32, in [-1, 1], on the CPU.

        Raises:
            BookError: out of memory, or pictures that are not finite (`NotFinite`).
        """
        pictures, batches = [], request.batches()
        for number, batch in enumerate(batches):
            for done, state in enumerate(self.walk(batch)):
                if callback is not None and done > 0:
                    callback(number * request.steps + done, len(batches) * request.steps)
                x = state.x
            pictures.append(self.to_images(x))
        return torch.cat(pictures)

    def walk(self, request: Request) -> Iterator[State]:
        """Every state on the way from noise to the samples of a request, as one batch. See `states`."""
        denoiser, condition = self._denoiser, {}
        if request.labels is not None:
            denoiser = guided(denoiser, request.guidance_scale, request.guidance_interval)
            condition = {"labels": request.labels.to(self.device)}
        with out_of_memory_names("--batch_size"):
            generators = sample_generators(request.seed, request.indices)
            # Drawn in any case: else the first fresh noise would be the very noise that came from this seed.
            drawn = randn((len(request), *self.shape), generators)
            yield from sample(
                self._clip(denoiser),
                (drawn if request.noise is None else request.noise).to(self.device),
                request.times,
                SAMPLERS[request.sampler],
                schedule=self.schedule,
                generator=generators,
                eta=request.eta,
                **condition,
            )

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
        return crop(x, self.recipe.training.image_size).clamp(-1, 1).float().cpu()


def build_network(recipe: Recipe) -> nn.Module:
    """The network of a diffusion model, with random weights."""
    if recipe.condition is None:
        return UNet(recipe.network)
    return ConditionalUNet(recipe.network, recipe.condition.num_classes, recipe.condition.num_tokens)


def list_models(dataset: str = weights.MNIST) -> list[str]:
    """Names of the models that come with trained weights of a data set, "mnist" or "fashion-mnist"."""
    usable = (name for name in weights.shipped(weights.folder_of(dataset)) if name in RECIPES)
    return [name for name in usable if RECIPES[name].diffusion or RECIPES[name].vae]


def load(
    name: str | Path,
    *,
    dataset: str | None = None,
    vae: str | Path | None = None,
    model: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> Pipeline | Autoencoder:
    """Load a trained model: shipped weights by name, or a checkpoint by its path.

    Args:
        name: one of `list_models()`, or a `.pt` file or experiment folder of `train`; a `Path` is never a name.
        dataset: of shipped weights, what they have learned: "mnist" (default) or "fashion-mnist".
        vae: for a latent model, a checkpoint of the VAE it was trained with. It is not needed: shipped models
            and checkpoints bring their own.
        model: what a checkpoint must hold; default: anything.
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
    run_on = {"device": device, "precision": precision}
    card, state = {}, None
    is_file = isinstance(name, Path) or str(name).endswith(".pt") or os.path.isdir(str(name))
    folder = weights.folder_of(dataset or weights.MNIST)
    if not is_file or name in list_models():
        check_shipped(str(name), dataset or weights.MNIST)
        card = weights.read_card(str(name), folder)
        recipe, tensors = recipe_from_dict(card.get("recipe")), weights.read_weights(str(name), folder)
    elif dataset is not None:
        raise BookError(f"{name} says itself what it has learned: leave out the data set")
    else:
        checkpoint = load_checkpoint(find_checkpoint(name), model)
        recipe, tensors = recipe_from_dict(checkpoint["recipe"]), checkpoint.get("ema")
        state = checkpoint.get("autoencoder")
    if vae is not None and not recipe.is_latent:
        raise BookError(f"'{recipe.model}' works without a VAE: leave it out")
    if recipe.vae is not None:
        return build_autoencoder(recipe, tensors, card=card, **run_on)
    autoencoder = None
    if recipe.is_latent:
        autoencoder = autoencoder_from_state(state, **run_on) if state else load_shipped_vae(card, dataset, **run_on)
        if vae is not None:
            check_same(load(vae, **run_on), autoencoder, vae)
    return build(recipe, tensors, card=card, autoencoder=autoencoder, **run_on)


def check_shipped(name: str, dataset: str) -> None:
    """Refuse a name that no shipped weights of a data set have.

    Raises:
        BookError: it has none.
    """
    known = list_models(dataset)
    if dataset not in weights.DIGITS and name in RECIPES and name not in known:
        raise BookError(
            f"the book has no weights of '{name}' for {dataset}, only of {', '.join(known) or 'none'}: "
            f"diffusion-book pretrain {name} --dataset {dataset} --replace makes them"
        )
    choose("model", name, dict.fromkeys(known))


def load_shipped_vae(card: dict, dataset: str | None = None, **run_on) -> Autoencoder:
    """The VAE that shipped weights of a latent model belong to.

    Raises:
        BookError: the shipped VAE is another one.
    """
    autoencoder = load("vae", dataset=dataset, **run_on)
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
    placed = trained(lambda: build_network(recipe), tensors, recipe.model, device, precision)
    return Pipeline(recipe, *placed, card or {}, autoencoder)
