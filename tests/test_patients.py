"""The patients of chapter 9: each was trained with its fault, from the shipped model, and is used to it."""

import pytest
import torch
from torch.testing import assert_close

from diffusion_book import data
from diffusion_book.evaluation import oracles, patients
from diffusion_book.models import weights
from diffusion_book.models.pipelines import load
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.schedules import cosine
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS

PICTURES = data.load("digits").first(300)
every_patient = pytest.mark.parametrize("name", patients.FAULTS)


@pytest.fixture(scope="module")
def parent():
    return load(patients.PARENT, device="cpu", precision="fp32")


def loss(network, fault, parent) -> float:
    """On what a model with this fault is trained on."""
    moments = fault.data(parent.autoencoder, PICTURES).moments
    with torch.no_grad():
        return fault.loss_of(parent)(network, moments, None, torch.Generator().manual_seed(0)).mean().item()


@every_patient
def test_a_patient_is_used_to_its_fault(parent, name):
    patient, fault = patients.load_patient(name, parent), patients.FAULTS[name]
    assert loss(patient.network, fault, parent) < 0.95 * loss(parent.network, fault, parent)
    assert loss(patient.network, patients.Fault(), parent) > 1.05 * loss(parent.network, patients.Fault(), parent)
    assert patient.autoencoder is parent.autoencoder
    assert patient.sample(2, steps=2).isfinite().all()


@every_patient
def test_a_card_tells_how_the_patient_was_made(name):
    card = weights.read_card(patients.FAULTS[name].file, patients.folder())
    assert (card["fault"], card["data_set"]) == (name, "mnist")
    assert card["steps"] > 500
    assert card["command"].startswith(f"python benchmarks/patients.py '{name}' --minutes")


def test_a_patient_of_other_weights_is_refused(parent, monkeypatch):
    read = weights.read_card
    monkeypatch.setattr(
        weights, "read_card", lambda name, *where: read(name, *where) | ({} if where else {"sha256": "of another"})
    )
    with pytest.raises(BookError, match=r"trained from other weights of 'ldm' .* python benchmarks/patients.py"):
        patients.load_patient("no scale", parent)


def test_an_unknown_patient_is_refused(parent):
    with pytest.raises(BookError, match="unknown patient 'flu': choose one of noise twice"):
        patients.load_patient("flu", parent)


def test_noise_drawn_twice_leaves_a_loss_even_to_a_network_that_knows_the_answer():
    """The usual loss would be 0. Two noises differ by N(0, 2), of which alpha^2 reaches the target."""
    picture = torch.zeros(2, 4, 4)
    moments = torch.cat([picture, torch.full_like(picture, -30.0)]).expand(20_000, 4, 4, 4)
    network = oracles.knowing_network(picture, cosine, TARGETS["v"])
    found = patients.noise_twice(network, moments, None, torch.Generator().manual_seed(0)).mean().item()
    alpha, _ = cosine(torch.linspace(0, 1, 10_001, dtype=torch.float64))
    assert found == pytest.approx(2 * alpha.square().mean().item(), rel=0.03)


def test_latents_without_scale_are_those_of_the_bare_network(parent):
    vae = parent.autoencoder
    images = data.normalise(PICTURES.images[:20])
    found = DiagonalGaussian.from_moments(patients.without_scale(vae, PICTURES).moments[:20])
    scaled = vae.posterior(images)
    shift, scale = (value[:, None, None] for value in (vae.network.latent_mean, vae.network.latent_std))
    assert_close(found.mean, scaled.mean.cpu() * scale + shift, rtol=1e-3, atol=1e-3)
    assert_close(found.std, scaled.std.cpu() * scale.expand_as(scaled.std), rtol=1e-3, atol=1e-4)


def test_grey_pictures_are_what_the_encoder_gets(parent):
    images = (data.normalise(PICTURES.images[:20]) + 1) / 2
    moments = patients.of_grey(parent.autoencoder, PICTURES).moments
    assert_close(moments[:20], parent.autoencoder.posterior(images).moments.cpu(), rtol=1e-4, atol=1e-4)
    assert len(moments) == len(PICTURES)
