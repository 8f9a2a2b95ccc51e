"""Everything that decides what a training makes, as plain data: it goes into checkpoints and cards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from diffusion_book.errors import BookError, choose
from diffusion_book.networks.unet import UNetConfig
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
        network, diffusion: None for models that have none (the classifiers).
    """

    model: str
    training: TrainingConfig = field(default_factory=TrainingConfig)
    network: UNetConfig | None = None
    diffusion: DiffusionConfig | None = None

    def to_dict(self) -> dict:
        """Plain numbers, strings, lists and dictionaries, ready for JSON and for checkpoints."""
        return {key: value for key, value in _plain(dataclasses.asdict(self)).items() if value is not None}


def recipe_from_dict(values: dict) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Raises:
        BookError: not a recipe of this version of the book.
    """
    try:
        network = values.get("network")
        diffusion = values.get("diffusion")
        return Recipe(
            model=values["model"],
            training=TrainingConfig(**values["training"]),
            network=UNetConfig(**_tuples(network)) if network else None,
            diffusion=DiffusionConfig(**diffusion) if diffusion else None,
        )
    except (KeyError, TypeError) as error:
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
    "classifier": Recipe("classifier", TrainingConfig(dataset="mnist", epochs=8, lr=2e-3, sample_every=8)),
    "classifier-check": Recipe("classifier-check", TrainingConfig(dataset="mnist", epochs=5, lr=2e-3, sample_every=5)),
}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model by its name.

    Raises:
        BookError: no such model.
    """
    return choose("model", model, RECIPES)
