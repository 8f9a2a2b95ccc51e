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
# # Clinic: my samples are noise
#
# *Runs in about a minute on two CPU cores, without a network connection. Needs
# chapters 1, 2, 4 and 5; case 7 also needs the idea of chapter 7.*
#
# You have written your own diffusion model. It runs, the loss falls, and the samples are noise. Or scribbles, or digits
# that are somehow too fat. What is wrong? Nothing raised an error, and nothing will: a sampler that tells its network
# the wrong time is as good a program as one that tells it the right time.
#
# This chapter breaks eight set-ups on purpose, all of them easy to break. Each case shows the sick samples, a test of a
# few lines that finds the fault in *your* code, and the samples after the cure. You will
#
# - see why the training loss cannot tell a healthy model from a sick one, and why the loss *by time* can;
# - find half of all faults before any training, by calling your code with a network that knows the answer;
# - find the others in a trained network, by asking it as if something were wrong and seeing whether it answers better;
# - end with `oracles.examine_sampler` for the first kind and `clinic.examine` for the second, and with a table from
#   symptoms to suspects.
#
# *Note.* The pictures are MNIST's. If MNIST is not on your machine and cannot be downloaded, the chapter takes the
# small digits that come with scikit-learn. All cells run, but the shipped weights have never seen such digits, and the
# measurements on pictures then differ from the text.

# %% [markdown]
# ## Set-up, and what we are after
#
# The sampler below is chapter 2's, with two places for faults: `tell` changes the time that the denoiser is told,
# `after` changes the state after each step.

# %%
import copy
import dataclasses
from itertools import pairwise

import torch
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation import clinic, oracles, patients
from diffusion_book.evaluation.features import logits
from diffusion_book.guidance import guided
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNet
from diffusion_book.schedules import add_noise, cosine, expand, rectified
from diffusion_book.targets import TARGETS, Prediction, target_value
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.viz import clinic as charts
from diffusion_book.viz import grids, plots, style
from diffusion_book.viz.figures import show

style.use_style()
pixels, classes, ldm, flow = (diffusion_book.load(name) for name in ("ddpm", "ldm-concat", "ldm", "latent-rf"))
vae = ldm.autoencoder


@torch.no_grad()
def walk(denoiser, x, tell=lambda t, s: t, after=lambda x: x, steps=20, schedule=cosine, **condition):
    """DDIM, with two holes: the time that the denoiser is told, and what is done to the state after a step."""
    for t, s in pairwise(samplers.time_grid(steps)):
        x0, eps = denoiser(x, tell(t, s), **condition)
        alpha, sigma = schedule(s)
        x = after(alpha * x0 + sigma * eps)
    return x


def told_next(t, s):
    """The time at which the step ends, instead of that at which it begins."""
    return s.clamp(min=0.001)


def clamp(x):
    return x.clamp(-1, 1)


# %%
start = pixels.noise(10, seed=3).to(pixels.device)
rows = {"healthy": walk(pixels.denoiser, start)}
rows["told the next time"] = walk(pixels.denoiser, start, tell=told_next)
rows["told its step's number"] = walk(pixels.denoiser, start, tell=lambda t, s: t / 50)
rows["clamped state"] = walk(pixels.denoiser, start, after=clamp)
lost = {name: f"{(~x.isfinite()).float().mean():.0%}" for name, x in rows.items()}
print("not a number any more:", lost)
rows = {name: pixels.to_images(x.nan_to_num(nan=-1.0)) for name, x in rows.items()}  # black
show(
    grids.show_rows(rows),
    "9.1",
    "One trained network, sampled in four ways from the same noise. The last three rows differ from the first by a few "
    "characters of code.",
)

# %% [markdown]
# Noise, blackness, and a row that looks nearly healthy (figure 9.1). Where it is black, the state has grown beyond all
# numbers; the library's own samplers stop there with an error, so nobody can overlook it. The last row is the most
# dangerous. Who would look for a fault there? By the end of the chapter, each of these is found by a test that prints
# one number.
#
# ## 1. Why the loss does not tell
#
# Does a good loss mean a good model? The network sees one mixture of picture and noise, and the loss compares its
# output with another:
#
# $$x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad L = \mathbb E\,\| f(x_t, t) - (a_t x_0 + b_t \epsilon) \|^2. \tag{1}$$
#
# The factors $a_t$ and $b_t$ belong to the target (chapter 1, section 7); for $v$ they are $-\sigma_t$ and $\alpha_t$.
# The best $f$ is a posterior mean, $\mathbb E[a_t x_0 + b_t \epsilon \mid x_t]$, and what remains of the loss is a
# variance. Nobody knows how large it is. So a loss of 0.8 may be excellent or hopeless. And a second point: no sampler
# occurs in (1). No fault in a sampler has ever changed a loss.
#
# So we need patients whose fault is in their training. To make them as good as a sick model can be, the shipped `ldm`
# was trained further for several hundred steps, each time with one fault, until it had adapted to it. Two faults are in
# the data: latents that were never divided by their standard deviation, and latents of pictures in $[0, 1]$ instead of
# $[-1, 1]$. One is in the loss, and here it is. (The weights come with the book; `benchmarks/patients.py` makes them.)


# %%
def noise_twice(network, moments, labels, generator):
    """A fault that is easily made. Do you see it?"""
    z = DiagonalGaussian.from_moments(moments).mean
    t = torch.rand(len(z), generator=generator, device=generator.device)
    x_t = add_noise(cosine, z, torch.randn(z.shape, generator=generator, device=generator.device), t)
    eps = torch.randn(z.shape, generator=generator, device=generator.device)
    wanted = target_value(TARGETS["v"], z, eps, *cosine(t))
    return (network(x_t, t) - wanted).square().flatten(1).mean(1)


train = data.load("auto")
few = train.first(500)
latents, usual = encode_dataset(vae, few), loss_of_latent_diffusion(ldm.recipe.diffusion)
models, trainings = {"healthy": ldm}, {"healthy": (usual, latents)}
for name, fault in patients.FAULTS.items():
    models[name] = patients.load_patient(name, ldm)
    trainings[name] = (fault.loss_of(ldm), fault.data(vae, few))
    card = models[name].card
    print(f"{name}: {card['steps']:,} steps with the fault, loss {card['loss'][0]:.2f} to {card['loss'][1]:.2f}")

# %% tags=["remove-cell"]
mine, library = (
    loss(ldm.network, latents.moments[:50], None, torch.Generator().manual_seed(0))
    for loss in (noise_twice, trainings["noise twice"][0])
)
assert torch.equal(mine, library)

# %% [markdown]
# Losses of different data and targets cannot be compared as they are. Let us divide each by the loss of the best
# *constant*, an answer that depends on $t$ but does not look at $x_t$: it is $a_t \mathbb E[x_0]$, the mean of the
# target. Then 1 means that nothing was learned. Here are the shipped model and its three patients, in some order. Which
# one is healthy?


# %%
class Constant(torch.nn.Module):
    """The best answer for the target v that does not look at x_t."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def forward(self, x_t, t):
        return -expand(cosine(t)[1], x_t) * self.mean


@torch.no_grad()
def relative_loss(name):
    """The loss of a model on what it was trained on, over that of the best constant."""
    loss, dataset = trainings[name]
    moments, labels = (part.to(ldm.device) for part in dataset.batch(torch.arange(400)))
    constant = Constant(DiagonalGaussian.from_moments(moments).mean.mean(0)).eval()
    found = [
        loss(network, moments, labels, torch.Generator(ldm.device).manual_seed(0)).mean().item()
        for network in (models[name].network, constant)
    ]
    return found[0] / found[1]


relative = {name: relative_loss(name) for name in ("no scale", "healthy", "noise twice", "in [0, 1]")}
for letter, value in zip("ABCD", relative.values(), strict=True):
    print(f"model {letter}: {value:.2f} of the loss of the best constant")

# %% tags=["remove-cell"]
# Cells like this one hold the text to what was measured, with MNIST.
if train.name == "mnist":
    assert abs(relative["no scale"] - relative["healthy"]) < 0.05
    assert all(relative["healthy"] + 0.05 < relative[name] < 0.97 for name in ("noise twice", "in [0, 1]"))

# %% [markdown]
# The healthy model is B. But A, whose latents have no scale, has the same loss, so the number does not tell the two
# apart. (Nor are they equally good: the same noise hides less of larger latents, and the relative loss falls by
# itself.) C is `noise twice`, and D was trained on pictures in $[0, 1]$; their losses could as well be those of healthy
# models of harder data. Keep that in mind whenever somebody shows you a loss.
#
# ## 2. The loss by time
#
# One number hides where a network errs. So take the loss apart by time. With $y_t = a_t x_0 + b_t \epsilon$ for the
# target, ask for the loss at $t$ as a fraction of that of the best constant at $t$:
#
# $$\ell(t) = \frac{\mathbb E\,\| f(x_t, t) - y_t \|^2}{\mathbb E\,\| y_t - \mathbb E[y_t] \|^2}. \tag{2}$$
#
# What is healthy still depends on the data. But now a healthy model of the *same* data is the yardstick: figure 9.2
# shows the band in which $\ell(t)$ of the shipped `ldm` lies on ten sets of pictures (`clinic.admit` brings pictures
# into the form in which a model takes them), and the three patients, all *tested* on the right data with the right
# target. A fourth patient is `stale`: half of each weight is still that of the random start (case 6 explains how this
# happens).


# %%
class FixedAverage:
    """An average of weights with one decay from the start."""

    def __init__(self, network, decay=0.9999):
        self.network, self.decay = copy.deepcopy(network), decay

    @torch.no_grad()
    def update(self, network, times=1):
        """As if called so many times with the same network."""
        for mine, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            mine.lerp_(theirs.to(mine), 1 - self.decay**times)


torch.manual_seed(0)
average = FixedAverage(UNet(ldm.recipe.network).eval().requires_grad_(False))
average.update(ldm.network.float(), times=7_000)
models["stale"] = dataclasses.replace(ldm, network=average.network)

test = data.load("auto", "test")
times = torch.linspace(0.1, 1, 10)
sets = [test.batch(torch.arange(20 * number, 20 * number + 20))[0] for number in range(10)]
band = torch.stack(
    [clinic.loss_by_time(clinic.admit(ldm, pictures), times, seed) for seed, pictures in enumerate(sets)]
)
curves = {
    name: clinic.loss_by_time(clinic.admit(model, torch.cat(sets)), times)
    for name, model in models.items()
    if name != "healthy"
}
show(
    charts.plot_loss_by_time(times, band, curves, "loss / loss of the best constant"),
    "9.2",
    "The loss by time, equation (2): the band of a healthy model on ten sets of pictures, and four patients.",
)

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert curves["noise twice"][0] > 1.2 * band[:, 0].max()
    assert curves["stale"][0] > band[:, 0].max()
    assert min(curves[name][-1] for name in ("no scale", "in [0, 1]")) > 1.3
    assert max(curves[name][-1] for name in ("noise twice", "stale")) < 1.2

# %% [markdown]
# Each patient leaves the band of figure 9.2 in its own way. `noise twice` stays near 1: the noise in its targets was
# never in the state. What it lacks shows most below $t = 0.5$, where most of the target is noise. `no scale` and `in
# [0, 1]` are *worse* than a constant, most of all near $t = 1$. There a network can only rely on what it remembers of
# its data, and these two remember other data. The curve of `stale` has the healthy shape, but lies higher at small $t$,
# like that of any network that was trained too little. (At $t = 1$ nothing is left to see in the state, so the healthy
# model is at 1 as well.)
#
# ## 3. A network that knows the answer
#
# Half of all faults can be found before anything is trained. If the data were one single picture $x_0$, the noise
# could be read off the state:
#
# $$\epsilon = \frac{x_t - \alpha_t x_0}{\sigma_t}. \tag{3}$$
#
# For such data we can write down a network, and a denoiser, that make no errors at all. Hand the network to your loss
# and the denoiser to your sampler. Whatever is wrong then is wrong in *your* code: the loss must be exactly 0, and
# sampling must end exactly in the picture.


# %% tags=["nbval-check-output"]
def knowing_network(picture):
    """Predicts v for data that are all this picture, (C, H, W)."""

    def network(x_t, t):
        alpha, sigma = (expand(value, x_t) for value in cosine(t))
        eps = (x_t - alpha * picture) / sigma
        return alpha * eps - sigma * picture

    return network


generator = torch.Generator().manual_seed(0)
picture = torch.randn(2, 4, 4, generator=generator)
sure = torch.cat([picture, torch.full_like(picture, -30.0)]).expand(64, 4, 4, 4)  # its moments: no variance
for name, loss in {"usual": usual, "noise_twice": noise_twice}.items():
    value = loss(knowing_network(picture), sure, None, torch.Generator().manual_seed(0)).mean()
    print(f"{name:>11}: a network that knows the answer has a loss of {value:.2f}")

x_t, t = torch.randn(64, 2, 4, 4, generator=generator), torch.linspace(0.1, 1, 64)
library = oracles.knowing_network(picture, cosine, TARGETS["v"])(x_t, t)
assert_close(knowing_network(picture)(x_t, t), library, rtol=1e-3, atol=1e-3)
print("and it is the library's:", tuple(library.shape))

# %% [markdown]
# `oracles.examine_loss` and `oracles.examine_sampler` are this test for any loss and any sampler. Put them among the
# tests of your own project: they take milliseconds, and need neither data nor weights.
#
# Now the cases. Each figure has three parts: samples of the sick set-up, the measurement that finds the fault, and samples
# after the cure, from the same noise.
#
# ## Case 1: the wrong index
#
# In the second row of figure 9.1 the network was told the time at which the step *ends*: an index too far by one. In
# the third row the loop counted its own 20 steps, and handed that count to a network which knows 1,000 of them (step
# $20\,t$ of 1,000 is the time $20\,t / 1000 = t / 50$).
#
# **The test.** Let a denoiser that knows the picture measure how much noise it is shown, by (3), and compare it with
# the $\sigma_t$ of the time that it is told. The ratio must be 1, up to chance.


# %% tags=["nbval-check-output"]
def noise_shown(tell, seed=0):
    """The noise in the state over the noise that belongs to the time told, for each step."""
    picture, ratios = torch.ones(1, 32, 32), []

    def knows(x_t, t):
        alpha, sigma = cosine(t)
        ratios.append(float((x_t - alpha * picture).square().mean().sqrt() / sigma))
        return Prediction(picture.expand_as(x_t), (x_t - alpha * picture) / sigma)

    walk(knows, torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(seed)), tell=tell)
    return ratios


ratios = {name: noise_shown(tell) for name, tell in {
    "healthy": lambda t, s: t,
    "next time": told_next,
    "one step back": lambda t, s: (2 * t - s).clamp(max=1),
    "0.001 less": lambda t, s: t - 0.001,
}.items()}  # fmt: skip
for name, found in ratios.items():
    far = max(found, key=lambda ratio: abs(ratio - 1))
    print(f"{name:>13}: noise shown over noise told, farthest from 1: {far:.3f}")

# %%
told = samplers.time_grid(20)[:-1]
show(
    charts.show_case(
        rows["told the next time"][:8],
        rows["healthy"][:8],
        {name: (told, ratios[name]) for name in ("healthy", "next time", "one step back")},
        "time t",
        "noise shown / told",
        yscale="log",
        xlim=(1, 0),
    ),
    "9.3",
    "Case 1, a wrong time. Early in sampling nothing shows, because near $t = 1$ all is noise anyway. Later, the noise "
    "in the state and the noise told differ more and more.",
)

# %% tags=["remove-cell"]
passed = []
walk(pixels.denoiser, start[:2], tell=told_next, after=lambda x: passed.append(x) or x)
assert_close(passed[-2], start[:2], rtol=1e-3, atol=1e-3)

# %% [markdown]
# Told the time $s$ at which the step ends, the sampler stands still, whatever the network says. The denoiser splits the
# state with the factors of $s$, so that $\alpha_s \hat x_0 + \sigma_s \hat\epsilon = x_t$, and the step puts the two
# together again with the same factors. The noise of the start is still there at the end (figure 9.3, left). Told a time
# that is too large, the denoiser takes detail for noise and smooths. An error of one thousandth is too small for the
# eye, but the test shows it.
#
# **The cure:** keep the state's time in one variable. Hand it to the network *and* to the code that computes $\hat x_0$
# and $\hat\epsilon$. Never use two different indices.
#
# ## Case 2: noise drawn twice
#
# `noise_twice` calls `randn` twice: once for the state, once for the target. It happens when a function `add_noise`
# draws its own noise and does not return it. The noise in the target is then nowhere in $x_t$. Its posterior mean is 0,
# so the network learns $v = -\sigma_t\, \mathbb E[x_0 \mid x_t]$. From this the sampler computes $\hat\epsilon =
# \sigma_t x_t + \alpha_t v$. If the picture was predicted well, that is $\sigma_t^2\, \epsilon$: too little noise is
# removed.
#
# **The test** was in section 3: a loss that does not vanish for a network that knows the answer. If you have only the
# weights, look at the loss by time (figure 9.4).


# %%
@torch.no_grad()
def draw(name, sign=1.0, number=8, seed=2):
    """Samples of a patient."""
    pipe = models[name]
    is_flow = pipe.recipe.diffusion.target == "velocity"
    schedule, target = (rectified, TARGETS["velocity"]) if is_flow else (cosine, TARGETS["v"])
    network = lambda x, t: sign * pipe.network(x, t).float()  # noqa: E731
    x = ldm.noise(number, seed).to(ldm.device)
    return pipe.to_images(walk(Denoiser(network, schedule, target), x, schedule=schedule))


models["healthy"], healthy = ldm, draw("healthy")
show(
    charts.show_case(
        draw("noise twice"),
        healthy,
        {"healthy": (times, band.mean(0)), "noise twice": (times, curves["noise twice"])},
        "time t",
        "loss / best constant",
        ylim=(0, None),
    ),
    "9.4",
    "Case 2, noise drawn twice. At small $t$ the target is nearly all noise, and the patient knows nothing of it.",
)

# %% [markdown]
# **The cure:** draw `eps` once, in the loss, where one can see that both lines use it (`objective.diffusion_loss`).
#
# With the target $\epsilon$ this fault is easier to find: the best prediction of a noise that is nowhere in the state is 0,
# and the loss stays at exactly 1.
#
# ## Case 3: the missing latent scale
#
# The diffusion model was trained on raw latents, without the scale of chapter 4, section 6. But `decode` undoes that
# scale, which was never applied.
#
# **The test** is one line of code. The schedule was made for data of mean 0 and standard deviation 1, so print both
# where the loss takes its data (figure 9.5).

# %%
measured = {}
for name in ("healthy", "no scale"):
    z = trainings[name][1].moments[:, :2]
    print(f"{name:>9}: mean", *(f"{value:5.2f}" for value in z.mean((0, 2, 3))), end=", standard deviation ")
    print(*(f"{value:.2f}" for value in z.std((0, 2, 3))))
    measured[name] = z.std((0, 2, 3)).mean().item()
show(
    charts.show_case(draw("no scale"), healthy, measured, "standard deviation of the latents"),
    "9.5",
    "Case 3, no scale. A latent that is too large is a digit with too much ink.",
)

# %% [markdown]
# In the opposite case, trained with the scale and decoded without it, strokes are faint. The standard deviations of
# this encoder are below 2. With one whose standard deviation is 10, nothing could be read.
#
# **The cure:** let the autoencoder own its scale. Measure it once, store it with the weights, apply it in `encode` and
# undo it in `decode`, so that no training and no sampler can forget it.
#
# ## Case 4: the sign of guidance
#
# `u - w * (c - u)`, or `c + w * (u - c)`: guidance pushes away from the class. (`u` is the prediction without the
# label, `c` that with it, `w` the guidance scale.)
#
# **The test:** do samples show the digit that was asked for? Look not for a *low* accuracy, as of a poor model, but for
# one *below chance*.


# %%
def flipped(denoiser, w):
    def guide(x_t, t, labels):
        u, c = (denoiser(x_t, t, labels=each) for each in (torch.full_like(labels, NO_CLASS), labels))
        return Prediction(*(a - w * (b - a) for a, b in zip(u, c, strict=True)))

    return guide


wanted = torch.arange(20) % 10
begin, labels = classes.noise(20, seed=3).to(classes.device), wanted.to(classes.device)
asked = {}
for name, guide in (("healthy", guided), ("flipped", flipped)):
    asked[name] = classes.to_images(walk(guide(classes.denoiser, 3.0), begin, labels=labels))
accuracy = {name: (logits(each).argmax(1) == wanted).double().mean().item() for name, each in asked.items()}
show(
    charts.show_case(asked["flipped"][:8], asked["healthy"][:8], accuracy | {"chance": 0.1}, "accuracy of 20 samples"),
    "9.6",
    "Case 4, the sign of guidance. Asked for 0 to 7, in rows.",
)

# %% tags=["remove-cell"]
assert accuracy["flipped"] < 0.05 < 0.9 < accuracy["healthy"]

# %% [markdown]
# Mostly well-formed digits, and never the right one (figure 9.6). The loss is that of a healthy conditional model. A
# test without samples: give your guidance function a denoiser that returns 0 without a label and 1 with one. With the
# scale $w$ it must return $w$.

# %% tags=["nbval-check-output"]
for name, guide in (("guided", guided), ("flipped", flipped)):
    (found,) = oracles.examine_guidance(guide)
    print(f"{name:>7}: {found.text}\n         {found.advice or 'Nothing to do.'}")

# %% [markdown]
# **The cure:** `u + w * (c - u)`, and a test that $w = 1$ is the plain conditional model.
#
# ## Case 5: a clamped state
#
# "Pixels lie in $[-1, 1]$, so let us keep the state there." But $x_t$ contains noise, and a third of its entries lie
# outside. In pixels, with 20 steps of DDIM, it does little harm (figure 9.1). With fresh noise in each step it does
# more.
#
# **The test:** what fraction of the state has exactly its largest value? In a healthy state, only one entry has it.


# %% tags=["nbval-check-output"]
def at_the_largest(after):
    """The fraction of the state, after one step, that has its largest value."""
    seen = []

    def knows(x_t, t):
        seen.append(x_t)
        return Prediction(torch.zeros_like(x_t), x_t / cosine(t)[1])

    walk(knows, torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), after=after)
    return (seen[1] == seen[1].max()).double().mean().item()


largest = {"healthy": at_the_largest(lambda x: x), "clamped": at_the_largest(clamp)}
for name, fraction in largest.items():
    print(f"{name}: {fraction:6.2%}")


# %%
@torch.no_grad()
def walk_with_noise(model, after, eta, steps):
    """DDIM with a fraction eta of fresh noise."""
    x, fresh = model.noise(8, seed=3).to(model.device), torch.Generator().manual_seed(1)
    for t, s in pairwise(samplers.time_grid(steps)):
        noise = torch.randn(x.shape, generator=fresh).to(x)
        x = after(samplers.ddim(model.denoiser(x, t), x, t, s, schedule=cosine, noise=noise, eta=eta))
    return model.to_images(x)


ink, shown = {}, {}
for kind, model, eta, steps in (("pixels", pixels, 1.0, 40), ("latents", ldm, 0.0, 20)):
    for what, after in (("healthy", lambda x: x), ("clamped", clamp)):
        shown[kind, what] = walk_with_noise(model, after, eta, steps)
        ink[kind, what] = (shown[kind, what].mean().item() + 1) / 2
        print(f"{kind}, {what}: {ink[kind, what]:.1%} ink")
show(
    charts.show_case(shown["pixels", "clamped"], shown["pixels", "healthy"], largest, "fraction at the largest value"),
    "9.7",
    "Case 5, a clamped state. The strokes of pixels become bold.",
)

# %% tags=["remove-cell"]
assert ink["pixels", "clamped"] > 1.15 * ink["pixels", "healthy"]
assert ink["latents", "clamped"] < 0.85 * ink["latents", "healthy"]

# %% [markdown]
# Bold in pixels (figure 9.7), but faint in latents. Why? In pixels the background is at $-1$, the lower limit. Clamping
# there is one-sided, as chapter 1 found: noise below $-1$ is cut off, noise above stays. The mean of the state rises,
# and the network sees ink where there is none. Latents are symmetric about 0 and reach to 3 on both sides. Clamping
# makes them smaller, and by case 3 a latent that is too small is a digit with too little ink.
#
# **The cure:** clip $\hat x_0$, compute $\hat\epsilon$ again, leave $x_t$ alone (`denoiser.clipped`). In latents clip
# nothing.
#
# ## Case 6: a stale average
#
# We sample from an average of the weights. With a fixed decay $d$, the fraction of the first, random weights that is left
# after $n$ updates is
#
# $$d^{\,n}. \tag{4}$$
#
# With $d = 0.9999$ half of them is left after 7,000 updates. After a short training the average still contains its
# start. The same happens if `update` is never called, or if a training is resumed with the weights but without their
# average. Our patient is of the last kind: 7,000 updates with the finished weights of `ldm`.
#
# **The test:** compare the loss of the average with that of the last weights, on the same pictures, times and noise
# (figure 9.8).

# %%
measured = {}
for name, label in (("healthy", "last weights"), ("stale", "their average")):
    patient = clinic.admit(models[name], torch.cat(sets))
    measured[label] = clinic.loss_by_time(patient, times).mean().item()
    print(f"{label:>13}: {measured[label]:.2f} of the loss of the best constant")
show(
    charts.show_case(draw("stale"), healthy, measured, "loss / loss of the best constant"),
    "9.8",
    "Case 6, a stale average: half of each weight is still that of the random start. It is easily overlooked.",
)

# %%
n = torch.logspace(0, 4.3, 200).long().unique()
warm = torch.minimum(torch.tensor(0.999), (1.0 + torch.arange(20_001)) / (10 + torch.arange(20_001)))
left = {f"{d} from the start": d**n for d in (0.999, 0.9999)} | {
    "0.999 with warm-up": warm.log().cumsum(0).exp()[n - 1]
}
show(
    plots.plot_curves(n, left, "updates", "fraction of the first weights", xscale="log", ylim=(-0.02, 1.02)),
    "9.9",
    "How long an average remembers the weights it began with.",
)

# %% [markdown]
# **The cure:** let the decay warm up, $\min(d, (1 + n)/(10 + n))$. After ten updates nothing of the start is left (figure
# 9.9).
#
# ## Case 7: the sign of the velocity
#
# Some texts let time run from data to noise, others from noise to data. The velocity is $\epsilon - x_0$ in the first
# case and $x_0 - \epsilon$ in the second. Take the loss from one and the sampler from the other, and each step goes the
# wrong way. The loss is that of a healthy model: network and target have the same sign, so their squared difference is
# the same.
#
# **The test:** take a real latent half way to noise, make one Euler step towards the data, and see whether it got
# nearer to where it should be (figure 9.10).

# %%
models["flow"] = flow
z0 = latents.moments[:, :2].to(flow.device)
eps = torch.randn(z0.shape, generator=generator).to(z0)
t, s = torch.tensor(0.5), torch.tensor(0.3)
here, there = (add_noise(rectified, z0, eps, time) for time in (t, s))
with torch.no_grad():
    velocity = flow.network(here, t.expand(len(here)).to(here)).float()
measured = {
    name: (here + (s - t) * sign * velocity - there).square().mean().item()
    for name, sign in (("right sign", 1.0), ("no step", 0.0), ("other sign", -1.0))
}
print("squared distance from where it should be:", ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
show(
    charts.show_case(draw("flow", sign=-1.0), draw("flow"), measured, "squared distance after a step"),
    "9.10",
    "Case 7, the sign of the velocity, in the flow of chapter 7. The decoder makes strokes of anything, so even a walk in "
    "the wrong direction ends in strokes. In pixels one would see noise.",
)

# %% tags=["remove-cell"]
assert measured["right sign"] < measured["no step"] < measured["other sign"]

# %% [markdown]
# **The cure:** one time axis in the whole project, written down once. Here 0 is data and 1 is noise, everywhere.
#
# ## Case 8: data in [0, 1]
#
# Many functions that load pictures return $[0, 1]$, for example torchvision's `ToTensor`. Nothing objects, since that
# lies within $[-1, 1]$. Black then has the value 0, which the encoder takes for grey. It was never trained on such
# pictures, and encodes them badly.
#
# **The test:** print the range of a batch at the very place where the loss takes it. If you have only the weights, ask
# for the prediction from pure noise. There, a network can do no better than the mean of the data that it was trained on,
#
# $$\hat x_0(x_1, 1) = \mathbb E[x_0], \tag{5}$$
#
# so this prediction tells you which data they were (figure 9.11).

# %%
print(f"a healthy batch: {data.normalise(few.images).min():.0f} to {data.normalise(few.images).max():.0f}")
one, measured = torch.ones(200, device=ldm.device), {}
for name in ("healthy", "in [0, 1]"):
    with torch.no_grad():
        first = -models[name].network(ldm.noise(200, seed=5).to(ldm.device), one).float().mean(0)  # at t = 1, v is -x0
    measured[name] = (first.cpu() - latents.moments[:, :2].mean(0)).square().mean().sqrt().item()
show(
    charts.show_case(draw("in [0, 1]"), healthy, measured, "distance of (5) from the data's mean"),
    "9.11",
    "Case 8, data in [0, 1]. The patient has learned latents of grey pictures: its digits are swollen and smeared.",
)

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert measured["in [0, 1]"] > 5 * measured["healthy"]

# %% [markdown]
# **The cure:** `2 * x - 1`, once, where the data enter; and an assertion on the range in the encoder.
#
# ## 4. The differential diagnosis
#
# Those were tests for somebody who already has a suspicion. What if all you have is a trained pipeline and some
# pictures? Then let the network speak. Was it told the wrong time? Call it with another time. Is its sign flipped? Read
# its output with the opposite sign. If such a supposition is right, the network will find the picture *better* than
# before.
#
# Formally, a supposition $h$ is a clock $\tau_h$, the time that the network is told, and a way to read $\hat x_0^h$
# from its output. Take clean pictures $x_0$, add noise, and compare errors, as a geometric mean over four values of
# $t$:
#
# $$\rho_h = \exp\, \underset{t}{\operatorname{mean}}\; \log
# \frac{\mathbb E\,\| \hat x_0^h(x_t, \tau_h(t)) - x_0 \|^2}{\mathbb E\,\| \hat x_0(x_t, t) - x_0 \|^2}. \tag{6}$$
#
# $\rho_h < 1$ means that the network knows more under $h$ than as it is. In the library, `patient.answer` adds noise
# for time $t$ and asks with $\tau(t)$, and `clinic.differential` computes $\rho_h$ for all suppositions.


# %% tags=["nbval-check-output"]
def my_ratio(patient, sign, clock):
    """Equation (6) for a network that predicts v."""
    logs = []
    for t in clinic.TIMES:
        for s, told in ((sign, clock), (1.0, lambda t: t)):
            output, x_t, _, alpha, sigma = patient.answer(t, told, seed=0)
            x0 = expand(alpha, x_t) * x_t - expand(sigma, x_t) * s * output  # how v is read
            logs.append((x0 - patient.x0).double().square().mean().log())
    return torch.stack(logs[::2]).sub(torch.stack(logs[1::2])).mean().exp().item()


images, digits = test.batch(torch.arange(16))
patient = clinic.admit(ldm, images)
found = clinic.differential(patient)
assert abs(my_ratio(patient, -1.0, lambda t: t) / found["flipped sign"] - 1) < 1e-3
assert abs(my_ratio(patient, 1.0, lambda t: 1 - t) / found["wrong time, backwards, 1 - t"] - 1) < 1e-3
print("my_ratio is clinic.differential's, for", len(found), "suppositions")


# %%
class Changed(torch.nn.Module):
    """A network that is asked through a change."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x, t, **condition):
        return self.change(self.network, x, t, condition)


def sick(pipe, change):
    return dataclasses.replace(pipe, network=Changed(pipe.network, change))


late = sick(pixels, lambda net, x, t, c: net(x, (t + 0.05).clamp(max=1), **c))
counted = sick(classes, lambda net, x, t, c: net(x, t / 20, **c))
wrong_sign = sick(flow, lambda net, x, t, c: -net(x, t))
seen = {
    "ldm, healthy": patient,
    "ddpm, told t + 0.05": clinic.admit(late, images),
    "ldm-concat, told t / 20": clinic.admit(counted, images, digits),
    "noise twice": clinic.admit(models["noise twice"], images),
}
show(
    charts.plot_suppositions({name: clinic.differential(each) for name, each in seen.items()}, clinic.BETTER),
    "9.12",
    "Four patients under all suppositions, equation (6). To the right of the line, the network would do worse. A diamond "
    "marks the best supposition, where it improves the answer by more than chance. Values beyond the axis stand at its "
    "edge.",
)

# %% [markdown]
# In figure 9.12 the healthy model prefers no supposition, and each sick model prefers the one that fits its fault. (A
# wrong time is named by its correction: a network that was told $t + 0.05$ answers better if it is asked 0.05 earlier.
# *Unrelated noise* supposes that the noise in the target was not that of the state, as in case 2; then $v = -\sigma_t
# \hat x_0$, and $\hat x_0$ is read as $-v / \sigma_t$.) `clinic.examine` runs all tests in a fixed order, since each
# needs the tests before it to pass. Are the weights numbers? Are the pictures in range, do the latents have their
# scale, is the prediction from noise the mean of these data? Does a supposition explain the network better, has it
# learned anything, is its average stale? It stops at the first fault. Here are all models of the book, and then the
# sick ones:

# %%
for name in diffusion_book.list_models():
    if not name.startswith("vae"):
        pipe = diffusion_book.load(name)
        few_images, few_labels = images[:8], digits[:8]
        print(f"{name}: {clinic.verdict(clinic.examine(pipe, few_images, few_labels if pipe.num_classes else None))}")

# %%
network = copy.deepcopy(vae.network)
network.latent_mean.zero_()
network.latent_std.fill_(1)
ward = {
    "told t + 0.05": (late, {}),
    "told t / 20": (counted, {}),
    "noise twice": (models["noise twice"], {}),
    "no scale in the pipeline": (dataclasses.replace(ldm, autoencoder=dataclasses.replace(vae, network=network)), {}),
    "no scale in the training": (models["no scale"], {}),
    "stale average": (models["stale"], {}),
    "the same, with the last weights": (models["stale"], {"last": ldm.network}),
    "sign of the velocity": (wrong_sign, {}),
    "trained on [0, 1]": (models["in [0, 1]"], {}),
}
verdicts = {}
for name, (pipe, options) in ward.items():
    ill = clinic.faults(clinic.examine(pipe, images, **options))
    verdicts[name] = ill[0].subject if ill else "nothing found"
    print(f"{name:>31} -> {verdicts[name]}")
print("\nOne of them in full:\n" + clinic.verdict(clinic.examine(wrong_sign, images)))

# %% tags=["remove-cell"]
if test.name == "mnist":
    assert [name for name, said in verdicts.items() if said == "nothing found"] == ["stale average"]
    assert verdicts["the same, with the last weights"] == "stale average"
    assert verdicts["trained on [0, 1]"] == "data range"

# %% [markdown]
# All faults are named except one, which shows the limits. Without a healthy model of the same data, as in figure 9.2,
# `examine` finds a stale average only if it is also given the last weights.
#
# What a pipeline does not contain cannot be seen in it. Clamping and guidance live in the sampler, so it is the sampler
# that has to be examined. (*Start* in its verdict: the first time that the denoiser is told must be 1.)

# %% tags=["nbval-check-output"]
broken = {
    "walk": lambda denoiser, x: walk(denoiser, x),
    "told the next time": lambda denoiser, x: walk(denoiser, x, tell=told_next),
    "told its step's number": lambda denoiser, x: walk(denoiser, x, tell=lambda t, s: t / 50),
    "clamped state": lambda denoiser, x: walk(denoiser, x, after=clamp),
}
for name, sampler in broken.items():
    ill = clinic.faults(oracles.examine_sampler(sampler, cosine))
    print(f"{name:>22} -> {', '.join(each.subject for each in ill) or 'nothing found'}")
print("\nexamine cannot see:", *clinic.UNSEEN, sep="\n- ")

# %% [markdown]
# The last line is worth a thought. A latent model can be told a time that is wrong by 0.1, and its error hardly
# changes: the network sees from the state how noisy it is. What cannot be found in this way does little harm in the
# network. But the sampler's own arithmetic uses the time as well, and there a wrong time does harm: hence two
# examinations. And a test sees only what it asks for. A sampler that clips $\hat x_0$ and keeps the old $\hat\epsilon$
# passes all of them, since the denoiser that knows the picture never leaves $[-1, 1]$.
#
# ## From symptom to suspect
#
# | Symptom | Suspects | Test |
# |---|---|---|
# | noise, although the loss is good | told the time of the next state (1); velocity's sign (7) | `examine_sampler`; one Euler step |
# | black, or all the same | index of another grid (1); sampling does not start at $t = 1$ | `examine_sampler` |
# | smooth, without detail | told a time that is too large (1) | noise shown over noise told |
# | scribbles that never were digits | stale average (6); untrained; noise twice (2); sign (7) | loss by time; `examine_loss` |
# | bold or faint strokes | latent scale (3); clamped state (5) | print mean and std; fraction at the largest value |
# | grey ground, blotches | data in $[0, 1]$ (8) | print min and max; prediction from noise |
# | fine digits, the wrong ones | guidance's sign (4); labels shuffled | accuracy below chance; `examine_guidance` |
# | loss stays at 1 | noise twice, with the target noise (2) | `examine_loss` |
# | grain on good digits | noise in the last step; sampling stops before $t = 0$ | `examine_sampler`: end |
#
# And in general: examine loss and sampler with a network that knows the answer; then overfit a single batch; then train
# for a minute, draw the loss by time, and run `clinic.examine`; only then train for a night. For models that are
# already good, `diffusion-book diagnose` measures whether they could be better.
#
# ## Exercises
#
# `check` compares your function with the library, and recognises the usual mistakes.
#
# **1. How stale is an average?** Equation (4) is for a fixed decay. Let it warm up: update $k = 0, 1, \dots$ has the decay
# $\min(d, (1 + k) / (10 + k))$. What fraction of the first weights is left after $n$ updates? After how many is it less
# than a thousandth, for $d = 0.9999$?


# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def first_weights_left(d, n):
    """The decay d and the number n of updates -> the fraction of the first weights in the average, a number."""
    ...  # your code here


check(first_weights_left)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def first_weights_left(d, n):
#     k = torch.arange(n, dtype=torch.float64)
#     return ((1 + k) / (10 + k)).clamp(max=d).prod()
# ```
#
# Each update keeps its decay's fraction of what was there, so the fractions multiply:
#
# ```python
# print([n for n in range(20) if first_weights_left(0.9999, n) < 1e-3][0])
# ```
#
# Five updates are enough. Without warm-up it takes 69,000.
#
# </details>
#
# **2. The noise that a state shows.** Write the test of case 1 for a batch: the root mean square of the noise in each
# state, over the $\sigma$ that belongs to the time told. What does it give where the network is told twice the time?


# %% tags=["nbval-check-output"]
def noise_ratio(x_t, picture, alpha, sigma):
    """States (B, C, H, W), the picture (C, H, W) in them, alpha and sigma of the time told -> ratios, (B,)."""
    ...  # your code here


check(noise_ratio)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def noise_ratio(x_t, picture, alpha, sigma):
#     noise = x_t - alpha * picture
#     return noise.square().mean(dim=(1, 2, 3)).sqrt() / sigma
# ```
#
# Told twice the time:
#
# ```python
# picture = torch.ones(1, 32, 32)
# eps = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
# for t in torch.tensor([0.1, 0.2, 0.4]):
#     x_t = add_noise(cosine, picture[None], eps, t)
#     print(f"t = {t:.1f}: {noise_ratio(x_t, picture, *cosine(2 * t)).item():.2f}")
# ```
#
# Always too little, and yet more than $\sigma_t / \sigma_{2t}$: with the wrong $\alpha$ a part of the picture is left in
# the difference, and counts as noise.
#
# </details>
#
# **3. Pixels in [0, 1].** What would a model of $y = (x_0 + 1)/2$ draw? None needs to be trained. A noisy $y_t = \alpha y +
# \sigma \epsilon$ can be turned into a noisy $x_0$, with other factors: find the state $\alpha' x_0 + \sigma' \epsilon$
# with $\alpha'^2 + \sigma'^2 = 1$. With it, make a denoiser for $y$ from the shipped one, draw, and show $2y - 1$ and $y$.


# %% tags=["nbval-check-output"]
def in_full_range(y_t, alpha, sigma):
    """A noisy y (B, C, H, W) and its alpha and sigma, numbers -> the state of x_0, its alpha and its sigma."""
    ...  # your code here


check(in_full_range)

# %% [markdown]
# <details><summary>Solution</summary>
#
# From $y_t = \alpha (x_0 + 1) / 2 + \sigma\epsilon$ follows $2 y_t - \alpha = \alpha x_0 + 2\sigma\epsilon$: a state of
# $x_0$ with twice the noise. Divide by $\sqrt{\alpha^2 + 4 \sigma^2}$.
#
# ```python
# def in_full_range(y_t, alpha, sigma):
#     size = (alpha**2 + 4 * sigma**2) ** 0.5
#     return (2 * y_t - alpha) / size, alpha / size, 2 * sigma / size
# ```
#
# To draw with it, find the time at which the cosine has this ratio of noise to picture:
#
# ```python
# fine = torch.linspace(1e-4, 1, 10_001, dtype=torch.float64)
# noise_to_picture = cosine(fine)[1] / cosine(fine)[0]
#
# def of_half(y_t, t):
#     alpha, sigma = cosine(t)
#     x_t, a, b = in_full_range(y_t, alpha, sigma)
#     then = fine[torch.searchsorted(noise_to_picture, b / a).clamp(max=10_000)]
#     y = (pixels.denoiser(x_t, then).x0 + 1) / 2
#     return Prediction(y, (y_t - alpha * y) / sigma)
#
# y = walk(of_half, start)
# grids.show_rows({"shown as 2y - 1": pixels.to_images(2 * y - 1), "shown as y": pixels.to_images(y)})
# ```
#
# Shown as what they are, they are digits; a network can learn these data. Shown as if they were in $[-1, 1]$, the
# ground is grey.
#
# </details>
#
# **4. Wrong on both sides.** Train with $t - 0.05$ told to the network, and sample with the same. What do you see, and
# what does `clinic.examine` say of it if the pipeline tells $t - 0.05$ too?
#
# <details><summary>Solution</summary>
#
# The samples are healthy, and `examine` finds nothing. The network uses the time only as a label. It can learn any
# labels, as long as training and sampling use the same ones. A fault is always a disagreement. That is why a wrong time
# is so often found after a *sampler* was exchanged and not before.
#
# </details>
#
# ## Summary
#
# - A loss (1) says little: what is left of it at best is an unknown variance, and the sampler does not occur in it.
# - The loss by time (2), against a healthy band, shows where a network errs, and with it what is wrong.
# - A network that knows the answer (3) tests losses and samplers before any training.
# - Averages, scales and ranges each have a test of one line: (4), the standard deviation, (5).
# - A trained network tells its own fault: ask it under each supposition, and believe the one under which it errs less (6).
#
# ## References
#
# - Ho, Jain & Abbeel (2020), *Denoising Diffusion Probabilistic Models*. NeurIPS. arXiv:2006.11239. (The fixed decay of
#   0.9999, for 800,000 steps.)
# - Song & Ermon (2020), *Improved Techniques for Training Score-Based Generative Models*. NeurIPS. arXiv:2006.09011.
#   (Why weights are averaged.)
# - Rombach et al. (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*. CVPR. arXiv:2112.10752. (The
#   scale of latents: appendix G.)
# - Lin et al. (2024), *Common Diffusion Noise Schedules and Sample Steps are Flawed*. WACV. arXiv:2305.08891. (Faults of
#   published samplers: where they start.)
