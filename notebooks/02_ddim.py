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
# *Runs in about a minute on two CPU cores; a third of it is one walk of 1,000 steps. Needs chapter 1, trains nothing.*
#
# Chapter 1 ended with good digits and a long wait: a thousand calls of the network for every picture. This
# chapter takes the very same weights and asks for the picture in fifty calls, or ten. Nothing is trained again.
# Only the sampler changes, by one line.
#
# You will
#
# - see what the training of a diffusion model fixes, and what it leaves open;
# - derive the DDIM step from that freedom, in five lines of algebra and six of code;
# - recognise DDPM as one end of the family, and an ordinary differential equation as the other;
# - understand why the second end gets by with few steps;
# - use what comes free with a sampler that draws no random numbers: encoding a picture as noise, and walking
#   from one picture to another.
#
# The source is Song, Meng & Ermon, *Denoising Diffusion Implicit Models* (2020).

# %% [markdown]
# ## Set-up
#
# One cell loads the trained network, the data, and the book's pictures. Samples start from noise with a fixed
# seed, so that you see the digits that this text speaks of.

# %%
import itertools
import time

import torch

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.interpolation import slerp
from diffusion_book.models import weights
from diffusion_book.schedules import cosine, expand
from diffusion_book.targets import TARGETS, Prediction
from diffusion_book.viz import animation, grids, in_page, paths, plots, scrubber, style

style.use_style()
pipe = diffusion_book.load("ddpm")
test = data.load("auto", "test")
print(f"data: {test.name}, {len(test):,} test pictures; the network runs on {pipe.device} in {pipe.dtype}")

# %% [markdown]
# Here is the end of the chapter at its beginning. Each column starts from one and the same noise. Each row walks
# from it to a picture in its own number of steps.

# %%
STEPS = (1000, 250, 50, 20, 10)
noise = pipe.noise(6, seed=2)
rows, seconds = {}, {}
for steps in STEPS:
    start = time.process_time()
    rows[steps] = pipe.sample(6, steps=steps, noise=noise)
    seconds[steps] = time.process_time() - start
    print(
        f"{steps:5,} steps: {seconds[steps]:6.2f} s of the processor, {seconds[1000] / seconds[steps]:5.1f} times as fast"
    )
grids.show_rows({f"{steps:,} steps": rows[steps] for steps in STEPS}, title="One noise a column, DDIM with eta = 0")

# %% [markdown]
# The columns keep their digits. The time falls with the number of steps; the pictures hardly change. How can a network
# that was trained for a thousand small steps serve for ten large ones?

# %% [markdown]
# ## 1. A world in which the denoiser makes no errors
#
# A network errs, and errors blur what a sampler does. So we begin where the best possible denoiser is known in
# closed form. Let the data be a mixture of Gaussians: component $k$ has the weight $w_k$, the mean $\mu_k$ and
# the standard deviation $\rho$. After adding noise each component is still Gaussian,
#
# $$x_t \mid k \sim \mathcal N(\alpha_t \mu_k,\; \alpha_t^2 \rho^2 + \sigma_t^2),$$
#
# so Bayes' rule gives the share of each component in $x_t$, and linear regression the best guess of $x_0$ within
# it:
#
# $$\hat x_0 = \sum_k p(k \mid x_t) \left[ \mu_k + \frac{\alpha_t \rho^2}{\alpha_t^2 \rho^2 + \sigma_t^2}
# (x_t - \alpha_t \mu_k) \right]. \tag{1}$$


# %%
def mixture_denoiser(means, shares, spread, schedule=cosine):
    """The exact denoiser of a Gaussian mixture: means (K, D), shares (K,), one spread."""

    def denoise(x_t, t):
        alpha, sigma = (expand(value, x_t) for value in schedule(t.expand(len(x_t))))  # (B, 1)
        variance = (alpha * spread) ** 2 + sigma**2
        away = x_t[:, None] - alpha[..., None] * means  # (B, K, D)
        share = torch.softmax(shares.log() - away.square().sum(2) / (2 * variance), dim=1)  # (B, K)
        guess = means + (alpha * spread**2 / variance)[..., None] * away  # (B, K, D)
        x0 = (share[..., None] * guess).sum(1)  # (B, D)
        return Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


MEANS = torch.tensor([[-0.8], [0.6]], dtype=torch.float64)
SHARES, SPREAD = torch.tensor([0.3, 0.7], dtype=torch.float64), 0.1
toy = mixture_denoiser(MEANS, SHARES, SPREAD)

# %% [markdown]
# Check: the mean of $x_0$ given $x_t$ can also be had by brute force, as a sum over twenty thousand values of
# $x_0$.

# %%
# NBVAL_CHECK_OUTPUT
x_t, half = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], torch.tensor(0.5, dtype=torch.float64)
line = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
prior = (SHARES[:, None] * torch.exp(-(((line - MEANS) / SPREAD) ** 2) / 2)).sum(0)
alpha, sigma = cosine(half)
weight = prior * torch.exp(-(((x_t - alpha * line) / sigma) ** 2) / 2)  # (5, 20001)
summed, exact = (weight * line).sum(1) / weight.sum(1), toy(x_t, half).x0[:, 0]
print("best guess of x0:", " ".join(f"{value:.4f}" for value in exact))
print("difference from the sum below 1e-9:", bool((exact - summed).abs().max() < 1e-9))

# %% [markdown]
# Now walk. The library's `samplers.sample` takes any denoiser, any grid of times and any step. On the left DDPM
# walks a thousand steps, on the right DDIM does, both from the same forty starting points.


# %%
def walk(denoiser, x, times, eta):
    """Every state of a walk, (S + 1, N, D)."""
    generator = torch.Generator().manual_seed(1)
    states = samplers.sample(denoiser, x, times, samplers.ddim, schedule=cosine, generator=generator, eta=eta)
    return torch.stack([state.x for state in states])


def even_noise(count):
    """Standard normal quantiles, (count, 1): as even as a draw could be, in mixed order."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    mixed = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return torch.special.ndtri(quantiles)[mixed, None]


full = samplers.time_grid(1000)
random = walk(toy, even_noise(40), full, eta=1.0)[..., 0]
smooth = walk(toy, even_noise(40), full, eta=0.0)[..., 0]
paths.show_line_paths({"DDPM (eta = 1): random paths": (full, random), "DDIM (eta = 0): smooth paths": (full, smooth)})

# %% [markdown]
# The two pictures could hardly differ more. DDPM's points jitter, cross, and change sides. DDIM's glide, and
# never cross: two paths that met would have to go on as one. Yet both end in the same two heaps, with three
# points in ten on the lower one. Here are the figures for 5,000 points.

# %%
# NBVAL_CHECK_OUTPUT
mean = (SHARES * MEANS[:, 0]).sum()
std = (SPREAD**2 + (SHARES * (MEANS[:, 0] - mean) ** 2).sum()).sqrt()
print(f"data:          share above zero {SHARES[1]:.2f}, mean {mean:5.2f}, standard deviation {std:.2f}")
for name, eta in (("DDPM, eta = 1", 1.0), ("DDIM, eta = 0", 0.0)):
    end = walk(toy, even_noise(5000), samplers.time_grid(200), eta)[-1]
    print(f"{name}: share above zero {(end > 0).double().mean():.2f}, mean {end.mean():5.2f}, ", end="")
    print(f"standard deviation {end.std():.2f}")

# %% [markdown]
# The plane shows the same. Six heaps lie on a ring. Open circles mark where points start, dots where they end. In the
# third panel DDIM takes ten steps instead of a thousand, and its points end almost where they did before.

# %%
angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
ring = torch.stack([angles.cos(), angles.sin()], dim=1) * 1.5  # (6, 2)
ring_denoiser = mixture_denoiser(ring, torch.full((6,), 1 / 6, dtype=torch.float64), 0.12)
generator = torch.Generator().manual_seed(3)
heaps = ring[torch.arange(1200) % 6] + 0.12 * torch.randn(1200, 2, generator=generator, dtype=torch.float64)
starts = torch.randn(5, 2, generator=generator, dtype=torch.float64)
ten = samplers.time_grid(10)
panels = {"DDPM, 1,000 steps": (full, 1.0), "DDIM, 1,000 steps": (full, 0.0), "DDIM, 10 steps": (ten, 0.0)}
paths.show_plane_paths({name: walk(ring_denoiser, starts, *how) for name, how in panels.items()}, heaps)

# %% [markdown]
# So there are two walks, one random and one not, and one denoiser serves both. The next sections find out why.

# %% [markdown]
# ## 2. What the training leaves open
#
# Look again at the loss of chapter 1. It draws one picture, one time and one noise, and makes one $x_t$:
#
# $$q(x_t \mid x_0) = \mathcal N(\alpha_t x_0,\; \sigma_t^2 I). \tag{2}$$
#
# It never looks at two times together. So it leaves open how $x_s$, at a less noisy time $s < t$, goes together with
# $x_t$. DDPM made one choice, a chain in which each state adds noise to the one before. Every other choice that keeps
# (2) at every single time has the same loss, and so the same network.
#
# Such choices are easy to make. From $x_t$ and $x_0$ we can read off the noise, $\epsilon = (x_t - \alpha_t x_0) /
# \sigma_t$, which is standard normal given $x_0$. Keep a part of it, and replace the rest by fresh noise $z$:
#
# $$x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \sigma_\eta^2}\; \frac{x_t - \alpha_t x_0}{\sigma_t}
# + \sigma_\eta z, \qquad 0 \le \sigma_\eta \le \sigma_s. \tag{3}$$
#
# Given $x_0$, this is a constant plus two independent Gaussians. Their variances add up:
# $(\sigma_s^2 - \sigma_\eta^2) + \sigma_\eta^2 = \sigma_s^2$. Hence $x_s$ has mean $\alpha_s x_0$ and variance
# $\sigma_s^2$, as (2) demands, *whatever $\sigma_\eta$ is*. That is the whole idea of DDIM.
#
# We draw (3) for one $x_0$ and three values of $\sigma_\eta$: no fresh noise, half the variance fresh, all of it
# fresh.


# %%
def draw_pair(x0, t, s, fresh_share, count=200_000):
    """x_t and x_s of equation 3, where fresh_share of the variance at time s is new."""
    generator = torch.Generator().manual_seed(0)
    eps, z = torch.randn(2, count, generator=generator, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
    fresh = sigma_s * fresh_share**0.5  # this is sigma_eta
    x_t = alpha_t * x0 + sigma_t * eps
    x_s = alpha_s * x0 + (sigma_s**2 - fresh**2).sqrt() * (x_t - alpha_t * x0) / sigma_t + fresh * z
    return x_t, x_s


t, s = torch.tensor([0.6, 0.3], dtype=torch.float64)
pairs = {share: draw_pair(0.6, t, s, share) for share in (0.0, 0.5, 1.0)}
panels = {f"fresh variance: {share:.0%}": (x_t[:1500], x_s[:1500]) for share, (x_t, x_s) in pairs.items()}
paths.show_pairs(panels, "$x_t$, t = 0.6", "$x_s$, s = 0.3")

# %% [markdown]
# The clouds differ: on the left $x_s$ follows from $x_t$, on the right the two have nothing to do with each
# other. The histograms at their edges are the same three times. Those are all that the training ever saw.

# %%
# NBVAL_CHECK_OUTPUT
alpha_s, sigma_s = cosine(s)
print(f"equation 2:  mean {0.6 * alpha_s:.2f}, standard deviation {sigma_s:.2f}")
for share, (x_t, x_s) in pairs.items():
    correlation = torch.corrcoef(torch.stack([x_t, x_s]))[0, 1]
    print(f"fresh {share:4.0%}:  mean {x_s.mean():.2f}, standard deviation {x_s.std():.2f}, ", end="")
    print(f"correlation {correlation:.2f}, expected {(1 - share) ** 0.5:.2f}")

# %% [markdown]
# ## 3. The step
#
# When we sample, $x_0$ is not known. The denoiser's guess $\hat x_0$ takes its place in (3), and with it
# $\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$:
#
# $$x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \sigma_\eta^2}\; \hat\epsilon + \sigma_\eta z. \tag{4}$$
#
# In words: split $x_t$ into picture and noise, and mix the two anew for time $s$. One number per step is free.
# The paper ties all of them to a single dial $\eta$,
#
# $$\sigma_\eta = \eta\; \frac{\sigma_s}{\sigma_t} \sqrt{1 - \frac{\alpha_t^2}{\alpha_s^2}}, \tag{5}$$
#
# with $\eta = 0$ for no fresh noise at all. Where the shape of (5) comes from is the next section's business.
#
# The paper writes this in other letters. Beware of the first row: DDIM's $\alpha_t$ is DDPM's $\bar\alpha_t$.
#
# | here | Song et al. 2020 | meaning |
# |---|---|---|
# | $\alpha_t^2$ and $\sigma_t^2$ | $\alpha_t$ and $1 - \alpha_t$ | share of picture and of noise in the variance |
# | $t$ and $s$ | $\tau_i$ and $\tau_{i-1}$ | where a step starts and ends |
# | $\hat x_0$ | $f_\theta^{(t)}(x_t)$, "predicted $x_0$" | equation 9 there |
# | $\hat\epsilon$ | $\epsilon_\theta^{(t)}(x_t)$ | what their network gives |
# | $\sigma_\eta$ | $\sigma_{\tau_i}(\eta)$ | equation 16 there |
# | $z$ | $\epsilon_t$ | the fresh noise |
#
# Here is their equation 12 in their letters, and the assertion that the library's `samplers.ddim` is the same.


# %%
# NBVAL_CHECK_OUTPUT
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
# ## 4. At one end of the dial stands DDPM
#
# With $\eta = 1$ equation (5) is the standard deviation of DDPM's posterior $q(x_s \mid x_t, x_0)$, and (4) is
# DDPM's step. The means agree as well: substitute $\hat\epsilon = (x_t - \alpha_t \hat x_0) / \sigma_t$ into (4)
# and collect $x_t$ and $\hat x_0$. This is a theorem, so we ask for all thousand steps of the grid, with arbitrary
# predictions, and for agreement to ten decimal places.

# %%
# NBVAL_CHECK_OUTPUT
largest = 0.0
for t, s in itertools.pairwise(full):
    alpha_t, sigma_t = cosine(t)
    guess = Prediction(x0, (x_t - alpha_t * x0) / sigma_t)
    ddpm = samplers.ddpm(guess, x_t, t, s, schedule=cosine, noise=z)
    ddim = samplers.ddim(guess, x_t, t, s, schedule=cosine, noise=z, eta=1.0)
    largest = max(largest, (ddpm - ddim).abs().max().item())
assert largest < 1e-10
print(f"{len(full) - 1:,} steps: DDIM with eta = 1 is DDPM, to 1e-10: {largest < 1e-10}")

# %% [markdown]
# The theorem holds for long steps too, and there it shows what they cost DDPM. Divide (5) by $\sigma_s$ and square
# it. With $\eta = 1$, the share of the noise in $x_s$ that is fresh is
#
# $$\frac{\sigma_\eta^2}{\sigma_s^2} = 1 - \frac{\mathrm{SNR}(t)}{\mathrm{SNR}(s)}, \qquad
# \mathrm{SNR} = \frac{\alpha^2}{\sigma^2}.$$

# %%
moments = torch.linspace(0.1, 1.0, 200, dtype=torch.float64)
fresh = {}
for steps in (1000, 100, 10):
    before = moments - 0.999 / steps  # not quite a whole step: the longest must not end at 0, where there is no noise
    (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(moments), cosine(before)
    fresh[f"{steps:,} steps"] = 1 - (alpha_t / sigma_t) ** 2 / (alpha_s / sigma_s) ** 2
plots.plot_curves(moments, fresh, xlabel="time t", ylabel="share of the noise\nthat DDPM replaces", ylim=(-0.02, 1.02))

# %% [markdown]
# In a walk of a thousand steps DDPM replaces a percent or so of the noise at a time, except near $t = 1$. In a
# walk of ten it throws away half or more of it in every step. What the earlier steps had decided goes with it. DDIM with
# $\eta = 0$ throws away nothing.

# %% [markdown]
# ## 5. Exactly as many steps as asked for
#
# A shorter walk needs a shorter list of times. Many programs take every $n$-th of the training's thousand, with
# `range(0, 1000, 1000 // S)`, and walk it backwards. Look at what that gives. (Their index $k$ counts from zero,
# so it stands for our time $(k + 1) / 1000$.)


# %%
# NBVAL_CHECK_OUTPUT
def every_nth(steps):
    """The times of the popular formula, from the noisy end down to 0."""
    indices = range(0, 1000, 1000 // steps)
    return torch.tensor([(index + 1) / 1000 for index in reversed(indices)] + [0.0], dtype=torch.float64)


for asked in (10, 30, 50):
    popular, ours = every_nth(asked), samplers.time_grid(asked)
    print(f"asked for {asked}: range() makes {len(popular) - 1} steps from t = {popular[0]:.3f}, ", end="")
    print(f"time_grid makes {len(ours) - 1} from t = {ours[0]:.3f}")

# %% [markdown]
# Asked for 50 steps, it starts at index 980 and never visits the noise. Asked for 30, it makes 31. The first
# fault is the worse one, and it grows with the length of the steps. The walk starts with pure noise and tells the
# denoiser that there is already some picture in it. Pictures of digits are mostly black, so pure noise is too
# bright for a picture that has begun. Measure the ink.


# %%
def draw(denoiser, z, times):
    """The pictures at the end of a walk of the network, eta = 0."""
    generators = samplers.sample_generators(0, range(len(z)))
    *_, end = samplers.sample(denoiser, z, times, samplers.ddim, schedule=pipe.schedule, generator=generators)
    return pipe.to_images(end.x)


print(f"real pictures: {(test.images / 255).mean():.1%} ink")
for asked in (5, 10):
    for name, times in (("range()", every_nth(asked)), ("time_grid", samplers.time_grid(asked))):
        ink = (draw(pipe.denoiser, pipe.noise(60, seed=3), times) + 1).mean() / 2
        print(f"{asked:2} steps, {name:>9}: {ink:.1%} ink")
compared = {
    "range()": draw(pipe.denoiser, noise, every_nth(5)),
    "time_grid": draw(pipe.denoiser, noise, samplers.time_grid(5)),
}
grids.show_rows(compared, title="5 steps")

# %% [markdown]
# The walk that skips the noisy end draws too much ink, the more so the fewer its steps. Starting at $t = 1$ costs
# nothing and mends it.

# %% [markdown]
# ## 6. At the other end stands a differential equation
#
# Set $\eta = 0$ and divide (4) by $\alpha_s$. Since $x_t / \alpha_t = \hat x_0 + (\sigma_t / \alpha_t)\,
# \hat\epsilon$, the picture drops out of the difference:
#
# $$\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \left( \frac{\sigma_s}{\alpha_s} - \frac{\sigma_t}{\alpha_t}
# \right) \hat\epsilon(x_t, t). \tag{6}$$
#
# New coordinate, plus the length of the step, times a slope: this is Euler's method. The coordinate is
# $\bar x = x / \alpha$, the "time" is $\lambda = \sigma / \alpha$, and the equation that is being solved is
#
# $$\frac{d \bar x}{d \lambda} = \hat\epsilon. \tag{7}$$


# %%
# NBVAL_CHECK_OUTPUT
def euler_walk(denoiser, x, times):
    """Equation 6, and nothing else."""
    for t, s in itertools.pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = cosine(t), cosine(s)
        slope = denoiser(x, t).eps
        x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * slope)
    return x


difference = (euler_walk(toy, even_noise(100), ten) - walk(toy, even_noise(100), ten, eta=0.0)[-1]).abs().max()
assert difference < 1e-10
print("ten steps of DDIM are ten steps of Euler, to 1e-10:", bool(difference < 1e-10))

# %% [markdown]
# Now we can say why few steps suffice. Euler's method follows tangents. It makes no error at all on a straight
# path, however long the step, and errs only where the path bends. So draw the paths of section 1 again, in the
# coordinates of (7).


# %%
def as_the_equation_sees(times, states):
    """lambda, and x / alpha."""
    alpha, sigma = cosine(times)
    return sigma / alpha, states / alpha[:, None]


rough = walk(toy, even_noise(40), ten, eta=0.0)[..., 0]
panels = {"1,000 steps": as_the_equation_sees(full, smooth), "10 steps": as_the_equation_sees(ten, rough)}
panels = {name: (where, points[:, ::3]) for name, (where, points) in panels.items()}
paths.show_line_paths(panels, xlabel=r"$\lambda = \sigma / \alpha$", ylabel=r"$x / \alpha$", xlim=(4, 0), ylim=(-5, 5))

# %% [markdown]
# The paths are almost straight from the far left, where everything still points at the mean of the data, down to
# $\lambda \approx 1$. There each point makes up its mind and turns to one of the heaps. From then on its path is
# straight again. One bend is all that a solver must resolve, and on the right you see how well ten steps do it.
#
# Straight paths cost nothing; a bend costs an error in proportion to the length of the step. So the error of the
# end point should halve when the number of steps doubles.

# %%
# NBVAL_CHECK_OUTPUT
finest = walk(toy, even_noise(1000), full, eta=0.0)[-1]
errors = {}
for steps in (5, 10, 20, 40, 80):
    errors[steps] = (walk(toy, even_noise(1000), samplers.time_grid(steps), 0.0)[-1] - finest).abs().mean().item()
print(" ".join(f"{steps}: {error:.3f}" for steps, error in errors.items()))
print("each doubling divides the error by", " ".join(f"{errors[n] / errors[2 * n]:.1f}" for n in (5, 10, 20, 40)))

# %% [markdown]
# What counts in the end is the distribution. On a line its error is easy to measure: sort the points, sort a
# perfect sample, and average the distances (this is called the Wasserstein-1 distance). We do it for both ends of
# the dial.

# %%
perfect = torch.cat([MEANS[0] + SPREAD * even_noise(1200), MEANS[1] + SPREAD * even_noise(2800)])[:, 0].sort().values
quality = {}
for name, eta in (("eta = 0", 0.0), ("eta = 1", 1.0)):
    ends = {n: walk(toy, even_noise(4000), samplers.time_grid(n), eta)[-1, :, 0] for n in (3, 5, 10, 20, 50, 100)}
    quality[name] = [(n, (end.sort().values - perfect).abs().mean().item()) for n, end in ends.items()]
plots.plot_quality(quality, ylabel="distance from the data")

# %% [markdown]
# Even with a perfect denoiser the random walk is behind at every small number of steps. Both curves go down with
# more steps. The upper one ends at the chance error of 4,000 random draws; the lower one leaves nothing to chance.

# %% [markdown]
# ## 7. The pair must agree
#
# Pictures live in $[-1, 1]$, so it helps to clip $\hat x_0$ to that range. The pair then no longer adds up to
# $x_t$, unless $\hat\epsilon$ is computed again from the clipped picture. The library's `denoiser.clipped` does so.
# We break it on purpose.

# %%
raw = Denoiser(pipe.network, pipe.schedule, TARGETS[pipe.recipe.diffusion.target])


def half_clipped(x_t, t):
    """Clips x0 and keeps the old eps: wrong."""
    x0, eps = raw(x_t, t)
    return Prediction(x0.clamp(-1, 1), eps)


def all_clipped(x_t, t):
    """Clips the noisy state: worse."""
    return pipe.denoiser(x_t.clamp(-1, 1), t)


drawn = {}
t = torch.tensor(0.7, dtype=torch.float64)
alpha, sigma = pipe.schedule(t)
for name, denoiser in (("right", pipe.denoiser), ("old eps", half_clipped), ("x_t clipped", all_clipped)):
    x0, eps = denoiser(noise, t)
    drawn[name] = draw(denoiser, noise, samplers.time_grid(20))
    print(
        f"{name:>11}: alpha x0 + sigma eps misses x_t by up to {(alpha * x0 + sigma * eps - noise).abs().max():.4f}",
        end="",
    )
    print(f"; pixels of the end differ by {(drawn[name] - drawn['right']).abs().mean():.4f}")
grids.show_rows(drawn, title="20 steps")

# %% [markdown]
# The first number is zero only where the pair agrees. With our network the forgotten $\hat\epsilon$ does little
# harm to the eye: $v$ keeps $\hat x_0$ close to its range, and there is little to clip. A network that predicts the
# noise divides its error by $\alpha_t$, which near $t = 1$ is nearly zero; there the clipping, and with it the
# mistake, is no longer small. The last row is the classic one. Clipping $x_t$ takes away the tails of the noise,
# and what the network then sees is nothing that it was trained on.

# %% [markdown]
# ## 8. Steps and eta on real digits
#
# Back to the network. Down the rows the number of steps grows. In each row the first three pictures grow from one
# noise with $\eta = 0$, $\tfrac12$ and $1$; the next three do the same from another, the last three from a third.

# %%
table = {}
for steps in (5, 20, 50):
    columns = [pipe.sample(3, steps=steps, eta=eta, seed=7, noise=noise[:3]) for eta in (0.0, 0.5, 1.0)]
    table[f"{steps} steps"] = torch.stack(columns, dim=1).flatten(0, 1)  # (3, 3, 1, 28, 28) -> (9, 1, 28, 28)
grids.show_rows(table, title="eta = 0, 0.5 and 1, for three noises")

# %% [markdown]
# The first column of each three hardly changes from row to row: without fresh noise, the number of steps changes the
# finish and not the digit. Within each three, more noise is fresh towards the right, and other digits appear. In the
# top row that noise comes in large portions, and few steps are left to turn it into strokes.
#
# Which is better? Two effects work against each other. Fresh noise makes long steps worse; that was the toy, where
# the denoiser knew everything. But a network errs, and its errors pile up along a walk. Fresh noise covers old
# errors, and the next steps start again from a state that looks as it should. A sampler without it has to live with
# every error it ever made. The better the network and the fewer the steps, the more speaks for $\eta = 0$.
#
# ## 9. Quality against work
#
# The eye is a poor judge of a distribution. The card of the weights holds what was measured: cFID,
# the Fréchet distance between the features of generated and of real digits, and its floor, the distance that as many
# real training digits have from the test set. $R$ is the one over the other. A distance from few samples is biased
# upwards, so figures of different numbers of samples do not compare: the plot is of 10,000 throughout. DDPM's thousand
# steps were affordable for 2,000 only, and are printed beside two settings of DDIM with as many.

# %%
metrics = [row for row in figures(weights.read_card("ddpm")) if row["sampler"] in ("ddpm", "ddim")]
curves = {}
for row in sorted(metrics, key=lambda row: (-row["num_samples"], row["eta"], row["steps"])):
    name = "ddpm" if row["sampler"] == "ddpm" or row["eta"] == 1 else "ddim"  # with eta = 1 they are the same
    if row["num_samples"] == 10_000:
        curves.setdefault(name, []).append((row["steps"], row["ratio"]))
    print(f"{row['num_samples']:6,} samples, {name}, {row['steps']:5,} steps: cFID {row['cfid']:7.3f}", end="")
    print(f", floor {row['floor']:.3f}, R {row['ratio']:6.1f}")
plots.plot_quality(curves, floor=1.0, ylabel="cFID / floor (lower is better)")

# %% [markdown]
# Where the curve of `ddpm` lies below the other, the second effect of section 8 is the stronger one: fresh noise
# covers more errors than it makes, and a small network like ours makes many. So $\eta = 0$ need not be the better
# sampler. It is the one that can be steered, as the rest of the chapter shows. And with either, most of the thousand
# steps can be saved.
#
# A live measure, small enough for this page: 200 samples each. Two hundred pictures are few for the 64 features
# that are compared, so the figures are large and rough. Five sets of 200 real digits say how rough.

# %%
reference = reference_features()
order = torch.randperm(len(reference["train"]), generator=torch.Generator().manual_seed(0))
floors = [frechet_distance(reference["train"][part], reference["test"]) for part in order[:1000].split(200)]
print(f"200 real digits: cFID {min(floors):.2f} to {max(floors):.2f}")
for steps, eta in ((10, 0.0), (5, 0.0), (5, 1.0)):
    drawn = pipe.sample(200, steps=steps, eta=eta, seed=11)
    print(f"{steps:2} steps, eta = {eta:g}: cFID {frechet_distance(features(drawn), reference['test']):.2f}")

# %% [markdown]
# ## 10. The same noise gives the same digit
#
# With $\eta = 0$ nothing is drawn after the first noise. The noise alone decides on the digit, and the steps only
# on how exactly it is reached. We compare each row of the first figure with its row of 1,000 steps: the mean
# difference of a pixel, and in how many columns the book's second classifier reads the same digit. The last line
# compares different noises, so that the numbers have something to be compared with.

# %%
best = rows[1000]
read = logits(best).argmax(dim=1)
for steps in STEPS[1:]:
    same = int((logits(rows[steps]).argmax(dim=1) == read).sum())
    print(
        f"{steps:5} steps: a pixel differs by {(rows[steps] - best).abs().mean():.3f}, {same} of {len(best)} digits the same"
    )
print(f"other noise: a pixel differs by {(best.roll(1, 0) - best).abs().mean():.3f}")

# %% [markdown]
# Pull the slider to see one noise resolve as the walk gets more steps.

# %%
COUNTS = (1, 2, 3, 4, 5, 7, 10, 20, 50, 100)
more = {count: pipe.sample(6, steps=count, noise=noise) for count in COUNTS if count not in rows}
frames = torch.stack([grids.grid((more | rows)[count], columns=3) for count in COUNTS])
captions = [f"{count} step{'s' if count > 1 else ''}" for count in COUNTS]
stored = scrubber.scrubber(
    frames, captions, label="DDIM", alt="Six digits, each from one noise, in 1 to 100 steps", start=4
)
in_page.live_after("ddpm", stored, steps=10)

# %% [markdown]
# A single step shows $\hat x_0$ at $t = 1$: the mean of all digits, which is the best guess when there is nothing
# but noise. (In the toy it was the point on which all straight paths were aimed.)
#
# The noise decides even if the samples are drawn in other batches, since each sample has a generator of its own.
# That holds for $\eta > 0$ too.

# %%
together = pipe.sample(6, steps=10, eta=1.0, seed=5)
apart = pipe.sample(6, steps=10, eta=1.0, seed=5, batch_size=2)
print(f"one batch of 6 or three of 2: pixels differ by at most {(together - apart).abs().max():.4f}")

# %% [markdown]
# ## 11. From a picture to its noise
#
# An equation can be solved in either direction. Walk (6) upwards, from $t = 0$ to $t = 1$, and a real picture
# becomes a noise; walk down again, and the picture is back. At $t = 0$ itself there is no noise to predict, so the
# walk begins one step of the training grid later, at $t = 0.001$, where the noise is smaller than one grey level.


# %%
@torch.no_grad()
def follow(x, times):
    """Equation 6 along any times, upwards or downwards."""
    for t, s in itertools.pairwise(times):
        x0, eps = raw(x, t)
        alpha, sigma = pipe.schedule(s)
        x = alpha * x0 + sigma * eps
    return x


pictures = test.batch(torch.arange(8))[0]  # (8, 1, 32, 32)
encoded, decoded = {}, {}
for steps in (10, 25, 50):
    upwards = samplers.time_grid(steps).clamp(min=0.001).flip(0)
    encoded[steps] = follow(pictures, upwards)
    decoded[steps] = follow(encoded[steps], upwards.flip(0))
    error = (pipe.to_images(decoded[steps]) - pipe.to_images(pictures)).abs().mean()
    print(f"{steps:3} steps up and {steps:3} down: a pixel is off by {error:.4f} on average")
shown = {"picture": pipe.to_images(pictures), "its noise": data.crop(encoded[50]) / 3}
shown |= {f"{steps} steps": pipe.to_images(decoded[steps]) for steps in (50, 25, 10)}
grids.show_rows(shown, title="Encoded and decoded")

# %% [markdown]
# The more steps, the better the way back. Is the code really noise? Standard normal noise has mean 0 and standard
# deviation 1, and neighbouring pixels know nothing of each other.

# %%
code, fresh_noise = encoded[50], pipe.noise(8, seed=1)
for name, value in (("encoded", code), ("drawn", fresh_noise)):
    beside = torch.corrcoef(torch.stack([value[..., :-1].flatten(), value[..., 1:].flatten()]))[0, 1]
    print(
        f"{name:>8}: mean {value.mean():5.2f}, standard deviation {value.std():.2f}, neighbours correlate {beside:5.2f}"
    )

# %% [markdown]
# Not quite. Neighbours are nearly independent, as they should be. But the standard deviation is below one, and in the
# second row above you can still make out the digits: the noise is strong where the ink was, and weak around it. One
# reason is in the data. The background of a real digit is exactly $-1$, with no grain at all in it, so there is nothing
# from which the walk could unfold a full-grown noise. It is a code all the same: it leads back to its picture.
#
# ## 12. Between two noises
#
# If each noise has its picture, then the noises between two noises should have pictures between theirs. But what
# is *between*? In 1,024 dimensions the length of a standard normal noise is nearly always close to
# $\sqrt{1024} = 32$: all draws lie in a thin shell. The middle of the straight line between two of them has a
# length of only $32 / \sqrt 2$. The network has never seen such a thing. So we walk along the sphere, at constant
# speed:
#
# $$\mathrm{slerp}(a, b, w) = \frac{\sin((1 - w)\,\theta)}{\sin\theta}\, a + \frac{\sin(w\,\theta)}{\sin\theta}\, b,
# \qquad \cos\theta = \frac{a \cdot b}{|a|\,|b|}. \tag{8}$$

# %%
lengths = pipe.noise(500, seed=9).flatten(1).norm(dim=1)
print(f"500 noises: lengths {lengths.min():.1f} to {lengths.max():.1f}")
a, b = noise[0:1], noise[5:6]
way = torch.linspace(0, 1, 9)
round_way = slerp(a.expand(9, -1, -1, -1), b.expand(9, -1, -1, -1), way)
straight = torch.lerp(a, b, way.reshape(-1, 1, 1, 1))
for name, between in (("slerp", round_way), ("straight", straight)):
    print(f"{name:>8}: lengths", " ".join(f"{length:.1f}" for length in between.flatten(1).norm(dim=1)))
first, second = pipe.noise(120, seed=9).chunk(2)
for name, middle in (("slerp", slerp(first, second, 0.5)), ("straight", (first + second) / 2)):
    print(f"{name:>8}: {(pipe.sample(60, steps=10, noise=middle) + 1).mean() / 2:.1%} ink half way, mean of 60 pairs")
drawn = {name: pipe.sample(9, steps=20, noise=z) for name, z in (("slerp", round_way), ("straight", straight))}
grids.show_rows(drawn, title="From one noise to another, 20 steps each")

# %% [markdown]
# Both ways arrive, and both pass through digits. The straight one is short of noise on its way, by three tenths in
# the middle, and the ink tells: a noise that is too weak looks to the network like a picture with too little in it.
# On the sphere nothing of the kind happens.
#
# Six walks at once, each through four noises and back to its first. Every frame is a fresh walk of 20 steps from
# a noise on the circle; no pixel was blended.

# %%
corners = pipe.noise(24, seed=12).unflatten(0, (4, 6))  # (4, 6, 1, 32, 32)
stops = [slerp(corners[n], corners[(n + 1) % 4], step / 8) for n in range(4) for step in range(8)]
pictures_on_the_way = pipe.sample(32 * 6, steps=20, noise=torch.cat(stops)).unflatten(0, (32, 6))
film = torch.stack([grids.grid(pictures, columns=6) for pictures in pictures_on_the_way])
animation.animate(film, milliseconds=120, alt="Six digits that turn into others and back, by slerp between noises")

# %% [markdown]
# ## The scoreboard
#
# The rows of this chapter, read from the card: the network of chapter 1 with a twentieth of its evaluations, or fewer.

# %%
rows_of_ddim = [row for row in metrics if row["sampler"] == "ddim" and row["eta"] == 0.0]
for row in sorted(rows_of_ddim, key=lambda row: -row["steps"]):
    if row["num_samples"] == 10_000:
        print(f"DDIM, eta = 0 | {row['steps']:4} evaluations | {sentence(row)}")

# %% [markdown]
# ## What differs from the paper
#
# - Their network predicts the noise on a linear schedule. Ours predicts $v$ on the cosine schedule. Equation (4)
#   asks only for a pair $(\hat x_0, \hat\epsilon)$ that adds up to $x_t$, and takes either.
# - They choose the sub-grid linear or quadratic in the index (appendix D.2). Ours is linear, and hits $t = 1$ and
#   $t = 0$ with exactly $S$ steps.
# - We clip $\hat x_0$ and compute $\hat\epsilon$ again. The paper's equations have no clipping.
# - They also report a noisier DDPM, $\hat\sigma$, with the larger variance $\beta_t$ in place of the posterior's. It
#   is not in the family of (3), and it is the worst of all at few steps in their table 1.
#
# On CIFAR-10 their table 1 gives an FID of 13.4 for $\eta = 0$ and 41.1 for $\eta = 1$ at 10 steps, and 4.0 and
# 4.7 at 1,000. There, fresh noise is what short walks can least afford. Our pictures are simpler and our network is
# smaller: compare section 9.
#
# ## Pitfalls
#
# - **`range(0, T, T // S)`** skips the noisy end and may give another number of steps (section 5).
# - **Clipping $\hat x_0$ alone** leaves a pair that no longer adds up (section 7). Clipping $x_t$ is worse: it is
#   noise, and has every right to leave $[-1, 1]$.
# - **The paper's $\alpha_t$** is DDPM's $\bar\alpha_t$. Code that mixes the two up runs, and draws mud.
# - **Fresh noise in the last step.** At $s = 0$ equation (5) gives 0. Code that adds noise there returns a grainy
#   picture.
# - **Straight lines between noises** leave the shell on which the network was trained (section 12).
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. DDIM as a rotation.** On a variance preserving schedule there is an angle $\varphi$ with $\alpha =
# \cos\varphi$ and $\sigma = \sin\varphi$. Write the step of $\eta = 0$ with $x_t$, the network's
# $v = \alpha\,\hat\epsilon - \sigma\,\hat x_0$, and the angles only.

# %%
# NBVAL_CHECK_OUTPUT
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
# **2. A better solver.** Euler takes its slope at the start of a step. Heun's method goes to the end, takes the
# slope there too, and walks with the mean of the two. Write it for equation (7). (The first step starts
# at $\lambda = 20{,}000$, and must stay Euler's. Why? And what about the last?) On the toy, by how much does the error
# fall when the steps double, and when does it pay, given that each step now costs two evaluations?


# %%
# NBVAL_CHECK_OUTPUT
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
# The first step is 20,000 long. On the straight part of the path Euler's slope serves for all of it, and a slope
# from its other end, a little off, is multiplied by 10,000. With that step left alone the errors at 10, 20, 40 and
# 80 steps are 0.038, 0.019, 0.0073 and 0.0026. They fall ever faster, towards a factor of four at each doubling.
# Euler's are 0.045, 0.026, 0.013 and 0.0074. At equal evaluations the two meet at about 80: for short walks a better
# solver has to be built with more care.
#
# </details>
#
# **3. The dial, and beyond it.** Write the step (4) with the $\sigma_\eta$ of (5). Equation (3) allows $\sigma_\eta$ up
# to $\sigma_s$, which is beyond $\eta = 1$. What does a walk with $\sigma_\eta = \sigma_s$ do? Try it on the toy with
# 10, 100 and 1,000 steps.


# %%
# NBVAL_CHECK_OUTPUT
def dial_step(x_t, x0, z, t, s, eta):
    """State, guess of the picture and fresh noise (N, D), the times single tensors, eta a number -> x_s."""
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
# With $\sigma_\eta = \sigma_s$ all noise is replaced: $x_s = \alpha_s \hat x_0 + \sigma_s z$. The state keeps nothing
# of $x_t$ but the guess $\hat x_0$. The marginals of (3) would be right if $\hat x_0$ were the true $x_0$; but it is an
# average, so every step loses some of the variance. With 10, 100 and 1,000 steps the heaps have a spread near 0.07
# instead of 0.1, and the upper one gets 76, 77 and 78 points in 100 instead of 70. More steps do not mend it. With
# $\eta \le 1$ the share of fresh noise goes to zero with the length of the step, and the error goes with it.
#
# </details>
#
# **4. Which times?** Write the grid of section 5: for $S$ steps the times from 1 down to 0, on the thousandths that
# were trained, as even as those allow. Then build a grid of 10 steps whose times lie closer together where the paths of
# section 6 bend, and compare the error of the end points with the even grid's.


# %%
# NBVAL_CHECK_OUTPUT
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
# Measure as in section 6: `(walk(toy, even_noise(500), times, 0.0)[-1] - finest).abs().mean()`. Even steps in the
# angle of exercise 1 change next to nothing, since on the cosine schedule the angle is almost proportional to $t$.
# Nine times evenly spaced in $\log \lambda$ from 5 down to 0.1, with $t = 1$ before and $t = 0$ after them, give
# 0.040 instead of the even grid's 0.044. From 20 down to 0.05 they give 0.053. There is something to be had here,
# but not much, and it is easily lost.
#
# </details>
#
# ## Summary
#
# - The loss fixes $q(x_t \mid x_0)$ at each time, and not how two times hang together. A whole family of walks
#   shares one network.
# - A DDIM step splits $x_t$ into picture and noise, and mixes them anew for the next time. $\eta$ says how much of
#   the noise is replaced.
# - $\eta = 1$ is DDPM. $\eta = 0$ is Euler's method for an ordinary differential equation, whose paths are nearly
#   straight in $(\sigma / \alpha,\, x / \alpha)$. Straight paths need few steps.
# - Without fresh noise a noise is a code: the same digit at any number of steps, a way back from picture to noise,
#   and meaningful paths between pictures.
# - Count evaluations, start at $t = 1$, and keep the pair $(\hat x_0, \hat\epsilon)$ consistent.
#
# ## References
#
# - J. Song, C. Meng, S. Ermon (2020). *Denoising Diffusion Implicit Models.* ICLR 2021. arXiv:2010.02502.
# - J. Ho, A. Jain, P. Abbeel (2020). *Denoising Diffusion Probabilistic Models.* NeurIPS 2020. arXiv:2006.11239.
# - A. Nichol, P. Dhariwal (2021). *Improved Denoising Diffusion Probabilistic Models.* ICML 2021. arXiv:2102.09672.
# - T. Salimans, J. Ho (2022). *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022.
#   arXiv:2202.00512.
# - K. Shoemake (1985). *Animating Rotation with Quaternion Curves.* SIGGRAPH 1985.
