"""Latent diffusion: the pixel pipeline with an autoencoder at its end, and only with its own."""

import dataclasses

import pytest
import torch
from tiny import SMALL_UNET, SMALL_VAE, random_autoencoder, random_latent_pipeline, wake
from torch import nn

import diffusion_book
from diffusion_book.models import pipelines, weights
from diffusion_book.models.autoencoder import Autoencoder
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.pipelines import Pipeline, build
from diffusion_book.models.recipes import RECIPES, DiffusionConfig, Recipe, TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNet, UNetConfig
from diffusion_book.networks.vae import VAEConfig
from diffusion_book.system.errors import BookError

CPU = torch.device("cpu")
WHERE = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def autoencoder():
    return random_autoencoder()


@pytest.fixture(scope="module")
def pipe(autoencoder):
    return random_latent_pipeline(autoencoder)


# --- Against the pixel pipeline ------------------------------------------------------------------

IMAGE_SHAPED = VAEConfig(latent_channels=1, channel_multipliers=(1,), patch_size=1)
PIXELS = UNetConfig(base_channels=8, channel_multipliers=(1,), layers_per_block=1, attention_levels=(), patch_size=4)


class Identity(nn.Module):
    """An autoencoder's network that leaves pictures as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("latent_mean", torch.zeros(1))
        self.register_buffer("latent_std", torch.ones(1))

    def encode(self, x):
        return DiagonalGaussian(x, torch.full_like(x, -30.0))

    def decode(self, z):
        return z


class Bounded(nn.Module):
    """A network whose output lies within (-bound, bound). With target "image", that is x0."""

    def __init__(self, network: nn.Module, bound: float) -> None:
        super().__init__()
        self.network, self.bound = network, bound

    def forward(self, x, t):
        return self.bound * torch.tanh(5 * self.network(x, t))


def pixel_and_latent_pipeline(bound: float) -> tuple[Pipeline, Pipeline]:
    """One network, once for pictures, and once for latents that are pictures."""
    torch.manual_seed(0)
    network = Bounded(wake(UNet(PIXELS)), bound)
    identity = Autoencoder(Recipe("vae", vae=IMAGE_SHAPED), Identity(), CPU, torch.float32, {})
    diffusion = DiffusionConfig(target="image", timesteps=20)
    return (
        Pipeline(Recipe("ddpm", TrainingConfig(), PIXELS, diffusion), network, CPU, torch.float32, {}),
        Pipeline(
            Recipe("ldm", TrainingConfig(), PIXELS, diffusion, is_latent=True),
            network,
            CPU,
            torch.float32,
            {},
            identity,
        ),
    )


SAMPLERS = pytest.mark.parametrize(
    "options", [{"sampler": "ddpm"}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.5}]
)


@SAMPLERS
def test_with_an_autoencoder_that_does_nothing_it_is_the_pixel_pipeline(options):
    """Where no x0 leaves [-1, 1], nothing is clipped, and the two walk state by state alike."""
    pixels, latents = pixel_and_latent_pipeline(bound=0.9)
    pairs = zip(*(pipe.states(range(3), steps=6, seed=2, **options) for pipe in (pixels, latents)), strict=True)
    for one, two in pairs:
        assert one.t == two.t
        torch.testing.assert_close(one.x, two.x, rtol=0, atol=1e-4)
        if one.prediction is not None:
            assert 0.5 < one.prediction.x0.abs().max() < 1  # near the edge, and within
            torch.testing.assert_close(one.prediction.x0, two.prediction.x0, rtol=0, atol=1e-4)
    drawn = [pipe.sample(3, steps=6, seed=2, **options) for pipe in (pixels, latents)]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-4)
    assert drawn[0].std() > 0.1


def test_latents_are_not_clipped_but_pictures_are():
    """The one difference: x0 of pictures is kept in [-1, 1], latents have no such range."""
    pixels, latents = pixel_and_latent_pipeline(bound=3.0)
    found = [
        max(state.prediction.x0.abs().max() for state in list(pipe.states(range(3), steps=6))[1:])
        for pipe in (pixels, latents)
    ]
    assert found[0] <= 1
    assert found[1] > 2
    assert latents.sample(3, steps=6).abs().max() == 1  # after the decoder


# --- Sampling ------------------------------------------------------------------------------------


@SAMPLERS
def test_the_same_seed_gives_the_same_pictures_whatever_the_batch(pipe, options):
    whole = pipe.sample(7, steps=5, seed=3, **options)
    assert whole.std() > 1e-2
    for batch_size in (1, 2, 3, 100):
        torch.testing.assert_close(
            pipe.sample(7, steps=5, seed=3, batch_size=batch_size, **options), whole, rtol=0, atol=1e-4
        )
    torch.testing.assert_close(pipe.sample(4, steps=5, seed=3, **options), whole[:4], rtol=0, atol=1e-4)
    assert not torch.allclose(pipe.sample(7, steps=5, seed=4, **options), whole, atol=1e-3)
    assert not torch.allclose(whole[:1], whole[1:2], atol=1e-3)


def test_pictures_are_as_promised(pipe):
    pictures = pipe.sample(3, steps=2)
    assert pictures.shape == (3, 1, 28, 28)
    assert pictures.dtype == torch.float32
    assert pictures.abs().max() <= 1
    assert pictures.device.type == "cpu"


def test_states_are_latents_and_their_pictures_are_decoded(pipe, autoencoder):
    assert pipe.shape == (2, 4, 4)
    states = list(pipe.states(range(3), steps=4, seed=5))
    assert [state.t for state in states] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert all(state.x.shape == (3, 2, 4, 4) for state in states)
    assert torch.equal(states[0].x, pipe.noise(3, seed=5))
    assert pipe.noise(3, seed=5).shape == (3, 2, 4, 4)
    expected = autoencoder.decode(states[-1].x)[..., 2:-2, 2:-2].clamp(-1, 1)
    torch.testing.assert_close(pipe.sample(3, steps=4, seed=5), expected, rtol=0, atol=1e-4)
    for state in states:
        assert pipe.to_images(state.x).shape == (3, 1, 28, 28)


def test_given_noise_is_where_it_starts(pipe):
    noise = pipe.noise(5, seed=2)
    expected = pipe.sample(5, steps=4, seed=2)
    found = pipe.sample(5, steps=4, seed=99, noise=noise, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(BookError, match=r"the noise has shape \(5, 1, 32, 32\): it must be \(5, 2, 4, 4\)"):
        pipe.sample(5, steps=4, noise=torch.zeros(5, 1, 32, 32))


def test_the_scale_of_the_latents_reaches_the_pictures(pipe, autoencoder):
    """Told that latents are twice as wide, the decoder makes of a latent what it made of its double."""
    state = autoencoder.state_dict()
    state["weights"] = state["weights"] | {"latent_std": 2 * state["weights"]["latent_std"]}
    other = dataclasses.replace(pipe, autoencoder=pipelines.autoencoder_from_state(state, **WHERE))
    latents = pipe.noise(2)
    torch.testing.assert_close(other.to_images(latents), pipe.to_images(2 * latents), rtol=0, atol=1e-5)
    assert not torch.allclose(other.to_images(latents), pipe.to_images(latents), atol=1e-3)


# --- Checkpoints ---------------------------------------------------------------------------------


def save(path, model: Pipeline | Autoencoder, **changes):
    """A checkpoint as `train` writes it, as far as `load` reads it."""
    state = model.network.state_dict()
    checkpoint = {"recipe": model.recipe.to_dict(), "network": state, "ema": state}
    if isinstance(model, Pipeline) and model.autoencoder is not None:
        checkpoint["autoencoder"] = model.autoencoder.state_dict()
    return save_checkpoint(path, checkpoint | changes)


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(BookError) as info:
        call(*arguments, **options)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_a_checkpoint_brings_its_own_vae(pipe, autoencoder, tmp_path):
    path = save(tmp_path / "ldm.pt", pipe)
    loaded = diffusion_book.load(path, **WHERE)
    assert loaded.recipe == pipe.recipe
    assert loaded.autoencoder.recipe == autoencoder.recipe
    torch.testing.assert_close(loaded.sample(3, steps=3), pipe.sample(3, steps=3), rtol=0, atol=1e-5)


def test_the_same_vae_may_be_given_once_more(pipe, autoencoder, tmp_path):
    path, vae = save(tmp_path / "ldm.pt", pipe), save(tmp_path / "vae.pt", autoencoder)
    loaded = diffusion_book.load(path, vae=vae, **WHERE)
    torch.testing.assert_close(loaded.sample(2, steps=2), pipe.sample(2, steps=2), rtol=0, atol=1e-5)


def test_any_other_vae_is_refused(pipe, autoencoder, tmp_path):
    path = save(tmp_path / "ldm.pt", pipe)
    others = {
        "other weights": random_autoencoder(seed=1),
        "the same weights at another scale": random_autoencoder(measured=50),
        "another shape": random_autoencoder(dataclasses.replace(SMALL_VAE, channel_multipliers=(1,))),
    }
    for name, other in others.items():
        vae = save(tmp_path / "other.pt", other)
        said = refusal(diffusion_book.load, path, vae=vae, **WHERE)
        assert "is not the one that the model was trained with: leave it out" in said, name
    assert "there is no checkpoint" in refusal(diffusion_book.load, path, vae=tmp_path / "none.pt", **WHERE)
    said = refusal(diffusion_book.load, path, vae=path, **WHERE)
    assert "holds a 'ldm', not a VAE: leave out the VAE" in said


def test_a_pixel_model_given_as_the_vae_is_refused(pipe, tmp_path):
    pixels = build(Recipe("ddpm", TrainingConfig(), PIXELS, DiffusionConfig()), UNet(PIXELS).state_dict(), device="cpu")
    vae = save(tmp_path / "ddpm.pt", pixels)
    said = refusal(diffusion_book.load, save(tmp_path / "ldm.pt", pipe), vae=vae, **WHERE)
    assert "holds a 'ddpm', not a VAE" in said


def test_a_model_of_latents_needs_an_autoencoder_of_its_latents(pipe):
    tensors = pipe.network.state_dict()
    assert "'ldm' draws latents: give the VAE" in refusal(build, pipe.recipe, tensors, **WHERE)
    other = random_autoencoder(dataclasses.replace(SMALL_VAE, channel_multipliers=(1,)))
    said = refusal(build, pipe.recipe, tensors, autoencoder=other, **WHERE)
    assert "the VAE's latents are 2 x 8 x 8, the diffusion network takes 2 x 4 x 4" in said


def test_a_checkpoint_of_a_vae_is_an_autoencoder(autoencoder, tmp_path):
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    folder = tmp_path / "run"
    save(folder / "checkpoints" / "last.pt", autoencoder)
    for path in (folder, folder / "checkpoints" / "last.pt"):
        loaded = diffusion_book.load(path, **WHERE)
        assert isinstance(loaded, Autoencoder)
        assert torch.equal(loaded.encode(images), autoencoder.encode(images))


# --- Shipped weights -----------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path, monkeypatch, autoencoder, pipe):
    """A folder of weights with a VAE and a latent model, in the place of the book's own."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    weights.write_weights(
        "vae", autoencoder.network.state_dict(), {"model": "vae", "recipe": autoencoder.recipe.to_dict()}, tmp_path
    )
    card = {"model": "ldm", "recipe": pipe.recipe.to_dict(), "vae_sha256": weights.read_card("vae")["sha256"]}
    weights.write_weights("ldm", pipe.network.state_dict(), card, tmp_path)
    return tmp_path


def test_shipped_models_of_latents_use_the_shipped_vae(shelf, pipe, autoencoder):
    assert diffusion_book.list_models() == ["ldm", "vae"]
    loaded = diffusion_book.load("ldm", **WHERE)
    torch.testing.assert_close(loaded.sample(2, steps=2), pipe.sample(2, steps=2), rtol=0, atol=0.05)  # float16
    vae = diffusion_book.load("vae", **WHERE)
    assert isinstance(vae, Autoencoder)
    assert vae.card["model"] == "vae"
    given = diffusion_book.load("ldm", vae="vae", **WHERE)
    assert torch.equal(given.sample(2, steps=2), loaded.sample(2, steps=2))
    # A training on the shipped VAE remembers which one it was.
    assert loaded.autoencoder.state_dict()["sha256"] == weights.read_card("vae")["sha256"]


def test_a_shipped_model_is_not_paired_with_a_newer_vae(shelf):
    other = random_autoencoder(seed=1)
    weights.write_weights("vae", other.network.state_dict(), {"model": "vae", "recipe": other.recipe.to_dict()}, shelf)
    said = refusal(diffusion_book.load, "ldm", **WHERE)
    assert "the weights of 'ldm' belong to another VAE" in said
    assert "diffusion-book pretrain ldm" in said


def test_the_recipes_of_latent_models_are_of_one_shape():
    assert RECIPES["ldm"].is_latent
    assert not RECIPES["ddpm"].is_latent
    network = RECIPES["ldm"].network
    assert RECIPES["vae"].vae.latent_shape == (network.in_channels, network.image_size, network.image_size)
    assert (SMALL_UNET.in_channels, SMALL_UNET.image_size) == (2, 4)


def test_a_folder_of_that_name_does_not_hide_a_shipped_model(shelf, tmp_path, monkeypatch):
    """A reader's folder `vae` is no reason to forget the weights that come with the book."""
    (tmp_path / "here" / "vae").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert isinstance(diffusion_book.load("vae", **WHERE), Autoencoder)
    assert diffusion_book.load("ldm", vae="vae", **WHERE).card["model"] == "ldm"


def test_models_that_need_no_vae_refuse_one(shelf, autoencoder, tmp_path):
    path = save(tmp_path / "vae.pt", autoencoder)
    assert "'vae' works without a VAE: leave it out" in refusal(diffusion_book.load, "vae", vae=path, **WHERE)
