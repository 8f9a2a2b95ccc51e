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
# # VAE: a picture in thirty-two numbers
#
# *Runs in about a minute on two CPU cores, without a network connection. Half of that is live training. Needs
# chapter 1.*
#
# A picture of a digit has 1,024 pixels. Most of them are black, and most of the others follow from their neighbours.
# How few numbers would do? A *variational autoencoder* finds out: one network squeezes the picture, another one
# unfolds it, and between the two there is room for only a little. It also draws, and its drawings are where this
# chapter ends, with a disappointment and a plan.
#
# You will
#
# - squeeze points of the plane onto a line, and digits into 32 numbers, with plain linear algebra;
# - derive the *evidence lower bound* on a toy in which the evidence itself is known, and watch the gap close;
# - see what the reparameterisation is good for, by leaving it out;
# - train a small VAE for a dozen seconds, then look into the space that the shipped one has found;
# - turn the one dial of the model from "remembers nothing" to "remembers everything", and learn why neither end can
#   draw.
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
from diffusion_book.evaluation import measures
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, logits, reference_features
from diffusion_book.models.autoencoder import build_autoencoder
from diffusion_book.models.recipes import ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.training.losses import loss_of_vae
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import animation, grids, latents, paths, plots, style

style.use_style()
vae = diffusion_book.load("vae")
train, test = data.load("auto"), data.load("auto", "test")
x_test, labels = test.batch(torch.arange(min(1000, len(test))))  # (N, 1, 32, 32)
codes = vae.encode(x_test).cpu()  # (N, 2, 4, 4)
shown = {"picture": data.crop(x_test[:12]), "32 numbers": latents.latent_tiles(codes[:12])}
grids.show_rows(shown | {"unfolded": latents.decoded(vae, codes[:12])}, title=f"Test pictures of {test.name}")

# %% [markdown]
# The middle row is all that the lower row was made from: two channels of 4 x 4 numbers, drawn as grey squares. How
# does a network find such a code, what do the numbers mean, and can we make up new ones?
#
# ## 1. One number for two
#
# Begin where everything can be drawn. A "picture" has two pixels, and pictures lie along a line, with some scatter
# around it. An *autoencoder* keeps one number of each. The *encoder* projects a point onto a direction $u$ of length
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
paths.show_plane_paths({"Through one number and back": pairs}, cloud)

# %% [markdown]
# The same with digits: 1,024 pixels, and as many principal directions. We keep the first 2, or the first 32, and put
# the picture together again. The last row is an attempt to draw: 32 numbers from a bell curve, each with the variance
# that it has in the data.

# %%
flat = train.batch(torch.arange(min(6000, len(train))))[0].flatten(1).double()  # (N, 1024)
pixel_mean, pixel_variances, pixel_directions = principal_directions(flat)


def unfold(numbers):
    """The first numbers along the principal directions, as pictures."""
    pictures = pixel_mean + numbers @ pixel_directions[:, : numbers.shape[1]].T  # (N, K) -> (N, 1024)
    return pictures.reshape(-1, 1, 32, 32).clamp(-1, 1)


kept = (x_test.flatten(1).double() - pixel_mean) @ pixel_directions
made_up = torch.randn(12, 32, generator=generator, dtype=torch.float64) * pixel_variances[:32].sqrt()
rows = {"picture": x_test[:12], "2 numbers": unfold(kept[:12, :2]), "32 numbers": unfold(kept[:12, :32])}
pca_error = elbo.reconstruction_error(x_test, unfold(kept[:, :32])).mean()
print(f"32 of 1,024 directions hold {pixel_variances[:32].sum() / pixel_variances.sum():.0%} of the variance")
print(f"squared error of a pixel with 32 numbers: {pca_error:.4f}")
grids.show_rows({name: data.crop(row) for name, row in {**rows, "made up": unfold(made_up)}.items()})

# %% [markdown]
# Two faults are to be mended. A straight subspace does not fit digits well: a stroke that moves to the side is no sum
# of other strokes. That is what networks are for. And a code that nobody has planned has gaps: numbers that each look
# innocent, together decode to a cloud. To draw, one must know *which codes occur*. So we start from there, and first
# say how pictures come about.
#
# ## 2. A story of how pictures come about
#
# First a latent number is drawn, $z \sim \mathcal N(0, 1)$. It decides what the picture is about. Then the picture is
# drawn around it:
#
# $$p(x \mid z) = \mathcal N(x;\ D(z),\ s^2 I). \tag{2}$$
#
# $D$ is the decoder, and $s$ says how exactly it has to hit a pixel. The cloud above was made in this way, with
# $D(z) = w z$. For this decoder everything follows on paper. A picture has the probability density (the *evidence*)
#
# $$p(x) = \int p(x \mid z)\, p(z)\, dz = \mathcal N(x;\ 0,\ w w^\top + s^2 I),$$
#
# and by Bayes' rule the number behind a picture is distributed as
#
# $$p(z \mid x) = \mathcal N\!\left(z;\ \frac{w^\top x}{|w|^2 + s^2},\ \frac{s^2}{|w|^2 + s^2}\right). \tag{3}$$
#
# This is the ideal encoder. It does not name a number, but a *distribution*: two pixels with scatter cannot say more.
# Check both against a sum over twenty thousand values of $z$.


# %%
# NBVAL_CHECK_OUTPUT
def log_likelihood(x, z):
    """log p(x | z): pictures (2,) and numbers (N,) -> (N,)."""
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
# If the decoder is a network, neither the integral nor Bayes' rule can be computed. The way out is to *guess* an
# encoder $q(z \mid x)$, to pay for guessing wrong, and to make the price as low as possible. Take any $q$, and write
# $p(x) = p(x \mid z)\, p(z) / p(z \mid x)$, which holds for every $z$. Take the logarithm, bring in $q$ above and below
# the bar, and average over $z \sim q$:
#
# $$\log p(x) = \underbrace{\mathbb E_q \log p(x \mid z) - D(q(z \mid x)\,\|\,p(z))}_{\mathrm{ELBO}}
# + \underbrace{D(q(z \mid x)\,\|\,p(z \mid x))}_{\text{price of guessing}}. \tag{4}$$
#
# $D$ is the Kullback-Leibler divergence of chapter 1. It is never negative, so the ELBO is never more than the
# evidence. And it holds nothing that we do not have: the decoder, the guess, and the prior $p(z) = \mathcal N(0, 1)$.
# For the toy and a Gaussian guess $\mathcal N(m, \sigma^2)$ the average is exact as well, since
# $\mathbb E_q |x - wz|^2 = |x - wm|^2 + |w|^2\sigma^2$.


# %%
# NBVAL_CHECK_OUTPUT
def toy_elbo(m, std):
    """Equation 4's first two terms, for the guess N(m, std^2)."""
    expected = log_likelihood(x, m[None])[0] - W.square().sum() * std**2 / (2 * S**2)
    return expected - kl_divergence(Normal(m, std), Normal(0.0, 1.0))


truth = Normal(true_mean, true_std)
print(f"evidence {evidence:.4f}")
for name, m, std in (("prior", 0.0, 1.0), ("too sure", true_mean, 0.1), ("ideal", true_mean, true_std)):
    m, std = torch.as_tensor(m).double(), torch.as_tensor(std).double()
    bound, price = toy_elbo(m, std), kl_divergence(Normal(m, std), truth)
    print(f"{name:>8}: ELBO {bound:7.4f} + price {price:.4f} = {bound + price:.4f}")

# %%
stds = torch.linspace(0.05, 1.2, 200, dtype=torch.float64)
curves = {"the right mean": torch.stack([toy_elbo(true_mean, std) for std in stds])}
curves["a mean off by 0.3"] = torch.stack([toy_elbo(true_mean + 0.3, std) for std in stds])
curves["evidence"] = evidence.expand(200)
plots.plot_curves(stds, curves, "standard deviation of the guess", "ELBO", ylim=(-7, -2.5))

# %% [markdown]
# Pushing the bound up does two jobs at once. Over $q$, it can only close the gap: the guess moves towards the ideal
# encoder. Over the decoder, it lifts the evidence itself. One number to train both networks by.
#
# ## 4. The divergence, on paper
#
# The encoder gives a mean $\mu$ and a variance $\sigma^2$ for each number of the latent. Against the standard normal
#
# $$D = \mathbb E_q[\log q - \log p] = -\tfrac12(1 + \log \sigma^2) + \tfrac12(\mu^2 + \sigma^2), \tag{5}$$
#
# one such term for each number. It is zero where $\mu = 0$ and $\sigma = 1$: then the encoder says nothing about the
# picture. It is large where the encoder is sure, or far out. In nats, it is the *information* that the latent holds
# about the picture.

# %%
# NBVAL_CHECK_OUTPUT
mu, log_variance = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([0.0, 0.0, -1.0, -6.0])
formula = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance)
guess, prior = Normal(mu, (log_variance / 2).exp()), Normal(torch.zeros(4), torch.ones(4))
assert_close(formula, kl_divergence(guess, prior))
assert_close(formula.sum()[None], DiagonalGaussian(mu[None], log_variance[None]).kl())

draws = guess.mean + guess.stddev * torch.randn(400_000, 4, generator=generator)
counted = guess.log_prob(draws) - prior.log_prob(draws)  # (400000, 4)
for number in range(4):
    sampled = f"{counted[:, number].mean():.2f} sampled"
    print(f"mean {mu[number]:4.1f}, log-variance {log_variance[number]:4.1f}: {formula[number]:.2f} nats, {sampled}")

# %% [markdown]
# ## 5. A draw that can be differentiated
#
# The other term of (4) is an average over draws of $z$. With a network for a decoder we draw one $z$ for each picture
# and hope that the next thousand pictures make up for it. But a gradient must reach the encoder, *through the draw*.
# The trick is to draw from a fixed distribution and to move the result:
#
# $$z = \mu + \sigma\,\epsilon, \qquad \epsilon \sim \mathcal N(0, 1). \tag{6}$$
#
# Now $z$ is a smooth function of $\mu$ and $\sigma$. Is that more than a change of notation? Compare three ways to
# estimate the derivative of the toy's loss by $\sigma$, at $q = \mathcal N(0.3, 0.8^2)$, where it is known:
# $|w|^2\sigma/s^2 + \sigma - 1/\sigma$. The first is (6). The second forgets the way back: it treats the draw as a
# constant. The third, the *score function*, needs no path through $z$ at all: it makes likelier what came out well,
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
figure.axes[-1].set_xlabel("estimates of the derivative, each the mean of 64 draws")
figure

# %% [markdown]
# The draw held fixed is exact in every single estimate, and wrong: all that is left is the divergence, which pulls
# $\sigma$ to 1 whatever the picture is. The score function is right on average, but its estimates fly about. It
# knows how good a draw was, and not in which direction a better one lies. To be as certain of its mean as (6) is
# with one draw, it needs the square of the ratio of the spreads: a dozen draws. That is for a single number; the
# price grows with every number of the latent.
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
# With the draw held fixed the encoder ends at the prior: the same answer for every picture. It has *collapsed*. No
# error message says so, and the loss falls all the same.
#
# ## 6. The networks
#
# Now digits. The encoder is the left half of chapter 1's U-Net, the decoder its right half. What is missing are the
# bridges between the two: through them a picture could slip past the narrow place. We follow a picture's shape down.

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
# A code is 32 numbers, but it is not a list: it has two channels on a map of 4 x 4 places, and each place looks after
# its part of the picture. Chapter 4 will need that, since it puts a U-Net on top of it.
#
# ## 7. The loss, and what its weight means
#
# With (2), $-\log p(x \mid z)$ is $|x - D(z)|^2 / 2s^2$ plus a constant. Multiply the negative ELBO by $2s^2/N$, where
# $N = 1024$ counts the pixels. Then the first term is the mean squared error:
#
# $$\mathrm{loss} = \frac1N |x - D(z)|^2 + \lambda\, D(q\,\|\,p), \qquad \lambda = \frac{2 s^2}{N}. \tag{7}$$
#
# So the weight $\lambda$ of the divergence, `kl_weight`, is not an invention on top of the theory. It says how exact
# the decoder has to be. But it does so only together with the reductions: the error is *averaged* over the pixels, the
# divergence *summed* over the numbers of the latent.

# %%
# NBVAL_CHECK_OUTPUT
torch.manual_seed(0)
x0 = torch.rand(8, 1, 32, 32) * 2 - 1
noise = torch.randn(8, 2, 4, 4)
with torch.no_grad():
    reconstruction, posterior = network(x0, noise)
    library = elbo.negative_elbo(network, x0, noise, kl_weight=1e-4)
s = elbo.decoder_std(1e-4)
bound = -(x0 - reconstruction).square().sum(dim=(1, 2, 3)) / (2 * s**2) - posterior.kl()  # equation 4
assert_close(-bound * 2 * s**2 / 1024, library)
print("(7) is the negative ELBO times 2 s^2 / N")
for weight in (1e-6, 1e-4, 1e-2, 1e-1):
    s = elbo.decoder_std(weight)
    print(f"kl_weight {weight:.0e}: a pixel may be off by {s:.3f}, that is {s * 127.5:5.1f} grey levels of 255")

# %% [markdown]
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
young, losses, untrained = train_vae(VAEConfig(base_channels=32, **SHALLOW), 1e-6, steps=200)
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} in the end")
plots.plot_loss(range(1, 201), losses)

# %%
rows = {"picture": data.crop(x_test[:12])}
for name, model in (("before", untrained), ("after 200 steps", young), ("shipped", vae)):
    rows[name] = data.crop(model.reconstruct(x_test[:12]))
grids.show_rows(rows)

# %% [markdown]
# ## 9. The shipped weights
#
# The library's own recipe: a deeper network, trained for longer. What gets through the narrow place? We measure the
# squared error, and ask the book's second classifier whether it reads in the copy what it read in the original.

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
print(f"divergence: {vae.network.encode(x_test[:200].to(vae.device)).kl().mean():.0f} nats a picture")
whole = card["reconstruction"]
print(f"the card, {whole['num_samples']:,} pictures: squared error {whole['mse']:.4f}, ", end="")
print(f"{whole['label_kept']:.1%} read as before")

# %% [markdown]
# ## 10. A look into the latent space
#
# A diffusion model expects data of about unit size; its schedule is made for that. What size are latents? Nobody
# has told the network. So it is *measured* on training pictures, channel by channel, and kept with the weights, and
# `encode` shifts and scales by it. On the test pictures:

# %%
raw_mean, raw_std = vae.network.latent_mean.cpu(), vae.network.latent_std.cpu()
mean, std = elbo.latent_statistics(vae.posterior(x_test))
for channel in range(len(raw_mean)):
    raw = f"mean {raw_mean[channel]:5.2f}, standard deviation {raw_std[channel]:5.2f}"
    print(f"channel {channel}: {raw}; scaled {mean[channel]:5.2f} and {std[channel]:.2f}")

# %%
latents.plot_latent_positions(codes, labels)

# %% [markdown]
# Sixteen places, two numbers at each, one dot a picture. In the upper right corner, where hardly a digit has ink, they
# lie on one heap. Elsewhere the ones keep apart, since a straight stroke leaves most places empty. But no single
# place tells a digit. The principal components of all 32 numbers do it better: digits that look alike lie close.

# %%
latents.plot_principal_components(codes, labels)

# %% [markdown]
# ## 11. A map of two numbers
#
# Push it further: the weights `vae-2d` keep *two* numbers of a picture, so that the whole latent space fits on paper.
# On the left the test pictures in it. On the right the same square, decoded at every place.

# %%
flat_land = diffusion_book.load("vae-2d")
flat_codes = flat_land.encode(x_test).cpu()
latents.plot_map(flat_land, flat_codes, labels)

# %% [markdown]
# No label was used in the training. Yet most digits have their country (4 and 9 share one), and at the borders they
# turn into each other by way of shapes that could be either. Two numbers are few: it is a map of kinds of digits, and
# the details are lost. Let us walk in a circle on it, six walkers at equal distances.

# %%
angle = torch.arange(60)[:, None] / 60 * 2 * math.pi + torch.arange(6) / 6 * 2 * math.pi  # (60, 6)
circle = 1.3 * torch.stack([angle.cos(), angle.sin()], dim=-1)[..., None, None]  # (60, 6, 2, 1, 1)
film = torch.stack([grids.grid(frame, columns=6) for frame in latents.decoded(flat_land, circle)])
animation.animate(film, milliseconds=120, alt="Six walkers on a circle in the latent plane, as digits")

# %% [markdown]
# ## 12. The dial
#
# The recipe of `vae` has $\lambda = 10^{-6}$, that of `vae-2d` $10^{-4}$. What does the weight do? The toy allows a
# forecast. Along its line the data have the variance $v = |w|^2 + s^2$. Put the ideal encoder (3) into (5), average
# over the data, and nearly everything cancels:
#
# $$\mathbb E\, D = \tfrac12 \log \frac{v}{s^2}. \tag{8}$$
#
# A direction whose variance is not above the decoder's own $s^2$ is not worth a number, and is left out. (Exercise 2
# shows it.) Do digits keep to a law of straight lines? Sum (8) over the 32 principal components of section 1, and
# compare with the nats of five trained VAEs. To be quick, these have the network of Kingma & Welling, one hidden layer
# on each side. A number counts as *active* if it holds more than a tenth of a nat.


# %%
class OneHiddenLayer(nn.Module):
    def __init__(self, numbers=32, hidden=256):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(1024, hidden), nn.SiLU(), nn.Linear(hidden, 2 * numbers))
        self.decoder = nn.Sequential(nn.Linear(numbers, hidden), nn.SiLU(), nn.Linear(hidden, 1024))

    def decode(self, z):
        return self.decoder(z.flatten(1)).unflatten(1, (1, 32, 32))  # (B, 32, 1, 1) -> (B, 1, 32, 32)

    def forward(self, x, noise):
        posterior = DiagonalGaussian.from_moments(self.encoder(x)[:, :, None, None].float())
        return self.decode(posterior.sample(noise)), posterior


def train_quickly(kl_weight, steps=400):
    def loss(network, images, labels, generator):
        noise = torch.randn(len(images), 32, 1, 1, generator=generator, device=images.device)
        return elbo.negative_elbo(network, images, noise, kl_weight)

    settings = TrainingConfig(batch_size=64, lr=2e-3, warmup_steps=20, ema_decay=0.98)
    torch.manual_seed(0)
    trainer = Trainer(OneHiddenLayer(), loss, train, settings, precision="fp32")
    for _ in itertools.islice(trainer.steps(), steps):
        pass
    return trainer.ema.network.cpu().eval()


# %%
sweep, nats, no_noise = {}, {}, torch.zeros(len(x_test), 32, 1, 1)
for weight in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
    sweep[weight] = train_quickly(weight)
    with torch.no_grad():
        copies, found = sweep[weight](x_test, no_noise)
    information = 0.5 * (found.mean**2 + found.std**2 - 1 - found.log_variance).mean(dim=0).flatten()  # (32,)
    nats[f"{weight:g}"] = information.sort(descending=True).values
    error = elbo.reconstruction_error(x_test, copies).mean()
    active = (information > 0.1).sum()
    forecast = 0.5 * (pixel_variances[:32] / elbo.decoder_std(weight) ** 2).log().clamp(min=0).sum()  # equation 8
    print(f"kl_weight {weight:g}: error {error:.4f}, {active} numbers active, ", end="")
    print(f"{information.sum():.1f} nats (forecast {forecast:.1f})")

# %%
plots.plot_curves(range(1, 33), nats, "number of the latent, sorted", "nats", ylim=(-0.3, 11.5))

# %% [markdown]
# Now look. To the left of the gap are copies of test pictures, to the right pictures of latents that were drawn from
# the prior $\mathcal N(0, 1)$.

# %%
noise = torch.randn(7, 32, 1, 1, generator=generator)
gap = torch.full((1, 1, 28, 28), grids.GAP / 127.5 - 1)
rows = {"picture": data.crop(x_test[:7])}
for weight, model in sweep.items():
    with torch.no_grad():
        copies, drawings = model(x_test[:7], no_noise[:7])[0], model.decode(noise)
    rows[f"{weight:g}"] = torch.cat([data.crop(copies), gap, data.crop(drawings)])
grids.show_rows(rows, title="Copies of test pictures, and pictures of drawn latents, by kl_weight")

# %% [markdown]
# The law holds surprisingly well, from nothing at all to more than a hundred nats. At the top nothing is active. The
# decoder gives the average digit, and every drawn latent gives it as well. Further down the copies gain what the
# drawings lose. With a large weight the codes fill the bell curve of the prior, so that any draw lands among them, but
# they hold too little: blur. With a small one each picture has its own sharp place, and between the places is
# no man's land.
#
# This is one dial, and no setting is good at both. Chapter 4 will not look for the best compromise. It takes the weak
# end, with sharp copies, and leaves the drawing of latents to somebody else.
#
# ## 13. What does one number do?
#
# Back to the shipped weights. We take one picture's latent, and move one of its numbers from $-3$ to $3$ standard
# deviations: the four places in the middle of the map, in both channels.

# %%
latents.show_traversals(vae, codes[0], numbers=(5, 6, 9, 10, 21, 22, 25, 26))

# %% [markdown]
# A number acts where its place is. A moderate change lengthens a stroke there, bends it or moves it, and the rest of
# the digit stays. Nothing says that such a direction should mean "slant" or "thickness", and none does. Far out the
# strokes fall apart.
#
# ## 14. Between two digits
#
# Between two pictures there is nothing but a cross-fade: half of each, both see-through. Between two codes?

# %%
three, five = (int((labels == digit).nonzero()[1]) for digit in (3, 5))
rows = {"in pixels": latents.between(*data.crop(x_test[[three, five]]), count=11)}
for name, model, held in (("32 numbers", vae, codes), ("2 numbers", flat_land, flat_codes)):
    rows[name] = latents.decoded(model, latents.between(held[three], held[five], count=11))
grids.show_rows(rows)


# %%
def share_of_digits(pictures):
    """How many of these pictures the book's second classifier takes for a digit with 90 % certainty."""
    return (logits(pictures).softmax(dim=1).max(dim=1).values >= 0.9).double().mean().item()


first, second = torch.arange(len(x_test)).chunk(2)
ends = {"in pixels": data.crop(x_test)}
middles = {"in pixels": data.crop((x_test[first] + x_test[second]) / 2)}
for name, model, held in (("32 numbers", vae, codes), ("2 numbers", flat_land, flat_codes)):
    ends[name] = latents.decoded(model, held)
    middles[name] = latents.decoded(model, (held[first] + held[second]) / 2)
for name in ends:
    print(f"{name:>10}: clearly a digit at the ends {share_of_digits(ends[name]):.0%}, ", end="")
    print(f"in the middle {share_of_digits(middles[name]):.0%}")

# %% [markdown]
# Half way between two pictures there are two ghosts, which is seldom a digit. The 32 numbers do better, but not by
# much: strokes bend and join on the way instead of fading, and often into something that is no digit. Between sharp
# codes, too, there is no man's land. The two numbers, packed closely by their larger weight, get through more often,
# although their copies are blurred at the ends already.
#
# ## 15. Why it cannot draw
#
# Now ask the shipped VAE for new digits, as the story of section 2 has it: draw $z$ from the prior, decode. Three
# ways to draw, and for comparison the codes of real training pictures. *cFID* is chapter 1's distance; its floor is
# what as many real pictures reach, on average over ten draws; behind it stands how far a single draw scatters. The codes
# are of one draw too, and may lie below it.

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
    "codes of pictures": known,
}
rows = {name: latents.decoded(vae, z) for name, z in drawn.items()}
reference = reference_features()["test"]
distances = {name: frechet_distance(features(pictures), reference) for name, pictures in rows.items()}
for name, distance in distances.items():
    print(f"{name:>17}: cFID {distance:7.3f}")
print(f"{'floor':>17}: cFID {measures.floor(count).mean:7.3f} +- {measures.floor(count).std:.3f}")
grids.show_rows({name: pictures[:12] for name, pictures in rows.items()})

# %% [markdown]
# The decoder is not to blame: fed with the codes of pictures it draws pictures. The *draws* are. With $\lambda =
# 10^{-6}$ the divergence costs next to nothing, and the codes need not look like the prior. They spread up to twice as
# wide (section 10), so the plain prior hits only the middle of them (first row). Scaling mends the size, and hardly the
# pictures (second row). It cannot mend that the 32 numbers depend on each other: a stroke that leaves one place has to
# arrive in the next. A Gaussian with all pairwise correlations knows a part of that, and is much better (third row).
# What is left to know is not Gaussian.
#
# How dependent are they? If the 32 numbers were independent with variance 1, all directions in latent space would have
# the same variance.

# %%
ours = torch.linalg.eigvalsh(torch.cov(vector.T)).flip(0)
chance = torch.linalg.eigvalsh(torch.cov(normal.flatten(1).double().T)).flip(0)
curves = {"codes of pictures": ours, "drawn from the prior": chance}
plots.plot_curves(range(1, 33), curves, "direction, sorted", "variance", yscale="log")

# %% [markdown]
# So here is the plan. We have 32 numbers of unit size in the place of 1,024 pixels, a decoder that turns them into
# sharp digits, and an unknown distribution that no bell curve fits. A method that learns to draw from an unknown
# distribution, starting from a bell curve, is at hand since chapter 1. The next chapter puts the two together.
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
#   fixed $s$, which is the squared error. Their networks have one hidden layer.
# - Their bound has no weight. Higgins et al. multiply its divergence by $\beta$. With a squared error that is the same
#   as another $s$, by (7).
# - Rombach et al. add a perceptual loss and a discriminator, so that photographs come out crisp. Digits of 28 x 28
#   pixels do without.
# - They measure one scale for all channels, on the first batch. We measure mean and scale of each channel on ten
#   thousand pictures.
# - They reduce photographs by 4 or 8 in height and width, to three or four channels. We reduce digits by 8, to two.
#
# ## Pitfalls
#
# - **Summed or averaged?** "kl_weight 1e-6" means nothing without the reductions. With the error summed over the
#   pixels the same number weighs 1,024 times less; with the divergence averaged over the latent, 32 times less.
# - **A draw under `no_grad`, or detached.** The loss falls, and the encoder collapses (section 5).
# - **Log-variances without limits.** An untrained encoder may say 100, and $e^{100}$ is no number in half precision.
#   `DiagonalGaussian` clamps them.
# - **Collapse mistaken for convergence.** Look at the divergence, number by number. All zeros means that the decoder
#   works alone.
# - **One literal for the scale.** 0.18215 is right for one network and its weights. Measure yours.
# - **Judging a VAE by its copies.** They say nothing about its draws (section 15).
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
# A PNG of a 28 x 28 digit takes some two thousand bits, and gives every grey level back. The VAE is off by ten levels
# on average (half the root of the squared error, times 255), and knows what digits look like before it has seen the
# code; PNG knows nothing. (The divergence is the cost of the code under the prior $\mathcal N(0,1)$. Under a better
# prior the same code is cheaper, which is another way to state the plan of section 15.)
#
# </details>
#
# **2. When is a direction worth a number?** Take the toy with a free length of $w$. Maximise the average ELBO over
# $|w|$ with the ideal encoder, that is, the evidence. What is the best $|w|^2$, if the data have a given variance along
# $w$? For which variance is it zero?


# %%
# NBVAL_CHECK_OUTPUT
def best_square(variance, s):
    """Variances of the data, (K,), and the decoder's s, a number -> the best |w|^2 for each, (K,)."""
    ...  # your code here


check(best_square)

# %% [markdown]
# <details><summary>Solution</summary>
#
# With the ideal encoder the ELBO is the evidence. Along $w$ the model's variance is $|w|^2 + s^2$. If that of the data
# is $v$, the average log density is $-\tfrac12 \log(|w|^2 + s^2) - v / 2(|w|^2 + s^2)$ plus a constant, which is
# largest at $|w|^2 + s^2 = v$. So $|w|^2 = v - s^2$ where that is positive, else $|w| = 0$: a direction with less
# variance than the decoder's own scatter stays unused (Tipping & Bishop 1999; Lucas et al. 2019).
#
# ```python
# def best_square(variance, s):
#     return (variance - s**2).clamp(min=0)
# ```
#
# </details>
#
# **3. Draw by digit.** Fit ten Gaussians to the codes, one for each label, and draw from them. What is the cFID now?
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
# About 1.4 instead of 20, on MNIST. Most of what is not Gaussian in the codes is that there are ten kinds of digits.
# Within a kind a bell curve goes a long way, though strokes still break here and there. But the labels had to be given,
# and a world that does not come in ten kinds cannot be sorted so. Chapter 4 needs no labels.
#
# </details>
#
# **4. The whole loss.** Write (7) for one draw, from what the encoder gives to one number a picture. `check` looks at
# the gradients too. Somebody writes `.kl().mean() / 32` instead, and keeps $\lambda = 10^{-3}$. Which row of section 12
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
# $10^{-4}$. Nothing fails; the pictures are sharper and the draws worse than they expect.
#
# </details>
#
# ## Summary
#
# - An autoencoder keeps a few numbers of a picture. A *variational* one keeps a distribution, and pays in nats for
#   every difference from the prior.
# - The ELBO (4) is the evidence minus the price of guessing. It needs nothing unknown, and trains both networks.
# - The gradient must go through the draw (6). Without it the encoder collapses without a sound.
# - The weight of the divergence (7) is the decoder's accuracy in disguise. It decides how many numbers are used.
# - A weak weight gives sharp copies, and codes that no bell curve fits. Someone has to learn to draw them: chapter 4.
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
