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
# # DDPM: from noise to digits, one small step at a time
#
# *Runs in about a minute on two CPU cores, without a network connection. A third of that is a live training.*
#
# It is easy to ruin a picture: add noise to it, a little at a time, until nothing is left. A *denoising diffusion
# probabilistic model* learns to run this film backwards. It starts from pure noise, takes away a little at a time,
# and ends at a picture that nobody has drawn before.
#
# You need to know PyTorch, Gaussians and Bayes' rule. In this chapter you will
#
# - play the whole story through on a line, where every quantity is known exactly;
# - derive the forward process, its closed form and its posterior, and check each against the library;
# - see why three different training targets are one and the same, and where two of them explode;
# - find out how a bound on a likelihood shrinks to a mean squared error;
# - train the network for twenty seconds, then sample with weights that were trained for longer;
# - break the sampler on purpose.
#
# The source is Ho, Jain & Abbeel, *Denoising Diffusion Probabilistic Models* (2020), with the improvements of
# Nichol & Dhariwal (2021) and Salimans & Ho (2022).

# %% [markdown]
# ## Set-up, and what we are after

# %%
import copy
import itertools
import math

import torch
import torch.nn.functional as F
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, objective, samplers, schedules, targets
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.models import pipelines, weights
from diffusion_book.models.recipes import DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.unet import UNet
from diffusion_book.schedules import add_noise, cosine
from diffusion_book.targets import Prediction
from diffusion_book.training.losses import loss_of_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import animation, grids, paths, plots, scrubber, strips, style

DATASET = "auto"  # MNIST; or "fashion-mnist", "kmnist", "digits": see section 1
MODEL = "ddpm"  # the weights that come with the book; or the folder of a training of your own

style.use_style()
pipe = diffusion_book.load(MODEL)
samples = pipe.sample(24, sampler="ddpm", steps=100, seed=1)
grids.show_grid(samples, columns=12, title="Drawn by the model of this chapter")

# %% [markdown]
# No one has written these digits. Each began as an array of independent Gaussian numbers. By the end of the chapter
# every line of what just happened will have been taken apart.
#
# ## 1. The data
#
# `data.load("auto")` finds MNIST, or downloads it. Where neither works it takes the 1,797 small digits that come
# with scikit-learn. Everything below holds for both.

# %%
train, test = data.load(DATASET), data.load(DATASET, "test")
print(f"{train.name}: {len(train):,} pictures to learn from, {len(test):,} to check")
grids.show_grid(train.images[:24], columns=12)

# %% [markdown]
# **Try on another set.** Set `DATASET` to `"fashion-mnist"` (clothes) or `"kmnist"` (Japanese letters) and run the
# chapter again: the live training of section 10 learns from it, and sections 12 and 14 measure on it. Samples of the
# shipped weights stay digits, for those weights learned MNIST. The same model for other pictures is one command in a
# shell, and an hour or so of training:
#
# ```bash
# diffusion-book train ddpm --dataset fashion-mnist --max-minutes 60
# ```
#
# The last line it prints is its folder. Set `MODEL` to that, with `../` before it, for chapters run in the folder
# `notebooks`, and every sample of this chapter is your model's. In your own code, `diffusion_book.load(FOLDER)` is the
# pipeline; in a shell, `diffusion-book generate ddpm --checkpoint FOLDER` draws.
#
# A network wants floats, and sizes that can be halved a few times. So `batch` scales bytes to $[-1, 1]$ and puts a
# black border of two pixels around the picture.

# %%
# NBVAL_CHECK_OUTPUT
x0, labels = train.batch(torch.arange(16))
print(tuple(x0.shape), f"from {x0.min():.0f} to {x0.max():.0f}")

# %% [markdown]
# ## 2. The whole story on a line
#
# Let us first shrink the problem until nothing is hidden. A "picture" is one number, and there are two pictures in
# the world, $x_0 = -1$ and $x_0 = +1$, equally likely. To blur the difference we mix a picture with noise:
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim \mathcal N(0, 1).$$
#
# Time $t$ runs from 0, where $\alpha = 1$ and $\sigma = 0$, to 1, where it is the other way round. A function
# $t \mapsto (\alpha_t, \sigma_t)$ is called a *schedule*. We shall use the library's `cosine`, and look into it later.

# %%
generator = torch.Generator().manual_seed(0)
points = torch.randint(0, 2, (20_000, 1), generator=generator).double() * 2 - 1
eps = torch.randn(points.shape, generator=generator, dtype=torch.float64)
rows = {}
for t in torch.tensor([0.05, 0.2, 0.35, 0.6, 1.0], dtype=torch.float64):
    rows[f"t = {t:.2f}"] = add_noise(cosine, points, eps, t)
plots.plot_line_histograms(rows)

# %% [markdown]
# Two spikes melt into one bell. At $t = 1$ no trace of the data is left, and *that* distribution we can draw from
# without any data.
#
# To go back, ask a modest question: given $x_t$, what was $x_0$ *on average*? Bayes' rule answers it exactly here.
# The odds of $+1$ against $-1$ are the ratio of two Gaussian densities, $e^{2\alpha x_t / \sigma^2}$, and therefore
#
# $$\hat x_0(x_t, t) = \mathbb E[x_0 \mid x_t] = \tanh\!\left(\frac{\alpha_t\, x_t}{\sigma_t^2}\right).$$
#
# This is an ideal *denoiser*. From $\hat x_0$ follows what it takes for noise, $\hat\epsilon = (x_t - \alpha_t \hat
# x_0)/\sigma_t$. In this book a denoiser always returns the two together.


# %%
def toy_denoiser(x_t, t):
    alpha, sigma = cosine(t)
    x0 = torch.tanh(alpha * x_t / sigma**2)
    return Prediction(x0, (x_t - alpha * x0) / sigma)


line = torch.linspace(-3, 3, 301, dtype=torch.float64)
times = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
curves = {f"t = {t:.2f}": toy_denoiser(line, t).x0 for t in times}
plots.plot_curves(line, curves, "noisy number", "expected clean number")

# %% [markdown]
# With little noise the denoiser decides; with much noise it hedges, and says something near 0, the average of all
# pictures. Hedging is right. It is also why one step from noise to picture can only give a blur.
#
# Is the formula true? Draw a million pairs, keep those with $x_t$ near 0.3, and average their $x_0$.

# %%
# NBVAL_CHECK_OUTPUT
half = torch.tensor(0.5, dtype=torch.float64)
x = torch.randint(0, 2, (1_000_000,), generator=generator).double() * 2 - 1
eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
near = (add_noise(cosine, x, eps, half) - 0.3).abs() < 0.02
error = x[near].std() / near.sum().sqrt()  # standard error of the mean
says = toy_denoiser(torch.tensor(0.3), half).x0
print(f"counted {x[near].mean():.2f} ± {error:.2f}, tanh says {says:.2f}")

# %% [markdown]
# Now backwards. We start 2,000 points as pure noise and take 1,000 small steps. Each step asks the denoiser, moves a
# little towards its answer and adds a little fresh noise. How much of each is the subject of this chapter, so for
# now the library's `ddpm` step may stay a black box.

# %%
# NBVAL_CHECK_OUTPUT
start = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
grid_of_times = samplers.time_grid(1000)
fresh = torch.Generator().manual_seed(1)
walk = samplers.sample(toy_denoiser, start, grid_of_times, samplers.ddpm, schedule=cosine, generator=fresh)
path = torch.stack([state.x for state in walk]).squeeze(-1)  # (1001, 2000)
arrived = ((path[-1].abs() - 1).abs() < 0.01).double().mean()
right = (path[-1] > 0).double().mean()
print(f"{arrived:.0%} of the points end at -1 or +1, {right:.0%} at +1")

# %%
paths.show_line_paths({"Forty of the 2,000 points": (grid_of_times[::5], path[::5, :40])})

# %% [markdown]
# Read it from left, $t = 1$, to right, $t = 0$. The points wander, waver, and at last each falls to one side. Nothing
# told a point where to go; the average $\hat x_0$ was enough. With digits two things differ: there are 1,024 numbers
# instead of one, and nobody knows a formula for $\hat x_0$. A network has to learn it.
#
# ## 3. Ruining digits
#
# The same mixing, done to pictures. Each row keeps its noise $\epsilon$ fixed, and time grows to the right.

# %%
times = torch.linspace(0, 1, 11)
eps = torch.randn(x0[:4].shape, generator=generator)
noisy = [add_noise(cosine, x0[:4], eps, t) for t in times]
noisy = torch.stack(noisy, dim=1)  # (4, 11, 1, 32, 32)
strips.show_strip(times.tolist(), noisy, title="The forward process")

# %% [markdown]
# Find the last column in which you can still read the digit. Up to there the network has to clean; beyond it, it has
# to make something up.
#
# ## 4. One step of noise
#
# DDPM defines the forward process step by step. There are $T = 1000$ steps, counted by $k$, and $t = k/T$. Step $k$
# shrinks the picture a little and adds a little noise, with variance $\beta_k$:
#
# $$q(x_k \mid x_{k-1}) = \mathcal N\!\left(\sqrt{1 - \beta_k}\; x_{k-1},\ \beta_k I\right). \tag{1}$$
#
# Shrinking by $\sqrt{1-\beta_k}$ keeps the total variance at 1, if it was 1 before. The share of the original
# picture's variance that is left after $k$ steps is $\bar\alpha_k = \prod_{i \le k} (1 - \beta_i)$. One can choose
# the $\beta_k$ and get $\bar\alpha_k$, or the other way round. The cosine schedule chooses $\bar\alpha$:
#
# $$\begin{aligned}
# \bar\alpha_k &= \frac{f(k)}{f(0)}, \qquad f(k) = \cos^2\!\left(\frac{k/T + 0.008}{1.008}\cdot\frac{\pi}{2}\right), \\
# \beta_k &= \min\!\left(1 - \frac{\bar\alpha_k}{\bar\alpha_{k-1}},\ 0.999\right).
# \end{aligned}$$
#
# (The paper abbreviates $1-\beta_k$ as $\alpha_k$. We do not: in this book $\alpha_t$ is $\sqrt{\bar\alpha_k}$, the
# factor of the picture itself.) We give the tensors a 0th entry, so that the indices are those of the formulas.

# %%
# NBVAL_CHECK_OUTPUT
T = 1000
k = torch.arange(T + 1, dtype=torch.float64)
f = ((k / T + 0.008) / 1.008 * math.pi / 2).cos() ** 2
beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
beta = F.pad(beta, (1, 0))  # beta[0] = 0: before the first step nothing happens
alpha_bar = (1 - beta).cumprod(0)

assert_close(beta[1:], schedules.betas(cosine), rtol=1e-9, atol=1e-12)
for step in (1, 500, 1000):
    print(f"k = {step:4}: beta {beta[step]:.6f}, alpha-bar {alpha_bar[step]:.1e}")

# %% [markdown]
# ## 5. All steps at once
#
# To train on step 700 we do not want to take 700 steps. We need not: a Gaussian of a Gaussian is a Gaussian. Each
# step multiplies the mean by $\sqrt{1-\beta_k}$. The variance $s$ becomes $(1-\beta_k)s + \beta_k$, so what is
# *missing* from 1 is multiplied by $1-\beta_k$ too. At the start there is no noise, and all of the 1 is missing. Hence
#
# $$q(x_k \mid x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_k}\; x_0,\ (1 - \bar\alpha_k) I\right). \tag{2}$$
#
# This is the mixing of section 2, with $\alpha_t = \sqrt{\bar\alpha_k}$ and $\sigma_t = \sqrt{1 - \bar\alpha_k}$.
# Let us walk 400 steps with 20,000 copies of one grey pixel, and compare. Then exactly, for every $k$: the variance
# step by step, against the library's schedule and its `add_noise`.

# %%
# NBVAL_CHECK_OUTPUT
walker = torch.full((20_000,), 0.5)
for i in range(1, 401):
    noise = torch.randn(walker.shape, generator=generator)
    walker = (1 - beta[i]).sqrt() * walker + beta[i].sqrt() * noise
mean, std = 0.5 * alpha_bar[400].sqrt(), (1 - alpha_bar[400]).sqrt()
print(f"400 steps: mean {walker.mean():.2f}, standard deviation {walker.std():.2f}")
print(f"one jump:  mean {mean:.2f}, standard deviation {std:.2f}")

missing = torch.ones(T + 1, dtype=torch.float64)
for i in range(1, T + 1):
    missing[i] = 1 - ((1 - beta[i]) * (1 - missing[i - 1]) + beta[i])
alpha, sigma = cosine(k / T)
assert_close(1 - missing, sigma.square(), rtol=1e-9, atol=1e-12)
assert_close(alpha_bar.sqrt(), alpha, rtol=1e-9, atol=1e-12)

jump = alpha_bar[400].sqrt() * x0[:4] + (1 - alpha_bar[400]).sqrt() * eps
assert_close(add_noise(cosine, x0[:4], eps, k[400] / T), jump.float())
print("equation (2) holds at all", T, "steps")

# %% [markdown]
# The paper itself used betas in equal steps from 0.0001 to 0.02, the *linear* schedule. The right half of the next
# figure shows the signal-to-noise ratio, $\mathrm{SNR} = \alpha_t^2 / \sigma_t^2$, of both.

# %%
diffusion = {"cosine": schedules.cosine, "linear": schedules.linear}
plots.plot_schedule(diffusion)

# %%
# NBVAL_CHECK_OUTPUT
t = k[1:] / T
for name, schedule in diffusion.items():
    snr = schedules.signal_to_noise(schedule, t)
    more, lost = (snr > 1).sum(), (snr < 0.01).sum()
    print(f"{name:>6}: SNR above 1 in {more} steps, below 0.01 in {lost}")

# %% [markdown]
# The linear schedule spends a third of its steps where the picture has a hundredth of the noise's variance, or less.
# Small pictures are ruined early, and those steps have little to teach. The cosine spreads its effort evenly.
#
# ## 6. One step back
#
# Now the heart of the matter. Suppose the clean $x_0$ were known. From where did $x_k$ come? Bayes' rule for
# the chain says
#
# $$q(x_{k-1} \mid x_k, x_0) \propto q(x_k \mid x_{k-1})\; q(x_{k-1} \mid x_0).$$
#
# Both factors are Gaussians in $x_{k-1}$: (1) looks back from $x_k$, (2) looks forward from $x_0$. When Gaussian
# densities are multiplied their precisions, the inverse variances, add up:
#
# $$\frac{1}{\tilde\beta_k} = \frac{1-\beta_k}{\beta_k} + \frac{1}{1-\bar\alpha_{k-1}}
# = \frac{1 - \bar\alpha_k}{\beta_k\,(1 - \bar\alpha_{k-1})},$$
#
# so that $\tilde\beta_k = \beta_k\,(1-\bar\alpha_{k-1})/(1-\bar\alpha_k)$. The mean is the precision-weighted mixture of
# what the two have to say:
#
# $$\tilde\mu_k(x_k, x_0) = \frac{\sqrt{1-\beta_k}\,(1-\bar\alpha_{k-1})}{1-\bar\alpha_k}\, x_k
# + \frac{\sqrt{\bar\alpha_{k-1}}\,\beta_k}{1-\bar\alpha_k}\, x_0. \tag{3}$$
#
# Together, $q(x_{k-1} \mid x_k, x_0) = \mathcal N(\tilde\mu_k(x_k, x_0),\ \tilde\beta_k I)$.

# %%
# NBVAL_CHECK_OUTPUT
now, before = slice(1, None), slice(None, -1)  # entries k and k - 1, for k = 1 ... T
from_x_k = (1 - beta[now]).sqrt() * (1 - alpha_bar[before]) / (1 - alpha_bar[now])
from_x_0 = alpha_bar[before].sqrt() * beta[now] / (1 - alpha_bar[now])
beta_tilde = (1 - alpha_bar[before]) / (1 - alpha_bar[now]) * beta[now]

library = schedules.posterior(cosine, k[now] / T, k[before] / T)
for mine, theirs in zip((from_x_k, from_x_0, beta_tilde), library, strict=True):
    assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
for step in (1000, 500, 1):
    i = step - 1
    mean = f"{from_x_k[i]:.4f} x_k + {from_x_0[i]:.4f} x_0"
    print(f"back from k = {step:4}: mean {mean}, variance {beta_tilde[i]:.4f}")

# %% [markdown]
# At the last step back the variance is 0 and $x_k$ no longer counts: the answer is $x_0$ itself.
#
# Nothing in the derivation needs the two times to be neighbours. `schedules.posterior` takes any $s < t$, and that is
# how we could sample with 100 steps above. We check a long stride, from $t = 0.6$ to $s = 0.3$, by experiment: go
# forward many times, then fit $x_s$ by a straight line in $x_t$.

# %%
# NBVAL_CHECK_OUTPUT
s, t = torch.tensor([0.3, 0.6], dtype=torch.float64)
draw = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
x_s = add_noise(cosine, torch.full_like(draw[0], 0.5), draw[0], s)
factor, variance = schedules.transition(cosine, t, s)
x_t = factor * x_s + variance.sqrt() * draw[1]
covariance = torch.cov(torch.stack([x_t, x_s]))
slope = covariance[0, 1] / covariance[0, 0]
offset, left = x_s.mean() - slope * x_t.mean(), (x_s - slope * x_t).var()
print(f"fitted:       {slope:.2f} x_t + {offset:.2f}, variance left {left:.2f}")
a, b, left = schedules.posterior(cosine, t, s)
print(f"equation (3): {a:.2f} x_t + {b * 0.5:.2f}, variance left {left:.2f}")

# %% [markdown]
# ## 7. What should the network say?
#
# We do not know $x_0$ when we sample, so a network has to guess it from $x_k$. It may guess $x_0$ directly. It may
# guess $\epsilon$ instead, for then $x_0 = (x_t - \sigma_t\epsilon)/\alpha_t$. Or a mixture of both, such as
#
# $$v = \alpha_t\,\epsilon - \sigma_t\,x_0.$$
#
# Every such target is a pair of numbers, $y = a\,x_0 + b\,\epsilon$. Together with $x_t = \alpha_t x_0 + \sigma_t
# \epsilon$ that makes two equations with two unknowns, and with $d = \alpha_t b - \sigma_t a$ they have the solution
#
# $$x_0 = \frac{b\,x_t - \sigma_t\,y}{d}, \qquad \epsilon = \frac{\alpha_t\,y - a\,x_t}{d}. \tag{4}$$
#
# So one function serves all targets, in training as in sampling:


# %%
# NBVAL_CHECK_OUTPUT
def solve(y, x_t, a, b, alpha, sigma):
    d = alpha * b - sigma * a
    return Prediction((b * x_t - sigma * y) / d, (alpha * y - a * x_t) / d)


picture, noise = torch.randn(2, 8, 1, 32, 32, generator=generator).double()
alpha, sigma = cosine(torch.linspace(0.05, 0.95, 8).double())  # (8,)
x_t = add_noise(cosine, picture, noise, torch.linspace(0.05, 0.95, 8).double())
choices = {"noise": targets.noise, "image": targets.image, "v": targets.v}
for name, target in choices.items():
    y = targets.target_value(target, picture, noise, alpha, sigma)
    pair = [value.reshape(8, 1, 1, 1) for value in (*target(alpha, sigma), alpha, sigma)]
    mine = solve(y, x_t, *pair)
    assert_close(mine, targets.prediction(target, y, x_t, alpha, sigma))
    back = torch.allclose(mine.x0, picture) and torch.allclose(mine.eps, noise)
    print(f"{name:>5}: picture and noise come back: {back}")

# %% [markdown]
# If the network is right, all targets agree. It never is quite right. By (4) an error of 1 in $y$ becomes an error
# of $\sigma_t/|d|$ in $x_0$ and of $\alpha_t/|d|$ in $\epsilon$. How large are these?

# %%
# NBVAL_CHECK_OUTPUT
print("an error of 1 becomes, in x0 / in eps")
print(" " * 8 + "".join(f"{name:>20}" for name in choices))
for step in (1, 500, 900, 990, 1000):
    alpha, sigma = cosine(k[step] / T)
    row = f"k = {step:4}"
    for target in choices.values():
        a, b = target(alpha, sigma)
        d = (alpha * b - sigma * a).abs()
        row += f"  {sigma / d:9.2f} / {alpha / d:6.2f}"
    print(row)

# %% [markdown]
# If the network predicts the noise, its errors explode in $x_0$ where sampling starts, twenty-thousand-fold at
# $k = 1000$: in almost pure noise the picture is a tiny remainder. If it predicts the image, they explode in $\epsilon$
# where sampling ends. For $v$ we have $d = \alpha_t^2 + \sigma_t^2 = 1$, so no error is ever enlarged. Our network predicts $v$.
#
# ## 8. The loss
#
# A generative model should give the data a high likelihood. The likelihood of a chain of 1,000 steps cannot be
# computed, but there is a bound on it, the one that variational autoencoders use:
#
# $$\begin{aligned}
# -\log p(x_0) \le\ & \underbrace{D(q(x_T|x_0)\,\|\,p(x_T))}_{\text{nothing to learn}}
# - \mathbb E \log p(x_0|x_1) \\
# & + \sum_{k=2}^{T} \mathbb E\, \underbrace{D(q(x_{k-1}|x_k,x_0)\,\|\,p(x_{k-1}|x_k))}_{\text{one for each step}}.
# \end{aligned}$$
#
# $D$ is the Kullback-Leibler divergence. The first term compares $x_T$ with pure noise, and has no weights in it. In
# each term of the sum the target is the Gaussian of (3). So we let the model be that same Gaussian with a guess $\hat
# x_0$ in the place of $x_0$. Then both have the same variance, and their divergence is the squared distance of their
# means over twice that variance:
#
# $$D_k = \frac{\|\tilde\mu_k(x_k, x_0) - \tilde\mu_k(x_k, \hat x_0)\|^2}{2\tilde\beta_k}
# = \tfrac12\left(\mathrm{SNR}_{k-1} - \mathrm{SNR}_k\right) \|x_0 - \hat x_0\|^2. \tag{5}$$
#
# The likelihood of a whole chain has become a squared error, with a weight for each step. Check the weight:

# %%
# NBVAL_CHECK_OUTPUT
snr = alpha_bar[now] / (1 - alpha_bar[now])  # k = 1 ... T
weight = from_x_0**2 / (2 * beta_tilde)  # by (3); at k = 1 infinite: it has its own term
assert_close(weight[1:], (snr[:-1] - snr[1:]) / 2, rtol=1e-6, atol=1e-12)
for step in (2, 10, 100, 500, 1000):
    print(f"k = {step:4}: weight {weight[step - 1]:.2g}")

# %% [markdown]
# The weights fall by nearly ten orders of magnitude. Taken literally, the bound spends almost all its care on the last
# traces of noise, which no eye can see. DDPM's decisive finding is to **ignore the weights**: let the network
# predict the noise, and count $\|\epsilon - \hat\epsilon\|^2$ the same at all steps.
#
# Why is that allowed? Each term alone is smallest when the prediction is the conditional mean, the ideal denoiser of
# section 2, whatever its weight. Weights only say where a network of limited size should be most careful. And by (4)
# each choice of target *is* a choice of weights: with $e = \|x_0 - \hat x_0\|^2$,
#
# $$\|\epsilon - \hat\epsilon\|^2 = \mathrm{SNR} \cdot e, \qquad \|v - \hat v\|^2 = (\mathrm{SNR} + 1) \cdot e.$$
#
# Where noise is weak both ask for the same. Where it is strong the noise target hardly cares for the picture any
# more; $v$ always counts an error in $x_0$ at least once. Now the loss is short: draw a time, add noise, ask,
# compare.


# %%
def my_loss(network, x0, generator):
    t = objective.uniform(len(x0), generator)  # (B,), one in each slice of (0, 1]
    t = objective.on_grid(t, T)  # rounded to k / T
    eps = torch.randn(x0.shape, generator=generator)
    alpha, sigma = (value.float().reshape(-1, 1, 1, 1) for value in cosine(t))
    v = alpha * eps - sigma * x0
    error = network(alpha * x0 + sigma * eps, t.float()) - v
    return error.square().mean(dim=(1, 2, 3))  # (B, 1, 32, 32) -> (B,)


torch.manual_seed(0)
networks = {"untrained": UNet(pipe.recipe.network), "shipped": copy.deepcopy(pipe.network).cpu()}
options = {"schedule": cosine, "target": targets.v, "timesteps": T}
for name, network in networks.items():
    with torch.no_grad():
        mine = my_loss(network, x0, torch.Generator().manual_seed(3))
        same = torch.Generator().manual_seed(3)
        theirs = objective.diffusion_loss(network, x0, generator=same, **options)
    assert_close(mine, theirs)
    print(f"{name:>9}: loss {mine.mean():.3f}")

# %% [markdown]
# ## 9. Sampling
#
# Start with noise. At each step ask the network, put its $\hat x_0$ into (3), and draw. The paper writes the same
# with $\hat\epsilon$. Replace $x_0$ in (3) by $(x_k - \sqrt{1-\bar\alpha_k}\,\hat\epsilon)/\sqrt{\bar\alpha_k}$,
# collect terms, and there it is, algorithm 2 of the paper:
#
# $$x_{k-1} = \frac{1}{\sqrt{1-\beta_k}}\left(x_k - \frac{\beta_k}{\sqrt{1-\bar\alpha_k}}\,\hat\epsilon\right)
# + \sqrt{\tilde\beta_k}\; z, \qquad z \sim \mathcal N(0, I). \tag{6}$$


# %%
# NBVAL_CHECK_OUTPUT
def ddpm_step(x_k, eps, k, z):
    mean = (x_k - beta[k] / (1 - alpha_bar[k]).sqrt() * eps) / (1 - beta[k]).sqrt()
    return mean + beta_tilde[k - 1].sqrt() * z


for step in (1000, 999, 500, 2, 1):
    t, s = k[step] / T, k[step - 1] / T
    x_t = add_noise(cosine, picture, noise, t)
    z = torch.randn(x_t.shape, generator=generator, dtype=torch.float64)
    known = Prediction(picture, noise)
    theirs = samplers.ddpm(known, x_t, t, s, schedule=cosine, noise=z)
    assert_close(ddpm_step(x_t, noise, step, z), theirs, rtol=1e-6, atol=1e-6)
print("equation (6) is samplers.ddpm")

# %% [markdown]
# The loop around it has five lines. We open the black box of section 2, with the same start and the same random
# numbers.

# %%
# NBVAL_CHECK_OUTPUT
x, same = start, torch.Generator().manual_seed(1)
for i in range(T, 0, -1):
    eps = toy_denoiser(x, k[i] / T).eps
    z = torch.randn(x.shape, generator=same).double() if i > 1 else 0.0  # none in the last
    x = ddpm_step(x, eps, i, z)
apart = (x[:, 0] - path[-1]).abs() > 1e-4
print(f"farther than 0.0001 from the library's samples: {apart.sum()} of {len(x)}")

# %% [markdown]
# That is all of DDPM: equation (2) to train, equation (6) to sample, and a network in between.
#
# ## 10. A live training
#
# The library's `Trainer` is a generator. It trains one step, reports, and hands control back, so logging and
# stopping are up to you. We train a new network, built like the shipped one, from scratch for 250 steps of 16
# pictures: about twenty seconds. Samples come from a running average of the weights (EMA), which is steadier than
# the weights themselves.

# %%
settings = TrainingConfig(batch_size=16, lr=3e-3, warmup_steps=20, ema_decay=0.98)
torch.manual_seed(0)
network = UNet(pipe.recipe.network)
untrained = copy.deepcopy(network.state_dict())
trainer = Trainer(network, loss_of_diffusion(DiffusionConfig()), train, settings)
reports = list(itertools.islice(trainer.steps(), 250))
losses = [report.loss for report in reports]
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} after {reports[-1].seconds:.0f} seconds")
plots.plot_loss([report.step for report in reports], losses)

# %%
recipe = Recipe("ddpm", settings, pipe.recipe.network, DiffusionConfig())
stages = {"before": untrained, "after 250 steps": trainer.ema.network.state_dict()}
for stage, tensors in stages.items():
    young = pipelines.build(recipe, tensors)
    stages[stage] = young.sample(12, sampler="ddpm", steps=50, seed=0)
grids.show_rows(stages)

# %% [markdown]
# Before, noise stays noise. After 250 steps there is a dark ground with bright strokes in the middle, about as
# thick as a pen. Few of them are digits yet. Learning *where ink may be* is quick; learning which strokes belong
# together takes the many passes that the shipped weights have seen.
#
# ## 11. The shipped weights
#
# A card lies beside the weights and says how they were made. With them we draw four digits in all 1,000 steps.
# `states` yields every state on the way. For each digit the upper row shows $x_t$, and the lower row $\hat x_0$, what
# the network took for the picture a step before.

# %%
card = weights.read_card("ddpm")
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on {card['data_set']}")
diffusion = card["recipe"]["diffusion"]
print({name: diffusion[name] for name in ("schedule", "target", "timesteps")})

states = list(pipe.states(range(4), sampler="ddpm", steps=T, seed=6))
times, seen = strips.denoising_strip(states[1:], pipe, frames=11)
_, guessed = strips.denoising_strip(states, pipe, frames=11, what="x0")
both = torch.stack([seen, guessed], dim=1).flatten(0, 1)  # (4, 2, 11, ...) -> (8, 11, ...)
strips.show_strip(times, both)

# %% [markdown]
# At the start $\hat x_0$ is a grey cloud, the average of all digits, as on the line. Then it commits: first to a
# blurred kind of digit, then to a shape, last to the edges of the pen. The large decisions fall early, in noise in
# which *you* see nothing. The same as a film:

# %%
_, film = strips.denoising_strip(states, pipe, frames=40)  # (4, 40, 1, 28, 28)
animation.animate(
    torch.stack([grids.grid(frame, columns=4) for frame in film.transpose(0, 1)]),
    alt="Four arrays of noise turn into four digits",
)

# %% [markdown]
# And under your own hand: state above, prediction below. It is a row of stored pictures, and works without a kernel.

# %%
times, seen = strips.denoising_strip(states[1:], pipe, frames=30)
_, guessed = strips.denoising_strip(states, pipe, frames=30, what="x0")
pairs = torch.cat([seen, guessed]).transpose(0, 1)  # (30, 8, 1, 28, 28)
scrubber.scrubber(
    torch.stack([grids.grid(frame, columns=4) for frame in pairs]),
    captions=[f"t = {time:.2f}" for time in times],
    label="denoise",
    alt="Above the noisy state at each time, below the picture predicted from it",
    start=12,
)

# %% [markdown]
# ## 12. Where is it hard?
#
# One average loss hides where a model works. So we measure by time: the error of the predicted picture, on 128
# test pictures the network has not seen, at eight times.

# %%
centres = (torch.arange(8) + 0.5) / 8
x_test, _ = test.batch(torch.arange(128))
errors = []
for t in centres:
    noise = torch.randn(x_test.shape, generator=generator)
    with torch.no_grad():
        noisy = add_noise(cosine, x_test, noise, t).to(pipe.device)
        predicted = pipe.denoiser(noisy, t)
    errors.append((predicted.x0.cpu() - x_test).square().mean().item())
edges = torch.linspace(0, 1, 9)
plots.plot_bins(edges, {"shipped": errors}, "time t", "mean squared error of x0")

# %% [markdown]
# The error grows with the noise, and must: at the right end even the ideal denoiser knows only the average digit, and
# its error is the variance of the data. A large error there is no defect. It is hedging.
#
# ## 13. Breaking it on purpose
#
# Pictures live in $[-1, 1]$. So it seems tidy to clamp the state to $[-1, 1]$ after each step. It is a common mistake.
# A second one is to leave out the fresh noise $z$. All three rows share their start.


# %%
def clamped(*arguments, **options):
    return samplers.ddpm(*arguments, **options).clamp(-1, 1)


def without_noise(*arguments, noise, **options):
    return samplers.ddpm(*arguments, noise=torch.zeros_like(noise), **options)


steps = {"correct": samplers.ddpm, "state clamped": clamped, "no fresh noise": without_noise}
rows, noise = {}, pipe.noise(10, seed=5).to(pipe.device)
for name, step in steps.items():
    fresh = samplers.sample_generators(6, range(10))  # not the seed of the start
    options = {"schedule": pipe.schedule, "generator": fresh}
    *_, last = samplers.sample(pipe.denoiser, noise, samplers.time_grid(50), step, **options)
    rows[name] = pipe.to_images(last.x)
    print(f"{name:>14}: {(rows[name] > 0).double().mean():.1%} of the pixels are ink")

eps = torch.randn(10_000, generator=generator)
ground = add_noise(cosine, torch.full_like(eps, -1.0), eps, torch.tensor(0.5))
clamped_mean = ground.clamp(-1, 1).mean()
print(f"black ground at t = 0.5: mean {ground.mean():.2f}, clamped {clamped_mean:.2f}")
grids.show_rows(rows)

# %% [markdown]
# The network was trained on states whose noise reaches to 3 and beyond. Clamped noise is weaker, and of a kind that it
# never met. On a black ground it is also lopsided: what falls below $-1$ is lost, what rises above stays, and
# the ground turns brighter on average (last line). The network sees ink where there is none, and the digits come out
# heavy. What may be clamped is $\hat x_0$, and `pipe.denoiser` does so.
#
# The last row began with ten different noises, and ends ten times at the same picture. Look at what section 6
# printed: the first step back keeps 3 % of $x_k$. So the start is soon forgotten, all ten see the same grey average,
# and nothing is left to tell them apart. In DDPM it is the fresh noise that makes one sample differ from the next.
# Chapter 2 does without it, but not by leaving it out.
#
# ## 14. New, or remembered?
#
# A model that had stored its training set would draw perfect digits. So look for the nearest training picture, pixel
# by pixel, of each sample.

# %%
samples = rows["correct"]
known = train.images.flatten(1).float() / 127.5 - 1  # (N, 784)
nearest = torch.cdist(samples.flatten(1), known).argmin(dim=1)
grids.show_rows({"sample": samples, "nearest": data.crop(train.batch(nearest)[0])})

# %% [markdown]
# Near, but not the same: slant, thickness and the ends of the strokes differ. The digits are like those of the
# training set, and are not among them. (Without MNIST you see the nearest of scikit-learn's digits, on which the
# weights were not trained: the neighbours are then farther away, and prove less.)
#
# ## The scoreboard
#
# The eye is easily pleased. The card holds measurements. *cFID* is a Fréchet distance between features of generated and
# real digits; its *floor* is what as many real training digits reach, and $R$ is cFID over its floor. *Doubtful* is a
# digit of which a second classifier is less than 90 % sure. All of DDPM's steps were affordable for 2,000 samples only;
# other models' figures are of 10,000, and chapter 8 sets those beside each other.

# %%
for row in figures(card):
    if row["sampler"] == "ddpm":
        print(f"DDPM | {row['steps']:4} evaluations | {sentence(row)}")

# %% [markdown]
# ## What differs from the paper
#
# - **Target.** The paper predicts $\epsilon$; we predict $v$ (section 7).
# - **Schedule.** The paper's is linear; ours is the cosine of Nichol & Dhariwal.
# - **Variance.** The paper tries $\beta_k$ and $\tilde\beta_k$ for the reverse step and finds them alike. We take
#   $\tilde\beta_k$, which (3) gives, throughout.
# - **Clipping.** $\hat x_0$ is clipped to the range of pictures. The paper's released code does so as well; its
#   algorithm 2 does not mention it.
# - **Network.** Ours folds patches of 2 x 2 pixels into channels and works at 16 x 16, which saves three quarters of
#   the arithmetic. The time scales and shifts the features instead of being added to them.
# - **Average of the weights.** The paper's decay is 0.9999 from the start. Ours warms up, so that a short training
#   does not sample from its random first weights.
# - **Times.** One in each of $B$ equal slices instead of $B$ independent draws: the same expectation, less noise.
#
# ## Pitfalls
#
# - **Clamping $x_t$** instead of $\hat x_0$, or leaving out $z$ (section 13).
# - **Noise in the last step.** $\tilde\beta_1 = 0$. Code that adds $\sqrt{\beta_1}\,z$ there returns grain.
# - **$\alpha$, $\bar\alpha$ and $\sqrt{\bar\alpha}$.** Three papers, three meanings of one letter. Code that confuses
#   them runs, and draws mud.
# - **Indices off by one.** $k = 1000$ must be asked for as $t = 1$, in training as in sampling.
# - **Noise prediction at the end of the cosine schedule.** $1/\alpha_T$ is 20,000 (section 7). Cap $\beta$, clip $\hat
#   x_0$, or predict $v$.
# - **Judging by the loss.** Its floor is the hedging of section 12. Two models with nearly the same loss can draw very
#   different digits.
#
# ## Exercises
#
# Most exercises of this book answer back. Write the function, run the cell, and `check` says what you have shown, or
# what is wrong. It does not read your code: it compares what your function gives with what the library gives, and with
# what the usual mistakes would give.
#
# **1. One jump.** By (2), bring a batch of pictures from $x_0$ to $x_k$, each to a step of its own. All that you have
# are the betas, counted as in section 4: `beta[k]` is $\beta_k$, and `beta[0]` is 0.

# %%
# NBVAL_CHECK_OUTPUT
from diffusion_book.exercises import check


def noisy(x0, eps, k, beta):
    """x0 and eps (B, C, H, W), k (B,) whole numbers, beta (T + 1,) -> x_k, (B, C, H, W)."""
    ...  # your code here


check(noisy)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def noisy(x0, eps, k, beta):
#     alpha_bar = (1 - beta).cumprod(0)[k].reshape(-1, 1, 1, 1)  # (B,) -> (B, 1, 1, 1)
#     return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
# ```
#
# Without the `reshape` PyTorch lines (B,) up with the *last* dimension. If pictures are as wide as the batch is large,
# there is no error, and every column gets the step of another picture.
#
# </details>
#
# **2. One step back, clipped.** Section 9 wrote the step with $\hat\epsilon$. Write it with $\hat x_0$, by (3), and
# clip what may be clipped. When it is right, put $\beta_k$ in the place of $\tilde\beta_k$, and run the toy with 1,000
# steps and with 20 (their betas are `schedules.betas(cosine, 20)`). What changes, and why only with few steps?


# %%
# NBVAL_CHECK_OUTPUT
def step_back(x_k, x0, z, k, beta):
    """State, guess of the picture and fresh noise, each (B, C, H, W), and the number k -> x_{k-1}."""
    ...  # your code here


check(step_back)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def step_back(x_k, x0, z, k, beta):
#     missing = 1 - (1 - beta).cumprod(0)  # 1 - alpha-bar, (T + 1,)
#     from_x_k = (1 - beta[k]).sqrt() * missing[k - 1] / missing[k]
#     from_x_0 = (1 - missing[k - 1]).sqrt() * beta[k] / missing[k]
#     variance = beta[k] * missing[k - 1] / missing[k]
#     return from_x_k * x_k + from_x_0 * x0.clamp(-1, 1) + variance.sqrt() * z
# ```
#
# The ratio $\tilde\beta_k / \beta_k = (1-\bar\alpha_{k-1})/(1-\bar\alpha_k)$ is near 1 except for the first few $k$,
# if steps are short. With 20 steps $\bar\alpha$ changes much in one step, the ratio is far below 1, and the larger
# variance leaves noise that the remaining steps do not take away. The exact variance lies between the two: $\beta_k$
# is right for data that are themselves standard normal, $\tilde\beta_k$ for data that are a single point.
#
# </details>
#
# **3. Any number of pictures.** The toy had two pictures. Let there be $K$ of them, at the places $p_i$ with shares
# $w_i$. What is the ideal denoiser now? Try it on the toy, with $-1$, $0$ and $+1$ in the shares 0.25, 0.5 and 0.25.


# %%
# NBVAL_CHECK_OUTPUT
def ideal_x0(x_t, alpha, sigma, points, shares):
    """x_t (N, 1), one alpha and sigma, points and shares (K,) -> the mean of x_0 given x_t, (N, 1)."""
    ...  # your code here


check(ideal_x0)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Bayes' rule again: $\mathbb E[x_0 | x_t] = \sum_i q_i\, p_i$ with $q_i \propto w_i\, e^{-(x_t - \alpha p_i)^2 /
# 2\sigma^2}$, which is a softmax over the pictures.
#
# ```python
# def ideal_x0(x_t, alpha, sigma, points, shares):
#     logits = shares.log() - (x_t - alpha * points).square() / (2 * sigma**2)  # (N, 1) and (K,) -> (N, K)
#     return (logits.softmax(dim=1) * points).sum(dim=1, keepdim=True)
# ```
#
# Put the whole training set in the place of the points, and you have the ideal denoiser of MNIST. It can only
# return training pictures. That the network does *not* reach it is why it draws new ones.
#
# </details>
#
# **4. Train on noise.** Set `DiffusionConfig(target="noise")` in section 10 and train again. Why are the two losses
# not comparable? Which samples look better after as many steps?
#
# <details><summary>Solution</summary>
#
# By section 8 the losses weigh the same error by $\mathrm{SNR}$ and by $\mathrm{SNR}+1$, and each has its own floor.
# To compare, turn both into an error of $x_0$ by `targets.prediction` and bin it by time, as in section 12. At large
# $t$ the noise target is the worse one: nearly all of $x_t$ is noise, so repeating the input already gives a small
# loss.
#
# </details>
#
# ## Summary
#
# - Noise is added by (1), at any time at once by (2), and taken away by (3), which needs $x_0$.
# - A network stands in for $x_0$. It may predict $x_0$, $\epsilon$ or $v$: by (4) they are one, up to how errors
#   are weighted.
# - The bound on the likelihood is a weighted squared error (5). Training drops its weights.
# - Sampling is (6), repeated. Clip $\hat x_0$, never $x_t$.
# - The network only ever learns an average. The randomness of the walk turns averages into samples.
#
# ## References
#
# - Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli (2015), *Deep Unsupervised Learning using Nonequilibrium
#   Thermodynamics*. ICML.
# - Ho, Jain & Abbeel (2020), *Denoising Diffusion Probabilistic Models*. NeurIPS. arXiv:2006.11239.
# - Nichol & Dhariwal (2021), *Improved Denoising Diffusion Probabilistic Models*. ICML. arXiv:2102.09672.
# - Kingma, Salimans, Poole & Ho (2021), *Variational Diffusion Models*. NeurIPS. arXiv:2107.00630.
# - Salimans & Ho (2022), *Progressive Distillation for Fast Sampling of Diffusion Models*. ICLR. arXiv:2202.00512.
