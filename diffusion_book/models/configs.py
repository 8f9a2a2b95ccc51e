"""Everything that decides what a training makes, as plain data: it goes into checkpoints and cards.

Nothing here imports torch, which takes seconds: the commands read their options from these classes.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass, field

from diffusion_book.networks.configs import UNetConfig, VAEConfig
from diffusion_book.system.errors import BookError, check_range, choose

BATCH_SIZE = 100  # samples drawn at once; more is not faster on a CPU

NAMES = {
    "schedule": ("cosine", "linear", "rectified"),
    "target": ("noise", "image", "v", "velocity"),
    "time sampling": ("uniform", "logit_normal", "u_shaped", "last"),
}
"""those of the book itself; others are looked up in the modules of the mathematics, which need torch"""


def _check_name(kind: str, name: str) -> None:
    if name not in NAMES[kind]:
        from diffusion_book import objective, schedules, targets

        known = (schedules.SCHEDULES, targets.TARGETS, objective.TIME_SAMPLINGS)
        choose(kind, name, dict(zip(NAMES, known, strict=True))[kind])


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
        _check_name("schedule", self.schedule)
        _check_name("target", self.target)
        _check_name("time sampling", self.time_sampling)
        check_range(self, "timesteps sampling_steps", 1)
        check_range(self, "min_snr_gamma", 0)
        if (
            self.timesteps > 1000
        ):  # the usual grid; what a longer one may have, the mathematics says, and it needs torch
            from diffusion_book.schedules import MOST_TIMESTEPS

            check_range(self, "timesteps", high=MOST_TIMESTEPS)
        if self.schedule == "rectified" and self.target == "noise":
            raise BookError(
                "the rectified path ends in pure noise, where no picture follows from it: use target velocity"
            )
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
        check_range(self, "num_classes num_tokens", 1)
        check_range(self, "unconditional_probability", 0, below=1)
        check_range(self, "guidance_scale", above=-math.inf, below=math.inf)


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
        check_range(self, "couplings steps", 1)
        check_range(self, "guidance_scale", above=-math.inf, below=math.inf)


@dataclass(frozen=True)
class ELBOConfig:
    """The mathematics of an autoencoder."""

    kl_weight: float = 1e-6
    """of the KL divergence, summed over the latent, beside the squared error, averaged over the pixels"""

    def __post_init__(self) -> None:
        check_range(self, "kl_weight", 0, below=math.inf)


OPTIMIZERS = dict.fromkeys(("muon", "adamw"))
IMAGE_SIZES = (28, 32, 64)
CHANNELS = (1, 3)
BORDERED = {28: 32}
"""size of the pictures -> what a network sees of them, where it differs: 28 cannot be halved three times"""


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, on what, and how fast."""

    dataset: str = "auto"
    """auto, mnist, fashion-mnist, kmnist or digits; or a folder of your own pictures, or an .npz of arrays"""
    epochs: int = 100
    """passes over the data set"""
    optimizer: str = "muon"
    """muon (for matrices, with AdamW for the rest) or adamw"""
    lr: float = 2e-3
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
    image_size: int = 28
    """height and width that pictures of your own are brought to: 28, 32 or 64"""
    channels: int = 1
    """1 = grey, 3 = colour, for pictures of your own"""

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, OPTIMIZERS)
        for name, allowed in (("image_size", IMAGE_SIZES), ("channels", CHANNELS)):
            if getattr(self, name) not in allowed:
                *others, last = map(str, allowed)
                raise BookError(f"{name} is {getattr(self, name)}: choose {', '.join(others)} or {last}")
        check_range(self, "epochs batch_size sample_every", 1)
        check_range(self, "lr gradient_clip", above=0)
        check_range(self, "warmup_steps weight_decay", 0, below=math.inf)
        check_range(self, "seed", 0, below=2**63)
        check_range(self, "cooldown ema_decay", 0, below=1)


@dataclass(frozen=True)
class Setting:
    """How the samples of a figure are drawn."""

    sampler: str = "ddim"
    """ddpm, ddim, euler, midpoint, heun or dpm++"""
    steps: int = 50
    """of the sampler, 1 to the training's timesteps"""
    eta: float = 0.0
    """share of fresh noise in ddim, 0 to 1"""
    seed: int = 0
    """of the noise"""
    num_samples: int = 10_000
    """samples, 10 to 60,000"""


@dataclass(frozen=True)
class ClassSetting(Setting):
    """How the samples of a model with classes are drawn, whose labels follow the data set's shares."""

    guidance_scale: float = 1.0
    """how strongly they are pushed towards their class; 1 = as trained"""


@dataclass(frozen=True)
class Recipe:
    """All that is needed to train a model again.

    Attributes:
        model: its name.
        network, diffusion: of a diffusion model; else None.
        condition: of a model that knows classes; else None.
        reflow: of a model that learns from another flow; else None.
        vae, elbo: of an autoencoder; else None.
        is_latent: whether it is a diffusion model that works on an autoencoder's latents.
        classes: of pictures of one's own, the names of their classes.
    """

    model: str
    training: TrainingConfig = field(default_factory=TrainingConfig)
    network: UNetConfig | None = None
    diffusion: DiffusionConfig | None = None
    condition: ConditionConfig | None = None
    reflow: ReflowConfig | None = None
    vae: VAEConfig | None = None
    elbo: ELBOConfig | None = None
    is_latent: bool = False
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _of_plain_values(kind, getattr(self, name)))

    @property
    def kind(self) -> str:
        """What is trained: diffusion, latent diffusion, reflow (a flow that learns from another), autoencoder, classifier."""
        if self.vae is not None:
            return "autoencoder"
        if self.diffusion is None:
            return "classifier"
        if self.reflow is not None:
            return "reflow"
        return "latent diffusion" if self.is_latent else "diffusion"

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the pictures that it learns and makes."""
        return self.training.channels, self.training.image_size, self.training.image_size

    @property
    def is_flow(self) -> bool:
        """Whether it is a diffusion model whose path from picture to noise is straight."""
        return self.diffusion is not None and self.diffusion.schedule == "rectified"

    @property
    def class_names(self) -> list[str]:
        """What the classes that the model can be asked for are called, in every picture and table."""
        return list(self.classes) or [
            str(label) for label in range(self.condition.num_classes if self.condition else 0)
        ]

    def fitted(self) -> Recipe:
        """The same recipe with a network for pictures of this form; where it works on latents, it fits them already."""
        form = {"image_size": BORDERED.get(self.training.image_size, self.training.image_size)}
        if self.vae is not None:
            vae = dataclasses.replace(self.vae, image_channels=self.training.channels, **form)
            return dataclasses.replace(self, vae=vae)
        if self.network is None or self.is_latent:
            return self
        return dataclasses.replace(
            self, network=dataclasses.replace(self.network, in_channels=self.training.channels, **form)
        )

    def to_dict(self) -> dict:
        """Plain numbers, strings, lists and dictionaries, ready for JSON and for checkpoints."""
        values = _plain(dataclasses.asdict(self))
        return {key: value for key, value in values.items() if value is not None and value != []}


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


def recipe_from_dict(values: dict) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Raises:
        BookError: not a recipe of this version of the book.
    """
    try:
        # What recipes did not say that were written before there was a choice.
        values = {**values, "training": {"optimizer": "adamw", **values["training"]}}
        is_latent = values.get("is_latent", values["model"].startswith(("ldm", "latent-")))
        if type(is_latent) is not bool:
            raise TypeError(f"is_latent is {is_latent!r:.60}")
        classes = tuple(values.get("classes", ()))
        if not all(type(name) is str for name in classes):
            raise TypeError(f"classes is {classes!r:.60}")
        return Recipe(
            values["model"],
            **{name: kind(**_typed(kind, values[name])) for name, kind in SECTIONS.items() if name in values},
            is_latent=is_latent,
            classes=classes,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BookError(f"this is not a recipe of this version of the book ({error}): train the model again") from None


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _of_plain_values(kind: type, part):
    """The same part of a recipe, with the numbers of NumPy and PyTorch as Python's: no others can be read again.

    Raises:
        BookError: a value is of another type than the default, and is no such number.
    """
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(kind)}
    plain = {name: _python_number(value) for name, value in values.items()}
    try:
        _typed(kind, plain)
    except TypeError as error:
        raise BookError(f"{error}: give a value as its default is, {kind()}") from None
    return part if all(plain[name] is values[name] for name in plain) else dataclasses.replace(part, **plain)


def _python_number(value):
    if isinstance(value, list | tuple):
        numbers = tuple(map(_python_number, value))
        return value if all(map(operator.is_, numbers, value)) else numbers
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


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
