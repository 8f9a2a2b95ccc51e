"""Networks with classes: what a label becomes, who learns from it, and what attention looks at."""

import dataclasses

import pytest
import torch
from tiny import SMALL_CLASS_UNETS, SMALL_UNET, wake

from diffusion_book.models.recipes import ConditionConfig, DiffusionConfig
from diffusion_book.networks.conditioning import NO_CLASS, ClassEmbedding, ConditionalUNet, cross_attention_maps
from diffusion_book.networks.unet import UNet
from diffusion_book.system.errors import BookError
from diffusion_book.training.losses import loss_of_diffusion

CONFIGS = {"concat": SMALL_CLASS_UNETS["ldm-concat"], "context": SMALL_CLASS_UNETS["ldm-cross-attention"]}
routes = pytest.mark.parametrize("route", CONFIGS)
DEEP = dataclasses.replace(CONFIGS["context"], channel_multipliers=(1, 2), attention_levels=(0,))
"""Cross-attention at 4 x 4 and, in the middle, at 2 x 2."""


def network_of(config, num_classes=3, num_tokens=4, seed=0):
    torch.manual_seed(seed)
    return wake(ConditionalUNet(config, num_classes, num_tokens))


def batch(size=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 2, 4, 4, generator=generator)
    return x, torch.linspace(0.1, 0.9, size), torch.arange(size) % 3


# --- A label becomes a condition -----------------------------------------------------------------


def test_every_class_and_none_have_numbers_of_their_own():
    torch.manual_seed(0)
    classes = ClassEmbedding(3, (2, 5))
    found = classes(torch.tensor([2, NO_CLASS, 0, 1]))
    assert found.shape == (4, 2, 5)
    assert torch.equal(found, classes.table[[2, 3, 0, 1]])
    assert len(found.flatten(1).unique(dim=0)) == 4


@routes
def test_a_label_is_handed_to_the_unet_by_its_route(route):
    network, (x, t, labels) = network_of(CONFIGS[route]), batch()
    seen = {}
    handle = network.unet.register_forward_pre_hook(lambda unet, given, named: seen.update(named), with_kwargs=True)
    found = network(x, t, labels=labels)
    handle.remove()
    assert list(seen) == [route]
    assert seen[route].shape == ((4, 3, 4, 4) if route == "concat" else (4, 4, 6))
    assert torch.equal(seen[route], network.classes.table[labels])
    assert torch.equal(found, network.unet(x, t, **{route: network.classes.table[labels]}))
    assert found.shape == x.shape


def test_a_map_is_stacked_on_the_picture_and_read_by_the_first_layer():
    network, (x, t, labels) = network_of(CONFIGS["concat"]), batch()
    assert network.unet.conv_in.in_channels == 2 + 3
    plain = UNet(SMALL_UNET)
    state = network.unet.state_dict()
    state["conv_in.weight"] = state["conv_in.weight"][:, :2]
    plain.load_state_dict(state)
    with torch.no_grad():
        network.unet.conv_in.weight[:, 2:] = 0  # nothing of the map is read any more
        torch.testing.assert_close(network(x, t, labels=labels), plain.eval()(x, t))


@routes
def test_each_picture_follows_its_own_label_only(route):
    network, (x, t, labels) = network_of(CONFIGS[route]), batch()
    before = network(x, t, labels=labels)
    for other in (1, 2, NO_CLASS):
        changed = labels.clone()
        changed[0] = other
        after = network(x, t, labels=changed)
        assert not torch.allclose(after[0], before[0], atol=1e-3)
        torch.testing.assert_close(after[1:], before[1:])


@routes
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 10, 1], "labels from 0 to 10: the network knows the classes 0 to 2, and -1 for none"),
        ([-2, 0, 1], "labels from -2 to 1: the network knows the classes 0 to 2, and -1 for none"),
        ([0.0, 1.0, 2.0], "the labels are of type torch.float32: give whole numbers"),
        ([True, False, True], "the labels are of type torch.bool: give whole numbers"),
    ],
)
def test_labels_that_do_not_exist_are_refused(route, labels, said):
    network, (x, t, _) = network_of(CONFIGS[route]), batch()
    with pytest.raises(BookError, match=f"^{said}$"):
        network(x[:3], t[:3], labels=torch.tensor(labels))


@routes
def test_no_label_is_remembered(route):
    network, (x, t, labels) = network_of(CONFIGS[route]), batch()
    before = network(x, t, labels=labels)
    network(x, t, labels=torch.full_like(labels, NO_CLASS))
    network(-x[:2], t[:2], labels=labels[:2] + 1)
    assert torch.equal(network(x, t, labels=labels), before)
    assert {name for name, _ in network.named_buffers()} == set()


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        (SMALL_UNET, {}, "needs either concat_channels or context_dim"),
        (dataclasses.replace(SMALL_UNET, concat_channels=2, context_dim=4), {}, "needs either concat_channels or"),
        (CONFIGS["concat"], {"num_classes": 0}, "num_classes is 0, num_tokens 4: both must be at least 1"),
        (CONFIGS["context"], {"num_tokens": 0}, "num_classes is 10, num_tokens 0: both must be at least 1"),
    ],
)
def test_a_network_that_cannot_know_classes_is_refused(config, arguments, words):
    with pytest.raises(BookError, match=words):
        ConditionalUNet(config, **arguments)


# --- Learning ------------------------------------------------------------------------------------


def backward(network, labels, hidden=0.0):
    """One step of training without the step."""
    loss = loss_of_diffusion(DiffusionConfig(), ConditionConfig(3, unconditional_probability=hidden))
    x = torch.randn(len(labels), 2, 4, 4, generator=torch.Generator().manual_seed(1))
    loss(network.train(), x, labels, torch.Generator().manual_seed(2)).mean().backward()


@routes
def test_the_gradient_reaches_every_parameter(route):
    network = network_of(dataclasses.replace(CONFIGS[route], channel_multipliers=(1, 2), attention_levels=(0,)))
    backward(network, torch.arange(30) % 3, hidden=0.3)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


@routes
@pytest.mark.parametrize(("labels", "hidden", "rows"), [([0, 0, 2], 0.0, [0, 2]), ([1] * 40, 0.5, [1, 3])])
def test_only_what_was_asked_for_learns_and_none_learns_where_labels_are_hidden(route, labels, hidden, rows):
    """Row 3 is that of `NO_CLASS`."""
    network = network_of(CONFIGS[route])
    backward(network, torch.tensor(labels), hidden)
    moved = network.classes.table.grad.flatten(1).abs().amax(dim=1) > 0
    assert moved.nonzero().flatten().tolist() == rows


@routes
def test_one_network_learns_both_models(route):
    """Two classes, all bright and all dark. From pure noise the best guess is the class's, and without one the mean."""
    torch.manual_seed(0)
    network = ConditionalUNet(CONFIGS[route], num_classes=2).train()
    config = DiffusionConfig(target="image", time_sampling="last")
    loss = loss_of_diffusion(config, ConditionConfig(2, unconditional_probability=0.5))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    x0 = (2.0 * labels - 1)[:, None, None, None].expand(64, 2, 4, 4)
    for _ in range(60):
        optimizer.zero_grad()
        loss(network, x0, labels, generator).mean().backward()
        optimizer.step()
    noise = torch.randn(64, 2, 4, 4, generator=generator)
    with torch.no_grad():
        dark, bright, free = (
            network.eval()(noise, torch.ones(64), labels=torch.full((64,), label)).mean().item()
            for label in (0, 1, NO_CLASS)
        )
    assert dark < -0.7
    assert bright > 0.7
    assert abs(free) < 0.4


# --- What cross-attention looks at ---------------------------------------------------------------


def test_maps_are_shares_of_every_token():
    network, (x, t, labels) = network_of(DEEP), batch()
    before = network(x, t, labels=labels)
    with cross_attention_maps(network) as maps, torch.no_grad():
        after = network(x, t, labels=labels)
        network(x[:1], t[:1], labels=labels[:1])
    assert torch.equal(after, before)
    assert maps
    for name, (first, second) in maps.items():
        positions = 4 if ".middle." in f".{name}" else 16
        assert first.shape == (4, 1, positions, 4)  # one head of 8 or 16 channels
        assert second.shape == (1, 1, positions, 4)
        torch.testing.assert_close(first.sum(dim=-1), torch.ones(4, 1, positions))
        assert (first > 0).all()
        torch.testing.assert_close(second, first[:1], rtol=1e-4, atol=1e-5)
        assert not first.requires_grad


def test_maps_come_in_the_order_of_the_network():
    network, (x, t, labels) = network_of(DEEP), batch()
    executed = []
    for name, module in network.named_modules():
        if name.endswith("cross_attention"):
            module.register_forward_hook(lambda *_, name=name: executed.append(name))
    with cross_attention_maps(network) as maps:
        network(x, t, labels=labels)
    assert list(maps) == executed
    assert len(executed) == 4  # one on the way down, one in the middle, two on the way up


def test_maps_move_when_the_label_does():
    network, (x, t, labels) = network_of(DEEP), batch()
    with cross_attention_maps(network) as maps:
        network(x, t, labels=labels)
        network(x, t, labels=torch.full_like(labels, 2))
    for first, second in maps.values():
        assert not torch.allclose(first[0], second[0], atol=1e-3)
        # Nor is it the same wherever one looks from.
        assert not torch.allclose(first[0, :, 0], first[0, :, 1], atol=1e-3)
    first, second = maps["unet.down.0.0.cross_attention"]
    torch.testing.assert_close(first[2], second[2])  # there the label is the same


def test_maps_are_what_the_pixels_read_by():
    """A layer's output is its input and the values of the tokens, mixed in these shares."""
    network, (x, t, labels) = network_of(DEEP), batch()
    layer = network.unet.middle[0].cross_attention
    seen = {}
    layer.register_forward_hook(lambda layer, given, result: seen.update(x=given[0], context=given[1], result=result))
    with cross_attention_maps(network) as maps, torch.no_grad():
        network(x, t, labels=labels)
        (shares,) = maps["unet.middle.0.cross_attention"]
        values = layer.key_value(seen["context"])[..., 16:]  # (B, tokens, 16), the one head
        mixed = layer.out(shares[:, 0] @ values)  # (B, 4, 16)
    expected = seen["x"] + mixed.transpose(1, 2).reshape_as(seen["x"])
    torch.testing.assert_close(seen["result"], expected)


def test_a_single_token_is_all_there_is_to_look_at():
    network, (x, t, labels) = network_of(DEEP, num_tokens=1), batch()
    with cross_attention_maps(network) as maps:
        network(x, t, labels=labels)
    assert len(maps) == 4
    for (found,) in maps.values():
        assert torch.equal(found, torch.ones(*found.shape[:3], 1))


def hooks_of(network):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


def test_nothing_stays_behind():
    network, (x, t, labels) = network_of(DEEP), batch()
    with cross_attention_maps(network) as first:
        assert hooks_of(network) == 4
        network(x, t, labels=labels)
    assert hooks_of(network) == 0
    network(x, t, labels=labels)  # no longer noted
    assert {len(calls) for calls in first.values()} == {1}
    with cross_attention_maps(network) as second:
        assert {len(calls) for calls in second.values()} == {0}
    with pytest.raises(BookError), cross_attention_maps(network):
        network(x[:, :1], t, labels=labels)  # a channel is missing
    assert hooks_of(network) == 0


def test_where_nothing_reads_tokens_there_are_no_maps():
    x, t, labels = batch()
    with cross_attention_maps(network_of(CONFIGS["concat"])) as maps:
        network_of(CONFIGS["concat"])(x, t, labels=labels)
    assert maps == {}
