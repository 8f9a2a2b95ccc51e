"""A trained diffusion model end to end: noise in, pictures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion_book import weights
from diffusion_book.autoencoder import Autoencoder, autoencoder_from_state, build_autoencoder, check_fits
from diffusion_book.data import crop
from diffusion_book.denoiser import Denoiser, DenoiserFunction, clipped
from diffusion_book.devices import autocast, out_of_memory_names, place, resolve_device, resolve_precision
from diffusion_book.errors import BookError, choose
from diffusion_book.networks.unet import UNet
from diffusion_book.samplers import SAMPLERS, State, check_eta, randn, sample, sample_generators, time_grid
from diffusion_book.schedules import SCHEDULES, Schedule
from diffusion_book.targets import TARGETS
from diffusion_book.training.checkpoint import load_checkpoint
from diffusion_book.training.experiment import find_checkpoint
from diffusion_book.training.recipes import RECIPES, Recipe, recipe_from_dict

BATCH_SIZE = 100  # samples drawn at once; more is not faster on a CPU


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
    network: UNet
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
    def denoiser(self) -> DenoiserFunction:
        """(x_t, t) -> Prediction(x0, eps), with x0 clipped to the range of pictures; latents have no such range."""
        denoiser = Denoiser(self._run, self.schedule, TARGETS[self.recipe.diffusion.target])
        return denoiser if self.autoencoder else clipped(denoiser, self.schedule)

    def _run(self, x: Tensor, t: Tensor, **condition) -> Tensor:
        with autocast(self.device, self.dtype):
            return self.network(x, t, **condition)

    def noise(self, num_samples: int, seed: int = 0) -> Tensor:
        """The noise that `sample` starts from: (num_samples, *shape), on the CPU."""
        return randn((num_samples, *self.shape), sample_generators(seed, range(num_samples)))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int = 64,
        labels=None,
        guidance_scale: float = 1.0,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        seed: int = 0,
        callback: Callable[[int, int], object] | None = None,
        *,
        noise: Tensor | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Tensor:
        """Draw pictures.

        Args:
            num_samples: how many.
            labels, guidance_scale: for class-conditional models; this one has no classes.
            sampler: "ddpm" (random) or "ddim".
            steps: function evaluations, 1 to the training's number of timesteps.
            eta: for "ddim": the share of fresh noise, 0 to 1.
            seed: sample i of a seed is the same picture whatever num_samples and batch_size are.
            callback: called after each step with the steps done and the steps to do, over all batches.
            noise: start from this (num_samples, *shape) instead of drawing it.
            batch_size: drawn at once.

        Returns:
            (num_samples, 1, 28, 28), float32, in [-1, 1], on the CPU.

        Raises:
            BookError: bad arguments, or out of memory.
        """
        if labels is not None or guidance_scale != 1.0:
            raise BookError(f"'{self.recipe.model}' knows no classes: leave out labels and guidance_scale")
        pictures, done = [], 0
        batches = range(0, num_samples, batch_size) if num_samples > 0 and batch_size > 0 else []
        for start in batches:
            stop = min(start + batch_size, num_samples)
            states = self.states(
                range(start, stop),
                sampler=sampler,
                steps=steps,
                eta=eta,
                seed=seed,
                noise=None if noise is None else noise[start:stop],
            )
            for number, state in enumerate(states):
                if callback is not None and number > 0:
                    done += 1
                    callback(done, steps * len(batches))
                x = state.x
            pictures.append(self.to_images(x))
        if not pictures:
            raise BookError(f"{num_samples} samples in batches of {batch_size}: both must be at least 1")
        return torch.cat(pictures)

    def states(
        self,
        indices: range | list[int],
        *,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        seed: int = 0,
        noise: Tensor | None = None,
    ) -> Iterator[State]:
        """Every state on the way from noise to the samples with these indices, as one batch.

        The states are what the network sees, (B, *shape) on its device: `to_images` turns `x`
        or `prediction.x0` into pictures. Arguments and errors as in `sample`.
        """
        step = choose("sampler", sampler, SAMPLERS)
        check_eta(eta)
        times = time_grid(steps, self.recipe.diffusion.timesteps)
        generators = sample_generators(seed, indices)
        # Drawn in any case: else the first fresh noise would be the very noise that came from this seed.
        drawn = randn((len(indices), *self.shape), generators)
        if noise is None:
            noise = drawn
        elif tuple(noise.shape) != (len(indices), *self.shape):
            raise BookError(f"the noise has shape {tuple(noise.shape)}: it must be {(len(indices), *self.shape)}")
        with out_of_memory_names("--batch_size"):
            yield from sample(
                self.denoiser,
                noise.to(self.device),
                times,
                step,
                schedule=self.schedule,
                generator=generators,
                eta=eta,
            )

    def to_images(self, x: Tensor) -> Tensor:
        """What the network works on, (B, *shape), as pictures: (B, 1, 28, 28) in [-1, 1], on the CPU."""
        if self.autoencoder is not None:
            x = self.autoencoder.decode(x)  # (B, 2, 4, 4) -> (B, 1, 32, 32)
        return crop(x).clamp(-1, 1).float().cpu()


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
    if str(name) in list_models() or not (str(name).endswith(".pt") or Path(name).is_dir()):
        choose("model", str(name), dict.fromkeys(list_models()))
        card = weights.read_card(str(name))
        recipe, tensors = recipe_from_dict(card["recipe"]), weights.read_weights(str(name))
    else:
        checkpoint = load_checkpoint(find_checkpoint(name))
        recipe, tensors = recipe_from_dict(checkpoint["recipe"]), checkpoint["ema"]
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
    given_hash, own_hash = (weights.hash_of_tensors(each.network.state_dict()) for each in (given, own))
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
    network = UNet(recipe.network)
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise BookError(
            f"these weights do not fit the network of '{recipe.model}': use those that belong to it"
        ) from None
    where = resolve_device(device)
    dtype = resolve_precision(precision, where)
    network = place(network.eval().requires_grad_(False), where, dtype)
    return Pipeline(recipe, network, where, dtype, card or {}, autoencoder)
