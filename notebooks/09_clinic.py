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
# *Runs in about a minute on two CPU cores, without a network connection. Half of that is live training. Needs
# chapters 1, 2, 4 and 5; case 7 also needs the idea of chapter 7.*
#
# You have written your own diffusion model. It runs, the loss falls, and the samples are noise. Or scrawls, or digits
# that are somehow too fat. Nothing raised an error, and nothing will: a sampler that is told the wrong time is as
# good a program as one that is told the right time.
#
# This chapter breaks eight set-ups on purpose, all of them easy to break. Each has its picture, its loss,
# a test of two to ten lines that finds it in *your* code, and its cure. You will
#
# - see why a loss curve cannot tell a healthy training from a sick one;
# - learn one trick that finds half of all faults before any training: *ask code with a network that knows the answer*;
# - learn another for the rest: *ask the network as if something were wrong, and see whether it answers better*;
# - end with `clinic.examine`, which does both, and with a table from symptoms to suspects.

# %% [markdown]
# ## Set-up, and what we are after
#
# The sampler below is chapter 2's, with two holes in it for faults: one in what the network is told, one in what
# becomes of the state.

# %%
import copy
import dataclasses
from itertools import pairwise

import torch
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation import clinic, oracles
from diffusion_book.evaluation.diagnosis import Zero
from diffusion_book.evaluation.features import logits
from diffusion_book.guidance import guided
from diffusion_book.models import pipelines
from diffusion_book.models.recipes import DiffusionConfig, TrainingConfig
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNet
from diffusion_book.schedules import add_noise, cosine, expand, rectified
from diffusion_book.targets import TARGETS, Prediction, target_value
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import clinic as charts
from diffusion_book.viz import grids, plots, style

style.use_style()
pixels, classes, ldm = (diffusion_book.load(name) for name in ("ddpm", "ldm-concat", "ldm"))
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
    """The time at which the step ends, in place of that at which it begins."""
    return s.clamp(min=0.001)


def clamp(x):
    return x.clamp(-1, 1)


# %% [markdown]
# Here is one trained network, drawn from four times with the same noise. Each row differs from the first by a few
# characters of code.

# %%
start = pixels.noise(10, seed=3).to(pixels.device)
rows = {"healthy": walk(pixels.denoiser, start)}
rows["told the next time"] = walk(pixels.denoiser, start, tell=told_next)
rows["told its step's number"] = walk(pixels.denoiser, start, tell=lambda t, s: t / 50)
rows["clamped state"] = walk(pixels.denoiser, start, after=clamp)
lost = {name: f"{(~x.isfinite()).float().mean():.0%}" for name, x in rows.items()}
print("not a number any more:", lost)
rows = {name: pixels.to_images(x.nan_to_num(nan=-1.0)) for name, x in rows.items()}  # black
grids.show_rows(rows, "One network, one noise a column")

# %% [markdown]
# Snow, blackness, and a row that nearly passes. Where it is black, the state has grown beyond all numbers; the library's
# own samplers stop there with an error, which is the kindest of faults. The last row is the most dangerous: who would
# look for a fault there? By the end of the chapter each of these is found by a test that prints one number.

# %% [markdown]
# ## 1. Why the loss does not tell
#
# A diffusion loss compares the network's output with a mixture of picture and noise, of which it sees another
# mixture:
#
# $$x_t = \alpha_t x_0 + \sigma_t \epsilon, \qquad L = \mathbb E\,\| f(x_t, t) - (a_t x_0 + b_t \epsilon) \|^2. \tag{1}$$
#
# The best $f$ is a mean, $\mathbb E[a_t x_0 + b_t \epsilon \mid x_t]$, and what remains is a variance. Nobody knows
# how large it is. So a loss of 0.8 may be excellent or hopeless, and the *fall* of a loss says only that there was
# something to learn, not that it was the right thing. A second point: the sampler does not occur in (1). No fault in
# a sampler has ever changed a loss.
#
# We make five patients of the faults that sit in the training. All are the small latent model of chapter 4, and all
# see the same pictures of the same 3,200 digits, twice. Here are the data, as they should be and in two wrong forms:
# as latents whose scale was forgotten, and as latents of pictures in $[0, 1]$.

# %%
train = data.load("auto")
few = train.first(3200)
latents = encode_dataset(vae, few)
shift, scale = (value.cpu()[:, None, None] for value in (vae.network.latent_mean, vae.network.latent_std))


def as_data(posterior):
    return LatentDataset(few.name, posterior.moments.cpu(), few.labels)


posterior = DiagonalGaussian.from_moments(latents.moments)
unscaled = as_data(DiagonalGaussian(posterior.mean * scale + shift, posterior.log_variance + 2 * scale.log()))
zero_to_one = as_data(vae.posterior((data.normalise(few.images) + 1) / 2))
print(f"{len(few):,} pictures of {few.name}")

# %% [markdown]
# The losses: chapter 4's, the same with a noise too many, and that of a flow, $x_t = (1 - t)\,x_0 + t\,\epsilon$ with
# the target $\epsilon - x_0$.


# %%
def noise_twice(network, moments, labels, generator):
    """A fault that is easily made. Do you see it?"""
    z = DiagonalGaussian.from_moments(moments).mean
    t = torch.rand(len(z), generator=generator, device=generator.device)
    x_t = add_noise(cosine, z, torch.randn(z.shape, generator=generator, device=generator.device), t)
    eps = torch.randn(z.shape, generator=generator, device=generator.device)
    wanted = target_value(TARGETS["v"], z, eps, *cosine(t))
    return (network(x_t, t) - wanted).square().flatten(1).mean(1)


usual = loss_of_latent_diffusion(ldm.recipe.diffusion)
flow_config = DiffusionConfig("rectified", "velocity")
flow_loss = loss_of_latent_diffusion(flow_config)
trainings = {
    "healthy": (usual, latents),
    "noise twice": (noise_twice, latents),
    "no scale": (usual, unscaled),
    "in [0, 1]": (usual, zero_to_one),
    "flow": (flow_loss, latents),
}

# %% [markdown]
# While the first one trains, a second average of its weights runs along: with a decay of 0.9999, as papers have it,
# from the first step on. That is patient six.

# %%
small = dataclasses.replace(ldm.recipe.network, base_channels=32)
settings = TrainingConfig(
    epochs=max(1, round(6400 / len(few))), batch_size=32, lr=4e-3, warmup_steps=20, cooldown=0.5, ema_decay=0.97
)


class FixedAverage:
    """An average of weights with one decay from the start."""

    def __init__(self, network, decay=0.9999):
        self.network, self.decay = copy.deepcopy(network).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, network):
        for mine, theirs in zip(self.network.parameters(), network.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)


networks, losses, shares = {}, {}, {}
for name, (loss, dataset) in trainings.items():
    torch.manual_seed(0)
    trainer = Trainer(UNet(small), loss, dataset, settings)
    fixed = FixedAverage(trainer.network)
    reports = []
    for report in trainer.steps():
        reports.append(report)
        if name == "healthy":
            fixed.update(trainer.network)
    networks[name], losses[name] = trainer.ema.network, [report.loss for report in reports]
    if name == "healthy":
        last, networks["stale"] = trainer.network, fixed.network
    whole = dataset.batch(torch.arange(min(1000, len(few))))
    says_zero = loss(Zero().eval(), *(part.to(trainer.device) for part in whole), torch.Generator(trainer.device))
    shares[name] = [value / says_zero.mean().item() for value in losses[name]]
print(f"{len(shares)} trainings of {len(reports)} steps each")

# %% [markdown]
# Losses of different targets cannot be compared as they are. Divided by what a network has that always says 0, they
# can. Five curves; one of them belongs to a training without any fault, one to a flow that is healthy too. Which?

# %%
letters = dict(zip("ABCDE", ("no scale", "noise twice", "flow", "in [0, 1]", "healthy"), strict=True))
charts.show_curves({letter: shares[name] for letter, name in letters.items()}, "step", "share of the loss of saying 0")

# %% [markdown]
# All five fall and flatten. The healthy ones are C, the flow, and E. On MNIST E is the *highest* curve of all: the
# three sick trainings look better. (Without MNIST one of them, B, lies above E, and the other two do not.) Keep that
# in mind whenever somebody shows you a loss curve.
#
# ## 2. A network that knows the answer
#
# Half of the faults can be found before anything is trained. If the data were one single picture $x_0$, the noise
# could be read off the state:
#
# $$\epsilon = \frac{x_t - \alpha_t x_0}{\sigma_t}. \tag{2}$$
#
# So for such data we can write down a network, and a denoiser, that make no errors at all. Hand the one to your loss
# and the other to your sampler. Then whatever is wrong is wrong in your code: the loss must be exactly 0, and the
# walk must end exactly in the picture. Here are both.


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
# ## Case 1: the wrong index
#
# **The picture** is the second and third row at the head of the chapter. In one the network was told the time at
# which the step *ends*: an index too far by one. In the other the loop counted its own 20 steps, and handed that count to a network which
# knows 1,000 of them. Too far by one in the other direction, or by one of a thousand, looks quite different:

# %%
wrong = {"told the next time": told_next}
wrong |= {"told one step back": lambda t, s: (2 * t - s).clamp(max=1), "1 of 1,000 late": lambda t, s: t - 0.001}
shown = {"healthy": rows["healthy"]}
shown |= {name: pixels.to_images(walk(pixels.denoiser, start, tell=tell)) for name, tell in wrong.items()}
grids.show_rows(shown)

# %% [markdown]
# Told a time that is too small, the network takes noise for detail and keeps it; step by step it grows to snow. Told
# a time that is too large, it takes detail for noise and smooths: slim, clean digits, fewer loops. One thousandth
# cannot be seen at all, and is there.
#
# **The loss** was never involved.
#
# **The test.** Let the denoiser that knows the picture measure how much noise it is shown, and compare with the time
# it is told. The ratio must be 1, always.


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


ratios = {name: noise_shown(tell) for name, tell in ({"healthy": lambda t, s: t} | wrong).items()}
for name, found in ratios.items():
    far = max(found, key=lambda ratio: abs(ratio - 1))
    print(f"{name:>18}: noise shown over noise told, farthest from 1: {far:.3f}")

# %%
told = samplers.time_grid(20)[:-1]
plots.plot_curves(told, ratios, "time t", "noise shown / noise told", yscale="log", xlim=(1, 0))

# %% [markdown]
# Early in the walk nothing shows, for near $t = 1$ all is noise anyway. Late in the walk a single step makes a
# difference of factors, and even one thousandth shows.
# **The fix:** keep the time in one variable. Hand `t` to the network *and* to the schedule, never an index to the one and
# another to the other.
#
# ## Case 2: noise drawn twice
#
# `noise_twice` calls `randn` twice: once for the state, once for the target. It happens when a function `add_noise`
# draws its own noise and does not return it.


# %%
@torch.no_grad()
def draw(name, number=8, seed=2, sign=1.0):
    """Samples of a live model, before they are decoded."""
    network, is_flow = networks[name], name == "flow"
    schedule, target = (rectified, TARGETS["velocity"]) if is_flow else (cosine, TARGETS["v"])
    x = ldm.noise(number, seed).to(ldm.device)
    return walk(Denoiser(lambda x, t: sign * network(x, t), schedule, target), x, schedule=schedule)


healthy = ldm.to_images(draw("healthy"))
twice = ldm.to_images(draw("noise twice"))
both = {name: losses[name] for name in ("healthy", "noise twice")}
charts.show_case({"healthy": healthy, "noise twice": twice}, both)

# %% [markdown]
# (After 200 steps even the healthy model draws clumsily. What counts is the difference.) Strokes break off and end
# nowhere.
#
# **The loss** falls like a healthy one, on MNIST at first even faster; in a longer training the healthy one falls
# below it. Of a noise that is nowhere in $x_t$ the best guess is 0, so the network learns
# $-\sigma_t\, \mathbb E[x_0 \mid x_t]$, and that is an honest thing to learn. What gives it away is where the loss is
# high. With $v$ at small $t$ the target is nearly pure noise; a right network finds it in the state, this one cannot.
#
# **The test** was in section 2: a loss that does not vanish for a network that knows. If you have only the weights,
# ask how much of the noise that was mixed in comes out again.

# %%
z0, index = posterior.mean[:500].to(ldm.device), torch.arange(500)
t = torch.full((len(z0),), 0.4, device=ldm.device)
eps = torch.randn(z0.shape, generator=generator).to(z0)
with torch.no_grad():
    for name in ("healthy", "noise twice"):
        output = networks[name](add_noise(cosine, z0, eps, t), t)
        print(f"{name:>11}: output times noise, on average {(output * eps).mean():+.2f} (wanted: above 0)")

# %% [markdown]
# **The fix:** draw `eps` once, in the loss, where one can see that both lines use it (`objective.diffusion_loss`).
#
# ## Case 3: the missing latent scale
#
# The diffusion model was trained on what the encoder gives; the library's decoder undoes a scale that was never
# applied. (Or the other way about: trained with it, decoded without.)

# %%
fat = ldm.to_images(draw("no scale"))
faint = ldm.to_images(
    (walk(ldm.denoiser, ldm.noise(8, 2).to(ldm.device)) - shift.to(ldm.device)) / scale.to(ldm.device)
)
both = {name: losses[name] for name in ("healthy", "no scale")}
charts.show_case({"healthy": healthy, "scaled in\ndecoding only": fat, "scaled in\ntraining only": faint}, both)

# %% [markdown]
# Too fat, or too faint: a latent that is too large or too small is a digit with too much or too little ink. (The last
# row is the shipped model, hence the better shapes.) This encoder's unit is about 2. With an encoder whose unit is
# 10, nothing could be read.
#
# **The loss** is larger as a number, since the target is, and smaller as a share of saying 0. Neither is a symptom.
#
# **The test** is a line. The schedule was made for mean 0 and standard deviation 1.

# %%
for name, dataset in (("healthy", latents), ("no scale", unscaled)):
    z = dataset.moments[:, :2]
    print(f"{name:>9}: mean", *(f"{value:5.2f}" for value in z.mean((0, 2, 3))), end=", standard deviation ")
    print(*(f"{value:.2f}" for value in z.std((0, 2, 3))))

# %% [markdown]
# **The fix:** let the autoencoder own its scale. Measured once, stored with its weights, applied in `encode` and
# undone in `decode`, so that no training and no sampler can forget it.
#
# ## Case 4: the sign of guidance
#
# `u - w * (c - u)`, or `c + w * (u - c)`: the push goes away from the class.


# %%
def flipped(denoiser, w):
    def guide(x_t, t, labels):
        u, c = (denoiser(x_t, t, labels=each) for each in (torch.full_like(labels, NO_CLASS), labels))
        return Prediction(*(a - w * (b - a) for a, b in zip(u, c, strict=True)))

    return guide


wanted = torch.arange(40) % 10
begin, labels = classes.noise(40, seed=3).to(classes.device), wanted.to(classes.device)
guided_samples = {}
for name, guide in (("healthy", guided), ("flipped", flipped)):
    for w in (1.0, 3.0):
        drawn = classes.to_images(walk(guide(classes.denoiser, w), begin, labels=labels))
        guided_samples[f"{name}, w = {w:g}"] = drawn[:10]
        right = (logits(drawn).argmax(1) == wanted).double().mean()
        print(f"{name}, w = {w:g}: {right:4.0%} of the digits are those that were asked for (chance: 10%)")
grids.show_rows(guided_samples, "Asked for 0 to 9")

# %% [markdown]
# Fine digits, all of them, and never the right one. **The loss** is that of a healthy conditional model.
# **The test** is above: not *low* accuracy, as of a poor model, but accuracy *below chance*. Or hand your function a
# denoiser that says 0 without a label and 1 with one. Then guidance of $w$ must say $w$.

# %% tags=["nbval-check-output"]
for name, guide in (("guided", guided), ("flipped", flipped)):
    (found,) = oracles.examine_guidance(guide)
    print(f"{name:>7}: {found.text}\n         {found.advice or 'Nothing to do.'}")

# %% [markdown]
# **The fix:** `u + w * (c - u)`, and a test that $w = 1$ is the plain conditional model.
#
# ## Case 5: a clamped state
#
# "Pixels lie in $[-1, 1]$, so let us keep the state there." But $x_t$ is noise, and a third of its numbers lie
# outside. What that does depends on the sampler. With 20 steps of DDIM hardly anything, as the head of the chapter
# shows. With fresh noise in each step, and in latents:


# %%
def walk_with_noise(model, after, eta, steps):
    """DDIM with a share eta of fresh noise."""
    x, fresh = model.noise(20, seed=3).to(model.device), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t, s in pairwise(samplers.time_grid(steps)):
            noise = torch.randn(x.shape, generator=fresh).to(x)
            x = after(samplers.ddim(model.denoiser(x, t), x, t, s, schedule=cosine, noise=noise, eta=eta))
    return model.to_images(x)


clamped = {}
for name, model, eta, steps in (("pixels, eta = 1", pixels, 1.0, 40), ("latents, eta = 0", ldm, 0.0, 20)):
    for what, after in (("healthy", lambda x: x), ("clamped", clamp)):
        samples = walk_with_noise(model, after, eta, steps)
        print(f"{name}, {what}: {(samples.mean() + 1) / 2:.1%} ink")
        clamped[f"{name}\n{what}"] = samples[:10]
grids.show_rows(clamped)

# %% [markdown]
# Bold in pixels, faint in latents: the state has lost the noise that the network expects at this time, and the
# network makes it up out of the picture. **The loss** was never involved. **The test:** how much of the state stands
# at its very largest value? Of a healthy one, a single number does.


# %% tags=["nbval-check-output"]
def piled(after):
    """The share of the state, after one step, that stands at its largest value."""
    seen = []

    def knows(x_t, t):
        seen.append(x_t)
        return Prediction(torch.zeros_like(x_t), x_t / cosine(t)[1])

    walk(knows, torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)), after=after)
    return (seen[1] == seen[1].max()).double().mean()


for name, after in (("healthy", lambda x: x), ("clamped", clamp)):
    print(f"{name}: {piled(after):6.2%}")

# %% [markdown]
# **The fix:** clip $\hat x_0$, compute $\hat\epsilon$ again, leave $x_t$ alone (`denoiser.clipped`). In latents clip
# nothing.
#
# ## Case 6: a stale average
#
# We sample from an average of the weights. With a fixed decay $d$, after $n$ updates it still consists of the random
# weights of the start to the share
#
# $$d^{\,n}. \tag{3}$$
#
# With 0.9999 half of it is there after 7,000 steps. A short training never gets away from its start; nor does one
# that forgets to call `update`.

# %%
stale = ldm.to_images(draw("stale"))
with_last = {"average with warm-up": healthy, "0.9999 from the start": stale}
charts.show_case(with_last, {"both": losses["healthy"]})

# %% [markdown]
# **The loss** curve is one and the same: it is that of the weights in training, which are fine. This is the only case
# in which it is both right and beside the point. **The test:** the loss of the average, on the same pictures, times
# and noise, beside that of the weights it was taken from.

# %%
for name, network in (
    ("last weights", last),
    ("average with warm-up", networks["healthy"]),
    ("stale", networks["stale"]),
):
    moments = latents.moments[:500].to(ldm.device)
    with torch.no_grad():
        value = usual(network.eval(), moments, None, torch.Generator(ldm.device).manual_seed(0)).mean()
    print(f"{name:>20}: loss {value:.3f}")
n = torch.logspace(0, 4.3, 200).long().unique()
warm = torch.minimum(torch.tensor(0.999), (1.0 + torch.arange(20_001)) / (10 + torch.arange(20_001)))
left = {f"{d} from the start": d**n for d in (0.999, 0.9999)} | {
    "0.999 with warm-up": warm.log().cumsum(0).exp()[n - 1]
}
plots.plot_curves(n, left, "updates", "share of the first weights", xscale="log", ylim=(-0.02, 1.02))

# %% [markdown]
# **The fix:** let the decay warm up, $\min(d, (1 + n)/(10 + n))$: after ten updates nothing of the start is left.
#
# ## Case 7: the sign of the velocity
#
# Some texts let time run from data to noise, others from noise to data. The velocity is $\epsilon - x_0$ in the ones
# and $x_0 - \epsilon$ in the others. Take the loss from one and the sampler from the other:

# %%
flows = {"healthy flow": ldm.to_images(draw("flow")), "other sign": ldm.to_images(draw("flow", sign=-1.0))}
charts.show_case(flows, {"both": losses["flow"]})

# %% [markdown]
# The decoder makes strokes of anything, so even a walk in the wrong direction ends in strokes. In pixels you would
# see snow. **The loss** is the healthy one's; a square does not mind the sign that both sides agree on.
#
# **The test:** take a real latent half way to noise, make one Euler step towards the data, and see whether it got
# nearer to where it should be.

# %%
t, s = torch.tensor(0.5), torch.tensor(0.3)
here, there = (add_noise(rectified, z0, eps, time) for time in (t, s))
with torch.no_grad():
    velocity = networks["flow"](here, t.expand(len(here)).to(here))
print(f"no step at all: {(here - there).square().mean():.2f} from where it should be")
for name, sign in (("healthy", 1.0), ("other sign", -1.0)):
    print(f"{name:>14}: {(here + (s - t) * sign * velocity - there).square().mean():.2f}")

# %% [markdown]
# **The fix:** one time axis in the whole project, written down once. Here 0 is data and 1 is noise, everywhere.
#
# ## Case 8: data in [0, 1]
#
# Many readers of pictures give $[0, 1]$, torchvision's `ToTensor` for one. Nothing objects: it is a part of $[-1, 1]$.

# %%
half = ldm.to_images(draw("in [0, 1]"))
both = {name: losses[name] for name in ("healthy", "in [0, 1]")}
charts.show_case({"healthy": healthy, "in [0, 1]": half, "data as\nit was fed": (few.images[:8] / 255.0)}, both)

# %% [markdown]
# To the encoder black is grey, and it has never seen grey; it does with it what it can. (A model of pixels draws
# digits on a grey ground, and needs a longer look: exercise 2.) **The loss**, as a share of saying 0, is far below
# the healthy one: data that lie far from the origin are easy to predict.
#
# **The test:** print the range of a batch at the very place where the loss takes it. If you have only the weights,
# ask for the first guess. From pure noise a network can do no better than the mean of what it was trained on,
#
# $$\hat x_0(x_1, 1) = \mathbb E[x_0], \tag{4}$$
#
# so it tells you what that was.

# %%
print(f"a healthy batch: {data.normalise(few.images).min():.0f} to {data.normalise(few.images).max():.0f}")
one = torch.ones(200, device=ldm.device)
for name in ("healthy", "in [0, 1]"):
    with torch.no_grad():
        guess = -networks[name](ldm.noise(200, seed=5).to(ldm.device), one).mean(0)  # at t = 1, v is -x0
    away = {what: (guess.cpu() - z.moments[:, :2].mean(0)).square().mean().sqrt() for what, z in
            (("the latents", latents), ("those of pictures in [0, 1]", zero_to_one))}  # fmt: skip
    print(f"{name}: first guess", ", ".join(f"{value:.2f} from the mean of {what}" for what, value in away.items()))

# %% [markdown]
# **The fix:** `2 * x - 1`, once, where the data enter; and an assertion on the range in the encoder.
#
# ## 3. The differential diagnosis
#
# Those were tests for somebody who already has a suspicion. What if all you have is a trained pipeline and some
# pictures? Then let the network speak. Suppose that it was told the wrong time: ask it with another. Suppose its sign
# is flipped: read it with the other one. If the supposition is right, it will find the picture better than before.


# %% tags=["nbval-check-output"]
def my_share(patient, sign, told):
    """The error of x0 under a supposition, over that without: (1) at four times, as a mean of logarithms."""
    logs = []
    for t in clinic.TIMES:
        for s, clock in ((sign, told), (1.0, lambda t: t)):
            output, x_t, _, alpha, sigma = patient.answer(t, clock, seed=0)
            x0 = expand(alpha, x_t) * x_t - expand(sigma, x_t) * s * output  # how v is read
            logs.append((x0 - patient.x0).double().square().mean().log())
    return torch.stack(logs[::2]).sub(torch.stack(logs[1::2])).mean().exp().item()


test = data.load("auto", "test")
images, digits = test.batch(torch.arange(32))
patient = clinic.admit(ldm, images)
found = clinic.differential(patient)
assert abs(my_share(patient, -1.0, lambda t: t) / found["flipped sign"] - 1) < 1e-3
assert abs(my_share(patient, 1.0, lambda t: 1 - t) / found["wrong time, backwards, 1 - t"] - 1) < 1e-3
print("my_share is clinic.differential's, for", len(found), "suppositions")

# %% [markdown]
# Below are four patients, and what each supposition would do for them. To the right of the line: it would get worse.
# A diamond marks what is believed.


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


recipe = dataclasses.replace(ldm.recipe, network=small)
live = {
    name: pipelines.build(
        dataclasses.replace(recipe, diffusion=flow_config) if name == "flow" else recipe,
        network.state_dict(),
        autoencoder=vae,
    )
    for name, network in networks.items()
}
late = sick(pixels, lambda net, x, t, c: net(x, (t + 0.05).clamp(max=1), **c))
counted = sick(classes, lambda net, x, t, c: net(x, t / 20, **c))
wrong_sign = sick(live["flow"], lambda net, x, t, c: -net(x, t))
patients = {
    "ldm, healthy": clinic.admit(ldm, images),
    "ddpm, told t + 0.05": clinic.admit(late, images[:16]),
    "ldm-concat, told t / 20": clinic.admit(counted, images, digits),
    "noise twice": clinic.admit(live["noise twice"], images),
}
charts.plot_suppositions({name: clinic.differential(each) for name, each in patients.items()}, clinic.BETTER)

# %% [markdown]
# Each is told apart from all the others. `clinic.examine` puts the looks in the order in which they must be made,
# since each presupposes those before it: are the weights numbers, are the pictures in range, have the latents their
# scale, is the first guess the mean of these data, does a supposition explain the network better, has it learned
# anything, does its average lag? It stops at the first fault. First the healthy ones, all that come with the book:

# %%
for name in diffusion_book.list_models():
    if not name.startswith("vae"):
        pipe = diffusion_book.load(name)
        few_images, few_labels = images[:16], digits[:16]
        print(f"{name}: {clinic.verdict(clinic.examine(pipe, few_images, few_labels if pipe.num_classes else None))}")

# %%
network = copy.deepcopy(vae.network)
network.latent_mean.zero_()
network.latent_std.fill_(1)
ward = {
    "told t + 0.05": (late, {}),
    "told t / 20": (counted, {}),
    "noise twice": (live["noise twice"], {}),
    "no scale in the pipeline": (dataclasses.replace(ldm, autoencoder=dataclasses.replace(vae, network=network)), {}),
    "no scale in the training": (live["no scale"], {}),
    "stale average": (live["stale"], {}),
    "the same, with the last weights": (live["stale"], {"last": last}),
    "sign of the velocity": (wrong_sign, {}),
    "trained on [0, 1]": (live["in [0, 1]"], {}),
}
for name, (pipe, options) in ward.items():
    ill = clinic.faults(clinic.examine(pipe, images[:16], **options))
    print(f"{name:>31} -> {ill[0].subject if ill else 'nothing found'}")
print("\nOne of them in full:\n" + clinic.verdict(clinic.examine(wrong_sign, images)))

# %% [markdown]
# What a pipeline does not contain cannot be seen in it. Clamping and guidance live in the sampler, so it is the
# sampler that has to be examined:

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
# The last line is worth a thought. Of a latent model's time 0.1 may be wrong, and the error hardly changes: the
# network sees from the state how noisy it is. What cannot be found in this way does little harm in the network. But
# the sampler's own arithmetic uses the time as well, and there it does: hence two examinations.
#
# ## From symptom to suspect
#
# | Symptom | Suspects | Test |
# |---|---|---|
# | snow, from a good loss | told a time that is too small (1); velocity's sign (7) | `examine_sampler`; one Euler step |
# | black, or all the same | index of another grid (1); the walk does not start at $t = 1$ | `examine_sampler` |
# | slim and smooth | told a time that is too large (1) | noise shown over noise told |
# | scrawls that never were digits | stale average (6); untrained; noise twice (2); sign (7) | loss of average and last weights; `examine_loss` |
# | fat or faint strokes | latent scale (3); clamped state (5) | print mean and std; share at the largest value |
# | grey ground, blotches | data in $[0, 1]$ (8) | print min and max; first guess |
# | fine digits, the wrong ones | guidance's sign (4); labels shuffled | accuracy below chance; `examine_guidance` |
# | loss stands still at 1 | noise twice, with target noise (2) | `examine_loss` |
# | grain on good digits | noise in the last step; the walk stops before $t = 0$ | `examine_sampler`: end |
#
# And in general: examine the loss and the sampler with what knows the answer; then overfit a single batch; then train
# for a minute and run `clinic.examine`; only then train for a night. For models that are already good,
# `diffusion-book diagnose` measures whether they could be better.
#
# ## Exercises
#
# **1. Noise twice, with the other targets.** What does a network learn that predicts $\epsilon$, and whose target has a
# noise of its own? Where does its loss stop? And one that predicts $x_0$?
#
# <details><summary>Solution</summary>
#
# The best guess of an unrelated noise is 0, so it learns to say 0, and its loss stops at 1 exactly, the variance of
# the noise. That is the one combination in which the loss curve does tell. A network that predicts $x_0$ has no noise
# in its target: no second one can get in. With the velocity, the loss falls from $1 + \mathbb E[x_0^2]$ towards $1 +
# \operatorname{Var}[x_0 \mid x_t]$, and looks well.
#
# </details>
#
# **2. Pixels in [0, 1].** Without any training: section 6 of chapter 4 turned the shipped denoiser into that of data of
# another size. Do the same for $y = (x_0 + 1)/2$, draw with it, and show $2y - 1$ and $y$.
#
# <details><summary>Solution</summary>
#
# From $y_t = \alpha y + \sigma\epsilon$ follows $2 y_t - \alpha = \alpha x_0 + 2\sigma\epsilon$: a state of $x_0$
# with twice the noise.
#
# ```python
# fine = torch.linspace(1e-4, 1, 10_001, dtype=torch.float64)
# ratio = cosine(fine)[1] / cosine(fine)[0]
#
# def of_half(y_t, t):
#     alpha, sigma = cosine(t)
#     size = (alpha**2 + 4 * sigma**2).sqrt()
#     then = fine[torch.searchsorted(ratio, 2 * sigma / alpha).clamp(max=10_000)]
#     y = (pixels.denoiser((2 * y_t - alpha) / size, then).x0 + 1) / 2
#     return Prediction(y, (y_t - alpha * y) / sigma)
#
# y = walk(of_half, start)
# grids.show_rows({"shown as 2y - 1": pixels.to_images(2 * y - 1), "shown as y": pixels.to_images(y)})
# ```
#
# Shown as what they are, they are digits; a network can learn these data. Shown as if they were in $[-1, 1]$, the
# ground is grey. With half the size, picture and noise part at another time (equation 4 of chapter 4), and here that
# costs little.
#
# </details>
#
# **3. Wrong on both sides.** Train with `t - 0.05` told to the network, and sample with the same. What do you see, and
# what does `clinic.examine` say of it if the pipeline tells `t - 0.05` too?
#
# <details><summary>Solution</summary>
#
# Nothing, and nothing: the time is a name, and a network can be used to any names, if only training and sampling use
# the same ones. A fault is always a disagreement. That is why the wrong time is so often found after a *sampler* was
# exchanged and not before.
#
# </details>
#
# **4. A ninth patient.** Break `walk` in a way that is not in this chapter, e.g. by keeping $\hat\epsilon$ when
# $\hat x_0$ is clipped. Does `examine_sampler` find it? Why not?
#
# <details><summary>Solution</summary>
#
# ```python
# def kept(denoiser):
#     return lambda x, t: Prediction(denoiser(x, t).x0.clamp(-1, 1), denoiser(x, t).eps)
#
# print(clinic.verdict(oracles.examine_sampler(lambda d, x: walk(kept(d), x), cosine)))
# ```
#
# It does not. The denoiser that knows the picture never leaves $[-1, 1]$, so there is nothing to clip. A test sees
# what it asks for. Let the denoiser that knows say $1.2\,x_0$, with the $\hat\epsilon$ that belongs to it, and the
# pair no longer adds up to $x_t$ after the clipping: that you can print.
#
# </details>
#
# ## Summary
#
# - The floor of a diffusion loss is unknown, and the sampler does not occur in it. A falling curve proves little.
# - A network that knows the answer, equation (2), tests a loss and a sampler without training: the loss must be 0, the
#   walk must end in the picture, and each state must have the noise of the time that is told.
# - A trained network can be asked under a supposition. The right one makes it better.
# - Print the range, the mean and the standard deviation of what goes into the loss, once, at the place where it goes in.
# - Every fault here is a disagreement between two places that should share one variable: a time, a noise, a scale, a
#   sign.
#
# ## References
#
# - Ho, Jain & Abbeel (2020), *Denoising Diffusion Probabilistic Models*. NeurIPS. arXiv:2006.11239. (The loss, and the
#   average with 0.9999 over 800,000 steps.)
# - Song, Meng & Ermon (2020), *Denoising Diffusion Implicit Models*. ICLR 2021. arXiv:2010.02502.
# - Ho & Salimans (2022), *Classifier-Free Diffusion Guidance*. arXiv:2207.12598.
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752. (Appendix G: the scale of the latents.)
# - Liu, Gong & Liu (2022), *Flow Straight and Fast*. arXiv:2209.03003. (Time from noise to data.)
# - Karras, Aittala, Aila & Laine (2022), *Elucidating the Design Space of Diffusion-Based Generative Models*. NeurIPS.
#   arXiv:2206.00364. (Why network, schedule and sampler are better kept apart.)
