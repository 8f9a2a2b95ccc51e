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
# *Runs in about half a minute on two CPU cores, without a network connection.*
#
# This book teaches how diffusion models draw pictures, by building them: on handwritten digits, in plain PyTorch,
# with nothing hidden in somebody else's library. Digits are small enough that a laptop trains every model of
# the book, and hard enough that what you learn holds for large models too.
#
# Before any words, here is what one of them draws. Nobody ever wrote these digits. Its weights come with the book, and
# so do those of all the others.

# %%
import time

import torch

import diffusion_book
from diffusion_book import data, schedules
from diffusion_book.models import weights
from diffusion_book.system import devices
from diffusion_book.viz import grids, in_page, overview, plots, scrubber

pipe = diffusion_book.load("ldm-concat")
grids.show_grid(pipe.sample(40, guidance_scale=1.5, seed=0), columns=10)

# %% [markdown]
# It knows the digits by name: column by column, it was asked for 0, 1, 2 and so on. The first model of the book does
# not, but you can watch it think. Pull the slider, or click it and use the arrow keys. On the far left is pure noise.
# Each stop to the right, a network has looked twice and taken a little noise away. That is all that a diffusion model
# does, and how it learns to is what the book is about.

# %%
ddpm = diffusion_book.load("ddpm")
states = list(ddpm.states(range(8), steps=50, seed=1))
chosen = states[::2]
frames = torch.stack([grids.grid(ddpm.to_images(state.x), columns=4) for state in chosen])
captions = [f"t = {state.t:.2f}" for state in chosen]
stored = scrubber.scrubber(frames, captions, label="time", alt="Eight digits forming from noise")
in_page.live_after("ddpm", stored, steps=25, seed=1, until=0.5)

# %% [markdown]
# ## The map
#
# Every model of the book has a box: its name, what is new in it, ten of its digits, and the chapter that builds it. An
# arrow leads from what you should have understood before.
#
# On the left noise is removed in small steps, first from pixels, then from the 32 numbers into which an autoencoder
# squeezes a digit (in its box: real digits, and below them what it makes of them). On the right the way from noise to
# digit is made straight, until a single step is enough.

# %%
HOW = {
    "ddpm": {"sampler": "ddpm", "steps": 250},
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
pipes = {name: diffusion_book.load("ddpm" if name == "ddim" else name) for name in HOW}
drawn = {name: pipes[name].sample(10, seed=3, **how) for name, how in HOW.items()}
vae, test = diffusion_book.load("vae"), data.load("auto", "test")
real = data.crop(test.batch(torch.arange(5))[0])  # (5, 1, 28, 28)
drawn["vae"] = torch.cat([real, vae.reconstruct(real)])
overview.model_map(drawn)

# %% [markdown]
# ## How long it all takes
#
# The cell below draws 32 digits with each of them, here and now. Beside it stands how long the shipped weights were
# trained, on one core of an ordinary processor: nothing in this book took longer than an hour or so.

# %%
print(f"{'':24}  {'how':<20}  32 digits here   trained for")
for name, how in HOW.items():
    begun = time.perf_counter()
    pipes[name].sample(32, seed=0, **how)
    seconds = time.perf_counter() - begun
    steps = f"{how['sampler']}, {how['steps']} step" + ("s" if how["steps"] > 1 else "")
    print(f"{name:>24}  {steps:<20}  {seconds:8.2f} s    {pipes[name].card['minutes']:8.0f} min")

# %% [markdown]
# ## The chapters
#
# | chapter | what you build |
# |---|---|
# | [1 · DDPM](01_ddpm.ipynb) | the first diffusion model that drew good pictures: derived, trained, sampled |
# | [2 · DDIM](02_ddim.ipynb) | the same weights in 50 steps instead of 1,000; encoding and interpolation |
# | [3 · Variational autoencoder](03_vae.ipynb) | pictures squeezed into a few numbers, and back |
# | [4 · Latent diffusion](04_latent_diffusion.ipynb) | diffusion on those numbers |
# | [5 · Guidance by concatenation](05_guidance_by_concatenation.ipynb) | "draw a seven": classes, and classifier-free guidance |
# | [6 · Cross-attention](06_cross_attention.ipynb) | the same, as text-to-image models do it, and what the network looks at |
# | [7 · Rectified flow](07_rectified_flow.ipynb) | straight paths from noise to picture, down to one step |
# | [8 · Scoreboard](08_scoreboard.ipynb) | all models measured on one scale, and how far the scale can be trusted |
# | [9 · Clinic](09_clinic.ipynb) | models broken on purpose, and how to tell what ails them |
#
# A chapter states what it is after and shows it at once. It starts with a toy on a line or in the plane, where
# everything can be drawn. It then goes from equation to code to check, a few lines at a time: after each equation
# stands the code that says the same, and after the code a cell that proves it. At the end the few lines are
# compared with the library, where the same algorithm fits on one screen. Exercises answer back: they say what is wrong
# with your solution, and have one folded up beneath them.
#
# You need to know some Python and PyTorch, what a Gaussian is, and Bayes' rule.
#
# ## An hour, a day, a week
#
# **An hour.** Read this page. In [chapter 1](01_ddpm.ipynb) read the sections on adding noise, the loss and sampling,
# and leave out the derivations. Move the sliders in [chapter 2](02_ddim.ipynb) and
# [chapter 5](05_guidance_by_concatenation.ipynb). Then look at the pictures of
# [chapter 7](07_rectified_flow.ipynb), where digits appear in one step.
#
# **A day.** Read chapters 1 to 5 in order in JupyterLab and run every cell; each takes a minute or two to run, and an
# hour or so to read. Do the first exercise of each. End with the [scoreboard](08_scoreboard.ipynb).
#
# **A week.** A chapter a day, with all exercises. Train a model of your own beside it (`diffusion-book train ddpm
# --max-minutes 60`), on other data if you like. Break something from the [clinic](09_clinic.ipynb) on purpose. On the
# last day read the library from `schedules.py` upwards: by then you have written all of it yourself.
#
# If you know DDPM already, begin with [chapter 2](02_ddim.ipynb). If you came because your own samples are noise, begin
# with [chapter 9](09_clinic.ipynb): it breaks models on purpose, and
# `diffusion_book.evaluation.clinic.examine(pipe, images)` names what ails yours.
#
# ## Four ways to use it
#
# | you want to | do this |
# |---|---|
# | run and change things | `make lab` opens the chapters in JupyterLab |
# | only read | `make book` builds these pages as a site; every slider works without Python |
# | train and draw from the shell | `diffusion-book --help`, and below |
# | use the models in your own code | `import diffusion_book`, as in the first cell |
#
# The commands do what the chapters do:
#
# ```bash
# diffusion-book generate ldm-concat --class_label 7      # ten sevens
# diffusion-book generate ddpm --mode ddim --ddim_steps 50 --num_samples 64
# diffusion-book train ddpm --max-minutes 5               # a model of your own
# diffusion-book evaluate ddpm                            # how good are its pictures?
# diffusion-book doctor                                   # is everything here?
# ```

# %% [markdown]
# ## Does everything work here?
#
# The next cell says where the arithmetic will run. `bf16` numbers have fewer digits and are faster where the
# hardware multiplies them natively; elsewhere the book uses `fp32`. In a shell, `diffusion-book doctor` checks
# more.

# %%
device = devices.resolve_device("auto")
precision = devices.resolve_precision("auto", device)
print(f"diffusion_book {diffusion_book.__version__}, PyTorch {torch.__version__}, threads: {torch.get_num_threads()}")
print(f"device: {device}, precision: {str(precision).removeprefix('torch.')}")
print(f"models with trained weights: {', '.join(diffusion_book.list_models())}")

# %%
# NBVAL_CHECK_OUTPUT
print("ddpm is here:", "ddpm" in weights.shipped())
print("a sample:", tuple(ddpm.sample(2, steps=2).shape), "in [-1, 1]")

# %% [markdown]
# ## The data, with and without a network
#
# `data.load("auto")` looks for MNIST, 60,000 handwritten digits of 28 x 28 pixels, in this order:
#
# 1. the folder in the environment variable `DIFFUSION_BOOK_DATA`, if it is set, else your cache folder;
# 2. the internet, once; the files stay in that folder;
# 3. if neither works, scikit-learn's 1,797 digits of 8 x 8 pixels, resized. A notice says so.
#
# The third way keeps every chapter running offline. The shipped weights and the figures of quality do not depend
# on it: they come from real MNIST, and travel with the book.

# %%
train = data.load("auto", "train")
print(f"found: {train.name}, {len(train):,} pictures")
grids.show_grid(train.images[:20], columns=10, title=f"Real ones, from '{train.name}'")

# %% [markdown]
# All data sets come in one shape, so that nothing else has to change when you change them: bytes of 28 x 28 for
# the reader, and for the networks numbers from -1 (background) to 1 (ink), padded to 32 x 32.

# %%
# NBVAL_CHECK_OUTPUT
for dataset in (train, data.load("digits")):
    pictures, labels = dataset.batch(torch.arange(4))
    print(tuple(pictures.shape), pictures.dtype, f"from {pictures.min():.0f}, labels of shape {tuple(labels.shape)}")

# %% [markdown]
# To use another one, change the name: `data.load("fashion-mnist")` for clothes, `"kmnist"` for Japanese letters,
# `"digits"` for the small digits. `diffusion-book train ddpm --dataset fashion-mnist` trains on it, and chapters 1, 5
# and 7 take one by the variable `DATASET` in their first cell. Asking for a data set by its name never falls back to
# another. It raises one line that says what is missing and what to do.

# %% [markdown]
# ## One notation
#
# The papers of this field agree on the ideas and on hardly a letter. The book uses one notation throughout.
# **Time $t$ runs from 0, the data, to 1, pure noise.** A noisy picture is
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim \mathcal N(0, I),$$
#
# with $x_0$ the clean picture, $\epsilon$ the noise, and a *schedule* that says how much there is of each. Here
# are the schedules of the book: `cosine` and `linear` for diffusion, and `rectified`, the straight way, for chapter 7.

# %%
plots.plot_schedule(schedules.SCHEDULES)

# %%
# NBVAL_CHECK_OUTPUT
t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
for name, schedule in schedules.SCHEDULES.items():
    alpha, sigma = schedule(t)
    print(f"{name:>9}: alpha", " ".join(f"{value:.3f}" for value in alpha), end=", ")
    print("alpha^2 + sigma^2 = 1:", bool(torch.allclose(alpha**2 + sigma**2, torch.ones_like(t))))

# %% [markdown]
# A network is asked for some mixture of $x_0$ and $\epsilon$. Whatever it was, its answer is turned into the pair
# $(\hat x_0, \hat\epsilon)$ at once, and samplers see only the pair.
#
# When you read a paper, translate:
#
# | paper | its letters | ours |
# |---|---|---|
# | Ho et al. 2020 (DDPM) | step $t = 1 \dots T$ | time $t / T$, with $T = 1000$ |
# | | $\bar\alpha_t$ and $1 - \bar\alpha_t$ | $\alpha_t^2$ and $\sigma_t^2$ |
# | | $\alpha_t = 1 - \beta_t$ | $\alpha_t^2 / \alpha_s^2$, where $s$ is the step before |
# | | $\sigma_t^2$, the variance of a step back | the variance in `schedules.posterior` |
# | Song et al. 2020 (DDIM) | $\alpha_t$ | $\alpha_t^2$ (beware) |
# | Kingma et al. 2021 (VDM) | $\alpha_t,\ \sigma_t$ | the same |
# | Salimans & Ho 2022 | $v = \alpha_t \epsilon - \sigma_t x$ | the target `v` |
# | Ho & Salimans 2022 (guidance) | $\lambda$, the log SNR | $\log(\alpha_t^2 / \sigma_t^2)$ |
# | Karras et al. 2022 (EDM) | noise level $\sigma$, picture not shrunk | $\sigma_t / \alpha_t$, and $x_t / \alpha_t$ |
# | Liu et al. 2022 (rectified flow) | $X_t = t X_1 + (1 - t) X_0$, from noise to data | time runs backwards: our $t$ is $1 - t$ |
#
# The last row is checked where it matters, in the chapter on rectified flow.
#
# ## Where to go next
#
# [Chapter 1](01_ddpm.ipynb) builds and trains the model whose digits formed at the top of this page.
