"""A trained autoencoder: pictures to latents of unit scale, and back. Diffusion never sees what is inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_book.data import CROP_SIZE, PADDING, pad
from diffusion_book.models.recipes import Recipe, recipe_from_dict
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.networks.vae import VAE
from diffusion_book.system.devices import autocast, out_of_memory_names, trained
from diffusion_book.system.errors import BookError, NotFinite

BATCH_SIZE = 250  # pictures at once


@dataclass(frozen=True)
class Autoencoder:
    """A trained VAE with its latents' scale.

    Latents are shifted and scaled channel by channel, so that those of the training pictures have mean 0
    and standard deviation 1: the schedule of a diffusion model expects data of unit size. Rombach et al. 2022
    (appendix G) use one measured factor for all channels.

    Attributes:
        recipe: how it was trained.
        network: with its trained weights, on the device, in eval mode.
        device, dtype: where and with how many digits the network runs.
        card: what is known of the weights; empty for a checkpoint of your own.
    """

    recipe: Recipe
    network: VAE
    device: torch.device
    dtype: torch.dtype
    card: dict

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        return self.recipe.vae.latent_shape

    @torch.no_grad()
    def posterior(self, images: Tensor) -> DiagonalGaussian:
        """What the encoder knows of each picture's latent, after shift and scale.

        Args:
            images: (B, 1, 32, 32), or (B, 1, 28, 28) which is padded with -1; in [-1, 1].

        Returns:
            Mean and log-variance, (B, C, H, W), float32, on the device.

        Raises:
            BookError: pictures of another size or range, out of memory, or latents that are not finite (`NotFinite`).
        """
        images = self._check(images)
        mean, std = (value[:, None, None] for value in (self.network.latent_mean, self.network.latent_std))
        parts = []
        with out_of_memory_names("the number of pictures"), autocast(self.device, self.dtype):
            for part in images.split(BATCH_SIZE):
                encoded = self.network.encode(part.to(self.device, torch.float32))
                moments = DiagonalGaussian((encoded.mean - mean) / std, encoded.log_variance - 2 * std.log())
                parts.append(moments.moments)
        return DiagonalGaussian.from_moments(_finite(torch.cat(parts), "latents"))

    def encode(self, images: Tensor) -> Tensor:
        """The latents of pictures, their posteriors' means: (B, C, H, W), of mean 0 and standard deviation about 1.

        Arguments and errors as for `posterior`.
        """
        return self.posterior(images).mode

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents: (B, C, H, W) -> (B, 1, 32, 32), float32, on the device, about [-1, 1].

        Raises:
            BookError: latents of another shape, out of memory, or pictures that are not finite (`NotFinite`).
        """
        if not isinstance(latents, Tensor) or latents.is_complex():
            raise BookError(f"latents of type {getattr(latents, 'dtype', type(latents).__name__)}: give real numbers")
        if tuple(latents.shape[1:]) != self.latent_shape or len(latents) == 0:
            allowed = ", ".join(map(str, self.latent_shape))
            raise BookError(f"latents of shape {tuple(latents.shape)}: they must be (B, {allowed}), B at least 1")
        mean, std = (value[:, None, None] for value in (self.network.latent_mean, self.network.latent_std))
        with out_of_memory_names("the number of latents"), autocast(self.device, self.dtype):
            parts = [
                self.network.decode(part.to(self.device, torch.float32) * std + mean)
                for part in latents.split(BATCH_SIZE)
            ]
        return _finite(torch.cat(parts).float(), "pictures")

    def reconstruct(self, images: Tensor) -> Tensor:
        """Pictures through the latent and back: what is lost there, no latent model can bring back.

        Args:
            images: (B, 1, 28, 28) or (B, 1, 32, 32), in [-1, 1].

        Returns:
            Of the same shape, float32, in [-1, 1], on the CPU.
        """
        restored = self.decode(self.encode(images)).clamp(-1, 1).cpu()  # (B, 1, 32, 32)
        border = (restored.shape[-1] - images.shape[-1]) // 2
        return restored[..., border : restored.shape[-2] - border, border : restored.shape[-1] - border]

    def state_dict(self) -> dict:
        """All that `autoencoder_from_state` needs, for checkpoints of models that work on the latents."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        return {"recipe": self.recipe.to_dict(), "weights": tensors, "sha256": self.card.get("sha256")}

    def _check(self, images: Tensor) -> Tensor:
        """The pictures as the network wants them, or one clear line."""
        config = self.recipe.vae
        if not isinstance(images, Tensor):
            raise BookError(f"pictures of type {type(images).__name__}: give a tensor")
        border = 2 * PADDING if self.recipe.training.image_size == CROP_SIZE else 0
        sizes = dict.fromkeys((config.image_size - border, config.image_size))
        if tuple(images.shape[1:]) not in [(config.image_channels, size, size) for size in sizes] or len(images) == 0:
            allowed = " or ".join(f"(B, {config.image_channels}, {size}, {size})" for size in sizes)
            raise BookError(f"pictures of shape {tuple(images.shape)}: they must be {allowed}, B at least 1")
        if not images.is_floating_point():
            raise BookError(f"pictures of type {images.dtype}: turn bytes into [-1, 1] with data.normalise first")
        if not (images.min() >= -1.01 and images.max() <= 1.01):  # false for NaN too
            low, high = images.min().item(), images.max().item()
            raise BookError(f"pictures from {low:.3g} to {high:.3g}: they must lie in [-1, 1]")
        return pad(images) if images.shape[2] != config.image_size else images


def _finite(made: Tensor, what: str) -> Tensor:
    if not made.isfinite().all():
        raise NotFinite(
            f"the autoencoder's {what} hold numbers that are not finite: its weights or its input are broken"
        )
    return made


def check_fits(network: UNetConfig, autoencoder: Autoencoder) -> None:
    """Refuse a network of a diffusion model that is made for other latents.

    Raises:
        BookError: it is.
    """
    expected = (network.in_channels, network.image_size, network.image_size)
    if autoencoder.latent_shape != expected:
        given, wanted = (" x ".join(map(str, shape)) for shape in (autoencoder.latent_shape, expected))
        raise BookError(
            f"the VAE's latents are {given}, the diffusion network takes {wanted}: give the VAE it was trained with"
        )


def autoencoder_from_state(state: dict, device: str | torch.device = "auto", precision: str = "auto") -> Autoencoder:
    """The inverse of `Autoencoder.state_dict`."""
    if not isinstance(state, dict):
        raise BookError("the autoencoder of this checkpoint is damaged: use another checkpoint")
    recipe = recipe_from_dict(state.get("recipe"))
    card = {"sha256": state["sha256"]} if state.get("sha256") else {}
    return build_autoencoder(recipe, state.get("weights"), card=card, device=device, precision=precision)


def build_autoencoder(
    recipe: Recipe,
    tensors: dict[str, Tensor],
    *,
    card: dict | None = None,
    device: str | torch.device = "auto",
    precision: str = "auto",
) -> Autoencoder:
    """An autoencoder from a recipe and the weights of its network.

    Raises:
        BookError: not a VAE's recipe, or not the weights of its network.
    """
    if recipe.vae is None:
        raise BookError(f"a '{recipe.model}' is no autoencoder: give the checkpoint of a VAE")
    placed = trained(lambda: VAE(recipe.vae), tensors, recipe.model, device, precision)
    return Autoencoder(recipe, *placed, card or {})
