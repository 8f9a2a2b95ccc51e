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
# # VAE: a picture in thirty-two dimensions
#
# *Runs in about a minute on two CPU cores, without a network connection. Half of that is live training. Needs
# chapter 1.*
#
# A picture of a digit has 1,024 pixels. Most of them are black, and most of the others follow from their neighbours.
# How few would do? A *variational autoencoder* finds out: one network squeezes the picture, another one
# unfolds it, and between the two there is room for only a little. It can also generate pictures, and they are where this
# chapter ends: with a disappointment, its cause, and a plan.
#
# You will
#
# - squeeze points of the plane onto a line, and digits to 32 dimensions, with plain linear algebra;
# - derive the *evidence lower bound* on a toy in which the evidence itself is known, and watch the gap close;
# - see what the reparameterisation is good for, by leaving it out;
# - train a small VAE for a dozen seconds, then look into the space that the shipped one has found;
# - vary the weight of its KL divergence from posterior collapse to near-perfect copies, with rate, distortion, copies
#   and samples measured, and learn why no setting generates good digits.
#
# The sources are Kingma & Welling, *Auto-Encoding Variational Bayes* (2013), and for the network Rombach et al.,
# *High-Resolution Image Synthesis with Latent Diffusion Models* (2022).

# %% [markdown]
# ## Set-up, and what we are after

# %%
import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, elbo
from diffusion_book.evaluation import measures, rate_distortion
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.models.autoencoder import build_autoencoder
from diffusion_book.models.recipes import ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.training.losses import loss_of_vae
from diffusion_book.training.trainer import Trainer
from diffusion_book.evaluation.projection import principal_components
from diffusion_book.viz import animation, diagrams, grids, latents, paths, plots, style
from diffusion_book.viz.figures import show

style.use_style()
vae = diffusion_book.load("vae")
train, test = data.load("auto"), data.load("auto", "test")
x_test, labels = test.batch(torch.arange(min(1000, len(test))))  # (N, 1, 32, 32)
codes = vae.encode(x_test).cpu()  # (N, 2, 4, 4)
rows = {"picture": data.crop(x_test[:12]), "latent": latents.latent_tiles(codes[:12])}
show(
    grids.show_rows(rows | {"decoded": latents.decoded(vae, codes[:12])}),
    "3.1",
    "Test pictures, their latents, and what the decoder makes of the latents alone.",
)

# %% [markdown]
# The middle row of figure 3.1 is all that the lower row was made from: two channels of 4 x 4 entries, shown as grey
# squares. Figure 3.2 shows the parts of the model. How does a network find such a code, what does it mean, and can we
# make up new ones?

# %%
show(
    diagrams.vae(),
    "3.2",
    "A variational autoencoder. The encoder gives a distribution rather than a point; a sample of it goes to the "
    "decoder. Sections 2 to 7 derive each part.",
)

# %% [markdown]
# ## 1. One dimension for two
#
# Begin where everything can be drawn. A "picture" has two pixels, and pictures lie along a line, with some scatter
# around it. An *autoencoder* keeps one coordinate of each. The *encoder* projects a point onto a direction $u$ of length
# one, and the *decoder* puts it back there:
#
# $$z = u^\top (x - \bar x), \qquad \hat x = \bar x + z\,u. \tag{1}$$
#
# The best direction is the one in which the points vary most, the first *principal component*. What is lost is the
# variance in the others.


# %%
# NBVAL_CHECK_OUTPUT
def principal_directions(points):
    """Mean (D,), variances (D,) with the largest first, and their directions as columns (D, D)."""
    mean = points.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov(points.T, correction=0))
    return mean, variances.flip(0), directions.flip(1)


W, S = torch.tensor([1.2, 0.9], dtype=torch.float64), 0.5  # where the line points, and the scatter
generator = torch.Generator().manual_seed(0)
z, scatter = torch.randn(2000, 3, generator=generator, dtype=torch.float64).split((1, 2), dim=1)
cloud = z * W + S * scatter  # (2000, 2)

mean, variances, directions = principal_directions(cloud)
code = (cloud - mean) @ directions[:, :1]  # (2000, 1)
restored = mean + code @ directions[:, :1].T  # (2000, 2)
print(f"variances {variances[0]:.2f} and {variances[1]:.2f}")
print(f"lost by keeping one number: {(cloud - restored).square().sum(1).mean():.2f}")

# %%
pairs = torch.stack([cloud, restored])[:, :14]  # where 14 points start, and where they come back
show(
    paths.show_plane_paths({"Projected onto a line": pairs}, cloud),
    "3.3",
    "Fourteen points and the segments to their reconstructions, which all lie on the first principal direction. "
    "The length of a segment is what is lost.",
)

# %% [markdown]
# In figure 3.3 the points move at right angles to the line, and only there is anything lost.
#
# The same with digits: 1,024 pixels, and as many principal directions. We keep the first 2, or the first 32, and put
# the picture together again. The last row of figure 3.4 is an attempt to generate: 32 coordinates sampled from a normal
# distribution, each with the variance that it has in the data.

# %%
flat = train.batch(torch.arange(min(6000, len(train))))[0].flatten(1).double()  # (N, 1024)
pixel_mean, pixel_variances, pixel_directions = principal_directions(flat)


def unfold(numbers):
    """The first numbers along the principal directions, as pictures."""
    pictures = pixel_mean + numbers @ pixel_directions[:, : numbers.shape[1]].T  # (N, K) -> (N, 1024)
    return pictures.reshape(-1, 1, 32, 32).clamp(-1, 1)


kept = (x_test.flatten(1).double() - pixel_mean) @ pixel_directions
made_up = torch.randn(12, 32, generator=generator, dtype=torch.float64) * pixel_variances[:32].sqrt()
rows = {"picture": x_test[:12], "2 dimensions": unfold(kept[:12, :2]), "32 dimensions": unfold(kept[:12, :32])}
pca_error = elbo.reconstruction_error(x_test, unfold(kept[:, :32])).mean()
print(f"32 of 1,024 directions hold {pixel_variances[:32].sum() / pixel_variances.sum():.0%} of the variance")
print(f"squared error of a pixel with 32 dimensions: {pca_error:.4f}")
show(
    grids.show_rows({name: data.crop(row) for name, row in {**rows, "sampled": unfold(made_up)}.items()}),
    "3.4",
    "Principal components. The copies grow sharper with the dimension, but independent coordinates (last row) make clouds.",
)

# %% [markdown]
# Two faults are to be mended. A straight subspace does not fit digits well: a stroke that moves to the side is no sum
# of other strokes. That is what networks are for. And nothing controls the distribution of the codes: coordinates that are each
# plausible, together decode to a cloud. To generate, one must know *which codes occur*. So we start from there, and
# write down a model of how pictures arise.
#
# ## 2. A latent variable model
#
# First a latent $z \sim \mathcal N(0, 1)$ is sampled, the *prior*. It decides what the picture is about. Then the
# picture is sampled around what a decoder $g$ makes of it, the *likelihood*:
#
# $$p(x \mid z) = \mathcal N(x;\ g(z),\ \gamma^2 I). \tag{2}$$
#
# The standard deviation $\gamma$ says how exactly the decoder has to hit a pixel. The cloud above was made in this way,
# with $g(z) = w z$. For this decoder everything follows on paper. A picture has the probability density (the *evidence*)
#
# $$p(x) = \int p(x \mid z)\, p(z)\, dz = \mathcal N(x;\ 0,\ w w^\top + \gamma^2 I),$$
#
# and by Bayes' rule the latent behind a picture, the *posterior*, is distributed as
#
# $$p(z \mid x) = \mathcal N\!\left(z;\ \frac{w^\top x}{|w|^2 + \gamma^2},\ \frac{\gamma^2}{|w|^2 + \gamma^2}\right). \tag{3}$$
#
# This is the ideal encoder. Its answer is a *distribution*, since scatter leaves open which latent made the picture.
# Check both formulas against a sum over twenty thousand values of $z$.


# %%
# NBVAL_CHECK_OUTPUT
def log_likelihood(x, z):
    """log p(x | z): a picture (2,) and latents (N,) -> (N,)."""
    squares = (x - z[:, None] * W).square().sum(dim=1)
    return -squares / (2 * S**2) - math.log(2 * math.pi * S**2)


x = torch.tensor([1.4, 0.2], dtype=torch.float64)
size = W.square().sum() + S**2
true_mean, true_std = (W @ x) / size, (S**2 / size).sqrt()
covariance = torch.outer(W, W) + S**2 * torch.eye(2, dtype=torch.float64)
evidence = MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance).log_prob(x)

line = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
joint = (log_likelihood(x, line) + Normal(0, 1).log_prob(line)).exp() * (line[1] - line[0])
mean = (joint * line).sum() / joint.sum()
std = ((joint * (line - mean) ** 2).sum() / joint.sum()).sqrt()
print(f"formula: log p(x) {evidence:.4f}, z is {true_mean:.4f} ± {true_std:.4f}")
print(f"summed:  log p(x) {joint.sum().log():.4f}, z is {mean:.4f} ± {std:.4f}")

# %% [markdown]
# ## 3. The evidence lower bound
#
# If the decoder is a network, neither the integral nor Bayes' rule can be computed. So we approximate the posterior
# by an encoder $q(z \mid x)$ of our own, and need a way to measure how good it is. Since $p(x)$ does not contain $z$,
# its average over $z \sim q$ is itself, whatever $q$ is. From there it takes four lines:
#
# $$
# \begin{aligned}
# \log p(x) &= \mathbb E_q\big[\log p(x)\big] && \text{no } z \text{ in it} \\
# &= \mathbb E_q\!\left[\log \frac{p(x \mid z)\, p(z)}{p(z \mid x)}\right] && \text{Bayes' rule} \\
# &= \mathbb E_q\!\left[\log p(x \mid z) - \log \frac{q(z \mid x)}{p(z)} + \log \frac{q(z \mid x)}{p(z \mid x)}\right]
# && \text{multiply and divide by } q \\
# &= \underbrace{\mathbb E_q\big[\log p(x \mid z)\big] - D_{\mathrm{KL}}\big(q(z \mid x)\,\|\,p(z)\big)}_{\mathrm{ELBO}}
# + \underbrace{D_{\mathrm{KL}}\big(q(z \mid x)\,\|\,p(z \mid x)\big)}_{\text{gap}} && \text{name the averages.}
# \end{aligned} \tag{4}
# $$
#
# The Kullback-Leibler divergence $D_{\mathrm{KL}}(q\,\|\,p) = \mathbb E_q[\log q - \log p]$ of chapter 1 is never
# negative. So the first two terms are never more than the evidence: they are the *evidence lower bound*, ELBO. The gap is
# zero only if $q$ is the true posterior. And the bound contains nothing that we do not have: the decoder, the encoder, and
# the prior.
#
# For the toy and a Gaussian $q = \mathcal N(m, \sigma^2)$ the average is exact as well, since
# $\mathbb E_q |x - wz|^2 = |x - wm|^2 + |w|^2\sigma^2$.


# %%
# NBVAL_CHECK_OUTPUT
def toy_elbo(m, std):
    """The bound of equation 4, for q = N(m, std^2)."""
    expected = log_likelihood(x, m[None])[0] - W.square().sum() * std**2 / (2 * S**2)
    return expected - kl_divergence(Normal(m, std), Normal(0.0, 1.0))


truth = Normal(true_mean, true_std)
print(f"evidence {evidence:.4f}")
for name, m, std in (("prior", 0.0, 1.0), ("too sure", true_mean, 0.1), ("ideal", true_mean, true_std)):
    m, std = torch.as_tensor(m).double(), torch.as_tensor(std).double()
    bound, gap = toy_elbo(m, std), kl_divergence(Normal(m, std), truth)
    print(f"{name:>8}: ELBO {bound:7.4f} + gap {gap:.4f} = {bound + gap:.4f}")

# %%
stds = torch.linspace(0.05, 1.2, 200, dtype=torch.float64)
curves = {"the right mean": torch.stack([toy_elbo(true_mean, std) for std in stds])}
curves["a mean off by 0.3"] = torch.stack([toy_elbo(true_mean + 0.3, std) for std in stds])
curves["evidence"] = evidence.expand(200)
show(
    plots.plot_curves(stds, curves, "standard deviation of q", "ELBO", ylim=(-7, -2.5)),
    "3.5",
    "The bound for two means of $q$. It touches the evidence only where both mean and standard deviation are right.",
)

# %% [markdown]
# Figure 3.5 shows the gap closing. To maximise the bound does two jobs at once. Over $q$, it can only close the gap:
# the encoder moves towards the true posterior. Over the decoder, it also raises the evidence. One objective trains both.
#
# ## 4. The divergence in closed form
#
# The encoder gives a mean $\mu$ and a variance $\sigma^2$ for each dimension of the latent. Against the standard normal
#
# $$D_{\mathrm{KL}} = \mathbb E_q[\log q - \log p] = -\tfrac12(1 + \log \sigma^2) + \tfrac12(\mu^2 + \sigma^2), \tag{5}$$
#
# one such term for each dimension. It is zero where $\mu = 0$ and $\sigma = 1$: then the encoder says nothing about
# the picture. It is large where the encoder is certain, or far out. In nats, it is the cost of sending the latent of this
# picture to somebody who knows only the prior, the *rate*. Averaged over pictures it is an upper bound of the
# information that the latent holds about them:
#
# $$\mathbb E_x\, D_{\mathrm{KL}}\big(q(z \mid x)\,\|\,p(z)\big) = I(x; z) + D_{\mathrm{KL}}\big(q(z)\,\|\,p(z)\big),
# \qquad q(z) = \mathbb E_x\, q(z \mid x).$$
#
# The second term compares the *aggregate posterior* $q(z)$, the latents of all pictures together, with the prior. Keep
# it in mind: it decides in section 13 whether the model can generate.

# %%
# NBVAL_CHECK_OUTPUT
mu, log_variance = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, -1.0, -6.0])
formula = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance)
q, prior = Normal(mu, (log_variance / 2).exp()), Normal(torch.zeros(4), torch.ones(4))
assert_close(formula, kl_divergence(q, prior))
assert_close(formula.sum()[None], DiagonalGaussian(mu[None], log_variance[None]).kl())

draws = q.mean + q.stddev * torch.randn(400_000, 4, generator=generator)
counted = q.log_prob(draws) - prior.log_prob(draws)  # (400000, 4)
for number in range(4):
    sampled = f"{counted[:, number].mean():.2f} sampled"
    print(f"mean {mu[number]:4.1f}, log-variance {log_variance[number]:4.1f}: {formula[number]:.2f} nats, {sampled}")

# %% [markdown]
# ## 5. A sample that can be differentiated
#
# The other term of (4) is an average over draws of $z$. With a network for a decoder we sample one $z$ for each picture;
# over many pictures the noise averages out. But a gradient must reach the encoder *through the sample*. The
# *reparameterisation trick* is to sample from a fixed distribution, and to shift and scale the result:
#
# $$z = \mu + \sigma\,\epsilon, \qquad \epsilon \sim \mathcal N(0, 1). \tag{6}$$
#
# Now $z$ is a smooth function of $\mu$ and $\sigma$. Is that more than a change of notation? Compare three ways to
# estimate the derivative of the toy's loss with respect to $\sigma$, at $q = \mathcal N(0.3, 0.8^2)$, where it is known:
# $|w|^2\sigma/\gamma^2 + \sigma - 1/\sigma$. The first is (6). The second treats the sample as a
# constant. The third, the *score-function estimator* (REINFORCE), needs no path through $z$: it raises the probability
# of samples that came out well,
# $\nabla \mathbb E_q f(z) = \mathbb E_q [f(z)\, \nabla \log q(z)]$.


# %%
# NBVAL_CHECK_OUTPUT
def gradients(kind, count=64 * 4000):
    """One estimate of the loss's derivative by sigma for each of many draws."""
    eps = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m = torch.full((count,), 0.3, dtype=torch.float64)
    std = torch.full((count,), 0.8, dtype=torch.float64, requires_grad=True)
    q = Normal(m, std)
    draw = m + std * eps
    if kind == "through the draw":
        loss = -log_likelihood(x, draw)
    elif kind == "draw held fixed":
        loss = -log_likelihood(x, draw.detach())
    else:
        loss = -log_likelihood(x, draw.detach()) * q.log_prob(draw.detach())
    return torch.autograd.grad((loss + kl_divergence(q, prior_of_z)).sum(), std)[0]


prior_of_z = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
exact = W.square().sum() * 0.8 / S**2 + 0.8 - 1 / 0.8
estimates = {kind: gradients(kind) for kind in ("through the draw", "draw held fixed", "score function")}
print(f"exact: {exact:.2f}")
for kind, found in estimates.items():
    print(f"{kind:>16}: {found.mean():5.2f} on average, {found.std():5.2f} the spread of one draw")

# %%
means = {kind: found.reshape(-1, 64).mean(dim=1) for kind, found in estimates.items()}
figure = plots.plot_line_histograms(means, limits=(-10, 30), bins=80)
figure.axes[-1].set_xlabel("estimates of the derivative, each the mean of 64 samples")
show(figure, "3.6", "Three estimators of one derivative: precise and right, precise and wrong, right and noisy.")

# %% [markdown]
# In figure 3.6 the sample held fixed gives the same wrong value every time: all that is left is the KL divergence, which
# pulls $\sigma$ to 1 whatever the picture is. The score-function estimator is right on average, but its variance is
# large: it knows how good a sample was, and not in which direction a better one lies. To match one sample of (6) it
# needs as many samples as the square of the ratio of the spreads, here a dozen, and more with every dimension.
#
# What does the second fault do to a training? Let the encoder of the toy be $\mu = a^\top x$ with one $\sigma$ for all,
# and train it both ways. The ideal is known from (3).


# %%
# NBVAL_CHECK_OUTPUT
def train_encoder(hold_draw_fixed, steps=400):
    a = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log_std = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([a, log_std], lr=0.03)
    fresh = torch.Generator().manual_seed(0)
    for _ in range(steps):
        m, std = cloud @ a, log_std.exp()
        draw = m + std * torch.randn(m.shape, generator=fresh, dtype=torch.float64)
        draw = draw.detach() if hold_draw_fixed else draw
        error = (cloud - draw[:, None] * W).square().sum(dim=1) / (2 * S**2)
        optimizer.zero_grad()
        (error + kl_divergence(Normal(m, std), prior_of_z)).mean().backward()
        optimizer.step()
    return a.detach(), log_std.exp().item()


rows = {"ideal": (W / size, true_std), "through the draw": train_encoder(False), "draw held fixed": train_encoder(True)}
for name, (a, std) in rows.items():
    print(f"{name:>16}: mean {a[0].abs():.2f} x1 + {a[1].abs():.2f} x2, standard deviation {std:.2f}")

# %% [markdown]
# With the sample held fixed the encoder ends at the prior: the same answer for every picture. This is *posterior
# collapse*. No error message says so, and the loss falls all the same.
#
# ## 6. The networks
#
# Now digits. The encoder is the left half of chapter 1's U-Net, the decoder its right half. The skip
# connections between the two are missing: through them a picture could bypass the latent. We follow a picture's shape.

# %%
# NBVAL_CHECK_OUTPUT
network = VAE(VAEConfig())
encoder, x0 = network.encoder, torch.zeros(1, 1, 32, 32)
h = F.pixel_unshuffle(x0, 2)
print(f"{'picture':>14} {tuple(x0.shape)}")
print(f"{'folded':>14} {tuple(h.shape)}")
h = encoder.conv_in(h)
print(f"{'conv_in':>14} {tuple(h.shape)}")
for layer in encoder.levels:
    before, h = h, layer(h)
    if h.shape != before.shape:
        print(f"{type(layer).__name__:>14} {tuple(h.shape)}")
posterior = network.encode(x0)
print(f"{'mean':>14} {tuple(posterior.mean.shape)}")
print(f"{'log-variance':>14} {tuple(posterior.log_variance.shape)}")
for name, half in (("encoder", encoder), ("decoder", network.decoder)):
    print(f"{name}: {sum(parameter.numel() for parameter in half.parameters()):,} parameters")

# %% [markdown]
# A latent has 32 dimensions, but it is not a list: it has two channels on a grid of 4 x 4 positions, and each position
# encodes its part of the picture. Chapter 4 will need that, since it trains a U-Net on it.
#
# ## 7. The loss, and what its weight means
#
# With (2), $-\log p(x \mid z)$ is $|x - g(z)|^2 / 2\gamma^2$ plus a constant. Multiply the negative ELBO by
# $2\gamma^2/N$, where $N = 1024$ counts the pixels. Then the first term is the mean squared error:
#
# $$\mathrm{loss} = \frac1N |x - g(z)|^2 + \kappa\, D_{\mathrm{KL}}(q\,\|\,p), \qquad \kappa = \frac{2\gamma^2}{N}.
# \tag{7}$$
#
# So the weight $\kappa$ of the divergence, `kl_weight`, is not an addition to the theory. It says how exact the decoder
# has to be. But it does so only together with the reductions: the error is *averaged* over the pixels, the divergence
# *summed* over the latent.

# %%
# NBVAL_CHECK_OUTPUT
torch.manual_seed(0)
x0 = torch.rand(8, 1, 32, 32) * 2 - 1
noise = torch.randn(8, 2, 4, 4)
with torch.no_grad():
    reconstruction, posterior = network(x0, noise)
    library = elbo.negative_elbo(network, x0, noise, kl_weight=1e-4)
gamma = elbo.decoder_std(1e-4)
bound = -(x0 - reconstruction).square().sum(dim=(1, 2, 3)) / (2 * gamma**2) - posterior.kl()  # equation 4
assert_close(-bound * 2 * gamma**2 / 1024, library)
print("(7) is the negative ELBO times 2 gamma^2 / N")
for weight in (1e-6, 1e-4, 1e-2, 1e-1):
    gamma = elbo.decoder_std(weight)
    print(f"kl_weight {weight:.0e}: gamma is {gamma:.3f}, that is {gamma * 127.5:5.1f} grey levels")

# %% [markdown]
# A picture has 256 grey levels. With the largest weight $\gamma$ exceeds them all: the decoder may be off by more than the
# whole range from black to white, so that no picture is worth encoding.
#
# ## 8. A live training
#
# `Trainer` knows nothing of diffusion, and so the loop of chapter 1 trains a VAE too: another network, another loss.
# Ours is shallower than the shipped one, and quick.


# %%
def train_vae(config, kl_weight, steps):
    """A VAE trained for so many steps of 64 pictures, and its losses."""
    settings = TrainingConfig(batch_size=64, lr=3e-3, warmup_steps=20, ema_decay=0.98)
    recipe = Recipe("vae", settings, vae=config, elbo=ELBOConfig(kl_weight))
    torch.manual_seed(0)
    trainer = Trainer(VAE(config), loss_of_vae(recipe.elbo), train, settings)
    before = build_autoencoder(recipe, trainer.network.state_dict())
    losses = [report.loss for report in itertools.islice(trainer.steps(), steps)]
    return build_autoencoder(recipe, trainer.ema.network.state_dict()), losses, before


SHALLOW = {"channel_multipliers": (1, 2), "layers_per_block": 1, "patch_size": 4}  # two levels, and still 2 x 4 x 4
young, losses, untrained = train_vae(VAEConfig(base_channels=16, **SHALLOW), 1e-6, steps=150)
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} in the end")

# %%
rows = {"picture": data.crop(x_test[:12])}
for name, model in (("before", untrained), ("after 150 steps", young), ("shipped", vae)):
    rows[name] = data.crop(model.reconstruct(x_test[:12]))
show(grids.show_rows(rows), "3.7", "Copies of test pictures before and after the live training, and by the shipped weights.")

# %% [markdown]
# ## 9. The shipped weights
#
# The library's own recipe: a deeper network, trained for longer (last row of figure 3.7). How much of a picture survives?
# We measure the squared error, and ask a classifier whether it reads in the copy what it read in the original.

# %%
card = vae.card
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on {card['data_set']}, {card['minutes']:g} minutes")
read = logits(data.crop(x_test)).argmax(dim=1)
pca = unfold(kept[:, :32]).float()
models = {
    "32 principal components": pca,
    "VAE of section 8": young.reconstruct(x_test),
    "shipped": vae.reconstruct(x_test),
}
for name, copies in models.items():
    error = elbo.reconstruction_error(x_test, copies).mean()
    same = (logits(data.crop(copies)).argmax(dim=1) == read).double().mean()
    print(f"{name:>23}: squared error {error:.4f}, {same:.1%} read as before")
print(f"rate: {vae.network.encode(x_test[:200].to(vae.device)).kl().mean():.0f} nats a picture")
whole = card["reconstruction"]
print(f"the card, {whole['num_samples']:,} pictures: squared error {whole['mse']:.4f}, ", end="")
print(f"{whole['label_kept']:.1%} read as before")

# %% [markdown]
# After seconds of training the small VAE still loses to the principal components, which are the *best* linear
# autoencoder and need no training. A network's advantage has to be learned; the shipped one has learned it. (The rate is
# a coding cost under the prior, as section 4 said. To name one of 60,000 pictures takes 11 nats.)
#
# ## 10. The latent space
#
# A diffusion model expects data of about unit size; its schedule is made for that. The loss does
# not fix the size of latents. So it is *measured* on training pictures, channel by channel, and kept with the weights;
# `encode` shifts and scales by it. On the test pictures:

# %%
raw_mean, raw_std = vae.network.latent_mean.cpu(), vae.network.latent_std.cpu()
mean, std = elbo.latent_statistics(vae.posterior(x_test))
for channel in range(len(raw_mean)):
    raw = f"mean {raw_mean[channel]:5.2f}, standard deviation {raw_std[channel]:5.2f}"
    print(f"channel {channel}: {raw}; scaled {mean[channel]:5.2f} and {std[channel]:.2f}")

# %%
points, fractions = principal_components(codes.flatten(1))
first, second = (f"principal component {n + 1} ({fraction:.0%} of variance)" for n, fraction in enumerate(fractions))
show(
    latents.plot_small_multiples(points, labels, first, second),
    "3.8",
    "The latents of the test pictures in the plane of their first two principal components. Each panel colours one digit; "
    "the others are grey.",
)

# %% [markdown]
# Figure 3.8 shows two of 32 dimensions. Zeros and ones keep apart; 3, 5 and 8 overlap, and so do 4, 7 and 9. Digits that
# look alike lie close, though no label was used.
#
# ## 11. Two dimensions
#
# Push it further: the latents of `vae-2d` have *two* dimensions, so that the whole latent space fits on paper.

# %%
flat_land = diffusion_book.load("vae-2d")
flat_codes = flat_land.encode(x_test).cpu()
show(
    latents.plot_map(flat_land, flat_codes, labels),
    "3.9",
    "A latent space of two dimensions. Left: the latents of test pictures, coloured by digit. Right: the same square, "
    "decoded on a grid.",
)

# %% [markdown]
# In figure 3.9 a few digits form clusters of their own, such as 0 and 1. The others overlap, 3 with 5 and 8, and 4 with 7
# and 9; in between, the decoder paints shapes that could be either. Two dimensions are few: kinds of digits survive,
# details do not. Figure 3.10 walks around a circle in this plane.

# %%
angle = torch.arange(60)[:, None] / 60 * 2 * math.pi + torch.arange(6) / 6 * 2 * math.pi  # (60, 6)
circle = 1.3 * torch.stack([angle.cos(), angle.sin()], dim=-1)[..., None, None]  # (60, 6, 2, 1, 1)
film = torch.stack([grids.grid(frame, columns=6) for frame in latents.decoded(flat_land, circle)])
show(
    animation.animate(film, milliseconds=120, alt="Six points that move on a circle in the latent plane, decoded"),
    "3.10",
    "Six points at equal distances move around a circle of radius 1.3 in the latent plane, and are decoded.",
)

# %% [markdown]
# ## 12. Rate against distortion
#
# The recipe of `vae` has $\kappa = 10^{-6}$, that of `vae-2d` $10^{-4}$. What does the weight do? The toy allows a
# forecast. Along its line the data have the variance $v = |w|^2 + \gamma^2$. Put the ideal encoder (3) into (5), average
# over the data, and nearly everything cancels:
#
# $$\mathbb E\, D_{\mathrm{KL}} = \tfrac12 \log \frac{v}{\gamma^2}. \tag{8}$$
#
# A direction whose variance is not above $\gamma^2$ is left out (exercise 2): its posterior *collapses* to the prior.
# Sum (8) over the 32 principal components of section 1, and compare with five convolutional VAEs, trained alike but for
# $\kappa$. A dimension is called *active* if its rate is above 0.1 nats. Training and measuring took minutes, so the
# results are stored; `python -m diffusion_book.evaluation.rate_distortion` makes them again.

# %%
sweep = rate_distortion.stored()
count = sweep["num_samples"].item()
for row, weight in enumerate(sweep["kl_weight"].tolist()):
    forecast = 0.5 * (pixel_variances[:32] / elbo.decoder_std(weight) ** 2).log().clamp(min=0).sum()  # equation 8
    at = {name: sweep[name][row].item() for name in ("distortion", "active", "rate", "copies_cfid", "samples_cfid")}
    print(f"kl_weight {weight:g}: error {at['distortion']:.4f}, {at['active']} active dimensions, ", end="")
    print(f"rate {at['rate']:5.1f} nats (linear forecast {forecast:5.1f}), ", end="")
    print(f"cFID of copies {at['copies_cfid']:5.1f}, of samples {at['samples_cfid']:5.1f}")
print(f"(cFID of {count:,} pictures each; real ones: {measures.floor(count).mean:.2f})")

# %%
curves = {"copies": sweep["copies_cfid"], "samples from the prior": sweep["samples_cfid"]}
show(
    plots.plot_curves(sweep["kl_weight"], curves, "KL weight", "cFID", xscale="log", yscale="log"),
    "3.11",
    "The same five VAEs, judged by their copies and by their samples. To the left copies improve and samples get worse.",
)

# %%
gap = torch.full((1, 1, 28, 28), grids.GAP / 127.5 - 1)
rows = {"picture": data.crop(data.load("auto", "test").batch(torch.arange(7))[0])}
for row, weight in enumerate(sweep["kl_weight"].tolist()):
    rows[f"{weight:g}"] = torch.cat([sweep["copies"][row], gap, sweep["samples"][row]])
show(
    grids.show_rows(rows),
    "3.12",
    "Rows: the KL weight. Left of the gap copies of the pictures in the first row, right of it samples: latents from the "
    "prior, decoded.",
)

# %% tags=["remove-cell"]
distortion, of_copies, of_samples = sweep["distortion"], sweep["copies_cfid"], sweep["samples_cfid"]
assert sweep["active"][0] == 0  # posterior collapse at the largest weight
assert (sweep["rate"].diff() > 0).all() and distortion[-1] < 0.5 * distortion[0]
assert of_samples.argmin() not in (0, 4) and of_copies[4] < of_copies[2]  # copies and samples want different weights
assert of_samples[4] > of_samples.min() > 5 * of_copies.min()

# %% [markdown]
# At the largest weight nothing is active: complete posterior collapse. The decoder gives the average digit, for every
# picture and for every sample (figure 3.12). As the weight falls, the rate rises and the distortion falls: this is the
# *rate-distortion trade-off*. The copies improve all the way, and then hardly any more: what they still lose is the
# network's fault, not the weight's. The samples do best in the middle, and even there are several times worse than the
# best copies (figure 3.11).
#
# So no weight is good at both. Chapter 4 will not look for the best compromise. It takes a small weight, with good
# copies, and leaves the sampling of latents to another model. Why the samples fail is the next question.
#
# ## 13. Aggregate posterior and prior
#
# A sample $z \sim p(z)$ decodes to a digit only if the decoder has been trained near it, that is, if the aggregate
# posterior $q(z)$ of section 4 has mass there. Compare the two, in the plane for `vae-2d`, and for `vae` in the plane of
# the first two principal components of its latents.

# %%
flat_spread = elbo.latent_statistics(flat_land.posterior(x_test))
plane = torch.randn(len(codes), 2, generator=generator)
show(
    latents.plot_against_prior({"prior": plane, "vae-2d": flat_codes[:, :, 0, 0], "vae": points - points.mean(0)}),
    "3.13",
    "Samples of the prior, and latents of test pictures for two VAEs. The circles are one and two standard deviations of "
    "the prior.",
)

# %% [markdown]
# The latents in figure 3.13 do not fill the circles as the prior does. In the plane of `vae-2d` there are clusters and, between
# them, *holes*: regions where the prior has mass and no picture is. Those of `vae` are stretched, since dimensions depend
# on each other. A sample of the prior that falls there is decoded by a network that has never seen its like. In 32
# dimensions there is far more room for this than in two.
#
# ## 14. What does one dimension do?
#
# We take one picture's latent, and move one of its entries from $-3$ to $3$ standard deviations: the four positions in
# the middle of the grid, in both channels.

# %%
show(
    latents.show_traversals(vae, codes[0], numbers=(5, 6, 9, 10, 21, 22, 25, 26)),
    "3.14",
    "Traversals: each row changes one dimension of the same latent, and nothing else.",
)

# %% [markdown]
# In figure 3.14 a dimension acts where its position is. A moderate change lengthens a stroke there, bends it or moves it,
# and most of the digit stays. Nothing in the loss asks that a dimension should mean "slant" or "thickness", and none does.
# Far out the strokes fall apart.
#
# ## 15. Between two digits
#
# Half way between two pictures is a cross-fade: half of each, both see-through. What is half way between two latents?

# %%
rows = {}
for one, other in ((3, 5), (0, 7)):
    pair = [int((labels == digit).nonzero()[1]) for digit in (one, other)]
    rows[f"{one} to {other}, pixels"] = latents.between(*data.crop(x_test[pair]), count=11)
    rows[f"{one} to {other}, latents"] = latents.decoded(vae, latents.between(*codes[pair], count=11))
show(
    grids.show_rows(rows),
    "3.15",
    "Straight lines between two test pictures, in pixels and in latents. The latents at the ends are those of the pictures.",
)


# %%
def fraction_of_digits(pictures):
    """The fraction of these pictures in which the classifier sees a digit with 90 % certainty."""
    return (logits(pictures).softmax(dim=1).max(dim=1).values >= 0.9).double().mean().item()


first, second = torch.arange(len(x_test)).chunk(2)
ends = {"in pixels": data.crop(x_test)}
middles = {"in pixels": data.crop((x_test[first] + x_test[second]) / 2)}
for name, model, held in (("vae", vae, codes), ("vae-2d", flat_land, flat_codes)):
    ends[name] = latents.decoded(model, held)
    middles[name] = latents.decoded(model, (held[first] + held[second]) / 2)
for name in ends:
    print(f"{name:>10}: clearly a digit at the ends {fraction_of_digits(ends[name]):.0%}, ", end="")
    print(f"in the middle {fraction_of_digits(middles[name]):.0%}")

# %% [markdown]
# In the cross-fades of figure 3.15 two see-through digits overlap. In latents strokes bend and join on the way instead,
# but not every way is good: of many random pairs the printed fractions say how often the middle is still a digit. The
# latents of `vae` do better than pixels, and lose many digits in the holes of section 13. The plane of `vae-2d`, filled
# more densely because of its larger weight, gets through more often, although its copies are blurred at the ends already.
#
# ## 16. Why it cannot generate
#
# Now ask the shipped VAE for new digits, as (2) has it: sample $z$ from the prior, decode. Figure 3.16 shows three ways
# to sample, and for comparison the latents of real training pictures. *cFID* is chapter 1's distance; its floor is what
# as many real pictures reach, on average over ten sets. The last row is one set, and may lie below that average.

# %%
count = min(1000, len(train))
seen = train.batch(torch.arange(count))[0]
known = vae.encode(seen).cpu()  # (N, 2, 4, 4)
vector = known.flatten(1).double()
normal = torch.randn(count, 2, 4, 4, generator=generator)
fitted = MultivariateNormal(vector.mean(dim=0), torch.cov(vector.T))
torch.manual_seed(0)
drawn = {
    "prior": (normal - raw_mean[:, None, None]) / raw_std[:, None, None],  # decode() multiplies and adds
    "prior, scaled": normal,
    "fitted Gaussian": fitted.sample((count,)).float().reshape(known.shape),
    "latents of pictures": known,
}
rows = {name: latents.decoded(vae, z) for name, z in drawn.items()}
reference = reference_features()["test"]
distances = {name: frechet_distance(features(pictures), reference) for name, pictures in rows.items()}
for name, distance in distances.items():
    print(f"{name:>17}: cFID {distance:7.3f}")
print(f"{'floor':>17}: cFID {measures.floor(count).mean:7.3f} +- {measures.floor(count).std:.3f}")
show(
    grids.show_rows({name: pictures[:12] for name, pictures in rows.items()}),
    "3.16",
    "Decoded latents, from three distributions and (last row) from pictures. The decoder is the same in all rows.",
)

# %% [markdown]
# The decoder is not at fault: from the latents of pictures it makes pictures. The *distribution of the latents* is. With
# $\kappa = 10^{-6}$ the divergence costs next to nothing, and the aggregate posterior need not look like the prior. It is
# wider (section 10), so the prior covers only its middle (first row). Rescaling mends the size, and hardly the
# pictures (second row): it cannot mend that the dimensions depend on each other. A stroke that leaves one position has
# to arrive in the next. A Gaussian with all pairwise covariances knows a part of that, and is much better (third row).
# What is left to learn is not Gaussian.
#
# How dependent are they? If the 32 dimensions were independent with variance 1, all directions in latent space would
# have the same variance.

# %%
ours = torch.linalg.eigvalsh(torch.cov(vector.T)).flip(0)
chance = torch.linalg.eigvalsh(torch.cov(normal.flatten(1).double().T)).flip(0)
curves = {"latents of pictures": ours, "samples of the prior": chance}
show(
    plots.plot_curves(range(1, 33), curves, "principal direction, sorted", "variance", yscale="log"),
    "3.17",
    "The variance of latents along their principal directions. For independent dimensions the curve would be flat, but for "
    "the slope that as many samples of the prior show by chance.",
)

# %% [markdown]
# The curve of the latents in figure 3.17 is far steeper than chance. So here is the plan. We have 32 dimensions of unit
# size instead of 1,024 pixels, a decoder that turns them into sharp digits, and an aggregate posterior that is no
# Gaussian. What we need is a method that learns to sample from an unknown distribution, starting from a Gaussian.
# Chapter 1 has one. The next chapter puts the two together.
#
# ## The scoreboard

# %%
for name in ("prior, scaled", "fitted Gaussian"):
    ratio = distances[name] / measures.floor(count).mean
    print(f"VAE, {name} | 1 evaluation | cFID {distances[name]:.3f} | {ratio:.0f} times the floor | {count:,} samples")

# %% [markdown]
# ## What differs from the papers
#
# - Kingma & Welling let a pixel be on or off, with a probability (Bernoulli), for digits. Ours is Gaussian with a
#   fixed $\gamma$, which is the squared error. Their networks have one hidden layer.
# - Their bound has no weight. Higgins et al. multiply its divergence by a weight (β-VAE). With a squared error that is the same
#   as another $\gamma$, by (7).
# - Rombach et al. add a perceptual loss and a discriminator, so that photographs come out crisp. Digits of 28 x 28
#   pixels do without.
# - They measure one scale for all channels, on the first batch. We measure mean and scale of each channel on ten
#   thousand pictures.
# - They reduce photographs by 4 or 8 in height and width, to three or four channels. We reduce digits by 8, to two.
#
# ## Pitfalls
#
# - **Summed or averaged?** "kl_weight 1e-6" means nothing without the reductions. With the error summed over the
#   pixels the same weight counts 1,024 times less; with the divergence averaged over the latent, 32 times less.
# - **A sample under `no_grad`, or detached.** The loss falls, and the posterior collapses (section 5).
# - **Log-variances without limits.** An untrained encoder may say 100, and $e^{100}$ is no number in half precision.
#   `DiagonalGaussian` clamps them.
# - **Posterior collapse mistaken for convergence.** Look at the divergence, dimension by dimension. All zeros means that
#   the decoder works alone.
# - **One literal for the scale.** 0.18215 is right for one network and its weights. Measure yours.
# - **Judging a VAE by its copies.** They say nothing about its samples (section 12).
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. Bits.** A nat is $1/\ln 2$ bits. How many bits does a code hold of its picture, if the encoder gives this
# posterior? And how many the shipped one, by section 9? Compare with a PNG of the same picture, and explain the
# difference.

# %%
# NBVAL_CHECK_OUTPUT
from diffusion_book.exercises import check


def bits(mean, log_variance):
    """Mean and log-variance of posteriors, (B, C, H, W) -> bits a picture, (B,)."""
    ...  # your code here


check(bits)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bits(mean, log_variance):
#     nats = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)  # equation (5)
#     return nats.sum(dim=(1, 2, 3)) / math.log(2)
# ```
#
# A PNG of a 28 x 28 digit takes some two thousand bits, and gives every grey level back. The VAE is off by several levels
# on average (half the root of the squared error, times 255), and knows what digits look like before it has seen the
# code; PNG knows nothing. (The divergence is the cost of the code under the prior $\mathcal N(0,1)$. Under a better
# prior the same code is cheaper, which is another way to state the plan of section 16.)
#
# </details>
#
# **2. When is a direction worth a dimension?** Take the toy with a free length of $w$. Maximise the average ELBO over
# $|w|$ with the ideal encoder, that is, the evidence. What is the best $|w|^2$, if the data have a given variance along
# $w$? For which variance is it zero?


# %%
# NBVAL_CHECK_OUTPUT
def best_square(variance, gamma):
    """Variances of the data, (K,), and the decoder's gamma, a number -> the best |w|^2 for each, (K,)."""
    ...  # your code here


check(best_square)

# %% [markdown]
# <details><summary>Solution</summary>
#
# With the ideal encoder the ELBO is the evidence. Along $w$ the model's variance is $|w|^2 + \gamma^2$. If that of the data
# is $v$, the average log density is $-\tfrac12 \log(|w|^2 + \gamma^2) - v / 2(|w|^2 + \gamma^2)$ plus a constant, which is
# largest at $|w|^2 + \gamma^2 = v$. So $|w|^2 = v - \gamma^2$ where that is positive, else $|w| = 0$: a direction with less
# variance than the decoder's own scatter stays unused (Tipping & Bishop 1999; Lucas et al. 2019).
#
# ```python
# def best_square(variance, gamma):
#     return (variance - gamma**2).clamp(min=0)
# ```
#
# </details>
#
# **3. Sample by digit.** Fit ten Gaussians to the latents, one for each label, and sample from them. What is the cFID now?
#
# <details><summary>Solution</summary>
#
# ```python
# labels_seen = train.labels[:count]
# parts = []
# for digit in range(10):
#     own = vector[labels_seen == digit]
#     covariance = torch.cov(own.T) + 1e-3 * torch.eye(32)
#     parts.append(MultivariateNormal(own.mean(dim=0), covariance).sample((len(own),)))
# pictures = latents.decoded(vae, torch.cat(parts).float().reshape(-1, 2, 4, 4))
# frechet_distance(features(pictures), reference)
# ```
#
# Much less than with one Gaussian. Most of what is not Gaussian in the latents is that there are ten kinds of digits.
# Within a kind a Gaussian goes a long way, though strokes still break here and there. But the labels had to be given,
# and data without such classes cannot be split so. Chapter 4 needs no labels.
#
# </details>
#
# **4. The whole loss.** Write (7) for one sample, from what the encoder gives to the loss of each picture. `check` looks at
# the gradients too. Somebody writes `.kl().mean() / 32` instead, and keeps $\kappa = 10^{-3}$. Which row of section 12
# do they get, about?


# %%
# NBVAL_CHECK_OUTPUT
def vae_loss(decode, x, mean, log_variance, noise, kl_weight):
    """Pictures (B, 1, H, W); mean, log-variance and noise like latents, (B, C, h, w) -> (B,)."""
    ...  # your code here


check(vae_loss)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def vae_loss(decode, x, mean, log_variance, noise, kl_weight):
#     z = mean + (log_variance / 2).exp() * noise
#     error = (x - decode(z)).square().mean(dim=(1, 2, 3))
#     divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))
#     return error + kl_weight * divergence
# ```
#
# Their weight is $10^{-3} / 32 \approx 3 \cdot 10^{-5}$ in our reductions: between the last two rows, nearer to
# $10^{-4}$. Nothing fails; copies are better and samples worse than they expect.
#
# </details>
#
# ## Summary
#
# - An autoencoder maps a picture to a latent of few dimensions. A *variational* one keeps a distribution, and pays in
#   nats for its divergence from the prior.
# - The ELBO (4) is the evidence minus the divergence of the encoder from the true posterior. It trains both networks.
# - The gradient must go through the sample (6). Without it the posterior collapses, without an error.
# - The weight of the divergence (7) is the decoder's accuracy in disguise. It trades rate against distortion, and decides
#   which dimensions are active.
# - A small weight gives good copies, and an aggregate posterior that the prior does not match. Another model has to
#   learn to sample from it: chapter 4.
#
# ## References
#
# - Kingma & Welling (2013), *Auto-Encoding Variational Bayes*. ICLR 2014. arXiv:1312.6114.
# - Rezende, Mohamed & Wierstra (2014), *Stochastic Backpropagation and Approximate Inference in Deep Generative
#   Models*. ICML. arXiv:1401.4082.
# - Tipping & Bishop (1999), *Probabilistic Principal Component Analysis*. Journal of the Royal Statistical Society B.
# - Burda, Grosse & Salakhutdinov (2016), *Importance Weighted Autoencoders*. ICLR. arXiv:1509.00519.
# - Higgins et al. (2017), *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*. ICLR.
# - Lucas, Tucker, Grosse & Norouzi (2019), *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse*.
#   NeurIPS. arXiv:1911.02469.
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752.
