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
# # Scoreboard: which model draws best, and how do we know?
#
# *Runs in one to two minutes on two CPU cores, without a network connection. Needs chapters 1, 2 and 4; section 6 also
# needs the idea of chapter 7.*
#
# Chapters 1 and 4 to 7 each trained models, and ended with their measures. This chapter lists all models that were
# measured with 10,000 samples (with random labels, if the model has classes; section 1). Which model draws the best
# digits? By how much, and why? And could the answer be luck? A table of numbers is easily read and easily misread, so
# this chapter looks at both: at the models, and at the measures by which they are ranked.
#
# You will
#
# - write the usual measures, Fréchet distance, kernel distance, precision and recall, in a few lines each;
# - read the ranking, and find out why the winner wins and what speed costs;
# - look at the failures of each model, in pictures and in numbers;
# - put an error bar on a distance, and see which differences mean something;
# - give all models the same noise, see whether they agree, and lay them all on one map;
# - look for memorised training pictures.
#
# *Note.* The measures come with features of real MNIST digits, so nearly all of the chapter needs no data set. Only
# figure 8.10 shows training pictures; if MNIST is not on your machine and cannot be downloaded, it is left out.

# %% [markdown]
# ## Set-up, and what we are after
#
# A card comes with the weights of each model. It tells how good 10,000 of its samples are, for several samplers and
# numbers of steps. From the cards we take the best row of each model, and draw 120 samples in just that way.

# %%
import itertools

import torch
from torch.testing import assert_close

import diffusion_book
from diffusion_book import data
from diffusion_book.evaluation import measures, projection
from diffusion_book.evaluation import scoreboard as scoring
from diffusion_book.evaluation.distances import (
    frechet_distance,
    frechet_error,
    kernel_distance,
    nearest,
    precision_recall,
)
from diffusion_book.evaluation.features import classifier, features, logits, reference_features
from diffusion_book.models import sampling, weights
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.viz import distribution, grids, in_page, plots, scores, scrubber, style
from diffusion_book.viz.figures import show

style.use_style()
NUMBER = 10_000  # samples behind every figure that is ranked
COUNT = 120  # samples that this chapter draws of each model
board = scoring.scoreboard(NUMBER)
ranked = scoring.ranking(board)
pipes = {row.model: diffusion_book.load(row.model) for row in ranked}
drawn = {row.model: scoring.redraw(pipes[row.model], row, num_samples=COUNT) for row in ranked}
missing = [name for name in diffusion_book.list_models() if name not in pipes and not name.startswith("vae")]
print(f"{len(ranked)} models, {len(board)} rows. Not on the board yet: {', '.join(missing) or 'none'}")
show(
    grids.show_rows({name: pictures[:12] for name, pictures in drawn.items()}),
    "8.1",
    "The first twelve samples of each model at its best setting, not a selection. The rows stand in the order of the "
    "ranking that this chapter explains.",
)

# %% [markdown]
# Would you have put the rows of figure 8.1 in this order? The eye sees at once which row is worst. For the others it is
# less reliable: a dozen digits are few, and nobody sees what is *missing*. So we need a number.
#
# ## 1. How far from real digits?
#
# What should such a number compare? It should not compare samples with single real digits: a good sample equals none of
# them. What should agree are two *distributions*, that of the samples and that of the data. So first turn each picture
# into a point: a frozen classifier of ours reads it, and the 64 numbers that it computes just before it decides are its
# *features* $\phi(x)$. (Pictures are rounded to bytes and cropped to 28 × 28 before, as if they had been stored as
# files.) A set of pictures becomes a set of points. Then fit a Gaussian to each set, with mean $\mu$ and covariance
# $C$, and take the squared *Fréchet distance* of the two Gaussians:
#
# $$d^2 = |\mu_a - \mu_b|^2 + \operatorname{tr}\left(C_a + C_b - 2\,(C_a C_b)^{1/2}\right). \tag{1}$$
#
# With the features of the Inception network this is the *FID* of the papers (Heusel et al. 2017). With those of our
# classifier, which knows digits better than photographs, we call it *cFID*.


# %% tags=["nbval-check-output"]
def my_frechet(a, b):
    covariance_a, covariance_b = a.T.cov(), b.T.cov()  # (D, D)
    roots = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp(min=0).sqrt()  # their sum: the root's trace
    return (a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * roots.sum()


reference = reference_features()  # of all real digits: "train" (60,000, 64) and "test" (10,000, 64)
some, others = (reference[split][:500].double() for split in ("train", "test"))
assert_close(my_frechet(some, others).item(), frechet_distance(some, others), rtol=1e-4, atol=1e-4)
print(f"500 training digits from 500 test digits: cFID {frechet_distance(some, others):.2f}")

# %% [markdown]
# Both sets were real, and yet the distance is not 0. The reason is in (1): a covariance that is estimated from few
# points has errors, and every error counts as distance, whatever its sign. So cFID is *biased* by the number of
# samples. How much? Measure real training digits against the 10,000 test digits. We draw them in three ways, ten times
# each: at random, equally many of each digit, and in exactly the proportions of the test set.

# %%
sizes = (100, 500, 2_000, 10_000)
distances = measures.real_distances(sizes, draws=10)  # way of drawing -> (sizes, draws)
for way, found in distances.items():
    told = ", ".join(f"{row.mean():.2f} ± {row.std():.2f} ({size:,})" for size, row in zip(sizes, found, strict=True))
    print(f"{way:>17}: {told}")
ticks = {"xscale": "log", "yscale": "log", "xticks": sizes, "xticklabels": [f"{size:,}" for size in sizes]}
means = {way: found.mean(1) for way, found in distances.items()}
show(
    plots.plot_curves(sizes, means, "number of samples", "cFID of real digits", **ticks),
    "8.2",
    "The cFID of real digits, which are perfect samples. It falls with their number, and depends on how the classes are "
    "drawn.",
)

# %% tags=["remove-cell"]
for way in means:
    assert all(few > many for few, many in itertools.pairwise(means[way]))
assert means["equal numbers"][-1] > 1.5 * means["at random"][-1]
assert means["exact proportions"][-1] < 0.8 * means["at random"][-1]

# %% [markdown]
# Figure 8.2 gives three rules. Compare only distances of **equally many samples**; in the ranking that is always
# 10,000. Print beside a distance what real digits would have got in its place: the *floor*, the mean of ten random
# draws, and
#
# $$R = \text{cFID} \,/\, \text{floor}.$$
#
# And draw classes at random. Exact proportions look too good, since less is left to chance. So do equal numbers while
# samples are few; with 10,000 they look bad, since MNIST has more ones than fives. So models with classes are asked for
# **random labels** with the test set's probabilities. One floor then serves all models, and all can be ranked together.
#
# $R = 1$ means: with so many samples, no difference from real digits can be seen. It does not make different numbers of
# samples comparable. The bias is in numerator and denominator, while a model's own error is only in the numerator, so
# $R$ grows with the number of samples. Some settings were measured with 2,000 and with 10,000 samples:

# %%
for row, other in itertools.product(scoring.scoreboard(2_000), board):
    if (row.model, {**row.setting, "num_samples": NUMBER}) == (other.model, other.setting):
        few, many = row.measures["ratio"], other.measures["ratio"]
        print(f"{row.model}, {scores.setting_name(row)}: R = {few:.1f} with 2,000 samples, {many:.1f} with {NUMBER:,}")
        assert few < many

# %% [markdown]
# The *kernel distance* is free of this bias. With a kernel $k$ that measures the similarity of two points, compare the
# similarities within each set and across ($D = 64$ is the number of features):
#
# $$\text{KID} = \underset{a \ne a'}{\operatorname{mean}}\ k(a, a') + \underset{b \ne b'}{\operatorname{mean}}\ k(b, b')
# - 2 \operatorname{mean} k(a, b), \qquad k(x, y) = \left(x^\top y / D + 1\right)^3. \tag{2}$$
#
# It leaves out the similarity of a point to itself, and so has the right mean for any number of points. Single values
# scatter around this mean, and may be negative. We print mean and standard deviation of ten draws. (Here the other side
# is only 2,000 test digits, so cFID is larger than in figure 8.2.)


# %% tags=["nbval-check-output"]
def my_kernel_distance(a, b):
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        return (kernel(x, x).sum() - kernel(x, x).trace()) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


assert_close(my_kernel_distance(some, others).item(), kernel_distance(some, others), rtol=1e-6, atol=1e-9)
for size in (100, 500, 2_000):
    sets = [measures.real_features(size, draw) for draw in range(10)]
    for name, distance, digits in (("cFID", frechet_distance, 2), ("KID", kernel_distance, 3)):
        found = torch.tensor([distance(each, reference["test"][:2_000]) for each in sets])
        print(f"{size:5,} real training digits: {name:>4} {found.mean():6.{digits}f} ± {found.std():.{digits}f}")

# %% [markdown]
# ## 2. The ranking
#
# Now for the models. Figure 8.3 ranks each by its best row, whatever that costs. (Some models have many rows to choose
# from, some only one.) Beside $R$ stands a measure that needs no theory: how many of a hundred samples are *doubtful*.
# A sample is doubtful if a second classifier, which was built and trained apart from the first, is less than 90 % sure
# what digit it sees.

# %%
show(
    scores.plot_bars(ranked),
    "8.3",
    "Distance from real digits, and doubtful digits, of each model's best row. The dotted lines are real digits; thin "
    "lines are standard errors, where a card tells them.",
)

# %%
scores.score_table({"": ranked})

# %% [markdown]
# *Evaluations* are calls of the network for one picture: Heun and midpoint call it twice per step (Heun only once in
# its last step), and guidance evaluates two branches. On a narrow screen the table scrolls sideways. Here are the facts
# on which the story below is built:

# %%
first = ranked[0]
of_pixels = [row for row in ranked if not pipes[row.model].autoencoder]
of_latents = [row for row in ranked if pipes[row.model].autoencoder]
print(
    f"{first.model} against {of_pixels[0].model}: R = {first.measures['ratio']:.1f} and {of_pixels[0].measures['ratio']:.1f}"
)
for row in ranked:
    seen, minutes = scoring.pictures_seen(row.model) / 1e6, scoring.minutes_in_all(row.model)
    size = scoring.parameters_in_all(pipes[row.model]) / 1e6
    print(
        f"{row.model:>24}: {seen:.1f} M pictures seen, {minutes:3.0f} minutes in all, {size:.1f} M parameters to draw"
    )
decoded = weights.read_card("vae")["reconstruction"]
print(f"real digits, encoded and decoded: R = {decoded['ratio']:.2f} ± {decoded['ratio_error']:.2f}")

# %% tags=["remove-cell"]
by_name = {row.model: row.measures for row in ranked}
ratio = {name: found["ratio"] for name, found in by_name.items()}
minutes, seen = scoring.minutes_in_all, scoring.pictures_seen
told = [row.model for row in ranked if pipes[row.model].num_classes]
assert pipes[first.model].autoencoder
assert of_pixels[0].measures["ratio"] > 2 * first.measures["ratio"]
assert scoring.parameters_in_all(pipes[first.model]) > 1.5 * scoring.parameters_in_all(pipes[of_pixels[0].model])
assert 0.7 < minutes(first.model) / minutes(of_pixels[0].model) < 1.4
assert [row.model for row in ranked[: len(told)]] == told
assert first.model == "ldm-concat"
assert ratio["ldm"] > 1.5 * ratio["ldm-concat"]
assert seen("ldm") > seen("ldm-concat")
assert by_name["ldm"]["doubtful"] > 1.5 * by_name["ldm-concat"]["doubtful"]
assert 0.9 < minutes("ldm") / minutes("ddpm") < 1.1
assert ratio["ddpm"] > 2 * ratio["ldm"]
assert decoded["ratio"] < 0.7 * first.measures["ratio"]
assert ratio["rf-one-step"] > max(ratio["rf"], ratio["rf-reflow"])
assert ratio["latent-rf-class-one-step"] > ratio["latent-rf-class"]
assert scoring.apart(*(row for row in ranked if row.model.startswith("latent-rf-class")))
as_taught = [row for row in board if row.model == "latent-rf-class" and row.setting["guidance_scale"] == 1.5]
assert ratio["latent-rf-class-one-step"] < 0.8 * min(row.measures["ratio"] for row in as_taught)
tidy = by_name["latent-rf-class-one-step"]
assert tidy["doubtful"] < tidy["doubtful_real"]
assert tidy["recall"] < min(found["recall"] for name, found in by_name.items() if name != "latent-rf-class-one-step")
assert first.measures["ratio"] > 1.5
assert all(found["doubtful"] > 1.3 * found["doubtful_real"] for found in by_name.values() if found is not tidy)

# %% [markdown]
# **Latent models win**, clearly ahead of the best model of pixels. *Why?* Not by more training: with the time of the
# autoencoder included, the first of all was trained for about the same time as the best model of pixels, on the same
# kind of machine. (Other minutes compare only roughly, since machines and precision differ.) But diffusion in 32
# dimensions is cheap: in the same time a larger network was trained. And a part of the work was done beforehand. The
# decoder knows how a stroke looks; only where strokes go is left to the diffusion. The decoder itself adds little
# error: real digits that are encoded and decoded stay close to the floor.
#
# **Being told the class helps.** The models with classes lead. `ldm-concat` is `ldm` with four more input channels, a
# learned map for each class; it saw fewer pictures, and its $R$ and its doubtful digits are about half of those of
# `ldm`. The label settles in advance what is hardest: which digit it shall be. A model without labels has to decide
# that itself, and where it fails, it draws something between two digits (section 3).
#
# **A single step can cost quality.** `rf-one-step` is behind both flows from which it learned.
# `latent-rf-class-one-step` is behind its parent at $w = 1$, and ahead of it at $w = 1.5$, the scale with which its
# pairs were guided. It draws fewer doubtful digits than people do! That is no virtue: it learned from guided samples,
# which are more typical than real digits, and has the lowest recall of all.
#
# **Nobody is perfect.** Even the winner's cFID is about twice the floor. Nor does the ranking judge the *methods*: the
# models were trained for different times, and models that learn from another model profit from its training too. It
# ranks these weights.
#
# ## 3. What goes wrong
#
# What do the doubtful digits look like? Figure 8.4 shows, in each row, the first that occur among the 120 samples.

# %%
failures = {}
for name, pictures in drawn.items():
    unsure = measures.is_doubtful(pictures)
    if unsure.any():
        failures[f"{name}\n{unsure.sum()} of {COUNT}"] = pictures[unsure][:12]
show(
    grids.show_rows(failures),
    "8.4",
    "Typical failures: the first doubtful samples of each model, and how many of 120 are doubtful.",
)

# %% [markdown]
# Many are between digits: a stroke that stops too early, a loop that does not close, two digits in one. What fails is
# the composition, more than the strokes. Models of pixels also break strokes off and leave loose dots. Latent models
# draw firm strokes, at times with a grey smudge between them, where the decoder must make sense of a latent that it has
# never seen. (And some are digits after all, as people would also write them.)
#
# Can we measure separately whether samples are *good* and whether they are *varied*? Draw around each point a ball that
# reaches to its third neighbour in its own set, with radius $\rho$. *Precision* is the fraction of generated points
# that lie in the ball of some real one; *recall* is the fraction of real points in the ball of some generated one:
#
# $$\text{precision} = \operatorname{mean}_g\, \big[\, \exists\, r : |g - r| \le \rho_r \,\big], \qquad
# \text{recall} = \operatorname{mean}_r\, \big[\, \exists\, g : |r - g| \le \rho_g \,\big]. \tag{3}$$
#
# The bracket is 1 where its condition holds, and else 0.


# %% tags=["nbval-check-output"]
def my_fraction_inside(points, members):
    radius = torch.cdist(members, members).sort(dim=1).values[:, 3]  # number 0 is the point itself
    return (torch.cdist(points, members) <= radius).any(dim=1).double().mean()


precision, recall = precision_recall(some, others)
assert_close(my_fraction_inside(some, others).item(), precision, rtol=0, atol=0.01)
assert_close(my_fraction_inside(others, some).item(), recall, rtol=0, atol=0.01)
print(f"500 training digits against 500 test digits: precision {precision:.2f}, recall {recall:.2f}")

# %%
for row in ranked:
    kind = "latents" if pipes[row.model].autoencoder else "pixels"
    found = ", ".join(f"{key} {row.measures[key]:.3f}" for key in ("doubtful", "precision", "recall"))
    print(f"{row.model:>24}: {kind:>7}, {found}")
real = ranked[0].measures
print(f"{'real digits':>24}: {'':>7}  doubtful {real['doubtful_real']:.3f}, precision {real['precision_real']:.3f}, "
      f"recall {real['recall_real']:.3f}")  # fmt: skip

# %% tags=["remove-cell"]
for key, better, worse in (("precision", of_latents, of_pixels), ("recall", of_pixels, of_latents)):
    assert min(row.measures[key] for row in better) > max(row.measures[key] for row in worse)
assert all(abs(row.measures["recall"] - row.measures["recall_real"]) < 0.02 for row in of_pixels)
assert max(row.measures["doubtful"] for row in of_latents) < min(row.measures["doubtful"] for row in of_pixels)

# %% [markdown]
# The two families fail differently. All latent models have a higher precision and fewer doubtful digits than all models
# of pixels: whatever the latents are, the decoder makes firm strokes of them. All models of pixels have a higher
# recall, about that of real digits. That is not variety alone: bad samples are scattered, so their balls are large and
# cover much (chapter 5). (Real digits do not reach 1 either, since balls of three neighbours leave gaps. A precision
# above theirs means less variety, not better digits.) Neither number alone says which is better, and each can be bought
# at the price of the other. *Guidance* does just that. Chapter 5 turned its scale from 0 to 10: label accuracy rises,
# precision only at first; recall falls all the way, and cFID is lowest in between.
#
# ## 4. Quality against work
#
# A model is not a point but a curve: it buys quality with evaluations. What is the best that can be had for a given
# number of them? Figure 8.5 takes the number of samples for which there are most rows. It is not 10,000, so these
# values of $R$ do not compare with those of figure 8.3 (section 1). Models that have no rows of this number are
# missing: those with classes, and `latent-rf`.

# %%
everything = [row for row in scoring.scoreboard() if row.setting.get("guidance_scale", 1.0) == 1.0]
size = scoring.usual_number(everything)
unguided = [row for row in everything if row.setting["num_samples"] == size]
print(f"figure 8.5 is of {size:,} samples")
for row in scoring.leaders(unguided):
    print(
        f"evaluations: from {row.evaluations:4} on {row.model}, {scores.setting_name(row)}, R = {row.measures['ratio']:.2f}"
    )
show(
    scores.plot_frontier(unguided),
    "8.5",
    "The lowest R of each model for each number of evaluations. The grey line is the best of these models for so many or "
    "fewer.",
)

# %% tags=["remove-cell"]
leaders = scoring.leaders(unguided)
assert size != NUMBER
assert {row.model for row in ranked} - {row.model for row in unguided} == {*told, "latent-rf"}
alone = {row.model: row.measures["ratio"] for row in unguided if row.evaluations == 1}
assert alone["rf-one-step"] == min(alone.values())
assert alone["rf-reflow"] < 1.5 * alone["rf-one-step"]
assert min(r for name, r in alone.items() if name not in ("rf-one-step", "rf-reflow")) > 5 * alone["rf-reflow"]
assert pipes[leaders[-1].model].autoencoder
ends = [
    min((r for r in unguided if r.model == "rf" and r.evaluations <= n), key=lambda r: r.measures["ratio"])
    for n in (10, 50)
]
assert ends[0].measures["ratio"] > 1.2 * ends[1].measures["ratio"]

# %% [markdown]
# Follow the grey line of figure 8.5 from left to right. At a single evaluation the model that was distilled for it
# leads; `rf-reflow`, whose paths were made straight, is not far behind, and all others are. With a few more
# evaluations, other models take over, and to the right a latent model leads. The curves are steep at first and become
# flat: what is left there is the network's error, which more steps do not remove.
#
# Evaluations compare samplers fairly, but not networks: a call of a large one takes longer, and a latent model must run
# its decoder once. If you wait for pictures, the clock counts. These milliseconds were measured on the machine that ran
# this page; all other numbers of the chapter stay the same when it is run again on the same machine.

# %%
speed = {row.model: scoring.milliseconds(pipes[row.model], row.setting, num_samples=16, repeats=1) for row in ranked}
for row in sorted(ranked, key=lambda row: speed[row.model]):
    print(
        f"{row.model:>24}: {speed[row.model]:6.1f} ms a picture, evaluations: {row.evaluations:2}, R = {row.measures['ratio']:.1f}"
    )

# %% [markdown]
# ## 5. How certain is a measurement?
#
# Draw again with another seed, and the cFID is different. By how much? One could draw many times. But this scatter can
# also be estimated from one set of samples. Let set $a$ be the $N$ samples, and set $b$ the real digits. Each sample
# counts $1/N$ in the mean and the covariance of set $a$. The derivative of (1) with respect to this share is, up to a
# constant,
#
# $$\delta(x) = 2\,(\mu_a - \mu_b)^\top \phi + \phi^\top (I - T)\, \phi, \qquad
# T = C_b^{1/2} \left(C_b^{1/2} C_a\, C_b^{1/2}\right)^{-1/2} C_b^{1/2}. \tag{4}$$
#
# Here $\phi$ are the features of $x$ minus $\mu_a$, and $T$ is the matrix that carries the Gaussian of $a$ onto that of
# $b$. If the samples add very different amounts to the distance, much depends on which of them one happened to draw.
# The standard error is the standard deviation of $\delta$ divided by $\sqrt N$; this is the *infinitesimal jackknife*
# (Efron 1982). To test it, take the fastest of the models without classes (the others are asked for the same labels in
# every draw, which takes away a part of the chance), and draw 500 samples with eight seeds.

# %%
quick = min((row for row in ranked if not pipes[row.model].num_classes), key=lambda row: row.evaluations)
redrawn = [features(scoring.redraw(pipes[quick.model], quick, seed=seed, num_samples=500)) for seed in range(1, 9)]
values = torch.tensor([frechet_distance(each, reference["test"]) for each in redrawn])
claimed = torch.tensor([frechet_error(each, reference["test"]) for each in redrawn])
print(f"{quick.model}, 500 samples, eight seeds:", *(f"{value:.2f}" for value in values))
print(f"standard deviation {values.std():.2f}; claimed by a single set of samples {claimed.mean():.2f}")

# %% tags=["remove-cell"]
assert 0.4 < values.std() / claimed.mean() < 2.5

# %% [markdown]
# (A standard deviation from eight seeds is itself uncertain by about a quarter.) When is a difference more than luck?
# If it is larger than twice its own standard error, $2\sqrt{e_1^2 + e_2^2}$, where $e_1$ and $e_2$ are the standard
# errors of the two. Where a card has no error, we can only say which model stands before which.

# %%
VERDICTS = {True: "is ahead of", False: "cannot be told apart from", None: "stands (no error on a card) before"}
for ahead, after in itertools.pairwise(ranked):
    verdict, (one, other) = VERDICTS[scoring.apart(ahead, after)], (row.measures["ratio"] for row in (ahead, after))
    print(f"{ahead.model} ({one:.2f}) {verdict} {after.model} ({other:.2f})")

# %% [markdown]
# Two warnings. The *floor* is an estimate too. With other draws, all $R$ would change by the same factor, and the order
# would stay the same. And all this is the luck of *sampling*. Train a model again from another seed, and it is another
# model. We have not measured how much $R$ changes then, since it costs a whole training each time. Most papers do not
# measure it either.
#
# At least a card can be checked. Each row can be repeated by one command; here is one, live and in full.

# %%
again = features(scoring.redraw(pipes[quick.model], quick))
cfid, error = frechet_distance(again, reference["test"]), frechet_error(again, reference["test"])
print(scoring.command(quick))
print(f"cFID {cfid:.3f} ± {error:.3f}, the card says {quick.measures['cfid']:.3f}")
assert abs(cfid / quick.measures["cfid"] - 1) < 0.05

# %% [markdown]
# The two may differ in the third digit, since machines add in different orders. `diffusion-book evaluate --all` repeats
# all rows, in some hours.
#
# ## 6. Same noise, same digit?
#
# Models that were trained independently start from the same noise. Do they draw the same digit? According to chapter 7
# they should. Whatever the schedule, noise and data are mixed as $\alpha_t x_0 + \sigma_t \epsilon$, and all such
# mixtures have the same flow up to a scaling (equation (8) there). That flow is given by the data, not by network,
# schedule or target. Two *perfect* models without fresh noise would draw the same picture. Ours are not perfect.
#
# Models of pixels start from one noise, models of latents from another, since latents have another shape. Models with
# classes draw with `NO_CLASS`, if they were trained with it; else they are left out.

# %%
families = {"pixels": {}, "latents": {}}
for row in ranked:
    pipe, family = pipes[row.model], families["latents" if pipes[row.model].autoencoder else "pixels"]
    asked = {**row.setting, "eta": 0.0, "num_samples": 60}
    if asked["sampler"] == "ddpm":  # which draws fresh noise
        asked |= {"sampler": "ddim", "steps": 50}
    if pipe.num_classes and pipe.recipe.condition.unconditional_probability:
        family[row.model] = pipe.sample(**asked, labels=NO_CLASS)
    elif not pipe.num_classes:
        drawn_so = asked == {**row.setting, "num_samples": 60}
        family[row.model] = drawn[row.model][:60] if drawn_so else pipe.sample(**asked)


def relative_distance(a, b):
    """Mean distance of pictures of the same noise, over that of pictures of different noise."""
    same, different = ((a - other).flatten(1).norm(dim=1).mean() for other in (b, b.roll(1, dims=0)))
    return (same / different).item()


agreement = {}
for family in families.values():
    for a, b in itertools.combinations(family, 2):
        same = (logits(family[a]).argmax(1) == logits(family[b]).argmax(1)).double().mean().item()
        agreement[a, b] = same, relative_distance(family[a], family[b])
        print(f"{a} and {b}: the same digit for {same:.0%} of the noises, relative distance {agreement[a, b][1]:.2f}")
show(
    grids.show_rows({name: each[:12] for family in families.values() for name, each in family.items()}),
    "8.6",
    "Columns share their noise: above among the models of pixels, below among the models of latents.",
)

# %% tags=["remove-cell"]
assert all(same > 0.4 for same, _ in agreement.values())
assert all(distance < 0.85 for _, distance in agreement.values())
assert all(same < 0.97 for same, _ in agreement.values())

# %% [markdown]
# By chance, two models would agree on one digit in ten, at a relative distance of 1. In each pair of figure 8.6 they
# agree far more often than that, and the pictures resemble each other down to slant and stroke. So independent
# trainings have found nearly the same map from noise to digits, since it is a property of the data. Where independent
# rows disagree, at least one is wrong; often the noise lies near a border, where a small error decides between two
# digits. (Reflowed and one-step models were trained on pairs of their parent, so their agreement with it is less of a
# surprise.)
#
# For comparisons this means: **use the same noise for all models**. Part of the random error of section 5 is then the
# same for both models, and cancels in the difference.
#
# How many steps does it take until they agree? In the figure below, the slider changes the number of steps. The rows
# are, from top to bottom, `ddpm`, `rf` and `rf-reflow`; each column has one noise. (On the book's site the button below
# the figure draws with any seed and sampler.)

# %%
COMPARED, COUNTS = ("ddpm", "rf", "rf-reflow"), (1, 2, 5, 10, 20, 50)
beside = {name: diffusion_book.load(name) for name in COMPARED}
frames = [torch.cat([pipe.sample(6, sampler="ddim", steps=n, seed=0) for pipe in beside.values()]) for n in COUNTS]
stored = scrubber.scrubber(
    torch.stack([grids.grid(each, columns=6) for each in frames]),
    [f"{n} step{'s' if n > 1 else ''}" for n in COUNTS],
    label="DDIM",
    alt="Six digits of three models, each column from one noise, in 1 to 50 steps",
    start=3,
)
in_page.live_beside(COMPARED, stored, steps=10, seed=0)

# %% [markdown]
# Where do the models' samples lie among the real ones? UMAP lays the 64 features out in the plane, real digits and
# samples of all models together, so that neighbours stay neighbours. Figure 8.7 shows the one map once for each model.

# %%
chosen = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))[:600]
points = {"real": reference["test"][chosen]} | {name: features(pictures) for name, pictures in drawn.items()}
plane = projection.joint_map(points)
with torch.no_grad():
    digits = {name: classifier().head(each).argmax(dim=1) for name, each in points.items()}
show(
    distribution.plot_multiples(plane.places, digits),
    "8.7",
    "All models on one map, a panel each. Grey: 600 real digits. Coloured by digit: 120 samples of the model.",
)

# %% [markdown]
# Each island of figure 8.7 is a digit. A model that has lost a way of writing a digit would leave part of an island
# bare; samples between islands look neither like one digit nor like the other. Conclude no more from such a map:
# distances between islands and their sizes mean nothing, and it cannot tell you which model is better.
#
# How does a sample get to its island? In figure 8.8, chapter 1's model draws ten digits. At every second step we mark
# on the map the picture that it predicts.

# %%
times, stills = sampling.predictions(diffusion_book.load("ddpm"), range(10), frames=26, steps=50, seed=11)
shown = {name: digits[name] for name in ("real", "ddpm")}
ways = plane.locate(features(stills.flatten(0, 1)).unflatten(0, stills.shape[:2]))  # (10, 26, 2)
show(
    distribution.ways_across(
        {"features": {name: plane.places[name] for name in shown}},
        {"features": ways},
        stills,
        shown,
        logits(stills[:, -1]).argmax(dim=1),
        [f"t = {t:.2f}" for t in times],
    ),
    "8.8",
    "Ten digits on their way across the map. Pull the slider back to noise, or press Play.",
)

# %% [markdown]
# All ten begin at one point, the blurred mean of all digits. They part as soon as something is decided, and the late
# steps hardly move on the map, for they only sharpen strokes.
#
# ## 7. Is it memory?
#
# A cheat that returns training pictures would win the ranking: its samples *are* real digits, and $R$ would be 1. So
# far no measure would notice. Is one of our models such a cheat? Look for the nearest training picture of each sample,
# in feature space, and do the same for real test digits, which cannot be copies (figure 8.9).

# %%
away = {"real": nearest(points["real"], reference["train"])[0]}
neighbours = {}
for name in drawn:
    away[name], neighbours[name] = nearest(points[name], reference["train"])
show(
    scores.plot_spreads(away, "distance to the nearest training picture"),
    "8.9",
    "How near samples come to training pictures. A box holds the middle half, the whiskers reach from 5 % to 95 %. Copies "
    "would lie at 0.",
)

# %% tags=["remove-cell"]
assert all(away[name].quantile(0.05) > 0.5 * away["real"].quantile(0.05) for name in drawn)

# %% [markdown]
# None of the boxes comes near 0. But a typical distance proves little. A model that draws only what is typical comes
# near to *all* digits, those of the training set and others. More is said by a comparison: is the nearest picture more
# often one that the model was trained on? Put the 60,000 training and the 10,000 test pictures together. A model
# without memory finds its nearest neighbour among the training pictures in six cases of seven.

# %%
print(f"without memory {6 / 7:.0%}, a copying machine 100%")
for name in drawn:
    nearer = away[name] < nearest(points[name], reference["test"])[0]
    fraction = nearer.double().mean().item()
    print(
        f"{name:>24}: {fraction:.0%} ± {measures.share_error(fraction, len(nearer)):.0%} nearest to a training picture"
    )
    assert fraction < 0.95

# %% [markdown]
# A value two or three standard errors above 86 % may be luck, where there are ten models; and the two sets were not
# written by the same people. A copying machine would stand out. With 120 samples, though, the count notices copies only
# if about half of all are copies (exercise 3). The whiskers of figure 8.9 say more: not even the nearest twentieth of
# the samples comes close to 0. Still, look for yourself. Figure 8.10 shows for each model and digit the sample that is
# nearest to a training picture.

# %%
train, pairs = data.load("auto", "train"), {}
for name, pictures in drawn.items():
    order = away[name].argsort()  # the nearest first
    closest = torch.stack([order[digits[name][order] == digit][0] for digit in digits[name].unique()])
    if train.name == "mnist":
        below = train.images[neighbours[name][closest]]  # (10, 1, 28, 28)
        pairs[name] = torch.cat([data.quantise(pictures[closest]), below], dim=2)  # -> (10, 1, 56, 28)
show(
    grids.show_rows(pairs or {"no MNIST here": train.images[:1]}),
    "8.10",
    "The samples that are nearest to training pictures, and below each its nearest training picture.",
)

# %% [markdown]
# They may be close, most of all the digits 1, which all look alike. But the strokes differ. Whoever looks for a copy
# finds something that resembles one, which is the reason for counting. Networks of a million parameters have little
# room to store 60,000 pictures. Larger networks do reproduce pictures, most of all those that occur often in the data
# (Carlini et al. 2023).
#
# ## Which model for what?
#
# The best model depends on what you have least of: time, parameters or evaluations.

# %%
with_classes = [row for row in board if row.measures["class_accuracy"] is not None]
purposes = {
    "quality": first,
    "a single evaluation": scoring.ranking(board, most_evaluations=1)[0],
    "waiting time (section 4)": min(ranked, key=lambda row: speed[row.model]),
    "recall (variety, and scatter)": max(ranked, key=lambda row: row.measures["recall"]),
    "clean strokes (precision)": max(ranked, key=lambda row: row.measures["precision"]),
    "few parameters": min(ranked, key=lambda row: scoring.parameters_in_all(pipes[row.model])),
    "short training": min(ranked, key=lambda row: scoring.minutes_in_all(row.model)),
    "the digit asked for": max(with_classes, key=lambda row: row.measures["class_accuracy"], default=None),
}
for purpose, row in purposes.items():
    if row is not None:
        print(f"{purpose:>29}: {row.model}, {scores.setting_name(row)} (R = {row.measures['ratio']:.1f})")

# %% [markdown]
# And are samples *good for* something? Train a classifier on 60,000 samples and test it on real digits (Ravuri & Vinyals
# 2019). This *classification accuracy score* notices missing variety, wrong labels and odd strokes alike.

# %%
for name in diffusion_book.list_models():
    if "classification_accuracy_score" in (card := weights.read_card(name)):
        accuracy = card["classification_accuracy_score"]["accuracy"]
        print(f"{name:>24}: a classifier trained on its samples reads {accuracy:.2%} of the test digits")
print(f"{'real digits':>24}: {weights.read_card('classifier-check')['test_accuracy']:.2%}, after a longer training")

# %% [markdown]
# ## Pitfalls of comparing
#
# - **Different numbers of samples.** The most common fault. cFID favours the model with more samples, $R$ the model
#   with fewer (section 1).
# - **Different features.** FID from another implementation, with another resizing or after JPEG, is another measure; not
#   even the order need be the same (Parmar et al. 2022).
# - **Steps mistaken for evaluations.** Ten steps of Heun are nineteen calls, and guidance doubles them.
# - **The best of many tries.** The lowest of thirty measurements is low partly by luck. Choose on one seed, report
#   another.
# - **Favoured classes.** Exact proportions of the classes have a lower floor than random ones (section 1).
# - **One measure.** Precision can be bought with recall. Read at least two that pull in opposite directions.
# - **The measure as a target.** If a model is trained or guided with the same features that judge it, the judgement is
#   worth nothing. Our classifier was fixed before the first model was trained. But we used it to choose the size of a
#   network.
# - **Unequal training.** The ranking compares these weights, not the methods. To compare methods, give each the same time,
#   and tune each with the same care.
#
# ## Exercises
#
# `check` compares your function with the library, and recognises the usual mistakes.
#
# **1. Infinitely many samples.** To first order the bias of cFID is proportional to $1/N$ (Chong & Forsyth 2020). Fit a
# straight line to the cFIDs of several sizes, and find its value for infinitely many samples. Estimate it for the
# floor, from the floors at 500, 2,000 and 10,000. Why is it not exactly 0?

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def without_bias(sizes, values):
    """Sizes N and the values for as many samples, (K,) each, float64 -> the value at N = infinity, a number."""
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
# floors = torch.tensor([measures.floor(int(size)).mean for size in sizes], dtype=torch.float64)
# print(without_bias(sizes, floors))
# ```
#
# What remains is the bias of the other side, for the test set is finite too, and a real difference: the two sets were
# written by different people. The same line through a model's values at 2,000 and 10,000 gives it a cFID without bias,
# and the order of models near the floor becomes clearer.
#
# </details>
#
# **2. Fool the measure.** Find a change of pictures that everyone sees and cFID hardly does, and one that nobody sees
# and cFID does.
#
# <details><summary>Solution</summary>
#
# ```python
# pictures = drawn[first.model]
# changes = {
#     "as they are": pictures,
#     "a frame": torch.nn.functional.pad(pictures[..., 1:-1, 1:-1], [1] * 4, value=-0.5),
#     "half the ink": (pictures + 1) / 2 - 1,
#     "shifted by 2": pictures.roll(2, dims=3),
#     "faint noise": (pictures + 0.1 * torch.randn(pictures.shape)).clamp(-1, 1),
# }
# for change, changed in changes.items():
#     print(f"{change}: {frechet_distance(features(changed), reference['test']):.2f}")
# grids.show_rows({change: changed[:10] for change, changed in changes.items()})
# ```
#
# Compare every line with the first: 120 samples have a large bias. Nobody can miss the grey frame, and it costs
# little. The noise has to be looked for, and costs more. What counts is what the classifier has learned to ignore. It was
# trained to read digits, not to judge pictures.
#
# </details>
#
# **3. How much copying goes unnoticed?** Write the count of section 7. Then replace a growing fraction of a model's
# samples by copies of training pictures. From which fraction on does the median distance of section 7 notice? The count?
# And cFID?


# %% tags=["nbval-check-output"]
def fraction_nearer(samples, train, test):
    """Features, (N, D) each -> the fraction of samples that lie nearer to a training picture than to any test picture."""
    ...  # your code here


check(fraction_nearer)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def fraction_nearer(samples, train, test):
#     to_train, to_test = (torch.cdist(samples, members).min(dim=1).values for members in (train, test))
#     return (to_train < to_test).double().mean()
# ```
#
# With copies mixed in:
#
# ```python
# name = first.model
# for part in (0.0, 0.05, 0.1, 0.25, 0.5):
#     copies = int(part * len(points[name]))
#     mixed = torch.cat([reference["train"][:copies], points[name][copies:]])
#     distance = nearest(mixed, reference["train"])[0]
#     count = fraction_nearer(mixed, reference["train"], reference["test"])
#     near = (distance < 0.05).double().mean()
#     print(f"{part:.0%} copies: median {distance.median():.2f}, count {count:.0%}, nearer than 0.05 {near:.0%}")
# ```
#
# The median reacts late, and the count rises by a seventh of the fraction. The fraction of distances near 0 says it at
# once: to find copies, look at the tail of the distances, not at their middle. cFID cannot object at all. A copy is a
# real digit.
#
# </details>
#
# **4. One feature at a time.** If features were uncorrelated, both covariances would be diagonal. What is left of (1)?
# How much of the distance of real digits is in the means and standard deviations of single features, and how much in
# their correlations?


# %% tags=["nbval-check-output"]
def diagonal_frechet(a, b):
    """Features (N, D) and (M, D) without correlations -> d^2 of equation (1), a number."""
    ...  # your code here


check(diagonal_frechet)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Each diagonal entry of the trace is $\sigma_a^2 + \sigma_b^2 - 2 \sigma_a \sigma_b = (\sigma_a - \sigma_b)^2$.
#
# ```python
# def diagonal_frechet(a, b):
#     return ((a.mean(0) - b.mean(0)) ** 2 + (a.std(0) - b.std(0)) ** 2).sum()
# ```
#
# On real features it leaves the correlations out:
#
# ```python
# for size in (2_000, 10_000):
#     both = measures.real_features(size), reference["test"]
#     print(f"{diagonal_frechet(*both):.3f} of {frechet_distance(*both):.3f}")
# ```
#
# With 2,000 real digits half of the distance is left, with 10,000 two fifths. The rest is in the 2,016 correlations,
# each of them estimated from few samples. A set of pictures may have every feature right by itself, and yet combine
# them as no digit does. (1) notices that; the distance without correlations does not.
#
# </details>
#
# ## Summary
#
# - A latent model leads: in equal training time a larger network can be trained, and its decoder already knows strokes.
# - Latent models draw cleaner digits, models of pixels reach a higher recall; a single evaluation can cost quality.
# - A distance needs its floor, its number of samples and its error, or it says nothing. cFID (1) is biased by the number
#   of samples, KID (2) is not, precision and recall (3) say *what* is wrong, and (4) gives the error.
# - The flow from noise to picture is a property of the data. Models that have learned it agree without knowing each other.
# - Copies show among the smallest distances to training pictures; a comparison with other pictures shows what is only
#   too near.
#
# ## References
#
# - Heusel et al. (2017), *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*. NeurIPS.
#   arXiv:1706.08500. (FID.)
# - Bińkowski et al. (2018), *Demystifying MMD GANs*. ICLR. arXiv:1801.01401. (KID.)
# - Kynkäänniemi et al. (2019), *Improved Precision and Recall Metric for Assessing Generative Models*. NeurIPS.
#   arXiv:1904.06991.
# - Efron (1982), *The Jackknife, the Bootstrap and Other Resampling Plans*. SIAM, chapter 6. (The standard error.)
# - Ravuri & Vinyals (2019), *Classification Accuracy Score for Conditional Generative Models*. NeurIPS.
#   arXiv:1905.10887.
# - Chong & Forsyth (2020), *Effectively Unbiased FID and Inception Score*. CVPR. arXiv:1911.07023.
# - Meehan, Chaudhuri & Dasgupta (2020), *A Non-Parametric Test to Detect Data-Copying in Generative Models*. AISTATS.
#   arXiv:2004.05675. (Section 7.)
# - Song et al. (2021), *Score-Based Generative Modeling through Stochastic Differential Equations*. ICLR.
#   arXiv:2011.13456. (Section 6: the encoding is unique.)
# - Parmar, Zhang & Zhu (2022), *On Aliased Resizing and Surprising Subtleties in GAN Evaluation*. CVPR.
#   arXiv:2104.11222.
# - Carlini et al. (2023), *Extracting Training Data from Diffusion Models*. USENIX Security. arXiv:2301.13188.
# - McInnes, Healy & Melville (2018), *UMAP*. arXiv:1802.03426.
