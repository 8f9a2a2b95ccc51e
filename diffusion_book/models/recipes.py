"""What each model of the book is: a row each. The commands, the training, the figures and the map follow from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from diffusion_book.models.configs import SECTIONS as SECTIONS
from diffusion_book.models.configs import (
    ClassSetting,
    ConditionConfig,
    DiffusionConfig,
    ELBOConfig,
    Recipe,
    ReflowConfig,
    Setting,
    TrainingConfig,
)
from diffusion_book.models.configs import recipe_from_dict as recipe_from_dict
from diffusion_book.networks.configs import UNetConfig, VAEConfig
from diffusion_book.system.errors import choose


@dataclass(frozen=True)
class Model:
    """A model of the book.

    Attributes:
        recipe: what it is, and how it is trained.
        chapter: that explains it; 0 for what only measures others.
        colour: on every page.
        idea: what is new in it, in a few words; without them it has no place on the map.
        builds_on: those on the map that it grew out of. Where it learns from another flow, its teacher stands first.
        sampler, steps: that `generate` draws with where nothing else is asked for.
        figures: how the samples are drawn that its card tells of; the one that stands for the model first.
    """

    recipe: Recipe
    chapter: int = 0
    colour: str = ""
    idea: str = ""
    builds_on: tuple[str, ...] = ()
    sampler: str = "ddim"
    steps: int = 50
    figures: tuple[Setting, ...] = ()


# Networks

_PIXELS = UNetConfig(base_channels=16, layers_per_block=1)
_LATENTS = UNetConfig(
    base_channels=48,
    channel_multipliers=(1, 2),
    layers_per_block=1,
    attention_levels=(0,),
    patch_size=1,
    in_channels=2,
    image_size=4,
)
_CONCAT = dataclasses.replace(_LATENTS, concat_channels=4)
_TOKENS = dataclasses.replace(_LATENTS, context_dim=128)

# The mathematics

_COSINE = DiffusionConfig()
_STRAIGHT = DiffusionConfig("rectified", "velocity", time_sampling="logit_normal")
_STRAIGHTER = dataclasses.replace(_STRAIGHT, time_sampling="u_shaped", sampling_steps=4)
_ONE_STEP = dataclasses.replace(_STRAIGHT, time_sampling="last", sampling_steps=1)

# Figures of different numbers of samples do not compare. All are of 10,000, but for DDPM's thousand steps, which would
# take hours: those are of 2,000, and so are the two settings again that they are compared with.

_FEW = 2000
_DDIM = tuple(Setting("ddim", steps) for steps in (50, 20, 10))
_DDPM = (
    *_DDIM,
    *(Setting("ddim", steps, eta=1.0) for steps in (20, 10)),
    *(Setting("dpm++", steps) for steps in (10, 5)),
    *(Setting("ddim", steps, num_samples=_FEW) for steps in (50, 20)),
    Setting("ddpm", 1000, num_samples=_FEW),
)
_LDM = (*_DDIM, Setting("dpm++", 10))
_GUIDED = (
    *(ClassSetting("ddim", 50, guidance_scale=scale) for scale in (1.0, 0.0)),
    *(ClassSetting("ddim", 10, guidance_scale=scale) for scale in (0.0, 1.0, 1.2, 1.5, 3.0, 10.0)),
)
_RF = (
    *(Setting("midpoint", steps) for steps in (10, 5)),
    *(Setting("euler", steps) for steps in (50, 20, 10, 4, 2, 1)),
    Setting("heun", 5),
    Setting("dpm++", 10),
)
_REFLOW = tuple(Setting("euler", steps) for steps in (4, 10, 2, 1))
_LATENT_RF = (Setting("midpoint", 10), *(Setting("euler", steps) for steps in (50, 10, 1)))
_GUIDED_RF = (
    *(ClassSetting("euler", 10, guidance_scale=scale) for scale in (1.0, 0.0, 1.5, 3.0)),
    ClassSetting("euler", 1),
)


def _pixels(name: str, diffusion: DiffusionConfig, **parts) -> Recipe:
    return Recipe(name, TrainingConfig(batch_size=64), _PIXELS, diffusion, **parts)


def _latents(name: str, network: UNetConfig, diffusion: DiffusionConfig, **parts) -> Recipe:
    return Recipe(name, TrainingConfig(), network, diffusion, is_latent=True, **parts)


def _classifier(name: str, epochs: int) -> Recipe:
    return Recipe(name, TrainingConfig("mnist", epochs, optimizer="adamw", lr=2e-3, sample_every=epochs))


# Two lines a model: how it is trained; then its chapter, colour, idea, what it builds on, how it draws, its figures.
# fmt: off
_ROWS = (
    Model(_pixels("ddpm", _COSINE),
          1, "#0072B2", "remove noise in small steps", (), "ddim", 50, _DDPM),
    Model(Recipe("vae", TrainingConfig(batch_size=64, lr=5e-3), vae=VAEConfig(), elbo=ELBOConfig()),
          3, "#CC79A7", "32 dimensions, and back"),
    Model(Recipe("vae-2d", TrainingConfig(batch_size=64), vae=VAEConfig(channel_multipliers=(1, 2, 4, 4, 4)), elbo=ELBOConfig(1e-4)),
          3),
    Model(_latents("ldm", _LATENTS, _COSINE),
          4, "#009E73", "diffusion on latents", ("vae", "ddim"), "ddim", 50, _LDM),
    Model(_latents("ldm-concat", _CONCAT, _COSINE, condition=ConditionConfig()),
          5, "#E69F00", "ask for a class", ("ldm",), "ddim", 50, _GUIDED),
    Model(_latents("ldm-cross-attention", _TOKENS, _COSINE, condition=ConditionConfig()),
          6, "#56B4E9", "the class as tokens", ("ldm-concat",), "ddim", 50, _GUIDED),
    Model(_pixels("rf", _STRAIGHT),
          7, "#5D3A9B", "straight paths", ("ddim",), "midpoint", 50, _RF),
    Model(_pixels("rf-reflow", _STRAIGHTER, reflow=ReflowConfig()),
          7, "#44AA99", "trained on its own paths", ("rf",), "midpoint", 50, _REFLOW),
    Model(_pixels("rf-one-step", _ONE_STEP, reflow=ReflowConfig()),
          7, "#882255", "one step", ("rf-reflow",), "euler", 1, (Setting("euler", 1),)),
    Model(_latents("latent-rf", _LATENTS, _STRAIGHT),
          7, "#8C564B", "the same in 32 dimensions", ("rf", "ldm"), "midpoint", 50, _LATENT_RF),
    Model(_latents("latent-rf-class", _CONCAT, _STRAIGHT, condition=ConditionConfig(guidance_scale=1.5)),
          7, "#999933", "ask for a class", ("latent-rf", "ldm-concat"), "midpoint", 50, _GUIDED_RF),
    Model(_latents("latent-rf-class-one-step", _CONCAT, _ONE_STEP, reflow=ReflowConfig(guidance_scale=1.5),
                   condition=ConditionConfig(unconditional_probability=0.0, guidance_scale=1.0)),
          7, "#B8860B", "one step, with a class", ("latent-rf-class", "rf-one-step"), "euler", 1, (ClassSetting("euler", 1),)),
    Model(_classifier("classifier", epochs=8)),
    Model(_classifier("classifier-check", epochs=5)),
)
# fmt: on

MODELS: dict[str, Model] = {row.recipe.model: row for row in _ROWS}
"""name -> what the model is"""

RECIPES: dict[str, Recipe] = {name: row.recipe for name, row in MODELS.items()}

PARENTS = {name: row.builds_on[0] for name, row in MODELS.items() if row.recipe.reflow}
"""models that learn from another flow -> the shipped one that they come from"""


def recipe_of(model: str) -> Recipe:
    """The recipe of a model by its name.

    Raises:
        BookError: no such model.
    """
    return choose("model", model, RECIPES)
