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
# # Cross-attention: a network that reads
#
# *Runs in about two minutes on two CPU cores, without a network connection. Half of that is live training. Needs
# chapters 4 and 5.*
#
# In chapter 5 a label was a map, stacked on the latent. How would you stack a sentence? It has no position in the
# picture and no fixed length, and most sentences have never been seen before. Text-to-image models turn the request
# into a list of *tokens*, a few vectors, and let every position of the picture look up in that list what it needs. This
# look-up is called *cross-attention*. Here requests have one word or two, so that everything can be seen.
#
# You will
#
# - build attention from a thermometer that was read four times a day;
# - find out why scores are divided by $\sqrt d$, by measuring what happens if they are not;
# - see why a single token for a class would make attention pointless;
# - train networks on requests of two words, and ask for combinations that they have never seen;
# - watch which token each position reads while a digit is drawn, and take tokens away;
# - compare with chapter 5, for the same minutes of training.
#
# The source is Rombach, Blattmann, Lorenz, Esser & Ommer, *High-Resolution Image Synthesis with Latent Diffusion
# Models* (2022), section 3.3; attention itself is from Vaswani et al., *Attention Is All You Need* (2017).
#
# *Note.* The pictures are MNIST's. If MNIST is not on your machine and cannot be downloaded, the chapter takes the
# small digits that come with scikit-learn. All cells run, but section 9 then trains on few pictures, and its numbers
# differ from the text.

# %% [markdown]
# ## Set-up, and what we are after
#
# Figure 6.1 shows ten digits, drawn at guidance scale 3, and below each of them four copies, one for each of the
# digit's four tokens.

# %%
import copy
import dataclasses
import itertools
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation.features import logits
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import best, scoreboard
from diffusion_book.guidance import guided
from diffusion_book.models import sampling, weights
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks import layers
from diffusion_book.networks.conditioning import NO_CLASS, ClassEmbedding, ConditionalUNet, cross_attention_maps
from diffusion_book.targets import TARGETS, Prediction
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import attention, diagrams, grids, in_page, plots, style, tables
from diffusion_book.viz.figures import show
from diffusion_book.viz.scores import setting_name

style.use_style()
pipe = diffusion_book.load("ldm-cross-attention")
vae, DIGITS = pipe.autoencoder, [str(digit) for digit in range(10)]
watched = sampling.watch(pipe, range(10), guidance_scale=3.0, steps=20, seed=0)
show(
    attention.show_tokens(watched, "up.1.0", DIGITS),
    "6.1",
    "Ten digits. Below each stand four copies, one for each token of that digit: bright where a layer reads this token, "
    "dark where it does not.",
)

# %% [markdown]
# The tokens of a digit divide the picture among themselves. Nobody told them to. How does a network learn to read?
#
# ## 1. A toy: looking up a temperature
#
# A thermometer was read at midnight, at six, at noon and at six in the evening. What was the temperature at any other
# hour? Give each reading a *key*, the direction in which the hour hand of a 24-hour dial points, and a *value*, the
# degrees. The question is a *query*, a direction too. Compare it with each key by a scalar product, turn the four
# scores into *weights* by softmax, and average the values with these weights.


# %% tags=["nbval-check-output"]
def hand(hours):
    """Where the hand of a 24-hour dial points, (N,) -> (N, 2)."""
    angle = 2 * math.pi * torch.as_tensor(hours, dtype=torch.float64) / 24
    return torch.stack([angle.sin(), angle.cos()], dim=1)


keys, values = hand([0, 6, 12, 18]), torch.tensor([[4.0], [9.0], [21.0], [14.0]], dtype=torch.float64)


def look_up(query):
    """Queries (N, 2) -> what is read, (N, 1), and the weights, (N, 4)."""
    weight = (query @ keys.T).softmax(dim=1)
    return weight @ values, weight


for hour in (12, 15, 17):
    read, weight = look_up(4 * hand([hour]))  # a query of length 4
    print(f"at {hour} h: {read.item():4.1f} degrees, weights", " ".join(f"{each:.2f}" for each in weight[0]))

# %% [markdown]
# The direction of a query says *what* is asked; its length says how sharply. A short query reads nearly the average of
# all values, a long one picks the nearest key (figures 6.2 and 6.3).

# %%
hours = torch.linspace(0, 24, 200)
curves = {f"length {length:g}": look_up(length * hand(hours))[0][:, 0] for length in (0.5, 2, 8)}
show(
    plots.plot_curves(hours, curves, "hour that is asked for", "degrees read", xticks=[0, 6, 12, 18, 24]),
    "6.2",
    "What queries of three lengths read, for every hour of the day.",
)

# %%
asked = [0, 3, 6, 9, 12]
panels = {f"length {length}": look_up(length * hand(asked))[1] for length in (2, 8)}
show(
    attention.show_matrices(panels, [f"{hour} h" for hour in asked], ["0 h", "6 h", "12 h", "18 h"], "key", "query"),
    "6.3",
    "The weights behind figure 6.2. With a longer query they concentrate on the nearest readings.",
)

# %% [markdown]
# This is a dictionary with a soft look-up. Every query gets an answer, and the answer changes smoothly with the query.
# So the whole can be trained: queries, keys and values may all come out of layers.
#
# ## 2. The equation
#
# Stack $N$ queries into a matrix $Q$, and $M$ keys and values into $K$ and $V$, one per row. Let a key have $d$
# entries. Then
#
# $$\mathrm{Attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{Q K^\top}{\sqrt d}\right) V. \tag{1}$$
#
# The softmax goes along each row, so each query spreads a total weight of 1 over the keys. The matrix of these weights,
# $(N, M)$, is the *attention map*. Compare ours with the library's, and with PyTorch's own.


# %% tags=["nbval-check-output"]
def my_attention(q, k, v):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (..., N, d) @ (..., d, M) -> (..., N, M)
    weight = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return weight @ v, weight


generator = torch.Generator().manual_seed(0)
q = torch.randn(2, 16, 32, generator=generator)
k, v = torch.randn(2, 2, 4, 32, generator=generator)
mine, weight = my_attention(q, k, v)
theirs, their_weight = layers.attention(q, k, v)
assert_close(mine, theirs)
assert_close(weight, their_weight)
assert_close(mine, F.scaled_dot_product_attention(q, k, v))
print(
    "read:",
    tuple(mine.shape),
    "attention map:",
    tuple(weight.shape),
    "rows sum to 1:",
    bool((weight.sum(-1) - 1).abs().max() < 1e-5),
)

# %% [markdown]
# (Real code subtracts the largest score of each row before `exp`. This changes nothing in (1) and keeps large scores
# from overflowing. `softmax` does it for us.)
#
# ## 3. Why divide by the root of $d$?
#
# In the toy we chose the sharpness by the length of the query. In a network nobody chooses it. If the entries of $q$
# and $k$ are independent, with mean 0 and variance 1, then
#
# $$\operatorname{Var}[q \cdot k] = \sum_{i=1}^{d} \operatorname{Var}[q_i k_i] = d. \tag{2}$$
#
# So the scores of a wider layer are larger, for no reason but its width. Divided by $\sqrt d$, they have variance 1 at
# any width. Does it matter? Measure the largest of four weights. And for a weight $a$ with score $s$, measure the slope
# $\partial a / \partial s = a\,(1 - a)$.

# %% tags=["nbval-check-output"]
widths = (2, 8, 32, 128, 512)
largest, slope = {"not divided": [], "divided": []}, {"not divided": [], "divided": []}
for d in widths:
    q, k = torch.randn(4000, 1, d, generator=generator), torch.randn(4000, 4, d, generator=generator)
    scores = (q @ k.transpose(1, 2))[:, 0]  # (4000, 4)
    for name, divisor in (("not divided", 1.0), ("divided", math.sqrt(d))):
        weight = (scores / divisor).softmax(dim=1)
        largest[name].append(weight.max(dim=1).values.mean().item())
        slope[name].append((weight * (1 - weight)).mean().item())
    print(
        f"d = {d:3}: scores have standard deviation {scores.std():4.1f}; slope {slope['not divided'][-1]:.2f}, ", end=""
    )
    print(f"divided {slope['divided'][-1]:.2f}")

# %%
ticks = {"xscale": "log", "xticks": widths, "xticklabels": widths, "ylim": (0, 1.05)}
show(
    plots.plot_curves(widths, largest, "d", "largest of four weights", **ticks),
    "6.4",
    "The largest of four weights, for random queries and keys with $d$ entries.",
)

# %% [markdown]
# Without the division a wide layer starts as a hard switch (figure 6.4): one key gets nearly all of the weight, and the
# slope, on which training depends, vanishes. With it the start is equally soft at any width.
#
# ## 4. Who asks whom
#
# A U-Net has positions, here 4 × 4 of them, each with a vector of channels. Stack these vectors into $X$. In
# *self-attention* queries, keys and values all come from the positions. In *cross-attention* the positions ask, and the
# tokens of the request answer, stacked into $Y$ (figure 6.5):
#
# $$\text{self: } Q = X W_Q,\; K = X W_K,\; V = X W_V \qquad\qquad
# \text{cross: } Q = X W_Q,\; K = Y\, W_K,\; V = Y\, W_V.
# \tag{3}$$

# %%
show(
    diagrams.cross_attention(pipe.recipe.network),
    "6.5",
    "Cross-attention. One position asks, and reads every token by the weight that its key earns. (The weights are made "
    "up.)",
)

# %% [markdown]
# By self-attention far corners of a picture agree on how the digit leans; by cross-attention they learn what to draw.
# The shipped network has both, one after the other.
#
# Notice what (3) leaves open: the number of tokens. $W_Q$, $W_K$ and $W_V$ are learned matrices, and this number
# appears in none of them: $W_K$ and $W_V$ act on each token separately. The same layer reads one token, four, or the 77
# that Stable Diffusion uses for a sentence.
#
# ## 5. One token gives no choice
#
# A digit is one thing, so why not give it one token? Because a softmax over a single score is 1, whatever the score.
# With $s_{i1}$ for the score of position $i$ with the only token, and $v_1$ for that token's value:
#
# $$\operatorname{softmax}(s_{i1}) = \frac{e^{s_{i1}}}{e^{s_{i1}}} = 1
# \quad\Longrightarrow\quad \text{every position reads } v_1. \tag{4}$$
#
# Then queries and keys do nothing. They do not even learn: their gradient is exactly zero. Check it on a layer of the
# library.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
layer = layers.Attention(64, context_dim=8)
torch.nn.init.normal_(layer.out.weight, std=0.1)  # it starts at zero, and would add nothing
x = torch.randn(1, 64, 4, 4, generator=generator)
for number in (1, 4):
    tokens = torch.randn(1, number, 8, generator=generator)
    read, weight = layer.read(x, tokens)  # (1, heads, 16, channels of a head): heads are for section 6
    layer.zero_grad()
    (layer(x, tokens) * x).sum().backward()  # any loss will do
    same = bool((read - read[:, :, :1]).abs().max() < 1e-5)
    print(f"{number} token{'s' * (number > 1)}: weights from {weight.min():.2f} to {weight.max():.2f}; ", end="")
    print(f"every position reads the same: {same}; queries learn: {bool(layer.query.weight.grad.abs().max() > 1e-6)}")
    assert same == (number == 1)

# %% [markdown]
# With one token, cross-attention is a complicated way of adding a vector to every position, and its map is constant: 1
# everywhere. Such a map has no meaning, however it looks. So each class of the shipped model has four tokens of 128
# numbers, learned with everything else, and so has `NO_CLASS`. What matters is that a position has a choice.
#
# ## 6. Several heads
#
# One map has to serve all channels. A position may want to know two things at once, such as "is there a stroke?" and
# "which way does it run?". So the channels are split into $h$ *heads*, each with its own queries, keys, values and map,
# and a last layer combines the answers:
#
# $$\mathrm{head}_n = \mathrm{Attention}(Q_n, K_n, V_n), \qquad
# X' = X + \left[\mathrm{head}_1, \dots, \mathrm{head}_h\right] W_O. \tag{5}$$
#
# Here $Q_n$, $K_n$ and $V_n$ are the $n$-th blocks of channels, $W_O$ is the last layer, and $X'$ is the output: what
# is read is *added* to $X$. Before queries are computed, $X$ is normalised (group norm). That completes the layer.
# Written out, and compared with the library's:


# %% tags=["nbval-check-output"]
def my_cross_attention(layer, x, tokens):
    """(B, C, H, W) and (B, M, context_dim) -> (B, C, H, W), with the weights of a layer of the library."""
    positions = layer.norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
    q = layer.query(positions)  # (B, HW, C)
    k, v = layer.key_value(tokens).chunk(2, dim=-1)  # (B, M, C) each
    d = x.shape[1] // layer.heads
    heads = [my_attention(*(each[..., n * d : (n + 1) * d] for each in (q, k, v)))[0] for n in range(layer.heads)]
    read = layer.out(torch.cat(heads, dim=-1))  # (B, HW, C)
    return x + read.transpose(1, 2).reshape(x.shape)


with torch.no_grad():
    assert_close(my_cross_attention(layer, x, tokens), layer(x, tokens))
print(f"{layer.heads} heads of {64 // layer.heads} channels; my_cross_attention is layers.Attention")

# %% [markdown]
# Do heads really look at different things? The middle of the shipped network has several. Figure 6.6 shows two of them,
# in one step, for one digit. (`cross_attention_maps` notes the map of each layer at each call; we take that of the
# layer with several heads.)

# %%
with torch.no_grad(), cross_attention_maps(pipe.network) as maps:
    pipe.denoiser(
        pipe.noise(10, seed=0).to(pipe.device), torch.tensor(0.9), labels=torch.arange(10, device=pipe.device)
    )
(weight,) = next(calls for calls in maps.values() if calls[0].shape[1] > 1)  # (10, heads, positions, tokens)
corners, numbers = ["top left", "top right", "bottom left", "bottom right"], ["1", "2", "3", "4"]
show(
    attention.show_matrices({f"head {n + 1}": weight[8, n].float() for n in range(2)}, corners, numbers),
    "6.6",
    "Two heads of the middle layer, asked for an eight at $t$ = 0.9: how much each of the four positions reads of each "
    "token.",
)

# %% tags=["remove-cell"]
decided = weight[8, :2].mean(dim=1)  # (heads, tokens)
assert decided.max(dim=1).values.min() > 0.6
assert decided[0].argmax() != decided[1].argmax()

# %% [markdown]
# In figure 6.6 each head is decided, that is, it reads mostly one token. Both see the same positions and the same
# request, and yet they read different tokens. (Here a head's positions agree; in the layers at 4 × 4 they do not.) So
# one layer looks up several things at once. (The later figures show averages over heads, in which decided heads can
# look undecided.)
#
# ## 7. A list without an order
#
# Does the order of the tokens matter? Shuffle them by a permutation matrix $\Pi$. Keys and values are shuffled alike,
# the softmax of a shuffled row is the shuffled softmax, and since $\Pi^\top \Pi = I$, the sum over tokens does not
# change:
#
# $$\operatorname{softmax}\!\left(\tfrac{1}{\sqrt d}\, Q (\Pi K)^\top\right) \Pi V
# = \operatorname{softmax}\!\left(\tfrac{1}{\sqrt d}\, Q K^\top\right) \Pi^\top \Pi V = \mathrm{Attention}(Q, K, V).
# \tag{6}$$

# %% tags=["nbval-check-output"]
network = copy.deepcopy(pipe.network).cpu().float()
tokens = network.classes(torch.arange(10))  # (10, 4, 128)
x, t = torch.randn(10, 2, 4, 4, generator=generator), torch.full((10,), 0.7)
with torch.no_grad():
    out = network.unet(x, t, context=tokens)
    shuffled = network.unet(x, t, context=tokens[:, [2, 0, 3, 1]])
    others = network.unet(x, t, context=tokens[[1, 2, 3, 4, 5, 6, 7, 8, 9, 0]])
print("tokens of a class shuffled, same output:", bool((out - shuffled).abs().max() < 1e-3))
print("tokens of another class, same output:   ", bool((out - others).abs().max() < 1e-3))

# %% [markdown]
# To cross-attention a request is a *set*. If "dog bites man" is to differ from "man bites dog", the order has to be
# written into the tokens before they come here; text encoders do that. It also follows that token 1 of the digit 3
# and token 1 of the digit 8 have nothing to do with each other.
#
# ## 8. Where it sits
#
# At each level with attention, three layers follow each other in our U-Net: a residual block, which knows the time;
# self-attention among positions; cross-attention to tokens. Everything else is the network of chapter 4.

# %% tags=["nbval-check-output"]
size = lambda part: sum(parameter.numel() for parameter in part.parameters())  # noqa: E731
readers = {name: part for name, part in network.named_modules() if name.endswith("cross_attention")}
for name, reader in readers.items():
    positions = {"middle": "2 × 2"}.get(name.split(".")[1], "4 × 4")
    print(
        f"{name:>29}: {positions} positions, {reader.heads} head{'s' * (reader.heads > 1):1}, {size(reader):6,} parameters"
    )
extra = sum(size(reader) for reader in readers.values())
print(f"cross-attention: {extra:,}, the tokens: {size(network.classes):,}, all: {size(network):,} parameters")

# %% [markdown]
# Only about 6 % of the network is new. The layers at 4 × 4 have one head each, the wider one in the middle several.
# `up.1.0`, shown in figure 6.1, is the first block at 4 × 4 on the way up.
#
# From here it is a short way to the *DiT* of Peebles & Xie (2022): drop the convolutions, cut the picture into patches,
# and stack blocks of self-attention and a small *feed-forward* network, two linear layers that act on each position
# alone. Later text-to-image models add cross-attention to such blocks.
#
# ## 9. Requests of two words
#
# What is the advantage of tokens? Ten labels cannot show it, so let requests have two words: a digit, and a stroke,
# *thin* or *bold*. The stroke's width can be measured from the picture, as twice its area over the length of its
# contour. (A stroke of width $b$ and length $l$ has the area $bl$ and a contour of about $2l$. For the contour, the
# code sums the norm of the gradient of the brightness: a sharp edge gives 1 per pixel.) We keep the thinnest and the
# boldest third of 12,000 pictures, and **hold out six combinations**: the network never sees a bold two, though it sees
# thin twos and bold threes. Can it draw one? Three networks of nearly the same size try, all with guidance scale 2, in
# ten steps. A drawing is right if the classifier reads the digit, and its width is on the right side of the middle
# between the two thirds:
#
# - *a map for each combination*: chapter 5's way, with 20 labels;
# - *a map for each word*: two maps are looked up and both are stacked on the latent;
# - *tokens for each word*: two tokens for the digit and two for the stroke, read by cross-attention.

# %%
train = data.load("auto")
few = train.first(12_000)


def stroke_width(pictures):
    """Twice the area of the ink over the length of its contour, in pixels: (N, 1, 28, 28) in [-1, 1] -> (N,)."""
    ink = (pictures + 1) / 2
    down, right = ink.diff(dim=2)[..., :, :-1], ink.diff(dim=3)[..., :-1, :]
    return 2 * ink.sum((1, 2, 3)) / (down.square() + right.square()).sqrt().sum((1, 2, 3))


width = stroke_width(few.images.reshape(-1, 1, 28, 28).float() / 127.5 - 1)
thin, bold = width.quantile(torch.tensor([1 / 3, 2 / 3]))
request = 2 * few.labels.long() + (width > bold)  # 0 to 19: twice the digit, one more where the stroke is bold
held_out = torch.tensor([5, 15, 19, 6, 10, 16])  # bold 2, 7 and 9, thin 3, 5 and 8
kept = ((width < thin) | (width > bold)) & ~torch.isin(request, held_out)
latents = encode_dataset(vae, data.Dataset(train.name, few.images[kept], request[kept].to(few.labels.dtype)))
named = {int(label): f"{('thin', 'bold')[label % 2]} {label // 2}" for label in held_out}
print(f"{len(latents):,} latents of {few.name}; never shown: {', '.join(named.values())}")


# %%
class Words(nn.Module):
    """A request as two words: what is looked up for its digit and for its stroke, one after the other."""

    def __init__(self, shape):
        super().__init__()
        self.digit, self.stroke = ClassEmbedding(10, shape), ClassEmbedding(2, shape)

    def forward(self, labels):
        none = labels == NO_CLASS
        digit, stroke = (torch.where(none, NO_CLASS, word) for word in (labels // 2, labels % 2))
        return torch.cat([self.digit(digit), self.stroke(stroke)], dim=1)  # channels of maps, or a list of tokens


by_tokens = dataclasses.replace(pipe.recipe.network, base_channels=16, context_dim=32)
by_maps = dataclasses.replace(by_tokens, context_dim=0, concat_channels=4)
ways = {
    "one map per combination": (by_maps, None),
    "one map per word": (by_maps, (2, 4, 4)),
    "tokens per word": (by_tokens, (2, 32)),
}
epochs = round(340 * 32 / len(latents))
settings = TrainingConfig(epochs=epochs, batch_size=32, lr=4e-3, warmup_steps=20, ema_decay=0.98, cooldown=0.5)
loss = loss_of_latent_diffusion(pipe.recipe.diffusion, pipe.recipe.condition)
labels, noise = torch.arange(400) % 20, pipe.noise(400, seed=1)
right_of, rows = {}, []
for name, (config, shape) in ways.items():
    torch.manual_seed(0)
    net = ConditionalUNet(config, num_classes=20)
    if shape:
        net.classes = Words(shape)
    trainer = Trainer(net, loss, latents, settings)
    *_, report = trainer.steps()
    denoiser = Denoiser(trainer.ema.network.cpu(), pipe.schedule, TARGETS[pipe.recipe.diffusion.target])
    states = samplers.sample(guided(denoiser, 2.0), noise, samplers.time_grid(10), samplers.ddim,
                             schedule=pipe.schedule, generator=generator, labels=labels)  # fmt: skip
    *_, end = states
    drawn = pipe.to_images(end.x.to(pipe.device))
    right = logits(drawn).argmax(1) == labels // 2
    right &= (stroke_width(drawn) > (thin + bold) / 2) == (labels % 2 == 1)
    hidden = torch.isin(labels, held_out)
    right_of[name] = seen, new = [right[each].double().mean().item() for each in (~hidden, hidden)]
    print(
        f"{name:>23}: {report.step} steps; digit and stroke right: {seen:.0%} of what was trained, {new:.0%} of the rest"
    )
    rows.append(drawn[held_out])

# %%
real = torch.stack([few.images[request == label][0] for label in held_out]).reshape(-1, 1, 28, 28).float() / 127.5 - 1
show(
    tables.show_table(torch.stack([real, *rows]), ["real, hidden", *ways], list(named.values())),
    "6.7",
    "Six requests whose combination was never trained, from the same noise in each column. The real digits above were "
    "hidden from the training.",
)

# %% tags=["remove-cell"]
# Cells like this one hold the text to what was measured, with MNIST.
if train.name == "mnist":
    assert min(seen for seen, _ in right_of.values()) > 0.7
    combination, word, tokens_of_words = (new for _, new in right_of.values())
    assert combination < 0.15
    assert tokens_of_words > 2 * combination + 0.1
    assert word > tokens_of_words

# %% [markdown]
# Look at figure 6.7 and the printed lines above it. With a map for each combination, a request that was never trained
# is a label that was never trained, and what is drawn for it is arbitrary. Both networks that receive the two words
# separately do far better: each word was trained, and its meaning carries over. So the credit goes to *separate words*,
# not to cross-attention. For two words at fixed positions in the request, maps do it too; in this short training they
# even do it better.
#
# What tokens add is freedom. With maps, each word of a request needs channels of its own in the first layer: 77 sets of
# channels, mostly empty, since most sentences are shorter. Tokens need none. By (3) the same weights read a list of any
# length, and each position chooses which of the words concerns it.
#
# ## 10. The shipped weights
#
# Back to requests of one word. The shipped network has the same layers, wider, and was trained on all latents. Guidance
# works as in chapter 5, because it only needs a network that knows `NO_CLASS`.

# %%
card = weights.read_card("ldm-cross-attention")
print(f"{card['parameters']:,} parameters, {card['minutes']:.0f} minutes on {card['data_set']}")
row = best(scoreboard(10_000))["ldm-cross-attention"]
print(f"{setting_name(row)}, 10,000 samples with random labels: {sentence(row.measures)}")
scales = (0.0, 1.0, 3.0, 6.0)
noise = pipe.noise(10, seed=5).repeat(4, 1, 1, 1)
dial = pipe.sample(40, torch.arange(40) % 10, torch.tensor(scales).repeat_interleave(10), steps=20, noise=noise)
show(
    tables.show_table(dial.unflatten(0, (4, 10)), [f"w = {w:g}" for w in scales], DIGITS),
    "6.8",
    "The shipped model at four guidance scales, one noise per column.",
)

# %% [markdown]
# In figure 6.8 the first row ignores the request. In the second nearly all digits are what was asked for, and where one
# is broken, guidance mends it in the rows below.
#
# ## 11. What the positions read
#
# `sampling.watch` draws samples and keeps the map of each layer at each step. (A guided step runs the network on a
# batch of two halves, without labels and with them. The maps are those of the second half, averaged over heads.) Figure
# 6.9 shows the last step. Each token has a colour, and each position has the colour of the token that it reads most.
# The colour is pale where the weights are nearly equal.

# %%
names = list(watched.maps)
last = watched.pictures[-1].expand(len(names), -1, -1, -1, -1)  # (4, 10, 1, 28, 28)
show(
    attention.show_readers(last, [list(watched.maps[name][-1]) for name in names], names, DIGITS),
    "6.9",
    "Four layers and ten digits: each position in the colour of the token that it reads most.",
)

# %% [markdown]
# Each layer divides the picture in its own way, and each digit differently; by section 7 colours cannot be compared
# across columns. The middle has only four positions. In the layers on the way up the coloured areas follow the digit:
# strokes are often read from one token and the background beside them from another. Figure 6.10 follows one digit over
# time.

# %%
steps = [0, 2, 4, 6, 8, 10, 12, 14, 16, 19]
ways = watched.pictures[steps, 3].expand(len(names), -1, -1, -1, -1)
times = [f"{watched.times[step]:.2f}" for step in steps]
for name in names:
    first, end = (watched.maps[name][step].max(dim=-1).values.mean() for step in (0, -1))
    print(f"{name:>8}: the largest of four weights is {first:.2f} on average at the first step, {end:.2f} at the last")
show(
    attention.show_readers(ways, [[watched.maps[name][step, 3] for step in steps] for name in names], names, times),
    "6.10",
    "A three on its way from noise ($t$ = 1) to data, predicted picture and weights.",
)

# %% [markdown]
# At $t = 1$, on pure noise, the weights are already about as decided as at the end. (Figure 6.10 shows the guided
# *prediction*, which is a clear 3 from the start; the latent itself is still noise.) A position knows where it is,
# because the zero padding tells convolutions where the edge of the picture is, and the tokens say what belongs there.
# Move from noise to data yourself in figure 6.11, this time without guidance, so that the predictions take longer to
# decide. (On the book's site the button below the figure loads the model into the page. Then click a place in a
# picture, or go there with the arrow keys, to see what every layer reads there.)

# %%
plain = sampling.watch(pipe, range(10), guidance_scale=1.0, steps=20, seed=0)
stored = attention.scrub_tokens(plain, "up.1.0", start=10)
show(
    in_page.live_maps("ldm-cross-attention", stored, attention.TOKEN_COLOURS, guidance_scale=1.0, steps=20, until=0.5),
    "6.11",
    "Predictions without guidance, and below them where each token is read. Move the slider from noise to digit.",
)

# %% [markdown]
# ## 12. Same noise, another label
#
# Is it the label that moves the maps, or the noise? At $t = 1$ we can hold either fixed. Figure 6.12 shows one noise
# and ten labels: the latent is the same in each column, so whatever differs comes from the tokens. Token 1 of one digit
# and token 1 of another cannot be compared (section 7), so before we measure how far two maps differ, we match their
# tokens as well as possible.

# %%
one_noise = pipe.noise(1, seed=3).expand(10, -1, -1, -1)
orders = [list(order) for order in itertools.permutations(range(4))]
by_label = sampling.watch(pipe, range(10), steps=2, noise=one_noise)
by_noise = sampling.watch(pipe, [3] * 10, steps=2, seed=0)


def moved(watched, layer):
    """How much of the attention goes elsewhere, between two of the pictures: 0 none, 1 all of it."""
    pairs = itertools.combinations(watched.maps[layer][0], 2)  # maps of (positions, tokens)
    apart = [[(a - b[:, order]).abs().sum(dim=-1).mean() / 2 for order in orders] for a, b in pairs]
    return torch.tensor(apart).amin(dim=1).mean().item()


for name in names:
    print(f"{name:>8}: another label moves {moved(by_label, name):.0%}, another noise {moved(by_noise, name):.0%}")
show(
    attention.show_tokens(by_label, "up.1.0", DIGITS, step=0),
    "6.12",
    "One noise, ten labels, at $t$ = 1: the predictions, and where each token is read.",
)

# %% [markdown]
# At $t = 1$ all predictions are mean digits, exaggerated by guidance. In the middle and on the U-Net's way up the label
# decides which token is read where, and the noise has little influence. In the layer on the way down the noise has
# more: there the network is still looking at the latent.
#
# ## 13. Take a token away
#
# A map says where the network *looked*, not what it did with what it saw. To find out what a token is for, take it
# away: cross-attention reads as many as it is given. (Fewer than four tokens are new to the network, since it never
# trained with them. We see how much it depends on each.)


# %%
def accuracy(pictures, labels):
    """The fraction of pictures in which a classifier reads the digit that was asked for."""
    return (logits(pictures).argmax(dim=1) == torch.as_tensor(labels)).double().mean().item()


@torch.no_grad()
def draw(tokens, noise, w=3.0, steps=20):
    """Sample with these tokens, (M, 128) for all or (B, M, 128), in place of labels."""

    def reads(x, t, context):
        return pipe.network.unet(x, t, context=context.expand(len(x), -1, -1))

    def guide(x_t, t):
        c = denoiser(x_t, t, context=tokens)
        u = c if w == 1 else denoiser(x_t, t, context=TOKENS[-1])
        return Prediction(*(torch.lerp(*pair, w) for pair in zip(u, c, strict=True)))

    denoiser = Denoiser(reads, pipe.schedule, TARGETS[pipe.recipe.diffusion.target])
    times = samplers.time_grid(steps)
    walk = samplers.sample(
        guide, noise.to(pipe.device), times, samplers.ddim, schedule=pipe.schedule, generator=generator
    )
    *_, end = walk
    return pipe.to_images(end.x)


TOKENS = pipe.network.classes.table.detach()  # (11, 4, 128): ten digits, and NO_CLASS last
off = (draw(TOKENS[:10], pipe.noise(10)) - pipe.sample(10, steps=20, guidance_scale=3.0)).square().mean().sqrt()
assert off < 0.1  # (the pipeline may run in bf16)

kept = {"all four": [0, 1, 2, 3]}
kept |= {f"without {gone + 1}": [token for token in range(4) if token != gone] for gone in range(4)}
kept |= {f"only {token + 1}": [token] for token in range(4)}
labels, rows = torch.arange(50) % 10, {}
for name, chosen in kept.items():
    rows[name] = draw(TOKENS[labels][:, chosen], pipe.noise(50, seed=2), w=1.0, steps=10)
    print(f"{name:>9}: {accuracy(rows[name], labels):4.0%} read as what was asked")
show(
    grids.show_rows({name: pictures[:10] for name, pictures in rows.items()}),
    "6.13",
    "Digits drawn with all four tokens, with three, and with one, from the same noise in each column.",
)

# %% tags=["remove-cell"]
alone = [accuracy(rows[f"only {token + 1}"], labels) for token in range(4)]
assert 0.5 < sum(alone) / 4 < 0.9  # "most are still read as asked"
assert sum(accuracy(rows[f"without {token + 1}"], labels) for token in range(4)) / 4 > sum(alone) / 4 + 0.1

# %% [markdown]
# The digit can nearly always do without one token (figure 6.13). The positions that used to read this token read the
# others instead, and the digit survives with a changed stroke. With a single token, the classifier still recognises
# most digits, some of them caricatures. Others are damaged, or become another digit: by (4) the token tells every
# position the same, so all that was said *by position* is lost. The meaning of a class is spread over its tokens.
#
# ## 14. Which digits are alike?
#
# Tokens are vectors, and vectors have distances. Does the four lie near the nine? The left panel of figure 6.14 shows
# the distance between the tokens of two digits, in the order of tokens that makes it smallest. The right panel shows
# how far apart the *predictions* of the network are, for the same noise at $t = 0.9$.

# %%
table = TOKENS[:10].cpu()
between = torch.stack([(table[:, None] - table[:, order]).norm(dim=-1).mean(dim=-1) for order in orders])
between = between.min(dim=0).values  # (24, 10, 10) -> (10, 10)
x_t, now = pipe.noise(50, seed=6).to(pipe.device), torch.tensor(0.9)
with torch.no_grad():
    asked = [torch.full((50,), digit, device=pipe.device) for digit in range(10)]
    predictions = torch.stack([pipe.denoiser(x_t, now, labels=label).x0 for label in asked]).flatten(1).cpu()
apart = torch.cdist(predictions, predictions) / predictions.shape[1] ** 0.5
for name, distances in (("tokens", between), ("predictions", apart)):
    pairs = sorted((distances[a, b].item(), f"{a}-{b}") for a, b in itertools.combinations(range(10), 2))
    near = ", ".join(f"{pair} {value:.2f}" for value, pair in pairs[:4])
    print(f"{name:>11}: nearest {near}; farthest {pairs[-1][1]} {pairs[-1][0]:.2f}")
panels = {"between tokens": between / between.max(), "between predictions": apart / apart.max()}
show(
    attention.show_matrices(panels, DIGITS, DIGITS, "digit", "digit"),
    "6.14",
    "Distances between the tokens of two digits, and between what the network predicts for them, both as fractions of the largest.",
)

# %% [markdown]
# The left panel shows nearly nothing: all digits are about equally far apart, and the pairs that are a little nearer
# are mostly not those that look alike. The tokens started as random vectors of 128 numbers, any two of which are nearly
# orthogonal, and training seems to have moved them little. **A distance between learned vectors (*embeddings*) means
# something only if something made it meaningful.** In the right panel similarity is back: digits that look alike are
# near each other. It lies in what the network does with tokens.
#
# ## 15. Between two requests
#
# Nothing forbids a request that is no digit. Mix the tokens $c^{(a)}$ and $c^{(b)}$ of two digits, $(1 - r)\, c^{(a)} +
# r\, c^{(b)}$, from one noise:

# %%
pairs = ((3, 8), (4, 9), (1, 7), (0, 6), (5, 2))
mixes = torch.linspace(0, 1, 9)
mixed = [torch.lerp(TOKENS[a], TOKENS[b], s) for a, b in pairs for s in mixes.to(pipe.device)]
starts = torch.cat([pipe.noise(1, seed=a).expand(9, -1, -1, -1) for a, _ in pairs])
blend = draw(torch.stack(mixed), starts).unflatten(0, (5, 9))
show(
    tables.show_table(blend, [f"{a} to {b}" for a, b in pairs], [f"{mix:.2f}" for mix in mixes]),
    "6.15",
    "From the tokens of one digit to those of another, one noise per row.",
)

# %% [markdown]
# Digits do not fade into each other (figure 6.15). For most mixtures the picture is one of the two digits. Near the
# middle it changes from one to the other. The network has never seen a mixture, and draws one of the digits that it
# knows.
#
# Or give it *both* lists, eight tokens, and let each position choose (figure 6.16):

# %%
both = torch.stack([torch.cat([TOKENS[a], TOKENS[b]]) for a, b in pairs])  # (5, 8, 128)
with cross_attention_maps(pipe.network) as noted:
    drawn = draw(both.repeat_interleave(10, dim=0), pipe.noise(10, seed=4).repeat(5, 1, 1, 1), w=1.0)
choice = noted["unet.up.1.0.cross_attention"][-1].mean(dim=1)  # (50, heads, 16, 8) -> (50, 16, 8)
choice = choice.unflatten(-1, (2, 4)).sum(dim=-1).unflatten(0, (5, 10))  # how much each list is read, (5, 10, 16, 2)
rows = [f"{a} and {b}" for a, b in pairs]
lists = ["the first digit's tokens", "the second's"]
show(
    attention.show_readers(drawn.unflatten(0, (5, 10)), choice, rows, [""] * 10, lists),
    "6.16",
    "Drawn with the tokens of two digits at once, and which list each position reads.",
)

# %% [markdown]
# Now one picture follows two lists. Some pictures take one digit's strokes here and the other's there, some take one
# list nearly everywhere, and some are hybrids that are no digits. Text-to-image systems make the same mistake. Asked
# for "a red cube beside a blue ball", they may draw a red ball: nothing in (1) makes the positions that read "cube"
# also read "red".
#
# ## 16. Stacked or read? A comparison
#
# For ten labels, which is better? Chapter 5's model and this one differ in one respect by design. They have nearly the
# same number of parameters, and were trained for the same minutes on the same latents. Figure 6.17 starts both from the
# same noise.

# %%
models = {"ldm-concat": diffusion_book.load("ldm-concat"), "ldm-cross-attention": pipe}
rows = {}
for w in (1.0, 3.0):
    for name, model in models.items():
        drawn = model.sample(10, range(10), w, steps=20, noise=pipe.noise(10, seed=8))
        rows[f"{name.removeprefix('ldm-')}\nw = {w:g}"] = drawn
show(
    grids.show_rows(rows),
    "6.17",
    "Two models from the same noise in each column, at two guidance scales.",
)

# %%
zero, one = torch.zeros(64, dtype=torch.int64), torch.ones(64)
cpu = {name: copy.deepcopy(model.network).cpu().float() for name, model in models.items()}
taken = {name: [] for name in models}
with torch.no_grad():
    for _ in range(12):
        for name, each in cpu.items():  # in turn, so that other work slows both alike
            begun = time.perf_counter()
            each(torch.zeros(64, 2, 4, 4), one, labels=zero)
            taken[name].append(time.perf_counter() - begun)
for name, each in cpu.items():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        each(torch.zeros(1, 2, 4, 4), one[:1], labels=zero[:1])
    card, milliseconds = weights.read_card(name), 1000 * statistics.median(taken[name])
    print(f"{name:>19}: {size(each):,} parameters, {card['minutes']:.0f} minutes, {card['steps']:,} steps; ", end="")
    print(f"a call: {counter.get_total_flops() / 1e6:.1f} MFLOP a picture, {milliseconds:.0f} ms a batch of 64")
    for row in card["metrics"]:
        if (row["steps"], row["num_samples"]) == (50, 2000) and row["guidance_scale"] in (1, 3):
            print(f"{'':>19}  w = {row['guidance_scale']:g}: ", end="")
            print(f"class accuracy {row['class_accuracy']:.1%}, recall {row['recall']:.2f}, cFID {row['cfid']:.2f}")

# %% [markdown]
# Two networks of different architecture, trained apart, make nearly the same picture of the same noise. Without fresh
# noise ($\eta = 0$) sampling follows a differential equation that is fixed by the data (chapter 2), so whoever learns
# the data well takes the same path. Little difference is left. Figure 6.18 compares the losses on test latents.

# %%
curves = {name: [row["eval_loss"] for row in weights.read_card(name)["learning_curve"]] for name in models}
shortest = min(len(curve) for curve in curves.values())
curves = {name: curve[:shortest] for name, curve in curves.items()}
show(
    plots.plot_curves(range(1, shortest + 1), curves, "epoch", "loss on test latents"),
    "6.18",
    "Losses on test latents, epoch by epoch, from the cards of both models.",
)

# %% tags=["remove-cell"]
assert curves["ldm-cross-attention"][-1] > 0.99 * curves["ldm-concat"][-1]

# %% [markdown]
# Here cross-attention does not win: its loss is no lower, and each call takes longer. That is no accident. Ten classes
# on a grid of 4 × 4 are easy for concatenation: each label has a bias of its own at every position from the first layer
# on (chapter 5, section 8), and there is nothing to look up, whereas reading has to be learned. For ten digits take the
# map. For a sentence use tokens: section 9 says why.
#
# ## The scoreboard
#
# `ldm-cross-attention` in fifty steps, 2,000 samples for each scale. *Recall* measures variety (chapter 5); for cFID,
# lower is better.

# %%
card = weights.read_card("ldm-cross-attention")
of_scale = {row["guidance_scale"]: row for row in card["metrics"] if (row["steps"], row["num_samples"]) == (50, 2000)}
for w, row in sorted(of_scale.items()):
    print(
        f"w = {w:<3g} | class accuracy {row['class_accuracy']:.1%} | recall {row['recall']:.2f} | cFID {row['cfid']:.2f}"
    )

# %% [markdown]
# ## What differs from the paper
#
# - **Tokens.** Theirs come from an encoder: a transformer over the words of a caption (77 tokens in Stable Diffusion,
#   from a text model that was trained beforehand). For classes they use a single learned token, so by (4) their
#   class-conditional maps say nothing. Ours are a table of four per class.
# - **The block.** Theirs is a whole transformer block: self-attention, cross-attention and a small feed-forward
#   network, each with its own layer norm. Ours has the first two, with group norm.
# - **Where.** Stable Diffusion attends at 64 × 64, 32 × 32 and 16 × 16 positions, and at 8 × 8 in the middle. Ours at 4
#   × 4 and 2 × 2: our latents have no more positions.
#
# ## Pitfalls
#
# - **One token** and a beautiful map of it (section 5).
# - **Softmax along the wrong axis.** Rows must sum to 1 over the *tokens*. Along the positions the shapes fit too, and
#   nothing complains.
# - **Maps of the wrong half.** In guided sampling one batch holds both branches. Here the first half is the
#   unconditional one.
# - **Heads split by `view` alone.** Without the transposition heads mix up positions and channels. Again the shapes
#   fit. Compare with a loop, as in section 6.
# - **Softmax in half precision.** The library turns scores into fp32 first. Rounded to three digits, the rows of
#   a map no longer sum to 1.
# - **Padding tokens.** Sentences in one batch have different lengths. What fills them up must be masked, or it is read.
# - **Reading a map as a reason** (section 13).
# - **Distances between embeddings** that nothing has shaped (section 14).
#
# ## Exercises
#
# `check` compares your function with the library, and tells the usual mistakes apart.
#
# **1. A token that says nothing.** Add to each class a fifth token of zeros. What does the map do with it, and the
# picture? Which score must a token have, so that no position reads it? Write (1) for lists of different lengths that
# were padded to one length: `real` is true for the tokens of the list and false for the padding.

# %% tags=["nbval-check-output"]
from diffusion_book.exercises import check


def read_masked(q, k, v, real):
    """q (B, N, d), k and v (B, M, d), real (B, M) of True and False -> what is read, (B, N, d)."""
    ...  # your code here


check(read_masked)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# blank = torch.cat([TOKENS[:10], torch.zeros(10, 1, 128, device=pipe.device)], dim=1)
# grids.show_grid(draw(blank, pipe.noise(10)), columns=10)
# ```
#
# It is read. By (3) its key would be 0, and so would its score; the library's layers also add a bias, which is then its
# whole key. Either way softmax gives the score a weight, and the digits change a little. To be ignored, a token needs
# the score $-\infty$. That is what a mask does, and why padding with zeros is not masking.
#
# ```python
# def read_masked(q, k, v, real):
#     scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])  # (B, N, M)
#     scores = scores.masked_fill(~real[:, None], -torch.inf)
#     return scores.softmax(dim=-1) @ v
# ```
#
# </details>
#
# **2. Different requests in different places.** Let the upper half of the positions draw a two and the lower half a
# five, by blending the two predictions with a mask. What is drawn?


# %% tags=["nbval-check-output"]
def in_two_places(denoiser, x_t, t, upper, a, b):
    """x_t (B, C, H, W), one time, a mask (H, W), labels (B,): a where it is 1, b where it is 0 -> Prediction(x0, eps)."""
    ...  # your code here


check(in_two_places)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def in_two_places(denoiser, x_t, t, upper, a, b):
#     predictions = (denoiser(x_t, t, labels=labels) for labels in (a, b))
#     return Prediction(*(upper * p + (1 - upper) * q for p, q in zip(*predictions)))
# ```
#
# To draw with it, guided:
#
# ```python
# upper = torch.zeros(4, 4, device=pipe.device)
# upper[:2] = 1
# two, five = (torch.full((10,), digit, device=pipe.device) for digit in (2, 5))
# halves = lambda x_t, t: in_two_places(pipe.guided(3.0), x_t, t, upper, two, five)
# *_, end = samplers.sample(halves, pipe.noise(10).to(pipe.device), samplers.time_grid(20), samplers.ddim,
#                           schedule=pipe.schedule, generator=generator)
# grids.show_grid(pipe.to_images(end.x), columns=10)
# ```
#
# Many are threes, which nobody asked for. The halves fit together because each prediction sees the whole latent. This
# is how "regional prompts" work. A mask on the maps would do the same inside the network.
#
# </details>
#
# **3. How many tokens?** Train section 9's last network with 1 and with 4 tokens per word: change the shape in `ways`.
# What does the first lose?
#
# <details><summary>Solution</summary>
#
# ```python
# ways = {f"{number} per word": (by_tokens, (number, 32)) for number in (1, 2, 4)}  # and run the loop again
# ```
#
# It loses less than one would expect. One token per word still leaves a choice between the two words. For a request of
# one word, a vector added to all positions is enough to *name* a digit, and the rest of the network can work out what
# that means here or there: it is how Dhariwal & Nichol (2021) hand over classes. What is lost then is the map.
#
# </details>
#
# **4. Compute keys and values once.** The tokens do not change during sampling, so neither do $Y\,W_K$ and $Y\,W_V$.
# How many FLOPs do these two products take in one layer, for one picture? (A FLOP is one addition or one
# multiplication. Leave out the biases.) What fraction of the FLOPs of a call is saved if both are computed once and
# stored?


# %% tags=["nbval-check-output"]
def flops_of_tokens(tokens, context_dim, channels):
    """Number of tokens, entries of a token, channels of a position -> FLOPs, a number."""
    ...  # your code here


check(flops_of_tokens)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def flops_of_tokens(tokens, context_dim, channels):
#     return 2 * 2 * tokens * context_dim * channels  # keys and values; multiply and add
# ```
#
# Over all layers that read tokens:
#
# ```python
# per_call = sum(flops_of_tokens(4, 128, reader.query.in_features) for reader in cpu["ldm-cross-attention"].modules()
#                if isinstance(reader, layers.Attention) and reader.key_value.in_features == 128)
# print(per_call / 1e6, "MFLOP")
# ```
#
# Four tokens, four layers: about a fortieth of the call. With 77 tokens of 768 numbers it is worth keeping, and systems
# do.
#
# </details>
#
# ## Summary
#
# - Attention is a soft look-up (1): queries ask, keys are compared, values are read. Dividing by $\sqrt d$ keeps it
#   soft at any width (2).
# - In cross-attention positions ask and tokens answer (3). The number of tokens is free, and their order means nothing
#   (6).
# - Over one token the softmax is 1 (4). A class needs several, or the map is constant.
# - Maps move with the label, differ from layer to layer, and are decided early. They show where the network
#   looks, not why. Take tokens away to learn what they do.
# - Similarity shows in what the network does, not in the distance of tokens.
# - Requests of separate words reach combinations that were never trained. Tokens and stacked maps both can; tokens need
#   no fixed number of words. For ten classes a stacked map is as good or better.
#
# ## References
#
# - Rombach, Blattmann, Lorenz, Esser & Ommer (2022), *High-Resolution Image Synthesis with Latent Diffusion Models*.
#   CVPR. arXiv:2112.10752.
# - Vaswani et al. (2017), *Attention Is All You Need*. NeurIPS. arXiv:1706.03762.
# - Bahdanau, Cho & Bengio (2014), *Neural Machine Translation by Jointly Learning to Align and Translate*.
#   arXiv:1409.0473. (Soft look-up, before it had the name.)
# - Ho & Salimans (2022), *Classifier-Free Diffusion Guidance*. arXiv:2207.12598.
# - Dhariwal & Nichol (2021), *Diffusion Models Beat GANs on Image Synthesis*. NeurIPS. arXiv:2105.05233. (A class as a
#   vector.)
# - Hertz et al. (2022), *Prompt-to-Prompt Image Editing with Cross Attention Control*. arXiv:2208.01626. (Maps, and
#   what to do with them.)
# - Jain & Wallace (2019), *Attention is not Explanation*. NAACL. arXiv:1902.10186.
# - Peebles & Xie (2022), *Scalable Diffusion Models with Transformers*. ICCV 2023. arXiv:2212.09748. (DiT.)
