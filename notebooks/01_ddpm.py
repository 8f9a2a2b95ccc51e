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
# *Runs in one to two minutes on two CPU cores, without a network connection.*
#
# How do you build a machine that draws digits nobody has drawn before? Turning a digit into noise is easy: add a
# little noise, again and again, until nothing is left. A *denoising diffusion probabilistic model* learns to undo
# these steps one at a time. Run backwards from pure noise, it ends at a new digit.
#
# You need PyTorch, Gaussians and Bayes' rule. In this chapter you will
#
# - see the whole method on a line, where every quantity is known exactly;
# - derive the forward process, its closed form and its posterior, and check each against the library;
# - see how predicting the picture, the noise, $v$ or the score is one and the same thing;
# - open the network, and write it out in forty lines;
# - turn a bound on the likelihood into a mean squared error, and measure it in bits per dimension;
# - train, sample, break the sampler on purpose, and ask whether its digits are new or memorised.
#
# The source is Ho, Jain & Abbeel, *Denoising Diffusion Probabilistic Models* (2020), with the improvements of
# Nichol & Dhariwal (2021) and Salimans & Ho (2022).
#
# *Note.* The pictures are MNIST's. If MNIST is not on your machine and cannot be downloaded, the chapter takes the
# 1,797 small digits that come with scikit-learn. All cells run, but the shipped weights have learned MNIST: what is
# measured on test pictures (sections 11, 14 and 16) is then worse than the text says.

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
from diffusion_book.viz import diagrams, grids, paths, plots, scrubber, strips, style, toy
from diffusion_book.viz.figures import show

DATASET = "auto"  # MNIST; or "fashion-mnist", "kmnist", "digits": see section 1
MODEL = "ddpm"  # the weights that come with the book; or the folder of a training of your own

style.use_style()
pipe = diffusion_book.load(MODEL, dataset=weights.set_of(MODEL, DATASET))
samples = pipe.sample(24, sampler="ddpm", steps=100, seed=1)
show(
    grids.show_grid(samples, columns=12),
    "1.1",
    "Samples of this chapter's model, not a selection. Each began as an array of independent Gaussian noise.",
)

# %% [markdown]
# No one has written the digits of figure 1.1 (those of figure 1.2 are real). By the end of the chapter you will know
# every line of what just happened.
#
# ## 1. The data

# %%
train, test = data.load(DATASET), data.load(DATASET, "test")
print(f"{train.name}: {len(train):,} pictures to learn from, {len(test):,} to check")
show(grids.show_grid(train.images[:24], columns=12), "1.2", "Training pictures, 28 × 28 pixels, written by people.")

# %% [markdown]
# <details><summary>Try another data set</summary>
#
# Set `DATASET` to `"fashion-mnist"` (clothes) or `"kmnist"` (Japanese letters) and run the chapter again: the live
# training learns from it. If the book has weights for that set, the chapter loads them; otherwise its samples are still
# digits. A model of other pictures is one command in a shell, and an hour or so of training:
#
# ```bash
# diffusion-book train ddpm --dataset fashion-mnist --max-minutes 60
# ```
#
# The last line it prints is its folder. Set `MODEL` to that, with `../` before it, for chapters run in the folder
# `notebooks`, and every sample of this chapter is your model's. In your own code, `diffusion_book.load(FOLDER)` is the
# pipeline; in a shell, `diffusion-book generate ddpm --checkpoint FOLDER` draws.
#
# </details>
#
# A network wants floats, and sizes that can be halved a few times. So `batch` scales bytes to $[-1, 1]$ and puts a
# black border of two pixels around the picture.

# %% tags=["nbval-check-output"]
x0, labels = train.batch(torch.arange(16))
print(tuple(x0.shape), f"from {x0.min():.0f} to {x0.max():.0f}")

# %% [markdown]
# ## 2. The whole story on a line
#
# Let us first shrink the problem until nothing is hidden. A "picture" is a single number, and there are only two
# pictures in the world, $x_0 = -1$ and $x_0 = +1$, equally likely. We mix a picture with noise:
#
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim \mathcal N(0, 1).$$
#
# Time $t$ runs from 0, where $\alpha = 1$ and $\sigma = 0$, to 1, where it is (nearly) the other way round. A function
# $t \mapsto (\alpha_t, \sigma_t)$ is called a *noise schedule*. For now, let `cosine` be some such function.

# %%
generator = torch.Generator().manual_seed(0)
points = torch.randint(0, 2, (20_000, 1), generator=generator).double() * 2 - 1
eps = torch.randn(points.shape, generator=generator, dtype=torch.float64)
rows = {}
for t in torch.tensor([0.05, 0.2, 0.35, 0.6, 1.0], dtype=torch.float64):
    rows[f"t = {t:.2f}"] = add_noise(cosine, points, eps, t)
show(plots.plot_line_histograms(rows), "1.3", "The distribution of $x_t$. Two modes merge into one bell curve.")

# %% [markdown]
# At $t = 1$ (bottom of figure 1.3) hardly a trace of the data is left, and *that* distribution we can sample without any
# data.
#
# To go back, ask a modest question: given $x_t$, what was $x_0$ *on average*? Bayes' rule answers it exactly here. The
# odds of $+1$ against $-1$ are a ratio of two Gaussian densities, $r = e^{2\alpha x_t / \sigma^2}$. The mean is the
# probability of $+1$ less that of $-1$, which is $(r - 1) / (r + 1) = \tanh(\tfrac12 \log r)$. So the *posterior mean*
# is
#
# $$\hat x_0(x_t, t) = \mathbb E[x_0 \mid x_t] = \tanh\!\left(\frac{\alpha_t\, x_t}{\sigma_t^2}\right).$$
#
# This is the ideal *denoiser*: of all functions of $x_t$, it has the smallest mean squared error. From $\hat x_0$
# follows a prediction of the noise, $\hat\epsilon = (x_t - \alpha_t \hat x_0)/\sigma_t$. In this book a denoiser
# always returns both.


# %%
def toy_denoiser(x_t, t):
    alpha, sigma = cosine(t)
    x0 = torch.tanh(alpha * x_t / sigma**2)
    return Prediction(x0, (x_t - alpha * x0) / sigma)


line = torch.linspace(-3, 3, 301, dtype=torch.float64)
times = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
curves = {f"t = {t:.2f}": toy_denoiser(line, t).x0 for t in times}
show(
    plots.plot_curves(line, curves, "noisy $x_t$", "posterior mean of $x_0$"),
    "1.4",
    "The ideal denoiser. With little noise it is nearly a step between the two pictures, with much noise it is "
    "nearly flat.",
)

# %% [markdown]
# With little noise the denoiser is certain (figure 1.4). With much noise it answers with something near 0, the mean of
# all pictures. That is its best answer: the mean minimises the squared error, and the mean of many pictures is a blur.
# So a *denoiser* cannot draw a digit in one step. (Chapter 7 trains a different function, which sends each noise to one
# picture of its own; nothing is left to average, and one step is enough.)
#
# Is the formula true? Sample a million pairs, keep those with $x_t$ near 0.3, and average their $x_0$.

# %% tags=["nbval-check-output"]
half = torch.tensor(0.5, dtype=torch.float64)
x = torch.randint(0, 2, (1_000_000,), generator=generator).double() * 2 - 1
eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
near = (add_noise(cosine, x, eps, half) - 0.3).abs() < 0.02
error = x[near].std() / near.sum().sqrt()  # standard error of the mean
exact = toy_denoiser(torch.tensor(0.3), half).x0
print(f"counted {x[near].mean():.2f} ± {error:.2f}, tanh gives {exact:.2f}")

# %% [markdown]
# Now backwards. We start 2,000 points from pure noise and take 1,000 small steps. Each step evaluates the denoiser,
# moves a little towards $\hat x_0$ and adds a little fresh noise. How much of each is the subject of this chapter;
# until then the library's `ddpm` step is a black box.

# %% tags=["nbval-check-output"]
start = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
grid_of_times = samplers.time_grid(1000)
fresh = torch.Generator().manual_seed(1)
walk = samplers.sample(toy_denoiser, start, grid_of_times, samplers.ddpm, schedule=cosine, generator=fresh)
path = torch.stack([state.x for state in walk]).squeeze(-1)  # (1001, 2000)
arrived = ((path[-1].abs() - 1).abs() < 0.01).double().mean()
right = (path[-1] > 0).double().mean()
print(f"{arrived:.0%} of the points end at -1 or +1, {right:.0%} at +1")

# %%
show(
    paths.show_line_paths({"": (grid_of_times[::5], path[::5, :24])}),
    "1.5",
    "Twenty-four of the 2,000 samples, from noise at the left to data at the right. The paths wander while noise dominates, "
    "part around the middle, and settle at one of the two pictures. The colour tells where a path ends.",
)

# %% [markdown]
# No point of figure 1.5 was told where to go; the posterior mean and some fresh noise were enough, and each mode
# received about half of them. With digits two things differ: a picture has 1,024 dimensions instead of one, and nobody
# knows a formula for $\hat x_0$. A network has to learn it.
#
# You can watch one learn. Figure 1.6 trains a network of 5,500 parameters in your browser, on points of the plane:
# press Play. It learns to predict the noise in $x_t$. The arrows show where a step back moves a point, and on the right
# are 400 points that it makes from noise.

# %%
show(
    toy.toy("moons", "noise"),
    "1.6",
    "A denoiser that trains in the page, on points of the plane. Left: the data. Right: points that it makes from noise.",
)

# %% [markdown]
# ## 3. Adding noise to digits

# %%
times = torch.linspace(0, 1, 11)
eps = torch.randn(x0[:4].shape, generator=generator)
noisy = [add_noise(cosine, x0[:4], eps, t) for t in times]
noisy = torch.stack(noisy, dim=1)  # (4, 11, 1, 32, 32)
show(
    strips.show_strip(times.tolist(), noisy),
    "1.7",
    "The same mixing, done to pictures: $x_t$ for growing $t$. Each row keeps its noise.",
)

# %% [markdown]
# Find the last column of figure 1.7 in which you can still read the digit. To its left the network has to clean a
# picture up; to its right it has to invent one.
#
# ## 4. One step of noise

# %%
show(
    diagrams.markov_chain(),
    "1.8",
    "The chain of DDPM. To the right, the forward process $q$ adds noise and has nothing to learn. To the left, the "
    "model $p_θ$ removes it.",
)

# %% [markdown]
# DDPM, like Sohl-Dickstein et al. (2015), defines the forward process step by step (figure 1.8). There are $T = 1000$
# steps, counted by $k$. We write $x_k$ for $x_t$ at $t = k/T$, and so for all letters with an index. Step $k$ shrinks
# the picture a little and adds noise of variance $\beta_k$:
#
# $$q(x_k \mid x_{k-1}) = \mathcal N\!\left(\sqrt{1 - \beta_k}\; x_{k-1},\ \beta_k I\right). \tag{1}$$
#
# Shrinking by $\sqrt{1-\beta_k}$ keeps the variance over all pictures at 1, if it was 1 before. Of the original
# picture's variance, the fraction $\bar\alpha_k = \prod_{i \le k} (1 - \beta_i)$ is left after $k$ steps. The *cosine
# schedule* makes $\bar\alpha_k$ follow a squared cosine:
#
# $$\beta_k = \min\!\left(1 - \frac{f(k)}{f(k-1)},\ 0.999\right), \qquad
# f(k) = \cos^2\!\left(\frac{k/T + 0.008}{1.008}\cdot\frac{\pi}{2}\right).$$
#
# The product telescopes, so that $\bar\alpha_k = f(k)/f(0)$, except at $k = T$. There $f$ is 0; the cap lets a trace of
# the picture through, and $\bar\alpha_T$ is not quite 0. The 0.008 keeps the first betas from being vanishingly small.
# (The paper abbreviates $1-\beta_k$ as $\alpha_k$. In this book $\alpha_t$ is $\sqrt{\bar\alpha_k}$, the factor of the
# picture itself.) Our tensors have a 0th entry, so that their indices are those of the formulas.

# %% tags=["nbval-check-output"]
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
# To train on step 700 we do not want to take 700 steps. We need not: a Gaussian variable, scaled, plus independent
# Gaussian noise, is Gaussian again. Hold $x_0$ fixed. Each step multiplies the mean by $\sqrt{1-\beta_k}$. Let $V$ be
# the variance of the noise alone, so that $V = 0$ before the first step. A step turns $V$ into $(1-\beta_k)V +
# \beta_k$, which multiplies $1 - V$ by $1-\beta_k$. Hence
#
# $$q(x_k \mid x_0) = \mathcal N\!\left(\sqrt{\bar\alpha_k}\; x_0,\ (1 - \bar\alpha_k) I\right). \tag{2}$$
#
# This is the mixing of section 2, with $\alpha_t = \sqrt{\bar\alpha_k}$ and $\sigma_t = \sqrt{1 - \bar\alpha_k}$. Thus
# $\alpha_t^2 + \sigma_t^2 = 1$; such a schedule is called *variance preserving*. Take 400 steps with 20,000 copies of
# one grey pixel, and compare with one jump. Then check the variance at every $k$ against the library.

# %% tags=["nbval-check-output"]
walker = torch.full((20_000,), 0.5)
for i in range(1, 401):
    noise = torch.randn(walker.shape, generator=generator)
    walker = (1 - beta[i]).sqrt() * walker + beta[i].sqrt() * noise
mean, std = 0.5 * alpha_bar[400].sqrt(), (1 - alpha_bar[400]).sqrt()
print(f"400 steps: mean {walker.mean():.2f}, standard deviation {walker.std():.2f}")
print(f"one jump:  mean {mean:.2f}, standard deviation {std:.2f}")

variance = torch.zeros(T + 1, dtype=torch.float64)
for i in range(1, T + 1):
    variance[i] = (1 - beta[i]) * variance[i - 1] + beta[i]
alpha, sigma = cosine(k / T)
assert_close(variance, sigma.square(), rtol=1e-9, atol=1e-12)
assert_close(alpha_bar.sqrt(), alpha, rtol=1e-9, atol=1e-12)

jump = alpha_bar[400].sqrt() * x0[:4] + (1 - alpha_bar[400]).sqrt() * eps
assert_close(add_noise(cosine, x0[:4], eps, k[400] / T), jump.float())
print("equation (2) holds at all", T, "steps")

# %% [markdown]
# The paper itself used a *linear* schedule, betas in equal steps from 0.0001 to 0.02. What the schedules do to a
# picture is best seen in the signal-to-noise ratio, $\mathrm{SNR} = \alpha_t^2 / \sigma_t^2$.

# %%
both = {"cosine": schedules.cosine, "linear": schedules.linear}
show(
    plots.plot_schedule(both),
    "1.9",
    "Two schedules. The linear one (at the right, the lower curve) has destroyed the picture long before it ends.",
)

# %% tags=["nbval-check-output"]
for name, schedule in both.items():
    snr = schedules.signal_to_noise(schedule, k[1:] / T)
    print(f"{name:>6}: SNR above 1 in {(snr > 1).sum()} steps, below 0.01 in {(snr < 0.01).sum()}")

# %% [markdown]
# The linear schedule (figure 1.9) spends a third of its steps where the SNR is below a hundredth. There is almost no
# picture left in such a state, so a network learns little from it.
#
# ## 6. One step back
#
# Now the heart of the matter: which $x_{k-1}$ did $x_k$ come from? Suppose for a moment that the clean $x_0$ were
# known. Then there are two sources of information about $x_{k-1}$ (figure 1.10), and Bayes' rule multiplies them:
#
# $$q(x_{k-1} \mid x_k, x_0) \propto q(x_k \mid x_{k-1})\; q(x_{k-1} \mid x_0).$$
#
# (The chain is Markov: once $x_{k-1}$ is known, $x_0$ says nothing more about $x_k$.)

# %%
show(
    diagrams.posterior_product(),
    "1.10",
    "One step back with a known picture. The noisy $x_k$ and the clean $x_0$ each say where $x_{k-1}$ may be. The "
    "product of the two is a narrower Gaussian between them.",
)

# %% [markdown]
# Both factors are Gaussians in $x_{k-1}$. By (2), the second has mean $\sqrt{\bar\alpha_{k-1}}\,x_0$ and variance $1 -
# \bar\alpha_{k-1}$. The first is (1), read as a function of $x_{k-1}$: up to a factor, a Gaussian of mean $x_k /
# \sqrt{1 - \beta_k}$ and variance $\beta_k / (1 - \beta_k)$. When Gaussian densities are multiplied, their precisions
# (the inverse variances) add up. With $\bar\alpha_k = (1-\beta_k)\,\bar\alpha_{k-1}$,
#
# $$\frac{1}{\tilde\beta_k} = \frac{1-\beta_k}{\beta_k} + \frac{1}{1-\bar\alpha_{k-1}}
# = \frac{1 - \bar\alpha_k}{\beta_k\,(1 - \bar\alpha_{k-1})},$$
#
# so that $\tilde\beta_k = \beta_k\,(1-\bar\alpha_{k-1})/(1-\bar\alpha_k)$. The mean is the average of the two means,
# weighted by precision:
#
# $$\tilde\mu_k(x_k, x_0) = \frac{\sqrt{1-\beta_k}\,(1-\bar\alpha_{k-1})}{1-\bar\alpha_k}\, x_k
# + \frac{\sqrt{\bar\alpha_{k-1}}\,\beta_k}{1-\bar\alpha_k}\, x_0. \tag{3}$$
#
# Together, $q(x_{k-1} \mid x_k, x_0) = \mathcal N(\tilde\mu_k(x_k, x_0),\ \tilde\beta_k I)$.

# %% tags=["nbval-check-output"]
now, before = slice(1, None), slice(None, -1)  # entries k and k - 1, for k = 1 ... T
from_x_k = (1 - beta[now]).sqrt() * (1 - alpha_bar[before]) / (1 - alpha_bar[now])
from_x_0 = alpha_bar[before].sqrt() * beta[now] / (1 - alpha_bar[now])
beta_tilde = (1 - alpha_bar[before]) / (1 - alpha_bar[now]) * beta[now]

library = schedules.posterior(cosine, k[now] / T, k[before] / T)
for mine, theirs in zip((from_x_k, from_x_0, beta_tilde), library, strict=True):
    assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
from_x_k, from_x_0, beta_tilde = (F.pad(value, (1, 0)) for value in (from_x_k, from_x_0, beta_tilde))
for i in (1000, 500, 1):
    mean = f"{from_x_k[i]:.4f} x_k + {from_x_0[i]:.4f} x_0"
    print(f"back from k = {i:4}: mean {mean}, variance {beta_tilde[i]:.4f}")

# %% [markdown]
# At the last step back, from $k = 1$, the variance is 0 and $x_k$ no longer counts: the answer is $x_0$ itself.
#
# The two times need not be neighbours. As in section 5, but from $x_s$ instead of $x_0$, $q(x_t \mid x_s)$ is for any
# $s < t$ the Gaussian of mean $(\alpha_t / \alpha_s)\, x_s$ and variance $1 - \alpha_t^2 / \alpha_s^2$. This variance
# takes the place of $\beta_k$ in (3); that is how we could sample with 100 steps above. We check a long step, from $t =
# 0.6$ to $s = 0.3$, by experiment: go forward from $x_0 = 0.5$ many times, then fit $x_s$ by a straight line in $x_t$
# (for two jointly Gaussian variables the mean of one is linear in the other).

# %% tags=["nbval-check-output"]
s, t = torch.tensor([0.3, 0.6], dtype=torch.float64)
draws = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
x_s = add_noise(cosine, torch.full_like(draws[0], 0.5), draws[0], s)
factor, variance = schedules.transition(cosine, t, s)
x_t = factor * x_s + variance.sqrt() * draws[1]
covariance = torch.cov(torch.stack([x_t, x_s]))
slope = covariance[0, 1] / covariance[0, 0]
offset, left = x_s.mean() - slope * x_t.mean(), (x_s - slope * x_t).var()
print(f"fitted:       {slope:.2f} x_t + {offset:.2f}, variance left {left:.2f}")
a, b, left = schedules.posterior(cosine, t, s)
print(f"equation (3): {a:.2f} x_t + {b * 0.5:.2f}, variance left {left:.2f}")

# %% [markdown]
# ## 7. What should the network predict?
#
# When we sample, we do not know $x_0$. A network has to predict it from $x_k$. It may predict $x_0$ directly. It may
# predict $\epsilon$, from which follows $x_0 = (x_t - \sigma_t\epsilon)/\alpha_t$. Or it may predict a mixture of both,
# such as
#
# $$v = \alpha_t\,\epsilon - \sigma_t\,x_0.$$
#
# Every such target has the form $y = a\,x_0 + b\,\epsilon$. Together with $x_t = \alpha_t x_0 + \sigma_t
# \epsilon$ that makes two equations with two unknowns. With $d = \alpha_t b - \sigma_t a$ their solution is
#
# $$x_0 = \frac{b\,x_t - \sigma_t\,y}{d}, \qquad \epsilon = \frac{\alpha_t\,y - a\,x_t}{d}. \tag{4}$$
#
# So one function serves all targets. (In the library a target is a function that returns its two factors: `a, b =
# target(alpha, sigma)`.)


# %% tags=["nbval-check-output"]
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
# If the network is right, all targets agree. It is never quite right. By (4), an error of 1 in $y$ becomes an error of
# $\sigma_t/|d|$ in $x_0$ and of $\alpha_t/|d|$ in $\epsilon$. How large are these?

# %% tags=["nbval-check-output"]
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
# If a network predicts the noise, its errors become very large in $x_0$ at the start of sampling, for in almost pure
# noise the picture is a tiny remainder. If it predicts the picture, they become very large in $\epsilon$ at the end of
# sampling. For $v$ we have $d = \alpha_t^2 +
# \sigma_t^2 = 1$, so no error is ever enlarged. Our network predicts $v$.
#
# There is a second reason to like $v$. Write $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$: as $\varphi$ grows,
# $x_t$ moves on an arc from $x_0$ to $\epsilon$, and $v = dx_t/d\varphi$ is its *velocity*. Chapter 7 replaces the arc
# by a straight line, whose velocity is $\epsilon - x_0$, and calls the result a flow.
#
# ## 8. The same thing once more: the score
#
# Papers often speak of neither picture nor noise but of the *score*, $\nabla_{x_t} \log p_t(x_t)$. Here $p_t$ is the
# density of the noisy pictures, and its score points to where they are denser. It sounds like something else to learn.
# Yet differentiate $p_t(x_t) = \mathbb E_{x_0}[\mathcal N(x_t;\ \alpha_t x_0,\ \sigma_t^2 I)]$ under the expectation:
#
# $$\nabla \log p_t = \frac{\nabla p_t}{p_t} = \mathbb E_{x_0}\!\left[
# \frac{\mathcal N(x_t;\ \alpha_t x_0,\ \sigma_t^2 I)}{p_t(x_t)} \cdot \frac{\alpha_t x_0 - x_t}{\sigma_t^2}\right].$$
#
# By Bayes' rule, the first fraction turns the mean over all $x_0$ into the mean over $x_0$ given $x_t$. So the score is
# $(\alpha_t\,\mathbb E[x_0 \mid x_t] - x_t)/\sigma_t^2$, or, solved for the posterior mean,
#
# $$\hat x_0 = \mathbb E[x_0 \mid x_t] = \frac{x_t + \sigma_t^2\, \nabla_{x_t} \log p_t(x_t)}{\alpha_t},
# \qquad \hat\epsilon = -\sigma_t\, \nabla_{x_t} \log p_t(x_t). \tag{5}$$
#
# This is *Tweedie's formula*. A denoiser gives the score, and the score gives a denoiser; learning the score by
# denoising is *denoising score matching* (Vincent 2011). On the toy, $p_t$ is a mixture of two Gaussians, and autograd
# finds its score (figure 1.11) without any denoiser.


# %%
def log_density(x, t):
    """log p_t(x) of the toy: two Gaussians, at -alpha and +alpha."""
    alpha, sigma = cosine(t)
    both = torch.stack([-(x - alpha).square(), -(x + alpha).square()]) / (2 * sigma**2)
    return both.logsumexp(dim=0) - (2 * math.sqrt(2 * math.pi) * sigma).log()


x, curves = line.clone().requires_grad_(), {}
for t in torch.tensor([0.3, 0.4, 0.6, 0.8], dtype=torch.float64):
    (score,) = torch.autograd.grad(log_density(x, t).sum(), x)
    (alpha, sigma), denoised = cosine(t), toy_denoiser(line, t)
    assert_close((line + sigma**2 * score) / alpha, denoised.x0)
    assert_close(-sigma * score, denoised.eps)
    curves[f"t = {t:.2f}"] = score
show(
    plots.plot_curves(line, curves, "$x_t$", "score"),
    "1.11",
    "The score of the toy. Where it is positive, points are denser to the right. With little noise ($t = 0.3$) it "
    "changes its sign three times, for each of the two modes attracts; with much noise only one bell curve is left.",
)

# %% [markdown]
# <details><summary>What else the score is good for</summary>
#
# In the limit of ever smaller steps, DDPM's chain becomes a *stochastic differential equation*: the score pushes a
# point, while a little noise is added at every instant (Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole 2021). The
# score alone can sample too. *Langevin dynamics* repeats $x \leftarrow x + \delta\,\nabla \log p_t(x) +
# \sqrt{2\delta}\,z$, with a small step $\delta$ and fresh standard normal noise $z$, and ends in samples of $p_t$. Song &
# Ermon (2019) drew pictures so, lowering the noise level by level.
#
# </details>
#
# ## 9. The network, opened
#
# The network maps a noisy picture and a time to $v$, which has the shape of the picture. Every pixel of the answer
# depends on the whole picture (is this stroke part of a 3 or of an 8?) and on exactly where the edges are. A *U-Net*
# (Ronneberger, Fischer & Brox 2015) serves both needs. Figure 1.12 shows ours, figures 1.13 and 1.14 what its blocks
# are made of. *GroupNorm* is batch normalisation over groups of channels of a single picture; *SiLU*, $x \cdot
# \mathrm{sigmoid}(x)$, is a smooth ReLU; an *MLP* is a few linear layers with an activation between. `pixel_unshuffle`
# folds each patch of 2 × 2 pixels into four channels, so that the network works at 16 × 16; `pixel_shuffle` unfolds
# them at the end. The last layer of each block starts with zero weights, so that an untrained block passes on its
# shortcut.

# %%
config = pipe.recipe.network
channels, size = config.base_channels, config.image_size // config.patch_size
deepest, smallest = channels * config.channel_multipliers[-1], size // 2 ** (len(config.channel_multipliers) - 1)
show(
    diagrams.unet(config),
    "1.12",
    "Our U-Net, sizes as channels × height × width. The way down trades positions for channels, until one "
    "convolution sees nearly the whole picture. The way up restores the size, and the skip connections (dashed) bring "
    "back the exact edges. The time reaches every block.",
)

# %%
show(
    diagrams.residual_block(2 * channels, channels, size, 4 * channels, 2 * channels),
    "1.13",
    "A residual block, the last one. What is learned is added to a shortcut. The time acts by a scale and a shift of "
    "each channel, so that the same convolutions work for all noise levels.",
)

# %%
show(
    diagrams.attention_block(deepest, smallest),
    "1.14",
    "Self-attention, on the smallest level. Distant strokes can agree. Chapter 6 takes it apart.",
)

# %% [markdown]
# *Self-attention* lets distant positions exchange information. Three linear layers make of each position's features a
# *query* (what it looks for), a *key* (what it offers) and a *value* (what it passes on). The inner products of a query
# with all keys, through a softmax, are weights, and the position receives the mean of all values with these weights.
# *Heads* do this several times side by side, each on its own channels.
#
# Here is all of the network, with PyTorch's own layers and nothing else. `net` only holds the layers and their weights.
# The time arrives as sines and cosines of many frequencies, because one small number would change too little from $t =
# 0.50$ to $0.51$ for a linear layer to notice.


# %% tags=["nbval-check-output"]
def time_features(net, t):
    frequencies = torch.exp(-math.log(10_000) * torch.arange(channels) / channels)
    angles = 1000 * t[:, None] * frequencies  # (B, 1) * (channels,) -> (B, channels)
    return F.silu(net.time(torch.cat([angles.cos(), angles.sin()], dim=1)))  # (B, 4 channels)


def residual(block, x, time):
    h = block.norm2(block.conv1(F.silu(block.norm1(x))))
    scale, shift = block.embedding(time)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
    return block.shortcut(x) + block.conv2(F.silu(h * (1 + scale) + shift))


def self_attention(layer, x):
    pixels = layer.norm(x).flatten(2).mT  # (B, C, H, W) -> (B, HW, C)
    projected = layer.query(pixels), *layer.key_value(pixels).chunk(2, dim=-1)
    q, k, v = (each.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in projected)  # (B, heads, HW, D)
    attention = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, heads, HW, HW)
    read = layer.out((attention @ v).transpose(1, 2).flatten(2))  # (B, HW, C)
    return x + read.mT.reshape(x.shape)


def block(layers, x, time):
    h = residual(layers.residual, x, time)
    return h if layers.self_attention is None else self_attention(layers.self_attention, h)


def unet(net, x, t):
    time = time_features(net, t)
    h = net.conv_in(F.pixel_unshuffle(x, config.patch_size))  # (B, 1, 32, 32) -> (B, channels, 16, 16)
    skips = [h]
    for level, blocks in enumerate(net.down):
        if level > 0:
            h = net.shrink[level - 1](h)  # a convolution with stride 2
            skips.append(h)
        for layers in blocks:
            h = block(layers, h, time)
            skips.append(h)
    for layers in net.middle:
        h = block(layers, h, time)
    for level, blocks in enumerate(net.up):
        if level > 0:
            h = net.grow[level - 1].conv(F.interpolate(h, scale_factor=2))
        for layers in blocks:
            h = block(layers, torch.cat([h, skips.pop()], dim=1), time)
    return F.pixel_shuffle(net.conv_out(F.silu(net.norm_out(h))), config.patch_size)  # (B, 1, 32, 32)


network = copy.deepcopy(pipe.network).cpu()
with torch.no_grad():
    t = torch.rand(16, generator=generator)
    assert_close(unet(network, x0, t), network(x0, t), rtol=1e-4, atol=1e-4)
print("forty lines equal the library's network")

# %% [markdown]
# Many large models put a transformer over patches in the place of the U-Net: the DiT of Peebles & Xie (2022). Input,
# output and the scale and shift by time are the same, and nothing else in this chapter would change.
#
# ## 10. The loss
#
# What should the network be trained for? A generative model should give the data a high likelihood. Let sampling start
# from noise $p(x_T) = \mathcal N(0, I)$, and let $p_\theta(x_{k-1}|x_k)$ be the model's step back. The likelihood
# $p_\theta(x_0)$ is the density with which this chain ends at $x_0$: an integral over all paths to it, which cannot be
# computed. But it has a lower bound, the *evidence lower bound* (ELBO). The negative ELBO is a sum with one term for
# each step, most of them Kullback-Leibler divergences $D_\mathrm{KL}(q\,\|\,p) = \mathbb E_q[\log q - \log p]$:
#
# $$\begin{aligned}
# -\log p_\theta(x_0) \le\ & \underbrace{D_\mathrm{KL}(q(x_T|x_0)\,\|\,p(x_T))}_{\text{prior}}
# + \underbrace{\mathbb E\left[-\log p_\theta(x_0|x_1)\right]}_{\text{decoder}} \\
# & + \sum_{k=2}^{T} \mathbb E\, \underbrace{D_\mathrm{KL}(q(x_{k-1}|x_k,x_0)\,\|\,p_\theta(x_{k-1}|x_k))}_{\text{step }k}.
# \end{aligned} \tag{6}$$
#
# <details><summary>Derivation, line by line</summary>
#
# The likelihood is an integral over all paths, $p_\theta(x_0) = \int p_\theta(x_{0:T})\, dx_{1:T}$. Multiply and divide
# by $q(x_{1:T}|x_0)$, and it is an expectation over the forward process. The logarithm of a mean is at least the mean
# of the logarithm (Jensen), so
#
# $$-\log p_\theta(x_0) = -\log \mathbb E_q\!\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T}|x_0)}\right]
# \le \mathbb E_q\!\left[-\log \frac{p_\theta(x_{0:T})}{q(x_{1:T}|x_0)}\right].$$
#
# Both are chains. Write them out, with the first step apart:
#
# $$= \mathbb E_q\!\left[-\log p(x_T) - \log \frac{p_\theta(x_0|x_1)}{q(x_1|x_0)}
# - \sum_{k=2}^T \log \frac{p_\theta(x_{k-1}|x_k)}{q(x_k|x_{k-1})}\right].$$
#
# In the sum, $q$ and $p_\theta$ point in opposite directions. Turn $q$ around. The chain is Markov, so knowing $x_0$ as
# well changes nothing, and Bayes' rule gives
#
# $$q(x_k|x_{k-1}) = q(x_k|x_{k-1}, x_0) = q(x_{k-1}|x_k,x_0)\, \frac{q(x_k|x_0)}{q(x_{k-1}|x_0)}.$$
#
# The logarithms of the last fractions telescope to $\log q(x_T|x_0) - \log q(x_1|x_0)$. The second of these cancels the
# denominator of the first step. What remains is
#
# $$= \mathbb E_q\!\left[\log \frac{q(x_T|x_0)}{p(x_T)} - \log p_\theta(x_0|x_1)
# + \sum_{k=2}^T \log \frac{q(x_{k-1}|x_k,x_0)}{p_\theta(x_{k-1}|x_k)}\right].$$
#
# Take the expectation over $x_{k-1}$, given $x_k$ and $x_0$, first. Each logarithm becomes a KL divergence, and this is
# (6).
#
# </details>
#
# The expectations are over the forward process. A divergence is 0 if both distributions agree, and positive otherwise.
#
# The prior term compares $x_T$ with pure noise and has nothing to learn. In step $k$, the target is the Gaussian of
# (3). So we let the model be that same Gaussian, with a prediction $\hat x_0$ in the place of $x_0$. The true step
# back, $q(x_{k-1}|x_k)$, is nearly such a Gaussian if the step is small, and that is why DDPM takes many.
#
# <details><summary>Why may the step back be a Gaussian?</summary>
#
# The true step back, $q(x_{k-1}|x_k)$, is a mixture of the Gaussians above, one for each $x_0$ that $x_k$ may have come
# from. Since $\tilde\mu_k$ is linear in $x_0$, the mean of the true step is exactly $\tilde\mu_k(x_k, \hat x_0)$, with
# the posterior mean $\hat x_0$. Its variance is $\tilde\beta_k$ plus the variance of $x_0$ given $x_k$, times the squared
# factor of $x_0$ in (3). That second part is of order $\beta_k^2$, so for small steps it is negligible, and the true step
# becomes the Gaussian that we take: in a small step, the mean of all possible pictures is all that one needs to know.
#
# </details>
#
# The divergence of two Gaussians of equal variance is the squared distance of their means over twice that variance
# (write out the two exponents; Kingma et al. 2021 wrote it in SNRs):
#
# $$D_k = \frac{\|\tilde\mu_k(x_k, x_0) - \tilde\mu_k(x_k, \hat x_0)\|^2}{2\tilde\beta_k}
# = \tfrac12\left(\mathrm{SNR}_{k-1} - \mathrm{SNR}_k\right) \|x_0 - \hat x_0\|^2. \tag{7}$$
#
# <details><summary>The weight, line by line</summary>
#
# The coefficient of $x_0$ in (3), squared and divided by $2\tilde\beta_k$, is $\tfrac12\,\bar\alpha_{k-1}\beta_k /
# [(1-\bar\alpha_{k-1})(1-\bar\alpha_k)]$. Since $\bar\alpha_{k-1}\beta_k = \bar\alpha_{k-1} - \bar\alpha_k$, this is
# half the difference of the SNRs.
#
# </details>
#
# The bound on the likelihood has become a squared error, with a weight for each step. The other targets are weighted
# errors too: by (4), and since $1/\sigma_t^2 = \mathrm{SNR} + 1$,
#
# $$\|\epsilon - \hat\epsilon\|^2 = \mathrm{SNR} \cdot \|x_0 - \hat x_0\|^2, \qquad
# \|v - \hat v\|^2 = (\mathrm{SNR} + 1) \cdot \|x_0 - \hat x_0\|^2.$$

# %%
snr = alpha_bar / (1 - alpha_bar)  # snr[0] is infinite
of_bound = from_x_0**2 / (2 * beta_tilde)  # by (3); at k = 1 infinite: that step is the decoder
assert_close(of_bound[2:], (snr[1:-1] - snr[2:]) / 2, rtol=1e-6, atol=1e-12)

curves = {"T times the bound": T * of_bound, "v": snr + 1, "min-SNR, 5": snr.clamp(max=5), "noise": snr}
curves = {name: weight[2:] for name, weight in curves.items()}
show(
    plots.plot_curves(k[2:] / T, curves, "time t", "weight", yscale="log", ylim=(1e-3, 1e8)),
    "1.15",
    "How much an error of $x_0$ counts in each loss, on a logarithmic axis. The curve of the noise covers that of $v$ at "
    "the left and that of min-SNR at the right. (The losses are means over the $T$ steps, the bound is a sum, hence "
    "the factor.)",
)

# %% [markdown]
# (*Min-SNR* takes the weight of the noise, but at most 5; Hang et al. 2023.) Taken literally, the bound spends nearly
# all its care on the last traces of noise, which no eye can see (figure 1.15). DDPM's decisive finding is to **ignore
# its weights**: let the network predict the noise, and count $\|\epsilon - \hat\epsilon\|^2$ the same at all steps.
#
# Why is that allowed? Whatever its weight, each term is smallest when the prediction is the posterior mean. Weights
# only say where a network of limited size should be most careful, so the best weights are a matter of experiment. Noise
# prediction gives almost no weight to $x_0$ at large $t$; with $v$ the weight of $x_0$ is never below 1. Choosing
# middle values of $t$ more often is a weight as well: the *logit-normal* times of Esser et al. (2024), which chapter 7
# uses.
#
# The loss is short: choose a time, add noise, predict, compare. (The times of a batch are spread evenly, one in each of
# $B$ equal slices of $(0, 1]$. The expectation is the same as for independent times, with less variance.)


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
options = {"schedule": cosine, "target": targets.v, "timesteps": T}
for name, net in {"untrained": UNet(config), "shipped": network}.items():
    with torch.no_grad():
        mine = my_loss(net, x0, torch.Generator().manual_seed(3))
        theirs = objective.diffusion_loss(net, x0, generator=torch.Generator().manual_seed(3), **options)
    assert_close(mine, theirs)
    print(f"{name:>9}: loss {mine.mean():.3f}")

# %% [markdown]
# ## 11. How many bits is a digit?
#
# The bound is not only a way to a loss. It is also a code length: an ideal code needs $-\log_2 p(x)$ bits for $x$, and
# (6) is an upper bound of this (with natural logarithms, in *nats*). Let us measure it on test pictures. Ho et al.'s
# *discretised decoder* turns $p_\theta(x_0|x_1)$ into probabilities of the 256 grey levels: a Gaussian around $\hat
# x_0$, integrated over each level's interval. Its standard deviation is a free parameter, which we fit on training
# pictures. We do not compute the whole sum over $k$: for each picture we choose one random step. Steps of small $k$
# contribute more, so we choose them more often (evenly in $\log \sigma_k$) and divide by their probability.


# %%
def denoise(x, t):
    with torch.no_grad():
        return pipe.denoiser(x.to(pipe.device), t.to(pipe.device)).x0.cpu()


def decoder(x0, generator, std):
    """-log p(x0 | x1) in nats per picture, (B,): grey levels are 2 / 255 apart, the outermost reach to infinity."""
    x_1 = add_noise(cosine, x0, torch.randn(x0.shape, generator=generator), k[1] / T)
    away = (x0 - denoise(x_1, k[1] / T)).double()
    upper = torch.where(x0 > 1 - 1 / 255, torch.inf, (away + 1 / 255) / std)
    lower = torch.where(x0 < -1 + 1 / 255, -torch.inf, (away - 1 / 255) / std)
    probability = torch.special.ndtr(upper) - torch.special.ndtr(lower)  # ndtr: the normal distribution function
    return -probability.clamp(min=1e-12).log().sum(dim=(1, 2, 3))  # 40 bits at most a pixel, which hardly one reaches


sigma = (1 - alpha_bar).sqrt()
probability = F.pad((sigma[2:] / sigma[1:-1]).log(), (2, 0))  # (T + 1,), of choosing step k = 2 ... T
probability /= probability.sum()


def one_step(denoise, x0, generator):
    """An unbiased estimate of the sum in (6), in nats per picture, and the step it looked at: twice (B,)."""
    step = torch.multinomial(probability, len(x0), replacement=True, generator=generator)
    x_k = add_noise(cosine, x0, torch.randn(x0.shape, generator=generator), step / T)
    error = (denoise(x_k, step / T) - x0).square().sum(dim=(1, 2, 3))
    return (snr[step - 1] - snr[step]) / 2 * error / probability[step], step


x_test, _ = test.batch(torch.arange(min(1000, len(test))))
stds = [0.002, 0.003, 0.004, 0.005, 0.006]
std = min(stds, key=lambda std: decoder(x0, torch.Generator().manual_seed(0), std).mean())
variance = 1 - alpha_bar[T]
terms = {  # the prior: the divergence of N(m, v) from N(0, 1) is (m^2 + v - 1 - log v) / 2
    "prior": 0.5 * (alpha_bar[T] * x_test**2 + variance - 1 - variance.log()).sum(dim=(1, 2, 3)),
    "decoder": decoder(x_test[:200], generator, std),
}
terms["steps"], step = one_step(denoise, x_test, generator)
to_bits = 1 / (math.log(2) * 28 * 28)  # nats per picture -> bits per dimension
for name, nats in terms.items():
    print(f"{name:>7}: {nats.mean() * to_bits:.3f} ± {nats.std() / len(nats) ** 0.5 * to_bits:.3f}")
total = sum(nats.mean() for nats in terms.values()) * to_bits
print(f"  total: {total:.2f} bits per dimension; the file has 8")

# %%
edges = [1, 3, 10, 30, 100, 300, 1001]
shown = [terms["decoder"].mean() * to_bits]
for low, high in itertools.pairwise(edges):
    inside = (step >= low) & (step < high)
    shown.append((terms["steps"] * inside).mean() * to_bits)
grey = 127.5 * sigma[30]
print(f"{sum(shown[:4]) / sum(shown):.0%} of the bits where the noise is weaker than {grey:.0f} grey levels of 255")
figure = plots.plot_bins([0.3, *edges], {"bits": shown}, "step k (leftmost: the decoder)", "bits per dimension")
figure.axes[0].set(xscale="log", xticks=edges, xticklabels=["1", "3", "10", "30", "100", "300", "1,000"])
figure.axes[0].minorticks_off()
show(
    figure,
    "1.16",
    "Where the bits go, from the weakest noise to the strongest. The many steps at which a digit takes shape, at the "
    "right, cost few bits.",
)

# %% [markdown]
# (We count the bits of all 1,024 pixels, the border included, and divide by 784 only. So this is still an upper bound
# for the picture itself.) Most bits pay for shades of grey that hardly an eye can tell apart (figure 1.16), as Ho et
# al. found for photographs. A high likelihood and good samples are different goals. The loss without weights serves the
# second: it spends the network on the steps that decide what is drawn.
#
# ## 12. Sampling
#
# Start from noise. At each step evaluate the network, put its $\hat x_0$ into (3), and sample. The paper writes the
# same with $\hat\epsilon$. Replace $x_0$ in (3) by $(x_k - \sqrt{1-\bar\alpha_k}\,\hat\epsilon)/\sqrt{\bar\alpha_k}$,
# collect terms, and there is its algorithm 2, with one of its two variances:
#
# $$x_{k-1} = \frac{1}{\sqrt{1-\beta_k}}\left(x_k - \frac{\beta_k}{\sqrt{1-\bar\alpha_k}}\,\hat\epsilon\right)
# + \sqrt{\tilde\beta_k}\; z, \qquad z \sim \mathcal N(0, I). \tag{8}$$


# %% tags=["nbval-check-output"]
def ddpm_step(x_k, eps, k, z):
    mean = (x_k - beta[k] / (1 - alpha_bar[k]).sqrt() * eps) / (1 - beta[k]).sqrt()
    return mean + beta_tilde[k].sqrt() * z


for i in (1000, 999, 500, 2, 1):
    t, s = k[i] / T, k[i - 1] / T
    x_t = add_noise(cosine, picture, noise, t)
    z = torch.randn(x_t.shape, generator=generator, dtype=torch.float64)
    theirs = samplers.ddpm(Prediction(picture, noise), x_t, t, s, schedule=cosine, noise=z)
    assert_close(ddpm_step(x_t, noise, i, z), theirs, rtol=1e-6, atol=1e-6)
print("equation (8) is samplers.ddpm")

# %% [markdown]
# The loop around it has five lines. We open the black box of section 2, with the same start and the same random
# numbers.

# %% tags=["nbval-check-output"]
x, same = start, torch.Generator().manual_seed(1)
for i in range(T, 0, -1):
    eps = toy_denoiser(x, k[i] / T).eps
    z = torch.randn(x.shape, generator=same).double() if i > 1 else 0.0  # none in the last
    x = ddpm_step(x, eps, i, z)
apart = (x[:, 0] - path[-1]).abs() > 1e-4
print(f"farther than 0.0001 from the library's samples: {apart.sum()} of {len(x)}")

# %% [markdown]
# That is all of DDPM: equation (2) to train, equation (8) to sample, and a network in between.
#
# ## 13. A live training
#
# The library's `Trainer` is a Python generator: it trains one step, reports, and hands control back. We train a new
# network, built like the shipped one, for 250 steps of 16 pictures. `warmup_steps` lets the learning rate rise from
# zero, because Adam's averages know little at first. Samples come from an exponential moving average of the weights
# (EMA), which is steadier than the weights themselves.

# %%
diffusion = DiffusionConfig()
settings = TrainingConfig(batch_size=16, lr=3e-3, warmup_steps=20, ema_decay=0.98)
torch.manual_seed(0)
network = UNet(config)
untrained = copy.deepcopy(network.state_dict())
trainer = Trainer(network, loss_of_diffusion(diffusion), train, settings)
reports = list(itertools.islice(trainer.steps(), 250))
print(f"loss {reports[0].loss:.2f} at first, {reports[-1].loss:.2f} after {len(reports)} steps")

recipe = Recipe("ddpm", settings, config, diffusion)
stages = {"before": untrained, "after 250 steps": trainer.ema.network.state_dict()}
for stage, tensors in stages.items():
    young = pipelines.build(recipe, tensors)
    stages[stage] = young.sample(12, sampler="ddpm", steps=50, seed=0)
show(
    grids.show_rows(stages),
    "1.17",
    "Samples before and after a short training. What is learned first is where ink may be, and how thick a stroke is.",
)

# %% [markdown]
# Few of the samples in figure 1.17 are digits yet. Which strokes belong together takes the many passes over the data
# that the shipped weights have made.
#
# ## 14. The shipped weights
#
# A *card* lies beside the weights and says how they were made. With them we sample four digits in all 1,000 steps.
# `states` yields every state on the way (figure 1.18).

# %%
card = weights.read_card("ddpm")
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on {card['data_set']}")
print({name: card["recipe"]["diffusion"][name] for name in ("schedule", "target", "timesteps")})

states = list(pipe.states(range(4), sampler="ddpm", steps=T, seed=6))
times, seen = strips.denoising_strip(states[1:], pipe, frames=11)
_, predicted = strips.denoising_strip(states, pipe, frames=11, what="x0")
pairs = torch.stack([seen, predicted], dim=1).flatten(0, 1)  # (4, 2, 11, ...) -> (8, 11, ...)
show(
    strips.show_strip(times, pairs),
    "1.18",
    "Four samples on their way. In each pair, above the state $x_t$, below the picture predicted from it, which goes "
    "from the mean of all digits to a blurred digit to sharp strokes.",
)

# %% [markdown]
# The large decisions are made early, in noise in which *you* see nothing. Move through the same walk yourself (figure
# 1.19).

# %%
times, seen = strips.denoising_strip(states[1:], pipe, frames=30)
_, predicted = strips.denoising_strip(states, pipe, frames=30, what="x0")
pairs = torch.cat([seen, predicted]).transpose(0, 1)  # (30, 8, 1, 28, 28)
control = scrubber.scrubber(
    torch.stack([grids.grid(frame, columns=4) for frame in pairs]),
    captions=[f"t = {time:.2f}" for time in times],
    label="denoise",
    alt="Above the noisy state at each time, below the picture predicted from it",
    start=12,
)
show(control, "1.19", "The walk of figure 1.18, step by step: states above, predictions below.")

# %% [markdown]
# Where is the task hard? One average loss hides it, so we measure the error of $\hat x_0$ at eight times, on test
# pictures (figure 1.20).

# %%
centres = (torch.arange(8) + 0.5) / 8
errors = []
for t in centres:
    noisy = add_noise(cosine, x_test[:128], torch.randn(x_test[:128].shape, generator=generator), t)
    errors.append((denoise(noisy, t) - x_test[:128]).square().mean().item())
edges = torch.linspace(0, 1, 9)
variance = (x_test[:128] - x_test.mean(0)).square().mean().item()  # the error of the mean digit
show(
    plots.plot_bins(edges, {"shipped": errors}, "time t", "mean squared error of $x_0$", level=variance),
    "1.20",
    "The error grows with the noise, and must. Towards $t = 1$ even the ideal denoiser knows little more than the mean "
    "digit, and its error approaches the variance of the data (grey line).",
)

# %% [markdown]
# ## 15. Breaking it on purpose
#
# Pictures live in $[-1, 1]$. So it seems tidy to clamp the state to $[-1, 1]$ after each step. It is a common mistake.
# A second one is to leave out the fresh noise $z$. Figure 1.21 shows what both do.


# %%
def clamped(*arguments, **options):
    return samplers.ddpm(*arguments, **options).clamp(-1, 1)


def without_noise(*arguments, noise, **options):
    return samplers.ddpm(*arguments, noise=torch.zeros_like(noise), **options)


steps = {"correct": samplers.ddpm, "state clamped": clamped, "no fresh noise": without_noise}
rows, noise, grid_of_50 = {}, pipe.noise(10, seed=5).to(pipe.device), samplers.time_grid(50)
for name, step in steps.items():
    fresh = samplers.sample_generators(6, range(10))  # not the seed of the start
    options = {"schedule": pipe.schedule, "generator": fresh}
    *_, last = samplers.sample(pipe.denoiser, noise, grid_of_50, step, **options)
    rows[name] = pipe.to_images(last.x)
    print(f"{name:>14}: {(rows[name] > 0).double().mean():.1%} of the pixels are ink")

background = add_noise(cosine, torch.full((10_000,), -1.0), torch.randn(10_000, generator=generator), torch.tensor(0.5))
print(f"black at t = 0.5: mean {background.mean():.2f}, clamped {background.clamp(-1, 1).mean():.2f}")
kept, _, _ = schedules.posterior(pipe.schedule, grid_of_50[0], grid_of_50[1])
print(f"the first of 50 steps back multiplies the start by {kept:.4f}")
show(
    grids.show_rows(rows),
    "1.21",
    "Three samplers from the same ten starts. A clamped state gives heavy digits. Without fresh noise, all ten starts "
    "end at the same picture.",
)

# %% [markdown]
# The network was trained on states whose noise reaches to 3 and beyond, and never met clamped noise. On a black
# background clamping is also one-sided: values below $-1$ are raised to $-1$, those above mostly stay, and so the mean
# rises. The network sees ink where there is none. What may be clamped is $\hat x_0$, and `pipe.denoiser` does so.
#
# Why does the last row repeat one picture? The first step back keeps almost nothing of the start, as the last line of
# the output says. Soon all ten states agree on the same mean digit, and nothing is left to tell them apart. In DDPM it
# is the fresh noise that makes one sample differ from the next. The sampler of chapter 2 does without fresh noise, but
# there the other coefficients of the step change too: deleting $z$ is not enough.
#
# ## 16. New, or memorised?
#
# There is a paradox in what we train. The training set is a finite set of pictures $x^{(i)}$, so the denoiser of
# smallest training loss can be written down, as in section 2: a mean of all training pictures, weighted by how probable
# each is,
#
# $$\hat x_0(x_t, t) = \sum_i w_i\, x^{(i)}, \qquad
# w_i \propto \exp\!\left(-\frac{\|x_t - \alpha_t x^{(i)}\|^2}{2\sigma_t^2}\right).$$
#
# What does it draw? The weights are a softmax over the training set, so we can try it.


# %%
known = train.images.flatten(1).float() / 127.5 - 1  # (N, 784)
squares = known.square().sum(dim=1)  # (N,)


def memory(x_t, t):
    """The denoiser of smallest loss on the training set. What all logits share is left out: softmax ignores it."""
    alpha, sigma = (value.float() for value in cosine(t))
    logits = (alpha * x_t @ known.T - alpha**2 * squares / 2) / sigma**2  # (B, 784) @ (784, N) -> (B, N)
    x0 = logits.softmax(dim=1) @ known  # (B, 784)
    return Prediction(x0, (x_t - alpha * x0) / sigma)


def nearest(pictures):
    """The nearest training picture of each, and its root-mean-square distance a pixel."""
    distance, index = torch.cdist(pictures.flatten(1), known).min(dim=1)
    return known[index].reshape(-1, 1, 28, 28), distance / 28


start = torch.randn(10, 784, generator=generator)
*_, last = samplers.sample(memory, start, grid_of_50, samplers.ddpm, schedule=cosine, generator=generator)
drawn = {"optimum": last.x.reshape(-1, 1, 28, 28), "network": samples, "test set": data.crop(x_test[:200])}
rows = {}
for name, pictures in drawn.items():
    neighbours, distance = nearest(pictures)
    print(f"{name:>8}: mean distance to the nearest training picture {distance.mean():.3f}")
    if name != "test set":
        rows |= {name: pictures[:10], f"nearest\nto {name}": neighbours[:10]}
show(
    grids.show_rows(rows),
    "1.22",
    "Above, the optimum of the training returns training pictures, pixel by pixel. Below, the network's samples "
    "mostly resemble their nearest training pictures, and differ in slant, thickness and the ends of the strokes. A "
    "malformed sample may lie nearest to another digit.",
)

# %%
show(
    diagrams.memorisation(),
    "1.23",
    "The optimum of the training draws training pictures only. A network that does not reach it also draws what lies "
    "between them.",
)

# %% [markdown]
# The optimum *memorises* (figures 1.22 and 1.23): with little noise one weight is nearly 1, and every path ends at a
# training picture. The network's samples are about as far from the training set as digits that it has never seen. It
# *generalises*, and only because it does not reach the optimum. It has far fewer parameters than the training set has
# pixels, and convolutions, which see strokes rather than whole pictures, are thought to prefer smooth rules to lists of
# examples. With few pictures, or very many passes over them, large models do memorise, and training pictures can be
# extracted from them (Carlini et al. 2023). The check is always the one above: compare with held-out data.
#
# ## The scoreboard
#
# The eye is easily pleased. The card holds measurements of samples. *cFID* is a Fréchet distance between features of
# generated and of real digits (chapter 0); the cell prints it divided by the cFID of as many real training digits, so
# that 1 is as good as real. *Doubtful* is a digit of which a classifier of real digits is less than 90 % sure. Chapter
# 8 compares all models.

# %%
for row in figures(card):
    if row["sampler"] == "ddpm":
        print(f"DDPM | {row['steps']:4} evaluations | {sentence(row)}")

# %% tags=["remove-cell"]
whole = max((row for row in figures(card) if row["sampler"] == "ddpm"), key=lambda row: row["steps"])
assert whole["doubtful"] > 2 * whole["doubtful_real"]
other = min(
    (row for row in figures(weights.read_card("ldm")) if row["num_samples"] == 10_000), key=lambda row: row["ratio"]
)
same = min((row for row in figures(card) if row["num_samples"] == 10_000), key=lambda row: row["ratio"])
assert other["ratio"] < same["ratio"]

# %% [markdown]
# Doubtful digits are several times as frequent as among real ones, so the model is far from perfect; chapter 4's latent
# model is better, after a training of similar length.

# %% [markdown]
# <details><summary>What differs from the paper</summary>
#
# - **Target.** The paper predicts $\epsilon$; we predict $v$ (section 7).
# - **Schedule.** The paper's is linear; ours is the cosine of Nichol & Dhariwal.
# - **Variance.** The paper tries $\beta_k$ and $\tilde\beta_k$ for the reverse step and finds them alike. We take
#   $\tilde\beta_k$, which (3) gives, throughout.
# - **Clipping.** $\hat x_0$ is clipped to the range of pictures. The paper's released code does so as well; its
#   algorithm 2 does not mention it.
# - **Network.** Ours folds patches of 2 × 2 pixels into channels and works at 16 × 16, which saves three quarters of
#   the arithmetic. The time scales and shifts the features instead of being added to them.
# - **Average of the weights.** The paper's decay is 0.9999 from the start. Ours warms up, so that a short training
#   does not sample from its random first weights.
# - **Times.** One in each of $B$ equal slices instead of $B$ independent ones (section 10).
#
# </details>
#
# ## Pitfalls
#
# - **Noise in the last step.** $\tilde\beta_1 = 0$. Code that adds $\sqrt{\beta_1}\,z$ there returns grain if the steps
#   are few.
# - **$\alpha$, $\bar\alpha$ and $\sqrt{\bar\alpha}$.** Three papers, three meanings of one letter. Code that confuses
#   them raises no error, and its samples are blurred.
# - **Off by one.** $k = 1000$ is $t = 1$, in training and in sampling.
# - **Judging by the loss.** Much of it is the error that the best denoiser makes on *new* pictures, which remains
# however long one trains. Two models with nearly the same loss can draw very different digits.
#
# ## Exercises
#
# Write the function, run the cell, and `check` says what you have shown, or what is wrong. It does not read your code:
# it compares what your function returns with the library's answer, and with what the usual mistakes would return.
#
# **1. One jump.** By (2), bring a batch of pictures from $x_0$ to $x_k$, each to a step of its own. All that you have
# are the betas, counted as in section 4: `beta[k]` is $\beta_k$, and `beta[0]` is 0.

# %% tags=["nbval-check-output"]
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
# **2. One step back, clipped.** Section 12 wrote the step with $\hat\epsilon$. Write it with $\hat x_0$, by (3), and
# clip what may be clipped. When it is right, put $\beta_k$ in the place of $\tilde\beta_k$, and walk the toy back as in
# section 12, but with fresh noise in the last step too. Do it with 1,000 steps, and with 20 (`T = 20`, `beta =
# F.pad(schedules.betas(cosine, T), (1, 0))`). How far from $\pm 1$ do the points end, and which step is to blame?


# %% tags=["nbval-check-output"]
def step_back(x_k, x0, z, k, beta):
    """State, predicted picture and fresh noise, each (B, C, H, W), and the number k -> x_{k-1}."""
    ...  # your code here


check(step_back)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def step_back(x_k, x0, z, k, beta):
#     alpha_bar = (1 - beta).cumprod(0)  # (T + 1,)
#     from_x_k = (1 - beta[k]).sqrt() * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
#     from_x_0 = alpha_bar[k - 1].sqrt() * beta[k] / (1 - alpha_bar[k])
#     variance = beta[k] * (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k])
#     return from_x_k * x_k + from_x_0 * x0.clamp(-1, 1) + variance.sqrt() * z
# ```
#
# The points end at $\pm 1$ plus noise of standard deviation $\sqrt{\beta_1}$: less than 0.01 with 1,000 steps, nearly
# 0.1 with 20, where the first $\beta$ is larger. Only the last step is to blame. Its mean is $\hat x_0$, which is
# right, and no step follows that could take its noise away; leave $z$ out there, and all points arrive. In the other
# steps the larger variance does no such harm. On average over $x_k$, and for data of variance at most 1, the exact
# variance of the reverse step lies between the two: $\beta_k$ is right for standard normal data, $\tilde\beta_k$ for a
# single point.
#
# </details>
#
# **3. Any number of pictures.** The toy had two pictures. Let there be $K$ of them, the points $p_i$ with probabilities
# $w_i$. What is the ideal denoiser now? Try it on the toy, with $-1$, $0$ and $+1$ at weights 0.25, 0.5 and 0.25.


# %% tags=["nbval-check-output"]
def ideal_x0(x_t, alpha, sigma, points, weights):
    """x_t (N, 1), one alpha and sigma, points and their weights (K,) -> the mean of x_0 given x_t, (N, 1)."""
    ...  # your code here


check(ideal_x0)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Bayes' rule again: $\mathbb E[x_0 | x_t] = \sum_i q_i\, p_i$ with $q_i \propto w_i\, e^{-(x_t - \alpha p_i)^2 /
# 2\sigma^2}$, which is a softmax over the pictures.
#
# ```python
# def ideal_x0(x_t, alpha, sigma, points, weights):
#     logits = weights.log() - (x_t - alpha * points).square() / (2 * sigma**2)  # (N, 1) and (K,) -> (N, K)
#     return (logits.softmax(dim=1) * points).sum(dim=1, keepdim=True)
# ```
#
# With the training set as the points, this is `memory` of section 16.
#
# </details>
#
# **4. Train on noise.** Set `diffusion = DiffusionConfig(target="noise")` in section 13 and train again. Why are the
# two losses not comparable? Which samples look better after as many steps?
#
# <details><summary>Solution</summary>
#
# By section 10 the losses weigh the same error by $\mathrm{SNR}$ and by $\mathrm{SNR}+1$, and each has a minimum of its
# own. To compare, turn both into an error of $x_0$ by `targets.prediction` and bin it by time, as in figure 1.20. At
# large $t$ the noise target is the worse one: nearly all of $x_t$ is noise, so repeating the input already gives a
# small loss.
#
# </details>
#
# ## Summary
#
# - Noise is added by (1), at any time at once by (2), and taken away by (3), which needs $x_0$.
# - A network stands in for $x_0$. It may predict $x_0$, $\epsilon$ or $v$: by (4), and the
#   score by (5), they are one, up to how errors are weighted.
# - The bound on the likelihood (6) is a weighted squared error (7). Training drops its weights.
# - Sampling is (8), repeated. Clip $\hat x_0$, never $x_t$.
# - The network learns a posterior mean. The randomness of the walk turns means into samples, and the network's
#   limits turn training pictures into new ones.
#
# ## References
#
# - Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli (2015), *Deep Unsupervised Learning using Nonequilibrium
#   Thermodynamics*. ICML.
# - Ho, Jain & Abbeel (2020), *Denoising Diffusion Probabilistic Models*. NeurIPS. arXiv:2006.11239.
# - Nichol & Dhariwal (2021), *Improved Denoising Diffusion Probabilistic Models*. ICML. arXiv:2102.09672.
# - Kingma, Salimans, Poole & Ho (2021), *Variational Diffusion Models*. NeurIPS. arXiv:2107.00630.
# - Salimans & Ho (2022), *Progressive Distillation for Fast Sampling of Diffusion Models*. ICLR. arXiv:2202.00512.
# - Vincent (2011), *A Connection Between Score Matching and Denoising Autoencoders*. Neural Computation.
# - Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), *Score-Based Generative Modeling through Stochastic
#   Differential Equations*. ICLR. arXiv:2011.13456.
# - Song & Ermon (2019), *Generative Modeling by Estimating Gradients of the Data Distribution*. NeurIPS.
#   arXiv:1907.05600.
# - Hang et al. (2023), *Efficient Diffusion Training via Min-SNR Weighting Strategy*. ICCV. arXiv:2303.09556.
# - Esser et al. (2024), *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*. ICML.
#   arXiv:2403.03206.
# - Carlini et al. (2023), *Extracting Training Data from Diffusion Models*. USENIX Security. arXiv:2301.13188.
# - Ronneberger, Fischer & Brox (2015), *U-Net: Convolutional Networks for Biomedical Image Segmentation*. MICCAI.
#   arXiv:1505.04597.
# - Peebles & Xie (2022), *Scalable Diffusion Models with Transformers*. ICCV 2023. arXiv:2212.09748.
