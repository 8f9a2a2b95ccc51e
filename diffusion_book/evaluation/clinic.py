"""Name what ails a diffusion model whose samples are bad, from its pipeline.

A trained network is asked under several suppositions of what may be wrong, and the one under which it finds the
picture best is the diagnosis. A loss, a sampler and guidance are examined in `evaluation.oracles`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_book.data import Dataset, pad
from diffusion_book.evaluation.diagnosis import broken_weights, share_told
from diffusion_book.evaluation.findings import LATENT_MEAN, LATENT_STD, LEARNED, TOLD, Finding, collapse, finding
from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks.conditioning import NO_CLASS
from diffusion_book.samplers import log_ratio
from diffusion_book.schedules import SCHEDULES, add_noise, expand, rectified
from diffusion_book.system.errors import BookError
from diffusion_book.targets import TARGETS, Target, prediction, target_value
from diffusion_book.training.latents import LatentDataset
from diffusion_book.training.losses import Loss
from diffusion_book.training.trainer import Trainer

TIMES = (0.2, 0.4, 0.6, 0.8)  # where a network is questioned
BETTER = 0.96  # a supposition is believed where the error of x0 falls below this share of that without it
NEAR, NEARER = 0.6, 0.5  # a first guess is that of other data if it is so near to their mean, and so much nearer
STALE = 1.05  # loss of the average over that of the last weights, from which the average is stale
SLACK = 1.25  # further room for the latents' limits: the pictures may be of another hand than the training's

NOTHING = "as it is"
"""the supposition that nothing is wrong"""


UNSEEN = (
    "a clamped state, a wrong time and a wrong start in the sampler: oracles.examine_sampler",
    "the sign of guidance: oracles.examine_guidance",
    "a stale average, unless the last weights are given",
    "a wrong time that hardly matters: off by less than about 0.02 for pictures, 0.1 for latents",
)
"""what `examine` cannot see, and who can"""


@dataclass(frozen=True)
class Supposition:
    """Something that may be wrong with a network, as the question to which it would then give the right answer.

    Attributes:
        told: time -> the time that the network must be told.
        read: (output, x_t, alpha, sigma) -> x0.
        text, advice: what is said if it is the best.
    """

    told: Callable[[Tensor], Tensor]
    read: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    text: str = ""
    advice: str = ""


def suppositions(pipe: Pipeline) -> dict[str, Supposition]:
    """Name -> supposition; the first, `NOTHING`, is that nothing is wrong."""
    config = pipe.recipe.diffusion
    own = TARGETS[config.target]

    def read_as(target: Target, sign: float = 1.0):
        return lambda output, x_t, alpha, sigma: prediction(target, sign * output, x_t, alpha, sigma).x0

    def without_noise(output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output / expand(own(alpha, sigma)[0], output)

    tried = {NOTHING: Supposition(lambda t: t, read_as(own))}
    tried["flipped sign"] = Supposition(
        lambda t: t,
        read_as(own, -1.0),
        "Read with the other sign",
        "The network learned the negative of what the sampler reads: compare the sign in the loss with the sampler's, "
        "and which way time runs in each.",
    )
    for name, target in TARGETS.items():
        if name != config.target:
            tried[f"target {name}"] = Supposition(
                lambda t: t,
                read_as(target),
                f"Read as '{name}' and not as '{config.target}'",
                f"Set the target to '{name}', or train with '{config.target}'.",
            )
    if (own(torch.ones(1), torch.ones(1))[0] != 0).all():  # of a target that is noise alone nothing would be left
        tried["unrelated noise"] = Supposition(
            lambda t: t,
            without_noise,
            f"Read as '{config.target}' without its noise",
            "The noise in the target was not the noise that was mixed in: draw it once, and use it in both places.",
        )
    clocks = _shifted_clocks() | _other_clocks(config.timesteps) | _other_schedules(config.schedule)
    for name, told in clocks.items():
        tried[f"wrong time, {name}"] = Supposition(
            told,
            read_as(own),
            f"Told another time ({name})",
            "The state has another time than the network is told: compare the index into alpha and sigma with the "
            "time that is handed to the network, in the loss and in the sampler.",
        )
    return tried


def _shifted_clocks() -> dict[str, Callable[[Tensor], Tensor]]:
    shifts = (0.02, 0.05, 0.1)
    later = {f"later by {shift:g}": lambda t, shift=shift: t + shift for shift in shifts}
    return later | {f"earlier by {shift:g}": lambda t, shift=shift: (t - shift).clamp(min=0) for shift in shifts}


def _other_clocks(timesteps: int) -> dict[str, Callable[[Tensor], Tensor]]:
    factors = {f"{timesteps:,} times": timesteps, f"1/{timesteps:,} of it": 1 / timesteps, "20 times": 20}
    scaled = {name: lambda t, factor=factor: t * factor for name, factor in factors.items()}
    return scaled | {"1/20 of it": lambda t: t / 20, "backwards, 1 - t": lambda t: 1 - t}


def _other_schedules(own: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Times at which another variance preserving schedule has as much noise."""
    if SCHEDULES[own] is rectified:
        return {}
    fine = torch.linspace(1e-4, 1, 10_001, dtype=torch.float64)
    clocks = {}
    for name, schedule in SCHEDULES.items():
        if name != own and schedule is not rectified:
            rising = -log_ratio(schedule, fine)

            def told(t: Tensor, rising: Tensor = rising) -> Tensor:
                wanted = -log_ratio(SCHEDULES[own], t.cpu())
                return fine[torch.searchsorted(rising, wanted).clamp(max=len(fine) - 1)].to(t)

            clocks[f"that of the {name} schedule"] = told
    return clocks


@dataclass(frozen=True)
class Patient:
    """A network and clean data as it should know them.

    Attributes:
        pipe: what it belongs to.
        network: of the pipeline, or another one with the same recipe; in full precision.
        x0: (B, *pipe.shape): pictures in [-1, 1], or latents.
        condition: labels, for a network with classes.
    """

    pipe: Pipeline
    network: nn.Module
    x0: Tensor
    condition: dict[str, Tensor]

    @property
    def target(self) -> Target:
        """What the recipe says that it predicts."""
        return TARGETS[self.pipe.recipe.diffusion.target]

    @torch.no_grad()
    def answer(self, t: float, told: Callable[[Tensor], Tensor], seed: int) -> tuple[Tensor, ...]:
        """Add noise for time t, and ask with the time `told(t)`: (output, x_t, eps, alpha, sigma)."""
        times = torch.full((len(self.x0),), t, dtype=torch.float64, device=self.x0.device)
        eps = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(seed)).to(self.x0)
        x_t = add_noise(self.pipe.schedule, self.x0, eps, times)
        output = self.network(x_t, told(times).to(x_t), **self.condition).float()
        return output, x_t, eps, *self.pipe.schedule(times)


def admit(pipe: Pipeline, images: Tensor, labels: Tensor | None = None, network: nn.Module | None = None) -> Patient:
    """Pictures (B, 1, 28, 28) or (B, 1, 32, 32) in [-1, 1], as what the pipeline's network works on.

    Raises:
        BookError: not such pictures, fewer than 8, or labels that the model does not know.
    """
    if len(images) < 8 or not images.is_floating_point():
        raise BookError(f"{len(images)} pictures of type {images.dtype}: give at least 8, as floats")
    if pipe.autoencoder is None:
        images = pad(images) if images.shape[-1] == 28 else images
        if tuple(images.shape[1:]) != pipe.shape:
            forms = dict.fromkeys((pipe.recipe.picture_shape, pipe.shape))
            allowed = " or ".join(f"(B, {', '.join(map(str, form))})" for form in forms)
            raise BookError(f"pictures of shape {tuple(images.shape)}: they must be {allowed}")
    x0 = images if pipe.autoencoder is None else pipe.autoencoder.encode(images)
    condition = {}
    if pipe.num_classes:
        request = pipe.ask(len(images), NO_CLASS if labels is None else labels, steps=1)
        condition["labels"] = request.labels.to(pipe.device)
    network = copy.deepcopy(pipe.network if network is None else network).float().eval()
    return Patient(pipe, network, x0.to(pipe.device).float(), condition)


def differential(patient: Patient, seed: int = 0) -> dict[str, float]:
    """How well the network finds x0 under each supposition: the error as a share of that of `NOTHING`.

    Shares at the single `TIMES` are averaged as logarithms, so that each time counts alike.
    """
    ratios, plain = {}, None
    for name, supposed in suppositions(patient.pipe).items():
        errors = []
        for t in TIMES:
            output, x_t, _, alpha, sigma = patient.answer(t, supposed.told, seed)
            error = (supposed.read(output, x_t, alpha, sigma) - patient.x0).double().square().mean()
            errors.append(error.clamp(min=1e-12).log().nan_to_num(nan=math.inf))
        logarithm = torch.stack(errors).mean().item()
        plain = logarithm if plain is None else plain
        ratios[name] = math.exp(min(logarithm - plain, 50.0))
    return ratios


def loss_share(patient: Patient, seed: int = 0) -> float:
    """The squared error of the output at `TIMES`, as a share of that of a network which always says 0."""
    error = nothing = 0.0
    for t in TIMES:
        output, _, eps, alpha, sigma = patient.answer(t, lambda t: t, seed)
        wanted = target_value(patient.target, patient.x0, eps, alpha, sigma)
        error += (output - wanted).double().square().mean().item()
        nothing += wanted.double().square().mean().item()
    return error / nothing


def loss_by_time(patient: Patient, times: Sequence[float], seed: int = 0) -> Tensor:
    """The loss at each time, over that of the best output that does not look at x_t: a_t E[x0], the mean of the target.

    0 would be a network that knows the answer, 1 one that has learned nothing. What is healthy depends on the data and on
    the time, so compare with healthy networks of the same data.

    Args:
        patient: see `admit`.
        times: 0 < t <= 1.
        seed: of the noise.

    Returns:
        (T,), float64.
    """
    found = []
    for t in times:
        output, _, eps, alpha, sigma = patient.answer(float(t), lambda t: t, seed)
        wanted = target_value(patient.target, patient.x0, eps, alpha, sigma)
        mean = expand(patient.target(alpha, sigma)[0], patient.x0) * patient.x0.mean(0)
        found.append((output - wanted).double().square().mean() / (wanted - mean).double().square().mean())
    return torch.stack(found).cpu()


def train_on(
    pipe: Pipeline,
    loss: Loss,
    dataset: Dataset | LatentDataset,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    ema_decay: float = 0.97,
    max_minutes: float | None = None,
) -> tuple[Pipeline, list[float]]:
    """Go on training a copy of a model, with a loss or with data that may be faulty.

    Args:
        pipe: stays as it is.
        loss: as the trainer wants it.
        dataset: as the loss wants it.
        steps: of training, rounded to whole passes over the data.
        batch_size, lr, ema_decay: of the training.
        max_minutes: after which it ends, even if steps are left.

    Returns:
        A pipeline with the averaged weights, and the loss of each step.
    """
    config = TrainingConfig(
        epochs=max(1, round(steps * batch_size / len(dataset))),
        batch_size=batch_size,
        lr=lr,
        warmup_steps=10,
        cooldown=0.5,
        ema_decay=ema_decay,
    )
    network = copy.deepcopy(pipe.network).float().requires_grad_(True)
    trainer = Trainer(network, loss, dataset, config, max_minutes=max_minutes)
    losses = [report.loss for report in trainer.steps()]
    return dataclasses.replace(pipe, network=trainer.ema.network.eval()), losses


@torch.no_grad()
def first_guess(patient: Patient, seed: int = 0) -> Tensor:
    """What the network guesses where there is nothing but noise: the mean of what it was trained on, (*pipe.shape)."""
    t = 1.0 if patient.target is not TARGETS["noise"] else 0.9  # from noise alone, no picture follows at t = 1
    times = torch.full((len(patient.x0),), t, dtype=torch.float64, device=patient.x0.device)
    noise = torch.randn(patient.x0.shape, generator=torch.Generator().manual_seed(seed)).to(patient.x0)
    alpha, sigma = patient.pipe.schedule(times)
    x_t = noise if t == 1.0 else expand(alpha, noise) * patient.x0 + expand(sigma, noise) * noise
    output = patient.network(x_t, times.to(x_t), **patient.condition).float()
    return prediction(patient.target, output, x_t, alpha, sigma).x0.mean(0)


def examine(
    pipe: Pipeline, images: Tensor, labels: Tensor | None = None, *, last: nn.Module | None = None
) -> list[Finding]:
    """Look for what a pipeline can carry: one fault at a time, for each look presupposes those before it.

    In this order: weights that are no numbers, pictures or training data in another range, latents without their
    scale, a wrong sign, target or time, noise that is not the target's, a network that has learned nothing, and a
    stale average. What it cannot see is in `UNSEEN`.

    Args:
        pipe: a diffusion model.
        images: clean pictures as the training should have seen them, (B, 1, 28, 28) or (B, 1, 32, 32), in [-1, 1];
            some dozens.
        labels: their classes, (B,), for a model that knows classes; without them it is asked without.
        last: the network as its training left it, if what `pipe` holds is an average of it.

    Returns:
        What was looked at, healthy or not. The last is the only one that can be unhealthy.

    Raises:
        BookError: no pictures of this shape.
    """
    findings: list[Finding] = []
    for look in (_weights, _range, _latents):
        findings += look(pipe, images)
        if faults(findings):
            return findings
    patient = admit(pipe, images, labels)
    looks = [_world]
    if pipe.recipe.diffusion.time_sampling != "last":  # a one-step model answers at t = 1 alone
        looks.append(_questions)
        if last is not None:
            looks.append(lambda patient, images: stale_average(patient, admit(pipe, images, labels, last)))
        looks.append(_learned)
    for look in looks:
        findings += look(patient, images)
        if faults(findings):
            break
    return findings


def faults(findings: list[Finding]) -> list[Finding]:
    """Those that are not healthy."""
    return [each for each in findings if not each.healthy]


def verdict(findings: list[Finding]) -> str:
    """The faults in a line each, or "nothing found"."""
    return "\n".join(f"{each.subject}: {each.text} {each.advice}" for each in faults(findings)) or "nothing found"


def _weights(pipe: Pipeline, images: Tensor) -> list[Finding]:
    broken = broken_weights(pipe.network)
    text = f"{len(broken)} tensors of the network hold numbers that are not finite (there must be none)."
    return [finding("weights", not broken, text, "Go back to a checkpoint from before they appeared.")]


def _range(pipe: Pipeline, images: Tensor) -> list[Finding]:
    low, high = images.min().item(), images.max().item()
    text = f"The pictures lie between {low:.3g} and {high:.3g} (it must be -1 and 1)."
    healthy = -1.01 <= low < -0.5 and low + 0.5 < high <= 1.01
    if low == high:
        return [finding("data range", False, text, "They show nothing: give clean pictures of the training data.")]
    advice = "Bring them to [-1, 1] first: data.normalise does it for bytes, 2 x - 1 for pictures in [0, 1]."
    return [finding("data range", healthy, text, advice)]


def _latents(pipe: Pipeline, images: Tensor) -> list[Finding]:
    if pipe.autoencoder is None:
        return []
    posterior = pipe.autoencoder.posterior(images)
    told = share_told(posterior)
    if min(told) < TOLD:
        return [collapse(told)]
    latents = posterior.mode.double()
    std, mean = latents.std(dim=(0, 2, 3)), latents.mean(dim=(0, 2, 3))
    low, high, off = LATENT_STD[0] / SLACK, LATENT_STD[1] * SLACK, LATENT_MEAN * SLACK
    healthy = bool(((std >= low) & (std <= high) & (mean.abs() <= off)).all())
    text = (
        f"The latents have standard deviation {_list(std)} and mean {_list(mean)} by channel; the schedule expects 1 "
        f"and 0 (limits {low:.2g} to {high:.2g}, and {off:.2g} from 0)."
    )
    advice = "The latents' scale is missing: measure mean and standard deviation, and use both to encode and to decode."
    return [finding("latent scale", healthy, text, advice)]


def _world(patient: Patient, images: Tensor) -> list[Finding]:
    """Is the mean of what the network knows that of the data, or of the data in another form?"""
    pipe = patient.pipe
    if pipe.autoencoder is None:
        worlds = {"data range": (patient.x0 + 1) / 2}
    else:
        vae = pipe.autoencoder.network
        mean, std = (value.to(patient.x0)[:, None, None] for value in (vae.latent_mean, vae.latent_std))
        half = pipe.autoencoder.encode((images + 1) / 2)
        worlds = {"data range": half, "latent scale": patient.x0 * std + mean}
    guess = first_guess(patient)
    own = distance(guess, patient.x0.mean(0))
    away = {name: distance(guess, world.to(guess).mean(0)) for name, world in worlds.items()}
    subject = min(away, key=away.__getitem__)
    least = away[subject]
    known = {"data range": "pictures in [0, 1]", "latent scale": "latents before shift and scale"}[subject]
    if least < NEAR and least < NEARER * own:
        text = f"The first guess, from noise alone, lies {least:.2f} from the mean of {known}, and {own:.2f} from ours."
        advice = f"The network was trained on {known}: bring the training data into the form that sampling expects."
        return [Finding(subject, False, text, advice)]
    text = (
        f"The first guess, from noise alone, lies {own:.2f} from the data's mean, and {least:.2f} from that of {known}."
    )
    return [Finding("training data", True, text)]


def _questions(patient: Patient, images: Tensor) -> list[Finding]:
    tried = suppositions(patient.pipe)
    shares = {name: share for name, share in differential(patient).items() if name != NOTHING}
    best = min(shares, key=shares.__getitem__)
    if shares[best] >= BETTER:
        text = (
            f"None of {len(shares)} suppositions explains the output: the best, {best}, makes the error of x0 "
            f"{shares[best]:.2f} times as large (believed below {BETTER:g})."
        )
        return [Finding("time and target", True, text)]
    text = f"{tried[best].text}, the network errs {shares[best]:.2g} times as much as it does now (if it is healthy: at least {BETTER:g})."
    return [Finding(best, False, text, tried[best].advice)]


def _learned(patient: Patient, images: Tensor) -> list[Finding]:
    share = loss_share(patient)
    text = f"The loss is {share:.0%} of what a network that always says 0 has (at most {LEARNED:.0%})."
    advice = (
        "The network has learned next to nothing: an average that was hardly updated, a training that was too short, "
        "or pictures of another kind than it was trained on. Compare with the weights as the training left them."
    )
    return [finding("untrained or stale weights", share <= LEARNED, text, advice)]


def stale_average(average: Patient, last: Patient) -> list[Finding]:
    """Is the averaged network worse than the one it is the average of?"""
    ratio = loss_share(average) / loss_share(last)
    text = f"The averaged weights have {ratio:.2f} times the loss of the last ones (at most {STALE:g})."
    advice = "The average lags: let its decay warm up as min(d, (1 + n) / (10 + n)), and call its update in each step."
    return [finding("stale average", ratio <= STALE, text, advice)]


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference."""
    return (a - b).double().square().mean().sqrt().item()


def _list(values: Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist())
