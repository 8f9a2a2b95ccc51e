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
# # Latent diffusion: the same machine on thirty-two numbers
#
# *Runs in about a minute and a half on two CPU cores, without a network connection. Half of that is live training.
# Needs chapters 1 to 3.*
#
# The network of chapter 1 looks at 1,024 numbers a picture, at every step, for every sample. Most of them say
# nothing: they are black, or follow from their neighbours. The autoencoder of chapter 3 tells a digit in 32 numbers
# and reads it back. What it cannot do is to make up the 32 numbers. That is a task for diffusion, so let it work on
# those, and let the decoder paint.
#
# You will
#
# - see on a toy why it is easier to diffuse a coordinate than the picture it stands for;
# - look at a data set, at noise and at half-finished samples as the latent sees them;
# - find out what a schedule silently expects of its data, and break it by a factor of ten;
# - train on pixels and on latents for the same seconds;
# - count what a digit costs in both worlds, and what the autoencoder takes from you that no diffusion gives back.
#
# The source is Rombach, Blattmann, Lorenz, Esser & Ommer, *High-Resolution Image Synthesis with Latent Diffusion
# Models* (2022), the paper behind Stable Diffusion.

# %% [markdown]
# ## Set-up, and what we are after

# %%
import copy
import dataclasses
import itertools
import math
import time

import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import diffusion_book
from diffusion_book import data, objective, samplers, schedules, targets
from diffusion_book.denoiser import Denoiser, clipped
from diffusion_book.elbo import latent_statistics
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.interpolation import slerp
from diffusion_book.models import pipelines, weights
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNet
from diffusion_book.schedules import add_noise, cosine
from diffusion_book.training.latents import LatentDataset, encode_dataset
from diffusion_book.training.losses import loss_of_diffusion, loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import animation, costs, grids, plots, strips, style

style.use_style()
ddpm, pipe = diffusion_book.load("ddpm"), diffusion_book.load("ldm")
vae = pipe.autoencoder
begun = time.perf_counter()
samples = pipe.sample(64, steps=50, seed=0)
print(f"64 digits, 50 steps each: {time.perf_counter() - begun:.1f} seconds")
grids.show_grid(samples, columns=16)

# %% [markdown]
# ## 1. The idea
#
# Let $\mathcal E$ be the encoder and $\mathcal D$ the decoder of chapter 3. Both are trained, and stay as they are.
# Then
#
# $$z_0 = \mathcal E(x_0), \qquad \text{diffuse } z_0 \text{ as if it were data}, \qquad x = \mathcal D(\hat z_0).
# \tag{1}$$
#
# That is the method. The forward process, the objective, the denoiser and the samplers of chapters 1 and 2 never
# asked whether their numbers were pixels. They take an array of any shape. So nothing is new but the data, and the
# library shows it: a latent model has the same class of network, the same objective and the same samplers. Only its
# `autoencoder` is not `None`.

# %%
# NBVAL_CHECK_OUTPUT
print(f"a picture has {math.prod(ddpm.shape):,} numbers, a latent {math.prod(pipe.shape)}: {pipe.shape}")
print("the same network class:", type(pipe.network) is type(ddpm.network))
print("the same schedule, target and times:", pipe.recipe.diffusion == ddpm.recipe.diffusion)

# %% [markdown]
# ## 2. A toy: pictures on a curve
#
# Why should fewer numbers be easier? Take "pictures" of one row of 32 pixels. Each shows one bright spot, and all
# that differs is where it is. Such pictures fill no space: they lie on a *curve* in 32 dimensions, and a single
# number $z$ says where on it. Here the autoencoder needs no training. The decoder paints a spot at $z$; the encoder
# takes the centre of gravity of the light. Spots are found left or right of the middle, in two heaps.


# %%
# NBVAL_CHECK_OUTPUT
def spot(z):
    """The decoder: one number to a row of pixels, (B, 1) -> (B, 32)."""
    centre = 15.5 + 5 * z
    return 2 * torch.exp(-(((torch.arange(32) - centre) / 1.5) ** 2) / 2) - 1


def find(x):
    """The encoder: the centre of the light, (B, 32) -> (B, 1)."""
    light = (x + 1).clamp(min=0)
    return ((light * torch.arange(32)).sum(1, keepdim=True) / light.sum(1, keepdim=True) - 15.5) / 5


generator = torch.Generator().manual_seed(0)
side = torch.randint(0, 2, (5000, 1), generator=generator) * 2 - 1
z = 0.95 * side + 0.3 * torch.randn(5000, 1, generator=generator)  # mean 0, variance 1
print(f"decoded and encoded, z is off by at most {(find(spot(z)) - z).abs().max():.4f}")

# %% [markdown]
# Now two diffusion models, one of the 32 pixels and one of the single number. They get the same small network, the
# same training and the same sampler.


# %%
class Small(nn.Module):
    def __init__(self, size):
        super().__init__()
        shape = (size + 2, 64, 64, size)
        layers = [part for pair in itertools.pairwise(shape) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers[:-1])  # no SiLU after the last

    def forward(self, x, t):
        return self.layers(torch.cat([x, torch.stack(cosine(t), dim=1)], dim=1))  # the time as alpha and sigma


def fit(x0, steps=1000):
    """A denoiser of the rows of x0, trained with the library's objective."""
    torch.manual_seed(0)
    network, draws = Small(x0.shape[1]), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        batch = x0[torch.randint(len(x0), (256,), generator=draws)]
        loss = objective.diffusion_loss(network, batch, schedule=cosine, target=targets.v, generator=draws)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return Denoiser(network, cosine, targets.v)


# %%
def walk(denoiser, size):
    start, times = torch.randn(2000, size, generator=generator), samplers.time_grid(50)
    *_, end = samplers.sample(denoiser, start, times, samplers.ddim, schedule=cosine, generator=generator)
    return end.x


drawn = {"data": spot(z[:2000]), "diffused pixels": walk(fit(spot(z)), 32), "diffused z": spot(walk(fit(z), 1))}
for name, x in drawn.items():
    off = (x - spot(find(x))).square().mean().sqrt()
    shift = 5 * (find(x)[:, 0].sort().values - z[2000:4000, 0].sort().values).abs().mean()
    print(f"{name:>15}: off the curve by {off:.2f}, spots misplaced by {shift:.2f} pixels")
grids.show_rows({name: x[:96].T.reshape(1, 1, 32, 96) for name, x in drawn.items()}, "One column, one picture", 4.0)

# %% [markdown]
# (Misplaced on the whole: the sorted places are compared with those of other data.) The pixel model has two things to
# learn, what a spot looks like and where spots are, and it learns the first for 32 numbers together. It is never
# quite done: its spots are smeared, doubled or grainy. The other model learns only where. Whatever it gets
# wrong, the decoder paints a perfect spot. This is the division of labour of latent diffusion: **the decoder knows
# what a stroke looks like; the diffusion decides which strokes there are.**
#
# ## 3. The data set, encoded
#
# The encoder does not change any more, so each picture is encoded once and not in every step. For this page 6,000
# pictures must do. (`diffusion-book train ldm` encodes all of them, and keeps the result on disk.)

# %%
train, test = data.load("auto"), data.load("auto", "test")
few = data.Dataset(train.name, train.images[:6000], train.labels[:6000])
begun = time.perf_counter()
latents = encode_dataset(vae, few)
seconds_of_encoding = time.perf_counter() - begun
posterior = DiagonalGaussian.from_moments(latents.moments)
print(f"{len(latents):,} pictures of {few.name} in {seconds_of_encoding:.1f} s: moments {tuple(latents.moments.shape)}")
mean, std = latent_statistics(posterior)
print("mean and standard deviation of each channel:", mean.numpy().round(2), std.numpy().round(2))
print("before the shift and the scale of section 6:", end=" ")
print(vae.network.latent_mean.cpu().numpy().round(2), vae.network.latent_std.cpu().numpy().round(2))

# %% [markdown]
# A latent has two channels of 4 x 4. As a picture, it is a small mosaic: each square stands for 8 x 8 pixels.


# %%
def mosaic(z, channel=0):
    """One channel of latents as pictures, black at -3 and white at 3: (B, 2, 4, 4) -> (B, 1, 28, 28)."""
    return (z[:, [channel]].cpu() / 3).repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)


def paint(z):
    """Decoded latents: (B, 2, 4, 4) -> (B, 1, 28, 28)."""
    return pipe.to_images(z)


x0, labels = test.batch(torch.arange(300))
z0 = vae.encode(x0).cpu()
rows = {"picture": data.crop(x0[:12]), "channel 0": mosaic(z0[:12]), "channel 1": mosaic(z0[:12], 1)}
grids.show_rows(rows | {"decoded": paint(z0[:12])})

# %% [markdown]
# You will look in vain for the digit in its mosaic. No square is a shade of grey any more: two numbers together say
# which piece of a stroke passes through a patch. But they still stand in the place of their patch, as chapter 3 has
# shown by moving one of them. That is why a convolutional network suits latents as it suits pictures.
#
# ## 4. A latent is drawn, not stored
#
# The encoder gives no point, but a Gaussian: a mean $\mu$ and a standard deviation $s$ for each of the 32 numbers. What is
# kept for training are those, and a latent is drawn afresh every time its picture comes up:
#
# $$z_0 = \mu(x_0) + s(x_0) \odot \xi, \qquad \xi \sim \mathcal N(0, I). \tag{2}$$
#
# `LatentDataset` therefore holds moments: four channels, two of means and two of log-variances.

# %%
index = torch.arange(300)
moments, _ = latents.batch(index)
q = DiagonalGaussian.from_moments(moments)
first, second = (q.sample(torch.randn(q.mean.shape, generator=generator)) for _ in range(2))
print(f"two draws of a latent differ by {(first - second).square().mean().sqrt():.4f} (root mean square)")
print(f"expected from s alone:          {(2 * q.std.square().mean()).sqrt():.4f}")
print(f"pixels of the two, decoded:     {(paint(first) - paint(second)).square().mean().sqrt():.4f}")
print(f"two different pictures' latents: {(first - first.roll(1, 0)).square().mean().sqrt():.2f}")

# %% [markdown]
# The draws are close together. Chapter 3's weight on the divergence is so small that the encoder is sure of itself,
# and the mean alone would nearly do. It costs nothing to draw, though, and it is what the decoder was trained
# on. With a heavier weight it would matter.
#
# ## 5. What noise does to a latent
#
# Add noise as always, $z_t = \alpha_t z_0 + \sigma_t \epsilon$, and look at three things: the picture with pixel
# noise of the same strength, the latent's first channel, and the latent decoded.

# %%
times = torch.linspace(0, 1, 11)
chosen = [3, 2, 1]
in_pixels, in_latents = torch.randn(3, 1, 32, 32, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
pixels = torch.stack([data.crop(add_noise(cosine, x0[chosen], in_pixels, t)) for t in times], dim=1)
noisy = [add_noise(cosine, z0[chosen], in_latents, t) for t in times]
shown = [pixels, torch.stack([mosaic(z) for z in noisy], 1), torch.stack([paint(z) for z in noisy], 1)]
strips.show_strip(times.tolist(), torch.stack(shown, dim=1).flatten(0, 1), title="Pixels, latent, decoded latent")

# %% [markdown]
# Pixel noise looks like bad reception: the digit is there, behind snow. Latent noise has no snow. At every $t$ the
# decoder paints clean, continuous strokes, for that is all it can paint. What gets lost is *which*: strokes bend, join
# and part, until at $t = 1$ the picture is a scrawl that means nothing. A half-noised latent is a digit misremembered.
#
# And it is lost sooner. We ask both trained denoisers, at each time, for their best guess $\hat x_0$, and let the
# book's second classifier read it.

# %%
moments_of_time = torch.linspace(0.1, 1, 10)
readable = {"ddpm": [], "ldm": []}
for t in moments_of_time:
    for name, model, clean in (("ddpm", ddpm, x0[:150]), ("ldm", pipe, z0[:150])):
        eps = torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            guess = model.denoiser(add_noise(cosine, clean, eps, t).to(model.device), t).x0
        right = logits(model.to_images(guess)).argmax(dim=1) == labels[:150]
        readable[name].append(right.double().mean().item())
plots.plot_curves(moments_of_time, readable, "time t", "share of digits still read", ylim=(0, 1.02))

# %% [markdown]
# The same $\alpha$ and $\sigma$ leave less of a latent than of a picture. A picture is redundant: a stroke
# covers a hundred pixels with a hundred independent noises, and a denoiser averages them out. A latent says everything
# once. So "how noisy is it?" is not settled by the schedule alone. It depends on what the numbers are, and first of
# all on how large they are.
#
# ## 6. Why latents are scaled
#
# Pixels lie in $[-1, 1]$ by decree. Nobody told the encoder how large its numbers should be. Suppose they have the
# standard deviation $s$ in place of 1, so that we diffuse $s\,z_0$. Then picture and noise have the ratio
#
# $$\mathrm{SNR}_s(t) = \frac{\operatorname{Var}[\alpha_t\, s\, z_0]}{\operatorname{Var}[\sigma_t\, \epsilon]}
# = s^2\,\frac{\alpha_t^2}{\sigma_t^2} = s^2\,\mathrm{SNR}(t). \tag{3}$$
#
# Check it without using $\alpha$ or $\sigma$: the correlation $\rho$ between $s\,z_0$ and $x_t$ gives the ratio
# as $\rho^2 / (1 - \rho^2)$.

# %%
# NBVAL_CHECK_OUTPUT
half = torch.tensor(0.5, dtype=torch.float64)
z, eps = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
for s in (0.1, 1.0, 8.0):
    rho = torch.corrcoef(torch.stack([s * z, add_noise(cosine, s * z, eps, half)]))[0, 1]
    expected = s**2 * schedules.signal_to_noise(cosine, half)
    print(f"scale {s:>4}: SNR measured {rho**2 / (1 - rho**2):.2g}, by equation (3) {expected:.2g}")

# %% [markdown]
# A factor on the data is a shift in time. Divide $x_t = \alpha_t s z_0 + \sigma_t \epsilon$ by $c = \sqrt{s^2
# \alpha_t^2 + \sigma_t^2}$, and the two new factors $s\alpha_t/c$ and $\sigma_t/c$ again have squares that sum to 1. So the
# state is, up to its size, that of *unit* data at another time $t'$:
#
# $$\frac{x_t}{c} = \alpha_{t'} z_0 + \sigma_{t'} \epsilon, \qquad
# \frac{\sigma_{t'}}{\alpha_{t'}} = \frac{1}{s} \cdot \frac{\sigma_t}{\alpha_t}. \tag{4}$$
#
# Where, then, does a walk of 50 steps spend its effort? Call a step useful if neither picture nor noise has
# more than 20 times the other's variance.

# %%
# NBVAL_CHECK_OUTPUT
grid, fine = samplers.time_grid(50)[:-1], torch.linspace(0.0001, 1, 100_001, dtype=torch.float64)
ratio = cosine(fine)[1] / cosine(fine)[0]  # grows with time
for s in (0.1, 1.0, 8.0):
    snr = s**2 * schedules.signal_to_noise(cosine, grid)
    useful = ((snr > 1 / 20) & (snr < 20)).sum()
    shifted = fine[torch.searchsorted(ratio, cosine(half)[1] / cosine(half)[0] / s)]
    print(f"scale {s:>4}: t = 0.50 is like t' = {shifted:.2f}; useful steps: {useful} of 50")

# %%
t = torch.linspace(0.01, 0.99, 200, dtype=torch.float64)
snr = {f"scale {s:g}": s**2 * schedules.signal_to_noise(cosine, t) for s in (0.1, 1, 8)}
plots.plot_curves(t, snr, "time t", "SNR", yscale="log", ylim=(1e-5, 1e6))

# %% [markdown]
# With a scale of 0.1 the data drown at once: nearly all training times show almost pure noise, and the digit has to
# be decided in the last few steps. With 8 they hardly get wet: all is decided in the first few, and the training
# spends itself on cleaning what is clean. The cosine schedule was made for data of unit size.
#
# What does that do to samples? Equation (4) lets us see it without any training. It turns the shipped denoiser into
# the very one that would have been learned from latents $s$ times as large: shrink the state by $c$, ask at $t'$, and
# enlarge the answer. No row below has a better network than another. Only the 20 steps fall on other places.


# %%
def rescaled(s):
    """The shipped denoiser, for latents s times as large: equation (4)."""

    def denoise(x_t, t):
        alpha, sigma = cosine(t)
        c = (s**2 * alpha**2 + sigma**2).sqrt()
        position = torch.searchsorted(ratio, sigma / alpha / s).clamp(max=len(fine) - 1)
        x0 = s * pipe.denoiser(x_t / c, fine[position]).x0
        return targets.Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def distance(pictures):
    """cFID of a few pictures: rough, and only to be compared with one of as many."""
    return frechet_distance(features(pictures), reference_features()["test"])


start, times, rows = pipe.noise(200, seed=7).to(pipe.device), samplers.time_grid(20), {}
for s in (1.0, 0.1, 8.0, 30.0):
    *_, end = samplers.sample(rescaled(s), start, times, samplers.ddim, schedule=cosine, generator=generator)
    pictures = paint(end.x / s)
    print(f"scale {s:>4}: cFID {distance(pictures):.1f}")
    rows[f"scale {s:g}"] = pictures[:12]
grids.show_rows(rows)

# %% [markdown]
# A tenth of the size, or eight times, costs about the same: edges lose their shape, and some digits fall apart. At
# thirty the whole decision is squeezed into the first step.
#
# So the library measures the mean and the standard deviation of each channel on the training set, once, after the VAE
# is trained. Both are stored in its file as buffers, and `encode` and `decode` apply them. No number is
# typed in anywhere.
#
# And a network that has to *learn* at the wrong scale? For that we need the training first.
#
# ## 7. Training
#
# The loss is that of chapter 1, with (2) in front of it.


# %%
# NBVAL_CHECK_OUTPUT
def my_loss(network, moments, generator):
    mean, log_variance = moments.chunk(2, dim=1)  # (B, 4, 4, 4) -> twice (B, 2, 4, 4)
    z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
    t = objective.on_grid(objective.uniform(len(z), generator), 1000)
    eps = torch.randn(z.shape, generator=generator)
    alpha, sigma = (value.float().reshape(-1, 1, 1, 1) for value in cosine(t))
    error = network(alpha * z + sigma * eps, t.float()) - (alpha * eps - sigma * z)
    return error.square().mean(dim=(1, 2, 3))  # (B, 2, 4, 4) -> (B,)


network, batch = copy.deepcopy(pipe.network).cpu(), latents.batch(torch.arange(64))
with torch.no_grad():
    mine = my_loss(network, batch[0], torch.Generator().manual_seed(3))
    same = torch.Generator().manual_seed(3)
    theirs = loss_of_latent_diffusion(pipe.recipe.diffusion)(network, *batch, same)
assert_close(mine, theirs)
print("the loss of", len(mine), "latents is the library's")

# %% [markdown]
# Sampling is the DDIM of chapter 2 in latent space, and at its very end, once, the decoder. There is no step on the way
# that knows of pictures.


# %%
# NBVAL_CHECK_OUTPUT
@torch.no_grad()
def my_sample(z, steps):
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        z_0, eps = pipe.denoiser(z, t)
        alpha, sigma = cosine(s)
        z = alpha * z_0 + sigma * eps
    return data.crop(vae.decode(z)).clamp(-1, 1).cpu()


noise = pipe.noise(8, seed=2)
assert_close(my_sample(noise.to(pipe.device), 20), pipe.sample(8, steps=20, noise=noise), rtol=0, atol=1e-3)
print("eight samples, and pipe.sample draws the same:", tuple(noise.shape), "->", (8, 1, 28, 28))

# %% [markdown]
# ## 8. A live training, in latents and in pixels
#
# Now a fair race. One network learns latents from scratch, another learns pixels: the networks of the shipped
# weights, but untrained. Both get the same 6,000 pictures, the same batches of 32, the same learning rate, and
# the same seconds.

# %%
SECONDS = 15
settings = TrainingConfig(epochs=100_000, batch_size=32, lr=3e-3, warmup_steps=20, ema_decay=0.98)


def train_for(seconds, model, loss, dataset, autoencoder=None):
    """A model like `model`, trained from scratch, and the report of each step."""
    torch.manual_seed(0)
    network = UNet(model.recipe.network)
    trainer = Trainer(network, loss(model.recipe.diffusion), dataset, settings, max_minutes=seconds / 60)
    reports = list(trainer.steps())
    recipe = dataclasses.replace(model.recipe, training=settings)
    return pipelines.build(recipe, trainer.ema.network.state_dict(), autoencoder=autoencoder), reports


young, reports = train_for(SECONDS, pipe, loss_of_latent_diffusion, latents, vae)
losses = [report.loss for report in reports]
print(f"latents: {len(losses):,} steps in {SECONDS} s, loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end")
plots.plot_loss([report.step for report in reports], losses)

# %%
young_pixels, reports = train_for(SECONDS, ddpm, loss_of_diffusion, few)
print(f"pixels: {len(reports):,} steps in {SECONDS} s, loss {reports[-1].loss:.2f} at the end")
race = {"latents": young.sample(200, steps=20, seed=0), "pixels": young_pixels.sample(200, steps=20, seed=0)}

print(f"200 training pictures: cFID {distance(data.crop(few.batch(torch.arange(200))[0])):.1f}")
for name, pictures in race.items():
    print(f"{name:>21}: cFID {distance(pictures):.1f}")
print(f"the autoencoder was trained for {vae.card['minutes']:.0f} minutes before")
before = pipelines.build(pipe.recipe, UNet(pipe.recipe.network).state_dict(), autoencoder=vae).sample(12, steps=20)
grids.show_rows({"latents, untrained": before} | {f"{name}, {SECONDS} s": race[name][:12] for name in race})

# %% [markdown]
# The first row is the decoder alone: it paints random latents, the "prior, scaled" of chapter 3. Fifteen seconds later
# the strokes have joined, and the first digits can be read. The pixel model has got as far as ragged blots on a grainy
# ground. It takes fewer steps in the same time, and in each it also has to learn what a stroke is.
#
# Be fair to it. The latent model stands on the shoulders of an autoencoder, and the last line of print says how long
# that was trained. But this bill is paid once: every latent model of the next chapters lives off the same autoencoder.
# (Without MNIST both train on scikit-learn's digits, while cFID still compares with MNIST. Read it against
# the line of the training pictures.)
#
# ## 9. Breaking it: the wrong scale
#
# Now section 6, live. To scale all latents by $s$ we divide the stored standard deviation by it. Encoder and
# decoder then agree with each other as before: either row below could be perfect. Six seconds for each.


# %%
def at_scale(s):
    """The VAE with latents s times as large, and the data set in its latents."""
    network = copy.deepcopy(vae.network)
    network.latent_std /= s
    wider = DiagonalGaussian(s * posterior.mean, posterior.log_variance + 2 * math.log(s))
    return dataclasses.replace(vae, network=network), LatentDataset(latents.name, wider.moments, latents.labels)


scaled = {}
for s in (1.0, 0.1):
    its_vae, its_latents = at_scale(s)
    model, reports = train_for(6, pipe, loss_of_latent_diffusion, its_latents, its_vae)
    pictures = model.sample(200, steps=20, seed=0)
    print(f"scale {s:>4}: {len(reports)} steps in 6 s, cFID {distance(pictures):.1f}")
    scaled[f"scale {s:g}"] = pictures[:12]
grids.show_rows(scaled)

# %% [markdown]
# The data are the same, the digits are not: in the second row strokes run into each other and fade. Nothing warned us.
# The code ran and the loss fell. (Too large is the lesser evil here. Most training times are then too easy, but
# where the digit is decided the loss is 64 times as large: try `at_scale(8.0)`. Its damage is done in sampling, as
# section 6 has shown.) A wrong scale is among the commonest faults of latent models, and the easiest to find: print
# the standard deviation of what the network is fed.
#
# ## 10. The shipped weights
#
# They were trained on all 60,000 latents, with the same few lines. For each of three digits: the latent on its way,
# the same decoded, and the decoded guess $\mathcal D(\hat z_0)$.

# %%
card = weights.read_card("ldm")
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on the latents of {card['data_set']}")
states = list(pipe.states(range(3), steps=50, seed=1))
picked = torch.linspace(1, 50, 11).round().long()
ways = torch.stack([mosaic(states[i].x) for i in picked], dim=1)  # (3, 11, 1, 28, 28)
times, seen = strips.denoising_strip(states[1:], pipe, frames=11)
_, guessed = strips.denoising_strip(states, pipe, frames=11, what="x0")
strips.show_strip(times, torch.stack([ways, seen, guessed], dim=1).flatten(0, 1))

# %% [markdown]
# In pixels a digit comes out of the snow. Here a scrawl straightens itself out. Compare the second row with the
# third: while the state still decodes to a tangle, the guess is a digit already. And look at the first guess. At $t = 1$
# it is the mean of all latents, which decodes to one and the same odd figure for all three.

# %%
states = list(pipe.states(range(8), steps=50, seed=4))
film = torch.stack([grids.grid(pipe.to_images(state.x), columns=4) for state in states])
animation.animate(film, alt="Eight scrawls, the decoded states of latents, straighten out into digits")

# %% [markdown]
# ## 11. Latents are not clipped
#
# Pixels have an edge: nothing is blacker than black. So the pixel pipeline clips $\hat x_0$ to $[-1, 1]$, and gains by it.
# Latents have no edge. They have a standard deviation of 1, and are free to go farther. Let us clip them all the
# same.

# %%
outside = (z0.abs() > 1).double().mean()
print(f"{outside:.0%} of the numbers of real latents lie outside [-1, 1]; the largest is {z0.abs().max():.1f}")
start, drawn = pipe.noise(200, seed=3), {"as it is": pipe.sample(200, steps=20, noise=pipe.noise(200, seed=3))}
denoiser = clipped(pipe.denoiser, cosine)
*_, end = samplers.sample(
    denoiser, start.to(pipe.device), samplers.time_grid(20), samplers.ddim, schedule=cosine, generator=generator
)
drawn["clipped"] = pipe.to_images(end.x)
for name, pictures in drawn.items():
    print(f"{name:>8}: cFID {distance(pictures):.1f}")
grids.show_rows({name: pictures[:12] for name, pictures in drawn.items()})

# %% [markdown]
# Nearly a third of what a latent has to say was cut off. The library knows from the pipeline whether it has an
# autoencoder, and clips only where it has none.
#
# ## 12. What a digit costs
#
# Count the arithmetic. A FLOP is one addition or one multiplication; PyTorch can count them while the network runs.


# %%
# NBVAL_CHECK_OUTPUT
def gigaflops(function, *arguments):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops() / 1e9


t = torch.ones(1)
ldm_net, ddpm_net, decoder = (copy.deepcopy(each).cpu() for each in (pipe.network, ddpm.network, vae.network.decoder))
of_ldm, of_ddpm = (
    gigaflops(ldm_net, torch.zeros(1, *pipe.shape), t),
    gigaflops(ddpm_net, torch.zeros(1, *ddpm.shape), t),
)
of_decoder = gigaflops(decoder, torch.zeros(1, *pipe.shape))
for name, network, flops in (("ddpm", ddpm_net, of_ddpm), ("ldm", ldm_net, of_ldm), ("decoder", decoder, of_decoder)):
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{name:>8}: {parameters:9,} parameters, {1000 * flops:6.1f} MFLOP a call and picture")
for steps in (1, 10, 50, 1000):
    print(f"{steps:5} steps: pixels cost {steps * of_ddpm / (steps * of_ldm + of_decoder):4.1f} times the arithmetic")

# %%
table = {}
for steps in (10, 50):
    table[f"pixels, {steps} steps"] = {"ddpm": 64 * steps * of_ddpm}
    table[f"latents, {steps} steps"] = {"ldm": 64 * steps * of_ldm, "vae": 64 * of_decoder}
costs.plot_costs(table, "GFLOP for 64 digits")

# %% [markdown]
# The decoder is called once, so its share shrinks with the number of steps. The latent network is the one with more
# parameters, and still the cheaper one: each is used at 16 positions at most, not at up to 256. FLOPs are not seconds,
# though. Small layers leave a processor waiting, so use the clock as well.

# %%
seconds = {}
for name, model in (("ddpm", ddpm), ("ldm", pipe)):
    begun = time.perf_counter()
    model.sample(64, steps=50, seed=0)
    seconds[name] = time.perf_counter() - begun
    print(f"{name:>5}: 64 digits in {seconds[name]:.2f} s")
begun = time.perf_counter()
paint(pipe.noise(64))
print(f"of which the decoder: {time.perf_counter() - begun:.2f} s")
print(f"latents are {seconds['ddpm'] / seconds['ldm']:.1f} times as fast")

# %% [markdown]
# ## 13. The floor of the autoencoder
#
# What comes out has passed through the decoder. What the autoencoder cannot say, no diffusion can make it say: even a
# perfect model of the latents would draw *reconstructions*, not pictures. So measure reconstructions of real training
# pictures in the same way as samples, those of the very draws whose own distance is the floor. The cards hold it.

# %%
lost = weights.read_card("vae")["reconstruction"]
points = {"ddpm": {}, "ldm": {}}
for name, best in points.items():
    for row in figures(weights.read_card(name)):
        if row["num_samples"] == lost["num_samples"]:
            best[row["steps"]] = min(row["cfid"] - row["floor"], best.get(row["steps"], math.inf))
            eta = f", eta = {row['eta']:g}" if row["sampler"] == "ddim" else ""
            print(f"{name}, {row['sampler']}{eta}, {row['steps']} steps: cFID {row['cfid']:.3f}, R {row['ratio']:.2f}")
print(f"reconstructions: cFID {lost['cfid']:.3f}, R {lost['ratio']:.2f}")
print(f"real digits:     cFID {lost['floor']:.3f} (the floor of {lost['num_samples']:,} pictures)")
points = {name: sorted(best.items()) for name, best in points.items()}
points["vae"] = [(steps, lost["cfid"] - lost["floor"]) for steps in (points["ldm"][0][0], points["ldm"][-1][0])]
plots.plot_quality(points, ylabel="cFID above the floor")

# %% [markdown]
# For each number of steps the figure takes the best of the samplers, with and without fresh noise. Up to the
# line of the VAE reaches what the autoencoder loses. From there up to the latent model's lies what the diffusion has
# yet to learn, and only this part shrinks if it is trained longer. To lower the line itself one has to go back to
# chapter 3: more channels, or a better decoder. A larger latent is harder to diffuse again. All design of latent models
# is a bargain between the two.
#
# ## 14. Between two noises
#
# With $\eta = 0$ the noise decides on the digit, as in chapter 2, and `slerp` walks from one noise to the next. The
# noise has 32 numbers now. Every frame is a digit painted whole; none is a blend of two.

# %%
corners = pipe.noise(24, seed=12).unflatten(0, (4, 6))  # (4, 6, 2, 4, 4)
stops = [slerp(corners[n], corners[(n + 1) % 4], step / 10) for n in range(4) for step in range(10)]
ways = pipe.sample(40 * 6, steps=20, noise=torch.cat(stops)).unflatten(0, (40, 6))
film = torch.stack([grids.grid(pictures, columns=6) for pictures in ways])
animation.animate(
    film, milliseconds=120, alt="Six digits that turn into others and back, by slerp between latent noises"
)

# %% [markdown]
# ## The scoreboard

# %%
for row in figures(card):
    if row["num_samples"] == 10_000:
        print(f"LDM, {row['sampler'].upper():<5} | {row['steps']:4} evaluations | {sentence(row)}")

# %% [markdown]
# (DPM++ is a sampler of chapter 7: it asks no oftener than DDIM, and remembers the answer before.)

# %% [markdown]
# ## What differs from the paper
#
# - **Autoencoder.** Theirs is trained with a perceptual loss and an adversarial one, which keep textures sharp. Ours
#   has the squared error of chapter 3. Both press the latent towards a normal distribution only lightly; the paper
#   also tries quantised latents.
# - **Compression.** Each side shrinks by a factor $f$. They try 1 to 32 and find 4 to 16 best. Ours is 8.
#   Stable Diffusion's 512 x 512 x 3 pixels become 64 x 64 x 4: 48 numbers into one. Ours: 32 into one.
# - **Scale.** They divide by one standard deviation, measured on the first batch. Stable Diffusion keeps it
#   as the famous constant 0.18215. We shift and scale each channel.
# - **Diffusion.** They predict the noise on a linear schedule; we predict $v$ on the cosine.
# - **Conditions.** Their model listens to text, classes and layouts, by cross-attention. That is the subject of
#   chapters 5 and 6.
#
# ## Pitfalls
#
# - **Unscaled latents**, or latents scaled twice, or decoded without undoing it (section 9).
# - **Another VAE.** Latents have no meaning of their own. A VAE trained from another seed says other things with
#   the same numbers, and reads these as scrawl. `load` compares hashes and refuses.
# - **Clipping** (section 11), left in from pixels.
# - **Encoding with one fixed draw** instead of the moments: each picture is tied for good to one sample of noise.
# - **Judging by the latent loss.** It cannot be compared across autoencoders, or across scales. Decode, and measure.
# - **Blaming the diffusion for the decoder.** If reconstructions are blurred, samples will be.
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. Mend the scale with the schedule.** Latents are stuck at $s = 0.1$. By (4) a schedule can put it right, so that
# its SNR for these latents is the cosine's for unit ones. Write it for any $s$, with $\alpha^2 + \sigma^2 = 1$.

# %%
# NBVAL_CHECK_OUTPUT
from diffusion_book.exercises import check


def for_small(t, s):
    """Times, and the standard deviation of the data -> alpha and sigma, each of the shape of t."""
    ...  # your code here


check(for_small)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def for_small(t, s):
#     alpha, sigma = cosine(t)
#     c = (alpha**2 + (s * sigma) ** 2).sqrt()
#     return alpha / c, s * sigma / c
# ```
#
# Noise and data are back in proportion. But the network's input is still small, with a variance far below 1 at
# small $t$, so it also needs a factor there. Dividing the latents is simpler. For large pictures, whose redundancy
# (section 5) makes the same noise do less, shifted schedules are what everyone uses.
#
# </details>
#
# **2. One step.** Sample with both models in 5, 2 and 1 steps. In a single step the best guess is an average. Why is
# the average of the latent model no grey cloud?
#
# <details><summary>Solution</summary>
#
# ```python
# for model in (ddpm, pipe):
#     display(grids.show_rows({f"{n} steps": model.sample(8, steps=n, seed=2) for n in (5, 2, 1)}))
# ```
#
# At $t = 1$ both denoisers say $\mathbb E[\text{data}]$. In pixels that is the mean of all pictures. In latents it is
# the mean of all latents, and the decoder, which can only paint strokes, makes one clear figure of it: a picture of the
# average is not the average of pictures. It is the first guess in each strip of section 10.
#
# </details>
#
# **3. At how few steps does it stop to pay?** Use the FLOPs of section 12. How many steps of the pixel model cost as
# much as 50 of the latent one, decoder and all? And as much as a single one?


# %%
# NBVAL_CHECK_OUTPUT
def same_cost(steps, of_ldm, of_decoder, of_ddpm):
    """Steps of the latent model, FLOPs of a call of each network -> steps of the pixel model, a number."""
    ...  # your code here


check(same_cost)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def same_cost(steps, of_ldm, of_decoder, of_ddpm):
#     return (steps * of_ldm + of_decoder) / of_ddpm
# ```
#
# A single step in latents is paid for by the decoder alone, which costs `of_decoder / of_ddpm` calls of the pixel
# network. With our small pictures the gain is modest. It grows with their size: a network's arithmetic grows with the
# number of positions, and a factor of 8 a side leaves one in 64.
#
# </details>
#
# **4. Only the means.** How large are latents that are drawn by (2)? And how large are the means alone? Train in
# section 8 on latents without the draw: set the log-variances to -30. Is there a difference? When would there be?


# %%
# NBVAL_CHECK_OUTPUT
def latent_std(mean, log_variance):
    """Posteriors of many pictures, (N, C, h, w) -> the standard deviation of drawn latents a channel, (C,)."""
    ...  # your code here


check(latent_std)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def latent_std(mean, log_variance):
#     of_means = mean.var(dim=(0, 2, 3), correction=0)
#     return (of_means + log_variance.exp().mean(dim=(0, 2, 3))).sqrt()
# ```
#
# Variance of the means plus mean of the variances: the law of total variance. For the training of section 8:
#
# ```python
# sure = DiagonalGaussian(posterior.mean, torch.full_like(posterior.log_variance, -30.0))
# only_means = LatentDataset(latents.name, sure.moments, latents.labels)
# ```
#
# No difference to be seen: $s$ is a small part of 1 (section 4). A VAE with a heavy weight on the divergence has an $s$
# near 1 wherever a number carries little, and the distribution of its means alone is then much narrower
# than that of its latents: it has a variance of $1 - s^2$. A model of the means would be at the wrong scale.
#
# </details>
#
# ## Summary
#
# - A latent diffusion model is a diffusion model whose data come out of an encoder, by (1). Nothing else is new.
# - The decoder knows what strokes look like. What is left to learn is which go together, and that goes fast.
# - A schedule expects data of unit size. A factor $s$ multiplies the SNR by $s^2$ (3), which is a shift in time (4).
# - Keep moments, draw at each step (2), do not clip, decode once.
# - Latents are cheap, and bounded: what the autoencoder loses is the floor under everything that follows.
#
# ## References
#
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752.
# - Vahdat, Kreis & Kautz (2021), *Score-based Generative Modeling in Latent Space*. NeurIPS. arXiv:2106.05931.
# - Kingma & Welling (2013), *Auto-Encoding Variational Bayes*. arXiv:1312.6114.
# - Hoogeboom, Heek & Salimans (2023), *simple diffusion: End-to-end diffusion for high resolution images*. ICML.
#   arXiv:2301.11093. (Noise and redundancy.)
# - Chen (2023), *On the Importance of Noise Scheduling for Diffusion Models*. arXiv:2301.10972. (Scaling the input.)
