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
# # Scoreboard: every model by the same rules
#
# *Runs in about a minute on two CPU cores, without a network connection. Needs chapters 1, 2 and 4; the later ones
# help.*
#
# Each chapter ended with a line for the scoreboard. Here is the whole of it: all models that come with the book, under
# the same measures, against the same 10,000 real digits. But a table of numbers is soon read and soon misread. So more
# than half of this chapter is about the numbers themselves: what each of them sees, how it can be fooled, and how large
# a difference has to be before it means anything.
#
# You will
#
# - write the three usual measures in a few lines each, and catch each of them out;
# - read the table, at a budget of one evaluation, of ten, of fifty;
# - find out how much of a figure is luck;
# - start all models from the same noise, and see whether they agree;
# - look for training pictures in what they draw;
# - pick a model for a purpose, and learn the command that repeats each number.
#
# The text does not depend on who won. What is said of single models is printed by cells, from the cards of the weights.

# %% [markdown]
# ## Set-up, and what we are after
#
# The board holds one row for each model and each way of sampling it, each measured with 10,000 samples. To look at, we
# take of every model its best row with at most 20 evaluations, no fresh noise and no guidance. Best means the lowest
# $R$, which section 1 explains. The models that know classes draw the digits in order.

# %%
import itertools
import math
import time

import torch
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data, samplers, schedules
from diffusion_book.evaluation.distances import (
    frechet_distance,
    frechet_error,
    kernel_distance,
    nearest,
    precision_recall,
)
from diffusion_book.evaluation.features import classifier, features, logits, reference_features
from diffusion_book.evaluation.measures import CLASS_COUNTS, floor, random_labels, real_features, sentence
from diffusion_book.evaluation.projection import joint_map
from diffusion_book.evaluation.scoreboard import best, milliseconds, minutes_in_all, scoreboard
from diffusion_book.models import sampling, weights
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.targets import Prediction
from diffusion_book.viz import distribution, grids, plots, scores, style

style.use_style()
NUMBER = 10_000  # samples behind every figure that is compared
board = scoreboard(NUMBER)


def quality(row):
    """R: cFID over the floor of as many real digits. Lower is better, 1 is perfect."""
    return row.measures["ratio"]


def is_plain(row):
    """No fresh noise on the way, and no guidance beyond what was trained."""
    asked = row.setting
    return asked["sampler"] != "ddpm" and not asked["eta"] and asked.get("guidance_scale", 1.0) == 1.0


plain = [row for row in board if is_plain(row)]
picked = best(plain) | best(
    [row for row in plain if row.evaluations <= 20]
)  # the best there is, where nothing is cheap
picked = dict(sorted(picked.items(), key=lambda item: quality(item[1])))
pipes = {name: diffusion_book.load(name) for name in picked}
begun = time.perf_counter()
drawn = {name: pipes[name].sample(**{**row.setting, "num_samples": 200}) for name, row in picked.items()}
print(f"{len(drawn)} models, 200 digits each: {time.perf_counter() - begun:.0f} seconds")
grids.show_rows({name: pictures[:12] for name, pictures in drawn.items()})

# %% [markdown]
# Your eye has ranked them already, and it is a good judge of the worst. Among the others it tires, and it never sees
# what is *missing*. Here is of each model what to take away: how many times the distance of real digits its digits
# have, and how many of a hundred are *doubtful*, so that a second classifier is less than 90 % sure what they are.

# %%
for name, row in picked.items():
    print(f"{name:>24}: {sentence(row.measures)}")
scores.plot_bars(list(picked.values()))

# %% [markdown]
# The thin lines are standard errors (section 5). The same settings in all numbers; bold is the best, and whatever is
# not to be told apart from it. The milliseconds were measured a moment ago on the machine
# that ran this page; all else stands on the cards.

# %%
speed = {name: milliseconds(pipes[name], row.setting, num_samples=32, repeats=2) for name, row in picked.items()}
clock = scores.Column("time here", lambda row: speed[row.model], ".1f ms", "low")
scores.score_table({"": list(picked.values())}, (*scores.COLUMNS, clock))

# %% [markdown]
# *Evaluations* count calls of the network for one picture. Heun and midpoint call it twice a step, and with guidance
# both branches count. *Parameters* are those of the network. A latent model also needs its decoder, and its training
# stood on the autoencoder's; a reflowed or one-step model stands on its parent's:

# %%
cards = {name: weights.read_card(name) for name in picked}


def parameters_in_all(pipe):
    parts = [pipe.network] + ([pipe.autoencoder.network.decoder] if pipe.autoencoder else [])
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


for name, pipe in pipes.items():
    kind = ("latents" if pipe.autoencoder else "pixels") + (", with classes" if pipe.num_classes else "")
    numbers = f"{parameters_in_all(pipe):9,} parameters to draw, {minutes_in_all(name):3.0f} minutes of training in all"
    print(f"{name:>24}: {kind:<21} {numbers}")

# %% [markdown]
# ## 1. Three ways to compare two heaps of points
#
# All measures look through one frozen classifier: $\phi(x)$ is what it sees in a picture just before it decides, 64
# numbers. A set of pictures becomes a heap of points. The pictures are rounded to bytes first, and cropped to 28 x 28,
# as if they had been stored as files.
#
# **As two Gaussians.** Give each heap its mean $\mu$ and covariance $C$. The squared Fréchet distance is
#
# $$d^2 = |\mu_a - \mu_b|^2 + \operatorname{tr}\left(C_a + C_b - 2\,(C_a C_b)^{1/2}\right). \tag{1}$$
#
# With Inception's features it is the FID of the papers. With our classifier's we call it *cFID*.


# %% tags=["nbval-check-output"]
def my_frechet(a, b):
    covariance_a, covariance_b = a.T.cov(), b.T.cov()  # (D, D)
    roots = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt()  # of C_a C_b
    return (a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * roots.sum()


reference = reference_features()
some, others = (reference[split][:500].double() for split in ("train", "test"))
assert_close(my_frechet(some, others).item(), frechet_distance(some, others), rtol=1e-4, atol=1e-4)
print(f"500 training pictures from 500 test pictures: cFID {frechet_distance(some, others):.2f}")

# %% [markdown]
# **By a kernel.** With a measure $k$ of likeness, compare how alike the points are within a heap and across:
#
# $$\text{KID} = \underset{a \ne a'}{\operatorname{mean}}\ k(a, a') + \underset{b \ne b'}{\operatorname{mean}}\ k(b, b')
# - 2 \operatorname{mean} k(a, b), \qquad k(x, y) = \left(x^\top y / D + 1\right)^3. \tag{2}$$
#
# where $D = 64$ is the number of features.
#
# **By neighbours.** Draw around each point a ball that reaches to its third neighbour; $\rho$ is its radius.
# *Precision* is the share of generated points that lie in some ball of a real one, *recall* the share of real points
# in some ball of a generated one. With a bracket that is 1 where its condition holds, and else 0:
#
# $$\text{precision} = \operatorname{mean}_g\, \big[\, \exists\, r : |g - r| \le \rho_r \,\big], \qquad
# \text{recall} = \operatorname{mean}_r\, \big[\, \exists\, g : |r - g| \le \rho_g \,\big]. \tag{3}$$


# %% tags=["nbval-check-output"]
def my_kernel_distance(a, b):
    def likeness(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        return (likeness(x, x).sum() - likeness(x, x).trace()) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * likeness(a, b).mean()


def my_share_inside(points, members):
    reach = torch.cdist(members, members).sort(dim=1).values[:, 3]  # place 0 is the point itself
    return (torch.cdist(points, members) <= reach).any(dim=1).double().mean()


assert_close(my_kernel_distance(some, others).item(), kernel_distance(some, others), rtol=1e-6, atol=1e-9)
precision, recall = precision_recall(some, others)
assert_close(my_share_inside(some, others).item(), precision, rtol=0, atol=0.01)
assert_close(my_share_inside(others, some).item(), recall, rtol=0, atol=0.01)
print(f"the same heaps: KID {kernel_distance(some, others):.2f}, precision {precision:.2f}, recall {recall:.2f}")

# %% [markdown]
# Both heaps were real, and yet cFID is not 0, nor are the shares 1. So no number is printed alone: beside it belongs
# what real pictures would have got in its place. For cFID that is the *floor*, the distance of as many random training
# pictures from the test set, averaged over ten draws of them, and $R = \text{cFID} / \text{floor}$. There is one floor
# for all models.
#
# For models with classes there is a fourth measure, the simplest: a second classifier, of another build, says how often
# it sees the digit that was asked for.
#
# ## 2. How they are fooled
#
# **cFID, by the number of samples.** A covariance estimated from few points is wrong, and (1) counts every error
# as distance. The floor shows it, for there is nothing wrong with real digits:

# %% tags=["nbval-check-output"]
sizes = (100, 500, 2_000, 10_000)
for size in sizes:
    kid = kernel_distance(real_features(size), reference["test"][::5])  # a fifth of the test set will do
    mean, std = floor(size)
    print(f"{size:6,} real training pictures: cFID {mean:.2f} +- {std:.2f}, KID {kid:.3f}")

# %% [markdown]
# By (2) KID is free of this bias, for it leaves out a point's likeness to itself; it only scatters. A cFID of few
# samples cannot be set beside one of many. Neither can $R$: the bias is in the floor and in the cFID, and what is wrong
# with a model comes on top. So the same samples have a small $R$ if they are few and a large one if they are many. Where
# one setting was measured with both numbers:

# %%
for row in scoreboard():
    if row.setting["num_samples"] != NUMBER:
        others = [
            other
            for other in board
            if (other.model, other.setting | {"num_samples": 0}) == (row.model, row.setting | {"num_samples": 0})
        ]
        for other in others:
            print(
                f"{row.model}, {scores.setting_name(row)}: R = {quality(row):.1f} with {row.setting['num_samples']:,} samples",
                end="",
            )
            print(f", {quality(other):.1f} with {NUMBER:,}")

# %% [markdown]
# Near the floor $R$ says more about the number of samples than about the model. With 2,000 a good model may reach
# $R \approx 1$, because what is left of its error drowns in the bias. With 10,000 the same model stands clearly above 1
# again. $R = 1$ means: *no difference can be seen with so many*. All figures of this chapter are of 10,000.
#
# **cFID, by the shares of the digits.** A draw of 2,000 real digits holds about 200 sevens, more or less, and (1)
# counts the more or less as distance. A model with classes draws as many as it is asked for. How many should that be?
# Let us take real digits in three ways, twenty draws of each: at random, as many of each digit, and in exactly the
# shares of the test set.


# %%
with torch.no_grad():
    digits = classifier().head(reference["train"]).argmax(dim=1)  # which is which, by the classifier
WAYS = ("at random", "as many of each", "exact shares")


def draw(size, way, generator):
    """Features of random training pictures."""
    order = torch.randperm(60_000, generator=generator)
    if way == "at random":
        return reference["train"][order[:size]]
    shares = torch.full((10,), 0.1) if way == "as many of each" else torch.tensor(CLASS_COUNTS) / sum(CLASS_COUNTS)
    counts = (shares * size).round().int().tolist()
    return torch.cat([reference["train"][order[digits[order] == digit][:count]] for digit, count in enumerate(counts)])


generator = torch.Generator().manual_seed(0)
found = {}
for way, size in itertools.product(WAYS, sizes):
    draws = [draw(size, way, generator) for _ in range(20)]
    found[way, size] = torch.tensor([frechet_distance(each, reference["test"]) for each in draws])
print(f"{'':19}", *(f"{way:>18}" for way in WAYS))
for size in sizes:
    texts = [f"{found[way, size].mean():.2f} +- {found[way, size].std():.2f}" for way in WAYS]
    print(f"{size:6,} real digits:", *(f"{text:>18}" for text in texts))
means = {way: [found[way, size].mean() for size in sizes] for way in WAYS}
ticks = {"xticks": sizes, "xticklabels": [f"{size:,}" for size in sizes]}
plots.plot_curves(sizes, means, "samples", "cFID of real digits", xscale="log", yscale="log", **ticks)

# %% [markdown]
# The number behind +- is the standard deviation from draw to draw. *As many of each* is a burden once samples are many:
# MNIST has more ones than fives, so the shares are wrong, and even real digits end well above their floor. *Exact
# shares* are a present, since less is left to chance: real digits would have $R < 1$. So models with classes are asked
# for digits *at random*, in the test set's proportions. Then their samples are as much of a random draw as those of a
# model without classes, one floor serves both, and all can be ranked together.
#
# **All of them, by guidance.** Chapter 5 turned a dial from 0 to 10. Here the whole sweep is under every measure.

# %%
MEASURES = {"R": "ratio", "precision": "precision", "recall": "recall", "right class": "class_accuracy"}
swept = [row for row in board if row.setting["sampler"] == "ddim" and row.setting["steps"] == 10]
swept = [row for row in swept if "guidance_scale" in row.setting]
for model in dict.fromkeys(row.model for row in swept):
    its = [row for row in swept if row.model == model]
    votes = []
    for title, key in MEASURES.items():
        winner = (min if title == "R" else max)(its, key=lambda row, key=key: row.measures[key])
        votes.append(f"{title} is best at w = {winner.setting['guidance_scale']:g}")
    print(f"{model:>24}:", ", ".join(votes))
scores.plot_sweep(swept, MEASURES) if swept else print("the cards do not tell it yet")

# %% [markdown]
# The measures do not vote for one scale. Each is right about something:
#
# - *Precision* rises as pictures retreat to the middle of what is typical, and beats that of real digits, which include
#   awkward ones. Pushed too far, the pictures leave the real ones behind on the other side.
# - *Recall* pays for it all the way. Whoever quotes precision alone can buy it.
# - *Right class* is blind to variety. Two hundred copies of one clear seven would score 100 %.
# - *R*, or cFID, mixes both, in proportions that nobody chose.
#
# And all of them look through the same glass. What the classifier does not look at, they do not see
# (exercise 2).
#
# ## 3. The table
#
# For each budget the best row of every model that can be had for it, whatever the sampler, with or without guidance
# and fresh noise. On a narrow screen it scrolls sideways.


# %%
def at_most(budget):
    return sorted(best([row for row in board if row.evaluations <= budget]).values(), key=quality)


budgets = {"1 evaluation": 1, "at most 10 evaluations": 10, "at most 50": 50, "any number": math.inf}
scores.score_table({title: rows for title, budget in budgets.items() if (rows := at_most(budget))})

# %% [markdown]
# And everything there is, folded up:

# %%
everything = {
    name: sorted((row for row in board if row.model == name), key=lambda row: row.evaluations) for name in picked
}
scores.score_table(everything, fold=f"all {len(board)} rows of {NUMBER:,} samples")

# %% [markdown]
# ## 4. Quality against work
#
# A model is not a point but a line: it buys quality with evaluations. Rows with guidance are left out, because there
# the second branch buys something else. Of rows with and without fresh noise the better one counts.

# %%
unguided = [row for row in board if row.setting.get("guidance_scale", 1.0) == 1.0]
scores.plot_frontier(unguided)

# %%
lead = math.inf
for row in sorted(unguided, key=lambda row: (row.evaluations, quality(row))):
    if quality(row) < lead:
        lead = quality(row)
        how = scores.setting_name(row)
        print(f"from {row.evaluations:4} evaluations on, {row.model} leads with R = {lead:.2f} ({how})")
behind = {name for name in picked if quality(best(unguided)[name]) > 2 * lead}
print(f"never within twice the best: {', '.join(sorted(behind)) or 'none'}")

# %% [markdown]
# Along the grey band one gets the most for one's evaluations. Where a line turns upwards on the right, two things can
# be at work. Coarse steps can round off the odd samples, as a little guidance does, which cFID may like (compare
# precision and recall in the table). And near the floor much of the up and down is luck. How much, comes next.
#
# Evaluations are a fair currency between samplers, not between networks: a call takes each of them another time, and a
# latent model pays for its decoder once. If you wait for pictures, the clock counts:

# %%
for name, row in sorted(picked.items(), key=lambda item: speed[item[0]]):
    print(f"{name:>24}: {speed[name]:6.1f} ms a picture, {row.evaluations:2} evaluations, R = {quality(row):.2f}")

# %% [markdown]
# ## 5. How sure is a figure?
#
# Draw again with another seed, and the figure is another. By how much? Drawing many times would say it, and costs as
# many times more. But a single set of samples knows it nearly as well. Each sample $x$ pulls at the distance (1) by a
# little: with $\phi$ for its features less the mean $\mu_a$ of all,
#
# $$\delta(x) = 2\,(\mu_a - \mu_b)^\top \phi + \phi^\top (I - T)\, \phi, \qquad
# T = C_b^{1/2} \left(C_b^{1/2} C_a\, C_b^{1/2}\right)^{-1/2} C_b^{1/2}, $$
#
# which is the slope of (1) in the weight of that sample. If the samples pull very differently, the figure depends on
# which of them one happened to draw: its standard error is the standard deviation of $\delta$ over $\sqrt N$. (Close to
# the floor the slope almost vanishes, and the error comes out too large, by up to $\sqrt 2$.) To believe it, take the
# model and setting with the fewest evaluations, 500 samples, eight seeds.

# %%
quick = min(plain, key=lambda row: (row.evaluations, quality(row)))


def redraw(row, **changes):
    """Samples of a row as `diffusion-book evaluate` draws them: digits at random where there are classes."""
    pipe, asked = pipes[row.model], {**row.setting, **changes}
    return pipe.sample(**asked, labels=random_labels(asked["num_samples"]) if pipe.num_classes else None)


redrawn = [features(redraw(quick, seed=seed, num_samples=500)) for seed in range(1, 9)]
values = torch.tensor([frechet_distance(each, reference["test"]) for each in redrawn])
claimed = torch.tensor([frechet_error(each, reference["test"]) for each in redrawn])
print(f"{quick.model} ({scores.setting_name(quick)}), 500 samples, eight seeds:", *(f"{value:.2f}" for value in values))
print(f"standard deviation {values.std():.2f}, claimed by each single set {claimed.mean():.2f}")

# %% [markdown]
# Eight seeds give a rough idea of a standard deviation and no more (a quarter of it either way). The scatter of real
# digits themselves is no small matter (section 2), and few papers print theirs. Two things follow.
#
# *The floor itself is an estimate.* It is the mean of ten draws, and known about three times better than a single one.
# Had others been taken, every $R$ on the board would be a little different, all by the same factor. So compare the $R$ of
# two models, and do not read its decimals as a distance from perfection.
#
# *Neighbours may be ties.* Let two $R$ count as different if they are two standard errors of their difference apart:


# %%
def error(row):
    """Standard error of R; where a card does not tell it, that of real digits."""
    return row.measures["ratio_error"] or row.measures["floor_std"] / row.measures["floor"]


for ahead, after in itertools.pairwise(sorted(best(unguided).values(), key=quality)):
    needed = 2 * math.hypot(error(ahead), error(after))
    verdict = "ahead of" if quality(after) - quality(ahead) > needed else "not to be told apart from"
    print(
        f"{ahead.model} ({quality(ahead):.2f}) is {verdict} {after.model} ({quality(after):.2f}): needed {needed:.2f}"
    )

# %% [markdown]
# So make nothing of a difference below what is needed. The remedy is more samples. And all this is only the luck of
# *sampling*. Train a model again from another seed, and you have another model. How far that moves a figure, nobody here
# has paid for measuring, nor in most papers.
#
# ## 6. The same noise
#
# In chapter 2 the noise decided on the digit. Does it decide for all models alike? There is a reason why it should.
# Without fresh noise a sampler follows $dx = \hat x_0\, d\alpha + \hat\epsilon\, d\sigma$. By the rule of quotients,
# $d(x_t / \alpha) = dx_t / \alpha - x_t\, d\alpha / \alpha^2$. Put in this $dx_t$ and
# $x_t = \alpha \hat x_0 + \sigma \hat\epsilon$, and the terms with $\hat x_0$ cancel:
#
# $$d\left(\frac{x_t}{\alpha_t}\right) = \hat\epsilon\; d\left(\frac{\sigma_t}{\alpha_t}\right). \tag{4}$$
#
# The schedule appears only in the ratio $\sigma / \alpha$, which is a clock. And the best possible $\hat\epsilon$ at a
# given ratio follows from the data alone. So the way from a noise to its picture belongs to the *data set*: not to the
# network, nor to the schedule, nor to the target. Diffusion models and rectified flows have to agree, if they are
# perfect. On data whose best denoiser we know, numbers from a Gaussian, they do:


# %% tags=["nbval-check-output"]
def ends(schedule, noise, mean=0.3, variance=0.25):
    """Where noise ends up by 500 steps of Euler with the exact denoiser of N(mean, variance)."""

    def denoiser(x, t):
        alpha, sigma = schedule(t)
        off = (x - alpha * mean) / (alpha**2 * variance + sigma**2)
        return Prediction(mean + alpha * variance * off, sigma * off)

    steps = samplers.sample(
        denoiser, noise, samplers.time_grid(500), samplers.euler, schedule=schedule, generator=torch.Generator()
    )
    return list(steps)[-1].x


noise = torch.linspace(-2, 2, 5, dtype=torch.float64)
straight, round_about = ends(schedules.rectified, noise), ends(schedules.cosine, noise)
assert_close(straight, round_about, rtol=0, atol=0.02)
print("rectified:", " ".join(f"{x:.1f}" for x in straight), "| cosine: the same to 0.02")

# %% [markdown]
# Now the trained ones. Models of pixels start from one noise, models of latents from another, for theirs has another
# shape. Models with classes are asked twice: for nothing (the label `NO_CLASS`, where they have learned it), and for
# the digits in turn. Being asked for another class is being asked for other data, so each family is compared within
# itself.

# %%
COUNT = 60
families = {"pixels": {}, "latents": {}, "latents, asked for digits": {}}
for name, pipe in pipes.items():
    asked = {**picked[name].setting, "num_samples": COUNT}
    if pipe.num_classes:
        families["latents, asked for digits" if pipe.autoencoder else "pixels"][name] = drawn[name][:COUNT]
        if pipe.recipe.condition.unconditional_probability > 0 and pipe.autoencoder:
            families["latents"][name] = pipe.sample(**asked, labels=NO_CLASS)
    else:
        families["latents" if pipe.autoencoder else "pixels"][name] = drawn[name][:COUNT]


def unlike(a, b):
    """Distance of pictures of the same noise, in units of the distance of pictures of different noise."""
    other = b.roll(10, dims=0)  # ten places on, where the same digit was asked for
    return ((a - b).flatten(1).norm(dim=1).mean() / (a - other).flatten(1).norm(dim=1).mean()).item()


shown = {}
for family, pictures in families.items():
    print(f"{family}:" if len(pictures) > 1 else f"{family}: only {len(pictures)}, nothing to compare")
    seen = {name: logits(each).argmax(dim=1) for name, each in pictures.items()}
    for a, b in itertools.combinations(pictures, 2):
        agree = (seen[a] == seen[b]).double().mean()
        print(f"    {a} and {b}: unlike by {unlike(pictures[a], pictures[b]):.2f}, the same digit {agree:.0%}")
    shown |= {f"{name}\n{family}": each[:12] for name, each in pictures.items()}
grids.show_rows(shown)

# %% [markdown]
# Unlike by 0 would be the same picture, unlike by 1 as different as if each had had a noise of its own. Where two rows
# agree, two networks have found the same map, because it lies in the data. Where they differ, at least one of them is
# wrong. Reflowed and one-step models had it easier: they were trained
# on pairs of noise and picture that their parent drew (chapter 7), and so were told the map.
#
# One lesson for comparing: **use the same noise for all**. Part of the luck of section 5 is then shared, and cancels
# in the difference.
#
# ## 7. All on one map
#
# UMAP lays the 64 numbers out in the plane, real digits and those of all models together, so that neighbours stay
# neighbours. One map is computed for all; for the eye it is drawn twice, with the models of pixels and with those of
# latents. What each digit is, the classifier says.

# %%
chosen = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:600]
points = {"real": reference["test"][chosen]} | {name: features(pictures) for name, pictures in drawn.items()}
plane = joint_map(points)
places = plane.places
with torch.no_grad():
    labels = {name: classifier().head(each).argmax(dim=1) for name, each in points.items()}


def show_map(title, names):
    names = ["real", *names]
    return distribution.plot_distributions(
        {title: {name: places[name] for name in names}}, {name: labels[name] for name in names}
    )


show_map("models of pixels", [name for name in pipes if not pipes[name].autoencoder])

# %%
show_map("models of latents", [name for name in pipes if pipes[name].autoencoder])

# %% [markdown]
# Islands are digits. A model that has lost a way of writing a digit leaves a part of an island bare. What it draws
# between the islands is neither one digit nor another. Read no more than that: the map has nothing to say about how
# much better one model is.
#
# How does a sample get to its island? While chapter 1's model draws ten digits, we ask at every second step what it
# takes its finished picture to be, and look that up on the map. Pull the slider back to noise, or press Play.

# %%
times, stills = sampling.predictions(diffusion_book.load("ddpm"), range(10), frames=26, steps=50, seed=11)
shown = {name: labels[name] for name in ("real", "ddpm")}
ways = plane.locate(features(stills.flatten(0, 1)).unflatten(0, stills.shape[:2]))  # (10, 26, 2)
distribution.ways_across(
    {"the 64 numbers": {name: places[name] for name in shown}},
    {"the 64 numbers": ways},
    stills,
    shown,
    logits(stills[:, -1]).argmax(dim=1),
    [f"t = {t:.2f}" for t in times],
)

# %% [markdown]
# All ten begin at one place, with the one grey average of chapter 1. They part as soon as something is decided, and the
# later steps change less and less on the map, for they go into the edges of strokes. Where one rests between the
# islands, or jumps from one to another that late, look at the picture: it is hardly a digit. It lies far from all of
# them, and the map puts it beside whatever happens to be nearest.
#
# In numbers: how often does each model draw each digit, and how many of its samples does the second classifier
# doubt?

# %%
for name, pictures in drawn.items():
    certain, digit = logits(pictures).softmax(dim=1).max(dim=1)
    share = " ".join(f"{count:3}" for count in digit.bincount(minlength=10).tolist())
    print(f"{name:>24}: of 200, digits 0 to 9 {share} | {(certain < 0.9).double().mean():4.0%} in doubt")
print(f"{'real test digits':>24}: {'':46} | {1 - reference['confident']:4.0%} in doubt")

# %% [markdown]
# ## 8. Is it memory?
#
# The best score of all goes to a cheat that returns training pictures. It *is* the floor. No measure so far would
# notice. So look for the nearest training picture of each sample, in the same 64 numbers, and beside it for that of
# real test digits, which surely are not copied.

# %%
away = {"real": nearest(points["real"], reference["train"])[0]}
neighbours = {}
for name in drawn:
    away[name], neighbours[name] = nearest(points[name], reference["train"])
scores.plot_spreads(away, "distance to the nearest training picture")

# %% [markdown]
# A box holds the middle half, its whiskers reach from 5 % to 95 %. Copies would lie at 0. But a box to the left of the
# real one is no proof of copying. A model that draws only what is typical comes near to *all* digits, those in the
# training set and those outside; strong guidance does that, and so does an autoencoder that smooths. A model is guilty
# if it is nearer to the pictures it was trained on than to others of the same kind. That can be counted. Put the 60,000
# training and the 10,000 test pictures together, and ask of each sample to which set its nearest belongs. A model
# without memory finds it among the training pictures in six cases of seven.

# %%
print(f"without memory: {6 / 7:.0%}; a copying machine: 100%")
for name in drawn:
    to_test = nearest(points[name], reference["test"])[0]
    share = (away[name] < to_test).double().mean().item()
    error = math.sqrt(share * (1 - share) / len(to_test))
    print(f"{name:>24}: {share:.0%} nearest to a training picture, +- {100 * error:.0f} points")

# %% [markdown]
# A few points above or below are nothing, and not only because of the noise of 200 samples: MNIST's two sets were not
# written by the same people, and the classifier has seen one of them.
#
# Still, look for yourself. Of each model, for every digit, the sample that is nearest to a training picture: the sample
# above, the training picture below.

# %%
train = data.load("auto", "train")
figure = None
if train.name == "mnist":
    rows = {}
    for name, pictures in drawn.items():
        order = away[name].argsort()  # the nearest first
        closest = torch.stack([order[labels[name][order] == digit][0] for digit in labels[name].unique()])
        found_there = train.images[neighbours[name][closest]]  # (10, 1, 28, 28)
        rows[name] = torch.cat([data.quantise(pictures[closest]), found_there], dim=2)  # -> (10, 1, 56, 28)
    figure = grids.show_rows(rows)
else:
    print("The distances come with the book, the training pictures do not: to see them, get MNIST (chapter 0).")
figure

# %% [markdown]
# Close they may be, above all the ones, of which any two look alike. That is the other reason for counting: whoever
# wants to find a copy finds one. With 60,000 pictures and networks of about a million numbers there is little room for
# memory. Models of billions, shown the same picture hundreds of times, do have it (Carlini et al. 2023).
#
# ## 9. What the decoder costs
#
# A model that is perfect in its latents draws what the decoder makes of real digits, and no better. Real pictures,
# encoded and decoded, have a cFID of their own. They are those of the ten draws whose mean is the floor, so that the
# luck of a draw is the same before and after, and the difference is the decoder's:

# %% tags=["nbval-check-output"]
lost = weights.read_card("vae")["reconstruction"]
print(f"real digits:     cFID {lost['floor']:.3f}")
print(
    f"reconstructions: cFID {lost['cfid']:.3f}, R {lost['ratio']:.2f}, precision {lost['precision']:.3f}, recall {lost['recall']:.3f}"
)

# %%
for name, row in best(plain).items():
    cfid = row.measures["cfid"]
    above = cfid - row.measures["floor"]
    decoder = f", {(lost['cfid'] - lost['floor']) / above:.0%} of it by the decoder" if pipes[name].autoencoder else ""
    print(f"{name:>24}: cFID {cfid:.3f}, {above:.3f} above real digits{decoder}")

# %% [markdown]
# The percentages are a rule of thumb, for Fréchet distances do not add up. But they say where to work: as long as the decoder's share is small, train the diffusion longer; once it
# is large, go back to chapter 3.
#
# ## 10. Which model for what?
#
# "The best model" does not exist. It depends on what you are short of.

# %%
known = [row for row in board if row.model in picked]
lowest = quality(min(known, key=quality))
without = [row for row in known if not pipes[row.model].num_classes]
with_classes = [row for row in known if row.measures["class_accuracy"] is not None]
good = [row for row in known if quality(row) <= 2 * lowest]
purposes = {
    "the lowest R": min(known, key=quality),
    "the same, without classes": min(without, key=quality),
    "the fewest evaluations": min(known, key=lambda row: (row.evaluations, quality(row))),
    "fewest, within twice the lowest": min(good, key=lambda row: (row.evaluations, quality(row))),
    "the most variety (recall)": max(known, key=lambda row: row.measures["recall"]),
    "the cleanest strokes (precision)": max(known, key=lambda row: row.measures["precision"]),
    "the digit asked for": max(
        with_classes, key=lambda row: (row.measures["class_accuracy"], -quality(row)), default=None
    ),
    "the least waiting (of section 4)": picked[min(speed, key=speed.get)],
    "the smallest, decoder included": best(known)[min(pipes, key=lambda name: parameters_in_all(pipes[name]))],
    "the shortest training, all told": best(known)[min(pipes, key=minutes_in_all)],
}
for purpose, row in purposes.items():
    if row is not None:
        print(f"{purpose:>33}: {row.model}, {scores.setting_name(row)} (R = {quality(row):.2f})")

# %% [markdown]
# For models with classes a few cards hold one more figure, the only one that asks what samples are *good for*: train
# a classifier on 60,000 of them, and test it on real digits (Ravuri & Vinyals 2019). It notices missing variety, wrong
# labels and odd strokes, all in the currency of a task.

# %%
for name, card in cards.items():
    if "classification_accuracy_score" in card:
        score = card["classification_accuracy_score"]["accuracy"]
        print(f"{name:>24}: a reader of its samples reads {score:.2%} of the test digits")
print(f"{'real digits':>24}: {weights.read_card('classifier-check')['test_accuracy']:.2%}, after a longer training")

# %% [markdown]
# ## 11. Repeat every number
#
# Each row can be drawn again by one command, which prints the measures and says whether they agree with the card.
# These are the rows of the first table:


# %%
def command(row):
    return f"diffusion-book evaluate {row.model} " + " ".join(
        f"--{key.replace('_', '-')} {value}" for key, value in row.setting.items()
    )


for row in picked.values():
    print(command(row))

# %% [markdown]
# All of them at once, in some hours: `diffusion-book evaluate --all`. If it is cut off, `--resume FOLDER` goes on
# where it was. The cheap ones alone: `diffusion-book evaluate --all --most-evaluations 10`. Here is
# one, live and in full:

# %%
begun = time.perf_counter()
again = frechet_distance(features(redraw(quick)), reference["test"])
print(
    f"{command(quick)}\n{time.perf_counter() - begun:.0f} seconds: cFID {again:.4f}, the card says {quick.measures['cfid']:.4f}"
)
assert abs(again / quick.measures["cfid"] - 1) < 0.05

# %% [markdown]
# The two may differ in the third digit. Machines add in another order, some of them compute with fewer digits, and a
# sampler carries such differences along.
#
# ## Pitfalls of comparing
#
# - **Different numbers of samples.** The most common one. cFID favours whoever drew more, $R$ whoever drew fewer (section
#   2).
# - **Different features.** cFID, FID, FID from another implementation, with another resizing or after JPEG: not
#   comparable, not even in their order (Parmar et al. 2022).
# - **Steps for evaluations.** Heun's 10 steps are 19 calls, and guidance doubles them.
# - **The best of many tries.** The lowest of thirty figures is low partly by luck. Choose on one seed, report another.
# - **Classes against none.** Who is told what to draw has an easier task, and with exact or equal shares of the classes
#   another floor (section 2). Draw them at random, and say which is which.
# - **One measure.** Anything can be bought at the price of something else (section 2).
# - **The measure as a target.** Train or guide by the features you measure with, and the figure no longer says
#   anything. Here the classifier was fixed before the first model, and no training ever sees it, though the
#   size of the U-Net was chosen by it.
# - **A busy machine.** Milliseconds move by a factor of three while somebody else computes. Quote ratios from one run,
#   and interleave what you compare.
# - **Unequal schooling.** The models were trained for different times. The board compares these *weights*, not the
#   methods. To compare methods, give each the same minutes and tune each with the same care.
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. Infinitely many samples.** To first order the bias of cFID is a constant over $N$ (Chong & Forsyth 2020). Lay the
# best straight line through figures of several sizes, and say where it ends. Estimate from the floors at 500, 2,000 and
# 10,000 where the floor would end up. Why is it not exactly 0?

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def without_bias(sizes, values):
    """Sizes N and the figures of as many samples, (K,) each, float64 -> the figure at N = infinity, a number."""
    ...  # your code here


check(without_bias)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def without_bias(sizes, values):
#     design = torch.stack([torch.ones_like(sizes), 1 / sizes], dim=1)  # values = limit + slope / N
#     return torch.linalg.lstsq(design, values[:, None]).solution[0, 0]
# ```
#
# For the floors:
#
# ```python
# sizes = torch.tensor([500.0, 2_000.0, 10_000.0], dtype=torch.float64)
# print(without_bias(sizes, torch.tensor([floor(int(size)).mean for size in sizes], dtype=torch.float64)))
# ```
#
# What remains is the bias of the other side, for the test set is finite too, and a real difference: the two sets were
# written by different people. The same line through a model's figures at 2,000 and 10,000 gives it a cFID without
# bias, and the order of models near the floor becomes clearer.
#
# </details>
#
# **2. Fool the glass.** Find a change of pictures that everyone sees and cFID hardly does, and one that nobody sees
# and cFID does.
#
# <details><summary>Solution</summary>
#
# ```python
# name = min(picked, key=lambda name: quality(picked[name]))
# pictures = drawn[name]
# changes = {
#     "as they are": pictures,
#     "a frame": torch.nn.functional.pad(pictures[..., 1:-1, 1:-1], [1] * 4, value=-0.5),
#     "half the ink": (pictures + 1) / 2 - 1,
#     "shifted by 2": pictures.roll(2, dims=3),
#     "faint snow": (pictures + 0.1 * torch.randn(pictures.shape)).clamp(-1, 1),
# }
# for change, changed in changes.items():
#     print(f"{change}: {frechet_distance(features(changed), reference['test']):.2f}")
# grids.show_rows({change: changed[:10] for change, changed in changes.items()})
# ```
#
# Compare every line with the first: 200 samples have a large bias. Nobody can miss the grey frame, and it costs
# little. The snow has to be looked for, and costs more. Which change matters is decided by what the
# classifier learned to ignore. It was trained to read digits, not to judge pictures.
#
# </details>
#
# **3. How much copying goes unnoticed?** Write the count of section 8. Then mix samples of a model with copies of
# training pictures, in growing shares. From which share on does the median distance of section 8 notice? The count? And
# cFID?


# %% tags=["nbval-check-output"]
def share_nearer(samples, train, test):
    """Features, (N, D) each -> the share of samples that lie nearer to a training picture than to any test picture."""
    ...  # your code here


check(share_nearer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def share_nearer(samples, train, test):
#     to_train, to_test = (torch.cdist(samples, members).min(dim=1).values for members in (train, test))
#     return (to_train < to_test).double().mean()
# ```
#
# With copies mixed in:
#
# ```python
# name = min(picked, key=lambda name: quality(picked[name]))
# for share in (0.0, 0.05, 0.1, 0.25, 0.5):
#     copies = int(share * len(points[name]))
#     mixed = torch.cat([reference["train"][:copies], points[name][copies:]])
#     distance = nearest(mixed, reference["train"])[0]
#     count = share_nearer(mixed, reference["train"], reference["test"])
#     near = (distance < 0.05).double().mean()
#     print(f"{share:.0%} copies: median {distance.median():.2f}, count {count:.0%}, nearer than 0.05 {near:.0%}")
# ```
#
# The median reacts late, and the count rises by a seventh of the share. The share of distances near 0 says it at once:
# to catch a thief, look at the tail, not at the middle. cFID cannot object at all. A copy is a real digit.
#
# </details>
#
# **4. One feature at a time.** If features did not depend on each other, both covariances would be diagonal. What is
# left of (1)? How much of the distance of real digits is in the means and spreads of single features, and how much in
# what goes together?


# %% tags=["nbval-check-output"]
def frechet_of_spreads(a, b):
    """Features (N, D) and (M, D) without correlations -> d^2 of equation (1), a number."""
    ...  # your code here


check(frechet_of_spreads)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Each diagonal entry of the trace is $\sigma_a^2 + \sigma_b^2 - 2 \sigma_a \sigma_b = (\sigma_a - \sigma_b)^2$.
#
# ```python
# def frechet_of_spreads(a, b):
#     return ((a.mean(0) - b.mean(0)) ** 2 + (a.std(0) - b.std(0)) ** 2).sum()
# ```
#
# On real features it leaves the correlations out:
#
# ```python
# for size in (2_000, 10_000):
#     some = real_features(size), reference["test"]
#     print(f"{frechet_of_spreads(*some):.3f} of {frechet_distance(*some):.3f}")
# ```
#
# With 2,000 real digits half of the distance is left, with 10,000 two fifths. The rest is in the 2,016 correlations,
# each of them estimated from few samples. A heap may have every feature right by itself, and yet combine them as no
# digit does. (1) notices that; this does not.
#
# </details>
#
# ## Summary
#
# - A figure needs its floor, its number of samples and its spread, or it says nothing.
# - cFID (1) is biased by the number of samples; KID (2) is not; precision and recall (3) say *what* is wrong.
# - Every measure can be bought. Read at least two that pull in opposite directions.
# - The way from noise to picture belongs to the data (4). Models that have learned it agree without knowing each other.
# - Memory shows in a comparison of training pictures with others, not in a distance alone.
# - Evaluations compare samplers, the clock compares models, and the purpose decides.
#
# ## References
#
# - Heusel et al. (2017), *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*. NeurIPS.
#   arXiv:1706.08500. (FID.)
# - Bińkowski et al. (2018), *Demystifying MMD GANs*. ICLR. arXiv:1801.01401. (KID.)
# - Kynkäänniemi et al. (2019), *Improved Precision and Recall Metric for Assessing Generative Models*. NeurIPS.
#   arXiv:1904.06991.
# - Ravuri & Vinyals (2019), *Classification Accuracy Score for Conditional Generative Models*. NeurIPS.
#   arXiv:1905.10887.
# - Chong & Forsyth (2020), *Effectively Unbiased FID and Inception Score*. CVPR. arXiv:1911.07023.
# - Meehan, Chaudhuri & Dasgupta (2020), *A Non-Parametric Test to Detect Data-Copying in Generative Models*. AISTATS.
#   arXiv:2004.05675. (Section 8.)
# - Song et al. (2021), *Score-Based Generative Modeling through Stochastic Differential Equations*. ICLR.
#   arXiv:2011.13456. (Section 6: the encoding is unique.)
# - Kingma et al. (2021), *Variational Diffusion Models*. NeurIPS. arXiv:2107.00630. (Schedules are a choice of clock.)
# - Parmar, Zhang & Zhu (2022), *On Aliased Resizing and Surprising Subtleties in GAN Evaluation*. CVPR.
#   arXiv:2104.11222.
# - Carlini et al. (2023), *Extracting Training Data from Diffusion Models*. USENIX Security. arXiv:2301.13188.
# - McInnes, Healy & Melville (2018), *UMAP*. arXiv:1802.03426.
