"""The options of every command: most follow from what a model is.

Nothing here imports torch, which takes seconds: help and refusals come at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from diffusion_book.cli.main import HELP, choose_model, parse
from diffusion_book.models.configs import BATCH_SIZE
from diffusion_book.models.recipes import MODELS, RECIPES, SECTIONS, Recipe
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import names_a_path
from diffusion_book.training.options import RunOptions

DIFFUSION = tuple(name for name, recipe in RECIPES.items() if recipe.diffusion)
AUTOENCODERS = tuple(name for name, recipe in RECIPES.items() if recipe.vae)
CLASSIFIERS = tuple(name for name, recipe in RECIPES.items() if recipe.kind == "classifier")
TRAINED = tuple(name for name in RECIPES if name not in CLASSIFIERS)
DIAGNOSED = tuple(name for name in (*DIFFUSION, *AUTOENCODERS) if not RECIPES[name].reflow)
REFERENCE = "reference"
PRETRAINED = (*CLASSIFIERS, REFERENCE, *TRAINED)
"""all that is shipped, each after what it needs"""

# How options are made


def option(kind: Any, default: Any, help: str, *markers: Any) -> tuple:
    """An option that no class has: its type, its default, and what it means."""
    return Annotated[(kind, tyro.conf.arg(help=help), *markers)], default


def options(
    title: str, base: Any = None, hidden: Sequence[str] = (), renamed: dict[str, str] | None = None, /, **own: Any
) -> Any:
    """Options under one title, with their defaults.

    Args:
        title: of their class.
        base: an instance of a dataclass, whose fields are options, and whose values their defaults.
        hidden: those of its fields that are no options, and keep their value.
        renamed: field -> option, where they differ.
        own: further options: what `option` gives, or a group of options, which is an instance of a dataclass.

    Returns:
        An instance of a new dataclass, a subclass of that of `base`.
    """
    hints = get_type_hints(type(base)) if base is not None else {}
    kinds = {name: Annotated[hints[name], tyro.conf.Fixed, tyro.conf.Suppress] for name in hidden}
    for name in set(renamed or ()) - set(hidden):
        kinds[name] = Annotated[hints[name], tyro.conf.arg(name=renamed[name])]
    fields = [(name, kind, field(default=getattr(base, name))) for name, kind in kinds.items()]
    for name, part in own.items():
        kind, default = part if isinstance(part, tuple) else (type(part), part)
        fields.append((name, kind, field(default=default)))
    bases = () if base is None else (type(base),)
    return make_dataclass(title, fields, bases=bases, frozen=True)(**(vars(base) if base is not None else {}))


def read(default: Any, arguments: Sequence[str], command: str, description: str) -> Any:
    """These options, changed by the arguments."""
    return parse(type(default), arguments, command, description, default)


# What several commands have


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, and where they run."""

    checkpoint: Path | None = None
    """.pt file or experiment folder; without one, the weights that come with the book"""
    dataset: str | None = None
    """what the book's weights have learned: mnist (without it) or fashion-mnist"""
    vae: Path | None = None
    """for a latent model: the VAE it was trained with. Not needed: checkpoints bring their own"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    batch_size: int = BATCH_SIZE
    """samples drawn at once"""


DEVICE = option(str, "auto", "auto, cpu, cuda or cuda:1")
PRECISION = option(str, "auto", "auto, fp32 or bf16")


def output_dir(default: str, holds: str) -> tuple:
    """Where a command leaves its folder."""
    return option(Path, Path(default), f"folder for the folder of {holds}")


# train

FIXED: tuple[tuple[str, tuple[str, ...], Callable[[Recipe], object]], ...] = (
    ("training", ("image_size", "channels"), lambda recipe: recipe.is_latent or recipe.reflow),
    ("network", ("in_channels", "image_size"), lambda recipe: True),
    ("network", ("concat_channels",), lambda recipe: not recipe.network.concat_channels),
    ("network", ("context_dim",), lambda recipe: not recipe.network.context_dim),
    ("condition", ("num_tokens",), lambda recipe: not recipe.network.context_dim),
    ("diffusion", ("schedule", "target"), lambda recipe: recipe.is_flow),
    ("reflow", ("guidance_scale",), lambda recipe: recipe.condition is None),
    ("vae", ("image_channels", "image_size"), lambda recipe: True),
)
"""section of a recipe, those of its fields that follow from the model and so are no options, and for which models"""

RENAMED = {"network": {"context_dim": "cross-attention-dim"}, "reflow": {"guidance_scale": "coupling-guidance-scale"}}
"""section -> field -> its option, where they differ"""


def recipe_options(model: str, recipe: Recipe) -> dict[str, Any]:
    """A group of options for each section of a recipe, which gives their defaults; the model decides which there are."""
    groups = {}
    for name in SECTIONS:
        part = getattr(recipe, name)
        if part is not None:
            hidden = [key for section, keys, of in FIXED if section == name and of(RECIPES[model]) for key in keys]
            groups[name] = options(type(part).__name__, part, hidden, RENAMED.get(name))
    return groups


def train_options(model: str, recipe: Recipe) -> Any:
    """Options of `train` for a model, with the recipe's values as defaults."""
    groups = recipe_options(model, recipe)
    groups["run"] = options(
        "RunOptions",
        RunOptions(),
        detach=option(bool, False, "train in a session of `screen` that survives this terminal, and return at once"),
    )
    if recipe.reflow:
        flow = "experiment folder or .pt file of the flow to learn from; without one, the one of the book"
        groups["reflow_from"] = option(Path | None, None, flow)
    elif recipe.is_latent:
        vae = "experiment folder or .pt file of the VAE; without one, the VAE that comes with the book"
        groups["vae"] = option(Path | None, None, vae)
    return options("Train", **groups)


def recipe_asked(options: Any, model: str) -> Recipe:
    """The recipe that options ask for; but for the shape of latents and pictures that follows from a VAE or a flow."""
    parts = {name: getattr(options, name, None) for name in SECTIONS}
    parts = {name: SECTIONS[name](**vars(part)) for name, part in parts.items() if dataclasses.is_dataclass(part)}
    recipe = Recipe(model, **parts, is_latent=RECIPES[model].is_latent)
    return recipe if recipe.reflow else recipe.fitted()


def read_train_as(model: str, arguments: Sequence[str], recipe: Recipe) -> Any:
    """Options of `train` for a model; what the arguments leave out is the recipe's."""
    description = (
        f"Train '{model}' and fill an experiment folder. Ctrl-C saves and stops; "
        f"diffusion-book train {model} --resume FOLDER continues."
    )
    return read(train_options(model, recipe), arguments, f"train {model}", description)


def read_train(arguments: Sequence[str]) -> tuple | None:
    """The model, the arguments after it, and what they ask for."""
    model, rest = choose_model(arguments, "train", TRAINED)
    if not model:
        return None
    if model == "rf" and any(word.replace("_", "-").split("=")[0] == "--reflow-from" for word in rest):
        model = "rf-reflow"  # the same thing by its shorter name
    return model, rest, read_train_as(model, rest, RECIPES[model])


# generate


def generate_options(model: str) -> Any:
    """Options of `generate` for a diffusion model."""
    row, recipe = MODELS[model], RECIPES[model]
    number, nrow = (10, 10) if recipe.condition else (16, 4)
    own = {
        "num_samples": option(int, number, "pictures"),
        "nrow": option(int, nrow, "pictures a row of the grid"),
        "seed": option(int, 0, "of the noise; the same seed draws the same pictures"),
        "output_dir": output_dir("generated_samples", "pictures"),
        "format": option(
            str | None,
            None,
            "beside a grid as PNG: pdf (a grid, and a folder for each picture with its way from the noise), png (a file for "
            "each picture), npz (all in one file, with their classes) or webp (an animation); without it pdf, and npz for more "
            "than 100 pictures",
        ),
        "grid_only": option(bool, False, "write the grid alone, and nothing for each picture"),
        "model": ModelOptions(),
    }
    if recipe.condition:
        own["class_label"] = option(
            str | None, None, "the class to draw, by its number or its name; without it, all classes in turn"
        )
        scale = (
            "how strongly pictures are pushed towards their class: 0 = the class is not told, 1 = as trained, more = clearer "
            "and less varied; without it, as the model's recipe says"
        )
        own["guidance_scale"] = option(float | None, None, scale)
    if recipe.is_flow or recipe.condition:
        own["sampler"] = option(str, row.sampler, sampler_help(recipe))
        own["sampling_steps"] = option(int, row.steps, "steps of the sampler, 1 to the training's timesteps")
    else:
        mode = "ddpm (random, one step for each timestep of the training) or ddim (few steps)"
        own["mode"] = option(str, row.sampler, mode)
        own["ddim_steps"] = option(int, row.steps, "steps of ddim, 1 to the training's timesteps")
    if not recipe.is_flow or (recipe.condition and row.steps > 1):
        own["eta"] = option(float, 0.0, "share of fresh noise in ddim, 0 to 1")
    return options("Generate", **own)


def sampler_help(recipe: Recipe) -> str:
    """What is said of the option --sampler."""
    if not recipe.is_flow:
        return "one of the samplers of the book: ddpm, ddim, euler, midpoint, heun, dpm++"
    if recipe.diffusion.time_sampling == "last":
        return "euler; others ask at times that this model never saw"
    return "euler (one evaluation of the network a step), midpoint or heun (two, and more exact); dpm++, ddim and ddpm work too"


def read_generate(arguments: Sequence[str]) -> tuple | None:
    """The model, and what is asked of it."""
    model, rest = choose_model(arguments, "generate", DIFFUSION)
    if not model:
        return None
    description = f"Draw pictures with '{model}': a grid, and for each picture a folder with its way from the noise."
    return model, read(generate_options(model), rest, f"generate {model}", description)


# evaluate

EVALUATE_ALL = options(
    "EvaluateAll",
    num_samples=option(int | None, None, "only figures of so many samples; without it, all figures"),
    most_evaluations=option(
        int | None, None, "only settings with at most so many network evaluations a picture; without it, all"
    ),
    device=DEVICE,
    precision=PRECISION,
    output_dir=output_dir("evaluations", "results"),
    resume=option(
        Path | None,
        None,
        "folder of results to continue: what was measured there is kept, as long as the card still says the same",
    ),
)


EVALUATE_PICTURES = options(
    "EvaluatePictures",
    labels=option(
        Path | None,
        None,
        "file of the digit that each picture shall show, 0 to 9, in the order of their names or places: .npy, .npz or text; "
        "without it, the names of the folders, or the labels in the .npz",
    ),
    anyway=option(bool, False, "measure pictures also where they look like no digits"),
    output_dir=output_dir("evaluations", "results"),
)


def is_place(word: str) -> bool:
    """Whether a word of the command line names files, and no model."""
    files = word.lower().endswith((".npz", ".png", ".webp", ".jpg", ".jpeg"))
    return word not in RECIPES and (files or names_a_path(word))


def evaluate_options(model: str) -> Any:
    """Options of `evaluate` for a model: an autoencoder restores pictures, the others draw as for their first figure."""
    if model in AUTOENCODERS:
        what = {"num_samples": option(int, 10_000, "pictures to restore, 10 to 10,000")}
    else:
        what = {"setting": MODELS[model].figures[0]}
    return options("Evaluate", **what, model=ModelOptions(), output_dir=output_dir("evaluations", "results"))


def read_evaluate(arguments: Sequence[str]) -> tuple | None:
    """The model, the path of pictures, or None for --all, and what is asked of it."""
    if "--all" in arguments:
        description = (
            "Recompute the scoreboard: draw and measure again every setting on the cards of the shipped diffusion models, "
            "and say whether cFID agrees."
        )
        rest = [argument for argument in arguments if argument != "--all"]
        return None, read(EVALUATE_ALL, rest, "evaluate --all", description)
    if arguments and not arguments[0].startswith("-") and is_place(arguments[0]):
        place, *rest = arguments
        about = (
            "Measure digits from anywhere: a folder of pictures (or with a folder for each digit, named 0 to 9), an .npz of "
            "arrays images and labels, or one picture of many in rows. They must be 28 x 28, or 32 x 32 with a border, bright "
            "ink on black; 10 to 60,000, best 10,000."
        )
        return Path(place), read(EVALUATE_PICTURES, rest, "evaluate PICTURES", about)
    measured = [name for name in RECIPES if name in AUTOENCODERS or MODELS[name].figures]
    try:
        model, rest = choose_model(arguments, "evaluate", measured)
    except BookError as error:
        raise BookError(f"{error}, or give a folder, an .npz or a picture of digits that is there") from None
    if not model:
        print("diffusion-book evaluate FOLDER|FILE.npz|GRID.png: digits from anywhere (FOLDER --help: its options)")
        print("diffusion-book evaluate --all: every setting on the cards again (--all --help: its options)")
        return None
    what = "Restore pictures with" if model in AUTOENCODERS else "Draw samples of"
    description = f"{what} '{model}', measure them, and compare with the card of the shipped weights."
    return model, read(evaluate_options(model), rest, f"evaluate {model}", description)


# visualize


@dataclass(frozen=True)
class LatentSpace:
    """Options of `visualize latent-space`."""

    checkpoint: Path | None = None
    """.pt file or experiment folder of a VAE; without one, weights that come with the book"""
    model: str = "vae"
    """which of the book's weights, where no checkpoint is given: vae or vae-2d"""
    dataset: str | None = None
    """auto, mnist, fashion-mnist, kmnist, digits, or a folder or .npz of your own; without it, your own pictures for a VAE
    that has learned them, else auto"""
    num_pictures: int = 2000
    """test pictures in the scatter plots, at least 20; no more than the data set has are taken"""
    picture: int = 0
    """test picture whose latent's numbers are changed one by one"""
    no_umap: bool = False
    """leave out the UMAP, which takes longest"""
    output_dir: Path = Path("visualizations")
    """folder for the folder of pictures"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""


@dataclass(frozen=True)
class Guidance:
    """Options of `visualize guidance`."""

    concat_checkpoint: Path | None = None
    """.pt file or experiment folder of an ldm-concat; given alone, that model alone is drawn"""
    cross_attention_checkpoint: Path | None = None
    """the same of an ldm-cross-attention; with neither, the weights that come with the book"""
    vae: Path | None = None
    """the VAE they were trained with. Not needed: checkpoints bring their own"""
    guidance_scales: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
    """one column each: 0 = the class is not told, 1 = as trained, more = clearer and less varied"""
    samples_per_cell: int = 4
    """pictures of each digit at each scale"""
    sampling_steps: int = 50
    """steps of ddim, 1 to the training's timesteps"""
    eta: float = 0.0
    """share of fresh noise in ddim, 0 to 1"""
    seed: int = 0
    """of the noise; a row's pictures grow from the same noise at every scale"""
    num_measured: int = 500
    """pictures measured at each scale, 20 to 60,000; 0 = draw without measuring"""
    output_dir: Path = Path("visualizations")
    """folder for the folder of pictures"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""


@dataclass(frozen=True)
class Distribution:
    """Options of `visualize distribution`."""

    model: str | None = None
    """any model that `generate` knows; default: the checkpoint's, or ddpm"""
    checkpoint: Path | None = None
    """.pt file or experiment folder of that model; without one, the weights that come with the book"""
    vae: Path | None = None
    """for a latent model: the VAE it was trained with. Not needed: checkpoints bring their own"""
    mode: str = "ddim"
    """ddim (few steps) or ddpm (random, one step for each timestep of the training)"""
    ddim_steps: int | None = None
    """steps of ddim or of --sampler, 1 to the training's timesteps; default 50, of models distilled to one step 1"""
    sampler: str | None = None
    """instead of --mode, one of the book's samplers: ddpm, ddim, euler, midpoint, heun, dpm++"""
    num_generated: int = 1000
    """pictures to draw, at least 20"""
    num_real: int = 1000
    """test pictures of MNIST, 20 to 10,000; of pictures of your own, at most as many as there are"""
    guidance_scale: float | None = None
    """for a model with classes: how strongly pictures are pushed towards their class; default its recipe's"""
    seed: int = 0
    """of the noise, of the choice of real pictures and of the map; the same seed gives the same files"""
    output_dir: Path = Path("visualizations")
    """folder for the folder of pictures"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16"""
    batch_size: int = BATCH_SIZE
    """samples drawn at once"""


SUBJECTS = {
    "latent-space": (
        LatentSpace(),
        "Draw the latent space of a VAE: scatter plots by digit, what single numbers do, ways between digits.",
    ),
    "guidance": (
        Guidance(),
        "Draw every digit at every guidance scale with the models that know classes, and measure what a scale does.",
    ),
    "distribution": (
        Distribution(),
        "Draw maps (UMAP) of a model's pictures beside real digits, and the ways of some samples across them.",
    ),
}
"""what `visualize` can draw -> its options, and one line for --help"""


def read_visualize(arguments: Sequence[str]) -> tuple | None:
    """The subject, and what is asked of it."""
    subject, rest = choose_model(arguments, "visualize", SUBJECTS, "subject")
    if not subject:
        return None
    default, about = SUBJECTS[subject]
    return subject, read(default, rest, f"visualize {subject}", about)


# diagnose


@dataclass(frozen=True)
class Diagnose:
    """Options of `diagnose`."""

    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["--unet-checkpoint"])] = None
    """.pt file or experiment folder; without one, the weights that come with the book"""
    vae: Annotated[Path | None, tyro.conf.arg(aliases=["--vae-checkpoint"])] = None
    """for a latent model: the VAE it was trained with. Not needed: checkpoints bring their own"""
    class_label: str | None = None
    """the class whose samples are shown, by its number or its name, for a model with classes; without it 7, or the last where
    there are fewer"""
    dataset: str | None = None
    """auto, mnist, fashion-mnist, kmnist, digits, or a folder or .npz of your own; without it, what the model was trained on.
    Where the book has weights of this set, it is they that are diagnosed"""
    num_samples: int = 50
    """samples drawn in each way and judged, at least 10; and 10 more of the class shown"""
    sampling_steps: int = 50
    """steps of ddim, 1 to the training's timesteps"""
    ddpm_steps: int | None = None
    """steps of ddpm; without it, the training's timesteps"""
    num_pictures: int = 512
    """training pictures that loss, gradient and latents are measured on, at least 128: with fewer a class may be absent"""
    seed: int = 0
    """of all that is random"""
    output_dir: Path = Path("debug_output")
    """folder for the folder of pictures and the report"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    precision: str = "auto"
    """auto, fp32 or bf16; loss and gradient are always measured in fp32"""


DIAGNOSED_FIRST = "ldm-concat"
"""the model that is meant where none is named"""


def read_diagnose(arguments: Sequence[str]) -> tuple | None:
    """The model, and what is asked of it."""
    rest = list(arguments)
    if set(rest) & set(HELP):
        print(
            f"usage: diffusion-book diagnose [MODEL] ...\n\nmodels: {', '.join(DIAGNOSED)} (default {DIAGNOSED_FIRST})\n"
        )
    model = rest.pop(0) if rest and not rest[0].startswith("-") else DIAGNOSED_FIRST
    choose("model", model, dict.fromkeys(DIAGNOSED))
    about = "Measure a model where models fail, and say in plain words what is healthy, what is not, and what to try."
    return model, read(Diagnose(), rest, f"diagnose {model}", about)


# pretrain, bench, doctor

PRETRAIN = options(
    "Pretrain",
    names=option(tuple[str, ...], (), "what to make", tyro.conf.Positional),
    all=option(bool, False, "make everything that is shipped"),
    dataset=option(str, "mnist", "what they learn: mnist or fashion-mnist, whose weights lie in a folder of their own"),
    from_checkpoint=option(Path | None, None, "do not train: take the weights of this experiment folder or .pt file"),
    longer=option(
        bool,
        False,
        "train the stored weights further, for --max-minutes more; their card counts all minutes and steps. Goes with "
        "--resume or --from-checkpoint where such a training was interrupted",
    ),
    train=option(
        bool, True, "with --no-train: keep the weights that are stored, and measure what their card does not tell yet"
    ),
    measure=option(bool, True, "with --no-measure: leave the figures off the new weights' card"),
    weights_dir=option(
        Path | None,
        None,
        "folder for the weights and cards; what it lacks is taken from the book's. Without one, the folder pretrained; with "
        "--replace or --no-train the book's own",
    ),
    replace=option(bool, False, "put the new weights, once they are measured, in the place of those that are stored"),
    run=RunOptions(),
)


def read_pretrain(arguments: Sequence[str]) -> tuple:
    """What to make, and how."""
    about = f"Train the weights that come with the book by their recipes, measure and store them. Names: {', '.join(PRETRAINED)}."
    return (read(PRETRAIN, arguments, "pretrain", about),)


BENCH = options(
    "Bench",
    model=option(str | None, None, "one of the models that come with the book; without it, all of them"),
    batch_size=option(int, 64, "images a training step, and pictures drawn at once"),
    seconds=option(float, 5.0, "of measuring a model; longer where three rounds take longer"),
    sampling_steps=option(int | None, None, "steps of the sampler; without it, those of the model's recipe"),
    device=DEVICE,
    precision=PRECISION,
    compile=option(bool, False, "train through torch.compile"),
    threads=option(int | None, None, "of the CPU; without it, as many as torch takes"),
    json=option(Path | None, None, "file for the figures, such as speed.json"),
)


def read_bench(arguments: Sequence[str]) -> tuple:
    """What to measure."""
    about = (
        "Measure how fast models train and sample here, and which share of the device's rate of plain matrix products "
        "that is. Training, sampling and the product take turns; the figures are medians."
    )
    if arguments and not arguments[0].startswith("-") and arguments[0] not in HELP:
        arguments = ["--model", *arguments]  # bare, as for the other commands
    return (read(BENCH, arguments, "bench", about),)


def read_doctor(arguments: Sequence[str]) -> tuple:
    """Nothing: `doctor` has no options."""
    read(options("Doctor"), arguments, "doctor", "Check Python, packages, device, data, weights and caches.")
    return ()


READ: dict[str, Callable[[Sequence[str]], tuple | None]] = {
    "train": read_train,
    "generate": read_generate,
    "evaluate": read_evaluate,
    "visualize": read_visualize,
    "diagnose": read_diagnose,
    "pretrain": read_pretrain,
    "bench": read_bench,
    "doctor": read_doctor,
}
"""command -> what its arguments ask for: what its `main` is called with; None once they asked for a list alone"""
