# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Start here
#
# *Runs in about a minute on two CPU cores, without a network connection.*
#
# How can a computer draw a digit that nobody has ever written? A *diffusion model* learns to remove noise from
# pictures. It then starts from nothing but noise, and removes it until a picture is left. This book teaches how that
# works by building such models: on handwritten digits, in plain PyTorch, with every line in view. Digits are small
# enough that each model of the book can be trained on a laptop, and what you learn from them carries over to large
# models.
#
# On this page you will
#
# - see samples, and the one idea behind all of them;
# - find your way through the models and the chapters;
# - learn how the quality of samples is measured;
# - check that everything works on your machine.
#
# *Note.* The pictures are MNIST's, 60,000 handwritten digits. If MNIST is not on your machine and cannot be downloaded,
# the book takes the 1,797 small digits that come with scikit-learn, and says so. All cells of all chapters run. The
# weights and the measurements that come with the book were made with MNIST, whatever is found on your machine.

# %% [markdown]
# ## A first look

# %%
import time

import torch

import diffusion_book
from diffusion_book import data
from diffusion_book.evaluation.measures import HEADLINE, sentence
from diffusion_book.evaluation.scoreboard import figures, minutes_in_all
from diffusion_book.models import weights
from diffusion_book.system import devices
from diffusion_book.viz import diagrams, grids, in_page, overview, scrubber, style
from diffusion_book.viz.figures import show

style.use_style()
pipe = diffusion_book.load("ldm-concat")
samples = pipe.sample(40, guidance_scale=1.5, seed=0)
show(
    grids.show_grid(samples, columns=10),
    "0.1",
    "Samples of the model of chapter 5. The columns were asked for a 0, a 1, a 2, and so on up to 9.",
    "Four rows of ten handwritten digits, from 0 to 9",
)

# %% [markdown]
# Nobody ever wrote the digits of figure 0.1. (If no classes are given, the model draws 0 to 9 in turn. The
# `guidance_scale` says how strongly it obeys; chapter 5 explains it.) Two lines of code drew them: one loads a trained
# model, the other samples from it. The trained weights of every model come with the book.
#
# ## The idea: from noise to data
#
# Where does a new digit come from? Look first at the opposite direction, which is easy. Take a picture of a digit and
# add a little noise, again and again. After enough steps, nothing but noise is left.

# %%
show(
    diagrams.noise_to_data(),
    "0.2",
    "The idea of the book. Above: noise is added to a picture from right to left, and removed from left to right. "
    "Below: the same for many pictures at once, each of them drawn as a point.",
)

# %% [markdown]
# In the upper half of figure 0.2, time $t$ runs from 0, the *data*, to 1, pure *noise*. The grey arrow is how a model
# is trained: noise is added to a training picture, and a neural network learns to predict what was added. The blue
# arrow is *sampling*. It starts from fresh noise, and at each step the trained network removes a little of it.
#
# The lower half illustrates why the results are new. Think of a picture as a point in a space with one dimension for
# each pixel. Digits fill only a thin part of that space, here drawn as a curve. Noise is everywhere. Sampling moves a
# cloud of random points onto the curve. Each point ends at some digit, and most end between the training pictures, not
# on them.
#
# ### Watch it happen
#
# The first model of the book works on pixels. Drag the slider, or click it and use the arrow keys.

# %%
ddpm = diffusion_book.load("ddpm")
states = list(ddpm.states(range(8), steps=50, seed=0))
chosen = states[::2]
frames = torch.stack([grids.grid(ddpm.to_images(state.x), columns=4) for state in chosen])
times = [f"t = {state.t:.2f}" for state in chosen]
stored = scrubber.scrubber(frames, times, label="time", alt="Eight digits forming from noise")
show(
    in_page.live_after("ddpm", stored, steps=25, seed=0, until=0.5),
    "0.3",
    "Eight samples on the way from noise (slider at the left) to digits (slider at the right): the first eight of seed 0, not selected. What "
    "the model does on average is measured below.",
)

# %% [markdown]
# In figure 0.3, large shapes appear first and fine strokes last. Between two stops of the slider lie two steps of
# sampling. On the web page of this chapter, a button draws other samples in your browser.
#
# ## The models
#
# What is there to improve on the first model? It is slow, it cannot be asked for a certain digit, and some of its
# digits are malformed. Each further model improves one thing. The next cell draws ten samples with each.

# %%
HOW = {
    "ddpm": {"sampler": "ddpm", "steps": 100},
    "ddim": {"sampler": "ddim", "steps": 50},
    "ldm": {"sampler": "ddim", "steps": 50},
    "ldm-concat": {"sampler": "ddim", "steps": 20, "guidance_scale": 1.5},
    "ldm-cross-attention": {"sampler": "ddim", "steps": 20, "guidance_scale": 1.5},
    "rf": {"sampler": "midpoint", "steps": 10},
    "rf-reflow": {"sampler": "euler", "steps": 4},
    "rf-one-step": {"sampler": "euler", "steps": 1},
    "latent-rf": {"sampler": "midpoint", "steps": 10},
    "latent-rf-class": {"sampler": "midpoint", "steps": 5, "guidance_scale": 1.5},
    "latent-rf-class-one-step": {"sampler": "euler", "steps": 1},
}
weights_of = {name: "ddpm" if name == "ddim" else name for name in [*HOW, "vae"]}
pipes = {name: diffusion_book.load(weights_of[name]) for name in HOW}
drawn = {name: pipes[name].sample(10, seed=0, **how) for name, how in HOW.items()}
vae, test = diffusion_book.load("vae"), data.load("auto", "test")
real = data.crop(test.batch(torch.arange(5))[0])  # (5, 1, 28, 28)
drawn["vae"] = torch.cat([real, vae.reconstruct(real)])
minutes = {name: minutes_in_all(weights_of[name]) for name in drawn}
show(
    overview.model_map(drawn, minutes),
    "0.4",
    "The models of the book. Each box holds a name, what is new, ten samples, the chapter, and the minutes of training. "
    "Arrows lead from what you should have understood before.",
    "A map of twelve boxes in three columns: models in pixels, in latents, and in latents with a class",
)

# %% [markdown]
# Read figure 0.4 from the top left.
#
# - **The left column works on pixels.** `ddim` takes the weights of `ddpm` and needs fewer steps. The `rf` models are
#   *rectified flows*: they make the path from noise to data straight, until a single step is enough.
# - **The middle column works on latents.** An autoencoder (`vae`) compresses each picture to 32 numbers, its *latent*.
#   (Its box shows five real digits, and below them what is left of them after compression.) The models below it remove
#   noise from these 32 dimensions, which takes less than half of the computation in sampling.
# - **The right column takes a class too.** You ask for a seven and get a seven.
#
# All boxes of a column start from the same noise, the `vae` excepted. The sampler of `ddpm` adds fresh noise on its
# way. Those below it do not, so that there the start alone decides which digit appears. Their digits are similar
# although the networks differ, because all of them learned the same data.
#
# The minutes are those of one or two cores of an ordinary processor, and everything that the weights were made from is
# counted: those of a latent model include its autoencoder, those of `rf-one-step` the two flows before it. `ddim` is
# not trained at all, and so has the minutes of `ddpm`. The last column of the table below is the training of each model
# alone.
#
# How long does sampling take? The table measures it on the machine that runs this page. (The samplers are explained in
# chapters 1, 2 and 7.)

# %%
print(f"{'':24}  {'sampler':<18}  32 samples   training in all   its own part")
for name, how in HOW.items():
    begun = time.perf_counter()
    pipes[name].sample(32, seed=0, **how)
    seconds = time.perf_counter() - begun
    steps = f"{how['sampler']}, {how['steps']} step" + ("s" if how["steps"] > 1 else "")
    own = 0 if name == "ddim" else pipes[name].card["minutes"] + pipes[name].card.get("coupling_minutes", 0)
    print(f"{name:>24}  {steps:<18}  {seconds:8.2f} s   {minutes[name]:11.0f} min   {own:8.0f} min")

# %% tags=["remove-cell"]
assert minutes["ddim"] == minutes["ddpm"]
assert minutes["ldm"] > minutes["vae"]
assert minutes["rf-one-step"] > minutes["rf-reflow"] > minutes["rf"]
assert max(minutes.values()) < 120  # "two hours"

# %% [markdown]
# No model needs more than two hours of training, and sampling in one step is the fastest of all.
#
# ## How good are the samples?
#
# You will meet the same few measures in every chapter. Here they are in brief; chapter 8 defines them and asks how far
# they can be trusted.
#
# 1. A classifier that was trained on MNIST describes each picture by 64 numbers, its *features*. The **cFID** compares
#    their mean and covariance over generated pictures with those over real test pictures. (This is a *Fréchet
#    distance*, and 0 if both agree. The FID of the papers is the same, with a network called Inception as the
#    classifier.) Lower is better.
# 2. Real training pictures do not reach 0 either. The cFID of as many real training pictures is called the **floor**,
#    and the book reports $R = \text{cFID} / \text{floor}$, so that 1 is as good as real. (The cells print $R$ as "times
#    the distance of real digits".)
# 3. A picture is **doubtful** if a second classifier, which has no part in the cFID, gives no digit a probability of 90
#    % or more.
#
# All these measurements are stored on a model's **card**, the JSON file next to its weights. A mean and a covariance of
# few samples are inexact, which adds about the same amount to every cFID. This multiplies the small floor, and hardly
# changes the larger cFID of a model. So with fewer samples, the same model has a smaller $R$. Compare $R$ only for
# equal numbers of samples; if none is stated, it is 10,000. What do the cards of the first model and of the first
# latent model say?

# %%
on_card = {}
for name in ("ddpm", "ldm"):
    found = [row for row in figures(weights.read_card(name)) if row["num_samples"] == HEADLINE]
    on_card[name] = next(row for row in found if (row["sampler"], row["steps"]) == ("ddim", 50))
    print(f"{name:>4}, 50 steps of DDIM | {sentence(on_card[name])}")

# %% tags=["remove-cell"]
for row in on_card.values():
    assert row["ratio"] > 2  # "neither is as good as real"
    assert row["doubtful_real"] < row["doubtful"] < 0.5  # "most samples of both are clear digits"
assert on_card["ldm"]["ratio"] < on_card["ddpm"]["ratio"]
assert on_card["ldm"]["doubtful"] < on_card["ddpm"]["doubtful"]

# %% [markdown]
# Most samples of both models are clear digits, but neither model's digits are as good as real ones. The latent model is
# the better one by both measures, with about the same time of training.
#
# ## The chapters
#
# | chapter | what you build |
# |---|---|
# | [1 · DDPM](01_ddpm.ipynb) | the first diffusion model that drew good pictures: derived, trained, sampled |
# | [2 · DDIM](02_ddim.ipynb) | the same weights in 50 steps instead of 1,000; encoding and interpolation |
# | [3 · Variational autoencoder](03_vae.ipynb) | pictures compressed to a few dimensions, and restored |
# | [4 · Latent diffusion](04_latent_diffusion.ipynb) | diffusion in these few dimensions |
# | [5 · Guidance by concatenation](05_guidance_by_concatenation.ipynb) | "draw a seven": classes, and classifier-free guidance |
# | [6 · Cross-attention](06_cross_attention.ipynb) | the same, as text-to-image models do it, and what the network looks at |
# | [7 · Rectified flow](07_rectified_flow.ipynb) | straight paths from noise to data, down to one step |
# | [8 · Scoreboard](08_scoreboard.ipynb) | all models compared by the same measures, and how far these can be trusted |
# | [9 · Clinic](09_clinic.ipynb) | models broken on purpose, and how to find out what is wrong with them |
#
# A chapter begins with a question. It answers it first for points on a line or in the plane, where everything can be
# computed exactly, and then for digits. After each equation comes the code that says the same, and a cell that checks
# it. This code is compared with the library's, which is what you would use in a project. The exercises check your
# solution and tell you what is wrong with it; one solution is folded up below each.
#
# You need to know some Python and PyTorch, what a Gaussian is, and Bayes' rule. It helps to have trained a
# convolutional network. One proof in chapter 2 uses divergence and integration by parts, and may be skipped. The
# letters of the formulas are explained where they first appear. The appendix lists them on its page *Notation*
# (`docs/notation.md`), with what the papers write in their place, and the technical terms in its *Glossary*
# (`docs/glossary.md`).
#
# ## An hour, a weekend, two weeks
#
# **An hour.** Read this page. In [chapter 1](01_ddpm.ipynb), read sections 1 to 7 and 12 to 14, and skip the
# derivations. Move the sliders in [chapter 2](02_ddim.ipynb) and [chapter 5](05_guidance_by_concatenation.ipynb). Then
# look at the pictures of [chapter 7](07_rectified_flow.ipynb), where digits appear in one step.
#
# **A weekend.** Read chapters 1 to 5 in order in JupyterLab and run every cell. Each takes a minute or two to run, and
# two to three hours to read. Do the first exercise of each. End with the [scoreboard](08_scoreboard.ipynb).
#
# **Two weeks.** Read a chapter a day, with all exercises. Meanwhile, train a model of your own (`diffusion-book train
# ddpm --max-minutes 60`), on other data if you like. Break it on purpose, as the [clinic](09_clinic.ipynb) does. On the
# last days, read the source of the library, beginning with `schedules.py`: by then you have written most of it
# yourself.
#
# If you know DDPM already, begin with [chapter 2](02_ddim.ipynb). If your own samples are noise, begin with
# [chapter 9](09_clinic.ipynb): `diffusion_book.evaluation.clinic.examine(pipe, images)` names what is wrong.
#
# ## Four ways to use the book
#
# | you want to | do this |
# |---|---|
# | run and change things | `make lab` opens the chapters in JupyterLab |
# | only read | `make book` builds these pages as a site; every slider works without Python |
# | train and sample from the shell | `diffusion-book --help`, and below |
# | use the models in your own code | `import diffusion_book`, as in the first cell |
#
# The commands do what the chapters do:
#
# ```bash
# diffusion-book generate ldm-concat --class_label 7      # ten sevens
# diffusion-book generate ddpm --mode ddim --ddim_steps 50 --num_samples 64
# diffusion-book train ddpm --max-minutes 5               # a model of your own
# diffusion-book evaluate ddpm                            # how good are its samples?
# diffusion-book doctor                                   # does everything work here?
# ```

# %% [markdown]
# ## Does everything work here?
#
# The next cell says on which device the models run, and with which precision. With `bfloat16`, the products inside a
# network are computed with 16 bits, which is faster on hardware that has instructions for it; elsewhere they are
# computed in `float32`. The weights and the pictures are `float32` in both cases, and that is what the chapters print.
# In a shell, `diffusion-book doctor` checks more.

# %%
device = devices.resolve_device("auto")
precision = devices.resolve_precision("auto", device)
print(f"diffusion_book {diffusion_book.__version__}, PyTorch {torch.__version__}, threads: {torch.get_num_threads()}")
print(f"device: {device}, products inside a network: {str(precision).removeprefix('torch.')}")
print(f"models with trained weights: {', '.join(diffusion_book.list_models())}")

# %% tags=["nbval-check-output"]
two = ddpm.sample(2, steps=2)
print("ddpm is here:", "ddpm" in weights.shipped())
print("a sample:", tuple(two.shape), two.dtype, "in [-1, 1]:", bool(two.abs().max() <= 1))

# %% [markdown]
# ## The data, with and without a network connection
#
# `data.load("auto")` looks for MNIST in three steps:
#
# 1. in the folder that the environment variable `DIFFUSION_BOOK_DATA` names, or else in your cache folder;
# 2. on the internet, once; the files are kept in that folder;
# 3. if both fail, it takes scikit-learn's 1,797 digits of 8 × 8 pixels, resized to 28 × 28, and says so.

# %%
train = data.load("auto", "train")
print(f"found: {train.name}, {len(train):,} pictures")
show(
    grids.show_grid(train.images[:20], columns=10),
    "0.5",
    "Real digits, from the training set that was found here.",
    "Two rows of ten real handwritten digits",
)

# %% [markdown]
# Compare figure 0.5 with figure 0.1: the difference is not easy to see. All data sets of the book have the same shape,
# so that you can exchange them without changing anything else. They store pictures of 28 × 28 bytes. A network receives
# them as floats from −1 (background) to 1 (ink), with a border that makes them 32 × 32.

# %% tags=["nbval-check-output"]
for dataset in (train, data.load("digits")):
    pictures, labels = dataset.batch(torch.arange(4))
    print(tuple(pictures.shape), pictures.dtype, f"from {pictures.min():.0f}, labels of shape {tuple(labels.shape)}")

# %% [markdown]
# To use another data set, change the name: `data.load("fashion-mnist")` loads clothes, `"kmnist"` Japanese letters, and
# `"digits"` the small digits. `diffusion-book train ddpm --dataset fashion-mnist` trains on it. Chapters 1, 5 and 7 let
# you choose the data set by the variable `DATASET` in their first cell. If you ask for a data set by its name, you
# never get another one: where it is missing, a one-line error says what to do.
#
# ## Where to go next
#
# [Chapter 1](01_ddpm.ipynb) builds and trains the model whose digits you saw forming in figure 0.3.
