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
# # Rectified flow: the straight way from noise to picture
#
# *Runs in about a minute on two CPU cores, without a network connection. Nearly half of that is live training. Needs
# chapters 1, 2 and 4; its last section also chapter 5.*
#
# Chapter 2 ended at a differential equation: a sampler without fresh noise follows a smooth path, and each step that
# cuts a bend short costs quality. There the paths came with the model, bends and all. This chapter asks for straight
# ones from the start. It needs less theory than anything before it: mix a picture with noise along a straight line, and
# let a network learn the speed. What it leads to are digits in a single evaluation of the network.
#
# You will
#
# - watch straight paths cross in the plane, see why a flow cannot follow them, and what it does instead;
# - derive the method in four equations, and find that Euler's step on it is a sampler you know;
# - straighten a flow by training it on its own results, and measure how straight it became;
# - tell Euler, midpoint and Heun apart, and count what each really costs;
# - walk from noise to digits in fifty steps, in ten, in two, and in one.
#
# The sources are Liu, Gong & Liu, *Flow Straight and Fast* (2022), and Lipman et al., *Flow Matching* (2022), who found
# the same objective in the same autumn.

# %% [markdown]
# ## Set-up, and what we are after
#
# Digits of a trained flow: ten steps of the midpoint method, which are twenty evaluations.

# %%
import copy
import dataclasses
import itertools
import math
import time

import torch
from torch import nn
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, objective, samplers, targets
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.models import pipelines, weights
from diffusion_book.models.recipes import TrainingConfig, recipe_of
from diffusion_book.networks.unet import UNet
from diffusion_book.schedules import add_noise, cosine, rectified
from diffusion_book.targets import Prediction
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion, loss_of_reflow
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import flows, grids, in_page, plots, scrubber, strips, style, toy

DATASET = "auto"  # MNIST; or "fashion-mnist", "kmnist", "digits": see section 10
MODEL = "rf"  # the weights that come with the book; or the folder of a training of your own

style.use_style()
pipe = diffusion_book.load(MODEL)
train, test = data.load(DATASET), data.load(DATASET, "test")
begun = time.perf_counter()
samples = pipe.sample(64, sampler="midpoint", steps=10, seed=0)
print(f"64 digits in {time.perf_counter() - begun:.1f} seconds; data: {train.name}")
grids.show_grid(samples, columns=16)

# %% [markdown]
# ## 1. The straight path
#
# The diffusion models so far mixed picture and noise as $\alpha_t x_0 + \sigma_t \epsilon$ with $\alpha^2 + \sigma^2 =
# 1$: from picture to noise along an arc. The straight way is simpler:
#
# $$x_t = (1 - t)\, x_0 + t\, \epsilon. \tag{1}$$
#
# Its derivative does not depend on $t$. Each point moves with one constant velocity:
#
# $$\frac{d x_t}{d t} = \epsilon - x_0. \tag{2}$$
#
# As everywhere in this book, $t = 0$ is the picture and $t = 1$ is noise. *Many papers on flows, the original among
# them, let time run the other way, from noise at 0 to data at 1.* Their velocity is $x_0 - \epsilon$. Nothing else
# changes, but whoever mixes code from both will meet this sign again.
#
# In the library, (1) is `schedules.rectified` and (2) is `targets.velocity`.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(0)
clean, noise = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
t, h = torch.tensor(0.3, dtype=torch.float64), 1e-4
slope = (add_noise(rectified, clean, noise, t + h) - add_noise(rectified, clean, noise, t)) / h
velocity = targets.target_value(targets.velocity, clean, noise, *rectified(t))
print("the slope of the path is noise minus picture:", bool((slope - velocity).abs().max() < 1e-9))

# %% [markdown]
# Here are both ways for two digits, from the same noise.

# %%
times = torch.linspace(0, 1, 11)
x0, eps = test.batch(torch.tensor([3, 2]))[0], pipe.noise(2, seed=1)
ways = [torch.stack([data.crop(add_noise(path, x0, eps, t)) for t in times], 1) for path in (cosine, rectified)]
strips.show_strip(times.tolist(), torch.stack(ways, 1).flatten(0, 1), title="The cosine path, and the straight one")

# %% [markdown]
# They differ less than one would think, and at the ends not at all. On the straight path contrast falls in the middle,
# where picture and noise are both at half their strength: their variances do not sum to one any more.
#
# ## 2. Straight paths cross
#
# The world of this section is the plane. The data are two heaps, one on the left and one on the right. Each training
# pair is made as in all chapters: a point of the data, and noise that has nothing to do with it.


# %%
def heaps(count):
    """Points of two heaps, (N, 2)."""
    side = 2.0 * torch.randint(0, 2, (count, 1), generator=generator) - 1
    return torch.cat([2 * side, torch.zeros(count, 1)], dim=1) + 0.3 * torch.randn(count, 2, generator=generator)


def by_chance(count):
    """A batch of data points, and noise that was drawn apart from them."""
    return heaps(count), torch.randn(count, 2, generator=generator)


x0, eps = by_chance(60)
flows.show_tracks({"Pairs by chance: $x_t$ for t from 1 to 0": torch.stack([eps, x0])})

# %% [markdown]
# Each line is as straight as can be. But no flow can follow them. A flow is a rule that says how a point at $x$ moves
# at time $t$. Where two lines meet at the same time, it would have to send one point two ways.
#
# What can it do instead? Ask for a velocity $u(x_t, t)$ with the least squared error:
#
# $$L = \mathbb E\, \big| u(x_t, t) - (\epsilon - x_0) \big|^2, \qquad \text{smallest for } \;
# u^*(x_t, t) = \mathbb E[\, \epsilon - x_0 \mid x_t \,]. \tag{3}$$
#
# Regression gives the mean. It always does: whoever must name one number for many, and pays for squares, names their
# average. So at a crossing the flow goes in the *mean* direction of all lines that pass there. And since the
# noise follows from $x_t$ and $x_0$ by (1), $\epsilon = (x_t - (1 - t) x_0) / t$, we can also write
#
# $$u^*(x_t, t) = \frac{x_t - \hat x_0}{t}, \qquad \hat x_0 = \mathbb E[x_0 \mid x_t]. \tag{4}$$
#
# This is our old friend the denoiser in new clothes. Step back by the whole of $t$ along $u^*$, and you arrive at its
# best guess.
#
# Check both on a line. If the data are the two points $-1$ and $1$, Bayes' rule gives $\hat x_0 = \tanh((1 - t) x_t /
# t^2)$. Against that we hold the mean over all of three million draws that pass close by.


# %%
# NBVAL_CHECK_OUTPUT
def exact_velocity(x, t):
    """Equation (4) for data at -1 and 1."""
    return (x - torch.tanh((1 - t) * x / t**2)) / t


points = 2.0 * torch.randint(0, 2, (3_000_000,), generator=generator) - 1
eps = torch.randn(points.shape, generator=generator)
x_t = 0.4 * points + 0.6 * eps  # t = 0.6
for x in (-0.8, -0.2, 0.5):
    near = (x_t - x).abs() < 0.01
    measured, exact = (eps - points)[near].mean(), exact_velocity(torch.tensor(x), 0.6)
    print(f"x = {x:4}: {exact:5.2f} by (4); the mean of the draws agrees: {bool((measured - exact).abs() < 0.05)}")

# %% [markdown]
# ## 3. The flow that is learned
#
# So the loss is four lines. It is also the loss of chapter 1, with another path and another target, and we assert it.


# %%
# NBVAL_CHECK_OUTPUT
def flow_loss(network, x0, eps, t):
    """Equation (3), one number a pair: (B, ...), (B, ...), (B,) -> (B,)."""
    time = t.reshape(-1, *[1] * (x0.ndim - 1))  # (B,) -> (B, 1, ...)
    x_t = (1 - time) * x0 + time * eps
    return (network(x_t, t) - (eps - x0)).square().flatten(1).mean(dim=1)


class Small(nn.Module):
    """A network for the plane: (B, 2) and times (B,) to a velocity, (B, 2)."""

    def __init__(self):
        super().__init__()
        layers = [part for pair in itertools.pairwise((3, 64, 64, 64, 2)) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])  # no SiLU after the last

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], dim=1))


network, (x0, _), draws = Small(), by_chance(64), torch.Generator().manual_seed(2)
t, eps = objective.uniform(64, draws).float(), torch.randn(64, 2, generator=draws)
same = {"schedule": rectified, "target": targets.velocity, "generator": torch.Generator().manual_seed(2)}
assert_close(flow_loss(network, x0, eps, t), objective.diffusion_loss(network, x0, **same))
print("the loss of", len(t), "pairs is the library's")

# %% [markdown]
# To sample is to start with noise and to follow $u$ back to $t = 0$, in small steps against the velocity:
#
# $$\frac{dx}{dt} = u(x, t), \qquad x_s = x_t + (s - t)\, u(x_t, t), \quad s < t. \tag{5}$$


# %%
def fit(draw, time_sampling=objective.uniform, steps=1000):
    """A flow, trained on the pairs that draw(count) gives."""
    torch.manual_seed(0)
    network, draws = Small(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        loss = flow_loss(network, *draw(256), time_sampling(256, draws).float())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return network


@torch.no_grad()
def follow(network, x, steps):
    """Equation (5): all states of a walk, (S + 1, N, 2)."""
    states = [x]
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        states.append(states[-1] + (s - t) * network(states[-1], t.float().expand(len(x))))
    return torch.stack(states)


flow, starts = fit(by_chance), torch.randn(60, 2, generator=generator)
tracks = follow(flow, starts, 50)
pairs = tracks[[0, -1]]
flows.show_tracks({"The learned flow, 50 steps": tracks, "Its starts and ends": pairs})

# %% [markdown]
# On the left no two points are ever at the same place at the same time. They begin by walking towards the middle, for
# at $t = 1$ the mean velocity aims at the mean of the data. Then each makes up its mind and turns to the heap *on its
# own side*. On the right are the same points once more, each joined with its end by a line. The flow has sorted the
# tangle: it has made new pairs.
#
# ## 4. Why it ends in the data
#
# The flow joins other points than the training pairs did. Why do its points still end as the data are distributed? Because
# of bookkeeping. Let $p_t$ be the density of all $x_t$ in (1). Put a small box anywhere. How many points are in it a
# moment later depends only on how many come in through its walls and how many leave: on the density there times the
# *mean* velocity. That is the continuity equation,
#
# $$\frac{\partial p_t}{\partial t} = - \nabla \cdot (p_t\, u), \qquad u = \mathbb E[\, \epsilon - x_0 \mid x_t \,].
# \tag{6}$$
#
# The crossing lines stream through a wall at many velocities, the flow at their mean; as much passes in both cases.
# So no box notices the exchange, at any time. Starting with the same noise, the flow has at every $t$ the same density
# as the straight paths, and at $t = 0$ that of the data.
#
# On a line we can check this in numbers. There points that never overtake keep their rank. Point $i$, which starts
# at the quantile $q_i$ of the noise, must stay at the quantile $q_i$ of $x_t$, and the distribution of $x_t$ is known:
# two Gaussians around $\pm(1 - t)$ with standard deviation $t$.

# %%
# NBVAL_CHECK_OUTPUT
rank = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
x = torch.special.ndtri(rank)
for t, s in itertools.pairwise(samplers.time_grid(1000)[:801]):
    x = x + (s - t) * exact_velocity(x, t)
    if round(1000 * s.item()) in (800, 500, 200):
        now = torch.special.ndtr(torch.stack([(x - (1 - s)) / s, (x + (1 - s)) / s])).mean(0)
        print(f"t = {s:.1f}: all 1,000 points keep their rank to 0.002:", bool((now - rank).abs().max() < 0.002))

# %% [markdown]
# ## 5. Straightness, and reflow
#
# The tracks bend, so long steps will miss. By how much do they bend? Liu et al. compare the velocity with that of
# the straight line between a path's own ends, its chord:
#
# $$S = \int_0^1 \mathbb E\, \Big| (x_1 - x_0) - \frac{d x_t}{d t} \Big|^2 dt. \tag{7}$$
#
# $S = 0$ means that every point moves on a straight line at constant speed. One step of (5) then arrives where a
# thousand do.


# %%
def straightness(states):
    """Equation (7) for the states of evenly spaced times from 1 to 0: (S + 1, N, ...) -> S, and S / E|x_1 - x_0|^2."""
    chord = states[0] - states[-1]
    velocity = (states[:-1] - states[1:]) * (len(states) - 1)
    off = (velocity - chord).flatten(2).square().sum(dim=2).mean().item()
    return off, off / chord.flatten(1).square().sum(dim=1).mean().item()


for name, states in (("its starts and ends, joined by straight lines", pairs), ("the learned flow", tracks)):
    print(f"{name:>45}: S = {straightness(states)[0]:.2f}")

# %% [markdown]
# Now the idea that gave the paper its name. The flow has made new pairs of noise and data, and the lines between those
# hardly cross. So draw some, *and train again on them*:
#
# $$L_{\text{reflow}} = \mathbb E\, \big| u(x_t, t) - (\epsilon - x_0) \big|^2, \qquad
# x_t = (1 - t)\, x_0 + t\, \epsilon, \qquad x_0 = \mathrm{flow}(\epsilon). \tag{8}$$
#
# It is (3), but for one thing: $x_0$ is not drawn from the data, it belongs to its $\epsilon$. Where no lines cross
# there is nothing to average, and what is not averaged stays straight.

# %%
given = torch.randn(8192, 2, generator=generator)
made = follow(flow, given, 50)[-1]


def by_the_flow(count):
    """A batch of points that the flow has made, and the noise that it made them of."""
    index = torch.randint(len(given), (count,), generator=generator)
    return made[index], given[index]


reflowed = fit(by_the_flow)
straighter = follow(reflowed, starts, 50)
print(f"S was {straightness(tracks)[0]:.3f} and is {straightness(straighter)[0]:.3f}")
flows.show_tracks({"The first flow": tracks, "After reflow": straighter})

# %% [markdown]
# The bends are gone. What that buys shows in a single step:


# %%
def steps_of(n):
    return f"{n} step" if n == 1 else f"{n} steps"


fresh = torch.randn(800, 2, generator=generator)
both = (("flow", flow), ("reflow", reflowed))
flows.show_clouds({f"{name}, {steps_of(n)}": follow(f, fresh, n)[-1] for name, f in both for n in (1, 50)})

# %% [markdown]
# One step of the first flow lands every point at the mean of the data, where there are none. After reflow it lands them
# in the heaps. A few points between show where it is hardest: close neighbours that go to different sides.
#
# Note what reflow does not do. It learns from its parent and never sees the data. In few steps it beats its parent, but
# it can never be better than its parent is in many.
#
# Here is all of this section once more, to be moved: a flow that trains in your browser, on points that you choose or
# draw. Press Play, wait until the points on the right look like those on the left, pull the steps from noise down to
# one, and see where all points land. Then press Reflow: $S$ (relative to the length of the chords) falls, the ways
# become straight, and the single step hits.

# %%
toy.toy("moons", "velocity")

# %% [markdown]
# ## 6. Euler's step is DDIM
#
# Chapter 2 derived DDIM from a freedom in the loss. Put the straight path into its step with $\eta = 0$:
#
# $$x_s = (1 - s)\, \hat x_0 + s\, \hat\epsilon = \underbrace{(1 - t)\, \hat x_0 + t\, \hat\epsilon}_{x_t}
# + (s - t)(\hat\epsilon - \hat x_0). \tag{9}$$
#
# The right side is (5). A rectified flow sampled with Euler *is* DDIM with $\eta = 0$; two fields have met. We check
# all thousand steps, with any guess, to the last digits of a double.

# %%
# NBVAL_CHECK_OUTPUT
x_t, guess = torch.randn(2, 64, 4, generator=generator, dtype=torch.float64)
largest = 0.0
for t, s in itertools.pairwise(samplers.time_grid(1000)):
    eps = (x_t - (1 - t) * guess) / t
    how = {"schedule": rectified, "noise": torch.zeros_like(x_t)}
    ddim = samplers.ddim(Prediction(guess, eps), x_t, t, s, eta=0.0, **how)
    difference = ((x_t + (s - t) * (eps - guess)) - ddim).abs() / (1 + eps.abs())
    largest = max(largest, difference.max().item())
assert largest < 1e-14
print("1,000 steps: Euler is DDIM with eta = 0, to 1e-14:", largest < 1e-14)

# %% [markdown]
# ## 7. Solvers
#
# Euler uses the velocity at the start of a step for all of it. Two old methods ask twice and do better. The *midpoint*
# method goes half the way, asks there, and takes that answer for the whole step. *Heun's* method goes the whole
# way, asks at the end, and walks again with the mean of both answers:
#
# $$\text{midpoint: } x_s = x_t + (s - t)\, u\big(x_t + \tfrac{s - t}{2} u_t,\; \tfrac{s + t}{2}\big), \qquad
# \text{Heun: } x_s = x_t + (s - t)\, \frac{u_t + u(x_t + (s - t)\, u_t,\; s)}{2}. \tag{10}$$


# %%
def my_euler(u, x, t, s):
    return x + (s - t) * u(x, t)


def my_midpoint(u, x, t, s):
    middle = (t + s) / 2
    return x + (s - t) * u(my_euler(u, x, t, middle), middle)


def my_heun(u, x, t, s):
    first = u(x, t)
    if s == 0:  # no noise is left there to ask about
        return x + (s - t) * first
    return x + (s - t) * (first + u(x + (s - t) * first, s)) / 2


SOLVERS = {"euler": my_euler, "midpoint": my_midpoint, "heun": my_heun}

# %% [markdown]
# To measure errors we need an equation whose solution is known. Section 4 gave us one: on a line, points keep their
# rank. Let the data be two Gaussian heaps around $-1$ and $1$. We choose where points shall end, and from the rank that
# they have there we know where in the noise they must have started. We compare with the library's steps, and count
# each call of the velocity.


# %%
# NBVAL_CHECK_OUTPUT
SPREAD = 0.4


def exact_denoiser(x, t):
    """The best guess for data around -1 and 1, with the standard deviation SPREAD."""
    exact_denoiser.calls += 1
    alpha, sigma = rectified(t)
    variance = (alpha * SPREAD) ** 2 + sigma**2
    centre = torch.tanh(alpha * x / variance)  # which heap: between -1 and 1
    away = (x - alpha * centre) / variance
    return Prediction(centre + alpha * SPREAD**2 * away, sigma * away)


def exact_flow(x, t):
    guess = exact_denoiser(x, t)
    return guess.eps - guess.x0


def solve(solver, x, steps):
    """The end of a walk, and how many evaluations it took."""
    exact_denoiser.calls = 0
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        x = SOLVERS[solver](exact_flow, x, t, s)
    return x, exact_denoiser.calls


goal = torch.linspace(-1.8, 1.8, 500, dtype=torch.float64)[:, None]
rank = torch.special.ndtr(torch.cat([goal - 1, goal + 1], dim=1) / SPREAD).mean(1, keepdim=True)
origin = torch.special.ndtri(rank)
for name in SOLVERS:
    x, calls = solve(name, origin, 10)
    step, how = samplers.SAMPLERS[name], {"schedule": rectified, "generator": generator}
    *_, state = samplers.sample(exact_denoiser, origin, samplers.time_grid(10), step, **how)
    assert_close(x, state.x, rtol=0, atol=1e-12)
    assert calls == samplers.evaluations(name, 10)
    print(f"{name:>8}: as in the library; 10 steps are {calls} evaluations")

# %%
errors = {name: [] for name in SOLVERS}
for name, steps in itertools.product(SOLVERS, (5, 10, 20, 50, 100, 200)):
    x, calls = solve(name, origin, steps)
    errors[name].append((calls, (x - goal).abs().mean().item()))
for name, (*_, (_, before), (_, after)) in errors.items():
    print(f"{name:>8}: from 100 to 200 steps the error falls by 2 to the power {math.log2(before / after):.2f}")
flows.plot_orders(errors)

# %% [markdown]
# That power is the order of a method, and the slope of its line. Euler has order 1, the other two order 2. They are two
# different methods of the same order, so their lines are parallel and not the same. All lines are drawn over
# *evaluations*, not steps: that is what one waits for. (Heun's last step, to $t = 0$, stays Euler's, hence 19 and not
# 20.)
#
# An order is a promise for short steps and a smooth $u$. A network keeps it only as far as its own errors are smaller.
#
# ## 8. And the diffusion models?
#
# Better solvers exist for curved paths too. DPM-Solver++ (2M) treats noise exactly, as DDIM does, and continues $\hat
# x_0$ in a straight line through its last *two* values. The second value is a memory of the step before, so order 2
# costs nothing: one evaluation a step. Take the DDPM of chapter 1, from the same eight noises.

# %%
ddpm = diffusion_book.load("ddpm")
noise = ddpm.noise(8, seed=2)
drawn = {
    f"{sampler}, {steps}": ddpm.sample(8, sampler=sampler, steps=steps, noise=noise)
    for sampler, steps in (("ddim", 100), ("dpm++", 10), ("ddim", 10), ("dpm++", 5), ("ddim", 5))
}
best = drawn["ddim, 100"]
for name, pictures in drawn.items():
    print(f"{name:>9} evaluations: a pixel is off by {(pictures - best).abs().mean():.3f}")
grids.show_rows(drawn)

# %% [markdown]
# Compare, at the same number of evaluations, how far each is from the long walk.
#
# ## 9. Which times to train on
#
# The loss (3) is an average over $t$, and nothing says that the average must be even. At $t = 1$ the best answer is
# $\epsilon - \mathbb E[x_0]$: a constant is all there is to learn. Near $t = 0$ the picture lies open. What a digit
# will be is decided between. So Esser et al. (the paper behind Stable Diffusion 3) draw the logit of $t$ from a normal
# distribution,
#
# $$t = \frac{1}{1 + e^{-z}}, \quad z \sim \mathcal N(m, s^2), \qquad
# p(t) = \frac{1}{s\sqrt{2\pi}}\, \frac{1}{t (1 - t)}\, \exp\!\Big( \!-\frac{(\operatorname{logit} t -
# m)^2}{2 s^2} \Big).
# \tag{11}$$


# %%
def density(t, m=0.0, s=1.0):
    """Equation (11)."""
    return torch.exp(-((torch.logit(t) - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi) * t * (1 - t))


middle = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
drawn = torch.histc(objective.logit_normal(100_000, generator).float(), 100, 0, 1) / 1000
print(f"the library's draws differ from (11) by at most {(drawn - density(middle)).abs().max():.2f}")
curves = {"uniform": torch.ones(100), "logit-normal": density(middle), "m = -0.5": density(middle, -0.5)}
plots.plot_curves(middle, curves, "time t", "density of training times", ylim=(0, 2.2))

# %% [markdown]
# ## 10. A live training
#
# Does it matter? Two flows are trained from the same start for twelve seconds each, one with even times, one with
# logit-normal ones. They take turns, step by step, so that neither gets more of the machine. Both work on the latents
# of chapter 4, where seconds are enough. Nothing in the recipe is new but the path, the target and the times.

# %%
SECONDS = 12
vae, recipe = diffusion_book.load("vae"), recipe_of("latent-rf")
few = data.Dataset(train.name, train.images[:6000], train.labels[:6000])
latents = encode_dataset(vae, few)
settings = TrainingConfig(epochs=100_000, batch_size=32, lr=3e-3, warmup_steps=20, ema_decay=0.98)


def flow_trainer(time_sampling):
    """Trains a flow of latents from scratch, for SECONDS."""
    torch.manual_seed(0)
    how = dataclasses.replace(recipe.diffusion, time_sampling=time_sampling)
    return Trainer(UNet(recipe.network), loss_of_latent_diffusion(how), latents, settings, max_minutes=SECONDS / 60)


untrained = UNet(recipe.network)
trainers = {name: flow_trainer(name) for name in ("logit_normal", "uniform")}
reports = list(zip(*(trainer.steps() for trainer in trainers.values()), strict=False))
for name, first, last in zip(trainers, reports[0], reports[-1], strict=True):
    print(f"{name:>12}: {len(reports):,} steps, loss {first.loss:.2f} at first, {last.loss:.2f} at the end")


# %%
def distance(pictures):
    """cFID of a few pictures: rough, and only to be compared with one of as many."""
    return frechet_distance(features(pictures), reference_features()["test"])


race = {"untrained": untrained} | {name: trainer.ema.network for name, trainer in trainers.items()}
models = (pipelines.build(recipe, network.state_dict(), autoencoder=vae) for network in race.values())
race = {name: model.sample(200, steps=20, seed=0) for name, model in zip(race, models, strict=True)}
for name, pictures in race.items():
    print(f"{name:>12}: cFID {distance(pictures):.1f}")
grids.show_rows({name: pictures[:12] for name, pictures in race.items()})

# %% [markdown]
# Both learn, and twelve seconds are too short to name a winner: repeat the race with another seed, and the gap changes.
# The paper trained 61 variants, each for a long time, before it ranked them. But it is free, so the recipes of this
# book's flows use it. One thing you must not do: compare the two training losses. They are averages over different
# times. (Without MNIST both learn scikit-learn's digits, and cFID still compares with MNIST: then only the pictures
# count.)
#
# **Try on another set.** With `DATASET = "fashion-mnist"` or `"kmnist"` at the top, both flows of this race learn from
# it, though through an autoencoder that knows only the strokes of digits, and section 1 takes its pictures apart. The
# shipped weights stay those of MNIST. The same flow for other pictures is trained in a shell,
#
# ```bash
# diffusion-book train rf --dataset fashion-mnist --max-minutes 60
# ```
#
# which prints its folder last. Set `MODEL` to that, with `../` before it, and section 11 draws with your flow.
# `diffusion-book train rf-reflow --reflow-from FOLDER` straightens it.
#
# ## 11. The shipped weights
#
# `rf` has the very network of chapter 1's `ddpm`, and learned from the same data. Each column is one noise, each row a
# number of Euler steps.

# %%
card = weights.read_card("rf")
for name, its in (("rf", card), ("ddpm", weights.read_card("ddpm"))):
    print(f"{name:>5}: {its['parameters']:,} parameters, {its['minutes']:.0f} minutes on {its['data_set']}")
noise = pipe.noise(12, seed=3)
by_steps = {n: pipe.sample(12, sampler="euler", steps=n, noise=noise) for n in (1, 2, 4, 10, 50)}
grids.show_rows({steps_of(n): pictures for n, pictures in by_steps.items()})

# %% [markdown]
# One step gives $\hat x_0$ at $t = 1$. The best answer there is the mean of all digits, whatever the noise: the
# crossing in the middle of section 2. (The network's answer is not quite that. Logit-normal times seldom visit the end,
# so nobody taught it to ignore the noise there altogether.) Go down the rows, or pull the slider below: from how many
# steps on can you read every digit, and from where does nothing change any more? (On the book's site a button below the
# slider loads the flow into the page: then you choose the sampler and the seed as well.)

# %%
COUNTS = (1, 2, 3, 4, 5, 7, 10, 20, 50)
more = {n: pipe.sample(12, sampler="euler", steps=n, noise=noise) for n in COUNTS if n not in by_steps} | by_steps
frames = torch.stack([grids.grid(more[n][:6], columns=3) for n in COUNTS])
captions = [steps_of(n) for n in COUNTS]
alt = "Six digits of a rectified flow, in 1 to 50 steps"
in_page.live_after(
    MODEL, scrubber.scrubber(frames, captions, label="Euler", alt=alt, start=4), steps=5, sampler="euler"
)

# %% [markdown]
# How straight are its paths? The same measure as in the plane, now in 1,024 dimensions, and the paths of `ddpm` beside
# it. In the figure each thin line is one sample: how far it is from where it would be on a straight line at constant
# speed.

# %%
bends, grid = {}, samplers.time_grid(50)
for name, model in (("rf", pipe), ("ddpm", ddpm)):
    states = torch.stack([state.x.cpu() for state in model.states(range(24), steps=50, seed=5)])
    bends[name] = (grid, states)
    total, share = straightness(states)
    print(f"{name:>5}: S = {total:6.1f}, which is {share:.3f} of the squared length of the chords")
flows.show_bends(bends)

# %% [markdown]
# The flow is much closer to its chords. It is not straight, as its pairs were made by chance. (To be fair to `ddpm`: it
# was never meant to be straight in these coordinates. Chapter 2 found some in which it nearly is.)
#
# What it means for samples, the cards tell. Every point is measured with the same number of samples, and stands at
# the evaluations it took.

# %%
points = {}
for name, wanted in (("rf", ("euler", "midpoint", "heun")), ("ddpm", ("ddim", "dpm++"))):
    for row in figures(weights.read_card(name)):
        if row["sampler"] in wanted and row["eta"] == 0.0 and row["num_samples"] == 10_000:
            work = samplers.evaluations(row["sampler"], row["steps"])
            points.setdefault((name, row["sampler"]), []).append((work, row["ratio"]))
flows.plot_solvers(points, floor=1.0, ylabel="cFID / floor (lower is better)")

# %% [markdown]
# ## 12. Reflow, for digits
#
# Now the second training, on pictures. First the pairs: 40,000 noises, each followed by `rf` to its digit with ten
# steps of midpoint. Then (8), beginning with the weights of `rf`. In the library the pair is stacked as channels; the loss
# is the one we know.
#
# One thing has turned round: the times. Lines that hardly cross leave little to decide in the middle, where picture and
# noise are both half in sight. What remains to be learned lies at the ends, and a single step asks at one end alone. So
# reflow draws its times from a U, $p(t) \propto \cosh\big(2\,(2t - 1)\big)$ (Lee et al. 2024):

# %%
ends = 2 / math.sinh(2) * torch.cosh(2 * (2 * middle - 1))
curves = {"logit-normal, for the flow": density(middle), "a U, for reflow": ends}
plots.plot_curves(middle, curves, "time t", "density of training times", ylim=(0, 2.2))

# %% [markdown]
# The rest is as before:

# %%
# NBVAL_CHECK_OUTPUT
network, noise = copy.deepcopy(pipe.network).cpu(), pipe.noise(4, seed=6)
*_, end = pipe.states(range(4), sampler="midpoint", steps=10, noise=noise)
pairs = torch.cat([end.x.cpu(), noise], dim=1)  # (4, 2, 32, 32)
t = objective.on_grid(objective.u_shaped(4, torch.Generator().manual_seed(7)), 1000).float()
loss_of_pairs = loss_of_reflow(recipe_of("rf-reflow").diffusion)
with torch.no_grad():
    mine = flow_loss(network, end.x.cpu(), noise, t)
    theirs = loss_of_pairs(network, pairs, torch.zeros(4), torch.Generator().manual_seed(7))
assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
print("reflow: the library's loss of", len(pairs), "pairs is equation (8)")

# %% [markdown]
# All of it is one command, `diffusion-book train rf-reflow`. Both flows from the same noises, in one, two and four
# steps:

# %%
reflow, noise = diffusion_book.load("rf-reflow"), pipe.noise(12, seed=3)
rows = {}
for name, model in (("rf", pipe), ("rf-reflow", reflow)):
    for n in (1, 2, 4):
        rows[f"{name}, {n}"] = model.sample(12, sampler="euler", steps=n, noise=noise)
grids.show_rows(rows | {"rf, 50": by_steps[50]})

# %%
states = torch.stack([state.x.cpu() for state in reflow.states(range(24), steps=50, seed=5)])
bends = {"rf": bends["rf"], "rf-reflow": (grid, states)}
for name, (_, states) in bends.items():
    total, share = straightness(states)
    print(f"{name:>9}: S = {total:6.1f}, {share:.3f} of the squared chords")
flows.show_bends(bends)

# %% [markdown]
# Most noises lead to the same digit as before, for such pairs are what it was trained on. What has changed is how early
# the digit can be seen.
#
# ## 13. One step
#
# If only one step will ever be taken, only one time matters: $t = 1$. Train reflow's loss at that time alone, on the
# pairs of the straightened flow, and all of the network's strength goes into the one jump. This is distillation. Liu et
# al. do it after reflow, when noise and digit belong together in a simpler way, and so does `rf-one-step`. The pairs of
# a first flow belong to each other too, and section 15 distils one of latents without reflow.

# %%
one_step = diffusion_book.load("rf-one-step")
begun = time.perf_counter()
one_step.sample(64, sampler="euler", steps=1, seed=0)
print(f"64 digits, one evaluation each: {time.perf_counter() - begun:.2f} seconds")
for name in ("rf", "rf-reflow", "rf-one-step"):
    for row in sorted(figures(weights.read_card(name)), key=lambda row: row["steps"]):
        work = samplers.evaluations(row["sampler"], row["steps"])
        if work <= 4 and row["num_samples"] == 10_000:
            print(f"{name:>11}, {row['sampler']}, {work} evaluations: {sentence(row)}")
noise = pipe.noise(12, seed=3)
rows = {"rf, 50 steps": by_steps[50]}
for name, model in (("rf-reflow", reflow), ("rf-one-step", one_step)):
    rows[f"{name}, 1 step"] = model.sample(12, sampler="euler", steps=1, noise=noise)
grids.show_rows(rows)

# %% [markdown]
# There is no walk any more: noise in, digit out. The price is the flexibility. More steps do not improve such a model,
# for at other times it was never trained.
#
# ## 14. A flow of latents
#
# Chapter 4's move works here as well: a flow of 32 numbers, and the decoder at the end. Nothing is new, so we only
# look.

# %%
latent_flow = diffusion_book.load("latent-rf")
states = torch.stack([state.x.cpu() for state in latent_flow.states(range(24), steps=50, seed=5)])
total, share = straightness(states)
print(f"latent-rf: S = {total:.1f}, which is {share:.3f} of the squared length of the chords")
noise = latent_flow.noise(12, seed=4)
counts = (1, 2, 4, 10, 50)
grids.show_rows({steps_of(n): latent_flow.sample(12, sampler="euler", steps=n, noise=noise) for n in counts})

# %% [markdown]
# The decoder paints firm strokes even from the mean of all latents, so that a single step can give a clear figure which
# is no digit. Compare the bend with that of `rf` in section 11. In pixels most of the way from noise to picture is the
# removal of noise from a thousand numbers, and that goes straight. Of thirty-two numbers, each has a share in the
# decision what to draw, and this is where paths bend.
#
# ## 15. Asked for a class
#
# With labels and guidance, as in chapter 5. The velocity is guided just as the noise was: $u_\varnothing + w\,(u_c -
# u_\varnothing)$, at two evaluations a step unless $w$ is 0 or 1. The model's own setting is $w = 1.5$.

# %%
of_class = diffusion_book.load("latent-rf-class")
labels = torch.arange(10)
rows = {f"w = {w:g}": of_class.sample(10, labels=labels, guidance_scale=w, steps=10, seed=1) for w in (1.0, 1.5, 3.0)}
grids.show_rows(rows)

# %% [markdown]
# And its one-step model. Guidance is part of its pairs: they were drawn with $w = 1.5$ and ten steps of midpoint. One
# evaluation without any guidance now stands for the forty that made each pair: twenty, for two branches.

# %%
at_once = diffusion_book.load("latent-rf-class-one-step")
begun = time.perf_counter()
samples = at_once.sample(100, labels=torch.arange(100) % 10, steps=1, seed=0)
print(f"100 digits to order, one evaluation each: {time.perf_counter() - begun:.2f} seconds, decoder and all")
grids.show_grid(samples, columns=10)

# %% [markdown]
# ## The scoreboard

# %%
for row in sorted(figures(card), key=lambda row: (row["sampler"], -row["steps"])):
    if row["num_samples"] == 10_000:
        work = samplers.evaluations(row["sampler"], row["steps"])
        print(f"RF, {row['sampler']:<8} | {work:4} evaluations | {sentence(row)}")

# %% [markdown]
# ## What differs from the papers
#
# - **Time.** Liu et al. have noise at 0 and data at 1; so do Lipman et al. Esser et al. have it our way.
# - **Training times.** The original draws them evenly; we take Esser et al.'s logit-normal for the first flow, and Lee
#   et al.'s U for reflow.
# - **The solver.** Liu et al. use an adaptive one of order 5, which chooses its steps itself. Ours have fixed steps, so
#   that evaluations can be compared. "Midpoint" and "Heun" are often named in one breath; they are two methods (section
#   7).
# - **Distillation.** For one step Liu et al. replace the squared error by a perceptual distance (LPIPS), which blurs
#   less. For small digits we keep the square.
# - **Clipping.** Our pixel pipeline clips $\hat x_0$, so its velocity is not quite the network's. The papers do not
#   clip.
# - **Size.** On CIFAR-10 their table 1 reports an FID of 2.58 after an adaptive solver's 127 evaluations, and 4.85 for
#   one step after one reflow and distillation.
#
# ## Pitfalls
#
# - **The sign of the velocity.** $\epsilon - x_0$ goes with steps $s - t < 0$. One sign from here and one from a text
#   with the other time, and the walk runs away from the data, without any error.
# - **The direction of time.** A network trained with noise at 0 and asked with noise at 1 gets each $t$ as $1 - t$. It
#   sees noise, is told that it is a picture, and answers accordingly.
# - **Noise prediction.** On the straight path $x_1 = \epsilon$ exactly: a network that gives $\hat\epsilon$ says
#   nothing of $x_0$ there, and $\hat x_0 = (x_t - t\,\hat\epsilon) / (1 - t)$ divides by zero. Predict the velocity.
# - **Steps for evaluations.** Ten steps of Heun are nineteen evaluations. Compare at equal evaluations.
# - **Reflow on wrong pairs.** Shuffle the noise by one place, and it is the first training again, on worse data.
# - **Reflow forgets nothing of its parent.** All its errors are data now.
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. A sign.** Write a step of Euler from $t$ to $s$, for a model that gives $\hat x_0$. Then walk the shipped flow
# with the wrong sign, $x_s = x_t - (s - t)\,u$, for ten steps. What comes out, and why is there no error message?

# %%
# NBVAL_CHECK_OUTPUT
from diffusion_book.exercises import check


def flow_step(x_t, x0, t, s):
    """The state and a guess of the picture (N, D), two times, single tensors -> x_s, (N, D)."""
    ...  # your code here


check(flow_step)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def flow_step(x_t, x0, t, s):
#     u = (x_t - x0) / t  # equation (4)
#     return x_t + (s - t) * u
# ```
#
# With the wrong sign:
#
# ```python
# x = pipe.noise(8, seed=3).to(pipe.device)
# for t, s in itertools.pairwise(samplers.time_grid(10)):
#     with torch.no_grad():
#         guess = pipe.denoiser(x, t)
#     x = x - (s - t) * (guess.eps - guess.x0)
# grids.show_grid(pipe.to_images(x))
# ```
#
# Noise, many times louder than at the start. Each step moves away from the guess instead of towards it. To the network
# that is merely a state noisier than announced, and it has an answer to everything.
#
# </details>
#
# **2. A flow without training.** By (4) a flow needs $\hat x_0$ only, and `ddpm` gives one, for states on its own path.
# The idea of chapter 4's equation (4) translates states between paths too: divide by $c = \sqrt{(1-t)^2 + t^2}$, and
# find the time at which the cosine has the same ratio $\sigma / \alpha$. Write that, to four digits. With it make a denoiser for
# the straight path from `ddpm`, sample it with Euler, and compare its straightness with that of `rf`.


# %%
# NBVAL_CHECK_OUTPUT
def on_the_cosine(x_t, t):
    """A state (N, D) of the straight path and its time, a single tensor -> the state on the cosine path, its time."""
    ...  # your code here


check(on_the_cosine)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def on_the_cosine(x_t, t):
#     c = ((1 - t) ** 2 + t**2).sqrt()
#     fine = torch.linspace(0, 1, 100_001, dtype=torch.float64)
#     alpha, sigma = cosine(fine)
#     position = torch.searchsorted(sigma / alpha, t / (1 - t).clamp(min=1e-9)).clamp(max=100_000)
#     return x_t / c, fine[position]
# ```
#
# To sample with it:
#
# ```python
# def borrowed(x_t, t):
#     x0 = ddpm.denoiser(*on_the_cosine(x_t, t)).x0
#     return Prediction(x0, (x_t - (1 - t) * x0) / t)
#
# walk = samplers.sample(
#     borrowed, ddpm.noise(24, seed=5).to(ddpm.device), grid, samplers.euler, schedule=rectified, generator=generator
# )
# states = torch.stack([state.x.cpu() for state in walk])
# print(straightness(states))
# grids.show_grid(ddpm.to_images(states[-1]), columns=12)
# ```
#
# It draws digits. Both networks estimate the same $\mathbb E[x_0 \mid x_t]$, so both describe the same flow, and perfect
# ones would be equally straight. What makes `rf` straighter than `ddpm` in section 11 is the path, not the training. Only
# reflow changes the pairs.
#
# </details>
#
# **3. A step that remembers.** Extend the last two velocities in a straight line to the middle of the step: with even
# steps $x_s = x_t + (s - t) \big( \tfrac32 u_t - \tfrac12 u_{\text{before}} \big)$ (Adams and Bashforth). The first
# step is Euler's. What is its order on the two heaps of section 7, and what does it cost?


# %%
# NBVAL_CHECK_OUTPUT
def remembering(u, x, times):
    """A velocity u(x, t), the start (N, D) and even times from 1 to 0 -> the end of the walk, (N, D)."""
    ...  # your code here


check(remembering)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def remembering(u, x, times):
#     before = None
#     for t, s in itertools.pairwise(times):
#         now = u(x, t)
#         x = x + (s - t) * (now if before is None else 1.5 * now - 0.5 * before)
#         before = now
#     return x
# ```
#
# Its order:
#
# ```python
# ends = [remembering(exact_flow, origin, samplers.time_grid(n)) for n in (100, 200)]
# before, after = ((end - goal).abs().mean().item() for end in ends)
# print(math.log2(before / after))
# ```
#
# Order 2 for one evaluation a step. It is the idea of DPM-Solver++ (2M), on the straight path.
#
# </details>
#
# **4. Reflow twice.** Draw pairs from `reflowed`, train a third flow in the plane, and measure $S$ and the single step.
# Does it pay?
#
# <details><summary>Solution</summary>
#
# ```python
# given = torch.randn(8192, 2, generator=generator)
# made = follow(reflowed, given, 50)[-1]  # by_the_flow now draws from these
# third = fit(by_the_flow)
# print(straightness(follow(third, starts, 50))[0])
# flows.show_clouds({"twice": follow(third, fresh, 1)[-1]})
# ```
#
# Hardly. $S$ was near zero already, and each round adds the errors of one more training. Liu et al. find the same: the
# first reflow does nearly all of the work.
#
# </details>
#
# ## Summary
#
# - Mix picture and noise along a straight line (1), and learn the velocity $\epsilon - x_0$ by least squares (3).
# - Straight lines cross; flows cannot. The regression takes the mean where they cross, so the flow bends. It keeps the
#   distribution at every time all the same (6).
# - Reflow pairs each noise with the sample that the flow makes of it, and trains again (8). Those lines hardly cross,
#   so the second flow is nearly straight, and few steps suffice.
# - Euler on the straight path is DDIM (9). Midpoint and Heun are two methods of order 2, at two evaluations a step
#   (10); DPM-Solver++ gets order 2 for one.
# - A model for one step learns at $t = 1$ alone, from the pairs of a trained flow.
#
# ## References
#
# - Liu, Gong & Liu (2022), *Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow*. ICLR
#   2023. arXiv:2209.03003.
# - Lipman, Chen, Ben-Hamu, Nickel & Le (2022), *Flow Matching for Generative Modeling*. ICLR 2023. arXiv:2210.02747.
# - Albergo & Vanden-Eijnden (2022), *Building Normalizing Flows with Stochastic Interpolants*. ICLR 2023.
#   arXiv:2209.15571.
# - Esser et al. (2024), *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*. ICML.
#   arXiv:2403.03206. (Logit-normal times.)
# - Lee, Lin & Fanti (2024), *Improving the Training of Rectified Flows*. NeurIPS. arXiv:2405.20320. (U-shaped times.)
# - Lu, Zhou, Bao, Chen, Li & Zhu (2022), *DPM-Solver++*. arXiv:2211.01095.
# - Karras, Aittala, Aila & Laine (2022), *Elucidating the Design Space of Diffusion-Based Generative Models*. NeurIPS.
#   arXiv:2206.00364. (Heun's method, without a second call in the last step.)
