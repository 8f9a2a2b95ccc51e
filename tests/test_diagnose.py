"""The command that finds faults must find those that are there, and no others."""

import copy
import dataclasses
import json

import pytest
import torch
from commands import refused
from tiny import SMALL_UNET, SMALL_VAE, random_class_pipeline, random_latent_pipeline, random_vae

from diffusion_book import data
from diffusion_book.cli import diagnose
from diffusion_book.cli.main import main, parse
from diffusion_book.evaluation import clinic, diagnosis
from diffusion_book.evaluation.diagnosis import Embeddings, Losses, Way
from diffusion_book.evaluation.findings import Diagnosis, findings, report
from diffusion_book.models.autoencoder import build_autoencoder
from diffusion_book.models.checkpoints import save_checkpoint
from diffusion_book.models.pipelines import build_network
from diffusion_book.models.recipes import ELBOConfig, Recipe, TrainingConfig
from diffusion_book.networks.gaussian import DiagonalGaussian
from diffusion_book.networks.unet import UNet
from diffusion_book.training.models import KINDS, set_latent_scale

CPU = ["--device", "cpu", "--precision", "fp32"]
FAST = ["--num_samples", "10", "--sampling_steps", "2", "--ddpm_steps", "3", "--num_pictures", "128", *CPU]
FAULTS = {
    "ignored labels": "the labels are ignored",
    "equal embeddings": "they are all the same",
    "equal branches": "guidance can do nothing",
    "null without gradient": "gives the null class a gradient of 0",
    "null untrained": "no more than a wrong label, as one that was never trained",
    "dead layer": "The gradient is exactly 0 in",
    "not finite": "hold numbers that are not finite",
    "latents": "The data's latents have standard deviation",
    "nothing learned": "has learned next to nothing",
}


def patterns(number=600):
    """Pictures of ten classes that are easy to tell apart: a bright block, somewhere else in each class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(number) % 10
    images = torch.zeros(number, 1, 28, 28, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 14 * (label // 5), 5 * (label % 5)
        image[:, top : top + 14, left : left + 8] = int(torch.randint(120, 256, (), generator=generator))
    return data.Dataset("digits", images, labels)


def trained(pipe, steps=200):
    """The same pipeline after a short training on the patterns."""
    batch = diagnosis.training_batch(pipe, patterns(), 600)
    loss = KINDS[pipe.recipe.kind].loss(pipe.recipe)
    torch.manual_seed(0)
    network = build_network(pipe.recipe).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(len(batch.images), (64,), generator=generator)
        optimizer.zero_grad()
        loss(network, batch.images[index], batch.labels[index], generator).mean().backward()
        optimizer.step()
    return dataclasses.replace(pipe, network=network.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def autoencoder():
    """An encoder that has learned nothing, but is sure of what it says and knows the scale of the patterns."""
    network = random_vae()
    with torch.no_grad():
        for parameter in network.encoder.conv_out.parameters():
            parameter[2:] = 0  # the log-variances' half
        network.encoder.conv_out.bias[2:] = -8
    set_latent_scale(network, patterns())
    recipe = Recipe("vae", TrainingConfig(dataset="digits"), vae=SMALL_VAE, elbo=ELBOConfig())
    return build_autoencoder(recipe, network.state_dict(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def concat(autoencoder):
    """A small model with classes that was trained for some seconds."""
    return trained(random_class_pipeline(autoencoder, "ldm-concat", timesteps=50, unconditional_probability=0.2))


@pytest.fixture(scope="module")
def attending(autoencoder):
    """The same with cross-attention."""
    return trained(
        random_class_pipeline(autoencoder, "ldm-cross-attention", timesteps=50, unconditional_probability=0.2)
    )


def save(pipe, path):
    state = pipe.autoencoder.state_dict() if pipe.autoencoder else None
    return save_checkpoint(
        path, {"recipe": pipe.recipe.to_dict(), "ema": pipe.network.state_dict(), "autoencoder": state}
    )


def command(pipe, tmp_path, monkeypatch):
    """The folder of the command, and the text of its report."""
    path = save(pipe, tmp_path / "checkpoint.pt")
    monkeypatch.setattr(data, "load", lambda *_, **__: patterns())
    main(["diagnose", pipe.recipe.model, "--checkpoint", str(path), "--output_dir", str(tmp_path / "out"), *FAST])
    (folder,) = (tmp_path / "out").iterdir()
    return folder, (folder / "report.txt").read_text()


def looked_at(pipe):
    """The text of the report, of all that needs no samples."""
    options = diagnose.Diagnose(sampling_steps=3)
    return report(
        "", findings(diagnose.measure_within(pipe, diagnosis.training_batch(pipe, patterns(), 200), options, 0))
    )


def faults_in(text):
    """Which of the known faults the part of the report on what is not healthy names."""
    ill = text.partition("Not healthy (")[2].partition("\nHealthy (")[0]
    return {name for name, sentence in FAULTS.items() if sentence in ill}


def broken(pipe, change):
    """A copy whose network was changed by hand."""
    network = copy.deepcopy(pipe.network)
    with torch.no_grad():
        change(network)
    return dataclasses.replace(pipe, network=network)


def all_equal(network):
    network.classes.table.copy_(network.classes.table[:1].expand_as(network.classes.table))


def reset_null(network):
    shape = network.classes.table[-1].shape
    network.classes.table[-1] = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def kill(network):
    for parameter in network.unet.middle[0].residual.conv2.parameters():
        parameter.zero_()  # what stands before it gets no gradient


def spoil(network):
    network.unet.conv_in.weight[0, 0, 0, 0] = torch.nan


# A healthy model


@pytest.mark.parametrize("name", ["concat", "attending"])
def test_a_healthy_model_has_no_fault(name, request, tmp_path, capsys, monkeypatch):
    pipe = request.getfixturevalue(name)
    folder, text = command(pipe, tmp_path, monkeypatch)
    assert not faults_in(text), text
    assert "the labels are heard" in text
    assert capsys.readouterr().out == f"{text}{folder}\n"  # the folder last
    expected = [
        "report.txt",
        "report.json",
        "samples.png",
        "gradients.png",
        "embeddings.png",
        "embedding_norms.png",
        "branches.png",
    ]
    expected += [f"samples_{way}.png" for way in ("ddim", "ddpm", "conditional", "unconditional")]
    expected += ["attention.png"] if name == "attending" else []
    assert {path.name for path in folder.iterdir()} == set(expected)
    values = json.loads((folder / "report.json").read_text())
    assert len(values["measured"]["embeddings"]["norms"]) == 11
    assert all(each["text"] in text for each in values["findings"])


# Models broken on purpose


def test_equal_embeddings(concat):
    text = looked_at(broken(concat, all_equal))
    assert {"ignored labels", "equal embeddings", "equal branches"} <= faults_in(text), text
    assert "embeddings of two classes lie 0.00 of their norm apart" in text


def test_null_class_that_was_never_trained(autoencoder):
    model = random_class_pipeline(autoencoder, "ldm-concat", timesteps=50, unconditional_probability=0.0)
    text = looked_at(trained(model))
    assert "null without gradient" in faults_in(text), text
    assert faults_in(text) <= {"null without gradient", "null untrained"}


def test_null_class_that_was_reset(concat):
    text = looked_at(broken(concat, reset_null))
    assert faults_in(text) == {"null untrained"}, text


def test_dead_layer(concat):
    text = looked_at(broken(concat, kill))
    assert faults_in(text) == {"dead layer"}, text
    assert "unet.middle.0.residual.norm1, unet.middle.0.residual.conv1" in text


def test_weights_that_are_not_finite(concat, tmp_path, monkeypatch):
    folder, text = command(broken(concat, spoil), tmp_path, monkeypatch)
    assert faults_in(text) == {"not finite"}
    assert "the first is unet.conv_in.weight" in text
    assert {path.name for path in folder.iterdir()} == {"report.txt", "report.json"}


def test_wrong_latent_scale(concat):
    network = copy.deepcopy(concat.autoencoder.network)
    network.latent_std.mul_(3)
    autoencoder = dataclasses.replace(concat.autoencoder, network=network)
    text = looked_at(dataclasses.replace(concat, autoencoder=autoencoder))
    assert "latents" in faults_in(text)
    assert "standard deviation 0.33, 0.33" in text


@pytest.fixture(scope="module")
def collapsed(autoencoder):
    """An encoder that says the same of every picture: the prior."""
    network = copy.deepcopy(autoencoder.network)
    with torch.no_grad():
        for parameter in network.encoder.conv_out.parameters():
            parameter.mul_(0)
    set_latent_scale(network, patterns())
    return dataclasses.replace(autoencoder, network=network)


def test_posterior_collapse_is_named_by_both_who_look_for_faults(collapsed):
    pipe = random_class_pipeline(collapsed, timesteps=50)
    (fault,) = clinic.faults(clinic.examine(pipe, data.crop(patterns().batch(torch.arange(64))[0])))
    assert fault.subject == "posterior collapse"
    ill = looked_at(pipe).partition("\nHealthy (")[0]
    assert "- posterior collapse: Of the latents' variance by channel, 0.00, 0.00 lies between pictures" in ill
    assert "latent scale" not in looked_at(pipe)
    assert fault.advice in ill
    assert "smaller --kl_weight (the book's is 1e-06)" in fault.advice


def test_the_share_that_is_told_is_that_of_the_law_of_total_variance():
    """Means of variance v and posteriors of variance s: the share is v / (v + s)."""
    means = (
        torch.randn(50_000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
        * torch.tensor([3.0, 0.5])[:, None, None]
    )
    posterior = DiagonalGaussian(means, torch.tensor([1.0, 4.0]).log()[:, None, None].expand_as(means))
    assert diagnosis.share_told(posterior) == pytest.approx([9 / 10, 0.25 / 4.25], rel=0.03)


def test_an_autoencoder_is_diagnosed_too(collapsed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *_, **__: patterns())
    state = {"recipe": collapsed.recipe.to_dict(), "ema": collapsed.network.state_dict()}
    path = save_checkpoint(tmp_path / "vae.pt", state)
    main(["diagnose", "vae", "--checkpoint", str(path), "--output_dir", str(tmp_path / "out"), *CPU])
    said = capsys.readouterr().out
    assert "posterior collapse" in said
    assert "reconstructions: The squared error of reconstructions is" in said
    (folder,) = (tmp_path / "out").iterdir()
    assert {file.name for file in folder.iterdir()} == {"report.txt", "report.json", "reconstructions.png"}


def test_the_shipped_autoencoder_brings_digits_back_that_it_never_saw(tmp_path, capsys):
    main(["diagnose", "vae", "--dataset", "digits", "--output_dir", str(tmp_path), *CPU])
    well = capsys.readouterr().out.partition("Healthy (")[2]
    assert {"weights", "latent scale", "reconstructions"} == {
        line.split(":")[0][4:] for line in well.splitlines() if line.startswith("  - ")
    }


def test_model_that_learned_nothing(autoencoder):
    assert "nothing learned" in faults_in(looked_at(random_class_pipeline(autoencoder, timesteps=50)))


def test_model_of_latents_without_classes(autoencoder, tmp_path, monkeypatch):
    folder, text = command(trained(random_latent_pipeline(autoencoder, timesteps=50)), tmp_path, monkeypatch)
    assert not faults_in(text), text
    subjects = {each["subject"] for each in json.loads((folder / "report.json").read_text())["findings"]}
    assert subjects == {"weights", "latent scale", "loss", "gradient", "samples", "samplers"}
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "report.txt",
        "report.json",
        "samples.png",
        "samples_ddim.png",
        "samples_ddpm.png",
        "gradients.png",
    }


def test_model_of_pictures(autoencoder):
    config = dataclasses.replace(SMALL_UNET, in_channels=1, image_size=32, patch_size=4)
    latent = random_latent_pipeline(autoencoder, timesteps=50)
    recipe = dataclasses.replace(latent.recipe, model="ddpm", network=config, is_latent=False)
    pipe = trained(dataclasses.replace(latent, recipe=recipe, network=UNet(config), autoencoder=None), steps=40)
    text = looked_at(pipe)
    assert not faults_in(text), text
    assert "latents" not in text


# The measurements


def test_gradient_is_the_training_loss_own(concat):
    batch = diagnosis.training_batch(concat, patterns(64), 64)
    norms = diagnosis.gradient_norms(concat, batch)
    network = copy.deepcopy(concat.network).requires_grad_(True).train()
    loss = KINDS[concat.recipe.kind].loss(concat.recipe)
    loss(network, batch.images, batch.labels, torch.Generator().manual_seed(0)).mean().backward()
    found = torch.cat([each.grad.flatten() for each in network.unet.conv_in.parameters()])
    assert norms["unet.conv_in"] == pytest.approx(found.square().mean().sqrt().item(), rel=1e-4)
    assert norms["no class"] == pytest.approx(network.classes.table.grad[-1].square().mean().sqrt().item(), rel=1e-4)
    assert not any(parameter.requires_grad for parameter in concat.network.parameters())  # the model is left alone


def test_branches_differ_as_their_predictions_do(concat):
    labels = torch.arange(4)
    times, shares = diagnosis.branch_difference(concat, labels, steps=3)
    assert len(times) == len(shares) == 3
    assert times[0] == 1.0
    x, t = concat.noise(4), torch.tensor(1.0, dtype=torch.float64)
    first, second = (concat.denoiser(x, t, labels=each).eps for each in (labels, torch.full((4,), -1)))
    expected = ((first - second).flatten(1).norm(dim=1) / second.flatten(1).norm(dim=1)).mean().item()
    assert shares[0] == pytest.approx(expected, rel=1e-5)


def test_entropy_of_even_attention_is_one(autoencoder):
    pipe = random_class_pipeline(autoencoder, "ldm-cross-attention", timesteps=50)
    batch = diagnosis.training_batch(pipe, patterns(16), 16)

    def even(network):
        for name, module in network.named_modules():
            if name.endswith("cross_attention"):
                module.query.weight.zero_()
                module.query.bias.zero_()

    values = diagnosis.attention_entropy(broken(pipe, even), batch)
    assert values
    assert all(value == pytest.approx(1.0) for value in values.values())
    assert all(value < 0.999 for value in diagnosis.attention_entropy(pipe, batch).values())


def test_embeddings_of_a_known_table():
    points = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    found = Embeddings(torch.cdist(points, points), points.norm(dim=1))
    assert found.between == pytest.approx(5 / 3.5)
    assert found.to_null == [3.0, 4.0]
    assert found.nearest == [(0, 1, 5.0)]


# The sentences


def ill(**measured):
    return [each for each in findings(Diagnosis(**measured)) if not each.healthy]


def test_each_fault_has_a_sentence_and_an_advice():
    ddim = Way("ddim", 50, 3.0, confident=0.95, accuracy=0.95)
    worse = dataclasses.replace(ddim, sampler="ddpm", steps=1000, confident=0.7)
    cases = {
        "samplers": {"ways": {"DDIM": ddim, "DDPM": worse}},
        "guidance": {"ways": {"DDIM": ddim, "conditional": dataclasses.replace(ddim, accuracy=1.01)}},
        "classes drawn": {"ways": {"DDIM": dataclasses.replace(ddim, accuracy=0.5)}},
        "samples": {"ways": {"DDIM": dataclasses.replace(ddim, confident=0.5)}},
        "attention": {"entropy": {"a": 0.999, "b": 0.998}},
        "gradient": {"gradients": {"a": 1.0, "b": 1e-7, "c": 1.0}},
        "null class": {"losses": Losses(zero=1.0, true=0.4, none=0.49, wrong=0.5)},
        "latent scale": {"latents": ([0.0, 0.5], [1.0, 1.0])},
    }
    for subject, measured in cases.items():
        (found,) = ill(**measured)
        assert found.subject == subject
        assert found.advice
        assert found.advice in report("title", [found])
    assert not ill(ways={"DDIM": ddim, "DDPM": dataclasses.replace(ddim, sampler="ddpm", confident=0.9)})
    assert not ill(losses=Losses(zero=1.0, true=0.4, none=0.43, wrong=0.5))


def test_samples_that_are_not_numbers_are_said_so():
    way = diagnosis.judge(Way("ddim", 2, None), torch.full((10, 1, 28, 28), torch.nan), None, 0, True)
    (found,) = ill(ways={"DDIM": way})
    assert "not finite numbers" in found.text


# The options


def test_names_of_the_original_are_understood():
    words = ["--unet_checkpoint", "a.pt", "--vae_checkpoint", "b.pt", "--class_label", "7", "--output_dir", "c"]
    own = ["--checkpoint", "a.pt", "--vae", "b.pt", "--class-label", "7", "--output-dir", "c"]
    read = [parse(diagnose.Diagnose, each, "diagnose", "", diagnose.Diagnose()) for each in (words, own)]
    assert read[0] == read[1] != diagnose.Diagnose()


def test_refuses_what_it_cannot_do(concat, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    name = concat.recipe.model
    save(concat, path)
    out = ["--output_dir", tmp_path / "out"]
    own = ["diagnose", name, "--checkpoint", path, *CPU, *out]
    assert "unknown model 'gan'" in refused(capsys, "diagnose", "gan")
    assert "no checkpoint" in refused(capsys, "diagnose", name, "--checkpoint", tmp_path / "none.pt", *out)
    assert f"holds a '{name}'" in refused(capsys, "diagnose", "ldm", "--checkpoint", path, *out)
    assert "--class_label is 10" in refused(capsys, *own, "--class_label", 10)
    assert "--num_samples" in refused(capsys, *own, "--num_samples", 3)
    assert "steps" in refused(capsys, *own, "--ddpm_steps", 51)
    assert "unknown" in refused(capsys, *own, "--dataset", "letters")
    assert not (tmp_path / "out").exists()


def test_help_tells_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", "--help"])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "ldm-cross-attention" in said
    assert "--class_label" in said.replace("-label", "_label")
