"""Everything that decides what a training makes, as plain data: it goes into checkpoints and cards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from diffusion_book.errors import BookError, choose
from diffusion_book.networks.unet import UNetConfig
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.objective import TIME_SAMPLINGS
from diffusion_book.schedules import SCHEDULES
from diffusion_book.targets import TARGETS


@dataclass(frozen=True)
class DiffusionConfig:
    """The mathematics of a diffusion model."""

    schedule: str = "cosine"
    """how the noise grows: cosine or linear"""
    target: str = "v"
    """what the network predicts: noise, image or v"""
    timesteps: int = 1000
    """steps of the training grid"""
    time_sampling: str = "uniform"
    """how training times are drawn: uniform or logit_normal"""
    min_snr_gamma: float = 0.0
    """weight the loss by min(SNR, this); 0 = no weights"""

    def __post_init__(self) -> None:
        choose("schedule", self.schedule, SCHEDULES)
        choose("target", self.target, TARGETS)
        choose("time sampling", self.time_sampling, TIME_SAMPLINGS)
        if self.timesteps < 1:
            raise BookError(f"timesteps is {self.timesteps}: it must be at least 1")
        if self.min_snr_gamma < 0:
            raise BookError(f"min_snr_gamma is {self.min_snr_gamma}: it must be 0 (off) or more")


@dataclass(frozen=True)
class ELBOConfig:
    """The mathematics of an autoencoder."""

    kl_weight: float = 1e-6
    """of the KL divergence, summed over the latent, beside the squared error, averaged over the pixels"""

    def __post_init__(self) -> None:
        if not 0 <= self.kl_weight < float("inf"):
            raise BookError(f"kl_weight is {self.kl_weight}: it must be 0 or more")


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, on what, and how fast."""

    dataset: str = "auto"
    """auto, mnist, fashion-mnist, kmnist or digits"""
    epochs: int = 100
    """passes over the data set"""
    lr: float = 1e-3
    """largest learning rate"""
    batch_size: int = 128
    """pictures a step"""
    warmup_steps: int = 200
    """steps in which the learning rate rises from 0"""
    cooldown: float = 0.3
    """last share of the training, in which the learning rate falls to 0"""
    weight_decay: float = 0.0
    """of AdamW"""
    gradient_clip: float = 1.0
    """largest norm of the gradient"""
    ema_decay: float = 0.999
    """of the averaged weights that samples are drawn from"""
    sample_every: int = 10
    """epochs between sample grids and kept checkpoints"""
    seed: int = 0
    """of everything random in the training"""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "sample_every"):
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("lr", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise BookError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise BookError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in ("cooldown", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 0 and below 1")


@dataclass(frozen=True)
class Recipe:
    """All that is needed to train a model again.

    Attributes:
        model: its name, one of RECIPES.
        network, diffusion: of a diffusion model; else None.
        vae, elbo: of an autoencoder; else None.
    """

    model: str
    training: TrainingConfig = field(default_factory=TrainingConfig)
    network: UNetConfig | None = None
    diffusion: DiffusionConfig | None = None
    vae: VAEConfig | None = None
    elbo: ELBOConfig | None = None

    @property
    def is_latent(self) -> bool:
        """Whether it is a diffusion model that works on an autoencoder's latents."""
        return self.model in LATENT_MODELS

    def to_dict(self) -> dict:
        """Plain numbers, strings, lists and dictionaries, ready for JSON and for checkpoints."""
        return {key: value for key, value in _plain(dataclasses.asdict(self)).items() if value is not None}


SECTIONS = {
    "training": TrainingConfig,
    "network": UNetConfig,
    "diffusion": DiffusionConfig,
    "vae": VAEConfig,
    "elbo": ELBOConfig,
}
"""the parts of a recipe"""

LATENT_MODELS = ("ldm",)
"""models that diffuse an autoencoder's latents"""


def recipe_from_dict(values: dict) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Raises:
        BookError: not a recipe of this version of the book.
    """
    try:
        return Recipe(
            values["model"],
            **{name: kind(**_tuples(values[name])) for name, kind in SECTIONS.items() if name in values},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BookError(f"this is not a recipe of this version of the book ({error}): train the model again") from None


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(values: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


RECIPES: dict[str, Recipe] = {
    "ddpm": Recipe(
        "ddpm", TrainingConfig(batch_size=64), UNetConfig(base_channels=16, layers_per_block=1), DiffusionConfig()
    ),
    "vae": Recipe(
        "vae", TrainingConfig(epochs=20, lr=2e-3, batch_size=64, sample_every=4), vae=VAEConfig(), elbo=ELBOConfig()
    ),
    "vae-2d": Recipe(
        "vae-2d",
        TrainingConfig(epochs=20, lr=2e-3, batch_size=64, sample_every=4),
        vae=VAEConfig(channel_multipliers=(1, 2, 4, 4, 4)),
        elbo=ELBOConfig(kl_weight=1e-4),
    ),
    "ldm": Recipe(
        "ldm",
        TrainingConfig(lr=2e-3),
        UNetConfig(
            base_channels=48,
            channel_multipliers=(1, 2),
            layers_per_block=1,
            attention_levels=(0,),
            patch_size=1,
            in_channels=2,
            image_size=4,
        ),
        DiffusionConfig(),
    ),
    "classifier": Recipe("classifier", TrainingConfig(dataset="mnist", epochs=8, lr=2e-3, sample_every=8)),
    "classifier-check": Recipe("classifier-check", TrainingConfig(dataset="mnist", epochs=5, lr=2e-3, sample_every=5)),
}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model by its name.

    Raises:
        BookError: no such model.
    """
    return choose("model", model, RECIPES)
