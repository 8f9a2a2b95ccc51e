"""Networks: every part is used, nothing is lost, and a wrong use is refused in one line."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_book.networks.classifier import CLASSIFIERS, FEATURES, build_classifier
from diffusion_book.networks.layers import (
    Attention,
    ResidualBlock,
    attention,
    group_norm,
    sinusoidal_embedding,
    zero_init,
)
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.system.errors import BookError

SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "layers_per_block": 1, "attention_levels": (1,)}
CONFIGS = {
    "folded": UNetConfig(**SMALL),
    "unfolded": UNetConfig(**SMALL | {"patch_size": 1, "image_size": 8}),
    "three levels": UNetConfig(base_channels=8, channel_multipliers=(1, 2, 2), layers_per_block=2, attention_levels=()),
    "one level": UNetConfig(base_channels=8, channel_multipliers=(1,), attention_levels=(0,), layers_per_block=1),
    "attention everywhere, dropout": UNetConfig(**SMALL | {"attention_levels": (0, 1), "dropout": 0.1}),
    "concat": UNetConfig(**SMALL, concat_channels=3),
    "context": UNetConfig(**SMALL, context_dim=6),
    "concat and context, latent": UNetConfig(
        **SMALL | {"patch_size": 1}, in_channels=4, image_size=8, concat_channels=2, context_dim=5
    ),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def inputs(config: UNetConfig, batch: int = 3):
    generator = torch.Generator().manual_seed(0)
    size = config.image_size
    condition = {}
    if config.concat_channels:
        condition["concat"] = torch.randn(batch, config.concat_channels, size, size, generator=generator)
    if config.context_dim:
        condition["context"] = torch.randn(batch, 4, config.context_dim, generator=generator)
    x = torch.randn(batch, config.in_channels, size, size, generator=generator)
    return x, torch.linspace(0.1, 0.9, batch), condition


def unet(config: UNetConfig, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(config)


def woken(config: UNetConfig) -> UNet:
    """A network whose layers that start at zero are not zero any more."""
    network = unet(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


# --- U-Net ---------------------------------------------------------------------------------------


@configs
def test_output_has_the_shape_of_the_picture_and_starts_at_zero(config):
    x, t, condition = inputs(config)
    output = unet(config)(x, t, **condition)
    assert output.shape == x.shape
    assert not output.any()


@configs
def test_gradient_reaches_every_parameter(config):
    """Blocks start as the identity, so the first steps wake the layers one behind the other."""
    network = unet(config)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, t, condition = inputs(config)
    reached = set()
    for _ in range(4):
        optimizer.zero_grad()
        (network(x, t, **condition) - x).square().mean().backward()
        reached |= {name for name, parameter in network.named_parameters() if parameter.grad.any()}
        optimizer.step()
    missed = {name for name, _ in network.named_parameters()} - reached
    assert not missed


@configs
def test_evaluation_is_deterministic_and_treats_pictures_apart(config):
    network = woken(config)
    x, t, condition = inputs(config)
    with torch.no_grad():
        first, second = network(x, t, **condition), network(x, t, **condition)
        alone = torch.cat(
            [
                network(x[i : i + 1], t[i : i + 1], **{name: value[i : i + 1] for name, value in condition.items()})
                for i in range(len(x))
            ]
        )
    assert torch.equal(first, second)
    assert first.std() > 1e-3
    torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)


@configs
def test_the_output_depends_on_all_that_is_given(config):
    network = woken(config)
    x, t, condition = inputs(config)
    with torch.no_grad():
        before = network(x, t, **condition)
        assert not torch.allclose(network(x.roll(1, -1), t, **condition), before)
        assert not torch.allclose(network(x, t / 2, **condition), before, atol=1e-6)
        for name, value in condition.items():
            assert not torch.allclose(network(x, t, **condition | {name: value + 1}), before, atol=1e-6)


def test_context_is_a_set_of_tokens():
    """Cross-attention reads the tokens in any order, and each picture reads its own."""
    config = CONFIGS["context"]
    network = woken(config)
    x, t, condition = inputs(config)
    context = condition["context"]
    with torch.no_grad():
        before = network(x, t, context=context)
        torch.testing.assert_close(network(x, t, context=context.flip(1)), before, rtol=1e-4, atol=1e-5)
        changed = context.clone()
        changed[0] += 1
        after = network(x, t, context=changed)
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[0], before[0], atol=1e-5)


def test_the_network_keeps_no_state_between_calls():
    config = CONFIGS["context"]
    network = woken(config)
    x, t, condition = inputs(config)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        first = network(x, t, **condition)
        network(-x, 1 - t, context=-condition["context"])
        assert torch.equal(network(x, t, **condition), first)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_folding_loses_nothing():
    """With its blocks still the identity and stem and last layer set to copy, a folded network returns its input."""
    config = UNetConfig(
        base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=2
    )
    network = unet(config)
    copy = torch.zeros(8, 4, 3, 3)
    copy[range(4), range(4), 1, 1] = 1.0
    with torch.no_grad():
        network.conv_in.weight.copy_(copy)
        network.conv_in.bias.zero_()
    seen = {}
    network.conv_in.register_forward_hook(lambda _, given, out: seen.update(folded=given[0], stem=out))
    x, t, _ = inputs(config)
    network(x, t)
    folded, stem = seen["folded"], seen["stem"]
    assert folded.shape == (3, 4, 16, 16)
    torch.testing.assert_close(stem[:, :4], folded)
    # Channel 2 i + j of a fold holds the pixels at (i, j) of every 2 x 2 patch.
    for i in range(2):
        for j in range(2):
            assert torch.equal(folded[:, 2 * i + j], x[:, 0, i::2, j::2])
    assert torch.equal(torch.pixel_shuffle(folded, 2), x)


@pytest.mark.parametrize("patch_size", [2, 4])
def test_the_last_layer_unfolds_as_the_first_folded(patch_size):
    """The gradient of one output pixel through a network that is all zero but for its last bias."""
    config = UNetConfig(
        base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=patch_size
    )
    network = unet(config)
    with torch.no_grad():
        network.conv_out.bias.copy_(torch.arange(patch_size**2))
    x, t, _ = inputs(config)
    output = network(x, t)
    pattern = (
        torch.arange(patch_size**2).float().reshape(patch_size, patch_size).repeat(32 // patch_size, 32 // patch_size)
    )
    torch.testing.assert_close(output, pattern.expand_as(output))


def test_dropout_acts_in_training_alone():
    config = CONFIGS["attention everywhere, dropout"]
    network = woken(config)
    x, t, _ = inputs(config)
    with torch.no_grad():
        assert torch.equal(network(x, t), network(x, t))
        network.train()
        assert not torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_channels": 0}, "base_channels is 0"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"channel_multipliers": (1, 0)}, "at least one level"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"attention_levels": (3,)}, "attention level 3 does not exist: levels are 0 to 2"),
        ({"attention_levels": (-1,)}, "attention level -1 does not exist"),
        ({"image_size": 30}, "30 pixels cannot be folded by 2 and halved 2 times"),
        ({"channel_multipliers": (1,) * 6, "attention_levels": ()}, "cannot be folded"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options, words):
    with pytest.raises(BookError, match=words) as info:
        UNetConfig(**options)
    assert "\n" not in str(info.value)


def test_a_wrong_input_is_refused():
    plain, conditional = unet(CONFIGS["folded"]), unet(CONFIGS["concat and context, latent"])
    x, t, _ = inputs(CONFIGS["folded"])
    for bad in (torch.zeros(3, 2, 32, 32), torch.zeros(3, 1, 30, 32), torch.zeros(3, 1, 32, 30)):
        with pytest.raises(BookError, match="H and W divisible by 4"):
            plain(bad, t)
    with pytest.raises(BookError, match="was not built for a condition 'concat'"):
        plain(x, t, concat=x)
    with pytest.raises(BookError, match="was not built for a condition 'context'"):
        plain(x, t, context=torch.zeros(3, 1, 6))
    x, t, condition = inputs(CONFIGS["concat and context, latent"])
    with pytest.raises(BookError, match="needs a condition 'concat'"):
        conditional(x, t, context=condition["context"])
    with pytest.raises(BookError, match="needs a condition 'context'"):
        conditional(x, t, concat=condition["concat"])


# --- Layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_dim", [None, 6])
def test_attention_is_the_softmax_of_its_paper(context_dim):
    """softmax(Q K^T / sqrt(d)) V, a head at a time and with explicit rows, each of which sums to one."""
    torch.manual_seed(0)
    layer = Attention(16, context_dim, head_dim=8)
    nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 16, 3, 5)
    context = None if context_dim is None else torch.randn(2, 4, context_dim)
    pixels = layer.norm(x).flatten(2).transpose(1, 2)  # (2, 15, 16)
    query = layer.query(pixels)
    key, value = layer.key_value(pixels if context is None else context).split(16, dim=-1)
    read = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        rows = (query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(8)).softmax(dim=-1)
        torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))
        read.append(rows @ value[..., part])
    expected = x + layer.out(torch.cat(read, dim=-1)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(layer(x, context), expected, rtol=1e-4, atol=1e-5)


def queries_keys_and_values(dtype=torch.float32):
    """Three heads, five queries, seven keys and values."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, number, 8) for number in (5, 7, 7)]
    return [2 * torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def test_attention_is_torch_s_own():
    query, key, value = queries_keys_and_values()
    read, weights = attention(query, key, value)
    torch.testing.assert_close(read, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(weights @ value, read)
    assert weights.shape == (2, 3, 5, 7)


def test_attention_weights_are_shares():
    _, weights = attention(*queries_keys_and_values())
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 5))
    assert weights.max() > 0.9  # they do tell keys apart
    _, alike = attention(torch.zeros(1, 4, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8))
    torch.testing.assert_close(alike, torch.full((1, 4, 6), 1 / 6))


def test_attention_reads_a_set_and_answers_each_query_apart():
    query, key, value = queries_keys_and_values()
    read, weights = attention(query, key, value)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    same, moved = attention(query, key[..., order, :], value[..., order, :])
    torch.testing.assert_close(same, read)
    torch.testing.assert_close(moved, weights[..., order])
    swapped = torch.tensor([4, 2, 0, 1, 3])
    found, rows = attention(query[..., swapped, :], key, value)
    torch.testing.assert_close(found, read[..., swapped, :])
    torch.testing.assert_close(rows, weights[..., swapped, :])


def test_attention_weighs_in_fp32_and_answers_in_the_type_of_its_values():
    read, weights = attention(*queries_keys_and_values(torch.bfloat16))
    assert (read.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, 5))
    torch.testing.assert_close(read.float(), attention(*queries_keys_and_values())[0], rtol=0.05, atol=0.05)


def test_self_attention_moves_with_its_pixels():
    """No position is written into the pixels: permute them, and the result is permuted alike."""
    torch.manual_seed(0)
    layer = Attention(8, head_dim=4)
    nn.init.normal_(layer.out.weight)
    x = torch.randn(1, 8, 4, 4)
    order = torch.randperm(16)
    mixed = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(layer(mixed), layer(x).flatten(2)[..., order].reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_with_a_single_token_cross_attention_is_the_same_everywhere():
    """Softmax over one token is 1: every pixel reads the same, which is why classes get several tokens."""
    torch.manual_seed(0)
    layer = Attention(8, 6)
    nn.init.normal_(layer.out.weight)
    x = torch.randn(1, 8, 4, 4)
    added = layer(x, torch.randn(1, 1, 6)) - x
    torch.testing.assert_close(added, added[..., :1, :1].expand_as(added), rtol=1e-4, atol=1e-5)


def test_a_residual_block_starts_as_the_identity_and_works_without_time():
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ResidualBlock(8, 8)(x), x)
    assert torch.equal(ResidualBlock(8, 8, 12)(x, torch.randn(2, 12)), x)
    assert ResidualBlock(8, 16)(x).shape == (2, 16, 4, 4)


def test_the_time_embedding_is_cosines_and_sines_of_a_thousand_t():
    t = torch.tensor([0.0, 0.25, 1.0])
    found = sinusoidal_embedding(t, 8)
    assert found.shape == (3, 8)
    for row, time in enumerate(t.tolist()):
        for k in range(4):
            angle = 1000 * time / 10_000 ** (k / 4)
            assert found[row, k].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert found[row, 4 + k].item() == pytest.approx(math.sin(angle), abs=1e-4)
    steps = sinusoidal_embedding(torch.arange(1, 1001) / 1000, 64)
    distances = torch.cdist(steps, steps).fill_diagonal_(math.inf)
    assert distances.min() > 0.1  # no two of the thousand steps look alike


@pytest.mark.parametrize("channels", [1, 3, 8, 20, 32, 96, 256, 512])
def test_groups_divide_the_channels(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32


def test_zero_init_is_zero():
    assert not any(parameter.any() for parameter in zero_init(nn.Linear(3, 4)).parameters())


# --- Classifiers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_take_pictures_and_give_ten_logits(name):
    network = build_classifier(name)
    images = torch.randn(3, 1, 28, 28)
    assert network(images).shape == (3, 10)
    network(images).square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    network.eval()
    assert torch.equal(network(images), network(images))


def test_features_feed_the_last_layer():
    network = build_classifier("classifier").eval()
    images = torch.randn(3, 1, 28, 28)
    features = network.features(images)
    assert features.shape == (3, FEATURES)
    assert (features >= 0).all()
    torch.testing.assert_close(network.head(features), network(images))


def test_the_two_classifiers_share_no_layer():
    shapes = [
        {tuple(value.shape) for value in build_classifier(name).parameters() if value.ndim == 4} for name in CLASSIFIERS
    ]
    assert not shapes[0] & shapes[1]


def test_unknown_classifiers_are_refused():
    with pytest.raises(BookError, match="choose one of classifier, classifier-check"):
        build_classifier("resnet")
