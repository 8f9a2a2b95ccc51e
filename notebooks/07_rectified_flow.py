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
# *Runs in about a minute on two CPU cores, without a network connection. Needs chapters 1 and 2; section 14 also needs
# chapters 4 and 5.*
#
# Can a network draw a digit in one step, from noise straight to picture? Chapter 2 followed smooth paths, and every
# step that cut a bend short cost quality. Along a straight path, one step could go from end to end. So this chapter
# asks for straight paths from the start: mix a picture with noise along a straight line, and let a network learn the
# velocity. You will
#
# - see why straight paths cross and a flow cannot, and prove that it still turns noise into data;
# - find that the denoisers of DDPM, EDM and rectified flow define *one* flow, read by different clocks;
# - straighten this flow, in the plane, in the page and for digits;
# - compare four solvers, and draw a digit in a single evaluation, and see what that costs.
#
# The sources are Liu, Gong & Liu, *Flow Straight and Fast*, Lipman et al., *Flow Matching*, and Albergo &
# Vanden-Eijnden, *Stochastic Interpolants*: in 2022 three groups found the same objective independently.
#
# *Note.* If MNIST is not on your machine and cannot be downloaded, the chapter takes the small digits that come with
# scikit-learn. Only figure 7.2 shows them.

# %% [markdown]
# ## Set-up, and what we are after

# %%
import copy
import functools
import itertools
import math
import time

import torch
from torch import nn
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, objective, samplers, targets
from diffusion_book.evaluation.features import logits
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures, scoreboard
from diffusion_book.models import weights
from diffusion_book.models.recipes import recipe_of
from diffusion_book.schedules import add_noise, cosine, rectified
from diffusion_book.targets import Prediction
from diffusion_book.training.losses import loss_of_reflow
from diffusion_book.viz import diagrams, flows, grids, in_page, plots, scrubber, strips, style, toy
from diffusion_book.viz.figures import show
from diffusion_book.viz.scores import setting_name

DATASET = "auto"  # MNIST; or "fashion-mnist", "kmnist", "digits": see section 10
MODEL = "rf"  # the weights that come with the book; or the folder of a training of your own

style.use_style()
pipe, one_step = diffusion_book.load(MODEL, dataset=weights.set_of(MODEL, DATASET)), diffusion_book.load("rf-one-step")
test = data.load(DATASET, "test")
print(f"data: {test.name}, {len(test):,} test pictures; the network runs on {pipe.device}")
noise = pipe.noise(12, seed=3)
by_steps = {n: pipe.sample(12, sampler="euler", steps=n, noise=noise) for n in (1, 2, 4, 10, 50)}
at_once = one_step.sample(12, sampler="euler", steps=1, noise=noise)
show(
    grids.show_rows({"the flow,\n50 steps": by_steps[50], "distilled,\n1 step": at_once}),
    "7.1",
    "Where this chapter begins and where it ends. Each column starts from one noise. Above, fifty evaluations of the "
    "network; below, a single evaluation of a network that was distilled from it after a reflow.",
)

# %% [markdown]
# How can a single evaluation (figure 7.1, below) replace fifty? First we build the flow of the upper row.
#
# ## 1. The straight path
#
# The diffusion models so far mixed picture and noise as $\alpha_t x_0 + \sigma_t \epsilon$ with $\alpha_t^2 +
# \sigma_t^2 = 1$: from picture to noise along an arc. The straight way is simpler:
#
# $$x_t = (1 - t)\, x_0 + t\, \epsilon. \tag{1}$$
#
# This is a linear *interpolant* between data and noise. Its derivative does not depend on $t$, so each point moves with
# one constant velocity:
#
# $$\frac{d x_t}{d t} = \epsilon - x_0. \tag{2}$$
#
# As everywhere in this book, $t = 0$ is the picture and $t = 1$ is noise. *Many papers on flows let time run the other
# way.* Their velocity is $x_0 - \epsilon$. In the library, (1) is `schedules.rectified` and (2) is `targets.velocity`.

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(0)
clean, eps = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
t, h = torch.tensor(0.3, dtype=torch.float64), 1e-4
slope = (add_noise(rectified, clean, eps, t + h) - add_noise(rectified, clean, eps, t)) / h
velocity = targets.target_value(targets.velocity, clean, eps, *rectified(t))
print("the slope of the path is noise minus picture:", bool((slope - velocity).abs().max() < 1e-9))

# %%
times = torch.linspace(0, 1, 11)
x0, eps = test.batch(torch.tensor([3, 2]))[0], pipe.noise(2, seed=1)
ways = [torch.stack([data.crop(add_noise(path, x0, eps, t)) for t in times], 1) for path in (cosine, rectified)]
show(
    strips.show_strip(times.tolist(), torch.stack(ways, 1).flatten(0, 1)),
    "7.2",
    "Two digits, each on the cosine path (above) and on the straight path (below), with the same noise.",
)

# %% [markdown]
# The two paths differ less than one would think (figure 7.2), and at the ends not at all. On the straight path the
# contrast is lower in between, since $(1 - t)^2 + t^2 < 1$.
#
# ## 2. Straight paths cross
#
# What does a network learn from (2)? Let us look at data in the plane with two modes, one on the left and one on the
# right. A training pair is made as in all chapters: a point of the data, and a noise that is drawn independently of it.
# Such a rule for making pairs is called a *coupling*.


# %%
def two_modes(count):
    """Data points, (N, 2), from a mixture of two Gaussians."""
    side = 2.0 * torch.randint(0, 2, (count, 1), generator=generator) - 1
    return torch.cat([2 * side, torch.zeros(count, 1)], dim=1) + 0.3 * torch.randn(count, 2, generator=generator)


def independent(count):
    """A batch of data points, and noise that was drawn independently of them."""
    return two_modes(count), torch.randn(count, 2, generator=generator)


x0, eps = independent(60)
show(
    flows.show_tracks({"$x_t$ from noise to data": torch.stack([eps, x0])}),
    "7.3",
    "Sixty training pairs, each joined by its straight path. Dots are data; the colour tells the mode.",
)

# %% [markdown]
# Each line of figure 7.3 is as straight as can be. But no flow can follow them. A flow is given by a *velocity field*
# $u(x, t)$: it says how a point at $x$ moves at time $t$. Where two lines meet at the same time, it would have to send
# one point two ways.
#
# What does it do instead? Ask for the velocity field with the least squared error:
#
# $$L = \mathbb E\, \big| u(x_t, t) - (\epsilon - x_0) \big|^2, \qquad \text{smallest for } \;
# u^*(x_t, t) = \mathbb E[\, \epsilon - x_0 \mid x_t \,]. \tag{3}$$
#
# Least squares gives the mean: at a crossing, the flow goes in the *mean* direction of all lines that pass there.
# (Sixty lines hardly ever meet at the same time. But every data point has one noise whose line passes through a given
# $x$ at time $t$, and these lines are averaged, each weighted by its probability.) By (1) the noise follows from $x_t$
# and $x_0$, $\epsilon = (x_t - (1 - t)\, x_0) / t$, so we can also write
#
# $$u^*(x_t, t) = \frac{x_t - \hat x_0}{t}, \qquad \hat x_0 = \mathbb E[x_0 \mid x_t]. \tag{4}$$
#
# This is the denoiser of chapter 1 in another form: walk back by the whole of $t$ along $u^*$, and you arrive at the
# posterior mean.
#
# We check both for data at $-1$ and $1$, where Bayes' rule gives $\hat x_0 = \tanh((1 - t)\, x_t / t^2)$. We compare
# (4) with the mean of all those of three million draws that pass close by.


# %% tags=["nbval-check-output"]
def exact_velocity(x, t):
    """Equation (4) for data at -1 and 1."""
    return (x - torch.tanh((1 - t) * x / t**2)) / t


points = 2.0 * torch.randint(0, 2, (3_000_000,), generator=generator) - 1
noises = torch.randn(points.shape, generator=generator)
x_t = 0.4 * points + 0.6 * noises  # t = 0.6
for x in (-0.8, -0.2, 0.5):
    near = (x_t - x).abs() < 0.01
    measured, exact = (noises - points)[near].mean(), exact_velocity(torch.tensor(x), 0.6)
    print(f"x = {x:4}: {exact:5.2f} by (4); the mean of the draws agrees: {bool((measured - exact).abs() < 0.05)}")

# %% [markdown]
# ## 3. The flow that is learned
#
# In code the loss is three lines. It is the loss of chapter 1 with another path and another target.


# %% tags=["nbval-check-output"]
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


network, (x0, _), draws = Small(), independent(64), torch.Generator().manual_seed(2)
t, eps = objective.uniform(64, draws).float(), torch.randn(64, 2, generator=draws)
same = {"schedule": rectified, "target": targets.velocity, "generator": torch.Generator().manual_seed(2)}
assert_close(flow_loss(network, x0, eps, t), objective.diffusion_loss(network, x0, **same))
print("the loss of", len(t), "pairs is the library's")

# %% [markdown]
# To sample, start from noise and follow $u$ back to $t = 0$. Euler's method does so in steps from $t$ to $s < t$:
#
# $$\frac{dx}{dt} = u(x, t), \qquad x_s = x_t + (s - t)\, u(x_t, t). \tag{5}$$


# %%
def fit(draw, steps=1000):
    """A flow, trained on the pairs that draw(count) gives."""
    torch.manual_seed(0)
    network, draws = Small(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        loss = flow_loss(network, *draw(256), objective.uniform(256, draws).float())
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


flow, starts = fit(independent), torch.randn(60, 2, generator=generator)
tracks = follow(flow, starts, 50)
pairs = tracks[[0, -1]]
show(
    flows.show_tracks({"The learned flow, 50 steps": tracks, "Its starts and ends": pairs}),
    "7.4",
    "Left: sixty noises follow the learned velocity field. No two are ever at the same point at the same time. Right: "
    "the same starts, each joined with its end by a straight line.",
)

# %% tags=["remove-cell"]
assert ((tracks[0, :, 0] > 0) == (tracks[-1, :, 0] > 0)).float().mean() > 0.9  # "nearly all", below

# %% [markdown]
# In figure 7.4 the points first walk towards the middle, for at $t = 1$ the mean velocity aims at the mean of the data.
# Then they turn, nearly all of them to the mode on their own side. On the right you see that the flow has made a new
# coupling of noise and data, without the tangle.
#
# ## 4. Why it ends in the data
#
# If the flow pairs noise and data in its own way, why are its end points still distributed as the data? Let $p_t$ be
# the density of $x_t$ in (1). The claim is:
#
# > *Points that start from $p_1$, the noise, and follow $u^*$ have the density $p_t$ at every time $t$.*
#
# Take any smooth *test function* $\varphi$ that vanishes far out. It measures a density through a single number, the
# mean $\mathbb E[\varphi(x_t)]$. How does this number change? On each straight path, by the chain rule and (2),
# $\varphi$ changes at the rate $\nabla\varphi(x_t) \cdot (\epsilon - x_0)$. Average over all paths, those with the same
# $x_t$ first:
#
# $$\frac{d}{dt}\, \mathbb E[\varphi(x_t)] = \mathbb E\big[\nabla\varphi(x_t) \cdot (\epsilon - x_0)\big]
# = \mathbb E\big[\nabla\varphi(x_t) \cdot u^*(x_t, t)\big].$$
#
# The second step is the heart of the proof: $\nabla\varphi(x_t)$ is the same for all paths through $x_t$, so only their
# *mean* velocity counts. Now write both ends as integrals, and integrate by parts:
#
# $$\int \varphi\, \frac{\partial p_t}{\partial t}\, dx = \int \nabla\varphi \cdot u^*\, p_t\, dx
# = -\int \varphi\; \nabla \cdot (p_t\, u^*)\, dx.$$
#
# This holds for every $\varphi$, so the integrands agree:
#
# $$\frac{\partial p_t}{\partial t} = - \nabla \cdot (p_t\, u^*). \tag{6}$$
#
# This is the *continuity equation*: probability is neither made nor lost, only carried along. Now let points follow
# $u^*$, and call their density $q_t$. Each of them moves with the velocity $u^*$ itself, so the same lines give the
# same equation for $q_t$. Both densities start as $p_1$. Where $u^*$ is smooth enough, as it is for $t > 0$ if the data
# are bounded, the solution is unique. So $q_t = p_t$ for all $t > 0$, and in the limit $t \to 0$ the points have the
# distribution of the data. $\blacksquare$
#
# On the line of section 2 we check the second step, for $\varphi(x) = \cos 2x$ (a bounded slope is enough for it) and
# the three million draws, and then the claim. Points on a line cannot overtake, so each keeps its rank: one that starts
# at a quantile of the noise must stay at the same quantile of $p_t$, two Gaussians around $\pm(1 - t)$.

# %% tags=["nbval-check-output"]
slope = -2 * torch.sin(2 * x_t)  # of the test function
by_paths, by_flow = (slope * (noises - points)).mean(), (slope * exact_velocity(x_t, 0.6)).mean()
print(f"rate of change of the mean: {by_paths:.2f} on the straight paths, {by_flow:.2f} along u")

rank = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
x = torch.special.ndtri(rank)
for t, s in itertools.pairwise(samplers.time_grid(1000)[:801]):
    x = x + (s - t) * exact_velocity(x, t)
    if round(1000 * s.item()) in (800, 500, 200):
        now = torch.special.ndtr(torch.stack([(x - (1 - s)) / s, (x + (1 - s)) / s])).mean(0)
        print(f"t = {s:.1f}: all 1,000 points keep their rank to 0.002:", bool((now - rank).abs().max() < 0.002))

# %%
many, eps = independent(40_000)
moving = follow(flow, torch.randn(40_000, 2, generator=generator), 40)[::2]  # (21, N, 2)
paths = [(1 - t) * many + t * eps for t in torch.linspace(1, 0, 21)]
frames = []
for both in zip(paths, moving, strict=True):
    counts = [torch.histogramdd(x, [64, 64], range=[-3.2, 3.2, -3.2, 3.2]).hist.T.flip(0) for x in both]  # y upwards
    light = [(255 * (count / 400).sqrt().clamp(max=1)).byte() for count in counts]
    frames.append(grids.grid(torch.stack(light)[:, None], columns=2))
show(
    scrubber.scrubber(
        torch.stack(frames),
        captions=[f"t = {t:.2f}" for t in torch.linspace(1, 0, 21)],
        label="noise to data",
        alt="Two density maps of points in the plane, which agree at every time: one blob becomes two",
        start=12,
    ),
    "7.5",
    "Density against flow. Left: 40,000 points on straight paths, which cross. Right: 40,000 other points that follow "
    "the learned velocity field. Move the slider: the points travel differently, but at every time their density is the "
    "same.",
)

# %% [markdown]
# Figure 7.5 is the theorem as a picture. (The field is learned, so the two sides agree only nearly.)
#
# ## 5. One flow, many clocks
#
# Chapter 1 predicted noise, picture or $v$ on a curved path; here a network predicts a velocity on a straight one. Are
# these different models? Figure 7.6 shows the plane in which all of them live.

# %%
show(
    diagrams.clocks(),
    "7.6",
    "Gaussian paths from data (right) to noise. Each point of the plane is a mixture $αx_0 + σε$. Along a ray from the "
    "origin the ratio $σ / α$ is fixed, so the mixtures differ only in scale.",
)

# %% [markdown]
# Take any path $x_t = \alpha_t x_0 + \sigma_t \epsilon$, and write dots for derivatives by $t$. A point moves with the
# velocity $\dot\alpha_t x_0 + \dot\sigma_t \epsilon$. Nowhere did the proof of section 4 use that the path is straight.
# So on every path the flow along the mean velocity,
#
# $$u(x_t, t) = \mathbb E[\, \dot\alpha_t x_0 + \dot\sigma_t \epsilon \mid x_t \,]
# = \dot\alpha_t\, \hat x_0 + \dot\sigma_t\, \hat\epsilon, \tag{7}$$
#
# carries noise to data: it is the *probability-flow ODE*, which DDIM follows in chapter 2. On the straight path, $u =
# \hat\epsilon - \hat x_0$. On the arc $\alpha = \cos a$, $\sigma = \sin a$, with the angle $a$ as time, $u = \alpha
# \hat\epsilon - \sigma \hat x_0$: chapter 1's $v$. And as $x_t = \alpha_t \hat x_0 + \sigma_t \hat\epsilon$, any one of
#
# | | picture | noise | $v$ | velocity | score |
# |---|---|---|---|---|---|
# | network predicts | $\hat x_0$ | $\hat\epsilon$ | $\alpha\hat\epsilon - \sigma\hat x_0$ | $\dot\alpha\hat x_0 + \dot\sigma\hat\epsilon$ | $-\hat\epsilon / \sigma$ |
#
# gives all others (between the two ends, where nothing is divided by zero).
#
# So much for the targets. What about the paths? Follow $x / \alpha$, the picture that is not shrunk. By the quotient
# rule, with (7) for $\dot x$,
#
# $$\frac{d}{dt}\Big(\frac{x}{\alpha}\Big)
# = \frac{\dot\alpha \hat x_0 + \dot\sigma \hat\epsilon}{\alpha} - \frac{\dot\alpha\, (\alpha \hat x_0 + \sigma
# \hat\epsilon)}{\alpha^2} = \hat\epsilon\; \frac{d}{dt}\Big(\frac{\sigma}{\alpha}\Big),
# \qquad\text{or}\qquad d\Big(\frac{x}{\alpha}\Big) = \hat\epsilon\; d\Big(\frac{\sigma}{\alpha}\Big). \tag{8}$$
#
# What does $\hat\epsilon$ depend on? The state $x / \alpha = x_0 + (\sigma / \alpha)\, \epsilon$ is a picture with
# noise of level $\sigma / \alpha$, whatever the path. So neither path nor time is left in (8). *All Gaussian paths of
# the same data have one and the same flow. Up to scale, a schedule only says at which time it passes which noise level:
# it is a clock.* Karras et al. (2022, EDM) let the noise level itself be the time, with $\alpha = 1$; then (8) reads
# $dx / d\sigma = (x - \hat x_0) / \sigma$.
#
# We test it with an exact denoiser, which we shall need again: data around $-1$ and $1$ with standard deviation 0.4.

# %% tags=["nbval-check-output"]
STD = 0.4


def exact_denoiser(x, t, schedule=rectified):
    """The posterior mean for data around -1 and 1 with the standard deviation STD, and the noise that goes with it."""
    exact_denoiser.calls += 1
    alpha, sigma = schedule(t)
    variance = (alpha * STD) ** 2 + sigma**2
    centre = torch.tanh(alpha * x / variance)  # of the two modes, weighted by their probability
    away = (x - alpha * centre) / variance
    return Prediction(centre + alpha * STD**2 * away, sigma * away)


def edm(t):
    """The noise level is the time, from 80 down to 0; t only spaces the steps."""
    return torch.ones_like(t), 80 * t**7


exact_denoiser.calls = 0
from_noise = torch.tensor([-1.6, -0.7, -0.2, 0.2, 0.7, 1.6], dtype=torch.float64)[:, None]
fine, on_paths = torch.linspace(1, 0, 1001, dtype=torch.float64), {}
for name, path in {"cosine": cosine, "straight": rectified, "EDM": edm}.items():
    alpha, sigma = path(fine)
    denoiser, how = functools.partial(exact_denoiser, schedule=path), {"schedule": path, "generator": generator}
    walk = samplers.sample(denoiser, sigma[0] * from_noise, fine, samplers.euler, **how)
    on_paths[name] = (fine, alpha, sigma, torch.stack([state.x[:, 0] for state in walk]))  # the last: (1001, 6)
ends = torch.stack([states[-1] for *_, states in on_paths.values()])
print("the end points differ by less than 0.005:", bool((ends - ends[0]).abs().max() < 0.005))

# %%
show(
    flows.show_clocks(on_paths),
    "7.7",
    "Six points on three paths, from the same noise. In the coordinates of each path (three panels) the curves look "
    "different. In those of equation (8) they lie on each other.",
)

# %% [markdown]
# Figure 7.7 shows it: same noise, same data, same curves; different clocks. DDIM is at home here too. Put the straight
# path into its step with $\eta = 0$:
#
# $$x_s = (1 - s)\, \hat x_0 + s\, \hat\epsilon = \underbrace{(1 - t)\, \hat x_0 + t\, \hat\epsilon}_{x_t}
# + (s - t)(\hat\epsilon - \hat x_0). \tag{9}$$
#
# The right side is (5). *A rectified flow sampled with Euler is DDIM with $\eta = 0$.*

# %% tags=["nbval-check-output"]
x_t, predicted = torch.randn(2, 64, 4, generator=generator, dtype=torch.float64)
largest = 0.0
for t, s in itertools.pairwise(samplers.time_grid(1000)):
    eps = (x_t - (1 - t) * predicted) / t
    how = {"schedule": rectified, "noise": torch.zeros_like(x_t)}
    ddim = samplers.ddim(Prediction(predicted, eps), x_t, t, s, eta=0.0, **how)
    difference = ((x_t + (s - t) * (eps - predicted)) - ddim).abs() / (1 + eps.abs())
    largest = max(largest, difference.max().item())
assert largest < 1e-14
print("1,000 steps: Euler is DDIM with eta = 0, to 1e-14:", largest < 1e-14)

# %% [markdown]
# What, then, does the straight path buy? Not another flow, as long as noise and data are paired independently. It
# changes two practical things. A solver steps evenly in $t$, so the clock decides where the steps fall and how much the
# path bends under them. And the target weights the errors of training: by (4), a squared error of $\hat x_0$ enters (3)
# multiplied by $1 / t^2$. What does lead to another flow is another *coupling*.
#
# ## 6. Straightness and reflow
#
# How far do the paths of figure 7.4 bend? Liu et al. compare the velocity with that of the straight line between a
# path's own ends, its chord:
#
# $$S = \int_0^1 \mathbb E\, \Big| (x_1 - x_0) - \frac{d x_t}{d t} \Big|^2 dt. \tag{10}$$
#
# $S = 0$ means that every point moves on a straight line at constant speed. Then one step of (5) arrives where a
# thousand do.


# %%
def straightness(states):
    """Equation (10) for the states of evenly spaced times from 1 to 0: (S + 1, N, ...) -> S, and S / E|x_1 - x_0|^2."""
    chord = states[0] - states[-1]
    velocity = (states[:-1] - states[1:]) * (len(states) - 1)
    off = (velocity - chord).flatten(2).square().sum(dim=2).mean().item()
    return off, off / chord.flatten(1).square().sum(dim=1).mean().item()


for name, states in (("its starts and ends, joined by straight lines", pairs), ("the learned flow", tracks)):
    print(f"{name:>45}: S = {straightness(states)[0]:.2f}")

# %% [markdown]
# Now the paper's second idea (figure 7.8). The flow has made new pairs of noise and data, whose lines hardly cross. So
# draw many such pairs, *and train again on them*.

# %%
show(
    diagrams.reflow(),
    "7.8",
    "Reflow. Independent pairs cross; the flow between them bends, and pairs each noise with an end of its "
    "own; a second flow, trained on these pairs, has little left to average and stays nearly straight.",
)

# %% [markdown]
# The loss of this *reflow* is (3) with another coupling: $x_0$ is not drawn from the data, it belongs to its
# $\epsilon$:
#
# $$L_{\text{reflow}} = \mathbb E\, \big| u(x_t, t) - (\epsilon - x_0) \big|^2, \qquad
# x_t = (1 - t)\, x_0 + t\, \epsilon, \qquad x_0 = \mathrm{flow}(\epsilon). \tag{11}$$
#
# Does the new flow still end in the data? The proof of section 4 never used that $x_0$ and $\epsilon$ are
# independent. So the new flow, where its velocity is smooth enough, carries noise to the distribution of its own $x_0$,
# which is what the first flow draws. Liu et al. also prove that no convex cost of transport, such as $\mathbb E\,
# |\epsilon - x_0|^2$, ever grows by it, and that among $K$ exact repetitions the smallest $S$ is at most of the order $1 / K$.

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
show(
    flows.show_tracks({"The first flow": tracks, "After reflow": straighter}),
    "7.9",
    "The same starts before and after reflow. The bends are gone, and nearly every point ends where it did before.",
)

# %% tags=["remove-cell"]
assert straightness(straighter)[0] < 0.1 * straightness(tracks)[0]
assert ((straighter[-1, :, 0] > 0) == (tracks[-1, :, 0] > 0)).float().mean() > 0.9


# %%
def steps_of(n):
    return f"{n} step" if n == 1 else f"{n} steps"


fresh = torch.randn(800, 2, generator=generator)
both = (("flow", flow), ("reflow", reflowed))
show(
    flows.show_points({f"{name}, {steps_of(n)}": follow(f, fresh, n)[-1] for name, f in both for n in (1, 50)}),
    "7.10",
    "What straight paths buy. One step of the first flow sends every point near the mean of the data, where "
    "there are none. One step after reflow reaches the modes.",
)

# %% [markdown]
# The few points between the modes in figure 7.10 show what is hardest: neighbours that go to different sides. Reflow
# learns from its parent and never sees the data. Its paths are nearly straight (figure 7.9), so in few steps it beats
# the parent (figure 7.10), but it inherits whatever the parent in many steps gets wrong.
#
# In figure 7.11 all of this section happens in your browser, on points that you choose or draw.

# %%
show(
    toy.toy("moons", "velocity"),
    "7.11",
    "A flow that trains in the page. Press Play until the points on the right look like those on the left; their paths "
    "bend. Set the steps from noise to 1, and all points land in one spot. Press Reflow and let it train: $S$ (here "
    "relative to the squared length of the chords) falls, the paths become straight, and one step is enough.",
)

# %% [markdown]
# ## 7. Solvers
#
# If a path bends, how should one follow it? Euler uses the velocity at the start of a step, $u_t = u(x_t, t)$, for all
# of it. Two old methods evaluate twice. The *midpoint* method goes half the way, asks there, and uses that answer for
# the whole step. *Heun's* method goes the whole way, asks at the end, and goes again with the mean of both answers:
#
# $$\text{midpoint: } x_s = x_t + (s - t)\, u\big(x_t + \tfrac{s - t}{2} u_t,\; \tfrac{s + t}{2}\big), \qquad
# \text{Heun: } x_s = x_t + (s - t)\, \frac{u_t + u(x_t + (s - t)\, u_t,\; s)}{2}. \tag{12}$$


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
# To measure errors we need an equation whose solution is known. On a line, points keep their rank (section 4). So we
# choose where points shall end, and their rank in the data tells where in the noise they must start.


# %% tags=["nbval-check-output"]
def exact_flow(x, t):
    predicted = exact_denoiser(x, t)
    return predicted.eps - predicted.x0


def solve(solver, x, steps):
    """The end of a walk, and how many evaluations it took."""
    exact_denoiser.calls = 0
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        x = SOLVERS[solver](exact_flow, x, t, s)
    return x, exact_denoiser.calls


def library_solve(solver, x, steps):
    """The same by the library."""
    exact_denoiser.calls, how = 0, {"schedule": rectified, "generator": generator}
    *_, state = samplers.sample(exact_denoiser, x, samplers.time_grid(steps), samplers.SAMPLERS[solver], **how)
    return state.x, exact_denoiser.calls


goal = torch.linspace(-1.8, 1.8, 500, dtype=torch.float64)[:, None]
rank = torch.special.ndtr(torch.cat([goal - 1, goal + 1], dim=1) / STD).mean(1, keepdim=True)
origin = torch.special.ndtri(rank)
for name in SOLVERS:
    (x, calls), (theirs, _) = solve(name, origin, 10), library_solve(name, origin, 10)
    assert_close(x, theirs, rtol=0, atol=1e-12)
    print(f"{name:>8}: as in the library; 10 steps are {calls} evaluations")

# %% [markdown]
# ## 8. A solver with memory
#
# Midpoint and Heun have *order* 2: twice the steps leave a quarter of the error (Euler: half), at two evaluations a
# step. Can we have that for *one*? DDIM freezes $\hat x_0$ during a step. But as noise goes, the picture is known
# better, and $\hat x_0$ changes. A long step uses an outdated $\hat x_0$: this is Euler's error. *DPM-Solver++*, by Lu
# and others (2022), lets $\hat x_0$ move on. Divide by $\sigma$ instead of $\alpha$, and the steps that led to (8) give
# $d(x / \sigma) = \hat x_0\; d(\alpha / \sigma)$. With $\lambda = \log(\alpha / \sigma)$, half the logarithm of the
# signal-to-noise ratio, this integrates to
#
# $$\frac{x_s}{\sigma_s} = \frac{x_t}{\sigma_t} + \int_{\lambda_t}^{\lambda_s} e^\lambda\, \hat x_0\, d\lambda.$$
#
# With a constant $\hat x_0$ the integral is $\hat x_0\, (\alpha_s / \sigma_s - \alpha_t / \sigma_t)$, and we have DDIM.
# The method called 2M instead takes, for the whole step, the value in its middle, on the straight line over $\lambda$
# through this prediction and the one before, $\hat x_0'$. With $h$ for the length of this step in $\lambda$ and $h'$
# for that of the last,
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\, x_t + \Big( \alpha_s - \alpha_t \frac{\sigma_s}{\sigma_t} \Big)
# \Big[ \hat x_0 + \frac{h}{2 h'} \big( \hat x_0 - \hat x_0' \big) \Big]. \tag{13}$$
#
# The first step has nothing to remember, and the last, where $\lambda_s$ is infinite, ends in $\hat x_0$: both are
# DDIM's. On the straight path the second is too, for $\lambda = -\infty$ at $t = 1$ makes $h'$ infinite.


# %% tags=["nbval-check-output"]
def log_ratio(t):
    alpha, sigma = rectified(t)
    return (alpha / sigma).log()


def my_dpm(x, times):
    """Equation (13), a whole walk: one evaluation a step."""
    before = None  # time and prediction of the last step
    for t, s in itertools.pairwise(times):
        x0 = best = exact_denoiser(x, t).x0
        if before is not None and s > 0:
            h, h_before = log_ratio(s) - log_ratio(t), log_ratio(t) - log_ratio(before[0])
            best = x0 + h / (2 * h_before) * (x0 - before[1])
        (alpha_t, sigma_t), (alpha_s, sigma_s) = rectified(t), rectified(s)
        x = sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * best
        before = t, x0
    return x


theirs, calls = library_solve("dpm++", origin, 10)
assert_close(my_dpm(origin, samplers.time_grid(10)), theirs, rtol=0, atol=1e-12)
print(f"DPM-Solver++ (2M): as in the library; 10 steps are {calls} evaluations")

# %%
errors = {}
for name, steps in itertools.product((*SOLVERS, "dpm++"), (5, 10, 20, 50, 100, 200)):
    x, calls = library_solve(name, origin, steps)
    errors.setdefault(name, []).append((calls, (x - goal).abs().mean().item()))
for name, (*_, (_, before), (_, after)) in errors.items():
    print(f"{name:>8}: from 100 to 200 steps the error falls by 2 to the power {math.log2(before / after):.2f}")
show(
    flows.plot_orders(errors),
    "7.12",
    "Error against work, both on logarithmic axes. The steepness of a straight line is the order of its solver. Steps are counted in "
    "evaluations, since these are what one waits for.",
)

# %% tags=["remove-cell"]
assert all(of_dpm < 0.5 * of_euler for (_, of_dpm), (_, of_euler) in zip(errors["dpm++"], errors["euler"], strict=True))
assert all(errors["dpm++"][n][1] < errors["heun"][n - 1][1] for n in (1, 2))  # at 10 and 20 evaluations, and 9 and 19

# %% [markdown]
# In figure 7.12 Euler has order 1. Midpoint and Heun, two different methods, have order 2: their lines are parallel,
# and not the same. (Heun's last step stays Euler's, as in EDM, hence 19 evaluations for ten steps.) The order 2 of
# DPM-Solver++ is for short steps in $\lambda$. With even steps in $t$, those at both ends of time do not get shorter in
# $\lambda$, so its error falls less steeply than theirs. But with few evaluations it keeps up with Heun (midpoint is
# ahead of both), and at every budget it has less than half of Euler's error.
#
# An order is a promise for short steps in a smooth field. What remains of it for digits, in few steps? Equation (13)
# holds on every path, so figure 7.13 tries it on the `ddpm` of chapter 1.

# %%
ddpm = diffusion_book.load("ddpm")
start = ddpm.noise(8, seed=2)
drawn = {
    f"{sampler}, {steps}": ddpm.sample(8, sampler=sampler, steps=steps, noise=start)
    for sampler, steps in (("ddim", 400), ("dpm++", 10), ("ddim", 10), ("dpm++", 5), ("ddim", 5))
}
off = {name: (pictures - drawn["ddim, 400"]).abs().mean().item() for name, pictures in drawn.items()}
print("mean error of a pixel:", "; ".join(f"{name} evaluations {error:.3f}" for name, error in off.items()))
show(
    grids.show_rows(drawn),
    "7.13",
    "A diffusion model from the same eight noises: a long walk above, then ten and five evaluations by two solvers.",
)

# %% tags=["remove-cell"]
assert off["dpm++, 10"] < off["ddim, 10"] < off["dpm++, 5"] < off["ddim, 5"]

# %% [markdown]
# At equal cost DPM-Solver++ stays closer to the long walk, but the gain is far smaller than on the line. Doubling the
# evaluations helps more than changing the solver.

# %% [markdown]
# ## 9. Which times to train on
#
# The loss (3) is an average over $t$. Must it be an even one? At $t = 1$ the best answer is $\epsilon - \mathbb
# E[x_0]$, so there is no more to learn than one mean. Near $t = 0$ the picture is almost clean. It is in between that
# it becomes a 3 or an 8. So Esser et al. (2024, the paper behind Stable Diffusion 3) draw the logit of $t$ from a
# normal distribution:
#
# $$t = \frac{1}{1 + e^{-z}}, \quad z \sim \mathcal N(m, s^2), \qquad
# p(t) = \frac{1}{s\sqrt{2\pi}}\, \frac{1}{t (1 - t)}\, \exp\!\Big( \!-\frac{(\operatorname{logit} t -
# m)^2}{2 s^2} \Big).
# \tag{14}$$
#
# We can measure where a picture is decided: follow the shipped flow, and see how fast its prediction $\hat x_0$
# changes.


# %%
def density(t, m=0.0, s=1.0):
    """Equation (14)."""
    return torch.exp(-((torch.logit(t) - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi) * t * (1 - t))


middle = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
drawn = torch.histc(objective.logit_normal(100_000, generator).float(), 100, 0, 1) / 1000
print(f"the library's draws differ from (14) by at most {(drawn - density(middle)).abs().max():.3f}")

walk = list(pipe.states(range(24), steps=50, seed=5))
seen = torch.stack([state.prediction.x0.cpu() for state in walk[1:]])  # (50, 24, 1, 32, 32), at t = 1, 0.98, ... 0.02
speed = (seen[1:] - seen[:-1]).flatten(2).norm(dim=2).mean(1).flip(0).double()  # (49,), from t = 0.03 to 0.99
at = torch.linspace(0.03, 0.99, 49, dtype=torch.float64)
ends = 2 / math.sinh(2) * torch.cosh(2 * (2 * at - 1))  # section 11
curves = {"how fast the prediction changes": speed / speed.mean(), "logit-normal": density(at), "U, for reflow": ends}
show(
    plots.plot_curves(at, curves, "time t", "density, or speed / mean speed", ylim=(0, 3)),
    "7.14",
    "Where a digit of the shipped flow is decided, and two densities of training times. (The U is for section 11.)",
)

# %% [markdown]
# The prediction changes most while there is still more noise than picture, to the right of the density's peak (figure
# 7.14; at $t$ near 1, where training seldom comes, it wavers). With more pixels this gets stronger, for many pixels
# together show through more noise; Esser et al. therefore shift their times towards the noise for large pictures. Which
# density is best? The loss cannot tell, for under each density it averages over other times. Esser et al. compared 61
# variants of path, target and density by the quality of the trained models.
#
# ## 10. A flow of digits
#
# `rf` has the very network of chapter 1's `ddpm` and learned from the same data. Figure 7.15 follows it in few steps
# and in many.

# %%
card = weights.read_card("rf")
for name, its in (("rf", card), ("ddpm", weights.read_card("ddpm"))):
    print(f"{name:>5}: {its['parameters']:,} parameters, {its['steps']:,} steps on {its['data_set']}")
show(
    grids.show_rows({steps_of(n): pictures for n, pictures in by_steps.items()}),
    "7.15",
    "Each column is one noise, each row a number of Euler steps. One step gives a blur, and each further row sharpens it.",
)

# %% [markdown]
# One step gives the network's $\hat x_0$ at $t = 1$. The best answer would be the mean of all digits, whatever the
# noise, for from each noise lines lead to all digits; the network was hardly trained at that end, and lets the noise
# show through. From how many steps on does nothing change any more? Try the slider of figure 7.16. (On the book's site
# the button below it loads the flow into the page: then you choose sampler and seed as well.)

# %%
COUNTS = (1, 2, 3, 4, 5, 7, 10, 20, 50)
more = {n: pipe.sample(12, sampler="euler", steps=n, noise=noise) for n in COUNTS if n not in by_steps} | by_steps
frames = torch.stack([grids.grid(more[n][:6], columns=3) for n in COUNTS])
captions = [steps_of(n) for n in COUNTS]
alt = "Six digits of a rectified flow, in 1 to 50 steps"
control = scrubber.scrubber(frames, captions, label="Euler", alt=alt, start=4)
show(
    in_page.live_after(MODEL, control, steps=5, sampler="euler"),
    "7.16",
    "The first six columns of figure 7.15, in nine numbers of steps.",
)

# %% [markdown]
# How straight are its paths? We use (10) again, now in 1,024 dimensions, beside `ddpm`.

# %%
bends, grid, shares = {}, samplers.time_grid(50), {}
for name, model in (("rf", pipe), ("ddpm", ddpm)):
    states = torch.stack([state.x.cpu() for state in model.states(range(24), steps=50, seed=5)])
    bends[name] = (grid, states)
    total, shares[name] = straightness(states)
    print(f"{name:>5}: S = {total:6.1f}, which is {shares[name]:.3f} of the squared length of the chords")
show(
    flows.show_bends(bends),
    "7.17",
    "How far each sample (thin line) is from where it would be on a straight line at constant speed. Thick: the mean.",
)

# %% tags=["remove-cell"]
if MODEL == "rf":
    assert shares["rf"] < 0.5 * shares["ddpm"]

# %% [markdown]
# The flow stays much closer to its chords (figure 7.17). But most of the bend of `ddpm` is its arc. A quarter circle
# alone has $S = \pi^2/8 - 1 \approx 0.23$ of its squared chord, and DDIM does not pay for it: where the prediction is
# constant, its step is exact. By (8), DDIM takes the same walk on every Gaussian path if its steps fall on the same
# noise levels (exercise 2). So $S$ compares Euler's error within one clock, and not across clocks. Figure 7.18 compares
# samples, measured as in chapter 1: cFID, divided by that of as many real digits.


# %%
def measured(names, solvers):
    """(model, solver) -> (evaluations, cFID / floor), from the cards, all with the same number of samples."""
    sizes = [row["num_samples"] for row in figures(card)]
    size, points = max(set(sizes), key=sizes.count), {}
    for name in names:
        for row in figures(weights.read_card(name)):
            if row["sampler"] in solvers and row.get("eta", 0) == 0 and row["num_samples"] == size:
                work = samplers.evaluations(row["sampler"], row["steps"])
                points.setdefault((name, row["sampler"]), []).append((work, row["ratio"]))
    return {which: sorted(pairs) for which, pairs in points.items()}, size


points, size = measured(("rf", "ddpm"), ("euler", "midpoint", "heun", "dpm++", "ddim"))
print(f"each point: {size:,} samples")
show(
    flows.plot_solvers(points, floor=1.0, ylabel="cFID / floor (lower is better)"),
    "7.18",
    "Quality against evaluations, for the flow and for the diffusion model of the same size.",
)

# %% tags=["remove-cell"]
quality = {which: dict(pairs) for which, pairs in points.items()}
assert quality["rf", "euler"][10] < quality["ddpm", "ddim"][10]
assert quality["rf", "euler"][50] < quality["ddpm", "ddim"][50]
assert min(quality["rf", "heun"].values()) < quality["rf", "euler"][10]
assert quality["rf", "dpm++"][10] < quality["rf", "euler"][10]
assert quality["rf", "euler"][1] > 50
assert 1.2 < card["steps"] / weights.read_card("ddpm")["steps"] < 1.35  # "a quarter more steps"

# %% [markdown]
# In these two trainings, without fresh noise, the flow is ahead at equal cost. One training each does not say why; they
# differ in more than the path: other times, another weighting, and a quarter more steps. DPM-Solver++ is a little
# better than Euler at five evaluations; at nine or ten it and Heun are clearly better. Below three, neither helps:
# DPM-Solver++ takes Euler's steps there (section 8), and Heun needs three.
#
# <details><summary>Try another data set</summary>
#
# ```bash
# diffusion-book train rf --dataset fashion-mnist --max-minutes 60
# ```
#
# trains the same flow on other pictures and prints its folder last. Set `MODEL` to that, with `../` before it, and
# `DATASET` to `"fashion-mnist"`, and figures 7.1 and 7.14 to 7.17 draw with your flow. `diffusion-book train rf-reflow
# --reflow-from FOLDER` straightens it.
#
# </details>
#
# ## 11. Reflow, for digits
#
# Now the second training. First the coupling: 40,000 noises, each followed by `rf` to its digit in ten steps of
# midpoint. Then (11), beginning with the weights of `rf`. In the library the pair is stacked as channels.
#
# Where lines hardly cross, the middle leaves little to decide. What is left to learn lies at the ends, and a single
# step asks at $t = 1$ alone. So reflow draws its times from a U, $p(t) \propto \cosh(2\,(2t - 1))$, as Lee et al.
# (2024) proposed.

# %% tags=["nbval-check-output"]
network, its_noise = copy.deepcopy(pipe.network).cpu(), pipe.noise(4, seed=6)
*_, end = pipe.states(range(4), sampler="midpoint", steps=10, noise=its_noise)
coupled = torch.cat([end.x.cpu(), its_noise], dim=1)  # (4, 2, 32, 32)
t = objective.on_grid(objective.u_shaped(4, torch.Generator().manual_seed(7)), 1000).float()
loss_of_pairs = loss_of_reflow(recipe_of("rf-reflow").diffusion)
with torch.no_grad():
    mine = flow_loss(network, end.x.cpu(), its_noise, t)
    theirs = loss_of_pairs(network, coupled, torch.zeros(4), torch.Generator().manual_seed(7))
assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
print("reflow: the library's loss of", len(coupled), "pairs is equation (11)")

# %% [markdown]
# All of it is one command, `diffusion-book train rf-reflow`. (Liu et al. call the two flows the 1-rectified and the
# 2-rectified flow; in distillation, parent and child are called teacher and student.) Here are both flows from the same
# noises (figure 7.19), and their paths (figure 7.20).

# %%
reflow = diffusion_book.load("rf-reflow")
rows = {}
for name, model in (("rf", pipe), ("rf-reflow", reflow)):
    for n in (1, 2, 4):
        rows[f"{name}, {n}"] = by_steps[n] if model is pipe else model.sample(12, sampler="euler", steps=n, noise=noise)
rows["rf, 50"] = by_steps[50]
starts = pipe.noise(200, seed=8)
both = [model.sample(200, sampler="euler", steps=n, noise=starts) for model, n in ((reflow, 4), (pipe, 50))]
same_digit = (logits(both[0]).argmax(1) == logits(both[1]).argmax(1)).double().mean().item()
print(
    f"{same_digit:.0%} of 200 noises: a classifier reads the same digit after 4 steps of reflow as after 50 of its parent"
)
show(
    grids.show_rows(rows),
    "7.19",
    "One, two and four Euler steps, before and after reflow, and the parent's fifty steps below.",
)

# %%
states = torch.stack([state.x.cpu() for state in reflow.states(range(24), steps=50, seed=5)])
bends = {"rf": bends["rf"], "rf-reflow": (grid, states)}
for name, (_, states) in bends.items():
    total, shares[name] = straightness(states)
    print(f"{name:>9}: S = {total:6.1f}, {shares[name]:.3f} of the squared chords")
show(flows.show_bends(bends), "7.20", "Distance from the chord before and after reflow, as in figure 7.17.")

# %% tags=["remove-cell"]
if MODEL == "rf":
    assert same_digit > 0.6
    assert shares["rf-reflow"] < 0.6 * shares["rf"]

# %% [markdown]
# Most noises lead to the same digit as before, since such pairs are what the second flow was trained on. What has
# changed: a single step of the straightened flow has strokes where its parent has a blur.
#
# ## 12. One step
#
# If only one step will ever be taken, only one time matters: $t = 1$. Train (11) at that time alone, on pairs of the
# straightened flow, and all of the network's capacity goes into the one jump. This is *distillation*. Liu et al. do it
# after reflow, when noise and digit are coupled in a simpler way, and so does our `rf-one-step`.

# %%
begun = time.perf_counter()
one_step.sample(64, sampler="euler", steps=1, seed=0)
print(f"64 digits, one evaluation each: {time.perf_counter() - begun:.2f} seconds")
rows = {"rf, 50 steps": by_steps[50], "rf-reflow, 1": reflow.sample(12, sampler="euler", steps=1, noise=noise)}
show(
    grids.show_rows(rows | {"rf-one-step, 1": at_once}),
    "7.21",
    "Noise in, digit out. Above, fifty steps; in the middle, one step of the straightened flow; below, one step of the "
    "distilled network.",
)

# %% [markdown]
# Look at figure 7.21 column by column. Most noises keep the digit that fifty steps gave them, and the distilled network
# draws it more cleanly than one step of reflow does. This answers the question of the chapter: yes, one evaluation can
# draw a digit. It can, not because this network denoises better (with independent pairs, the best answer at $t = 1$ is
# a blur), but because the *coupling* has changed: each noise now belongs to one picture, and the mean of one picture is
# that picture.
#
# Some digits are broken all the same, and more steps do not mend them, for in the end this network was trained at $t =
# 1$ alone. So what does the speed cost?
#
# ## 13. What reflow costs

# %%
points, size = measured(("rf", "rf-reflow", "rf-one-step"), ("euler", "midpoint", "heun"))
for name in ("rf", "rf-reflow", "rf-one-step"):
    its = weights.read_card(name)
    before = f", and {its['coupling_minutes']:.0f} to draw the pairs" if "coupling_minutes" in its else ""
    print(f"{name:>11}: {its['minutes']:.0f} minutes of training{before}")
print(f"each point of the figure: {size:,} samples")
show(
    flows.plot_solvers(points, floor=1.0, ylabel="cFID / floor (lower is better)"),
    "7.22",
    "Three generations of one flow: the parent, its straightened child, and the network distilled for a single step.",
)

# %% tags=["remove-cell"]
quality = {which: dict(pairs) for which, pairs in points.items()}
parent, child, grandchild = (quality[name, "euler"] for name in ("rf", "rf-reflow", "rf-one-step"))
second_order = quality["rf", "heun"] | quality["rf", "midpoint"]
assert all(child[n] < 0.5 * parent[n] for n in (1, 2, 4))
assert grandchild[1] < child[1]
assert grandchild[1] < 0.8 * parent[5]
assert min(value for work, value in second_order.items() if work <= 10) < child[10]
best = min(*parent.values(), *second_order.values())
assert min(child.values()) > 1.2 * best
assert grandchild[1] > 2 * best

# %% [markdown]
# Read figure 7.22 from left to right. At one, two and four evaluations the child beats its parent by far, and at one
# the distilled network beats both; the parent needs more than five Euler steps to draw as well. From about ten
# evaluations on the order is reversed. The parent, followed by a solver of order 2, overtakes the child, and neither
# child nor grandchild ever reaches the best of the parent. They learn from what it draws, with its errors, and add
# their own; and they had fewer pairs, and half the training or less.
#
# So the price is paid three times: in the time to draw the coupling, in another training, and in quality that no number
# of steps brings back. It is worth paying where a picture must appear at once. If ten or twenty evaluations can be
# afforded, a better solver is the cheaper way to speed.
#
# ## 14. A flow of latents, with classes
#
# Chapter 4's idea works here as well: a flow of 32 numbers, and the decoder at the end.

# %%
latent_flow = diffusion_book.load("latent-rf")
states = torch.stack([state.x.cpu() for state in latent_flow.states(range(24), steps=50, seed=5)])
total, shares["latent-rf"] = straightness(states)
print(f"latent-rf: S = {total:.1f}, which is {shares['latent-rf']:.3f} of the squared length of the chords")
counts, start = (1, 2, 4, 10, 50), latent_flow.noise(12, seed=4)
show(
    grids.show_rows({steps_of(n): latent_flow.sample(12, sampler="euler", steps=n, noise=start) for n in counts}),
    "7.23",
    "A flow of latents, in few steps and in many. A single step gives firm strokes that form no digit.",
)

# %% tags=["remove-cell"]
if MODEL == "rf":
    assert shares["latent-rf"] > 2 * shares["rf"]

# %% [markdown]
# The decoder paints firm strokes even from the mean of all latents (figure 7.23, first row). And these paths bend more
# than those of `rf`.
#
# With classes, the velocity is guided as the noise was in chapter 5, $u_\varnothing + w\,(u_c - u_\varnothing)$. A
# distilled model can take the guidance into its pairs, as InstaFlow does (Liu, Zhang et al. 2024; Meng, Rombach et al.
# 2023 distil guidance without pairs): one evaluation then stands for the forty (ten steps of midpoint, two branches)
# that made each pair.

# %%
of_class, in_one = diffusion_book.load("latent-rf-class"), diffusion_book.load("latent-rf-class-one-step")
labels = torch.arange(10)
rows = {
    f"w = {w:g}, 10 steps": of_class.sample(10, labels=labels, guidance_scale=w, steps=10, seed=1)
    for w in (1.0, 1.5, 3.0)
}
rows["distilled, 1 step"] = in_one.sample(10, labels=labels, guidance_scale=1.0, steps=1, seed=1)
show(
    grids.show_rows(rows),
    "7.24",
    "A flow that is asked for 0 to 9, with three guidance scales, and its one-step model, whose pairs were drawn with "
    "$w = 1.5$.",
)

# %% [markdown]
# The last row of figure 7.24 needs a single evaluation for each digit, without a second branch: the guidance is in the
# pairs.
#
# Reflow is one of several ways to few steps. Progressive distillation (Salimans & Ho 2022) halves the number of steps
# again and again; consistency models (Song, Dhariwal, Chen & Sutskever 2023) learn to answer alike at all points of one
# path; distribution matching (Yin et al. 2024) moves one-step samples along the difference of two scores, until their
# distribution is the teacher's. And the coupling can be changed without a parent: minibatch optimal transport matches
# noises and data within each batch (Pooladian et al. 2023; Tong et al. 2024).
#
# ## The scoreboard
#
# These rows are of 10,000 samples. $R$ grows with their number (chapter 8), so compare only within one number.

# %%
names = ("rf", "rf-reflow", "rf-one-step", "latent-rf", "latent-rf-class", "latent-rf-class-one-step")
for name, row in itertools.product(names, scoreboard(10_000)):
    if row.model == name:
        print(f"{name:>24}, {setting_name(row):<17} | {row.evaluations:3} evaluations | {sentence(row.measures)}")

# %% [markdown]
# <details><summary>What differs from the papers</summary>
#
# - **Time.** Liu et al. have noise at 0 and data at 1; so do Lipman et al. Esser et al. have it our way.
# - **Training times.** The original draws them evenly; we take Esser et al.'s logit-normal for the first flow, and Lee
#   et al.'s U for reflow.
# - **The solver.** Liu et al. use an adaptive one of order 5, which chooses its steps itself. Ours have fixed steps, so
#   that evaluations can be compared.
# - **Distillation.** For one step Liu et al. replace the squared error by a perceptual distance (LPIPS), which blurs
#   less. For small digits we keep the square.
# - **Clipping.** Our pixel pipeline clips $\hat x_0$, so its velocity is not quite the network's. The papers do not
#   clip.
# - **Size.** On CIFAR-10 their table 1 reports an FID of 2.58 after an adaptive solver's 127 evaluations, and 4.85 for
#   one step after one reflow and distillation.
#
# </details>
#
# ## Pitfalls
#
# - **Sign and direction of time.** $\epsilon - x_0$ goes with steps $s - t < 0$, and with noise at $t = 1$. Mixed with
#   code of the other convention, samples run away from the data, and no error is raised.
# - **Noise prediction.** On the straight path $x_1 = \epsilon$ exactly, so that $\hat\epsilon$ says nothing of $x_0$
#   there, and $\hat x_0 = (x_t - t\,\hat\epsilon) / (1 - t)$ divides by zero. Predict the velocity.
# - **Steps mistaken for evaluations.** Ten steps of Heun are nineteen evaluations.
# - **Reflow on wrong pairs.** Shift the noises by one against the samples, and it is the first training again, on the
#   parent's samples.
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. A sign.** Write a step of Euler from $t$ to $s$, for a model that gives $\hat x_0$. Then follow the shipped flow
# with the wrong sign, $x_s = x_t - (s - t)\,u$, for ten steps. What comes out, and why is there no error message?

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def flow_step(x_t, x0, t, s):
    """The state and a prediction of the picture (N, D), two times, single tensors -> x_s, (N, D)."""
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
#         predicted = pipe.denoiser(x, t)
#     x = x - (s - t) * (predicted.eps - predicted.x0)
# grids.show_grid(pipe.to_images(x))
# ```
#
# Noise, many times louder than at the start. Each step moves away from the prediction instead of towards it. To the
# network that is merely a state noisier than announced, and it has an answer to everything.
#
# </details>
#
# **2. Another clock.** By section 5, `ddpm` knows the flow of `rf`. A state $x_t$ of the straight path is one of the
# cosine path, at another time and another scale: divide by $c = \sqrt{(1-t)^2 + t^2}$, and find the time at which the
# cosine has the same ratio $\sigma / \alpha$. Write that, to four digits. With it make a denoiser for the straight path
# from `ddpm`, sample it with Euler, and compare its straightness with that of `rf`.


# %% tags=["nbval-check-output"]
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
# It draws digits, and its paths are about as straight as those of `rf`. Both networks estimate the same $\mathbb E[x_0
# \mid x_t]$, so both describe the same flow. What bent the paths of `ddpm` in figure 7.17 was the arc.
#
# </details>
#
# **3. A step that remembers.** Extend the last two velocities in a straight line to the middle of the step: with even
# steps $x_s = x_t + (s - t) \big( \tfrac32 u_t - \tfrac12 u_{\text{before}} \big)$ (Adams and Bashforth). The first
# step is Euler's. What is its order on the data of section 7, and what does it cost?


# %% tags=["nbval-check-output"]
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
# found = [remembering(exact_flow, origin, samplers.time_grid(n)) for n in (100, 200)]
# before, after = ((end - goal).abs().mean().item() for end in found)
# print(math.log2(before / after))
# ```
#
# Order 2 for one evaluation a step. It is the idea of (13), in the clock of the straight path.
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
# flows.show_points({"twice": follow(third, fresh, 1)[-1]})
# ```
#
# Hardly. $S$ was near zero already, and each round adds the errors of one more training. Liu et al. find the same in
# pictures: the first reflow does nearly all of the work. Their second still gains something in one plain step, and
# loses after distillation.
#
# </details>
#
# ## Summary
#
# - Mix picture and noise along a straight line (1), and learn the velocity $\epsilon - x_0$ by least squares (3). Where
#   lines cross, the regression takes the mean. So the flow bends, and keeps the density at every time (6).
# - Picture, noise, $v$, velocity and score are one (7), and all Gaussian paths carry one flow (8). A schedule is a
#   clock; Euler on the straight path is DDIM (9).
# - Midpoint and Heun have order 2 at two evaluations a step (12); DPM-Solver++ needs one (13).
# - Reflow changes the coupling (11), and straightens the flow. Once each noise belongs to one picture, one evaluation
#   can draw it. The price is quality.
#
# ## References
#
# - Liu, Gong & Liu (2022), *Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow*. ICLR
#   2023. arXiv:2209.03003.
# - Lipman, Chen, Ben-Hamu, Nickel & Le (2022), *Flow Matching for Generative Modeling*. ICLR 2023. arXiv:2210.02747.
# - Albergo & Vanden-Eijnden (2022), *Building Normalizing Flows with Stochastic Interpolants*. ICLR 2023.
#   arXiv:2209.15571.
# - Karras, Aittala, Aila & Laine (2022), *Elucidating the Design Space of Diffusion-Based Generative Models*. NeurIPS.
#   arXiv:2206.00364. (The noise level as time, and Heun's method.)
# - Lu, Zhou, Bao, Chen, Li & Zhu (2022), *DPM-Solver++*. arXiv:2211.01095.
# - Esser et al. (2024), *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*. ICML.
#   arXiv:2403.03206. (Logit-normal times.)
# - Salimans & Ho (2022), *Progressive Distillation for Fast Sampling of Diffusion Models*. ICLR. arXiv:2202.00512.
# - Song, Dhariwal, Chen & Sutskever (2023), *Consistency Models*. ICML. arXiv:2303.01469.
# - Yin et al. (2024), *One-step Diffusion with Distribution Matching Distillation*. CVPR. arXiv:2311.18828.
# - Pooladian et al. (2023), *Multisample Flow Matching: Straightening Flows with Minibatch Couplings*. ICML.
#   arXiv:2304.14772.
# - Tong et al. (2024), *Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport*.
#   TMLR. arXiv:2302.00482.
# - Meng, Rombach, Gao, Kingma, Ermon, Ho & Salimans (2023), *On Distillation of Guided Diffusion Models*. CVPR.
#   arXiv:2210.03142.
# - Liu, Zhang, Ma, Peng & Liu (2024), *InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image
#   Generation*. ICLR. arXiv:2309.06380.
# - Lee, Lin & Fanti (2024), *Improving the Training of Rectified Flows*. NeurIPS. arXiv:2405.20320. (U-shaped times.)
