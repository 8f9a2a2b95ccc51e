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
# # Latent diffusion: the same method in thirty-two dimensions
#
# *Runs in about a minute on two CPU cores, without a network connection. Needs chapters 1 to 3.*
#
# The network of chapter 1 works on 1,024 pixels, at every step of every sample. Most of them are black, or can be
# predicted from their neighbours. The autoencoder of chapter 3 describes a digit in 32 dimensions, and restores the
# picture from them. What it cannot do is to sample new latents. A diffusion model can: let it generate the latents, and
# let the decoder make the pictures.
#
# You will
#
# - see on a toy why a coordinate is easier to diffuse than the picture it stands for;
# - look at a data set, at noise and at half-finished samples in latent space;
# - find out what a noise schedule assumes about its data, and break the assumption;
# - compare training in pixels and in latents, second by second;
# - count what a digit costs, and separate the error of the autoencoder from that of the diffusion.
#
# The source is Rombach, Blattmann, Lorenz, Esser & Ommer, *High-Resolution Image Synthesis with Latent Diffusion
# Models* (2022), the paper behind Stable Diffusion.
#
# *Note.* The pictures are MNIST's. If MNIST is not on your machine and cannot be downloaded, the chapter takes the
# 1,797 small digits of scikit-learn. All cells run, but the shipped weights have learned MNIST, and are worse on other
# pictures than the text says.

# %% [markdown]
# ## Set-up, and what we are after

# %%
import copy
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
from diffusion_book.evaluation import measures, race
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.interpolation import slerp
from diffusion_book.models import weights
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.schedules import add_noise, cosine
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.viz import animation, costs, diagrams, grids, in_page, plots, strips, style
from diffusion_book.viz.figures import show

style.use_style()
ddpm, pipe = diffusion_book.load("ddpm"), diffusion_book.load("ldm")
vae = pipe.autoencoder
samples = pipe.sample(24, steps=50, seed=0)
show(grids.show_grid(samples, columns=12), "4.1", "Samples of this chapter's model, not a selection.")

# %%
show(
    diagrams.latent_diffusion(),
    "4.2",
    "Latent diffusion. The autoencoder is trained first, and stays as it is. The U-Net sees latents only.",
)

# %% [markdown]
# ## 1. The idea
#
# Let $\mathcal E$ be the encoder and $\mathcal D$ the decoder of chapter 3, both trained. Then (figures 4.1 and 4.2)
#
# $$z_0 = \mathcal E(x_0), \qquad \text{diffuse } z_0 \text{ as if it were data}, \qquad x = \mathcal D(\hat z_0),
# \tag{1}$$
#
# where $\hat z_0$ is a latent that the diffusion model has sampled. That is the whole method. Forward process,
# objective, denoiser and samplers of chapters 1 and 2 take arrays of any shape; nothing in them asks for pixels. So a
# latent model of the library has the same class of network, the same objective and the same samplers. Only its
# `autoencoder` is not `None`.

# %% tags=["nbval-check-output"]
print(f"a picture has {math.prod(ddpm.shape):,} dimensions, a latent {math.prod(pipe.shape)}: {pipe.shape}")
print("the same network class:", type(pipe.network) is type(ddpm.network))
print("the same schedule, target and times:", pipe.recipe.diffusion == ddpm.recipe.diffusion)

# %% [markdown]
# ## 2. A toy: pictures on a curve
#
# Why should fewer dimensions be easier? Take "pictures" of one row of 32 pixels. Each shows one bright spot, and they
# differ only in its position. Such pictures lie on a *curve* in 32 dimensions, and one coordinate $z$ says where on the
# curve. Here the autoencoder needs no training: the decoder draws a spot at $z$, the encoder takes the centre of
# gravity of the light. The positions form two clusters, left and right of the middle.


# %% tags=["nbval-check-output"]
def spot(z):
    """The decoder: a coordinate to a row of pixels, (B, 1) -> (B, 32)."""
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
# Now two diffusion models, one of the 32 pixels and one of the coordinate. They get the same small network, the same
# training and the same sampler.


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
    network, fresh = Small(x0.shape[1]), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
        batch = x0[torch.randint(len(x0), (256,), generator=fresh)]
        loss = objective.diffusion_loss(network, batch, schedule=cosine, target=targets.v, generator=fresh)
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
off = {name: (x - spot(find(x))).square().mean().sqrt() for name, x in drawn.items()}
for name, x in drawn.items():
    shift = 5 * (find(x)[:, 0].sort().values - z[2000:4000, 0].sort().values).abs().mean()
    print(f"{name:>15}: off the curve by {off[name]:.2f}, positions wrong by {shift:.2f} pixels")
show(
    grids.show_rows(
        {name: x[:96].T.reshape(1, 1, 32, 96) for name, x in drawn.items()}, "One column, one picture", 3.0
    ),
    "4.3",
    "Data, and samples of the two models. Each column is one picture of 32 pixels, with its spot.",
)

# %% tags=["remove-cell"]
assert off["diffused pixels"] > 20 * off["diffused z"]

# %% [markdown]
# The pixel model has to learn two things, what a spot looks like and where spots are. With the same network and
# training it does not get there: its spots are smeared, doubled or grainy (figure 4.3). The other model learns only
# where. Whatever it gets wrong, the decoder draws a perfect spot. This is the division of labour in latent diffusion:
# **the decoder knows what pictures look like up close; the diffusion model decides what is in them.** (Rombach et al.
# call the two parts *perceptual* and *semantic compression*. The distance from the curve compares each picture with a
# spot at its own centre; the error of position compares the sorted positions with the sorted positions of other data.)
#
# ## 3. The data set, encoded
#
# The encoder does not change any more, so each picture is encoded once (to means and log-variances, the *moments* of
# its latent), and not in every step. For this page 6,000 pictures are enough. (`diffusion-book train ldm` encodes all
# of them, and keeps the result on disk.)

# %%
train, test = data.load("auto"), data.load("auto", "test")
few = data.Dataset(train.name, train.images[:6000], train.labels[:6000])
latents = encode_dataset(vae, few)
posterior = DiagonalGaussian.from_moments(latents.moments)
print(f"{len(latents):,} pictures of {few.name}: moments {tuple(latents.moments.shape)}")
mean, std = latent_statistics(posterior)
print("mean and standard deviation of each channel:", mean.numpy().round(2), std.numpy().round(2))
print("before the shift and the scale of section 6:", end=" ")
print(vae.network.latent_mean.cpu().numpy().round(2), vae.network.latent_std.cpu().numpy().round(2))


# %%
def tiles(z, channel=0):
    """One channel of latents as pictures, black at -3 and white at 3: (B, 2, 4, 4) -> (B, 1, 28, 28)."""
    return (z[:, [channel]].cpu() / 3).repeat_interleave(7, dim=2).repeat_interleave(7, dim=3)


x0, labels = test.batch(torch.arange(300))
z0 = vae.encode(x0).cpu()
rows = {"picture": data.crop(x0[:12]), "channel 0": tiles(z0[:12]), "channel 1": tiles(z0[:12], 1)}
show(
    grids.show_rows(rows | {"decoded": pipe.to_images(z0[:12])}),
    "4.4",
    "Test pictures, the two channels of their latents, and the decoded latents. Each square stands for 8 × 8 pixels of the padded picture.",
)

# %% [markdown]
# The digit cannot be seen in the channels of figure 4.4: the two entries at a position, one in each channel, together
# say which piece of a stroke passes through its area. But each entry is still at the position of its area, as chapter 3
# has shown by moving one of them. That is why a convolutional network suits latents as it suits pictures.
#
# ## 4. A latent is sampled, not stored
#
# The encoder returns a Gaussian, with a mean $\mu$ and a standard deviation $\sigma$ for each of the 32 dimensions.
# These are kept for training, and a new latent is sampled every time its picture comes up:
#
# $$z_0 = \mu(x_0) + \sigma(x_0) \odot \xi, \qquad \xi \sim \mathcal N(0, I). \tag{2}$$
#
# ($\odot$ multiplies entry by entry.) `latents` therefore holds moments: four channels, two of means and two of log-variances.

# %%
moments, _ = latents.batch(torch.arange(300))
q = DiagonalGaussian.from_moments(moments)
first, second = (q.sample(torch.randn(q.mean.shape, generator=generator)) for _ in range(2))
print(f"two samples of a latent differ by {(first - second).square().mean().sqrt():.4f} (root mean square)")
print(f"expected from sigma alone:        {(2 * q.std.square().mean()).sqrt():.4f}")  # variances of two samples add
print(f"latents of two pictures:          {(first - first.roll(1, 0)).square().mean().sqrt():.2f}")

# %% [markdown]
# The samples are close together: with chapter 3's small weight on the divergence the encoder is nearly certain, and the
# mean alone would nearly be enough. Sampling costs nothing, though, and the decoder was trained on samples. With a
# larger weight it would matter (exercise 4).
#
# ## 5. What noise does to a latent
#
# Add noise as always, $z_t = \alpha_t z_0 + \sigma_t \epsilon$. Figure 4.5 compares it with noise of the same strength
# on pixels.

# %%
times = torch.linspace(0, 1, 11)
chosen = [3, 2, 1]
in_pixels, in_latents = torch.randn(3, 1, 32, 32, generator=generator), torch.randn(3, 2, 4, 4, generator=generator)
pixels = torch.stack([data.crop(add_noise(cosine, x0[chosen], in_pixels, t)) for t in times], dim=1)
noisy = [add_noise(cosine, z0[chosen], in_latents, t) for t in times]
shown = [pixels, torch.stack([tiles(z) for z in noisy], 1), torch.stack([pipe.to_images(z) for z in noisy], 1)]
show(
    strips.show_strip(times.tolist(), torch.stack(shown, dim=1).flatten(0, 1)),
    "4.5",
    "Three digits as $t$ grows. In each group of rows: noisy pixels, the first channel of the noisy latent, and the noisy "
    "latent decoded.",
)

# %% [markdown]
# Noise on pixels is grain: the digit is still there, behind it. A noisy latent decodes without grain. At first the
# strokes bend, join and part; the picture is of a digit, but not quite this one. From the middle of the way they break
# into fragments and grey smudges, because such latents are no longer like any that the decoder has seen in training.
#
# The digit is also lost sooner. We ask both trained denoisers, at each time, for their prediction $\hat x_0$, and let
# the book's classifier read it (figure 4.6).

# %%
times_asked = torch.linspace(0.1, 1, 10)
readable = {"ddpm": [], "ldm": []}
for t in times_asked:
    for name, model, clean in (("ddpm", ddpm, x0[:150]), ("ldm", pipe, z0[:150])):
        eps = torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            prediction = model.denoiser(add_noise(cosine, clean, eps, t).to(model.device), t).x0
        right = logits(model.to_images(prediction)).argmax(dim=1) == labels[:150]
        readable[name].append(right.double().mean().item())
show(
    plots.plot_curves(times_asked, readable, "time t", "fraction still read", ylim=(0, 1.02)),
    "4.6",
    "The fraction of test digits that a classifier still reads in the prediction of a denoiser, from noisy pixels (ddpm) "
    "and from noisy latents (ldm).",
)

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert sum(readable["ldm"]) < sum(readable["ddpm"]) - 0.5

# %% [markdown]
# The same $\alpha$ and $\sigma$ leave less of a latent than of a picture. A picture is redundant: a stroke covers about
# a hundred pixels, each with its own independent noise, and a denoiser can average over them. A latent says everything
# once. (Part of the gap between the curves comes from the classifier. It can still read a blurred mean of pictures, but
# often not a decoded mean of latents.) So the schedule alone does not say how noisy a state is. The data matter too:
# their redundancy, and their size, that is, their standard deviation.
#
# ## 6. Why latents are scaled
#
# Pixels lie in $[-1, 1]$ by convention. The size of latents is whatever the encoder has learned. Suppose that we
# diffuse $r z_0$, where $z_0$ has standard deviation 1. (From here on, $x_t$ is the noisy state of a latent too.) Then
# the variances of latent and noise have the ratio
#
# $$\mathrm{SNR}_r(t) = \frac{\operatorname{Var}[\alpha_t\, r\, z_0]}{\operatorname{Var}[\sigma_t\, \epsilon]}
# = r^2\,\frac{\alpha_t^2}{\sigma_t^2} = r^2\,\mathrm{SNR}(t). \tag{3}$$
#
# A factor on the data is a shift in time. Divide $x_t = \alpha_t r z_0 + \sigma_t \epsilon$ by $c = \sqrt{r^2
# \alpha_t^2 + \sigma_t^2}$: the new factors $r\alpha_t/c$ and $\sigma_t/c$ again have squares that sum to 1. So the
# state is, up to its size, that of *unit* data at another time $t'$:
#
# $$\frac{x_t}{c} = \alpha_{t'} z_0 + \sigma_{t'} \epsilon, \qquad
# \frac{\sigma_{t'}}{\alpha_{t'}} = \frac{1}{r} \cdot \frac{\sigma_t}{\alpha_t}. \tag{4}$$
#
# We check (3) without using $\alpha$ or $\sigma$: a correlation $\varrho$ between $r z_0$ and $x_t$ means an SNR of
# $\varrho^2 / (1 - \varrho^2)$, since $\varrho^2$ is the part of the variance of $x_t$ that comes from $r z_0$. And we
# count the useful ones among 50 steps: those where neither picture nor noise has more than 20 times the variance of the
# other.

# %% tags=["nbval-check-output"]
half = torch.tensor(0.5, dtype=torch.float64)
grid, fine = samplers.time_grid(50)[:-1], torch.linspace(0.0001, 1, 100_001, dtype=torch.float64)
ratio = cosine(fine)[1] / cosine(fine)[0]  # grows with time
z, eps = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
for r in (1 / 30, 1.0, 30.0):
    correlation = torch.corrcoef(torch.stack([r * z, add_noise(cosine, r * z, eps, half)]))[0, 1]
    measured, expected = correlation**2 / (1 - correlation**2), r**2 * schedules.signal_to_noise(cosine, half)
    snr = r**2 * schedules.signal_to_noise(cosine, grid)
    useful = ((snr > 1 / 20) & (snr < 20)).sum()
    shifted = fine[torch.searchsorted(ratio, cosine(half)[1] / cosine(half)[0] / r)]
    print(f"scale {r:5.2f}: SNR at t = 0.5 measured {measured:.2g}, by (3) {expected:.2g}; ", end="")
    print(f"like t' = {shifted:.2f} of unit data; useful steps: {useful} of 50")

# %% [markdown]
# Small latents drown at once: nearly all times show pure noise, and the digit has to be decided in the last few steps.
# Large ones hardly get noisy: everything is decided in the first few steps. The cosine schedule spreads its steps well
# for data of about unit size.
#
# What does that do to samples? Equation (4) lets us see it without any training. It turns the shipped denoiser into one
# for latents $r$ times as large, exactly as good as before: divide the state by $c$, ask at $t'$, and multiply the
# answer by $r$. In figure 4.7 all rows use the same network. Only the steps fall on other times.


# %%
def rescaled(r):
    """The shipped denoiser, for latents r times as large: equation (4)."""

    def denoise(x_t, t):
        alpha, sigma = cosine(t)
        c = (r**2 * alpha**2 + sigma**2).sqrt()
        position = torch.searchsorted(ratio, sigma / alpha / r).clamp(max=len(fine) - 1)
        x0 = r * pipe.denoiser(x_t / c, fine[position]).x0
        return targets.Prediction(x0, (x_t - alpha * x0) / sigma)

    return denoise


def distance(pictures):
    """cFID of a few pictures: rough, to be compared only with that of equally many pictures."""
    return frechet_distance(features(pictures), reference_features()["test"])


start, times, rows, distances = pipe.noise(200, seed=7).to(pipe.device), samplers.time_grid(20), {}, {}
for r in (1.0, 1 / 30, 30.0):
    *_, end = samplers.sample(rescaled(r), start, times, samplers.ddim, schedule=cosine, generator=generator)
    pictures = pipe.to_images(end.x / r)
    distances[r] = distance(pictures)
    print(f"scale {r:5.2f}: cFID {distances[r]:.1f}")
    rows[f"scale {r:.2g}"] = pictures[:12]
show(
    grids.show_rows(rows),
    "4.7",
    "The same denoiser and the same 20 steps, for latents of three sizes. If they are too small or too large, most steps are wasted.",
)

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert min(distances[1 / 30], distances[30.0]) > 3 * distances[1.0]

# %% [markdown]
# At the wrong scale most samples are smudged, or stop halfway between two digits, although the denoiser knows as much
# as before. (Chen 2023 changes the noise of a schedule in just this way: by a factor on the data.) Section 8 shows what
# happens to a network that has to *learn* at the wrong scale.
#
# So the library measures the mean and the standard deviation of each channel on the training set, once, after the VAE
# is trained. They are stored with its weights, and `encode` and `decode` apply them.
#
# ## 7. Training and sampling
#
# The loss is that of chapter 1, for latents that are sampled by (2). Sampling is the DDIM of chapter 2 in latent space,
# followed by one call of the decoder.


# %% tags=["nbval-check-output"]
def my_loss(network, moments, generator):
    mean, log_variance = moments.chunk(2, dim=1)  # (B, 4, 4, 4) -> twice (B, 2, 4, 4)
    z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)
    t = objective.on_grid(objective.uniform(len(z), generator), 1000)
    eps = torch.randn(z.shape, generator=generator)
    alpha, sigma = (value.float().reshape(-1, 1, 1, 1) for value in cosine(t))
    error = network(alpha * z + sigma * eps, t.float()) - (alpha * eps - sigma * z)
    return error.square().mean(dim=(1, 2, 3))  # (B, 2, 4, 4) -> (B,)


@torch.no_grad()
def my_sample(z, steps):
    for t, s in itertools.pairwise(samplers.time_grid(steps)):
        z_0, eps = pipe.denoiser(z, t)
        alpha, sigma = cosine(s)
        z = alpha * z_0 + sigma * eps
    return data.crop(vae.decode(z)).clamp(-1, 1).cpu()


network, batch = copy.deepcopy(pipe.network).cpu(), latents.batch(torch.arange(64))
with torch.no_grad():
    mine = my_loss(network, batch[0], torch.Generator().manual_seed(3))
    same = torch.Generator().manual_seed(3)
    theirs = loss_of_latent_diffusion(pipe.recipe.diffusion)(network, *batch, same)
assert_close(mine, theirs)
print("the loss of", len(mine), "latents is the library's")

noise = pipe.noise(8, seed=2)
assert_close(my_sample(noise.to(pipe.device), 20), pipe.sample(8, steps=20, noise=noise), rtol=0, atol=1e-3)
print("eight samples, and pipe.sample draws the same:", tuple(noise.shape), "->", (8, 1, 28, 28))

# %% [markdown]
# ## 8. A race, in latents and in pixels
#
# Which learns faster? Three networks were trained from scratch on the same 20,000 pictures, with batches of 32 and the
# same learning rate: one on latents, one on latents of a thirtieth of the right size, and one on pixels. In little more
# than a hundred steps, each saw about 4,000 of the pictures. The clock counts the seconds of one processor core. It
# stands still while samples are measured. (The results are stored; `python -m diffusion_book.evaluation.race` makes
# them again.) Figure 4.8 also shows the shipped models, as single points. Their training took much longer, on other
# processors and with other batch sizes, so their place on the time axis is rough.

# %%
results = race.stored()
seconds, count = results["seconds"].tolist(), results["num_samples"].item()
for name in race.RUNS:
    *_, steps = results[f"{name}_steps"].tolist()
    found = ", ".join(f"{cfid:.1f}" for cfid in results[f"{name}_cfid"].tolist())
    print(f"{name:>11}: {steps:5} steps in {seconds[-1]:.0f} s; cFID {found}")
for name in ("latents", "pixels"):
    took, cfid = results[f"{name}_shipped_seconds"].item(), results[f"{name}_shipped_cfid"].item()
    print(f"{name:>11}, shipped: cFID {cfid:.1f} after {took / 60:.0f} minutes")
print(f"the autoencoder: {results['vae_seconds'].item() / 60:.0f} minutes before")

# %%
curves = {
    "pixels": (seconds, results["pixels_cfid"].tolist()),
    "latents": (seconds, results["latents_cfid"].tolist()),
    "latents, wrong scale": (seconds, results["wrong_scale_cfid"].tolist()),
}
shipped = {
    name: (results[f"{name}_shipped_seconds"].item(), results[f"{name}_shipped_cfid"].item())
    for name in ("pixels", "latents")
}
shipped["latents"] = (shipped["latents"][0] + results["vae_seconds"].item(), shipped["latents"][1])
show(
    plots.plot_race(curves, f"cFID of {count} samples", shipped),
    "4.8",
    "Quality against training time: three networks in a race. Diamonds: the shipped models. The time of the latent "
    "one includes its autoencoder.",
)

# %%
rows = {
    "latents": results["latents_samples"][-1],
    "wrong scale": results["wrong_scale_samples"][-1],
    "pixels": results["pixels_samples"][-1],
}
show(grids.show_rows(rows), "4.9", f"Samples at the end of the race, after {seconds[-1]:.0f} seconds.")

# %% tags=["remove-cell"]
assert (results["latents_cfid"] < results["pixels_cfid"]).all()
assert results["latents_cfid"][0] < results["pixels_cfid"][-1]
assert (results["wrong_scale_cfid"] > 1.4 * results["latents_cfid"]).all()
assert results["vae_seconds"] > 10 * seconds[-1]
both = results["vae_seconds"] + results["latents_shipped_seconds"]
assert 0.9 < both / results["pixels_shipped_seconds"] < 1.1
assert results["latents_shipped_cfid"] < results["pixels_shipped_cfid"]

# %% [markdown]
# The latent model is ahead at every measurement. A good part of that is a head start. The decoder makes strokes of
# anything: decoded noise alone has a cFID near 60 (chapter 3, section 14), less than the pixel model's at the end of
# the race. From there the latent model goes on down. But is the race fair? The latent model stands on an autoencoder
# that was trained before. If the time of the autoencoder is counted, the pixel model has already trained for that time
# when the latent model begins. The latent network also has more than twice as many parameters (it works on at most 16
# positions, so a step takes about the same time), and each curve is a single training. The race compares two whole
# systems, not latents alone. Even so, two things speak for latents. With the autoencoder the shipped latent model took
# about as long as the shipped pixel model, as far as minutes of different processors compare, and it ended up better.
# And the autoencoder is paid for once: all latent models of the next chapters use the same one.
#
# The third run has the same network and the same latents, divided by 30. It is behind at every measurement, and some of
# its samples are blots (second row of figure 4.9). Its sampling wastes steps too, as in figure 4.7, so the curve shows
# both faults together. Nothing warned us: the code ran without an error. A wrong scale is among the most common faults
# of latent models, and the easiest to find: print the standard deviation of what the network is fed.
#
# ## 9. The shipped weights
#
# They were trained on all 60,000 latents. Figure 4.10 shows three samples on their way, and figure 4.11 eight of them
# as a film.

# %%
card = weights.read_card("ldm")
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on the latents of {card['data_set']}")
states = list(pipe.states(range(3), steps=50, seed=1))
picked = torch.linspace(1, 50, 11).round().long()
ways = torch.stack([tiles(states[i].x) for i in picked], dim=1)  # (3, 11, 1, 28, 28)
times, seen = strips.denoising_strip(states[1:], pipe, frames=11)
_, predicted = strips.denoising_strip(states, pipe, frames=11, what="x0")
show(
    strips.show_strip(times, torch.stack([ways, seen, predicted], dim=1).flatten(0, 1)),
    "4.10",
    "Three samples. In each group of rows: the first channel of the state, the state decoded, and the prediction of "
    "$z_0$, decoded. The times are those of the states. Each prediction was made one step earlier, on the way to the state above it: the first at $t = 1$.",
)

# %% [markdown]
# In pixels a digit comes out of grain. Here fragments join into strokes, and strokes into a digit. While the state
# still decodes to a tangle, the prediction is a digit already. The very first prediction is nearly the mean of all
# latents, which decodes to the same odd shape for all three.

# %%
states = list(pipe.states(range(8), steps=50, seed=4))
film = torch.stack([grids.grid(pipe.to_images(state.x), columns=4) for state in states])
show(
    animation.animate(film, alt="Eight decoded states of latents, which turn from fragments into digits"),
    "4.11",
    "Eight samples, decoded at every step.",
)

# %% [markdown]
# ## 10. Latents are not clipped
#
# Pixels have a limit: nothing is blacker than black. So the pixel pipeline clips $\hat x_0$ to $[-1, 1]$, and gains by
# it. Latents have standard deviation 1 and no limit. What happens if we clip them all the same?

# %%
outside = (z0.abs() > 1).double().mean()
print(f"{outside:.0%} of the entries of real latents lie outside [-1, 1]; the largest is {z0.abs().max():.1f}")
start, drawn = pipe.noise(200, seed=3), {"as it is": pipe.sample(200, steps=20, noise=pipe.noise(200, seed=3))}
denoiser = clipped(pipe.denoiser, cosine)
*_, end = samplers.sample(
    denoiser, start.to(pipe.device), samplers.time_grid(20), samplers.ddim, schedule=cosine, generator=generator
)
drawn["clipped"] = pipe.to_images(end.x)
distances = {name: distance(pictures) for name, pictures in drawn.items()}
for name in drawn:
    print(f"{name:>8}: cFID {distances[name]:.1f}")
show(
    grids.show_rows({name: pictures[:12] for name, pictures in drawn.items()}),
    "4.12",
    "The same starts, without and with clipping of the prediction. Clipped strokes are fainter, or broken off.",
)

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert distances["clipped"] > 1.2 * distances["as it is"]

# %% [markdown]
# A good part of what latents say lies outside, and is lost (figure 4.12). The library clips only where there is no
# autoencoder.
#
# ## 11. What a digit costs
#
# A FLOP is one addition or one multiplication. PyTorch counts those of convolutions and matrix products while a network
# runs.


# %% tags=["nbval-check-output"]
def gigaflops(function, *arguments):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops() / 1e9


t = torch.ones(1)
ldm_net, ddpm_net, decoder = (copy.deepcopy(each).cpu() for each in (pipe.network, ddpm.network, vae.network.decoder))
of_ldm = gigaflops(ldm_net, torch.zeros(1, *pipe.shape), t)
of_ddpm = gigaflops(ddpm_net, torch.zeros(1, *ddpm.shape), t)
of_decoder = gigaflops(decoder, torch.zeros(1, *pipe.shape))
for name, network, flops in (("ddpm", ddpm_net, of_ddpm), ("ldm", ldm_net, of_ldm), ("decoder", decoder, of_decoder)):
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{name:>8}: {parameters:9,} parameters, {1000 * flops:6.1f} MFLOP per call and picture")
for steps in (1, 10, 50, 1000):
    print(
        f"steps: {steps:4}; pixels cost {steps * of_ddpm / (steps * of_ldm + of_decoder):4.1f} times the arithmetic of latents"
    )

# %%
for name, model in (("ddpm", ddpm), ("ldm", pipe)):
    begun = time.perf_counter()
    model.sample(64, steps=50, seed=0)
    print(f"{name:>5}: 64 digits in {time.perf_counter() - begun:.2f} s")

# %% [markdown]
# The decoder is called once, so the more steps there are, the smaller is its part of the cost. The latent network has
# more parameters and is cheaper all the same, since its layers work on at most 16 positions. FLOPs are not seconds:
# small layers keep a processor waiting. So the clock is printed as well.
#
# ## 12. The error of the autoencoder
#
# Every sample has passed through the decoder. What the autoencoder cannot represent, no diffusion model can add: even a
# perfect model of the latents would generate *reconstructions*, not pictures. So the cards hold the cFID of
# reconstructions of real training pictures, measured in the same way as for samples. With this number we can split the
# cFID of a latent model: the distance of real pictures (the floor), what the autoencoder adds, and the rest, which is
# due to the diffusion (figure 4.13).

# %%
lost = weights.read_card("vae")["reconstruction"]
bars, parts = {}, {}
for name in ("ddpm", "ldm"):
    for row in figures(weights.read_card(name)):
        if row["num_samples"] == lost["num_samples"]:
            below = {"data": row["floor"]}
            if name == "ldm":
                below["vae"] = lost["cfid"] - lost["floor"]
            parts = below | {name: row["cfid"] - sum(below.values())}
            bars[f"{name}, {row['sampler']}, {row['steps']} steps"] = parts
            print(f"{name}, {row['sampler']}, {row['steps']} steps: cFID {row['cfid']:.3f}")
print(f"reconstructions: cFID {lost['cfid']:.3f}")
floor = measures.floor(lost["num_samples"])
print(f"real digits:     cFID {floor.mean:.3f} ± {floor.std:.3f} (the floor of {lost['num_samples']:,} pictures)")
show(
    costs.plot_costs(bars, f"cFID of {lost['num_samples']:,} samples"),
    "4.13",
    "What the distance from real digits is made of: the floor that real pictures have themselves (data), what the "
    "autoencoder adds (vae), and what the diffusion adds (ddpm, ldm).",
)

# %% tags=["remove-cell"]
assert abs(parts["vae"]) < min(0.25 * parts["ldm"], floor.std)

# %% [markdown]
# The autoencoder adds little here, less than the standard deviation of the floor from set to set; most of the distance
# comes from the diffusion, and only this part shrinks if the diffusion is trained longer. (A Fréchet distance is not
# exactly a sum of such parts, so read the figure as an estimate.) To reduce the part of the autoencoder, one needs more
# channels or a better decoder. But a larger latent is harder to diffuse. All design of latent models is a compromise
# between the two. cFID depends on the number of samples: compare only values for equally many samples, here ten
# thousand, and not with those of section 8.
#
# On the book's site you can test the autoencoder on a digit of your own: what a classifier takes your drawing for,
# what is left of it after encoding and decoding, and what `ldm` makes of its latent, noised to time $t$.

# %%
in_page.drawing_board(("classifier", "classify"), ("vae", "reconstruct"), ("ldm", "sdedit"))

# %% [markdown]
# ## 13. Between two noises
#
# With $\eta = 0$ the noise decides on the digit, as in chapter 2, and `slerp` walks from one noise to the next (figure
# 4.14).

# %%
corners = pipe.noise(24, seed=12).unflatten(0, (4, 6))  # (4, 6, 2, 4, 4)
stops = [slerp(corners[n], corners[(n + 1) % 4], step / 10) for n in range(4) for step in range(10)]
ways = pipe.sample(40 * 6, steps=20, noise=torch.cat(stops)).unflatten(0, (40, 6))
film = torch.stack([grids.grid(pictures, columns=6) for pictures in ways])
show(
    animation.animate(
        film, milliseconds=120, alt="Six digits that turn into others and back, by slerp between latent noises"
    ),
    "4.14",
    "Six walks through the space of noises. Strokes move and bend from digit to digit, and there is no cross-fade.",
)

# %% [markdown]
# ## The scoreboard

# %%
for row in figures(card):
    if row["num_samples"] == 10_000:
        print(f"LDM, {row['sampler'].upper():<5} | {row['steps']:4} evaluations | {sentence(row)}")

# %% [markdown]
# <details><summary>What differs from the paper</summary>
#
# - **Autoencoder.** Theirs is trained with a perceptual loss and an adversarial one, which keep textures sharp. Ours
#   has the squared error of chapter 3. Both have a small weight on the divergence; the paper also tries quantised
#   latents.
# - **Compression.** Each side shrinks by a factor $f$. They try 1 to 32 and find 4 to 16 best. Ours is 8. Stable
#   Diffusion's 512 × 512 × 3 pixels become 64 × 64 × 4, which divides the dimension by 48. Ours is divided by 32. Later
#   models chose otherwise: Stable Diffusion 3 (Esser et al. 2024) has 16 channels, and the autoencoder of Chen et al.
#   (2024) shrinks each side by 32 and more.
# - **Scale.** They divide by one standard deviation, measured on the first batch. Stable Diffusion keeps its reciprocal
#   as a constant: latents, of standard deviation about 5.5, are multiplied by 0.18215. We shift and scale each channel.
# - **Diffusion.** They predict the noise, on a schedule that their code calls linear: $\sqrt\beta$, and not $\beta$,
#   grows linearly. We predict $v$ on the cosine.
# - **Two stages.** Rombach et al. train the autoencoder first, as we do: so it serves many models. Vahdat et al. (2021)
#   train it together with the diffusion, so that the diffusion also shapes the latents.
#
# </details>
#
# ## Pitfalls
#
# - **Unscaled latents**, or latents scaled twice, or decoded without undoing it (sections 6 and 8).
# - **Another VAE.** Latents have no meaning of their own: a VAE trained from another seed encodes pictures differently,
#   and decodes these latents to nonsense. `load` compares hashes and refuses.
# - **Clipping** (section 10), left in from pixels.
# - **Encoding with one fixed sample** instead of the moments: each picture is tied to one sample of noise.
# - **Judging by the latent loss.** It cannot be compared between autoencoders, or between scales. Decode, and measure.
# - **Blaming the diffusion for the decoder.** If reconstructions are blurred, samples will be.
#
# ## Exercises
#
# **1. Mend the scale with the schedule.** All your latents have the standard deviation $r = 0.1$. By (4) another
# schedule can correct this: its SNR for these latents should be that of the cosine schedule for latents of standard
# deviation 1. Write it for any $r$, with $\alpha^2 + \sigma^2 = 1$.

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def for_small(t, r):
    """Times, and the standard deviation of the data -> alpha and sigma, each of the shape of t."""
    ...  # your code here


check(for_small)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def for_small(t, r):
#     alpha, sigma = cosine(t)
#     c = (alpha**2 + (r * sigma) ** 2).sqrt()
#     return alpha / c, r * sigma / c
# ```
#
# Noise and data are back in proportion. But the network's input is still small, with a variance far below 1 at small
# $t$, so it also needs a factor there. Dividing the latents is simpler. For large pictures, whose redundancy (section
# 5) makes the same noise do less, shifted schedules are common (Hoogeboom et al. 2023).
#
# </details>
#
# **2. One step.** Sample with both models in 5, 2 and 1 steps. In a single step the prediction is a mean. Why is the
# mean of the latent model no grey cloud?
#
# <details><summary>Solution</summary>
#
# ```python
# for model in (ddpm, pipe):
#     display(grids.show_rows({f"{n} steps": model.sample(8, steps=n, seed=2) for n in (5, 2, 1)}))
# ```
#
# At $t = 1$ optimal denoisers return $\mathbb E[\text{data}]$. In pixels that is the mean of all pictures. In latents
# it is the mean of all latents, and the decoder makes one shape of strokes of it: a picture of the mean is not the mean
# of pictures. It is the first prediction in each group of figure 4.10.
#
# </details>
#
# **3. With how few steps are latents no longer cheaper?** Use the FLOPs of section 11. How many steps of the pixel
# model cost as much as 50 of the latent one, with the decoder? And as much as one step of the latent model, with the
# decoder?


# %% tags=["nbval-check-output"]
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
# A single step in latents does not pay: the decoder alone costs more than a call of the pixel network. The gain of a
# step is modest here, because the latent network is three times as wide, and the pixel network folds 2 × 2 pixels into
# one position: 256 positions against 16. Large pictures gain most where attention is used, whose cost grows with the
# square of the number of positions.
#
# </details>
#
# **4. Only the means.** How large are latents that are sampled by (2)? And how large are the means alone? When would it
# matter that a diffusion model is trained on the means?


# %% tags=["nbval-check-output"]
def latent_std(mean, log_variance):
    """Posteriors of many pictures, (N, C, h, w) -> the standard deviation of sampled latents per channel, (C,)."""
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
# Variance of the means plus mean of the variances: the law of total variance. For our VAE there is no difference to be
# seen, since $\sigma$ is a small part of 1 (section 4). A VAE with a large weight on the divergence has a $\sigma$ near
# 1 wherever a dimension says little. Where $q(z)$ has unit variance, the distribution of its means has only the variance
# $1 - \sigma^2$, and a model of the means would be at the wrong scale.
#
# </details>
#
# ## Summary
#
# - A latent diffusion model is a diffusion model whose data come out of an encoder, by (1). Nothing else is new.
# - The decoder knows what strokes look like. What is left to learn is how they are arranged, and that goes fast.
# - A schedule expects data of unit size. A factor $r$ multiplies the SNR by $r^2$ (3), which is a shift in time (4).
# - Keep moments, sample at each step (2), do not clip, decode once.
# - Latents are cheap, but what the autoencoder loses is lost in every sample.
#
# ## References
#
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752.
# - Vahdat, Kreis & Kautz (2021), *Score-based Generative Modeling in Latent Space*. NeurIPS. arXiv:2106.05931.
# - Hoogeboom, Heek & Salimans (2023), *simple diffusion: End-to-end diffusion for high resolution images*. ICML.
#   arXiv:2301.11093. (Noise and redundancy.)
# - Esser et al. (2024), *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis*. ICML.
#   arXiv:2403.03206.
# - Chen et al. (2024), *Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models*. ICLR 2025.
#   arXiv:2410.10733.
# - Chen (2023), *On the Importance of Noise Scheduling for Diffusion Models*. arXiv:2301.10972. (Scaling the input.)
