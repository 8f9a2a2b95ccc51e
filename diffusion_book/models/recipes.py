"""Everything that decides what a training makes, as plain data: it goes into checkpoints and cards."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from diffusion_book.networks.unet import UNetConfig
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.objective import TIME_SAMPLINGS
from diffusion_book.schedules import MOST_TIMESTEPS, SCHEDULES
from diffusion_book.system.errors import BookError, choose
from diffusion_book.targets import TARGETS


@dataclass(frozen=True)
class DiffusionConfig:
    """The mathematics of a diffusion model."""

    schedule: str = "cosine"
    """how the noise grows: cosine, linear or rectified"""
    target: str = "v"
    """what the network predicts: noise, image, v or velocity"""
    timesteps: int = 1000
    """steps of the training grid"""
    time_sampling: str = "uniform"
    """how training times are drawn: uniform, logit_normal, u_shaped or last"""
    min_snr_gamma: float = 0.0
    """weight the loss by min(SNR, this); 0 = no weights"""
    sampling_steps: int = 50
    """steps of the samples that are drawn in and after the training"""

    def __post_init__(self) -> None:
        choose("schedule", self.schedule, SCHEDULES)
        choose("target", self.target, TARGETS)
        choose("time sampling", self.time_sampling, TIME_SAMPLINGS)
        for name in ("timesteps", "sampling_steps"):
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.timesteps > MOST_TIMESTEPS:
            raise BookError(f"timesteps is {self.timesteps!s:.60}: it must be at most {MOST_TIMESTEPS:,}")
        if self.schedule == "rectified" and self.target == "noise":
            raise BookError(
                "the rectified path ends in pure noise, where no picture follows from it: use target velocity"
            )
        if not self.min_snr_gamma >= 0:
            raise BookError(f"min_snr_gamma is {self.min_snr_gamma}: it must be 0 (off) or more")
        if self.schedule == "rectified" and self.time_sampling == "last" and self.min_snr_gamma:
            raise BookError(
                "the rectified path ends without signal, where min_snr_gamma gives every loss the weight 0: "
                "leave out min_snr_gamma, or use another time sampling than last"
            )


@dataclass(frozen=True)
class ConditionConfig:
    """How a model is told what to draw."""

    num_classes: int = 10
    """classes; a label is a number below it"""
    num_tokens: int = 4
    """learned tokens a class, where cross-attention reads them"""
    unconditional_probability: float = 0.1
    """share of the training pictures whose label is hidden, so that the model learns to draw without one"""
    guidance_scale: float = 3.0
    """how strongly samples are pushed towards their class where nothing else is asked for; 0 = the class is not told,
    1 = as trained"""

    def __post_init__(self) -> None:
        for name in ("num_classes", "num_tokens"):
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.unconditional_probability < 1:
            raise BookError(
                f"unconditional_probability is {self.unconditional_probability}: it must be at least 0 and below 1"
            )
        if not math.isfinite(self.guidance_scale):
            raise BookError(f"guidance_scale is {self.guidance_scale}: it must be a finite number")


@dataclass(frozen=True)
class ReflowConfig:
    """How a trained flow draws the couplings of noise and sample that its successor learns from."""

    couplings: int = 40_000
    """pairs of noise and sample"""
    sampler: str = "midpoint"
    """euler, midpoint or heun"""
    steps: int = 10
    """of the sampler, for each pair"""
    guidance_scale: float = 1.0
    """of the flow's samples, where it knows classes"""

    def __post_init__(self) -> None:
        choose("sampler", self.sampler, dict.fromkeys(("euler", "midpoint", "heun")))
        for name in ("couplings", "steps"):
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not math.isfinite(self.guidance_scale):
            raise BookError(f"guidance_scale is {self.guidance_scale}: it must be a finite number")


@dataclass(frozen=True)
class ELBOConfig:
    """The mathematics of an autoencoder."""

    kl_weight: float = 1e-6
    """of the KL divergence, summed over the latent, beside the squared error, averaged over the pixels"""

    def __post_init__(self) -> None:
        if not 0 <= self.kl_weight < float("inf"):
            raise BookError(f"kl_weight is {self.kl_weight}: it must be 0 or more")


OPTIMIZERS = dict.fromkeys(("muon", "adamw"))


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, on what, and how fast."""

    dataset: str = "auto"
    """auto, mnist, fashion-mnist, kmnist or digits"""
    epochs: int = 100
    """passes over the data set"""
    optimizer: str = "muon"
    """muon (for matrices, with AdamW for the rest) or adamw"""
    lr: float = 4e-3
    """largest learning rate"""
    batch_size: int = 128
    """pictures a step"""
    warmup_steps: int = 200
    """steps in which the learning rate rises from 0"""
    cooldown: float = 0.3
    """last share of the training, in which the learning rate falls to 0"""
    weight_decay: float = 0.0
    """each step takes the learning rate times this share from every weight"""
    gradient_clip: float = 1.0
    """largest norm of the gradient"""
    ema_decay: float = 0.999
    """of the averaged weights that samples are drawn from"""
    sample_every: int = 10
    """epochs between sample grids and kept checkpoints"""
    seed: int = 0
    """of everything random in the training"""

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("epochs", "batch_size", "sample_every"):
            if getattr(self, name) < 1:
                raise BookError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("lr", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise BookError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.seed >= 2**63:
            raise BookError(f"seed is {self.seed}: it must be below 2^63")
        for name in ("warmup_steps", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
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
        condition: of a model that knows classes; else None.
        reflow: of a model that learns from another flow; else None.
        vae, elbo: of an autoencoder; else None.
    """

    model: str
    training: TrainingConfig = field(default_factory=TrainingConfig)
    network: UNetConfig | None = None
    diffusion: DiffusionConfig | None = None
    condition: ConditionConfig | None = None
    reflow: ReflowConfig | None = None
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
    "condition": ConditionConfig,
    "reflow": ReflowConfig,
    "vae": VAEConfig,
    "elbo": ELBOConfig,
}
"""the parts of a recipe"""

LATENT_MODELS = (
    "ldm",
    "ldm-concat",
    "ldm-cross-attention",
    "latent-rf",
    "latent-rf-class",
    "latent-rf-class-one-step",
)
"""models that diffuse an autoencoder's latents"""

PARENTS = {"rf-reflow": "rf", "rf-one-step": "rf-reflow", "latent-rf-class-one-step": "latent-rf-class"}
"""models that learn from another flow -> the shipped one that they come from"""


def recipe_from_dict(values: dict) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Raises:
        BookError: not a recipe of this version of the book.
    """
    try:
        # Recipes that were written before there was a choice.
        values = {**values, "training": {"optimizer": "adamw", **values["training"]}}
        return Recipe(
            values["model"],
            **{name: kind(**_typed(kind, values[name])) for name, kind in SECTIONS.items() if name in values},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BookError(f"this is not a recipe of this version of the book ({error}): train the model again") from None


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(kind: type, values: dict) -> dict:
    """Values with lists as tuples, once they are of the types that the defaults have."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    defaults = {part.name: part.default for part in dataclasses.fields(kind)}
    for key, value in values.items():
        wanted = type(defaults[key])
        if type(value) is not wanted and (wanted, type(value)) != (float, int):
            raise TypeError(f"{key} is {value!r:.60}")
        if wanted is tuple and not all(type(item) is int for item in value):
            raise TypeError(f"{key} is {value!r:.60}")
    return values


_LATENT_NETWORK = UNetConfig(
    base_channels=48,
    channel_multipliers=(1, 2),
    layers_per_block=1,
    attention_levels=(0,),
    patch_size=1,
    in_channels=2,
    image_size=4,
)

_PIXEL_NETWORK = UNetConfig(base_channels=16, layers_per_block=1)
_CONCAT_NETWORK = dataclasses.replace(_LATENT_NETWORK, concat_channels=4)
_FLOW = DiffusionConfig("rectified", "velocity", time_sampling="logit_normal")

RECIPES: dict[str, Recipe] = {
    "ddpm": Recipe("ddpm", TrainingConfig(batch_size=64), _PIXEL_NETWORK, DiffusionConfig()),
    "vae": Recipe("vae", TrainingConfig(batch_size=64), vae=VAEConfig(), elbo=ELBOConfig()),
    "vae-2d": Recipe(
        "vae-2d",
        TrainingConfig(batch_size=64),
        vae=VAEConfig(channel_multipliers=(1, 2, 4, 4, 4)),
        elbo=ELBOConfig(kl_weight=1e-4),
    ),
    "ldm": Recipe("ldm", TrainingConfig(), _LATENT_NETWORK, DiffusionConfig()),
    "ldm-concat": Recipe(
        "ldm-concat",
        TrainingConfig(),
        _CONCAT_NETWORK,
        DiffusionConfig(),
        ConditionConfig(),
    ),
    "ldm-cross-attention": Recipe(
        "ldm-cross-attention",
        TrainingConfig(),
        dataclasses.replace(_LATENT_NETWORK, context_dim=128),
        DiffusionConfig(),
        ConditionConfig(),
    ),
    "rf": Recipe("rf", TrainingConfig(batch_size=64), _PIXEL_NETWORK, _FLOW),
    "rf-reflow": Recipe(
        "rf-reflow",
        TrainingConfig(batch_size=64),
        _PIXEL_NETWORK,
        dataclasses.replace(_FLOW, time_sampling="u_shaped", sampling_steps=4),
        reflow=ReflowConfig(),
    ),
    "rf-one-step": Recipe(
        "rf-one-step",
        TrainingConfig(batch_size=64),
        _PIXEL_NETWORK,
        dataclasses.replace(_FLOW, time_sampling="last", sampling_steps=1),
        reflow=ReflowConfig(),
    ),
    "latent-rf": Recipe("latent-rf", TrainingConfig(), _LATENT_NETWORK, _FLOW),
    "latent-rf-class": Recipe(
        "latent-rf-class", TrainingConfig(), _CONCAT_NETWORK, _FLOW, ConditionConfig(guidance_scale=1.5)
    ),
    "latent-rf-class-one-step": Recipe(
        "latent-rf-class-one-step",
        TrainingConfig(),
        _CONCAT_NETWORK,
        dataclasses.replace(_FLOW, time_sampling="last", sampling_steps=1),
        ConditionConfig(unconditional_probability=0.0, guidance_scale=1.0),
        ReflowConfig(guidance_scale=1.5),
    ),
    "classifier": Recipe(
        "classifier", TrainingConfig(dataset="mnist", epochs=8, optimizer="adamw", lr=2e-3, sample_every=8)
    ),
    "classifier-check": Recipe(
        "classifier-check", TrainingConfig(dataset="mnist", epochs=5, optimizer="adamw", lr=2e-3, sample_every=5)
    ),
}


def recipe_of(model: str) -> Recipe:
    """The recipe of a model by its name.

    Raises:
        BookError: no such model.
    """
    return choose("model", model, RECIPES)
