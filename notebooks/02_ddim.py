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
# # DDIM: the same digits in fewer steps
#
# *Runs in one to two minutes on two CPU cores, without a network connection. Needs chapter 1, trains nothing.*
#
# DDPM draws a digit in a thousand small random steps. Must the steps be small? Must they be random? This chapter takes
# the weights of chapter 1 as they are and changes one line of the sampler. You will
#
# - see what the training of a diffusion model fixes, and what it leaves open;
# - derive the DDIM step from this freedom, with DDPM at one end of a family of samplers;
# - find an ordinary differential equation at the other end, the *probability-flow ODE*, and prove that it carries
#   noise to data;
# - see why few steps are enough to follow it, and measure what that buys on digits;
# - do what only a sampler without fresh noise can do: encode a picture as noise, and interpolate between pictures.
#
# The source is Song, Meng & Ermon, *Denoising Diffusion Implicit Models* (2020).
#
# *Note.* If MNIST is not on your machine and cannot be downloaded, the chapter takes the small digits that come with
# scikit-learn. All cells run, but the weights have learned MNIST: encoding (section 10) then works worse than the text
# says.

# %% [markdown]
# ## Set-up, and what we are after

# %%
import itertools
import time

import torch

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation.distances import frechet_distance, frechet_error
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.interpolation import slerp
from diffusion_book.models import weights
from diffusion_book.schedules import cosine, expand, linear
from diffusion_book.targets import TARGETS, Prediction
from diffusion_book.viz import animation, diagrams, grids, in_page, paths, plots, scrubber, style
from diffusion_book.viz.figures import show

style.use_style()
pipe = diffusion_book.load("ddpm")
test = data.load("auto", "test")
print(f"data: {test.name}, {len(test):,} test pictures; the network runs on {pipe.device} in {pipe.dtype}")

# %%
STEPS = (1000, 100, 50, 20, 10)
noise = pipe.noise(6, seed=2)
rows, seconds = {}, {}
for steps in STEPS:
    start = time.process_time()
    rows[steps] = pipe.sample(6, steps=steps, noise=noise)
    seconds[steps] = time.process_time() - start
    faster = seconds[1000] / seconds[steps]
    print(f"{steps:5,} steps: {seconds[steps]:6.2f} s of the processor, {faster:5.1f} times as fast")
show(
    grids.show_rows({f"{steps:,} steps": rows[steps] for steps in STEPS}),
    "2.1",
    "DDIM: one noise a column, one number of steps a row, always the same weights. From 1,000 steps down to 50 the "
    "digits hardly change. With 20 and 10 steps strokes move, break or close, and a digit may be lost.",
)

# %% [markdown]
# The time in figure 2.1 falls with the number of steps, and the pictures change little. How can a network that was
# trained for a thousand small steps serve for fifty large ones? Figure 2.2 shows the idea: DDPM takes a random path,
# DDIM follows a smooth one, and a smooth path can be followed in jumps.

# %%
show(
    diagrams.ddim_jumps(),
    "2.2",
    "Two samplers, one denoiser, the same two starts. The data are $-1$ and $+1$; dashed, DDIM's path in 400 steps.",
)

# %% [markdown]
# ## 1. A world in which the denoiser makes no errors
#
# A network makes errors, and they hide what a sampler does. So we first take data whose ideal denoiser is known. Let
# them be a mixture of Gaussians: component $j$ has the weight $w_j$, the mean $\mu_j$ and the standard deviation
# $\rho$. With noise added, each component is still a Gaussian,
#
# $$x_t \mid j \sim \mathcal N(\alpha_t \mu_j,\; \alpha_t^2 \rho^2 + \sigma_t^2).$$
#
# Bayes' rule gives the probability of each component, given $x_t$. Within a component, the mean of $x_0$ is linear in
# $x_t$, by the product of Gaussians of chapter 1, section 6. Together they are the posterior mean
#
# $$\hat x_0 = \sum_j p(j \mid x_t) \left[ \mu_j + \frac{\alpha_t \rho^2}{\alpha_t^2 \rho^2 + \sigma_t^2}
# (x_t - \alpha_t \mu_j) \right]. \tag{1}$$


# %%
def mixture_denoiser(means, weights, spread, schedule=cosine):
    """The ideal denoiser of a Gaussian mixture: means (K, D), weights (K,), one standard deviation."""

    def denoise(x_t, t):
        alpha, sigma = (expand(value, x_t) for value in schedule(t.expand(len(x_t))))  # (B, 1)
        variance = (alpha * spread) ** 2 + sigma**2
        away = x_t[:, None] - alpha[..., None] * means  # (B, K, D)
        probability = torch.softmax(weights.log() - away.square().sum(2) / (2 * variance), dim=1)  # (B, K)
        within = means + (alpha * spread**2 / variance)[..., None] * away  # (B, K, D)
        x0 = (probability[..., None] * within).sum(1)  # (B, D)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


MEANS = torch.tensor([[-0.8], [0.6]], dtype=torch.float64)
WEIGHTS, SPREAD = torch.tensor([0.3, 0.7], dtype=torch.float64), 0.1
toy = mixture_denoiser(MEANS, WEIGHTS, SPREAD)

# %% [markdown]
# Is (1) right? The mean of $x_0$, given $x_t$, can also be had by brute force, as a sum over twenty thousand values of
# $x_0$.

# %% tags=["nbval-check-output"]
x_t, half = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], torch.tensor(0.5, dtype=torch.float64)
line = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
prior = (WEIGHTS[:, None] * torch.exp(-(((line - MEANS) / SPREAD) ** 2) / 2)).sum(0)
alpha, sigma = cosine(half)
likelihood = torch.exp(-(((x_t - alpha * line) / sigma) ** 2) / 2)  # (5, 20001)
summed = (prior * likelihood * line).sum(1) / (prior * likelihood).sum(1)
exact = toy(x_t, half).x0[:, 0]
print("posterior mean of x0:", " ".join(f"{value:.4f}" for value in exact))
print("difference from the sum below 1e-9:", bool((exact - summed).abs().max() < 1e-9))

# %% [markdown]
# Now we sample. The library's `samplers.sample` takes any denoiser, any grid of times and any step. DDPM and DDIM each
# take a thousand steps from the same forty starting points. (`samplers.ddim` draws both: section 4 shows that with
# `eta = 1` its step is DDPM's.)


# %%
def walk(denoiser, x, times, eta):
    """Every state on the way, (S + 1, N, D)."""
    generator = torch.Generator().manual_seed(1)
    states = samplers.sample(denoiser, x, times, samplers.ddim, schedule=cosine, generator=generator, eta=eta)
    return torch.stack([state.x for state in states])


def even_noise(count):
    """Standard normal quantiles, (count, 1), in mixed order: a sample without the luck of the draw."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.special.ndtri(quantiles)[mixed, None]


full, ten = samplers.time_grid(1000), samplers.time_grid(10)
random = walk(toy, even_noise(40), full, eta=1.0)[..., 0]
smooth = walk(toy, even_noise(40), full, eta=0.0)[..., 0]
show(
    paths.show_line_paths({"DDPM: random paths": (full, random), "DDIM: smooth paths": (full, smooth)}),
    "2.3",
    "The same noise at the left, the same two modes at the right, and very different paths between them.",
)

# %% [markdown]
# The two panels of figure 2.3 could hardly differ more. DDPM's paths jitter, cross and change sides. DDIM's are smooth
# and, in the limit of small steps, never cross: to cross, they would have to meet first, and two paths that meet stay
# together, since the next step depends on state and time alone. Yet both end in the same distribution.

# %% tags=["nbval-check-output"]
mean = (WEIGHTS * MEANS[:, 0]).sum()
std = (SPREAD**2 + (WEIGHTS * (MEANS[:, 0] - mean) ** 2).sum()).sqrt()
print(f"data: weight of the upper mode {WEIGHTS[1]:.2f}, mean {mean:5.2f}, standard deviation {std:.2f}")
for name, eta in (("DDPM", 1.0), ("DDIM", 0.0)):
    end = walk(toy, even_noise(5000), samplers.time_grid(200), eta)[-1]
    print(f"{name}: weight of the upper mode {(end > 0).double().mean():.2f}, mean {end.mean():5.2f}, ", end="")
    print(f"standard deviation {end.std():.2f}")

# %% [markdown]
# So one denoiser serves a random sampler and a deterministic one. The next sections explain why.
#
# ## 2. What the training leaves open
#
# Look again at the loss of chapter 1. It takes one picture, one time and one noise, and makes one noisy picture:
#
# $$q(x_t \mid x_0) = \mathcal N(\alpha_t x_0,\; \sigma_t^2 I). \tag{2}$$
#
# It never looks at two times together. So it leaves open how a state $x_t$ and a less noisy state $x_s$, with $s < t$,
# depend on each other. DDPM made one choice: a Markov chain, in which each state adds noise to the one before. Any
# other choice that has the distributions (2) at each single time has the same loss, and hence the same network.
#
# Such choices are easy to construct. From $x_t$ and $x_0$ follows the noise, $\epsilon = (x_t - \alpha_t x_0) /
# \sigma_t$. Keep one part of it, and replace the rest by fresh noise $\sigma_\eta z$ with $z \sim \mathcal N(0, I)$
# (section 3 explains the index):
#
# $$x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \sigma_\eta^2}\; \frac{x_t - \alpha_t x_0}{\sigma_t}
# + \sigma_\eta z, \qquad 0 \le \sigma_\eta \le \sigma_s. \tag{3}$$
#
# Given $x_0$, this is a constant plus two independent Gaussians, and their variances add up:
# $(\sigma_s^2 - \sigma_\eta^2) + \sigma_\eta^2 = \sigma_s^2$. So $x_s$ has mean $\alpha_s x_0$ and variance
# $\sigma_s^2$, as (2) demands, *whatever $\sigma_\eta$ is*. This is the whole idea of DDIM.
#
# We sample from (3) for one $x_0$, with none, half and all of the variance fresh.


# %%
def draw_pair(x0, t, s, fraction, count=200_000):
    """x_t and x_s of equation (3), where this fraction of the variance at time s is fresh."""
    generator = torch.Generator().manual_seed(0)
    eps, z = torch.randn(2, count, generator=generator, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
    fresh = sigma_s * fraction**0.5  # this is sigma_eta
    x_t = alpha_t * x0 + sigma_t * eps
    x_s = alpha_s * x0 + (sigma_s**2 - fresh**2).sqrt() * (x_t - alpha_t * x0) / sigma_t + fresh * z
    return x_t, x_s


t, s = torch.tensor([0.6, 0.3], dtype=torch.float64)
pairs = {fraction: draw_pair(0.6, t, s, fraction) for fraction in (0.0, 0.5, 1.0)}
panels = {f"fresh variance: {fraction:.0%}": (x_t[:1500], x_s[:1500]) for fraction, (x_t, x_s) in pairs.items()}
show(
    paths.show_pairs(panels, "$x_t$, t = 0.6", "$x_s$, s = 0.3"),
    "2.4",
    "Three joint distributions of $x_t$ and $x_s$, for one $x_0$. The histograms at the edges are the same in all three, "
    "and the training sees nothing else.",
)

# %% [markdown]
# The clouds of figure 2.4 differ: at the left $x_t$ determines $x_s$, at the right the two are independent. Each of
# the two alone is distributed the same three times.

# %% tags=["nbval-check-output"]
alpha_s, sigma_s = cosine(s)
print(f"equation (2): mean {0.6 * alpha_s:.2f}, standard deviation {sigma_s:.2f}")
for fraction, (x_t, x_s) in pairs.items():
    correlation = torch.corrcoef(torch.stack([x_t, x_s]))[0, 1]
    print(f"fresh {fraction:5.0%}:  mean {x_s.mean():.2f}, standard deviation {x_s.std():.2f}, ", end="")
    print(f"correlation {correlation:.2f}, expected {(1 - fraction) ** 0.5:.2f}")

# %% [markdown]
# ## 3. The step
#
# When we sample, $x_0$ is not known. Put the denoiser's prediction $\hat x_0$ in its place, and with it $\hat\epsilon =
# (x_t - \alpha_t \hat x_0) / \sigma_t$:
#
# $$x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \sigma_\eta^2}\; \hat\epsilon + \sigma_\eta z. \tag{4}$$
#
# In words: split $x_t$ into picture and noise, and mix them again for time $s$. The amount of fresh noise is free. The
# paper sets it by one parameter $\eta$ for all steps, as a multiple of the standard deviation of DDPM's step back
# (section 4),
#
# $$\sigma_\eta = \eta\; \frac{\sigma_s}{\sigma_t} \sqrt{1 - \frac{\alpha_t^2}{\alpha_s^2}}, \tag{5}$$
#
# with $\eta = 0$ for no fresh noise at all.
#
# Be careful here. Section 2 proved that (3) has the right distributions for the *true* $x_0$. Its posterior mean $\hat
# x_0$ varies less than $x_0$ does, so nothing is proved for (4) yet. In small steps it is right all the same: for $\eta
# = 1$ it is DDPM (section 4), whose small steps chapter 1, section 10, justified, and for $\eta = 0$ there is a proof
# (section 6). In long steps it is an approximation, and its error is the price of few steps.
#
# <details><summary>In the letters of the paper</summary>
#
# Beware of the first row: DDIM's $\alpha_t$ is DDPM's $\bar\alpha_t$.
#
# | here | Song et al. 2020 | meaning |
# |---|---|---|
# | $\alpha_t^2$ and $\sigma_t^2$ | $\alpha_t$ and $1 - \alpha_t$ | parts of picture and noise in the variance |
# | $t$ and $s$ | $\tau_i$ and $\tau_{i-1}$ | where a step starts and ends |
# | $\hat x_0$ | $f_\theta^{(t)}(x_t)$, "predicted $x_0$" | equation 9 there |
# | $\hat\epsilon$ | $\epsilon_\theta^{(t)}(x_t)$ | output of their network |
# | $\sigma_\eta$ | $\sigma_{\tau_i}(\eta)$ | equation 16 there |
# | $z$ | $\epsilon_t$ | fresh noise |
#
# </details>
#
# Here is the paper's step in its own letters, and the check that the library's `samplers.ddim` is the same.


# %% tags=["nbval-check-output"]
def paper_step(x_t, eps, a_t, a_s, eta, z):
    """Song et al. 2020, equations 12 and 16. a_t and a_s are their alphas, the squares of ours."""
    sigma = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
    predicted_x0 = (x_t - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    direction_to_x_t = (1 - a_s - sigma**2).sqrt() * eps
    return a_s.sqrt() * predicted_x0 + direction_to_x_t + sigma * z


generator = torch.Generator().manual_seed(4)
x_t, x0, z = torch.randn(3, 64, 4, generator=generator, dtype=torch.float64)
largest = 0.0
for t, s in ((0.9, 0.8), (0.6, 0.1), (0.05, 0.01)):
    t, s = torch.tensor([t, s], dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, _) = cosine(t), cosine(s)
    eps = (x_t - alpha_t * x0) / sigma_t
    for eta in (0.0, 0.5, 1.0):
        ours = samplers.ddim(Prediction(x0, eps), x_t, t, s, schedule=cosine, noise=z, eta=eta)
        theirs = paper_step(x_t, eps, alpha_t**2, alpha_s**2, eta, z)
        largest = max(largest, (ours - theirs).abs().max().item())
print("samplers.ddim is the paper's step, to 1e-10:", largest < 1e-10)

# %% [markdown]
# ## 4. At one end stands DDPM
#
# With $\eta = 1$, $\sigma_\eta$ is the standard deviation of DDPM's posterior $q(x_s \mid x_t, x_0)$, and (4) is DDPM's
# step: with $1 - \alpha_t^2 / \alpha_s^2$ in the place of $\beta_k$, (5) is $\sqrt{\tilde\beta_k}$ of chapter 1. The
# means agree as well: put $\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$ into (4), and collect the terms of
# $x_t$ and of $\hat x_0$. From $\alpha^2 + \sigma^2 = 1$ follows $\sqrt{\sigma_s^2 - \sigma_\eta^2} = \sigma_s^2
# \alpha_t / (\sigma_t \alpha_s)$, which, divided by $\sigma_t$, is the factor of $x_t$ in chapter 1's (3); that of
# $\hat x_0$ agrees likewise. We check it on all thousand steps, with arbitrary predictions.

# %% tags=["nbval-check-output"]
largest = 0.0
for t, s in itertools.pairwise(full):
    alpha_t, sigma_t = cosine(t)
    prediction = Prediction(x0, (x_t - alpha_t * x0) / sigma_t)
    ddpm = samplers.ddpm(prediction, x_t, t, s, schedule=cosine, noise=z)
    ddim = samplers.ddim(prediction, x_t, t, s, schedule=cosine, noise=z, eta=1.0)
    largest = max(largest, (ddpm - ddim).abs().max().item())
assert largest < 1e-10
print(f"{len(full) - 1:,} steps: DDIM with eta = 1 is DDPM, to 1e-10: {largest < 1e-10}")

# %% [markdown]
# The identity holds for long steps too, and shows what they cost DDPM. Square (5) with $\eta = 1$, divide by
# $\sigma_s^2$, and in the numerator multiply $\alpha_s^2$ by $\alpha_t^2 + \sigma_t^2 = 1$, and $\alpha_t^2$ by
# $\alpha_s^2 + \sigma_s^2 = 1$. The fraction of the noise in $x_s$ that is fresh is
#
# $$\frac{\sigma_\eta^2}{\sigma_s^2} = \frac{\alpha_s^2 - \alpha_t^2}{\alpha_s^2\, \sigma_t^2} =
# \frac{\alpha_s^2 \sigma_t^2 - \alpha_t^2 \sigma_s^2}{\alpha_s^2\, \sigma_t^2}
# = 1 - \frac{\mathrm{SNR}(t)}{\mathrm{SNR}(s)}, \qquad
# \mathrm{SNR} = \frac{\alpha^2}{\sigma^2}.$$

# %%
moments = torch.linspace(0.1, 1.0, 200, dtype=torch.float64)
fresh = {}
for steps in (1000, 100, 10):
    before = moments - 0.999 / steps  # not quite a whole step: the longest must not end at 0, where there is no noise
    (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(moments), cosine(before)
    fresh[f"{steps:,} steps"] = 1 - (alpha_t / sigma_t) ** 2 / (alpha_s / sigma_s) ** 2
show(
    plots.plot_curves(moments, fresh, "time t at which the step starts", "fraction of fresh noise", ylim=(-0.02, 1.02)),
    "2.5",
    "How much of the noise one step of DDPM replaces. In 1,000 steps it is a percent or so at a time, except near "
    "$t = 1$; in ten steps it is nearly half or more, every time.",
)

# %% [markdown]
# While $\hat x_0$ is still a blur, whatever favours one picture over another is in $\hat\epsilon$. A long step replaces
# much of it (figure 2.5). In the next step the network sees another state, and may decide otherwise. DDIM with $\eta =
# 0$ keeps all of it.
#
# ## 5. At the other end stands a differential equation
#
# Set $\eta = 0$, divide (4) by $\alpha_s$, and subtract $x_t / \alpha_t = \hat x_0 + (\sigma_t / \alpha_t)\,
# \hat\epsilon$. The predicted picture drops out:
#
# $$\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \left( \frac{\sigma_s}{\alpha_s} - \frac{\sigma_t}{\alpha_t}
# \right) \hat\epsilon(x_t, t). \tag{6}$$
#
# Write $\bar x = x / \alpha$ for the picture that is not shrunk, and $\bar\sigma = \sigma / \alpha$ for its noise
# level. Then (6) says: the new $\bar x$ is the old one plus the change of $\bar\sigma$ times a slope. That is one step
# of Euler's method, and the differential equation that it solves is
#
# $$\frac{d \bar x}{d \bar\sigma} = \hat\epsilon. \tag{7}$$


# %% tags=["nbval-check-output"]
def euler_walk(denoiser, x, times):
    """Equation (6), and nothing else."""
    for t, s in itertools.pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
        slope = denoiser(x, t).eps
        x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * slope)
    return x


difference = (euler_walk(toy, even_noise(100), ten) - walk(toy, even_noise(100), ten, eta=0.0)[-1]).abs().max()
assert difference < 1e-10
print("ten steps of DDIM are ten steps of Euler, to 1e-10:", bool(difference < 1e-10))

# %% [markdown]
# Now we can say why few steps are enough. Euler's method follows tangents. On a straight path it makes no error,
# however long the step. So let us look at the paths in the coordinates of (7).


# %%
def unshrunk(times, states):
    """The noise level sigma / alpha, and x / alpha."""
    alpha, sigma = cosine(times)
    return sigma / alpha, states / alpha[:, None]


rough = walk(toy, even_noise(40), ten, eta=0.0)[..., 0]
panels = {"1,000 steps": unshrunk(full, smooth), "10 steps": unshrunk(ten, rough)}
panels = {name: (where, points[:, ::3]) for name, (where, points) in panels.items()}
axes = {"xlabel": r"noise level $\bar\sigma = \sigma / \alpha$", "ylabel": r"$\bar x = x / \alpha$"}
show(
    paths.show_line_paths(panels, **axes, xlim=(4, 0), ylim=(-5, 5)),
    "2.6",
    "The smooth paths of figure 2.3 in the coordinates of equation (7): nearly straight, with one bend.",
)

# %% [markdown]
# In figure 2.6 the paths are almost straight at first. Below $\bar\sigma \approx 0.7$, when the noise is about as wide
# as half the distance between the modes, each turns to one of them, and is straight again from there. A solver has to
# resolve this one bend, and ten steps nearly do.
#
# What counts in the end is the distribution. On a line its error is easy to measure: sort the samples, sort a perfect
# sample, and average the distances. This is the Wasserstein-1 distance.

# %%
perfect = torch.cat([MEANS[0] + SPREAD * even_noise(1200), MEANS[1] + SPREAD * even_noise(2800)])[:, 0].sort().values
quality = {}
for name, eta in (("ddim", 0.0), ("ddpm", 1.0)):
    ends = {n: walk(toy, even_noise(4000), samplers.time_grid(n), eta)[-1, :, 0] for n in (3, 5, 10, 20, 50, 100)}
    quality[name] = [(n, (end.sort().values - perfect).abs().mean().item()) for n, end in ends.items()]
show(
    plots.plot_quality(quality, ylabel="Wasserstein-1 distance"),
    "2.7",
    "With the ideal denoiser, DDIM is closer to the data at every number of steps. (DDPM's points are random, "
    "and their scatter alone is about 0.01.)",
)

# %% tags=["remove-cell"]
for (_, of_ddim), (_, of_ddpm) in zip(quality["ddim"], quality["ddpm"], strict=True):
    assert of_ddim < of_ddpm  # figure 2.7

# %% [markdown]
# So much for a perfect denoiser (figure 2.7). DDIM's error falls in proportion to the length of the steps, as that of
# Euler's method, which is of first order, must:

# %% tags=["nbval-check-output"]
finest = walk(toy, even_noise(1000), full, eta=0.0)[-1]
errors = {}
for steps in (5, 10, 20, 40, 80):
    errors[steps] = (walk(toy, even_noise(1000), samplers.time_grid(steps), 0.0)[-1] - finest).abs().mean().item()
print("mean error of the end points:", ", ".join(f"{steps} steps {error:.3f}" for steps, error in errors.items()))
print("each doubling divides it by", " ".join(f"{errors[n] / errors[2 * n]:.1f}" for n in (5, 10, 20, 40)))

# %% [markdown]
# ## 6. Why the equation leads to the data
#
# That (7) carries noise to data we have seen on a toy. Now we prove it for any data. Let $p_t$ be the density of $x_t =
# \alpha_t x_0 + \sigma_t \epsilon$. The claim is:
#
# > *Points that are distributed as $p_1$ at time 1 and then follow (7) are distributed as $p_t$ at every time $t$.*
#
# First write (7) in terms of $x$ and $t$. With dots for derivatives by $t$, it becomes $\dot x = u(x, t)$ with the
# *velocity field*
#
# $$u(x, t) = \dot\alpha_t\, \hat x_0(x, t) + \dot\sigma_t\, \hat\epsilon(x, t)
# = \mathbb E[\dot\alpha_t x_0 + \dot\sigma_t \epsilon \mid x_t = x]. \tag{8}$$
#
# (Insert (8) into $\frac{d}{dt}(x / \alpha) = \dot x / \alpha - \dot\alpha x / \alpha^2$ and use $x = \alpha \hat x_0 +
# \sigma \hat\epsilon$. What is left is $(\dot\sigma / \alpha - \dot\alpha \sigma / \alpha^2)\, \hat\epsilon =
# \frac{d \bar\sigma}{dt}\, \hat\epsilon$, which is (7).)
#
# Take any smooth function $h$ that vanishes far out, and ask how its mean under $p_t$ changes with time. For
# fixed $x_0$ and $\epsilon$, the point $x_t$ moves with the velocity $\dot\alpha_t x_0 + \dot\sigma_t \epsilon$. So
#
# $$\frac{d}{dt}\, \mathbb E[h(x_t)]
# = \mathbb E\big[\nabla h(x_t) \cdot (\dot\alpha_t x_0 + \dot\sigma_t \epsilon)\big]
# = \mathbb E\big[\nabla h(x_t) \cdot u(x_t, t)\big].$$
#
# The second step takes the mean over all $x_0$ and $\epsilon$ with the same $x_t$ first. Write the two ends as
# integrals, and integrate by parts:
#
# $$\int h\, \frac{\partial p_t}{\partial t}\, dx = \int \nabla h \cdot u\, p_t\, dx
# = -\int h\; \nabla \cdot (p_t\, u)\, dx.$$
#
# This holds for every $h$, so the factors of $h$ agree:
#
# $$\frac{\partial p_t}{\partial t} = -\nabla \cdot (p_t\, u). \tag{9}$$
#
# This is the *continuity equation*. It says that probability is neither made nor lost, but only carried along by $u$.
# Now let points start from $p_1$ and follow $\dot x = u$, and let $q_t$ be their density. They move with the velocity
# $u$ itself, so the same argument gives the same equation for $q_t$. Both densities begin as $p_1$ and obey the same
# equation. Where $u$ is smooth enough, as it is for all $t > 0$, its solution is unique: $q_t = p_t$, down to the data
# as $t \to 0$. $\blacksquare$
#
# By Tweedie's formula (chapter 1), $\hat\epsilon = -\sigma_t \nabla \log p_t$. With this, (8) becomes the
# *probability-flow ODE* of Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021),
#
# $$\dot x = \frac{\dot\alpha_t}{\alpha_t}\, x + \left(\frac{\dot\alpha_t\, \sigma_t^2}{\alpha_t} - \dot\sigma_t\,
# \sigma_t\right) \nabla \log p_t(x).$$
#
# They found it from the other side. In the limit of small steps DDPM is a stochastic differential equation, and this
# ODE has the same $p_t$, without any noise. DDIM is Euler's method for (7). Chapter 7 chooses another path from noise
# to data, and trains $u$ directly.
#
# We check (9) on the toy, where all is known, by finite differences.


# %% tags=["nbval-check-output"]
def velocity(denoiser, x, t, schedule=cosine):
    """Equation (8), for one time t; PyTorch differentiates the schedule."""
    t = t.clone().requires_grad_()
    alpha_rate, sigma_rate = (torch.autograd.grad(value, t, retain_graph=True)[0] for value in schedule(t))
    t = t.detach()
    x0, eps = denoiser(x, t)
    return alpha_rate * x0 + sigma_rate * eps


def density(x, t):
    """p_t of the toy, at x (N, 1) -> (N, 1)."""
    alpha, sigma = cosine(t)
    std = ((alpha * SPREAD) ** 2 + sigma**2).sqrt()
    components = torch.exp(-(((x - alpha * MEANS.T) / std) ** 2) / 2) / (std * (2 * torch.pi) ** 0.5)  # (N, 2)
    return components @ WEIGHTS[:, None]


x, tiny = torch.linspace(-2.5, 2.5, 501, dtype=torch.float64)[:, None], 1e-5
for t in torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64):
    change = (density(x, t + tiny) - density(x, t - tiny)) / (2 * tiny)
    outwards = [density(x + d, t) * velocity(toy, x + d, t) for d in (tiny, -tiny)]
    divergence = (outwards[0] - outwards[1]) / (2 * tiny)
    error = (change + divergence).abs().max() / change.abs().max()
    print(f"t = {t:.1f}: the two sides of (9) agree to one in a million: {bool(error < 1e-6)}")

# %% [markdown]
# And here is the theorem as a picture: 4,000 points on DDIM's smooth paths, at five times, against the exact $p_t$
# (figure 2.8). DDPM's random paths pass through the same distributions, up to the scatter of 4,000 random points.

# %%
moving, shown, measured = {}, [1.0, 0.6, 0.35, 0.2, 0.0], {}
across = torch.linspace(-3.5, 3.5, 400, dtype=torch.float64)[:, None]
for name, eta in (("ddim", 0.0), ("ddpm", 1.0)):
    states = walk(toy, even_noise(4000), full, eta)
    for t in shown[1:]:
        points, at = states[round((1 - t) * 1000), :, 0].sort().values, torch.tensor(t, dtype=torch.float64)
        alpha, sigma = cosine(at)
        std = ((alpha * SPREAD) ** 2 + sigma**2).sqrt()
        below = torch.special.ndtr((points[:, None] - alpha * MEANS.T) / std) @ WEIGHTS  # p_t below each point
        measured[name, t] = (below - (torch.arange(4000) + 0.5) / 4000).abs().max().item()
    if name == "ddim":
        moving = {f"t = {t:.2f}": states[round((1 - t) * 1000), :, 0] for t in shown}
for name in ("ddim", "ddpm"):
    gaps = ", ".join(f"{measured[name, t]:.3f} at t = {t:.2f}" for t in shown[1:])
    print(f"{name}: largest error of a probability P(x_t < a): {gaps}")
curves = {f"t = {t:.2f}": (across, density(across, torch.tensor(t, dtype=torch.float64))) for t in shown}
show(
    plots.plot_line_histograms(moving, densities=curves),
    "2.8",
    "Bars: points that follow the probability-flow ODE. Lines: the density $p_t$ of noisy data. They agree at every "
    "time, although no point of the ODE is ever given fresh noise.",
)

# %% tags=["remove-cell"]
assert max(measured.values()) < 0.04

# %% [markdown]
# ## 7. Where the steps must begin
#
# A short walk needs a short list of times. Many programs take every $n$-th of the thousand times of the training,
# `range(0, 1000, 1000 // S)`, and go through it backwards. (Their index $k$ counts from zero, and stands for our time
# $(k + 1) / 1000$.) What does that give?


# %% tags=["nbval-check-output"]
def leading(steps):
    """The times of the popular formula, from the noisy end down to 0."""
    indices = range(0, 1000, 1000 // steps)
    return torch.tensor([(index + 1) / 1000 for index in reversed(indices)] + [0.0], dtype=torch.float64)


for asked in (5, 30, 50):
    popular, ours = leading(asked), samplers.time_grid(asked)
    print(f"asked for {asked:2}: range() makes {len(popular) - 1:2} steps from t = {popular[0]:.3f}, ", end="")
    print(f"time_grid makes {len(ours) - 1:2} from t = {ours[0]:.3f}")

# %% [markdown]
# Asked for 30 steps, it makes 31. Worse, it never visits the noisy end. Cut the times from 0 to 1 into $S$ equal
# stretches, for $S$ steps. *Leading* spacing takes the first time of each stretch, the least noisy one. *Trailing*
# spacing, that of `time_grid`, takes the last, the noisiest one, and so its first step starts at $t = 1$. Leading
# spacing starts from pure noise but tells the network that a picture is already in it. The state and the time do not
# belong together, and the fewer the steps, the less they do. Pictures of digits are mostly black, and pure noise is too
# bright for a picture that has begun (figure 2.9).


# %%
def draw(denoiser, z, times):
    """The pictures at the end of a walk of the network, eta = 0."""
    generators = samplers.sample_generators(0, range(len(z)))
    *_, end = samplers.sample(denoiser, z, times, samplers.ddim, schedule=pipe.schedule, generator=generators)
    return pipe.to_images(end.x)


real = (test.images.float().mean() / 255).item()
print(f"real pictures: {real:.1%} ink")
ink, compared = {}, {}
for asked in (5, 10):
    for name, times in (("leading", leading(asked)), ("trailing", samplers.time_grid(asked))):
        drawn = draw(pipe.denoiser, pipe.noise(60, seed=3), times)
        ink[name, asked] = (drawn.mean() + 1).item() / 2
        print(f"{asked:2} steps, {name:>8}: {ink[name, asked]:.1%} ink")
        if asked == 5:
            compared[name] = drawn[:10]
show(
    grids.show_rows(compared),
    "2.9",
    "Five steps from the same noises. Leading spacing draws heavy, smeared strokes. Those of trailing spacing are a "
    "little too thin, which is the error of long steps.",
)

# %% tags=["remove-cell"]
if test.name == "mnist":
    assert ink["leading", 5] > ink["leading", 10] > real  # too bright, and the more so the fewer the steps
    assert all(abs(ink["trailing", n] - real) < abs(ink["leading", n] - real) for n in (5, 10))

# %% [markdown]
# Leading spacing draws too much ink, the more so the fewer the steps. Trailing spacing costs nothing and comes closer
# to real digits; the error that remains is that of the long steps.
#
# A *schedule* can commit the same fault. Sampling begins with pure noise, so the training should end there: with zero
# signal, $\alpha_1 = 0$, called *zero terminal SNR*. How much is left in practice?

# %% tags=["nbval-check-output"]
one = torch.ones((), dtype=torch.float64)
stable = 1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # 1 - beta_k
last = {"cosine": cosine(one)[0], "linear": linear(one)[0], "Stable Diffusion 1": stable.prod().sqrt()}
for name, alpha in last.items():
    print(f"{name:>18}: alpha at t = 1 is {alpha:.5f}")

# %% [markdown]
# Seven percent of the picture (the last line, Stable Diffusion 1) sounds harmless. But in a mean over thousands of
# pixels the noise nearly cancels, and the picture's brightness stands out even at $t = 1$. The network learns to read
# it there. When it samples, it reads the brightness of pure noise, which is always medium: such models cannot draw a
# very dark or a very bright picture. Lin, Liu, Li & Yang (2024) named both faults, and mended them with zero terminal
# SNR and trailing spacing. (From predicted noise, $\hat x_0 = (x_t - \sigma_t \hat\epsilon) / \alpha_t$ cannot be
# computed where $\alpha_1 = 0$: such a network has to predict $v$, as ours does, or $x_0$.)
#
# ## 8. What does DDIM buy?
#
# Back to the network of chapter 1. In figure 2.10 the number of steps grows from row to row; within a row there are
# three noises, each with $\eta = 0$, $\tfrac12$ and $1$.

# %%
table = {}
for steps in (5, 20, 50):
    columns = [pipe.sample(3, steps=steps, eta=eta, seed=7, noise=noise[:3]) for eta in (0.0, 0.5, 1.0)]
    table[f"{steps} steps"] = torch.stack(columns, dim=1).flatten(0, 1)  # (3, 3, 1, 28, 28) -> (9, 1, 28, 28)
show(
    grids.show_rows(table),
    "2.10",
    "Three noises, for each of them $η$ = 0, 0.5 and 1. Without fresh noise (first, fourth and seventh column) the "
    "digit stays nearly the same from row to row. With fresh noise other digits appear.",
)

# %% [markdown]
# Which $\eta$ is better? Two effects compete. Long steps with fresh noise are worse: that was the toy, whose denoiser
# is perfect. But a network makes errors, and they add up along the way. Fresh noise covers old errors, and what follows
# starts again from a state that looks as it should. A sampler without it keeps every error it ever made. To see which
# effect wins, we have to measure. *cFID* is a distance between the features of generated and of real digits (chapter
# 8); figure 2.11 shows it divided by the cFID of as many real training digits. It is taken from the card of the
# weights; error bars, where the card has them, are standard errors. With 2,000 samples the error is about an eighth of
# the value, so a dip or a crossing of this size means nothing.

# %%
found = [row for row in figures(weights.read_card("ddpm")) if row["sampler"] in ("ddpm", "ddim")]
numbers = [row["num_samples"] for row in found]
most = max(set(numbers), key=numbers.count)  # only distances of equally many samples compare
(longest,) = {row["num_samples"] for row in found if row["steps"] == 1000}
curves = {}
for row in sorted(found, key=lambda row: (row["num_samples"], row["eta"], row["sampler"], row["steps"])):
    name = "ddpm" if row["sampler"] == "ddpm" or row["eta"] == 1 else "ddim"  # with eta = 1 they are the same
    if row["num_samples"] == most:
        bar = (row["ratio_error"],) if row["ratio_error"] else ()
        curves.setdefault(name, []).append((row["steps"], row["ratio"], *bar))
    if row["num_samples"] in (most, longest):
        error = f" ± {row['ratio_error']:.1f}" if row["ratio_error"] else ""
        print(f"{row['num_samples']:6,} samples, {name}, {row['steps']:5,} steps: {row['ratio']:4.1f}{error}", end="")
        print(f" times the distance of real digits, {row['doubtful']:.0%} doubtful (real: {row['doubtful_real']:.0%})")
show(
    plots.plot_quality(curves, floor=1.0, ylabel="cFID / that of real digits"),
    "2.11",
    "Quality against work on digits. Lower is better, and 1 is as good as real digits. From 50 steps on, more steps buy "
    "DDPM little; DDIM was measured up to 50.",
)

# %% [markdown]
# Let us test $\eta = 0$ against $\eta = 1$ with very few steps, on so few samples that it can be done on this page.
# Both get the same noises. These are plain cFIDs, not divided as above. Two hundred samples are few for 64 features,
# which raises them: compare them only with each other.

# %%
reference, live = reference_features()["test"], {}
for steps in (5, 10):
    for name, eta in (("ddim", 0.0), ("ddpm", 1.0)):
        seen = features(pipe.sample(200, steps=steps, eta=eta, seed=11))
        live[name, steps] = (frechet_distance(seen, reference), frechet_error(seen, reference))
    print(
        f"{steps:2} steps:",
        ", ".join(f"{n} {live[n, steps][0]:5.1f} ± {live[n, steps][1]:.1f}" for n in ("ddim", "ddpm")),
    )

# %% tags=["remove-cell"]
for n in (5, 10):
    (of_ddim, error_of_ddim), (of_ddpm, error_of_ddpm) = live["ddim", n], live["ddpm", n]
    assert abs(of_ddim - of_ddpm) < 2.5 * (error_of_ddim**2 + error_of_ddpm**2) ** 0.5  # neither is better
few = {(row["sampler"], row["steps"], row["eta"]): row for row in found if row["num_samples"] == 2000}
assert few["ddim", 50, 0.0]["ratio"] < 1.5 * few["ddpm", 1000, 0.0]["ratio"]  # most steps can be saved
for row in found:  # with and without fresh noise; a third of 2,000 samples' distance is about two standard errors
    other = [r for r in found if (r["eta"], r["steps"], r["num_samples"]) == (1.0, row["steps"], row["num_samples"])]
    if row["eta"] == 0 and row["sampler"] == "ddim" and other:
        gap, larger = abs(row["cfid"] - other[0]["cfid"]), max(row["cfid"], other[0]["cfid"])
        scatter = [r["cfid_error"] or 0.13 * larger * (2000 / r["num_samples"]) ** 0.5 for r in (row, other[0])]
        assert gap < 3 * sum(each**2 for each in scatter) ** 0.5, (row["steps"], gap, scatter)

# %% [markdown]
# The result is sobering. Most of the thousand steps can be saved, as figure 2.11 shows; but they can be saved with
# fresh noise as well. By cFID, the two samplers differ at equal numbers of steps by no more than about two standard
# errors. With fresh noise fewer digits are doubtful; the clear win on the toy is gone. On other pictures it is there:
# the paper reports, on CIFAR-10 and with 10 steps, an FID of 13.4 for $\eta = 0$ and of 41.1 for $\eta = 1$, and nearly
# equal ones with 1,000 steps (table 1 there).
#
# So on our digits DDIM does not buy better pictures. It buys three other things. Its equation can be solved by better
# methods than Euler's, such as DPM-Solver++ (chapter 7). Many methods that shorten the way by training start from it.
# And its noise means something, as the next three sections show.
#
# ## 9. The same noise gives the same digit
#
# With $\eta = 0$ nothing is random after the first noise. So the noise alone decides where the exact path ends; the
# number of steps decides how closely we follow it. Let us count: thirty noises, each with few and with 50 steps. How
# often does a classifier of the book read the same digit from both? And how often with fresh noise, where only the
# start is the same?

# %%
starts, read, same = pipe.noise(30, seed=21), {}, {}
for eta in (0.0, 1.0):
    for steps in (50, 20, 10, 5):
        drawn = pipe.sample(30, steps=steps, eta=eta, seed=22 + steps, noise=starts)
        read[steps] = logits(drawn).argmax(dim=1)
        same[eta, steps] = (read[steps] == read[50]).double().mean().item()
    agree = ", ".join(f"{same[eta, steps]:.0%} with {steps} steps" for steps in (20, 10, 5))
    print(f"eta = {eta:g}, the same digit as with 50 steps: {agree}")

# %% tags=["remove-cell"]
assert same[0.0, 20] >= same[0.0, 10] >= same[0.0, 5] > max(same[1.0, steps] for steps in (20, 10, 5))
assert same[0.0, 20] > 0.75

# %% [markdown]
# Without fresh noise most digits are the same, the more so the more steps. With fresh noise the digit is drawn anew
# each time. Move the slider of figure 2.12 to see one noise resolve as the sampler gets more steps.

# %%
COUNTS = (1, 2, 3, 4, 5, 7, 10, 20, 50, 100)
more = {count: pipe.sample(6, steps=count, noise=noise) for count in COUNTS if count not in rows}
frames = torch.stack([grids.grid((more | rows)[count], columns=3) for count in COUNTS])
captions = [f"{count} step{'s' if count > 1 else ''}" for count in COUNTS]
stored = scrubber.scrubber(
    frames, captions, label="DDIM", alt="Six digits, each from one noise, in 1 to 100 steps", start=4
)
show(
    in_page.live_after("ddpm", stored, steps=10),
    "2.12",
    "The six noises of figure 2.1 in 1 to 100 steps. A single step returns the posterior mean at $t = 1$, which is the "
    "mean of all digits.",
)

# %% [markdown]
# ## 10. From a picture to its noise
#
# A differential equation can be solved in either direction. Follow (6) upwards, from $t = 0$ to $t = 1$, and a picture
# should become a noise that it could have come from, its *code*; follow it down, and the picture is back. At $t = 0$
# there is no noise whose direction could be predicted, so we must begin a little later, at $t = 0.01$, where $x_t =
# \alpha_t x_0 + \sigma_t \epsilon$. The noise there is hardly visible. May we leave it out? (We do not clip $\hat x_0$
# here. What is clipped on the way up would be lost for the way down.)


# %%
raw = Denoiser(pipe.network, pipe.schedule, TARGETS[pipe.recipe.diffusion.target])  # without clipping of x0
FIRST = torch.tensor(0.01, dtype=torch.float64)


@torch.no_grad()
def follow(x, times):
    """Equation (4) with eta = 0, which is (6), along any times, upwards or downwards."""
    for t, s in itertools.pairwise(times):
        x0, eps = raw(x, t)
        alpha, sigma = pipe.schedule(s)
        x = alpha * x0 + sigma * eps
    return x


def upwards(steps):
    """Times from FIRST to 1."""
    times = samplers.time_grid(steps)
    return torch.cat([times[times > FIRST], FIRST[None]]).flip(0)


pictures = test.batch(torch.arange(12))[0]  # (12, 1, 32, 32)
alpha, sigma = pipe.schedule(FIRST)
little = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
beginnings = {"without": alpha * pictures, "with": alpha * pictures + sigma * little}
code, back, error, kept = {}, {}, {}, {}
for name, beginning in beginnings.items():
    for steps in (50, 10):
        code[name, steps] = follow(beginning.float(), upwards(steps))
        # Down to t = 0.01, where the prediction is the picture.
        back[name, steps] = pipe.to_images(raw(follow(code[name, steps], upwards(steps).flip(0)), FIRST).x0.detach())
        error[name, steps] = (back[name, steps] - pipe.to_images(pictures)).abs().mean().item()
        agree = logits(back[name, steps]).argmax(dim=1) == logits(pipe.to_images(pictures)).argmax(dim=1)
        kept[name, steps] = agree.double().mean().item()
        print(
            f"{name:>7} the first noise, {steps} steps: code of standard deviation {code[name, steps].std():.2f}; ",
            end="",
        )
        print(f"back, a pixel is off by {error[name, steps]:.3f} of 2, {kept[name, steps]:.0%} read as the same digit")
shown = {"picture": pipe.to_images(pictures[:8])}
for name in beginnings:
    shown[f"code {name}"] = data.crop(code[name, 50][:8]) / 3
    shown |= {f"back, {steps} steps": back[name, steps][:8] for steps in (50, 10)} if name == "with" else {}
show(
    grids.show_rows(shown),
    "2.13",
    "Pictures, their codes without and with the first trace of noise, and what the second codes decode to.",
)

# %% tags=["remove-cell"]
if test.name == "mnist":
    assert code["without", 50].std() < 0.6
    assert kept["with", 50] > 0.5 > kept["with", 10]
    assert 0.9 < code["with", 50].std() < 1.1
    assert all(error[name, 50] < error[name, 10] / 3 for name in beginnings)
    assert error["without", 50] < error["with", 50]

# %% [markdown]
# We may not (figure 2.13). Without its first trace of noise the code is much too weak: its standard deviation is far
# below 1, and the digit can be seen in it. The reason is that a real picture is no sample of $p_t$ at $t = 0.01$, and
# the network was never trained on such a state: its background is exactly $-1$. The walk upwards only enlarges the
# noise that is there, and here there is none. Begun from a proper sample of $p_t$, the code has standard deviation
# nearly 1, and is what we were looking for.
#
# The way back is not exact either. With 50 steps up and 50 down most digits return; with 10, most come back as other
# digits, for Euler's errors on the way up are not undone on the way down. The proper code even returns less exactly
# than the weak one, which never strays far from its picture.
#
# On the book's site you can try it on a digit of your own: draw one, and see its code (divided by 3, so that it can be
# seen) and what comes back. In the last row, noise is added to the drawing up to time $t$, five different noises, and
# DDIM brings each back from there (`editing.sdedit`). Details that are fainter than the noise are drawn anew.

# %%
in_page.drawing_board(("ddpm", "invert"), ("ddpm", "sdedit"))

# %% [markdown]
# ## 11. Between two noises
#
# If each noise has its picture, then the noises between two noises should have pictures between theirs. But what is
# *between*? In 1,024 dimensions the length of standard normal noise is nearly always close to $\sqrt{1024} = 32$. The
# middle of the straight line between two noises has a length of only $32 / \sqrt 2$, for the mean of two independent
# noises has half their variance, and the network has never seen such noise. So we interpolate on the sphere, at
# constant speed:
#
# $$\mathrm{slerp}(a, b, w) = \frac{\sin((1 - w)\,\theta)}{\sin\theta}\, a + \frac{\sin(w\,\theta)}{\sin\theta}\, b,
# \qquad \cos\theta = \frac{a \cdot b}{|a|\,|b|}. \tag{10}$$

# %%
a, b = noise[0:1], noise[5:6]
way = torch.linspace(0, 1, 9)
round_way = slerp(a.expand(9, -1, -1, -1), b.expand(9, -1, -1, -1), way)
straight = torch.lerp(a, b, way.reshape(-1, 1, 1, 1))
first, second = pipe.noise(120, seed=9).chunk(2)
ink_between = {}
for name, between, middle in (
    ("sphere", round_way, slerp(first, second, 0.5)),
    ("line", straight, (first + second) / 2),
):
    lengths = " ".join(f"{length:.0f}" for length in between.flatten(1).norm(dim=1))
    ink_between[name] = (pipe.sample(60, steps=10, noise=middle) + 1).mean().item() / 2
    print(f"{name:>6}: lengths {lengths}; in the middle {ink_between[name]:.1%} ink, mean of 60 pairs")
drawn = {name: pipe.sample(9, steps=20, noise=z) for name, z in (("sphere", round_way), ("line", straight))}
show(
    grids.show_rows(drawn), "2.14", "From one noise to another, on the sphere and on the straight line, 20 steps each."
)

# %% tags=["remove-cell"]
assert ink_between["line"] < ink_between["sphere"]

# %% [markdown]
# In figure 2.14 both ways arrive, and both pass mostly through digits. In the middle of the line the noise is too weak,
# and less ink is drawn than on the sphere, as the cell prints. Figure 2.15 moves along six such ways at once.

# %%
corners = pipe.noise(24, seed=12).unflatten(0, (4, 6))  # (4, 6, 1, 32, 32)
stops = [slerp(corners[n], corners[(n + 1) % 4], step / 6) for n in range(4) for step in range(6)]
pictures_on_the_way = pipe.sample(24 * 6, steps=15, noise=torch.cat(stops)).unflatten(0, (24, 6))
film = torch.stack([grids.grid(pictures, columns=6) for pictures in pictures_on_the_way])
show(
    animation.animate(film, milliseconds=150, alt="Six digits that turn into others and back, by slerp between noises"),
    "2.15",
    "Each digit passes through four noises and returns to the first. Every frame is sampled from a noise on the sphere; "
    "no pixels are blended. Where the way passes from one kind of digit to another, the samples may be no digits at all.",
)

# %% [markdown]
# <details><summary>What differs from the paper</summary>
#
# - Their network predicts the noise on a linear schedule; ours predicts $v$ on the cosine schedule. Equation (4) asks
#   only for a pair $(\hat x_0, \hat\epsilon)$ that adds up to $x_t$.
# - They choose the times linear or quadratic in the index (appendix D.2). Ours are linear, with trailing spacing.
# - We clip $\hat x_0$ to the range of pictures and compute $\hat\epsilon$ again from it. Their equations have no
#   clipping.
# - They also report a noisier DDPM, $\hat\sigma$, with the larger variance $\beta_t$. It is not in the family of (3),
#   and is the worst of all at few steps in their table 1.
#
# </details>
#
# ## Pitfalls
#
# - **Leading spacing**, `range(0, T, T // S)`, skips the noisy end and may give another number of steps (section 7).
# - **Clipping $\hat x_0$ alone** leaves a pair that no longer adds up to $x_t$: compute $\hat\epsilon$ again.
# - **The paper's $\alpha_t$** is DDPM's $\bar\alpha_t$. Code that confuses the two runs, and its samples are blurred.
# - **Fresh noise in the last step.** At $s = 0$, equation (5) gives 0. Code that adds noise there returns grain.
# - **Straight lines between noises** leave the sphere on which the network was trained (section 11).
# - **Encoding a picture without its first noise** gives a code that is no noise (section 10).
# - **Comparing steps.** A sampler may call the network more than once in a step. Count evaluations.
#
# ## Exercises
#
# `check` compares your function with the library, and recognises the usual mistakes.
#
# **1. DDIM as a rotation.** On a variance preserving schedule, $\alpha^2 + \sigma^2 = 1$, there is an angle $\varphi$ with
# $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$. Write the step of $\eta = 0$ with $x_t$, the network's $v =
# \alpha\,\hat\epsilon - \sigma\,\hat x_0$, and the angles only.

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def turned(x_t, v, phi_t, phi_s):
    """x_t and v (N, D), the two angles single tensors -> x_s, (N, D)."""
    ...  # your code here


check(turned)

# %% [markdown]
# <details><summary>Solution</summary>
#
# From $x_t = \cos\varphi_t\,\hat x_0 + \sin\varphi_t\,\hat\epsilon$ and $v = \cos\varphi_t\,\hat\epsilon -
# \sin\varphi_t\,\hat x_0$ follow $\hat x_0 = \cos\varphi_t\,x_t - \sin\varphi_t\,v$ and $\hat\epsilon =
# \sin\varphi_t\,x_t + \cos\varphi_t\,v$. Put both into (4). With $\delta = \varphi_t - \varphi_s$ the sums of
# products are cosines and sines of differences:
#
# $$x_s = \cos\delta\; x_t - \sin\delta\; v.$$
#
# ```python
# def turned(x_t, v, phi_t, phi_s):
#     delta = phi_t - phi_s
#     return delta.cos() * x_t - delta.sin() * v
# ```
#
# Every step turns $x_t$ by the angle $\delta$ away from $v$ (Salimans & Ho 2022, appendix D).
#
# </details>
#
# **2. A better solver.** Euler takes its slope at the start of a step. Heun's method goes to the end, takes the slope
# there too, and steps with the mean of the two. Write it for equation (7). (The first step starts at $\bar\sigma =
# 20{,}000$ and must stay Euler's. Why? And what about the last?) On the toy, by how much does the error fall when the
# number of steps doubles, and does it pay, given that each step now costs two evaluations?


# %% tags=["nbval-check-output"]
def heun_walk(denoiser, x, times):
    """x (N, D) at times[0] = 1, and times down to 0 -> (N, D) at 0. denoiser(x, t).eps is the slope."""
    ...  # your code here


check(heun_walk)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def heun_walk(denoiser, x, times):
#     for t, s in itertools.pairwise(times):
#         (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
#         length = sigma_s / alpha_s - sigma_t / alpha_t
#         slope = denoiser(x, t).eps
#         ahead = alpha_s * (x / alpha_t + length * slope)
#         if 0 < s and t < 1:  # at s = 0 there is no noise left to predict
#             slope = (slope + denoiser(ahead, s).eps) / 2
#         x = alpha_s * (x / alpha_t + length * slope)
#     return x
# ```
#
# The first step is nearly 20,000 long. On the straight part of the path Euler's slope serves for all of it, and a slope
# from its other end, a little off, would be multiplied by 10,000. With that step left alone, the error falls ever
# faster as steps double, towards a factor of four; Euler's falls by a factor of two. Yet at equal evaluations Euler is
# ahead on short walks, and Heun overtakes it only on long ones. For few steps a better solver has to be built with more
# care; chapter 7 has one.
#
# </details>

# %% tags=["remove-cell"]
# The two solutions above and below, on the toy.
of_heun = {}
for steps in (5, 10, 20, 40, 80):
    x = even_noise(1000)
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
        length, slope = sigma_s / alpha_s - sigma_t / alpha_t, toy(x, t).eps
        if s > 0 and t < 1:
            slope = (slope + toy(alpha_s * (x / alpha_t + length * slope), s).eps) / 2
        x = alpha_s * (x / alpha_t + length * slope)
    of_heun[steps] = (x - finest).abs().mean().item()
assert 2 < of_heun[20] / of_heun[40] < of_heun[40] / of_heun[80]
assert all(errors[2 * steps] < of_heun[steps] for steps in (5, 10, 20))  # at equal evaluations
ends = {}
for steps in (10, 1000):
    x = even_noise(5000)
    generator = torch.Generator().manual_seed(0)
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        alpha, sigma = cosine(s)
        x = alpha * toy(x, t).x0 + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    ends[steps] = ((x > 0).double().mean().item(), x[x > 0].std().item())
assert all(upper > 0.73 and spread < 0.9 * SPREAD for upper, spread in ends.values()), ends

# %% [markdown]
# **3. The parameter $\eta$, and beyond.** Write the step (4) with the $\sigma_\eta$ of (5). Equation (3) allows
# $\sigma_\eta$ up to $\sigma_s$, which is beyond $\eta = 1$. What does a walk with $\sigma_\eta = \sigma_s$ do? Try it
# on the toy with 10, 100 and 1,000 steps.


# %% tags=["nbval-check-output"]
def dial_step(x_t, x0, z, t, s, eta):
    """State, prediction of the picture and fresh noise (N, D), the times single tensors, eta a number -> x_s."""
    ...  # your code here


check(dial_step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def dial_step(x_t, x0, z, t, s, eta):
#     (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
#     fresh = eta * sigma_s / sigma_t * (1 - alpha_t**2 / alpha_s**2).sqrt()  # sigma_eta
#     eps = (x_t - alpha_t * x0) / sigma_t
#     return alpha_s * x0 + (sigma_s**2 - fresh**2).sqrt() * eps + fresh * z
# ```
#
# With $\sigma_\eta = \sigma_s$ all noise is replaced: $x_s = \alpha_s \hat x_0 + \sigma_s z$. Of $x_t$ nothing is kept
# but $\hat x_0$. If that were the true $x_0$, the distributions (2) would be right. But it is a mean, so each step
# loses some of the variance: the modes come out too narrow, the upper one gets too many points, and more steps do not
# mend it. With $\eta \le 1$ the fraction of fresh noise goes to zero with the length of the step, and the error goes
# with it.
#
# </details>
#
# **4. Trailing spacing.** Write the grid of section 7: for $S$ steps, the $S + 1$ times from 1 down to 0, all of them
# thousandths, as they were in the training, and as evenly spaced as these allow.


# %% tags=["nbval-check-output"]
def grid_of_times(steps):
    """A number of steps -> the times that they start and end at, a tensor."""
    ...  # your code here


check(grid_of_times)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def grid_of_times(steps):
#     return torch.linspace(1000, 0, steps + 1, dtype=torch.float64).round() / 1000
# ```
#
# </details>
#
# ## Summary
#
# - The loss fixes $q(x_t \mid x_0)$ at each time, and not how two times depend on each other. A whole family of
#   samplers shares one network.
# - A DDIM step splits $x_t$ into picture and noise and mixes them again for the next time. $\eta$ sets how much of the
#   noise is replaced. $\eta = 1$ is DDPM.
# - $\eta = 0$ is Euler's method for the probability-flow ODE. By the continuity equation, this ODE has the same $p_t$
#   as the noisy data at every time.
# - Its paths are nearly straight in $(\sigma / \alpha,\, x / \alpha)$, so few steps are enough. How much this buys
#   depends on the network, whose errors fresh noise would cover.
# - Without fresh noise, a noise stands for a digit: mostly the same in fewer steps, with a way back from picture to
#   noise, and with pictures between two pictures.
# - Sampling has to begin where the training ends, at pure noise: trailing spacing, and zero terminal SNR.
#
# ## References
#
# - J. Song, C. Meng, S. Ermon (2020). *Denoising Diffusion Implicit Models.* ICLR 2021. arXiv:2010.02502.
# - J. Ho, A. Jain, P. Abbeel (2020). *Denoising Diffusion Probabilistic Models.* NeurIPS 2020. arXiv:2006.11239.
# - Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole (2021). *Score-Based Generative Modeling
#   through Stochastic Differential Equations.* ICLR 2021. arXiv:2011.13456.
# - S. Lin, B. Liu, J. Li, X. Yang (2024). *Common Diffusion Noise Schedules and Sample Steps are Flawed.* WACV 2024.
#   arXiv:2305.08891.
# - T. Salimans, J. Ho (2022). *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022.
#   arXiv:2202.00512.
# - K. Shoemake (1985). *Animating Rotation with Quaternion Curves.* SIGGRAPH 1985.
