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
# A picture of a digit has 1,024 pixels. Most are black, and most of the others can be predicted from their neighbours.
# How few dimensions are enough? A *variational autoencoder* (VAE) learns an answer. One network, the *encoder*,
# compresses the picture to a *latent* of few dimensions; a second one, the *decoder*, restores the picture from it. A
# VAE can also generate new pictures, but not good ones. The reason leads to chapter 4.
#
# You will
#
# - compress points and digits with linear algebra;
# - derive the *evidence lower bound* line by line, on a toy whose evidence is known;
# - see why the latent is sampled by reparameterisation;
# - train a small VAE in a few seconds, and explore the latent space of a larger one;
# - trade rate against distortion, and measure copies and samples;
# - compare the aggregate posterior with the prior, and find out why samples fail.
#
# The sources are Kingma & Welling, *Auto-Encoding Variational Bayes* (2013), and for the network Rombach et al.,
# *High-Resolution Image Synthesis with Latent Diffusion Models* (2022).
#
# *Note.* The pictures are MNIST's. If MNIST is not on your machine and cannot be downloaded, the chapter takes the
# 1,797 small digits of scikit-learn. All cells run, but the shipped weights have learned MNIST, and are worse on other
# pictures than the text says.

# %% [markdown]
# ## Set-up, and what we are after

# %%
import itertools
import math

import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, elbo
from diffusion_book.evaluation import measures, rate_distortion
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.evaluation.projection import principal_components
from diffusion_book.models.autoencoder import build_autoencoder
from diffusion_book.models.recipes import ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.training.losses import loss_of_vae
from diffusion_book.training.trainer import Trainer
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
    "Test pictures, their latents, and the pictures that the decoder makes of the latents alone.",
)

# %% [markdown]
# The middle row of figure 3.1 is all that the decoder is given: two channels of 4 × 4 entries. (`vae.encode` returns
# the mean of the distribution of which figure 3.2 speaks.) Figure 3.2 shows the parts of the model. How do two networks
# find such a code? What does it mean? And can we make up new ones?

# %%
show(
    diagrams.vae(),
    "3.2",
    "A variational autoencoder. The encoder returns a distribution, not a point. A sample of it goes to the decoder. "
    "Sections 2 to 7 derive each part.",
)

# %% [markdown]
# ## 1. One dimension for two
#
# Let us begin where everything can be drawn. "Pictures" of two pixels lie along a line, with some scatter around it. An
# *autoencoder* keeps one coordinate of each: the encoder projects a point $x$ onto a direction $e$ of length one, and
# the decoder puts it back on the line through the mean $\bar x$,
#
# $$z = e^\top (x - \bar x), \qquad \hat x = \bar x + z\,e. \tag{1}$$
#
# The best direction is the one in which the points vary most, the first *principal component*. What is lost is the
# variance in the other directions.


# %% tags=["nbval-check-output"]
def principal_directions(points):
    """Mean (D,), variances (D,) with the largest first, and their directions as columns (D, D)."""
    mean = points.mean(dim=0)
    variances, directions = torch.linalg.eigh(torch.cov(points.T, correction=0))
    return mean, variances.flip(0), directions.flip(1)


W, GAMMA = torch.tensor([1.2, 0.9], dtype=torch.float64), 0.5  # the direction of the line, and the scatter
generator = torch.Generator().manual_seed(0)
z, scatter = torch.randn(2000, 3, generator=generator, dtype=torch.float64).split((1, 2), dim=1)
cloud = z * W + GAMMA * scatter  # (2000, 2)

mean, variances, directions = principal_directions(cloud)
code = (cloud - mean) @ directions[:, :1]  # (2000, 1)
restored = mean + code @ directions[:, :1].T  # (2000, 2)
print(f"variances {variances[0]:.2f} and {variances[1]:.2f}")
print(f"lost by keeping one dimension: {(cloud - restored).square().sum(1).mean():.2f}")

# %%
far = ((cloud - restored).norm(dim=1) > 0.7) & (cloud.norm(dim=1) < 2.8)  # where the error is easily seen
pairs = torch.stack([cloud, restored])[:, far][:, :10]
show(
    paths.show_plane_paths(
        {"Projected onto a line": pairs}, cloud, 4.5, line=directions[:, 0], labels=("point", "reconstruction")
    ),
    "3.3",
    "Ten points with large errors, joined to their reconstructions on the first principal direction. The length of a "
    "segment is the error.",
)

# %% [markdown]
# In figure 3.3 every point moves at right angles to the line. Digits have 1,024 pixels, and as many principal
# directions. In figure 3.4 we keep the first 2, or the first 32, and restore the picture. The last row is an attempt to
# generate: 32 independent normal coordinates, each with the variance that it has in the data.

# %%
flat = train.batch(torch.arange(min(6000, len(train))))[0].flatten(1).double()  # (N, 1024)
pixel_mean, pixel_variances, pixel_directions = principal_directions(flat)


def unfold(coordinates):
    """The first coordinates along the principal directions, as pictures."""
    pictures = pixel_mean + coordinates @ pixel_directions[:, : coordinates.shape[1]].T  # (N, K) -> (N, 1024)
    return pictures.reshape(-1, 1, 32, 32).clamp(-1, 1)


kept = (x_test.flatten(1).double() - pixel_mean) @ pixel_directions
made_up = torch.randn(12, 32, generator=generator, dtype=torch.float64) * pixel_variances[:32].sqrt()
rows = {"picture": x_test[:12], "2 dimensions": unfold(kept[:12, :2]), "32 dimensions": unfold(kept[:12, :32])}
pca = unfold(kept[:, :32]).float()
print(f"32 of 1,024 directions hold {pixel_variances[:32].sum() / pixel_variances.sum():.0%} of the variance")
print(f"squared error of a pixel with 32 dimensions: {elbo.reconstruction_error(x_test, pca).mean():.4f}")
show(
    grids.show_rows({name: data.crop(row) for name, row in {**rows, "sampled": unfold(made_up)}.items()}),
    "3.4",
    "Principal components. More dimensions give better copies, but independent coordinates (last row) give no digits.",
)

# %% [markdown]
# Two things are missing. First, a linear map fits digits badly: a stroke that moves sideways cannot be written as a sum
# of other strokes. Networks are not linear. Second, we do not know *which codes occur*. Coordinates that are plausible
# one by one need not be plausible together, as the last row shows. We begin with the second point, and write down a
# model of how pictures arise.
#
# ## 2. A latent variable model
#
# First a latent $z$ is sampled from the *prior* $p(z) = \mathcal N(0, 1)$. It decides what the picture shows. Then the
# picture is sampled from the *likelihood*, a Gaussian around the output of a decoder $g$:
#
# $$p(x \mid z) = \mathcal N(x;\ g(z),\ \gamma^2 I). \tag{2}$$
#
# The standard deviation $\gamma$ says how far a pixel may be from the decoder's output. The points of figure 3.3 were
# made in this way, with $g(z) = w z$. For this decoder everything can be computed. The probability density of a
# picture, the *evidence*, is
#
# $$p(x) = \int p(x \mid z)\, p(z)\, dz = \mathcal N(x;\ 0,\ w w^\top + \gamma^2 I),$$
#
# and Bayes' rule gives the distribution of the latent behind a picture, the *posterior*:
#
# $$p(z \mid x) = \mathcal N\!\left(z;\ \frac{w^\top x}{|w|^2 + \gamma^2},\ \frac{\gamma^2}{|w|^2 + \gamma^2}\right). \tag{3}$$
#
# This is the ideal encoder. It returns a *distribution*, because the scatter leaves open which latent made the picture.
# We check both formulas against a sum over twenty thousand values of $z$.


# %% tags=["nbval-check-output"]
def log_likelihood(x, z):
    """log p(x | z): a picture (2,) and latents (N,) -> (N,)."""
    squares = (x - z[:, None] * W).square().sum(dim=1)
    return -squares / (2 * GAMMA**2) - math.log(2 * math.pi * GAMMA**2)


x = torch.tensor([1.4, 0.2], dtype=torch.float64)
size = W.square().sum() + GAMMA**2
true_mean, true_std = (W @ x) / size, (GAMMA**2 / size).sqrt()
covariance = torch.outer(W, W) + GAMMA**2 * torch.eye(2, dtype=torch.float64)
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
# If the decoder is a network, neither the integral nor Bayes' rule can be computed. So we approximate the posterior by
# an encoder $q(z \mid x)$ of our own. How good is it? Since $\log p(x)$ does not contain $z$, its average over $z \sim
# q(z \mid x)$ is $\log p(x)$ again, whatever $q$ is. From there it takes four lines:
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
# negative. So the ELBO is at most the evidence: it is the *evidence lower bound*. The gap is zero only if $q$ is the
# true posterior. And the bound needs only what we have: decoder, encoder and prior.
#
# For the toy and a Gaussian $q = \mathcal N(\mu, \sigma^2)$ the bound and the gap can both be computed, since $\mathbb
# E_q |x - wz|^2 = |x - w\mu|^2 + |w|^2\sigma^2$.


# %% tags=["nbval-check-output"]
def toy_elbo(mu, sigma):
    """The bound of equation 4, for q = N(mu, sigma^2)."""
    expected = log_likelihood(x, mu[None])[0] - W.square().sum() * sigma**2 / (2 * GAMMA**2)
    return expected - kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0))


truth = Normal(true_mean, true_std)
print(f"evidence {evidence:.4f}")
for name, mu, sigma in (("prior", 0.0, 1.0), ("too sure", true_mean, 0.1), ("ideal", true_mean, true_std)):
    mu, sigma = torch.as_tensor(mu).double(), torch.as_tensor(sigma).double()
    bound, gap = toy_elbo(mu, sigma), kl_divergence(Normal(mu, sigma), truth)
    print(f"{name:>8}: ELBO {bound:7.4f} + gap {gap:.4f} = {bound + gap:.4f}")

# %%
sigmas = torch.linspace(0.05, 1.2, 200, dtype=torch.float64)
curves = {"the right mean": torch.stack([toy_elbo(true_mean, sigma) for sigma in sigmas])}
curves["a mean off by 0.3"] = torch.stack([toy_elbo(true_mean + 0.3, sigma) for sigma in sigmas])
curves["evidence"] = evidence.expand(200)
show(
    plots.plot_curves(sigmas, curves, "standard deviation of q", "ELBO", ylim=(-7, -2.5)),
    "3.5",
    "The bound for two means of $q$. It touches the evidence only where mean and standard deviation are both right.",
)

# %% [markdown]
# Maximising the bound does two jobs at once. Maximised over $q$, it closes the gap of figure 3.5: the encoder
# approaches the true posterior. Maximised over the decoder, it pushes the evidence up, which is never below the bound.
# One objective trains both networks.
#
# ## 4. The divergence in closed form
#
# The encoder returns a mean $\mu$ and a variance $\sigma^2$ for each dimension of the latent. The divergence from the
# standard normal prior is a sum over the dimensions. Each contributes (the two $\tfrac12 \log 2\pi$ cancel)
#
# $$D_{\mathrm{KL}} = \mathbb E_q[\log q - \log p] = -\tfrac12(1 + \log \sigma^2) + \tfrac12(\mu^2 + \sigma^2). \tag{5}$$
#
# It is zero where $\mu = 0$ and $\sigma = 1$: then the encoder says nothing about the picture. It is large where the
# encoder is certain, or far from zero. Measured in nats, it is the *rate*: how many nats more it costs to send the
# latent to somebody who knows only the prior than to one who knows $q(z \mid x)$ (the *bits-back* argument, which we do
# not prove). How much of that is information about the picture? Averaged over pictures, the rate has two parts,
#
# $$\mathbb E_x\, D_{\mathrm{KL}}\big(q(z \mid x)\,\|\,p(z)\big) = I(x; z) + D_{\mathrm{KL}}\big(q(z)\,\|\,p(z)\big),
# \qquad q(z) = \mathbb E_x\, q(z \mid x).$$
#
# The mutual information $I(x; z)$ is what the latent says about the picture; the rate is an upper bound of it. (Write
# $\log \frac{q(z \mid x)}{p(z)}$ as $\log \frac{q(z \mid x)}{q(z)} + \log \frac{q(z)}{p(z)}$ and average over pictures
# and latents: the first part is $I(x; z)$ by definition.) The second part compares the *aggregate posterior* $q(z)$,
# the latents of all pictures together, with the prior. Keep it in mind: it decides whether the model can generate
# (section 14).

# %% tags=["nbval-check-output"]
mu, log_variance = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, -1.0, -6.0])
formula = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance)
q, prior = Normal(mu, (log_variance / 2).exp()), Normal(torch.zeros(4), torch.ones(4))
assert_close(formula, kl_divergence(q, prior))
assert_close(formula.sum()[None], DiagonalGaussian(mu[None], log_variance[None]).kl())

z = q.mean + q.stddev * torch.randn(400_000, 4, generator=generator)
counted = q.log_prob(z) - prior.log_prob(z)  # (400000, 4)
for i in range(4):
    sampled = f"{counted[:, i].mean():.2f} sampled"
    print(f"mean {mu[i]:4.1f}, log-variance {log_variance[i]:4.1f}: {formula[i]:.2f} nats, {sampled}")

# %% [markdown]
# ## 5. A sample that can be differentiated
#
# The first term of the ELBO is an average over samples of $z$. One sample for each picture is enough, since the noise
# averages out over many pictures. But how does a gradient reach the encoder *through a sample*? The *reparameterisation
# trick* (Kingma & Welling 2013; Rezende et al. 2014) takes a sample of a fixed distribution, and shifts and scales it:
#
# $$z = \mu + \sigma\,\epsilon, \qquad \epsilon \sim \mathcal N(0, 1). \tag{6}$$
#
# Now $z$ is a smooth function of $\mu$ and $\sigma$. What do we gain? The loss of the toy is its negative ELBO. We know
# its derivative with respect to $\sigma$, and estimate it in three ways. The first uses (6). The second treats the
# sample as a constant. The third, the *score-function estimator* (REINFORCE), makes good samples more probable. With
# $f(z) = -\log p(x \mid z)$, the quantity that is averaged, $\nabla_\sigma \mathbb E_q f(z) = \mathbb E_q [f(z)\,
# \nabla_\sigma \log q(z \mid x)]$.


# %% tags=["nbval-check-output"]
def gradients(kind, count=64 * 4000):
    """One estimate of the loss's derivative with respect to sigma for each of many samples."""
    eps = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu = torch.full((count,), 0.3, dtype=torch.float64)
    sigma = torch.full((count,), 0.8, dtype=torch.float64, requires_grad=True)
    q = Normal(mu, sigma)
    z = mu + sigma * eps
    if kind == "reparameterised":
        loss = -log_likelihood(x, z)
    elif kind == "held constant":
        loss = -log_likelihood(x, z.detach())
    else:
        loss = -log_likelihood(x, z.detach()) * q.log_prob(z.detach())
    return torch.autograd.grad((loss + kl_divergence(q, standard)).sum(), sigma)[0]


standard = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
exact = W.square().sum() * 0.8 / GAMMA**2 + 0.8 - 1 / 0.8  # of |w|^2 sigma^2 / 2 gamma^2 and (5)
estimates = {kind: gradients(kind) for kind in ("reparameterised", "held constant", "score function")}
print(f"exact: {exact:.2f}")
for kind, found in estimates.items():
    print(f"{kind:>15}: mean {found.mean():5.2f}, standard deviation of one sample {found.std():5.2f}")

# %%
means = {kind: found.reshape(-1, 64).mean(dim=1) for kind, found in estimates.items()}
figure = plots.plot_line_histograms(means, limits=(-10, 30), bins=80)
figure.axes[-1].set_xlabel("estimates of the derivative, each the mean of 64 samples")
show(figure, "3.6", "Three estimators of one derivative: precise and right, precise and wrong, right and noisy.")

# %% [markdown]
# With the sample held constant, every estimate in figure 3.6 has the same wrong value. Only the divergence is left, and
# it pulls $\sigma$ to 1 whatever the picture is. The score-function estimator is right on average but noisy: it knows
# how good a sample was, and not in which direction a better one lies.
#
# What does a sample held constant do in training? Let the toy's encoder be $\mu = a^\top x$, with one $\sigma$ for all
# pictures. Equation (3) gives the ideal, and there we let the training start.


# %% tags=["nbval-check-output"]
def train_encoder(hold_constant, steps=400):
    a = (W / size).clone().requires_grad_()
    log_sigma = torch.as_tensor(true_std).log().clone().requires_grad_()
    optimizer = torch.optim.Adam([a, log_sigma], lr=0.03)
    fresh = torch.Generator().manual_seed(0)
    for _ in range(steps):
        mu, sigma = cloud @ a, log_sigma.exp()
        z = mu + sigma * torch.randn(mu.shape, generator=fresh, dtype=torch.float64)
        z = z.detach() if hold_constant else z
        error = (cloud - z[:, None] * W).square().sum(dim=1) / (2 * GAMMA**2)
        optimizer.zero_grad()
        (error + kl_divergence(Normal(mu, sigma), standard)).mean().backward()
        optimizer.step()
    return a.detach(), log_sigma.exp().item()


rows = {"ideal": (W / size, true_std), "reparameterised": train_encoder(False), "held constant": train_encoder(True)}
for name, (a, sigma) in rows.items():
    print(f"{name:>15}: mean {a[0].abs():.2f} x1 + {a[1].abs():.2f} x2, standard deviation {sigma:.2f}")

# %% [markdown]
# With the sample held constant, only the divergence is trained, and the encoder leaves the ideal for the prior: it
# answers the same for every picture. This is *posterior collapse*. No error message says so. Where the decoder is
# trained as well, it learns to answer with the mean picture, and the loss even falls.
#
# ## 6. The networks
#
# Now digits. Encoder and decoder resemble the two halves of chapter 1's U-Net, without the skip connections, through
# which a picture could bypass the latent. First, blocks of 2 × 2 pixels are folded into four channels. Let us follow
# the shape of a picture.

# %% tags=["nbval-check-output"]
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
# The 32 dimensions are not a list: they form two channels on a grid of 4 × 4 positions, and each position encodes its
# part of the picture. Chapter 4 will use that, since it trains a U-Net on this grid.
#
# ## 7. The loss, and what its weight means
#
# By (2), $-\log p(x \mid z)$ is $|x - g(z)|^2 / 2\gamma^2$ plus a constant. Multiply the negative ELBO by
# $2\gamma^2/N$, where $N = 1024$ is the number of pixels, and the first term becomes the mean squared error:
#
# $$\mathrm{loss} = \frac1N |x - g(z)|^2 + \kappa\, D_{\mathrm{KL}}\big(q(z \mid x)\,\|\,p(z)\big),
# \qquad \kappa = \frac{2\gamma^2}{N}. \tag{7}$$
#
# So the weight $\kappa$ of the divergence, `kl_weight`, is part of the theory: it says how exact the decoder has to be.
# That holds only with these reductions: the error *averaged* over the pixels, the divergence *summed* over the latent.

# %% tags=["nbval-check-output"]
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
# A pixel has 256 grey levels. With the largest weight, $\gamma$ is several times that: the decoder may confuse black
# and white, so that nothing about the picture is worth encoding.
#
# ## 8. A live training
#
# Chapter 1's `Trainer` can train a VAE too. Ours is shallower than the shipped one.


# %%
def train_vae(config, kl_weight, steps):
    """A VAE trained for so many steps of 64 pictures, its losses, and the same VAE before the training."""
    settings = TrainingConfig(batch_size=64, lr=3e-3, warmup_steps=20, ema_decay=0.98)
    recipe = Recipe("vae", settings, vae=config, elbo=ELBOConfig(kl_weight))
    torch.manual_seed(0)
    trainer = Trainer(VAE(config), loss_of_vae(recipe.elbo), train, settings)
    before = build_autoencoder(recipe, trainer.network.state_dict())
    losses = [report.loss for report in itertools.islice(trainer.steps(), steps)]
    return build_autoencoder(recipe, trainer.ema.network.state_dict()), losses, before


SHALLOW = {"channel_multipliers": (1, 2), "layers_per_block": 1, "patch_size": 4}  # two levels, and still 2 x 4 x 4
small, losses, untrained = train_vae(VAEConfig(base_channels=16, **SHALLOW), 1e-6, steps=150)
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} in the end")

# %%
rows = {"picture": data.crop(x_test[:12])}
for name, model in (("before", untrained), ("after 150 steps", small), ("shipped", vae)):
    rows[name] = data.crop(model.reconstruct(x_test[:12]))
show(
    grids.show_rows(rows),
    "3.7",
    "Copies of test pictures before and after the live training, and copies by the shipped VAE.",
)

# %% [markdown]
# ## 9. The shipped weights
#
# The shipped VAE is deeper and was trained for longer (last row of figure 3.7). How much of a picture survives? We
# measure the squared error. We also ask a classifier whether it reads the copy as it read the original.

# %%
card = vae.card
print(f"{card['parameters']:,} parameters, {card['steps']:,} steps on {card['data_set']}, {card['minutes']:g} minutes")
read = logits(data.crop(x_test)).argmax(dim=1)
copies = {
    "32 principal components": pca,
    "VAE of section 8": small.reconstruct(x_test),
    "shipped": vae.reconstruct(x_test),
}
errors = {name: elbo.reconstruction_error(x_test, pictures).mean() for name, pictures in copies.items()}
for name, pictures in copies.items():
    same = (logits(data.crop(pictures)).argmax(dim=1) == read).double().mean()
    print(f"{name:>23}: squared error {errors[name]:.4f}, {same:.1%} read as before")
print(f"rate: {vae.network.encode(x_test[:200].to(vae.device)).kl().mean():.0f} nats per picture")
whole = card["reconstruction"]
print(f"the card, {whole['num_samples']:,} pictures: squared error {whole['mse']:.4f}, ", end="")
print(f"{whole['label_kept']:.1%} read as before")

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert errors["shipped"] < errors["32 principal components"] < errors["VAE of section 8"]

# %% [markdown]
# After seconds of training the small VAE is still worse than the principal components, the *best* linear autoencoder. A
# network's advantage has to be learned, and the shipped one has learned it. The rate is a cost under the prior, as
# section 4 said, and not the information about the picture. Let $x$ be one of the 60,000 training pictures. Naming it
# takes $\ln 60{,}000 = 11$ nats, so $I(x; z)$ cannot be more. The rest of the rate is the second part: $q(z)$, the
# mixture of their 60,000 posteriors, differs from the prior.
#
# ## 10. The latent space
#
# A diffusion model expects data of about unit size, and the loss of a VAE does not fix the size of its latents. So
# their mean and standard deviation are *measured* on training pictures, channel by channel, and kept with the weights;
# `encode` shifts and scales by them. On the test pictures:

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
    "The latents of the test pictures in the plane of their first two principal components. Each panel colours one "
    "digit, and shows all others in grey.",
)

# %% [markdown]
# Figure 3.8 shows two of the 32 dimensions. Only the digit 1 keeps apart: 0, 2, 3, 5, 6 and 8 overlap, and so do 4, 7
# and 9, although no label was used.
#
# Let us go further: the latents of a second shipped VAE, `vae-2d`, have only two dimensions, so that figure 3.9 shows
# the whole latent space.

# %%
flat_vae = diffusion_book.load("vae-2d")
flat_codes = flat_vae.encode(x_test).cpu()
show(
    latents.plot_map(flat_vae, flat_codes, labels),
    "3.9",
    "A latent space of two dimensions. Left: latents of test pictures, coloured by digit. Right: the same square, "
    "decoded on a grid.",
)

# %% [markdown]
# The digits 0, 1, 2 and 6 form clusters of their own. The others overlap: 3 with 5 and 8, and 4 with 7 and 9, so that
# there are almost no fours on the right. In between, the decoder returns shapes that could be either. Figure 3.10 walks
# around a circle in this plane.

# %%
angle = torch.arange(60)[:, None] / 60 * 2 * math.pi + torch.arange(6) / 6 * 2 * math.pi  # (60, 6)
circle = 1.3 * torch.stack([angle.cos(), angle.sin()], dim=-1)[..., None, None]  # (60, 6, 2, 1, 1)
film = torch.stack([grids.grid(frame, columns=6) for frame in latents.decoded(flat_vae, circle)])
show(
    animation.animate(film, milliseconds=120, alt="Six points that move on a circle in the latent plane, decoded"),
    "3.10",
    "Six points, equally spaced on a circle of radius 1.3 in the latent plane, move around it and are decoded.",
)

# %% [markdown]
# ## 11. One dimension, and straight lines
#
# What does one of the 32 dimensions do? In figure 3.11 we take the latent of one picture, and move one of its entries
# from $-3$ to $3$ standard deviations.

# %%
show(
    latents.show_traversals(vae, codes[0], numbers=(5, 6, 9, 10, 21, 22, 25, 26)),
    "3.11",
    "Each row changes one entry of the same latent, and nothing else: channel, then row and column of the grid.",
)

# %% [markdown]
# A dimension acts near its position. A moderate change lengthens a stroke there, bends it or moves it, and the rest of
# the digit stays. Nothing in the loss asks for dimensions that mean "slant" or "thickness", and none of these does.
#
# Half way between two pictures one sees both, each half transparent. What is half way between two latents?

# %%
rows = {}
for one, other in ((3, 5), (0, 7)):
    pair = [int((labels == digit).nonzero()[1]) for digit in (one, other)]
    rows[f"{one} to {other}, pixels"] = latents.between(*data.crop(x_test[pair]), count=11)
    rows[f"{one} to {other}, latents"] = latents.decoded(vae, latents.between(*codes[pair], count=11))
show(
    grids.show_rows(rows),
    "3.12",
    "Straight lines between two test pictures, in pixels and in latents.",
)


# %%
def fraction_of_digits(pictures):
    """The fraction of these pictures in which the classifier sees a digit with 90 % certainty."""
    return (logits(pictures).softmax(dim=1).max(dim=1).values >= 0.9).double().mean().item()


one, other = torch.arange(len(x_test)).chunk(2)
ends, middles = {"pixels": data.crop(x_test)}, {"pixels": data.crop((x_test[one] + x_test[other]) / 2)}
for name, model, held in (("vae", vae, codes), ("vae-2d", flat_vae, flat_codes)):
    ends[name] = latents.decoded(model, held)
    middles[name] = latents.decoded(model, (held[one] + held[other]) / 2)
for name in ends:
    at_ends, halfway = fraction_of_digits(ends[name]), fraction_of_digits(middles[name])
    print(f"{name:>7}: clearly a digit {at_ends:.0%} at the ends, {halfway:.0%} half way")

# %% tags=["remove-cell"]
if train.name == "mnist":
    halfway = {name: fraction_of_digits(pictures) for name, pictures in middles.items()}
    assert halfway["vae"] < 0.5
    assert halfway["pixels"] < halfway["vae"] < halfway["vae-2d"]
    assert fraction_of_digits(ends["vae-2d"]) < fraction_of_digits(ends["vae"])

# %% [markdown]
# In figure 3.12 pixels fade, while latents bend one shape into the other. From 3 to 5 every step is a digit; from 0 to
# 7 the ring opens, and some steps are neither. For random pairs of `vae`, there is mostly no digit half way: straight
# lines leave the region where latents of pictures lie. `vae-2d` does better half way, but its copies are worse already
# at the ends. It has fewer dimensions, and it was trained with a larger weight, $\kappa = 10^{-4}$ instead of
# $10^{-6}$. What does the weight do?
#
# ## 12. Rate against distortion
#
# The toy gives a forecast. With the ideal encoder (3), $\sigma^2 = \gamma^2 / (|w|^2 + \gamma^2)$, and the average of
# $\mu^2$ over the data is $|w|^2 / (|w|^2 + \gamma^2)$, since under the model $w^\top x$ has the variance
# $|w|^2 (|w|^2 + \gamma^2)$. Their sum is 1, which cancels the 1 in (5), and only $-\tfrac12 \log \sigma^2$ is left
# (here $q(z)$ is the prior, so the whole rate is $I(x; z)$):
#
# $$\mathbb E_x\, D_{\mathrm{KL}} = \tfrac12 \log \frac{|w|^2 + \gamma^2}{\gamma^2}. \tag{8}$$
#
# The numerator is the variance of the data along $w$. A direction with less variance than $\gamma^2$ is left out
# (exercise 2): its posterior collapses to the prior. We sum (8) over the 32 principal components of section 1, and
# compare with VAEs as small as section 8's, trained for 400 steps, that differ only in $\kappa$. A dimension is called
# *active* if its rate is above 0.1 nats. *cFID* is the distance from real digits (chapter 0), not divided by the floor.
# (The results are stored; `python -m diffusion_book.evaluation.rate_distortion` makes them again.)

# %%
sweep = rate_distortion.stored()
weights, count = sweep["kl_weight"].tolist(), sweep["num_samples"].item()
for i, weight in enumerate(weights):
    forecast = 0.5 * (pixel_variances[:32] / elbo.decoder_std(weight) ** 2).log().clamp(min=0).sum()  # equation 8
    print(f"kl_weight {weight:g}: squared error {sweep['distortion'][i]:.3f}, ", end="")
    print(f"rate {sweep['rate'][i]:.0f} nats (forecast {forecast:.0f}), {sweep['active'][i]} active dimensions")
print(f"cFID of {count:,} real pictures: {measures.floor(count).mean:.2f}")

# %%
judged = {"copies": sweep["copies_cfid"], "samples from the prior": sweep["samples_cfid"]}
show(
    latents.plot_rate_distortion(sweep["rate"], sweep["distortion"], judged, weights),
    "3.13",
    "The same VAEs twice. Above, the error of the copies falls as the rate grows; the numbers at the points are the "
    "weights $κ$. Below, copies and samples against the rate: beyond some rate, what helps the copies harms the samples.",
)

# %%
gap = torch.full((1, 1, 28, 28), grids.GAP / 127.5 - 1)
rows = {"picture": sweep["pictures"]}
for i, weight in enumerate(weights):
    rows[f"{weight:g}"] = torch.cat([sweep["copies"][i], gap, sweep["samples"][i]])
show(
    grids.show_rows(rows),
    "3.14",
    "A row for each KL weight. Left: copies of the pictures in the first row. Right: samples, that is, latents from the "
    "prior, decoded.",
)

# %% tags=["remove-cell"]
if train.name == "mnist":  # the forecast is of the pictures that are here, the sweep of MNIST
    forecasts = torch.stack(
        [0.5 * (pixel_variances[:32] / elbo.decoder_std(w) ** 2).log().clamp(min=0).sum() for w in weights]
    )
    below = torch.tensor(weights) <= 1.1e-3
    ratio = forecasts[below] / sweep["rate"][below]
    assert ((ratio > 0.7) & (ratio < 1.4)).all()
    assert (ratio.diff() < 0).all()
    assert ratio[0] > 1 > ratio[-1]
rate, of_copies, of_samples = sweep["rate"], sweep["copies_cfid"], sweep["samples_cfid"]
assert sweep["active"][0] == 0  # posterior collapse at the largest weight
assert (rate.diff() > 0).all()
assert (sweep["distortion"].diff() < 0).all()
assert of_copies[-1] < 1.1 * of_copies.min()
best = of_samples.argmin()
assert 0 < best < len(weights) - 1
assert of_samples[-1] > 2 * of_samples[best]
assert of_samples[best] > 5 * of_copies.min()

# %% [markdown]
# At the largest weight no dimension is active: the posterior has collapsed, and every copy and every sample is the
# average digit (figure 3.14). As the weight falls, the rate rises and the distortion falls. This is the
# *rate-distortion trade-off*, the upper curve of figure 3.13. In the lower plot, the copies improve, and then stay as
# they are. The samples improve only at first. Then they get worse, and even the best are several times farther from
# real digits than the best copies. So no weight is good at both. The linear forecast of the rate follows the trend. For
# weights of $10^{-3}$ and less it is wrong by at most 40 %: too high for the larger ones, too low for the smaller.
# Chapter 4 takes a small weight, with good copies, and leaves the sampling of latents to another model.
#
# ## 13. Aggregate posterior and prior
#
# Why do the samples get worse? The decoder is trained on samples of the aggregate posterior $q(z)$ of section 4. To
# generate, it is given samples of the prior $p(z)$. These decode to digits only where $q(z)$ has mass too. In two
# dimensions we can look (figure 3.15).

# %%
show(
    latents.plot_planes(
        sweep["plane_latents"],
        sweep["plane_labels"],
        sweep["plane_decoded"],
        [f"$\\kappa = 10^{{{math.log10(weight):.0f}}}$" for weight in sweep["plane_kl_weight"].tolist()],
    ),
    "3.15",
    "Four VAEs of two latent dimensions. Above, latents of test pictures, sampled from their posteriors; the circles "
    "are one and two standard deviations of the prior. Below, the same square, decoded.",
)
# %% [markdown]
# With $\kappa = 10^{-2}$ the posterior has collapsed: the aggregate posterior is the prior, but the decoder has learned
# nothing. (With this weight, the VAE of section 12, which has 32 dimensions, keeps a few of them barely active.) With
# $10^{-3}$ hardly more than one dimension is in use. With smaller weights the clusters move apart, and beyond the
# circles. Between them are *holes*: regions where the prior has mass and no picture has its latent. A sample that falls
# there is decoded by a network that was not trained there.
#
# ## 14. Why it cannot generate
#
# The shipped VAE has $\kappa = 10^{-6}$, the smallest weight of section 12, but is larger and was trained for longer.
# Figure 3.16 shows three ways to sample its latents: from the prior; from the prior, scaled to the mean and the
# standard deviation of each channel (section 10); and from a Gaussian with the mean and the covariance of real latents.
# (`decode` first undoes the scaling of section 10: it multiplies by the standard deviation and adds the mean. So plain
# normal numbers are the *scaled* prior; for the plain prior the cell cancels this beforehand.) The last row decodes
# latents of training pictures.

# %%
count = min(1000, len(train))
known = vae.encode(train.batch(torch.arange(count))[0]).cpu()  # (N, 2, 4, 4)
vector = known.flatten(1).double()
normal = torch.randn(count, 2, 4, 4, generator=generator)
fitted = MultivariateNormal(vector.mean(dim=0), torch.cov(vector.T))
torch.manual_seed(0)
drawn = {
    "prior": (normal - raw_mean[:, None, None]) / raw_std[:, None, None],  # decode() undoes this
    "prior, scaled": normal,
    "fitted Gaussian": fitted.sample((count,)).float().reshape(known.shape),
    "latents of pictures": known,
}
rows = {name: latents.decoded(vae, z) for name, z in drawn.items()}
reference = reference_features()["test"]
distances = {name: frechet_distance(features(pictures), reference) for name, pictures in rows.items()}
for name, distance in distances.items():
    print(f"{name:>19}: cFID {distance:7.3f}")
floor = measures.floor(count)
print(f"{f'{count:,} real pictures':>19}: cFID {floor.mean:7.3f}, standard deviation over ten sets {floor.std:.3f}")
show(
    grids.show_rows({name: pictures[:12] for name, pictures in rows.items()}),
    "3.16",
    "Decoded latents, sampled in three ways, and (last row) latents of pictures. The decoder is the same in all rows.",
)

# %% tags=["remove-cell"]
if train.name == "mnist":
    assert distances["prior"] > distances["prior, scaled"] > 0.7 * distances["prior"]
    assert distances["fitted Gaussian"] < 0.5 * distances["prior, scaled"]
    assert distances["fitted Gaussian"] > 10 * distances["latents of pictures"]
    assert abs(distances["latents of pictures"] - floor.mean) < 2 * floor.std

# %% [markdown]
# The decoder is not at fault: from latents of pictures it makes pictures that are as close to the test set as real
# ones. (A single set may come out a little below the average of ten.) The *distribution of the latents* is the problem.
# The aggregate posterior is wider than the prior (section 10), but scaling hardly helps: the strokes of the second row
# still do not meet. The dimensions depend on each other, since a stroke that leaves one position has to arrive in the
# next. A Gaussian with all covariances knows a part of that, and does much better (third row). But $q(z)$ is no
# Gaussian.
#
# So here is the plan. We have 32 dimensions of unit size instead of 1,024 pixels, a decoder that turns latents of
# pictures back into these pictures, and an aggregate posterior that is no Gaussian. What we need is a method that
# learns to sample from an unknown distribution, starting from a Gaussian. Chapter 1 has one. The next chapter puts the
# two together.
#
# <details><summary>What differs from the papers</summary>
#
# - The likelihood of a digit's pixel is Bernoulli in Kingma & Welling. Ours is Gaussian with a fixed $\gamma$.
# - Their bound has no weight; Higgins et al. introduce it (β-VAE). With a squared error it stands for $\gamma$, by (7).
# - Rombach et al. add a perceptual loss and a discriminator, so that photographs come out crisp.
#
# </details>
#
# ## Pitfalls
#
# - **Summed or averaged?** A weight means nothing without the reductions. With the error summed over the pixels, it
#   counts 1,024 times less; with the divergence averaged over the latent, 32 times less.
# - **A sample under `no_grad`, or detached.** No error, and the posterior collapses (section 5).
# - **Log-variances without limits.** $e^{100}$ is infinite in single precision. `DiagonalGaussian` clamps them.
# - **Posterior collapse mistaken for convergence.** If the divergence of every dimension is zero, the decoder works
#   alone.
# - **Judging a VAE by its copies.** They say nothing about its samples (section 12).
#
# ## Exercises
#
# **1. Bits.** A nat is $1/\ln 2$ bits. Given the mean and the log-variance of a posterior, how many bits is its rate?
# And how many bits is the shipped VAE's rate of section 9? Compare with a PNG of the same picture.

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def bits(mean, log_variance):
    """Mean and log-variance of posteriors, (B, C, H, W) -> bits per picture, (B,)."""
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
# A PNG of a 28 × 28 digit takes some two thousand bits, and restores every grey level. A latent of the shipped VAE
# takes about an eighth of that. Its reconstruction is off by about ten levels, but its decoder knows what digits look
# like.
#
# </details>
#
# **2. When is a direction worth a dimension?** Take the toy with a free length of $w$. Maximise the average ELBO over
# $|w|$ with the ideal encoder, that is, the evidence. What is the best $|w|^2$, if the data have a given variance along
# $w$? For which variance is it zero?


# %% tags=["nbval-check-output"]
def best_square(variance, gamma):
    """Variances of the data, (K,), and the decoder's gamma, a number -> the best |w|^2 for each, (K,)."""
    ...  # your code here


check(best_square)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Let $\tau^2$ be the variance of the data along $w$, and $m = |w|^2 + \gamma^2$ that of the model. The average log
# density is $-\tfrac12 \log m - \tau^2 / 2m$ plus a constant, which is largest at $m = \tau^2$. So
# $|w|^2 = \tau^2 - \gamma^2$ where that is positive, else $|w| = 0$: a direction with less variance than the decoder's
# own scatter stays unused (Tipping & Bishop 1999; Lucas et al. 2019).
#
# ```python
# def best_square(variance, gamma):
#     return (variance - gamma**2).clamp(min=0)
# ```
#
# </details>
#
# **3. Sample by digit.** Fit ten Gaussians to the latents, one for each label, and sample from them. What is the cFID
# now?
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
# Much lower than with one Gaussian: $q(z)$ is not Gaussian mainly because there are ten kinds of digits. Chapter 4
# needs no labels.
#
# </details>
#
# **4. The whole loss.** Write (7) for one sample, from what the encoder returns to the loss of each picture. `check`
# looks at the gradients too. Somebody writes `.kl().mean() / 32` instead, and keeps $\kappa = 10^{-3}$. Which row of
# figure 3.14 do they get, about?


# %% tags=["nbval-check-output"]
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
# Their weight is $10^{-3} / 32 \approx 3 \cdot 10^{-5}$ in our reductions: between the rows of $10^{-4}$ and $10^{-5}$.
# Nothing fails; copies are better and samples worse than they expect.
#
# </details>
#
# ## Summary
#
# - A *variational* autoencoder encodes a picture as a distribution, and pays in nats for its divergence from the prior.
# - The ELBO (4) is the evidence minus the divergence of the encoder from the true posterior. It trains both networks.
# - The gradient must go through the sample (6). Otherwise the posterior collapses.
# - The weight of the divergence (7) stands for the accuracy of the decoder, and trades rate against distortion.
# - A small weight gives good copies, and an aggregate posterior that differs from the prior. Chapter 4 learns to sample
#   from it.
#
# ## References
#
# - Kingma & Welling (2013), *Auto-Encoding Variational Bayes*. ICLR 2014. arXiv:1312.6114.
# - Rezende, Mohamed & Wierstra (2014), *Stochastic Backpropagation and Approximate Inference in Deep Generative
#   Models*. ICML. arXiv:1401.4082.
# - Tipping & Bishop (1999), *Probabilistic Principal Component Analysis*. Journal of the Royal Statistical Society B.
# - Higgins et al. (2017), *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*. ICLR.
# - Lucas, Tucker, Grosse & Norouzi (2019), *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse*.
#   NeurIPS. arXiv:1911.02469.
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752.
