"""The VAE's network: its shapes, that every part is used, and that it learns."""

import dataclasses

import pytest
import torch
from tiny import SMALL_VAE, pictures, random_vae
from torch import nn

from diffusion_book.elbo import negative_elbo, reconstruction_error
from diffusion_book.models.recipes import RECIPES, ELBOConfig, TrainingConfig
from diffusion_book.networks.layers import Attention
from diffusion_book.networks.vae import VAE, VAEConfig
from diffusion_book.system.errors import BookError
from diffusion_book.training.losses import loss_of_vae
from diffusion_book.training.trainer import Trainer

SMALL = {"base_channels": 8, "layers_per_block": 1}
CONFIGS = {
    "folded by four": SMALL_VAE,
    "folded by two": VAEConfig(**SMALL, channel_multipliers=(1, 2, 4)),
    "not folded": VAEConfig(**SMALL, channel_multipliers=(1, 1, 2, 2), patch_size=1),
    "two blocks a level": VAEConfig(base_channels=8, channel_multipliers=(1, 2), layers_per_block=2, patch_size=4),
    "one level": VAEConfig(**SMALL, channel_multipliers=(1,), patch_size=4, latent_channels=3),
    "one position": VAEConfig(**SMALL, channel_multipliers=(1, 2, 4, 4, 4)),
    "colours": VAEConfig(**SMALL, channel_multipliers=(1, 2), patch_size=4, image_channels=3, image_size=16),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def inputs(config: VAEConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(batch, config.image_channels, config.image_size, config.image_size, generator=generator) - 1
    return x, torch.randn(batch, *config.latent_shape, generator=generator)


# --- Shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 4, 4)),
        ({"channel_multipliers": (1, 2, 4, 4, 4)}, (2, 1, 1)),
        ({"channel_multipliers": (1, 2, 4, 4, 4), "latent_channels": 3}, (3, 1, 1)),
        ({"channel_multipliers": (1, 2)}, (2, 8, 8)),
        ({"channel_multipliers": (1, 2), "patch_size": 4}, (2, 4, 4)),
        ({"channel_multipliers": (1,), "patch_size": 1}, (2, 32, 32)),
    ],
)
def test_pictures_become_latents_of_the_shape_that_is_told(options, shape):
    config = VAEConfig(**SMALL | options)
    assert config.latent_shape == shape
    network = VAE(config)
    x, noise = inputs(config, batch=2)
    assert x.shape == (2, 1, 32, 32)
    assert noise.shape == (2, *shape)
    posterior = network.encode(x)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, *shape)
    assert network.decode(noise).shape == x.shape
    reconstruction, posterior = network(x, noise)
    assert reconstruction.shape == x.shape
    assert posterior.kl().shape == (2,)


def test_the_recipes_have_the_latents_that_their_names_promise():
    assert RECIPES["vae"].vae.latent_shape == (2, 4, 4)
    assert RECIPES["vae-2d"].vae.latent_shape == (2, 1, 1)


# --- Every part is used --------------------------------------------------------------------------


@configs
def test_gradient_reaches_every_parameter(config):
    """Blocks start as the identity, so the first steps wake the layers one behind the other."""
    torch.manual_seed(0)
    network = VAE(config)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x, noise = inputs(config)
    reached = set()
    for _ in range(4):
        optimizer.zero_grad()
        negative_elbo(network, x, noise, kl_weight=0.1).mean().backward()
        # 1e-9: what rounding alone leaves of a gradient that is zero
        reached |= {name for name, parameter in network.named_parameters() if parameter.grad.abs().max() > 1e-9}
        optimizer.step()
    missed = {name for name, _ in network.named_parameters()} - reached
    assert not missed


def test_attention_is_where_there_is_more_than_one_position():
    found = {
        name: sum(isinstance(module, Attention) for module in VAE(config).modules()) for name, config in CONFIGS.items()
    }
    assert found.pop("one position") == 0
    assert set(found.values()) == {2}  # one in the encoder, one in the decoder


@configs
def test_evaluation_is_deterministic_and_treats_pictures_apart(config):
    network = random_vae(config)
    x, noise = inputs(config)
    with torch.no_grad():
        first, posterior = network(x, noise)
        second, _ = network(x, noise)
        alone = [network(x[i : i + 1], noise[i : i + 1]) for i in range(len(x))]
    assert torch.equal(first, second)
    assert first.std() > 1e-3
    torch.testing.assert_close(torch.cat([each for each, _ in alone]), first, rtol=1e-4, atol=1e-5)
    means = torch.cat([each.mean for _, each in alone])
    torch.testing.assert_close(means, posterior.mean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(means[0], means[1], atol=1e-3)


@configs
def test_forward_is_encode_draw_decode(config):
    network = random_vae(config)
    x, noise = inputs(config)
    with torch.no_grad():
        posterior = network.encode(x)
        found, same = network(x, noise)
        torch.testing.assert_close(found, network.decode(posterior.mean + posterior.std * noise))
        assert not torch.allclose(network.decode(posterior.mean), found, atol=1e-5)
    assert torch.equal(same.moments, posterior.moments)


def test_every_position_of_the_latent_sees_the_whole_picture_and_is_seen_by_all_of_it():
    """What attention at the coarsest level is for."""
    network = random_vae(CONFIGS["folded by two"])
    x, noise = inputs(CONFIGS["folded by two"], batch=1)
    network.encode(x.requires_grad_()).mean[0, 0, 0, 0].backward()
    assert (x.grad != 0).double().mean() > 0.99
    network.decode(noise.requires_grad_())[0, 0, 31, 31].backward()
    assert (noise.grad != 0).all()


def test_pixels_are_folded_and_unfolded_alike():
    """With all else zero, the last layer's bias is a pattern that repeats with every patch."""
    network = VAE(SMALL_VAE)
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.zero_()
        network.decoder.conv_out.bias.copy_(torch.arange(16))
        found = network.decode(torch.zeros(1, 2, 4, 4))
    assert torch.equal(found[0, 0], torch.arange(16.0).reshape(4, 4).repeat(8, 8))
    seen = []
    network.encoder.conv_in.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    x, _ = inputs(SMALL_VAE)
    network.encode(x)
    assert torch.equal(torch.pixel_shuffle(seen[0], 4), x)


def test_the_scale_of_the_latents_travels_with_the_weights_and_is_not_learned():
    network = VAE(SMALL_VAE)
    assert network.latent_mean.tolist() == [0.0, 0.0]
    assert network.latent_std.tolist() == [1.0, 1.0]
    assert {"latent_mean", "latent_std"} <= network.state_dict().keys()
    assert not {"latent_mean", "latent_std"} & {name for name, _ in network.named_parameters()}


def test_the_posterior_has_all_its_digits_under_autocast():
    network = random_vae()
    x, noise = inputs(SMALL_VAE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reconstruction, posterior = network(x, noise)
    assert reconstruction.dtype == torch.bfloat16
    assert posterior.mean.dtype == posterior.log_variance.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(posterior.mean, network.encode(x).mean, rtol=0.1, atol=0.05)


# --- It learns -----------------------------------------------------------------------------------


def learn(kl_weight: float) -> tuple[VAE, torch.Tensor, float]:
    """Train on eight digits; gives the averaged network, the digits, and the error before."""
    torch.manual_seed(0)
    config = TrainingConfig(epochs=150, batch_size=8, warmup_steps=10, lr=5e-3, ema_decay=0.9)
    network = VAE(VAEConfig(base_channels=16, channel_multipliers=(1, 2), layers_per_block=1, patch_size=4))
    trainer = Trainer(network, loss_of_vae(ELBOConfig(kl_weight)), pictures(8), config, device="cpu", precision="fp32")
    before = trainer.evaluate(trainer.dataset)
    for _ in trainer.steps():
        pass
    return trainer.ema.network, trainer.dataset.batch(torch.arange(8))[0], before


@pytest.fixture(scope="module")
def learned():
    """The same training with two weights of the KL divergence."""
    return {kl_weight: learn(kl_weight) for kl_weight in (1e-6, 1e-2)}


def test_it_learns_eight_pictures_by_heart(learned):
    network, x, before = learned[1e-6]
    with torch.no_grad():
        error = reconstruction_error(x, network.decode(network.encode(x).mode)).mean()
    assert before > 0.5
    assert error < before / 10
    assert error < 0.2 * x.var()  # much better than one grey for all


def test_a_larger_weight_pulls_the_posterior_to_the_standard_normal(learned):
    with torch.no_grad():
        loose, tight = (network.encode(x).kl().mean() for network, x, _ in learned.values())
        spread = [network.encode(x).std.mean() for network, x, _ in learned.values()]
    assert tight < 1 < 10 < loose
    assert spread[0] < 0.5 < 0.9 < spread[1] < 1.1


# --- What cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_channels": 0}, "base_channels is 0"),
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"image_channels": 0}, "image_channels is 0"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"channel_multipliers": (1, 0)}, "at least one level"),
        ({"image_size": 30}, "30 pixels cannot be folded by 2 and halved 2 times"),
        ({"image_size": 0}, "image_size is 0: it must be at least 1"),
        ({"channel_multipliers": (1,) * 6}, "32 pixels cannot be folded by 2 and halved 5 times"),
        ({"patch_size": 3}, "32 pixels cannot be folded by 3"),
        ({"patch_size": 64, "channel_multipliers": (1,)}, "32 pixels cannot be folded by 64"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options, words):
    with pytest.raises(BookError, match=words) as info:
        VAEConfig(**options)
    assert "\n" not in str(info.value)


def test_the_configuration_is_plain_and_frozen():
    config = VAEConfig()
    assert VAE().config == config
    assert VAEConfig(**dataclasses.asdict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.base_channels = 1
    assert isinstance(VAE(SMALL_VAE).encoder, nn.Module)
