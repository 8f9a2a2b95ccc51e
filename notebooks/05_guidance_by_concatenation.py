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
# # Guidance: ask for a digit, and insist
#
# *Runs in one to two minutes on two CPU cores, without a network connection. Needs chapters 1, 2 and 4.*
#
# So far the models draw whatever they like. How do you ask for *a three, please*? Giving a network the label is easy:
# it takes four more input channels. The surprise comes afterwards. A network that can draw with a label and without one
# can be pushed further towards the label than any data ever went, by one line of arithmetic. That line is at work in
# nearly every text-to-image system.
#
# You will
#
# - derive guidance from the score and Bayes' rule, in a plane where both are known exactly;
# - find out which distribution it does *not* sample;
# - train one network to be a conditional and an unconditional model, by dropping labels;
# - see how a label enters a convolutional network;
# - turn the guidance scale from 0 to 10, and measure what is gained and what is lost;
# - guide in an interval of times only, and guide with a worse version of the same model.
#
# The source is Ho & Salimans, *Classifier-Free Diffusion Guidance* (2022).
#
# *Note.* The pictures are MNIST's. If MNIST is not on your machine and cannot be downloaded, the chapter takes the
# small digits that come with scikit-learn. All cells run, but the shipped weights have never seen such digits, and the
# results of sections 7, 9 and 12 then differ from the text.

# %% [markdown]
# ## Set-up, and what we are after

# %%
import copy
import dataclasses
import math

import torch
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.evaluation.distances import frechet_distance, precision_recall
from diffusion_book.evaluation.features import classifier, features, logits, reference_features
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import best, scoreboard
from diffusion_book.guidance import drop_labels, guided
from diffusion_book.models import pipelines, sampling, weights
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks.conditioning import NO_CLASS, ConditionalUNet
from diffusion_book.schedules import add_noise, cosine, expand
from diffusion_book.targets import Prediction
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import diagrams, grids, in_page, scrubber, strips, style
from diffusion_book.viz import guidance as pictures_of
from diffusion_book.viz import toy as toys
from diffusion_book.viz.explorer import guidance_explorer
from diffusion_book.viz.figures import show
from diffusion_book.viz.scores import setting_name

DATASET = "auto"  # MNIST; or "fashion-mnist", "kmnist", "digits": see section 7
MODEL = "ldm-concat"  # the weights that come with the book; or the folder of a training of your own

style.use_style()
of_set = weights.set_of(MODEL, DATASET)  # the data set of the weights; None: MNIST, or what a folder says
pipe = diffusion_book.load(MODEL, dataset=of_set)
vae = pipe.autoencoder
samples = pipe.sample(40, labels=torch.arange(40) % 10, guidance_scale=3.0, seed=0)
show(
    grids.show_grid(samples, columns=10),
    "5.1",
    "The ten digits in order, four times, each drawn on request at guidance scale 3.",
)

# %% [markdown]
# Each digit of figure 5.1 is the one that was asked for. None could be taken for another.
#
# ## 1. A world in which everything is known
#
# As in chapter 2, we begin where the optimal denoiser can be written down. The data are points in the plane, drawn from
# a mixture of five Gaussians, the *clusters*. Two clusters are of class 0, two of class 1, one of class 2. With noise
# added, each cluster is still a Gaussian. So for every noisy point $x_t$ we know the posterior probability of each
# cluster, and the posterior mean of $x_0$ within it. A label restricts the mixture to the clusters of its class;
# `NO_CLASS` keeps them all.

# %%
MEANS = torch.tensor([[-0.5, 0.55], [-1.5, -0.9], [0.5, 0.55], [1.3, -0.2], [0.2, -1.2]], dtype=torch.float64)
CLASSES = torch.tensor([0, 0, 1, 1, 2])  # of the five clusters
STD = 0.3  # of each of them


def clusters(x_t, t, labels):
    """Log density of each cluster at each point, (B, K), minus infinity outside of the class; and what it is made of."""
    alpha, sigma = (expand(value, x_t) for value in cosine(t.expand(len(x_t))))  # (B, 1)
    variance = (alpha * STD) ** 2 + sigma**2
    offset = x_t[:, None] - alpha[..., None] * MEANS  # (B, K, 2)
    member = (labels[:, None] == NO_CLASS) | (labels[:, None] == CLASSES)  # (B, K)
    log = -offset.square().sum(2) / (2 * variance) - (2 * math.pi * variance).log()
    log = log - member.sum(1, keepdim=True).double().log()  # the clusters of a class have equal weights
    return torch.where(member, log, -torch.inf), offset, alpha, sigma, variance


def toy(x_t, t, labels):
    """The optimal denoiser of the five clusters."""
    log, offset, alpha, sigma, variance = clusters(x_t, t, labels)
    mean = MEANS + (alpha * STD**2 / variance)[..., None] * offset  # posterior mean in each cluster, (B, K, 2)
    x0 = (log.softmax(1)[..., None] * mean).sum(1)  # (B, 2)
    return Prediction(x0, (x_t - alpha * x0) / sigma)


# %% [markdown]
# This has the interface of the library's denoisers: `(x_t, t, labels=...)` in, a prediction of $x_0$ and $\epsilon$
# out. Whatever works for it works for the trained network too.
#
# ## 2. From the score to a direction
#
# Which way should a noisy point move, so that it looks more like class $c$? The answer begins with the *score*, the
# gradient $\nabla \log p_t(x_t)$ of the log density of noisy data, which points to where data are denser. (Chapter 3's
# score function estimator is another thing: it differentiates with respect to parameters, not data.) As chapter 1 found
# (section 8), a denoiser knows it. Differentiate $p_t(x_t) = \int p_t(x_t \mid x_0)\, p(x_0)\, dx_0$ under the integral
# and divide by $p_t(x_t)$. By Bayes' rule what remains is a mean over the posterior,
#
# $$\nabla \log p_t(x_t) = \mathbb E\big[\nabla \log p_t(x_t \mid x_0) \,\big|\, x_t\big]
# = \mathbb E\left[\frac{\alpha_t\, x_0 - x_t}{\sigma_t^2} \,\middle|\, x_t\right],$$
#
# for $p_t(x_t \mid x_0)$ is a Gaussian with mean $\alpha_t x_0$ and variance $\sigma_t^2$. That is linear in $x_0$, so
# only the posterior mean is needed:
#
# $$\nabla \log p_t(x_t) = \frac{\alpha_t\, \mathbb E[x_0 \mid x_t] - x_t}{\sigma_t^2}
# = -\frac{\hat\epsilon(x_t, t)}{\sigma_t}. \tag{1}$$
#
# This is *Tweedie's formula*. It is exact for the **optimal** denoiser, whose $\hat x_0$ is the posterior mean; for a
# trained network it is an approximation. With a label it holds in the same way, for the density of noisy data of class
# $c$.
#
# Now take the logarithm of Bayes' rule, $p_t(c \mid x_t) = p_t(x_t \mid c)\, p(c) / p_t(x_t)$, and its gradient. The
# prior $p(c)$ does not depend on $x_t$ and drops out:
#
# $$\nabla \log p_t(c \mid x_t) = \nabla \log p_t(x_t \mid c) - \nabla \log p_t(x_t)
# = \frac{\hat\epsilon(x_t, t) - \hat\epsilon(x_t, t, c)}{\sigma_t}. \tag{2}$$
#
# The left side is the gradient of a *classifier* of noisy points: the direction in which it becomes surer of $c$. The
# right side needs only two denoisers, one with the label and one without. Together, two optimal denoisers contain an
# *implicit classifier* that nobody has trained. (The difference of two trained networks need not be the gradient of
# anything. It works all the same.) In the toy we can compute each side separately, the left one by automatic
# differentiation.


# %% tags=["nbval-check-output"]
def log_density(x_t, t, labels):
    """log p_t(x_t | label), (B,)."""
    return clusters(x_t, t, labels)[0].logsumexp(1)


at, t = pictures_of.places(), torch.tensor(0.4, dtype=torch.float64)
zero, none = torch.zeros(len(at), dtype=torch.int64), torch.full((len(at),), NO_CLASS)
x = at.clone().requires_grad_()
(score,) = torch.autograd.grad(log_density(x, t, none).sum(), x)
log_posterior = log_density(x, t, zero) + math.log(2 / 5) - log_density(x, t, none)  # log p(c | x_t); p(c) = 2/5
(towards,) = torch.autograd.grad(log_posterior.sum(), x)

sigma = cosine(t)[1]
eps, eps_c = toy(at, t, none).eps, toy(at, t, zero).eps
print("(1) holds to 1e-10:", bool((score + eps / sigma).abs().max() < 1e-10))
print("(2) holds to 1e-10:", bool((towards - (eps - eps_c) / sigma).abs().max() < 1e-10))

# %%
generator = torch.Generator().manual_seed(0)
cluster = torch.arange(2000) % 5
points = MEANS[cluster] + STD * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
asked = CLASSES[cluster] == 0
noisy = add_noise(cosine, points, torch.randn(2000, 2, generator=generator, dtype=torch.float64), t)
near = at.norm(dim=1) < 2.4
fields = {"to any class: $-\\hat\\epsilon(x_t)$": -eps, "to class 0: $-\\hat\\epsilon(x_t, c)$": -eps_c}
fields = {name: field[near] for name, field in (fields | {"the difference": eps - eps_c}).items()}
show(
    pictures_of.show_arrows(fields, at[near], noisy, asked, length=0.16),
    "5.2",
    "Noisy data at $t$ = 0.4, class 0 in dark grey, and three fields of arrows. The second less the first is $σ_t$ times "
    "the gradient of the implicit classifier of class 0.",
)

# %% [markdown]
# The arrows in the first two panels of figure 5.2 lead to data of any class, and to data of class 0. In the left half
# of the plane they agree, since nearly all data there are of class 0. In the third panel the part on which they agree
# has cancelled. What is left points away from the other classes, whether or not there are any data where it points.
#
# ## 3. Turn it up
#
# By (2), the conditional score is the unconditional one plus the gradient of the classifier. Now insist: take that
# gradient $w$ times.
#
# $$\nabla \log p_t(x_t) + w\, \nabla \log p_t(c \mid x_t)
# \quad\Longleftrightarrow\quad
# \hat\epsilon_w = \hat\epsilon(x_t, t) + w \left[ \hat\epsilon(x_t, t, c) - \hat\epsilon(x_t, t) \right]. \tag{3}$$
#
# This is *classifier-free guidance*, and $w$ is the *guidance scale*. (Its predecessor, *classifier guidance*, takes
# the gradient from a classifier trained on noisy pictures: Song et al. 2021 for $w = 1$; Dhariwal & Nichol 2021 turned
# it up.)

# %%
show(
    diagrams.guidance_vectors(),
    "5.3",
    "Guidance moves along the line through the two predictions. $w$ = 0 is the unconditional one, $w$ = 1 the "
    "conditional one; beyond 1 it extrapolates.",
)

# %% [markdown]
# At $w = 0$ the label is ignored; $w = 1$ is the plain conditional model (figure 5.3). In code, guidance turns a
# denoiser into a denoiser, so samplers need not know about it.


# %% tags=["nbval-check-output"]
def my_guided(denoiser, w):
    """Equation 3, for both halves of the prediction."""

    def guide(x_t, t, labels):
        u = denoiser(x_t, t, labels=torch.full_like(labels, NO_CLASS))
        c = denoiser(x_t, t, labels=labels)
        return Prediction(u.x0 + w * (c.x0 - u.x0), u.eps + w * (c.eps - u.eps))

    return guide


for w in (0.0, 1.0, 3.0, 8.0):
    mine, library = my_guided(toy, w)(at, t, zero), guided(toy, w)(at, t, labels=zero)
    assert_close(mine.eps, library.eps)
    assert_close(mine.x0, library.x0)
print("my_guided is guidance.guided; predictions of shape", tuple(mine.eps.shape))

# %% [markdown]
# (The library evaluates both predictions in one batch, which is faster, and only one of them where $w$ is 0 or 1.) Now
# sample class 0 with 100 steps of DDIM, always from the same 2,000 noises. To judge the last column of the output: of a
# Gaussian in the plane, 14 % of all points lie more than two standard deviations from the mean.


# %% tags=["nbval-check-output"]
def walk(denoiser, start, steps=100):
    """Samples of class 0, from noise (B, 2)."""
    times, labels = samplers.time_grid(steps), torch.zeros(len(start), dtype=torch.int64)
    states = samplers.sample(denoiser, start, times, samplers.ddim, schedule=cosine, generator=generator, labels=labels)
    *_, end = states
    return end.x


start = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
clouds = {w: walk(guided(toy, w), start) for w in (0, 1, 3, 8)}
for w, cloud in clouds.items():
    upper, lower = ((cloud - MEANS[number]).norm(dim=1) for number in (0, 1))
    outside = torch.minimum(upper, lower) > 2 * STD
    print(f"w = {w}: {(upper < lower).double().mean():4.0%} nearer to the upper cluster of class 0, ", end="")
    print(f"{outside.double().mean():4.0%} farther than two standard deviations from both")

# %%
show(
    pictures_of.show_clouds({f"w = {w}": cloud for w, cloud in clouds.items()}, points, asked),
    "5.4",
    "Samples (orange) over the data, class 0 in dark grey. At $w$ = 1 they cover class 0; beyond, they leave its upper "
    "cluster, and then the data.",
)

# %% [markdown]
# At $w = 0$ the samples cover all clusters (figure 5.4). At 1 they cover exactly the two of class 0, half the points
# each, and about as many points lie outside two standard deviations as should. Beyond 1 two things happen, and you will
# meet both again with digits. The upper cluster, which lies close to class 1, loses its points: what could be mistaken
# for another class is no longer drawn. And the samples *leave the data*: at 8 most of them lie beyond the far side of
# their cluster. Guidance trades variety for certainty, and then exaggerates. Move the scale yourself in figure 5.5.

# %%
turns = [0.5 * step for step in range(17)]
turned = [walk(guided(toy, w), start[:600], steps=50) for w in turns]
frames = pictures_of.cloud_frames(turned, points[:1200], asked[:1200])
control = scrubber.scrubber(
    frames,
    [f"w = {w:g}" for w in turns],
    label="guidance scale",
    alt="Samples in the plane, over the data, at guidance scales from 0 to 8",
    scale=1.0,
    start=2,
)
show(
    control,
    "5.5",
    "The toy at guidance scales from 0 to 8. Samples are black, data of class 0 dark grey, other data light grey.",
)

# %% [markdown]
# There the denoisers are exact. In figure 5.6 a network learns one in your browser, on three clusters; every other
# point hides its label, so that it learns both fields (section 6). Press Play, and when the loss is flat, move the
# guidance scale: the samples of the class draw together, and leave the cluster that they were asked for.

# %%
show(
    toys.toy("mixture", "v", label=1, guidance_scale=3.0),
    "5.6",
    "A conditional denoiser that trains in the page. Move the guidance scale when the loss is flat.",
)

# %% [markdown]
# ## 4. What guidance does not sample
#
# Is there a distribution that guidance samples? It is tempting to say: a sharpened, or *tilted*, density. At a single
# time (3) is indeed the score of
#
# $$p_t^{(w)}(x) \;\propto\; p_t(x \mid c)^w\, p_t(x)^{1-w} \;\propto\; p_t(x \mid c)\; p_t(c \mid x)^{w-1}. \tag{4}$$
#
# The second form makes a promise: the class, weighted by how certain its label is. At $t = 0$ that density lies inside
# class 0. Compare it with the samples.


# %% tags=["nbval-check-output"]
def is_upper(points):
    """Which points are nearer to the upper cluster of class 0 than to the lower one."""
    return (points - MEANS[0]).norm(dim=1) < (points - MEANS[1]).norm(dim=1)


mesh, now = pictures_of.places(2.8, 113), torch.tensor(0.0, dtype=torch.float64)
of_class, of_any = (log_density(mesh, now, torch.full((len(mesh),), label)) for label in (0, NO_CLASS))
tilted = {w: (w * of_class + (1 - w) * of_any).softmax(0) for w in (1, 3, 8)}  # each sums to 1 over the mesh
for w, density in tilted.items():
    mean, above = density @ mesh[:, 0], density[is_upper(mesh)].sum()
    print(f"w = {w}: (4) has its mean at x = {mean:.2f} and {above:3.0%} above; ", end="")
    print(f"the samples at x = {clouds[w][:, 0].mean():.2f} and {is_upper(clouds[w]).double().mean():3.0%}")

# %%
contours = {f"w = {w}": density for w, density in tilted.items()}
panels = {name: clouds[w] for name, w in zip(contours, tilted, strict=True)}
show(
    pictures_of.show_clouds(panels, points, asked, contours),
    "5.7",
    "Samples of guidance (orange), and the tilted density: the contours hold half and nine tenths of it. They agree at "
    "$w$ = 1 only.",
)

# %% [markdown]
# Beyond $w = 1$ the samples of figure 5.7 are somewhere else, while the tilted density keeps its upper cluster and only
# avoids the ambiguous edge. The sampler is not to blame. To sample a density $q$, it needs at each $t$ the score of
# *that $q$ with noise added*. Write $N_t$ for adding the noise of time $t$. Guidance raises noisy densities to powers,
# $(N_t\, p_c)^w (N_t\, p)^{1-w}$. What is needed is $N_t (p_c^w\, p^{1-w})$. Adding noise averages over neighbours, and
# a power of an average is not the average of powers. So **in general the guided field is the score of the noised tilted
# distribution only at $w = 0$ and $1$**. (Two Gaussians of equal covariance are an exception. The alternative is to let
# points settle at every $t$ by Langevin steps, which need only the score of that time. Bradley & Nakkiran 2024 show
# that, for small steps, a guided DDPM is a DDIM step of the conditional model, followed by a Langevin step for (4) with
# the scale $2w - 1$: predictor and corrector. Chidambaram et al. 2024 prove where guided samples of a mixture go: to
# the edge of their class.) On the mesh we can compute the right denoiser, as a sum, and compare.

# %% tags=["nbval-check-output"]
half = torch.tensor(0.5, dtype=torch.float64)
alpha, sigma = cosine(half)
x_t = at[at.norm(dim=1) < 1.5]
for w, density in tilted.items():
    log = density.log() - torch.cdist(x_t, alpha * mesh).square() / (2 * sigma**2)  # (B, mesh)
    right = log.softmax(1) @ mesh
    ours = guided(toy, w)(x_t, half, labels=zero[: len(x_t)]).x0
    print(f"w = {w}: the guided prediction of x0 is off by {(ours - right).square().sum(1).mean().sqrt():.2f}")

# %% [markdown]
# So classifier-free guidance is a recipe that works, not a sampler of the density (4) that motivates it (Bradley &
# Nakkiran 2024). Keep the deserted cluster in mind: that is what "less diversity" means.
#
# ## 5. Two conventions, and the order of clipping
#
# The original paper writes (3) differently. Its equation 6 is
#
# $$\tilde\epsilon = (1 + w')\, \hat\epsilon(x_t, t, c) - w'\, \hat\epsilon(x_t, t), \qquad w' = w - 1. \tag{5}$$
#
# | | no label | plain conditional | some guidance | who |
# |---|---|---|---|---|
# | here, $w$ | 0 | 1 | 3 | GLIDE, Imagen, most libraries |
# | $w' = w - 1$ | -1 | 0 | 2 | Ho & Salimans 2022 |
#
# Whenever you read "guidance scale 3", ask which of the two it is.
#
# A denoiser predicts both a noise and a picture. Which one should be guided? Either. $\hat x_0$ is an affine function
# of $\hat\epsilon$, and the weights in (3), $1 - w$ and $w$, sum to 1:
#
# $$\hat x_{0,w} = \hat x_0(x_t, t) + w\left[\hat x_0(x_t, t, c) - \hat x_0(x_t, t)\right]
# \quad\text{has}\quad \alpha_t \hat x_{0,w} + \sigma_t \hat\epsilon_w = x_t. \tag{6}$$

# %% tags=["nbval-check-output"]
alpha, sigma = cosine(t)
w = 3.0
u, c = toy(at, t, none), toy(at, t, zero)
ho_salimans = (1 + (w - 1)) * c.eps - (w - 1) * u.eps
both = guided(toy, w)(at, t, labels=zero)
print("(5) is (3) to 1e-10:", bool((ho_salimans - both.eps).abs().max() < 1e-10))
print("(6): the guided pair adds up to x_t:", bool((alpha * both.x0 + sigma * both.eps - at).abs().max() < 1e-10))
clip = [each.x0.clamp(-1, 1) for each in (u, c)]
late, early = both.x0.clamp(-1, 1), clip[0] + w * (clip[1] - clip[0])
print(f"clipped before it was guided, x0 reaches {early.abs().max():.1f}; clipped after, {late.abs().max():.1f}")

# %% [markdown]
# The last line is about order. Pixels lie in $[-1, 1]$, and $\hat x_0$ is clipped to that range. Guidance leads out of
# it again, so: guide, then clip. Latents have no such range and are not clipped at all.
#
# ## 6. One network for both
#
# Where do the two denoisers come from? One could train two networks. It is simpler to train one, and to hide the label
# of some pictures from it. Instead of the label these get one of their own, the null condition $\varnothing$
# (`NO_CLASS`). This is *condition dropout*:
#
# $$\tilde c = \begin{cases} \varnothing & \text{with probability } p \\ c & \text{otherwise}\end{cases}
# \qquad
# L = \mathbb E \left\| \epsilon - \hat\epsilon(x_t, t, \tilde c) \right\|^2. \tag{7}$$


# %% tags=["nbval-check-output"]
def my_drop(labels, p, generator):
    labels = labels.clone()
    labels[torch.rand(len(labels), generator=generator) < p] = NO_CLASS
    return labels


some = torch.arange(100_000) % 10
dropped = my_drop(some, 0.1, torch.Generator().manual_seed(0))
assert torch.equal(dropped, drop_labels(some, 0.1, torch.Generator().manual_seed(0)))
print("twenty labels:", *dropped[:20].tolist())
print(f"dropped: {(dropped == NO_CLASS).double().mean():.3f} of {len(some):,}")

# %% [markdown]
# In the library it happens in the loss, in plain sight, and never in the network. Ho & Salimans find $p = 0.1$ and
# $0.2$ about equally good, and $0.5$ worse.
#
# What does the network learn for the null condition? A squared error is smallest at the posterior mean. So without a
# label the optimal prediction is the average of the optimal predictions with each label, weighted by how likely each
# label is: $\hat\epsilon(x_t, t) = \sum_c p_t(c \mid x_t)\, \hat\epsilon(x_t, t, c)$. For the optimal denoiser of the
# toy this must hold exactly.

# %% tags=["nbval-check-output"]
prior = torch.tensor([2, 2, 1], dtype=torch.float64) / 5
each = [torch.full((len(at),), label) for label in range(3)]
log = torch.stack([log_density(at, t, label) for label in each], dim=1) + prior.log()  # (B, 3)
average = sum(log.softmax(1)[:, [n]] * toy(at, t, label).eps for n, label in enumerate(each))
print("without a label: the average of all labels, to 1e-10:", bool((average - eps).abs().max() < 1e-10))

# %% [markdown]
# So (3) starts at the average of all classes, goes to the class that was asked for, and on in the same direction.
# Caricaturists work like that: they take what differs from the average face, and exaggerate it.
#
# ## 7. A caricature without a network
#
# We can draw that caricature right now. Encode 6,000 digits and average their latents: all of them, and class by
# class, $\bar z$ and $\bar z_c$. Then decode $\bar z + w\,(\bar z_c - \bar z)$.

# %%
train = data.load(DATASET)
few = train.first(6000)
encoded = encode_dataset(vae, few)
z0, labels = encoded.moments[:, :2], encoded.labels  # the means of the posteriors: (N, 2, 4, 4)
overall, by_class = z0.mean(0), torch.stack([z0[labels == digit].mean(0) for digit in range(10)])
SCALES = (0, 1, 2, 3, 5, 10)
exaggerated = torch.stack([overall + w * (by_class - overall) for w in SCALES])  # (6, 10, 2, 4, 4)
decoded = pipe.to_images(exaggerated.flatten(0, 1)).unflatten(0, exaggerated.shape[:2])
print(f"{len(few):,} pictures of {few.name} as latents of shape {tuple(z0.shape[1:])}")
show(
    pictures_of.show_sweep(decoded.transpose(0, 1), few.class_names, SCALES),
    "5.8",
    "Mean latents, decoded: the mean of everything ($w$ = 0), the mean of each class (1), and caricatures of it.",
)

# %% tags=["remove-cell"]
# Cells like this one hold the text to what was measured. They speak of the shipped weights and of MNIST alone.
as_shipped = train.name == "mnist" and MODEL == "ldm-concat"

# %% [markdown]
# The left column of figure 5.8 is the mean of everything, ten times. At 1 stand the mean three and the mean seven.
# Beyond comes a three that is above all *not something else*, and in the end fat, torn strokes: the decoder has never
# seen such latents. Guided sampling begins like this. At $t = 1$ the input is nothing but noise, and the optimal
# predictions are these means. How close does the trained network come?

# %%
with torch.no_grad():
    first = pipe.noise(10, seed=4).to(pipe.device), torch.tensor(1.0, dtype=torch.float64)
    told = pipe.denoiser(*first, labels=torch.arange(10, device=pipe.device)).x0.cpu()
for name, means in (("its own class", by_class), ("another class", by_class.roll(1, 0))):
    print(f"first prediction and mean of {name}: {(told - means).square().mean().sqrt():.2f} apart")

# %% tags=["remove-cell"]
if as_shipped:
    own, other = ((told - means).square().mean() for means in (by_class, by_class.roll(1, 0)))
    assert own < other / 4

# %% [markdown]
# It is much closer to the mean of its own class than to that of another.
#
# <details><summary>Try another data set</summary>
#
# With `DATASET = "fashion-mnist"` or `"kmnist"` the caricatures are of clothes or letters, and the small network of
# section 9 learns their classes. Where the book has no weights of that set, those of MNIST and their autoencoder stay,
# and a coat comes out badly. To have all of it, train both in a shell,
#
# ```bash
# diffusion-book train vae --dataset fashion-mnist --max-minutes 30
# diffusion-book train ldm-concat --dataset fashion-mnist --max-minutes 30 --vae FOLDER-OF-THE-VAE
# ```
#
# and set `MODEL` to the folder that the second one prints last, with `../` before it. The measures of sections 10 to 13
# come from a classifier of digits and then mean nothing.
#
# </details>
#
# ## 8. How a label enters the network
#
# A convolutional network reads pictures, so the label is turned into one. Each class, and `NO_CLASS`, owns four learned
# maps of $4 \times 4$, which are stacked on the latent as further channels. In the literature this is *concatenation*.

# %%
show(
    diagrams.stacked_maps(pipe.recipe.network),
    "5.9",
    "Concatenation: the maps of a class are looked up in a learned table and stacked on the latent, two channels become six.",
)

# %% [markdown]
# What can the first layer in figure 5.9 do with these maps? A convolution is linear in its input, so it splits:
#
# $$\mathrm{conv}([x_t, m_c]) = \mathrm{conv}_x(x_t) + \mathrm{conv}_m(m_c). \tag{8}$$
#
# The second term does not depend on $x_t$. *Concatenation is a learned bias, one for each class and position.* What the
# label means for this $x_t$, at this time, is left to the layers behind.

# %% tags=["nbval-check-output"]
network = copy.deepcopy(pipe.network).cpu().float()  # as trained, in full precision
stem, maps = network.unet.conv_in, network.classes.table
assert torch.equal(network.classes(torch.tensor([3, NO_CLASS])), maps[[3, 10]])
x = pipe.noise(11, seed=5)
with torch.no_grad():
    stacked = stem(torch.cat([x, maps], dim=1))  # (11, 2 + 4, 4, 4)
    of_x = torch.nn.functional.conv2d(x, stem.weight[:, :2], stem.bias, padding=1)
    of_label = torch.nn.functional.conv2d(maps, stem.weight[:, 2:], padding=1)
assert_close(stacked, of_x + of_label, rtol=1e-4, atol=1e-4)
print("stacked", (11, 6, 4, 4), "-> first layer", tuple(stacked.shape), "= latent's part + label's part")

# %% [markdown]
# Do not look for digits in the learned maps. They began as random numbers, and random maps already differ from each
# other as much as they need to. They are names, not pictures: the layers behind have learned what each stands for.
#
# ## 9. A live training that learns classes
#
# This is chapter 4's training, with labels, a tenth of them dropped. The network has a third of the shipped one's base
# channels and sees 6,000 pictures twice. We call it the *small* network. It will serve us twice more.

# %%
settings = TrainingConfig(
    epochs=round(12_000 / len(few)), batch_size=32, lr=3e-3, warmup_steps=20, cooldown=0.5, ema_decay=0.98
)
torch.manual_seed(0)
narrow = dataclasses.replace(pipe.recipe.network, base_channels=pipe.recipe.network.base_channels // 3)
fresh = ConditionalUNet(narrow)
recipe = dataclasses.replace(pipe.recipe, network=narrow, training=settings)
before = pipelines.build(recipe, fresh.state_dict(), autoencoder=vae).sample(10, steps=20, seed=2)

loss = loss_of_latent_diffusion(recipe.diffusion, recipe.condition)
trainer = Trainer(fresh, loss, encoded, settings)
reports = list(trainer.steps())
small = pipelines.build(recipe, trainer.ema.network.state_dict(), autoencoder=vae)
print(f"{len(reports)} steps, loss {reports[0].loss:.2f} at first, {reports[-1].loss:.2f} at the end")

# %%
learned = {f"w = {w}": small.sample(10, steps=20, seed=2, guidance_scale=w) for w in (0, 1, 3)}
show(
    grids.show_rows({"untrained": before} | learned),
    "5.10",
    "The small network, asked for 0 to 9, from the same noise in each column.",
)

# %% [markdown]
# In the second row of figure 5.10 the label is ignored. In the third most digits can be recognised, but some are
# doubtful or broken. In the last, drawn by the very same network, they are bolder and clearer. One explanation is that
# the predictions of a weak network stay too close to the average of all digits, and guidance pushes them away from it.
#
# ## 10. The shipped weights
#
# Does the library keep its promises about $w = 1$ and $w = 0$ for the trained network? To the last bit:

# %% tags=["nbval-check-output"]
exact = diffusion_book.load(MODEL, dataset=of_set, precision="fp32", device="cpu").denoiser
x, time_now, digits = pipe.noise(10, seed=6), torch.tensor(0.5, dtype=torch.float64), torch.arange(10)
nothing = torch.full_like(digits, NO_CLASS)
with torch.no_grad():
    assert torch.equal(guided(exact, 1.0)(x, time_now, labels=digits).eps, exact(x, time_now, labels=digits).eps)
    assert torch.equal(guided(exact, 0.0)(x, time_now, labels=digits).eps, exact(x, time_now, labels=nothing).eps)
    mine, library = my_guided(exact, 5.0)(x, time_now, digits), guided(exact, 5.0)(x, time_now, labels=digits)
assert_close(mine.eps, library.eps, rtol=1e-3, atol=1e-3)
print("w = 1 is the conditional model, w = 0 the unconditional, w = 5 is equation (3):", tuple(library.eps.shape))

# %% [markdown]
# Now turn the scale. Each row starts from one noise and asks for one digit; only $w$ changes from column to column.

# %%
swept = sampling.sweep(pipe, range(10), SCALES, steps=20, seed=0)
show(
    pictures_of.show_sweep(swept, range(10), SCALES),
    "5.11",
    "The shipped model at six guidance scales, one noise a row.",
)

# %% [markdown]
# In the first column of figure 5.11 the request is ignored, and some shapes are no digits at all. In the second the
# request is heard, and the handwriting varies as people's does: slanted or upright, thin or bold. Towards the right it
# is the same digit in the same position, more and more like a printed one, and its strokes grow fat.
#
# Why is $w = 0$ so poor? There are two suspects. Only a tenth of the training pictures came without a label, and
# drawing without one may simply be harder. Chapter 4's `ldm` separates them: a network of nearly the same size, trained
# on latents without any labels. We count *doubtful* digits, those of which a classifier of real digits is less than 90
# % sure.

# %%
cases = {"ldm": {}}
for w in (0.0, 1.0):
    cases[f"ldm-concat, w = {w:g}"] = {"labels": torch.arange(400) % 10, "guidance_scale": w}
doubtful = {}
for case, options in cases.items():
    drawn = diffusion_book.load(case.split(",")[0]).sample(400, steps=10, seed=1, **options)
    certainty = logits(drawn).softmax(1).amax(1)
    doubtful[case] = (certainty < 0.9).double().mean().item()
    error = (doubtful[case] * (1 - doubtful[case]) / len(drawn)) ** 0.5
    print(f"{case:>17}: {100 * doubtful[case]:2.0f} ± {100 * error:.0f} in a hundred are doubtful")

# %% tags=["remove-cell"]
if as_shipped:
    assert doubtful["ldm-concat, w = 1"] < 0.75 * doubtful["ldm"]
    assert doubtful["ldm"] < 0.75 * doubtful["ldm-concat, w = 0"]
    sizes = [weights.read_card(name)["parameters"] for name in ("ldm", "ldm-concat")]
    assert max(sizes) < 1.1 * min(sizes)

# %% [markdown]
# Probably both. `ldm`, whose whole training went into drawing without labels, makes far fewer doubtful digits than
# `ldm-concat` at $w = 0$, and still more than `ldm-concat` with labels. (It was also trained for more steps, so the
# first suspect's share is uncertain.) Guidance works all the same: as the starting point of (3), the unconditional
# prediction need not draw well. It only has to say what *any* digit looks like at this $x_t$. But its weakness may not
# be neutral (section 13).
#
# How early is a digit decided? Follow the prediction $\hat x_0$ from one noise, asked for a two.

# %%
strip = {}
for w in (0, 1, 3, 10):
    states = pipe.states([0], labels=2, guidance_scale=w, steps=20, noise=pipe.noise(3, seed=0)[2:])
    times, strip[w] = strips.denoising_strip(list(states), pipe, frames=10, what="x0")
show(
    strips.show_strip(times, torch.cat(list(strip.values()))),
    "5.12",
    "The prediction of $x_0$ along one sampling path, asked for a two: $w$ = 0, 1, 3, 10 from the top.",
)

# %% [markdown]
# The first prediction in each row of figure 5.12 is one of section 7's pictures: the mean of everything, the mean two,
# two caricatures. With a label, the later steps refine it; without one (first row)
# they first have to decide. A large $w$ leads the first steps to where there are no twos, and the
# rest of the path has to make the best of that.
#
# ## 11. Gains and losses, measured
#
# How much guidance is right? For each scale we draw 200 digits, 20 of each class, with 10 steps, from the shipped
# network and from the small one, and measure
#
# - *class accuracy*: the fraction that a second classifier takes for what was asked;
# - *recall* (Kynkäänniemi et al. 2019), in the feature space of a classifier: around each sample lies a ball that
#   reaches to its third nearest neighbour among the samples, and recall is the fraction of real digits inside some
#   ball. It asks whether all of the variety is there. (*Precision* swaps the two: the fraction of samples inside the
#   balls of real digits. Chapter 8 has both.)
# - *distance*: the mean distance between two samples of one class, in the same space;
# - *cFID*: the Fréchet distance between samples and test pictures.
#
# Recall and cFID depend on the number of pictures, and all of these measures scatter. So the yardstick is what 200
# *real* digits reach: mean and standard deviation over ten random sets.

# %%
NUMBER = 200
wanted = torch.arange(NUMBER) % 10
reference = reference_features()
some_test = reference["test"][:2000]  # enough for precision and recall, and quick


def judge(seen, taken_for):
    """Measures of features (200, 64), with labels in turn 0 to 9, and of the labels that were read."""
    precision, recall = precision_recall(seen, some_test)
    apart = torch.stack([torch.pdist(seen[wanted == digit]).mean() for digit in range(10)]).mean()
    right = (taken_for == wanted).double().mean()
    distance = frechet_distance(seen, reference["test"])
    return {"class accuracy": right, "precision": precision, "recall": recall, "distance": apart, "cFID": distance}


with torch.no_grad():  # the labels of the reference features: the last layer of the classifier that they are from
    read = classifier("classifier").head(reference["train"]).argmax(1)
judged = []
for number in range(10):  # a single set of 200 would be luck
    mixed = torch.randperm(len(read), generator=torch.Generator().manual_seed(number))
    per_class = [mixed[read[mixed] == digit][: NUMBER // 10] for digit in range(10)]
    judged.append(judge(reference["train"][torch.stack(per_class, dim=1).flatten()], wanted))
real = {}
for name in [name for name in judged[0] if name != "class accuracy"]:  # which is 100 % by construction
    values = torch.stack([torch.as_tensor(each[name], dtype=torch.float64) for each in judged])
    real[name] = values.mean().item(), values.std().item()
    print(f"200 real digits: {name} {real[name][0]:.2f} +- {real[name][1]:.2f} from set to set")

# %%
scales, models = (0, 1, 1.5, 2, 3, 5, 10), {"ldm-concat": pipe, "small": small}
measured = {name: [] for name in models}
for name, model in models.items():
    for w in scales:
        drawn = model.sample(NUMBER, labels=wanted, guidance_scale=w, steps=10, seed=1)
        measured[name].append(judge(features(drawn), logits(drawn).argmax(1)))
    for w in (1, 3):
        found = measured[name][scales.index(w)]
        print(f"{name:>10}, w = {w}: class accuracy {found['class accuracy']:4.0%}, cFID {found['cFID']:.1f}")

# %%
keys = ("class accuracy", "recall", "distance", "cFID")
panels = {key: {name: [float(row[key]) for row in rows] for name, rows in measured.items()} for key in keys}
show(
    pictures_of.plot_against_scale(scales, panels, real, log=("cFID",), columns=2),
    "5.13",
    "Four measures against the guidance scale (the axis is not to scale). Dotted: 200 real digits, with a band of one "
    "standard deviation over ten sets.",
)

# %% tags=["remove-cell"]
shipped, weak = (dict(zip(scales, measured[name], strict=True)) for name in models)
if as_shipped:
    assert shipped[1]["class accuracy"] > 0.95
    assert shipped[3]["recall"] < shipped[1]["recall"] - 0.1
    assert shipped[10]["distance"] < 0.65 * real["distance"][0]
    assert min(shipped, key=lambda w: shipped[w]["cFID"]) in (1, 1.5)
    assert weak[1]["cFID"] > weak[2]["cFID"]
    assert weak[1]["class accuracy"] < 0.95 < weak[3]["class accuracy"]

# %% [markdown]
# Look at the shipped network first (figure 5.13). Nearly all of its digits are right at $w = 1$. Beyond that there is
# little left to gain, and variety is lost: recall falls, and samples of a class lie much closer together than real
# ones, as in section 3. So the best cFID lies near $w = 1$. The small network is the other case. Some of its digits are
# wrong, and at first guidance repairs more than it costs. (At small $w$ its recall is above that of real digits, which
# is not better than real. Bad samples are scattered and have distant neighbours, so their balls are large and cover
# much: Naeem et al. 2020. Read recall together with cFID.)
#
# This is guidance in practice: it repairs what a model is unsure of, and pays with variety. Text-to-image models are
# asked by texts that fit many pictures. They are never sure, and are often used at 5 to 10. The library's default of $w
# = 3$ is for those who want *one* unmistakable digit. Whoever wants the distribution of handwriting chooses less.
# Guided digits are also too bold (figure 5.11). Class accuracy does not notice that, so do not judge guidance by class
# accuracy alone.
#
# ## 12. When to insist
#
# Does the push matter equally at all times? On noisy latents of real digits we measure how far the two predictions of
# $x_0$ are apart.

# %%
apart = {}
for moment in (1.0, 0.8, 0.6, 0.4, 0.2):
    x_t = add_noise(cosine, z0[:300], torch.randn(300, *pipe.shape, generator=generator), torch.tensor(moment))
    x_t, of_label = x_t.to(pipe.device), labels[:300].to(pipe.device)
    with torch.no_grad():
        c = pipe.denoiser(x_t, torch.tensor(moment), labels=of_label).x0
        u = pipe.denoiser(x_t, torch.tensor(moment), labels=torch.full_like(of_label, NO_CLASS)).x0
    apart[moment] = (c - u).square().mean().sqrt().item()
    print(f"t = {moment}: a label changes the prediction of x0 by {apart[moment]:.2f}")

# %% tags=["remove-cell"]
if as_shipped:
    assert list(apart.values()) == sorted(apart.values(), reverse=True)

# %% [markdown]
# In strong noise the label says all there is to know, and a push of 5 or 10 throws the prediction far away from the
# data. In weak noise the latent shows its digit, both predictions agree, and there is nothing to push. Kynkäänniemi et
# al. (2024) conclude that guidance does harm early, does nothing late, and should act only in an interval in the
# **middle**. Outside of it, $w = 1$. Try $w = 5$ in different intervals.

# %%
rows, judged = {"w = 1": pipe.sample(NUMBER, labels=wanted, guidance_scale=1.0, steps=10, seed=1)}, {}
intervals = {
    "always": (0.0, 1.0),
    "early\nt > 0.75": (0.75, 1.0),
    "middle\n0.25 to 0.75": (0.25, 0.75),
    "late\nt < 0.25": (0.0, 0.25),
}
for name, interval in intervals.items():
    rows[name] = pipe.sample(NUMBER, labels=wanted, guidance_scale=5.0, steps=10, seed=1, guidance_interval=interval)
for name, drawn in rows.items():
    judged[name.split("\n")[0]] = found = judge(features(drawn), logits(drawn).argmax(1))
    print(f"{name.split(chr(10))[0]:>7}:", ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
show(
    grids.show_rows({name: drawn[10:20] for name, drawn in rows.items()}),
    "5.14",
    "Plain conditional samples, and $w$ = 5 within an interval of times; the same noise in each column.",
)

# %% tags=["remove-cell"]
if as_shipped:
    assert judged["early"]["recall"] < judged["middle"]["recall"] - 0.1
    assert abs(judged["early"]["recall"] - judged["always"]["recall"]) < 0.15
    assert judged["middle"]["cFID"] < judged["always"]["cFID"]
    assert judged["middle"]["class accuracy"] >= judged["w = 1"]["class accuracy"]
    assert judged["late"]["recall"] > judged["middle"]["recall"]
    assert judged["middle"]["distance"] < judged["late"]["distance"] < judged["w = 1"]["distance"]
    assert judged["w = 1"]["cFID"] == min(found["cFID"] for found in judged.values())

# %% [markdown]
# (Of the ten steps three are early, five in the middle and two late.) Guided early only, the digits of figure 5.14 are
# at least as uniform as if guided always: that is where most variety is lost. Guided in the middle only, they lose
# less, though still much, and no fewer are what was asked for than at $w = 1$. Guided late only, they stay closest to
# $w = 1$, but here late guidance is not quite idle: some variety is lost even then. And none of the intervals has a
# better cFID than $w = 1$, since this model hardly needs guidance (exercise 4 tries one that does). An interval is also
# cheaper: outside of it the network is evaluated only once a step.
#
# ## 13. Guided by a worse version of itself
#
# Why does guidance make digits *better*, and not only more typical? The unconditional prediction differs from the
# conditional one in two ways. It does not know the class. And it is the worse model: it has the harder task, and here a
# tenth of the pictures (section 10). The first difference pushes towards the class, at the cost of variety. The second,
# Karras et al. (2024) argue, pushes away from errors. Classifier-free guidance cannot have one without the other. They
# can: they replace the unconditional prediction by that of a **worse model for the same class**:
#
# $$\hat\epsilon_w = \hat\epsilon_{\text{bad}}(x_t, t, c)
# + w \left[\hat\epsilon(x_t, t, c) - \hat\epsilon_{\text{bad}}(x_t, t, c)\right].$$
#
# Both know the label, so the difference hardly points away from other classes. It points away from the errors that the
# bad model makes more of. This is *autoguidance*. The bad model should fail where the good one does, only more: same
# data and task, a smaller network, a shorter training. We have one, the small network of section 9.


# %%
def autoguided(w):
    """`pipe` guided by `small`: a denoiser."""

    def guide(x_t, t, labels):
        bad, good = small.denoiser(x_t, t, labels=labels), pipe.denoiser(x_t, t, labels=labels)
        return Prediction(*(torch.lerp(b, g, w) for b, g in zip(bad, good, strict=True)))  # b + w (g - b)

    return guide


noise, rows, judged = pipe.noise(NUMBER, seed=1).to(pipe.device), {"w = 1": rows["w = 1"]}, {}
for w in (1.5, 2.0, 3.0):
    rows[f"classifier-free\nw = {w:g}"] = pipe.sample(NUMBER, labels=wanted, guidance_scale=w, steps=10, seed=1)
    states = samplers.sample(autoguided(w), noise, samplers.time_grid(10), samplers.ddim, schedule=pipe.schedule,
                             generator=generator, labels=wanted.to(pipe.device))  # fmt: skip
    *_, end = states
    rows[f"autoguidance\nw = {w:g}"] = pipe.to_images(end.x)
for name, drawn in rows.items():
    name = name.replace("\n", ", ")
    judged[name] = found = judge(features(drawn), logits(drawn).argmax(1))
    print(f"{name:>24}:", ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
show(
    grids.show_rows({name: rows[name][10:20] for name in ("w = 1", "classifier-free\nw = 2", "autoguidance\nw = 2")}),
    "5.15",
    "Two ways to guide, from the same noise: away from all digits, and away from the errors of a worse model.",
)

# %% tags=["remove-cell"]
if as_shipped:
    for w in ("1.5", "2", "3"):
        free, auto = judged[f"classifier-free, w = {w}"], judged[f"autoguidance, w = {w}"]
        assert auto["recall"] > free["recall"]
        assert auto["distance"] > free["distance"]
        assert auto["cFID"] > 0.85 * judged["w = 1"]["cFID"]

# %% [markdown]
# At the same scale autoguidance leaves recall and distances higher than classifier-free guidance, in each pair of lines
# (see figure 5.15). In part its push is presumably weaker, if the small network is closer to the good one than the
# unconditional prediction is. And a large distance can also be scatter (section 11). It does not add quality here: no
# scale has a clearly better cFID than $w = 1$. That depends on how well the bad model's errors resemble the good one's.
# Karras et al. choose theirs with care; ours was at hand. Their lesson is that guidance needs no unconditional model,
# only a second one that makes the same errors, and more of them. Our pair neither confirms nor refutes it.
#
# ## 14. Your turn
#
# Move the slider below, or choose a single digit. Where a kernel runs, each move draws anew; on the page it shows what
# was drawn beforehand. The noise stays the same all the time.

# %%
guidance_explorer(pipe)

# %% [markdown]
# On the book's site you can also turn this 3 into an 8, or any drawing of yours into another digit. First the drawing
# is noised to time $t$ and brought back as the digit that you choose (*SDEdit*, Meng, He et al. 2021). Below that the
# model inverts it (chapter 2, section 10), told what you drew, and all ten classes begin from that one noise: what they
# share is the hand.

# %%
in_page.drawing_board(("ldm-concat", "sdedit"), ("ldm-concat", "change"))

# %% [markdown]
# ## The scoreboard
#
# The card of the weights holds measurements with 2,000 samples and 50 steps for each scale. (Chapter 8 compares the
# models.)

# %%
card = weights.read_card("ldm-concat")
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on the latents of {card['data_set']}")
settings = {"steps": 50, "num_samples": 2000}
of_scale = {row["guidance_scale"]: row for row in card["metrics"] if settings.items() <= row.items()}
for w, row in sorted(of_scale.items()):
    print(
        f"w = {w:<3g} | class accuracy {row['class_accuracy']:.1%} | recall {row['recall']:.2f} | cFID {row['cfid']:.2f}"
    )
row = best(scoreboard(10_000))["ldm-concat"]
print(f"{setting_name(row)}, 10,000 samples with random labels: {sentence(row.measures)}")

# %% tags=["remove-cell"]
if as_shipped:
    assert 1 - of_scale[1.2]["class_accuracy"] < 0.5 * (1 - of_scale[1.0]["class_accuracy"])
    assert abs(of_scale[1.2]["cfid"] / of_scale[1.0]["cfid"] - 1) < 0.25
    assert of_scale[1.5]["cfid"] > 1.25 * of_scale[1.2]["cfid"]

# %% [markdown]
# Look between 1 and 1.5, which section 11 skipped. At $w = 1.2$ most of what was drawn wrong is put right. cFID hardly
# changes, and recall falls a little. If it is the class that matters, a little guidance costs little.
#
# <details><summary>What differs from the papers</summary>
#
# - **The label.** Ho & Salimans add an embedding of the class to that of the time. Maps beside the picture are how
#   Rombach et al. (2022) condition on what has a *position*: a map of semantic classes, a low-resolution picture, a
#   mask. For a class it is more than is needed, and the simplest thing that works.
# - **The sampler and the target.** They sample stochastically and predict the noise; we use DDIM and predict $v$. (3)
#   and (6) hold for all of them.
# - **The best scale.** On ImageNet their FID is best at $w = 1.1$ (64 × 64) and $1.3$ (128 × 128), in our counting. The
#   inception score, which rewards sure and varied classes, keeps rising, as our class accuracy does.
#
# </details>
#
# ## Pitfalls
#
# - **Which $w$?** "w = 0" in the paper is $w = 1$ here (section 5).
# - **A null label that was never trained.** Zeros put in only at sampling time, or $p = 0$, give an "unconditional"
#   prediction that means nothing (exercise 3).
# - **Label 0 as the null label.** Then nobody can ask for a zero.
# - **Dropping labels in evaluation.** It belongs in the training loss alone.
# - **Comparing losses.** A conditional loss is lower because the label says something, not because the network is
#   better.
# - **Reporting a metric at the best $w$** without naming it.
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. Away from something.** Text-to-image systems have a *negative prompt*: an unwanted text in the place of the null
# label. Write that step for classes, so that $w = 1$ is the wanted class and nothing else. And what should $w = -2$
# draw in (3), asked for a three? Try it on the toy first, then with digits.

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def away_from(denoiser, x_t, t, wanted, unwanted, w):
    """x_t (B, ...), one time, two labels for each point (B,), a number w -> Prediction(x0, eps)."""
    ...  # your code here


check(away_from)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def away_from(denoiser, x_t, t, wanted, unwanted, w):
#     u, c = (denoiser(x_t, t, labels=labels) for labels in (unwanted, wanted))
#     return Prediction(u.x0 + w * (c.x0 - u.x0), u.eps + w * (c.eps - u.eps))
# ```
#
# For a negative scale:
#
# ```python
# pictures_of.show_clouds({"w = -2": walk(guided(toy, -2.0), start)}, points, asked, limit=8)
# pictures_of.show_sweep(sampling.sweep(pipe, range(10), (-4, -2, 0, 1)), range(10), (-4, -2, 0, 1))
# ```
#
# In the toy most points flee far to the right. A few stay in class 0: where everything is of class 0 anyway, (2) is
# zero, and nothing pushes. Among digits it is anything but a three, exaggerated.
#
# </details>
#
# **2. Two requests at once.** Add the pushes of two labels, $\hat\epsilon + w\,[\hat\epsilon_a - \hat\epsilon] +
# w\,[\hat\epsilon_b - \hat\epsilon]$, and the same for $\hat x_0$. What is both a three and an eight?


# %% tags=["nbval-check-output"]
def of_both(denoiser, x_t, t, a, b, w):
    """x_t (B, ...), one time, two labels for each point (B,), a number w -> Prediction(x0, eps)."""
    ...  # your code here


check(of_both)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def of_both(denoiser, x_t, t, a, b, w):
#     labels = (torch.full_like(a, NO_CLASS), a, b)
#     said = (denoiser(x_t, t, labels=each) for each in labels)
#     return Prediction(*(n + w * (p - n) + w * (q - n) for n, p, q in zip(*said)))
# ```
#
# To draw with it:
#
# ```python
# three, eight = torch.full((10,), 3, device=pipe.device), torch.full((10,), 8, device=pipe.device)
# z = pipe.noise(10, seed=3).to(pipe.device)
# ways = samplers.sample(lambda x_t, t: of_both(pipe.denoiser, x_t, t, three, eight, 1.5), z,
#                        samplers.time_grid(50), samplers.ddim, schedule=cosine, generator=generator)
# *_, end = ways
# grids.show_grid(pipe.to_images(end.x), columns=10)
# ```
#
# In logarithms the sum asks for $p(a \mid x)\, p(b \mid x)$ to be large. You get eights with an open side, threes that
# are nearly closed, and some that decide. (This is the composition of Liu, Li, Du, Torralba & Tenenbaum 2022. Du et al.
# 2023 say what (3) misses for exactly this kind of product, and
# mend it with further steps at each time.)
#
# </details>
#
# **3. Condition dropout.** Write (7)'s $\tilde c$. `chance` holds a number from $[0, 1)$ for each label. Then train in
# section 9 with `unconditional_probability=0`. What becomes of $w = 0$, and of $w = 3$?


# %% tags=["nbval-check-output"]
def hidden(labels, chance, p):
    """Labels (B,), random numbers (B,), a probability -> labels (B,), some of them dropped."""
    ...  # your code here


check(hidden)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def hidden(labels, chance, p):
#     return torch.where(chance < p, NO_CLASS, labels)
# ```
#
# And without:
#
# ```python
# certain = dataclasses.replace(pipe.recipe.condition, unconditional_probability=0.0)
# loss = loss_of_latent_diffusion(pipe.recipe.diffusion, certain)
# ```
#
# The maps of `NO_CLASS` keep their random start, since the network has never met them. At $w = 0$ it draws mostly a few
# of the digits, for no good reason (let the classifier count them). With $w = 2$ the push away from these still mends
# something. With $w = 3$ it already does damage: digits get worse than at $w = 1$, while with dropout they get better.
#
# </details>
#
# **4. An interval for the small network.** Section 12 tried intervals on a model that hardly needs guidance. Try them
# on `small`, at $w = 3$. Is early guidance still only harmful?
#
# <details><summary>Solution</summary>
#
# ```python
# for interval in ((0.0, 1.0), (0.7, 1.0), (0.3, 0.7), (0.0, 0.3)):
#     drawn = small.sample(NUMBER, labels=wanted, guidance_scale=3.0, steps=10, seed=1, guidance_interval=interval)
#     print(interval, judge(features(drawn), logits(drawn).argmax(1)))
# ```
#
# Compare with $w = 1$ in figure 5.13. A weak model makes mistakes at all times, so guidance mends some in each
# interval, the early one too: class accuracy rises and cFID falls in all three.
#
# </details>
#
# ## Summary
#
# - By Tweedie's formula (1), the score is the predicted noise, times $-1/\sigma_t$. The difference between two optimal
#   denoisers, one with a label and one without, is the gradient of an implicit classifier (2). Guidance takes it $w$
#   times (3).
# - One network is both, by condition dropout (7). What it predicts without a label is the average over labels.
# - A label can enter as maps beside the latent: a learned bias in the first layer (8).
# - Guidance makes samples surer and more alike, and drives them out of the data. It does not sample (4).
# - In this book $w = 1$ is the plain conditional model. Guide, then clip.
# - Of our two models, guidance helped the worse one. The good one it cost variety, most of all early. Autoguidance
# costs less of it, and added no quality here.
#
# ## References
#
# - Ho & Salimans (2022), *Classifier-Free Diffusion Guidance*. arXiv:2207.12598.
# - Dhariwal & Nichol (2021), *Diffusion Models Beat GANs on Image Synthesis*. NeurIPS. arXiv:2105.05233.
# - Nichol et al. (2021), *GLIDE*. arXiv:2112.10741; Saharia et al. (2022), *Imagen*. arXiv:2205.11487. (The other
#   convention; text.)
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752.
# - Liu, Li, Du, Torralba & Tenenbaum (2022), *Compositional Visual Generation with Composable Diffusion Models*. ECCV.
#   arXiv:2206.01714.
# - Naeem, Oh, Uh, Choi & Yoo (2020), *Reliable Fidelity and Diversity Metrics for Generative Models*. ICML.
#   arXiv:2002.09797.
# - Chidambaram, Gatmiry, Chen, Lee & Lu (2024), *What Does Guidance Do? A Fine-Grained Analysis in a Simple Setting*.
#   NeurIPS. arXiv:2409.13074.
# - Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), *Score-Based Generative Modeling through Stochastic
#   Differential Equations*. ICLR. arXiv:2011.13456.
# - Du et al. (2023), *Reduce, Reuse, Recycle*. ICML. arXiv:2302.11552.
# - Bradley & Nakkiran (2024), *Classifier-Free Guidance is a Predictor-Corrector*. arXiv:2408.09000.
# - Kynkäänniemi et al. (2024), *Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
#   Diffusion Models*. NeurIPS. arXiv:2404.07724.
# - Kynkäänniemi, Karras, Laine, Lehtinen & Aila (2019), *Improved Precision and Recall Metric for Assessing Generative
#   Models*. NeurIPS. arXiv:1904.06991.
# - Karras et al. (2024), *Guiding a Diffusion Model with a Bad Version of Itself*. NeurIPS. arXiv:2406.02507.
# - Meng, He, Song, Song, Wu, Zhu & Ermon (2021), *SDEdit: Guided Image Synthesis and Editing with Stochastic
#   Differential Equations*. ICLR 2022. arXiv:2108.01073.
