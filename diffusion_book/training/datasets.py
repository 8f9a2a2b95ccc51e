"""What a model is trained and tested on: pictures, latents of a VAE, or couplings of another flow."""

from __future__ import annotations

import dataclasses
import sys

from diffusion_book import data
from diffusion_book.models.autoencoder import Autoencoder, check_fits
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import RECIPES, Recipe
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.system.hashes import hash_of_tensors
from diffusion_book.training.couplings import CouplingDataset, draw_couplings
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.trainer import seed_of

TrainingData = data.Dataset | LatentDataset | CouplingDataset


def training_data(
    recipe: Recipe, autoencoder: Autoencoder | None, parent: Pipeline | None, expected_parent: dict | None
) -> tuple[Recipe, TrainingData, TrainingData]:
    """What a model is trained and tested on, and its recipe with the name of the data set that was found.

    Raises:
        BookError: the data are not there, or do not fit the recipe, or what they are made with is missing.
    """
    if recipe.reflow:
        recipe, dataset, test = reflow_data(recipe, parent, expected_parent)
    else:
        dataset = pictures_of(recipe)
        name = dataset.place or dataset.name
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, dataset=name))
        test = pictures_of(recipe, "test")
        if dataset.place:
            recipe = of_own(recipe, dataset, autoencoder)
    if recipe.condition and dataset.labels.max() >= recipe.condition.num_classes:
        raise BookError(
            f"{dataset.name} has {dataset.labels.max() + 1} classes, the model {recipe.condition.num_classes}: "
            "raise --num_classes"
        )
    if recipe.is_latent:
        if autoencoder is None:
            raise BookError(f"'{recipe.model}' learns the latents of a VAE: give one")
        check_fits(recipe.network, autoencoder)
    if recipe.is_latent and not recipe.reflow:
        dataset, test = encode_dataset(autoencoder, dataset), encode_dataset(autoencoder, test)
    return recipe, dataset, test


def pictures_of(recipe: Recipe, split: str = "train", name: str | None = None) -> data.Dataset:
    """The data set that a recipe names, or that of another name, in the form of the pictures that its model knows.

    Raises:
        BookError: it is not there, or not in this form.
    """
    training = recipe.training
    return data.load(name or training.dataset, split, image_size=training.image_size, channels=training.channels)


FEW = 1000  # pictures that a network of the book learns by heart within minutes


def of_own(recipe: Recipe, dataset: data.Dataset, autoencoder: Autoencoder | None) -> Recipe:
    """The recipe for pictures of one's own: it names their classes. What is likely to go wrong is said.

    Raises:
        BookError: a model of classes and pictures without, or other classes than the training began with.
    """
    if recipe.classes and recipe.classes != dataset.classes:
        before, now = (", ".join(names) or "none" for names in (recipe.classes, dataset.classes))
        raise BookError(f"this training began with the classes {before:.100}, and {dataset.name} has {now:.100}")
    if recipe.condition and not dataset.classes:
        raise BookError(
            f"'{recipe.model}' learns classes, and {dataset.name} has none: put the pictures of each into a folder of its own, "
            "or train a model without classes"
        )
    if processes.is_main():
        if len(dataset) < FEW:
            print(
                f"notice: {len(dataset)} pictures are few, and a model may learn them by heart: "
                "lay its samples beside them before you call them new",
                file=sys.stderr,
            )
        if autoencoder is not None and autoencoder.recipe.training.dataset != recipe.training.dataset:
            print(
                f"notice: the VAE has learned {autoencoder.recipe.training.dataset}, not {dataset.name}: "
                "train one on the same pictures, and give it as --vae",
                file=sys.stderr,
            )
    condition = recipe.condition
    if condition and condition.num_classes == RECIPES[recipe.model].condition.num_classes:  # nobody asked for another
        condition = dataclasses.replace(condition, num_classes=len(dataset.classes))
    return dataclasses.replace(recipe, condition=condition, classes=dataset.classes)


TEST_COUPLINGS = 1024


def reflow_data(
    recipe: Recipe, parent: Pipeline | None, expected: dict | None
) -> tuple[Recipe, CouplingDataset, CouplingDataset]:
    """What a model that learns from another flow is trained and tested on, and its recipe with that flow's data set.

    Raises:
        BookError: there is no such flow, its network is another one, or a training to continue began with another.
    """
    if parent is None:
        raise BookError(f"'{recipe.model}' learns from a trained flow: give one")
    if _kind(parent.recipe) != _kind(recipe):
        raise BookError(
            f"'{recipe.model}' starts with the weights of '{parent.recipe.model}', whose network is another one: "
            "leave out the options of the network, or give another flow"
        )
    if expected and identity(parent) != expected:
        raise BookError(f"this training began with another '{expected['model']}': give that one as --reflow-from")
    known = parent.recipe.training.dataset
    if recipe.training.dataset not in ("auto", known):
        raise BookError(
            f"'{recipe.model}' learns from a flow of {known}, not of {recipe.training.dataset}: leave out --dataset"
        )
    form = {name: getattr(parent.recipe.training, name) for name in ("image_size", "channels")}
    training = dataclasses.replace(recipe.training, dataset=known, **form)
    # Seeds that nobody samples with: else the samples that a reader draws, or a card measures, would grow from the very
    # noise that the model was trained on.
    seeds = [seed_of(recipe.training.seed, number) for number in (3, 4)]
    dataset = draw_couplings(parent, recipe.reflow, recipe.reflow.couplings, seeds[0])
    test = draw_couplings(parent, recipe.reflow, TEST_COUPLINGS, seeds[1])
    return dataclasses.replace(recipe, training=training, classes=parent.recipe.classes), dataset, test


def _kind(recipe: Recipe) -> tuple:
    """All that decides the shapes of the weights, and whether they are at work on latents."""
    condition = recipe.condition and (recipe.condition.num_classes, recipe.condition.num_tokens)
    return recipe.is_latent, recipe.network, condition


def identity(pipe: Pipeline) -> dict[str, str]:
    """Which model this is, for those that learn from it."""
    return {"model": pipe.recipe.model, "sha256": hash_of_tensors(pipe.network.state_dict())}
