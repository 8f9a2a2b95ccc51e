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
# *Runs in about a minute on two CPU cores, without a network connection. A quarter of that is live training. Needs
# chapters 4 and 5.*
#
# In chapter 5 a label was a map, laid beside the latent. That works for ten classes. It does not work for a sentence:
# a sentence has no place in the picture, and no fixed length. What text-to-image models do instead is to turn the
# request into a list of *tokens*, a few vectors in no particular place, and let every part of the picture look up in
# the list what it needs. The looking up is called cross-attention. Here the request is still one of ten digits, so that
# everything can be seen.
#
# You will
#
# - build attention from a thermometer that was read four times a day;
# - find out why scores are divided by $\sqrt d$, by measuring what happens if they are not;
# - see why a single token for a class would make attention pointless;
# - train a small network that learns to read, live;
# - watch which token each place looks at while a digit is drawn, take tokens away, mix those of two digits;
# - compare with chapter 5, for the same minutes of training.
#
# The source is Rombach, Blattmann, Lorenz, Esser & Ommer, *High-Resolution Image Synthesis with Latent Diffusion
# Models* (2022), section 3.3; attention itself is from Vaswani et al., *Attention Is All You Need* (2017).

# %% [markdown]
# ## Set-up, and what we are after
#
# Ten digits, drawn at guidance 3. Below each you see it again four times, lit by the attention that one layer pays to
# each of the four tokens of that digit: bright where the token is read, dark where it is not.

# %%
import copy
import dataclasses
import itertools
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation.features import logits
from diffusion_book.evaluation.measures import sentence
from diffusion_book.evaluation.scoreboard import figures
from diffusion_book.models import pipelines, sampling, weights
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks import layers
from diffusion_book.networks.conditioning import ConditionalUNet, cross_attention_maps
from diffusion_book.targets import TARGETS, Prediction
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import attention, grids, plots, style, tables

style.use_style()
pipe = diffusion_book.load("ldm-cross-attention")
vae, DIGITS = pipe.autoencoder, [str(digit) for digit in range(10)]
watched = sampling.watch(pipe, range(10), guidance_scale=3.0, steps=20, seed=0)
attention.show_tokens(watched, "up.1.0", DIGITS)

# %% [markdown]
# The tokens of a digit share the picture among themselves. Nobody told them to.
#
# ## 1. A toy: looking up a temperature
#
# A thermometer was read at midnight, at six, at noon and at six in the evening. What was the temperature at any other
# hour? Give each reading a *key*, the direction in which the hour hand of a 24-hour dial points, and a *value*, the
# degrees. The question is a *query*: a direction too. Compare it with each key by a scalar product, turn the four
# scores into shares by softmax, and mix the values in these shares.


# %%
# NBVAL_CHECK_OUTPUT
def hand(hours):
    """Where the hand of a 24-hour dial points, (N,) -> (N, 2)."""
    angle = 2 * math.pi * torch.as_tensor(hours, dtype=torch.float64) / 24
    return torch.stack([angle.sin(), angle.cos()], dim=1)


keys, values = hand([0, 6, 12, 18]), torch.tensor([[4.0], [9.0], [21.0], [14.0]], dtype=torch.float64)


def look_up(query):
    """Queries (N, 2) -> what is read, (N, 1), and the shares, (N, 4)."""
    shares = (query @ keys.T).softmax(dim=1)
    return shares @ values, shares


for hour in (12, 15, 17):
    read, shares = look_up(4 * hand([hour]))
    print(f"at {hour} h: {read.item():4.1f} degrees, shares", " ".join(f"{share:.2f}" for share in shares[0]))

# %% [markdown]
# The direction of a query says *what* is asked. Its length says how sharply. A short one reads the average of
# everything, a long one picks the nearest key.

# %%
hours = torch.linspace(0, 24, 200)
curves = {f"length {length:g}": look_up(length * hand(hours))[0][:, 0] for length in (0.5, 2, 8)}
plots.plot_curves(hours, curves, "hour that is asked for", "degrees read", xticks=[0, 6, 12, 18, 24])

# %%
asked = [0, 3, 6, 9, 12]
panels = {f"length {length}": look_up(length * hand(asked))[1] for length in (2, 8)}
attention.show_matrices(panels, [f"{hour} h" for hour in asked], ["0 h", "6 h", "12 h", "18 h"], "key", "query")

# %% [markdown]
# This is a dictionary whose look-up is soft. Every query gets an answer, the answer changes smoothly with the
# query, and so the whole thing can be trained: queries, keys and values may all come out of layers with weights.
#
# ## 2. The equation
#
# Stack $N$ queries into a matrix $Q$, and $M$ keys and values into $K$ and $V$, one in a row. Let a key have $d$
# entries. Then
#
# $$\mathrm{Attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{Q K^\top}{\sqrt d}\right) V. \tag{1}$$
#
# The softmax goes along each row, so that each query divides one unit of attention among the keys. Those rows,
# $(N, M)$ in all, are the *attention map*. Compare with the library's, and with PyTorch's own.


# %%
# NBVAL_CHECK_OUTPUT
def my_attention(q, k, v):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (..., N, d) @ (..., d, M) -> (..., N, M)
    shares = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return shares @ v, shares


generator = torch.Generator().manual_seed(0)
q = torch.randn(2, 16, 32, generator=generator)
k, v = torch.randn(2, 2, 4, 32, generator=generator)
mine, shares = my_attention(q, k, v)
theirs, their_shares = layers.attention(q, k, v)
assert_close(mine, theirs)
assert_close(shares, their_shares)
assert_close(mine, F.scaled_dot_product_attention(q, k, v))
print(
    "read:",
    tuple(mine.shape),
    "attention map:",
    tuple(shares.shape),
    "rows sum to 1:",
    bool((shares.sum(-1) - 1).abs().max() < 1e-5),
)

# %% [markdown]
# (Real code subtracts the largest score of each row before `exp`, which changes nothing in (1) and keeps large scores
# from overflowing. `softmax` does it for us.)
#
# ## 3. Why divide by the root of $d$?
#
# In the toy the length of the query set the sharpness. In a network nobody sets it. If the entries of $q$ and $k$ are
# independent, with mean 0 and variance 1, then
#
# $$\operatorname{Var}[q \cdot k] = \sum_{i=1}^{d} \operatorname{Var}[q_i k_i] = d. \tag{2}$$
#
# So the scores of a wider layer are larger, for no reason but its width. Divide by $\sqrt d$ and they have variance 1
# at any width. Is that worth a square root? Measure the largest of four shares, and how much a share can still move
# when its score does: $\partial\,\mathrm{share} / \partial\,\mathrm{score} = \mathrm{share}\,(1 - \mathrm{share})$.

# %%
# NBVAL_CHECK_OUTPUT
widths = (2, 8, 32, 128, 512)
largest, slope = {"not divided": [], "divided": []}, {"not divided": [], "divided": []}
for d in widths:
    q, k = torch.randn(4000, 1, d, generator=generator), torch.randn(4000, 4, d, generator=generator)
    scores = (q @ k.transpose(1, 2))[:, 0]  # (4000, 4)
    for name, divisor in (("not divided", 1.0), ("divided", math.sqrt(d))):
        shares = (scores / divisor).softmax(dim=1)
        largest[name].append(shares.max(dim=1).values.mean().item())
        slope[name].append((shares * (1 - shares)).mean().item())
    print(f"d = {d:3}: scores spread by {scores.std():4.1f}; slope {slope['not divided'][-1]:.2f}, ", end="")
    print(f"divided {slope['divided'][-1]:.2f}")

# %%
ticks = {"xscale": "log", "xticks": widths, "xticklabels": widths, "ylim": (0, 1.05)}
plots.plot_curves(widths, largest, "d", "largest of four shares", **ticks)

# %% [markdown]
# Not divided, a wide layer is born as a hard switch: one token gets nearly everything, and the slope, which is all that
# training has to go by, vanishes. Divided, it is born undecided, at any width.
#
# ## 4. Who asks whom
#
# A U-Net has places: here 4 x 4 of them, each with a vector $x_i$ of $C$ channels. In *self-attention* all three come
# from the places. In *cross-attention* the places ask, and the tokens $c_j$ of the request answer:
#
# $$\text{self: } Q = X W_Q,\; K = X W_K,\; V = X W_V \qquad\qquad
# \text{cross: } Q = X W_Q,\; K = C\, W_K,\; V = C\, W_V.
# \tag{3}$$
#
# The first is how far corners of a picture agree on one slant. The second is how they learn what to draw. The shipped
# network has both, one after the other. We catch the two maps of one layer, halfway through a three.

# %%
block, maps = pipe.network.unet.up[1][0], {}


def note(kind):
    return lambda layer, inputs: maps.update({kind: layer.read(*inputs)[1][-1, 0].cpu()})  # (places, who is read)


kinds = ("self_attention", "cross_attention")
hooks = [getattr(block, kind).register_forward_pre_hook(note(kind)) for kind in kinds]
list(itertools.islice(pipe.states([3], steps=20, seed=0), 11))  # half of the steps
for hook in hooks:
    hook.remove()
print({kind: tuple(each.shape) for kind, each in maps.items()})
panels = {"self: 16 places ask 16 places": maps["self_attention"], "cross: 4 tokens": maps["cross_attention"]}
attention.show_matrices(panels, xlabel="who is read", ylabel="place that asks", digits=None)

# %% [markdown]
# Note what (3) does not ask for. The number of tokens appears nowhere in the weights: $W_K$ and $W_V$ take each token
# by itself. The same layer reads one token, four, or the 77 of a sentence.
#
# ## 5. One token is none
#
# A digit is one thing. Why not one token? Because a softmax over a single score is 1, whatever the score:
#
# $$\operatorname{softmax}(s_{i1}) = \frac{e^{s_{i1}}}{e^{s_{i1}}} = 1
# \quad\Longrightarrow\quad \text{every place reads } v_1. \tag{4}$$
#
# Then queries and keys do nothing. They do not even learn: their gradient is exactly zero. Ask a layer of the
# library.

# %%
# NBVAL_CHECK_OUTPUT
torch.manual_seed(0)
layer = layers.Attention(64, context_dim=8)
torch.nn.init.normal_(layer.out.weight, std=0.1)  # it starts at zero, and would add nothing
x = torch.randn(1, 64, 4, 4, generator=generator)
for number in (1, 4):
    tokens = torch.randn(1, number, 8, generator=generator)
    read, shares = layer.read(x, tokens)
    layer.zero_grad()
    (layer(x, tokens) * x).sum().backward()
    same = bool((read - read[:, :, :1]).abs().max() < 1e-5)
    print(f"{number} token{'s' * (number > 1)}: shares from {shares.min():.2f} to {shares.max():.2f}; ", end="")
    print(f"every place reads the same: {same}; queries learn: {bool(layer.query.weight.grad.abs().max() > 1e-6)}")
    assert same == (number == 1)

# %% [markdown]
# With one token, cross-attention is a long way of adding a vector to every place, and its map a white square that
# means nothing. (You will find such maps in print.) So each class of the shipped model has four tokens of 128 numbers,
# learned with everything else. `NO_CLASS` has four of its own. Four are more than a digit needs; what matters is that
# a place has a choice.
#
# ## 6. Several heads
#
# One map must serve all channels. A place may want to know two things at once, say "is there a stroke?" and "which
# way does it run?". So the channels are split into $h$ *heads*, each with its own queries, keys, values and map, and
# a last layer puts the answers together:
#
# $$\mathrm{head}_n = \mathrm{Attention}(Q_n, K_n, V_n), \qquad
# X' = X + \left[\mathrm{head}_1, \dots, \mathrm{head}_h\right] W_O. \tag{5}$$
#
# That completes the layer. Written out, and compared with the library's:


# %%
# NBVAL_CHECK_OUTPUT
def my_cross_attention(layer, x, tokens):
    """(B, C, H, W) and (B, M, context_dim) -> (B, C, H, W), with the weights of a layer of the library."""
    places = layer.norm(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
    q = layer.query(places)  # (B, HW, C)
    k, v = layer.key_value(tokens).chunk(2, dim=-1)  # (B, M, C) each
    d = x.shape[1] // layer.heads
    heads = [my_attention(*(each[..., n * d : (n + 1) * d] for each in (q, k, v)))[0] for n in range(layer.heads)]
    read = layer.out(torch.cat(heads, dim=-1))  # (B, HW, C)
    return x + read.transpose(1, 2).reshape(x.shape)


with torch.no_grad():
    assert_close(my_cross_attention(layer, x, tokens), layer(x, tokens))
print(f"{layer.heads} heads of {64 // layer.heads} channels; my_cross_attention is layers.Attention")

# %% [markdown]
# ## 7. A list without an order
#
# Shuffle the tokens by a permutation matrix $\Pi$. Keys and values are shuffled alike, and the sum over tokens does
# not mind:
#
# $$\operatorname{softmax}\!\left(\tfrac{1}{\sqrt d}\, Q (\Pi K)^\top\right) \Pi V
# = \operatorname{softmax}\!\left(\tfrac{1}{\sqrt d}\, Q K^\top\right) \Pi^\top \Pi V = \mathrm{Attention}(Q, K, V).
# \tag{6}$$

# %%
# NBVAL_CHECK_OUTPUT
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
# written into the tokens themselves, before they come here. Text encoders do that. Also, "token 1" of the three and
# "token 1" of the eight have nothing to do with each other.
#
# ## 8. Where it sits
#
# At each level that has attention, a block of our U-Net does three things: a residual block, which knows the time;
# self-attention among places; cross-attention to tokens. Everything else is the network of chapter 4.

# %%
# NBVAL_CHECK_OUTPUT
size = lambda part: sum(parameter.numel() for parameter in part.parameters())  # noqa: E731
readers = {name: part for name, part in network.named_modules() if name.endswith("cross_attention")}
for name, reader in readers.items():
    places = {"middle": "2 x 2"}.get(name.split(".")[1], "4 x 4")
    print(f"{name:>29}: {places} places, {reader.heads} head{'s' * (reader.heads > 1):1}, {size(reader):6,} parameters")
extra = sum(size(reader) for reader in readers.values())
print(f"cross-attention: {extra:,}, the tokens: {size(network.classes):,}, all: {size(network):,} parameters")

# %% [markdown]
# A twentieth of the network is new. The names are those of the maps: `up.1.0` in the first picture was the first block
# at 4 x 4 places on the way up.
#
# ## 9. A live training
#
# A smaller network, 6,000 encoded pictures, fifteen seconds. The loss is that of chapter 5, hidden labels and all. On
# the way we stop twice and ask for the ten digits, always from the same noise.

# %%
train = data.load("auto")
few = data.Dataset(train.name, train.images[:6000], train.labels[:6000])
latents = encode_dataset(vae, few)
settings = TrainingConfig(epochs=100_000, batch_size=32, lr=4e-3, warmup_steps=20, ema_decay=0.98)
small = dataclasses.replace(pipe.recipe.network, base_channels=32, context_dim=32)
recipe = dataclasses.replace(pipe.recipe, network=small, training=settings)
SECONDS = 15

torch.manual_seed(0)
loss = loss_of_latent_diffusion(recipe.diffusion, recipe.condition)
trainer = Trainer(ConditionalUNet(small), loss, latents, settings, max_minutes=SECONDS / 60)
print(f"{len(latents):,} latents of {few.name}, {size(trainer.network):,} parameters")


# %%
def young():
    """The network as it is now, averaged, as a pipeline."""
    return pipelines.build(recipe, trainer.ema.network.state_dict(), autoencoder=vae)


def accuracy(pictures, labels):
    """Share that the book's second classifier takes for what was asked."""
    return (logits(pictures).argmax(dim=1) == torch.as_tensor(labels)).double().mean().item()


def look(name):
    drawn = sampling.watch(young(), torch.arange(100) % 10, guidance_scale=3.0, steps=10, seed=0)
    sharp = torch.cat([maps.max(dim=-1).values.flatten() for maps in drawn.maps.values()]).mean()
    right = accuracy(drawn.pictures[-1], torch.arange(100) % 10)
    print(f"{name:>5}: {right:4.0%} read as what was asked; the largest of four shares is {sharp:.2f} on average")
    return drawn.pictures[-1][:10]


progress, pauses = {"0 s": look("0 s")}, iter([3, 7, math.inf])
pause = next(pauses)
for report in trainer.steps():
    if report.seconds > pause:
        progress[f"{pause} s"] = look(f"{pause} s")
        pause = next(pauses)
progress[f"{SECONDS} s"] = look(f"{SECONDS} s")
print(f"{report.step} steps, loss {report.loss:.2f}")
grids.show_rows(progress, "Asked for 0 to 9")

# %% [markdown]
# At first the tokens are random and the maps nearly even: a quarter each. Then two things happen together. Digits
# appear where they were asked for, and attention takes sides.
#
# ## 10. The shipped weights
#
# They are of the same kind, with wider layers, and were trained on all latents. The dial of chapter 5 works as before,
# for guidance asks only for a network that knows `NO_CLASS`.

# %%
card = weights.read_card("ldm-cross-attention")
print(f"{card['parameters']:,} parameters, {card['minutes']:.0f} minutes on {card['data_set']}")
scales = (0.0, 1.0, 3.0, 6.0)
noise = pipe.noise(10, seed=5).repeat(4, 1, 1, 1)
dial = pipe.sample(40, torch.arange(40) % 10, torch.tensor(scales).repeat_interleave(10), steps=20, noise=noise)
tables.show_table(dial.unflatten(0, (4, 10)), [f"w = {w:g}" for w in scales], DIGITS)

# %% [markdown]
# ## 11. What the tokens look like from the picture
#
# `sampling.watch` samples, and notes the map of each layer at each step. (A guided step runs the network on a batch of
# two halves, without labels and with them. The maps are those of the second half, averaged over heads.) Give each token
# a colour and paint each place in the mixture of what it reads. First all layers at the last step:

# %%
names = list(watched.maps)
last = watched.pictures[-1].expand(len(names), -1, -1, -1, -1)  # (4, 10, 1, 28, 28)
attention.show_readers(last, [list(watched.maps[name][-1]) for name in names], names, DIGITS)

# %% [markdown]
# Each layer divides the picture in its own way, and each digit differently: colours cannot be compared across columns,
# by section 7. The middle has only four places. In the layers on the way up the patches follow the digit: often
# strokes are read from one token and the ground beside them from another. Now one digit, over time:

# %%
steps = [0, 2, 4, 6, 8, 10, 12, 14, 16, 19]
ways = watched.pictures[steps, 3].expand(len(names), -1, -1, -1, -1)
times = [f"{watched.times[step]:.2f}" for step in steps]
for name in names:
    first, end = (watched.maps[name][step].max(dim=-1).values.mean() for step in (0, -1))
    print(f"{name:>8}: the largest of four shares is {first:.2f} on average at the first step, {end:.2f} at the last")
attention.show_readers(ways, [[watched.maps[name][step, 3] for step in steps] for name in names], names, times)

# %% [markdown]
# The maps are about as decided at $t = 1$, on pure noise, as at the end. Where there is nothing to see in the latent,
# a place still knows where it is (convolutions feel the edge of the picture), and the tokens say what belongs there.
# Later the maps follow what is drawn. Move through it yourself, this time without guidance, so that the guesses take
# longer to decide:

# %%
plain = sampling.watch(pipe, range(10), guidance_scale=1.0, steps=20, seed=0)
attention.scrub_tokens(plain, "up.1.0", start=10)

# %% [markdown]
# ## 12. Same noise, another label
#
# Is it the label that moves the maps, or the noise? At $t = 1$ we can hold either. Ten labels, one noise: the latent is
# the same in each column, so whatever differs comes from the tokens.

# %%
one_noise = pipe.noise(1, seed=3).expand(10, -1, -1, -1)
by_label = sampling.watch(pipe, range(10), steps=2, noise=one_noise)
by_noise = sampling.watch(pipe, [3] * 10, steps=2, seed=0)


def moved(watched, layer):
    """How much of the attention goes elsewhere, between two of the pictures: 0 none, 1 all of it."""
    pairs = itertools.combinations(watched.maps[layer][0], 2)
    return torch.stack([(a - b).abs().sum(dim=-1).mean() / 2 for a, b in pairs]).mean().item()


for name in names:
    print(f"{name:>8}: another label moves {moved(by_label, name):.0%}, another noise {moved(by_noise, name):.0%}")
attention.show_tokens(by_label, "up.1.0", DIGITS, step=0, title="One noise, ten labels, t = 1")

# %% [markdown]
# At $t = 1$ all are guesses of the mean digit, exaggerated by guidance. On the way up, where the last word on the
# picture is spoken, the label decides which token is read where, and the noise has little say. On the way down it has
# more: there the network is still looking at the latent.
#
# ## 13. Take a token away
#
# A map says where the network *looked*. It does not say what it did with what it saw. To find out what a token is for,
# take it away: cross-attention reads as many as it is given. For this and for what follows we hand tokens to the U-Net
# ourselves.


# %%
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
    rows[name] = draw(TOKENS[labels][:, chosen], pipe.noise(50, seed=1), w=1.0, steps=10)
    print(f"{name:>9}: {accuracy(rows[name], labels):4.0%} read as what was asked")
grids.show_rows({name: pictures[:10] for name, pictures in rows.items()})

# %% [markdown]
# One can be spared, nearly always. Its places turn to the others, and the digit survives with a changed stroke. One
# alone is a caricature, or another digit: by (4) it tells every place the same, so all that was said *by place* is
# lost. The meaning of a class is spread over its tokens, and none is "the loop" or "the bar" of the digit.
#
# ## 14. Which digits are alike?
#
# Tokens are vectors, and vectors have distances. Does the four lie near the nine? On the left: the distance between
# the tokens of two digits, matched as well as they can be. On the right: how far the *guesses* of the network are
# apart, for the same noise at $t = 0.9$.

# %%
orders = [list(order) for order in itertools.permutations(range(4))]
table = TOKENS[:10].cpu()
between = torch.stack([(table[:, None] - table[:, order]).norm(dim=-1).mean(dim=-1) for order in orders])
between = between.min(dim=0).values  # (24, 10, 10) -> (10, 10)
x_t, now = pipe.noise(50, seed=6).to(pipe.device), torch.tensor(0.9)
with torch.no_grad():
    asked = [torch.full((50,), digit, device=pipe.device) for digit in range(10)]
    guesses = torch.stack([pipe.denoiser(x_t, now, labels=label).x0 for label in asked]).flatten(1).cpu()
apart = torch.cdist(guesses, guesses) / guesses.shape[1] ** 0.5
for name, distances in (("tokens", between), ("guesses", apart)):
    pairs = sorted((distances[a, b].item(), f"{a}-{b}") for a, b in itertools.combinations(range(10), 2))
    near = ", ".join(f"{pair} {value:.2f}" for value, pair in pairs[:4])
    print(f"{name:>8}: nearest {near}; farthest {pairs[-1][1]} {pairs[-1][0]:.2f}")
panels = {"between tokens": between / between.max(), "between guesses": apart / apart.max()}
attention.show_matrices(panels, DIGITS, DIGITS, "digit", "digit")

# %% [markdown]
# The left panel is a disappointment, and worth it. All digits are nearly equally far apart, and some pairs that are a
# little nearer, like 4 and 6, do not look alike. The tokens started as random vectors of 128 numbers, any two of which
# are nearly orthogonal, and training had no reason to move them far. It changed the matrices that read them. **A
# distance between embeddings means something only if something made it meaningful.** In the right panel similarity is
# back: 4 and 9, 3 and 5, 7 and 9, 5 and 8 are near each other, and the one is far from the zero. It lies in what the
# network does with tokens.
#
# ## 15. Between two requests
#
# Nothing forbids a request that is no digit. Mix the tokens of two, $(1 - s)\, c^a + s\, c^b$, from one noise:

# %%
pairs = ((3, 8), (4, 9), (1, 7), (0, 6), (5, 2))
shares = torch.linspace(0, 1, 9)
mixed = [torch.lerp(TOKENS[a], TOKENS[b], s) for a, b in pairs for s in shares.to(pipe.device)]
starts = torch.cat([pipe.noise(1, seed=a).expand(9, -1, -1, -1) for a, _ in pairs])
blend = draw(torch.stack(mixed), starts).unflatten(0, (5, 9))
tables.show_table(blend, [f"{a} to {b}" for a, b in pairs], [f"{share:.2f}" for share in shares])

# %% [markdown]
# Digits do not fade into each other. Over most of the way it is one of the two, and near the middle it turns. The
# network has never seen a blend; it makes of it what it knows. Where the two are alike, as 4 and 9, it passes through
# shapes that a reader could take for either.
#
# Or lay *both* lists before it, eight tokens, and let each place choose:

# %%
both = torch.stack([torch.cat([TOKENS[a], TOKENS[b]]) for a, b in pairs])  # (5, 8, 128)
with cross_attention_maps(pipe.network) as noted:
    drawn = draw(both.repeat_interleave(10, dim=0), pipe.noise(10, seed=4).repeat(5, 1, 1, 1), w=1.0)
choice = noted["unet.up.1.0.cross_attention"][-1].mean(dim=1)  # (50, heads, 16, 8) -> (50, 16, 8)
choice = choice.unflatten(-1, (2, 4)).sum(dim=-1).unflatten(0, (5, 10))  # the share of each list, (5, 10, 16, 2)
rows = [f"{a} and {b}" for a, b in pairs]
lists = ["the first digit's tokens", "the second's"]
attention.show_readers(drawn.unflatten(0, (5, 10)), choice, rows, [""] * 10, lists)

# %% [markdown]
# Now one picture follows two lists. In the first row the middle reads the three and the rim the eight. In the third the
# one wins almost everywhere, and ones are drawn. In the last the two are at odds, and hybrids come out that are no
# digits. In text-to-image systems the same thing goes wrong as "a red cube beside a blue ball" in which the ball is
# red: nothing in (1) ties a word to a place.
#
# ## 16. Beside or by reading? A fair comparison
#
# Chapter 5's model and this one differ in a single respect. They have nearly the same number of parameters, and
# were trained for the same minutes on the same latents. Same noise, same labels:

# %%
models = {"ldm-concat": diffusion_book.load("ldm-concat"), "ldm-cross-attention": pipe}
rows = {}
for w in (1.0, 3.0):
    for name, model in models.items():
        drawn = model.sample(10, range(10), w, steps=20, noise=pipe.noise(10, seed=8))
        rows[f"{name.removeprefix('ldm-')}\nw = {w:g}"] = drawn
grids.show_rows(rows)

# %%
zero, one = torch.zeros(64, dtype=torch.int64), torch.ones(64)
cpu = {name: copy.deepcopy(model.network).cpu().float() for name, model in models.items()}
taken = {name: [] for name in models}
with torch.no_grad():
    for _ in range(12):
        for name, each in cpu.items():  # in turn, so that both see the same moods of the machine
            begun = time.perf_counter()
            each(torch.zeros(64, 2, 4, 4), one, labels=zero)
            taken[name].append(time.perf_counter() - begun)
for name, each in cpu.items():
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        each(torch.zeros(1, 2, 4, 4), one[:1], labels=zero[:1])
    card, milliseconds = weights.read_card(name), 1000 * statistics.median(taken[name])
    print(f"{name:>19}: {size(each):,} parameters, {card['minutes']:.0f} minutes, {card['steps']:,} steps; ", end="")
    print(f"a call: {counter.get_total_flops() / 1e6:.1f} MFLOP a picture, {milliseconds:.0f} ms a batch of 64")
    for row in sorted(figures(card), key=lambda row: (-row["steps"], row["guidance_scale"])):
        if row["guidance_scale"] in (1, 3):
            print(
                f"{'':>19}  w = {row['guidance_scale']:g}, {row['steps']} steps, {row['num_samples']:,} samples: ",
                end="",
            )
            print(f"cFID {row['cfid']:.3f}, class accuracy {row['class_accuracy']:.1%}")

# %% [markdown]
# Look at the pictures first. Two networks of different build, trained apart, make nearly the same picture of the same
# noise. With $\eta = 0$ the walk follows a differential equation, and what stands in that equation is fixed by the
# data (chapter 2): whoever learns the data well walks the same way. The small differences are what is left to compare.

# %%
curves = {name: [row["eval_loss"] for row in weights.read_card(name)["learning_curve"]] for name in models}
shortest = min(len(curve) for curve in curves.values())
curves = {name: curve[:shortest] for name, curve in curves.items()}
plots.plot_curves(range(1, shortest + 1), curves, "epoch", "loss on test latents")

# %% [markdown]
# Cross-attention does not win. The measures above are close; its loss, epoch by epoch, lies a little higher; and each
# step costs a little more. This is no accident. Ten classes on a grid of 4 x 4 are the home ground of concatenation: a
# map says directly, at every place, what belongs there, and there is nothing to look up. Reading must first be learned.
# What it buys is what a map cannot do at all: requests of any length, of parts that nobody has seen together, of things
# with no place. For ten digits take the map. For a sentence you have no choice.
#
# ## The scoreboard

# %%
card = weights.read_card("ldm-cross-attention")
for row in sorted(figures(card), key=lambda row: (-row["steps"], row["guidance_scale"])):
    print(
        f"w = {row['guidance_scale']:<3g} | {row['steps']:2} steps | class accuracy {row['class_accuracy']:.1%} | ",
        end="",
    )
    print(sentence(row))

# %% [markdown]
# ## What differs from the paper
#
# - **Tokens.** Theirs come from an encoder: a transformer over the words of a caption (77 tokens in Stable Diffusion,
#   from a text model that was trained beforehand). For classes they use a single learned token, so by (4) their
#   class-conditional maps say nothing. Ours are a table of four a class.
# - **The block.** Theirs is a whole transformer block: self-attention, cross-attention and a small feed-forward
#   network, each with its own layer norm. Ours has the first two, with group norm.
# - **Where.** Stable Diffusion attends at 64 x 64, 32 x 32 and 16 x 16 places, and at 8 x 8 in the middle. Ours
#   at 4 x 4 and 2 x 2. That is all there is.
#
# ## Pitfalls
#
# - **One token** and a beautiful map of it (section 5).
# - **Softmax along the wrong axis.** Rows must sum to 1 over the *tokens*. Along the places the shapes fit too, and
#   nothing complains.
# - **Maps of the wrong half.** In guided sampling one batch holds both branches. Here the first half is the
#   unconditional one.
# - **Heads split by `view` alone.** Without the transposition heads mix up places and channels. Again the shapes fit.
#   Compare with a loop, as in section 6.
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
# picture? What would have to be true of a token that nobody reads? Write (1) for lists of different lengths that were
# filled up: `real` says which tokens count.

# %%
# NBVAL_CHECK_OUTPUT
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
# It is read. Its key is the bias of the layer, its score some number, and softmax gives every number a share: the
# digits change a little. To be ignored, a token needs the score $-\infty$. That is what a mask does, and why padding
# with zeros is not masking.
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
# **2. Different requests in different places.** Let the upper half of the places draw a two and the lower half a five,
# by blending the two guesses with a mask. What is the sum?


# %%
# NBVAL_CHECK_OUTPUT
def in_two_places(denoiser, x_t, t, upper, a, b):
    """x_t (B, C, H, W), one time, a mask (H, W) of 1 and 0, labels (B,) for 1 and for 0 -> Prediction(x0, eps)."""
    ...  # your code here


check(in_two_places)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def in_two_places(denoiser, x_t, t, upper, a, b):
#     guesses = (denoiser(x_t, t, labels=labels) for labels in (a, b))
#     return Prediction(*(upper * p + (1 - upper) * q for p, q in zip(*guesses)))
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
# Many are threes, which nobody asked for. The halves fit together because each guess sees the whole latent. This is how
# "regional prompts" work. A mask on the maps would do the same inside the network.
#
# </details>
#
# **3. How many tokens?** Train section 9 with 1, 2 and 8 tokens a class: give `ConditionalUNet` the number, and the
# recipe's `condition` as well. What does the first lose?
#
# <details><summary>Solution</summary>
#
# ```python
# condition = dataclasses.replace(pipe.recipe.condition, num_tokens=1)
# recipe = dataclasses.replace(recipe, condition=condition)
# trainer = Trainer(ConditionalUNet(small, num_tokens=1), loss, latents, settings, max_minutes=SECONDS / 60)
# ```
#
# Less than one would think. A vector added to all places is enough to *name* a digit, and the rest of the network can
# work out what that means here or there: it is how Dhariwal & Nichol (2021) hand over classes. What is lost is the
# map.
#
# </details>
#
# **4. Cheaper when it is done.** The tokens do not change during sampling, so neither do $C\,W_K$ and $C\,W_V$. How
# many FLOPs do these two products take in one layer, for one picture? (A FLOP is one addition or one multiplication.
# Leave out the biases.) How much of the arithmetic of a call could be kept from the first step?


# %%
# NBVAL_CHECK_OUTPUT
def flops_of_tokens(tokens, context_dim, channels):
    """How many tokens, numbers a token, channels of a place -> FLOPs, a number."""
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
#   undecided at birth (2).
# - In cross-attention places ask and tokens answer (3). The number of tokens is free, and their order means nothing
#   (6).
# - Over one token the softmax is 1 (4). A class needs several, or the map is empty.
# - Maps move with the label, differ from layer to layer, and are decided early. They show where the network
#   looks, not why. Take tokens away to learn what they do.
# - What is alike shows in what the network does, not in the distance of tokens.
# - For ten classes a map beside the latent is as good or better. Reading pays where requests are long, or new.
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
