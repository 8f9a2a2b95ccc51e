"""From measurements to plain words: what is healthy, what is not, and what to try.

Every sentence stands on a measured number and the limit that it was held against, both of which it names.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from diffusion_book.evaluation.diagnosis import Embeddings, Losses, Way
from diffusion_book.models.recipes import ELBOConfig

LATENT_STD = (0.8, 1.25)  # of the latents of the data; 1 is what the schedule expects
LATENT_MEAN = 0.25  # largest distance of their mean from 0
TOLD = 0.1  # smallest share of the latents' variance that lies between pictures
RESTORED = 0.8  # largest squared error of reconstructions, as a share of the pictures' variance
LEARNED = 0.9  # largest loss, as a share of that of a network which always says 0
HEARD = 0.01  # smallest rise of the loss by a wrong label
NULL = 0.75  # largest rise of the loss by no label, as a share of the rise by a wrong one
DWARFED = 1e-4  # smallest gradient of a layer, as a share of the median layer's
APART = 0.05  # smallest mean distance of two classes' embeddings, as a share of their norm
TWINS = 0.1  # smallest distance of two classes, as a share of the mean distance
BRANCHES = 0.01  # smallest difference of the branches, at the time where it is largest
ATTENTION = (0.01, 0.99)  # entropy over log(tokens), averaged over the layers
ACCURACY = 0.9  # smallest share of samples with guidance that are of the class asked for
SURE = 0.8  # smallest share of samples that the classifier is sure about
SAMPLERS = 0.15  # largest difference between DDIM and DDPM in either share
GUIDANCE = 0.05  # largest loss of accuracy by guidance


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: one or two words.
        healthy: whether it is as it should be.
        text: a sentence with the measured value and its limit.
        advice: what to try; empty where it is healthy.
    """

    subject: str
    healthy: bool
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was measured of a model; None or empty is what does not apply to it.

    Attributes:
        broken: tensors of the network that hold numbers which are not finite. If there are any, nothing else is measured.
        losses: see `diagnosis.losses`.
        gradients: layer -> root mean square of its gradient.
        latents: mean and standard deviation of the latents, channel by channel.
        told: see `diagnosis.share_told`.
        restored: squared error of an autoencoder's reconstructions, as a share of the pictures' variance.
        embeddings: of the classes.
        branches: times, and how far the two branches of guidance lie apart at each.
        entropy: layer -> of its cross-attention.
        ways: name -> samples drawn in this way.
    """

    broken: list[str] = field(default_factory=list)
    losses: Losses | None = None
    gradients: dict[str, float] = field(default_factory=dict)
    latents: tuple[list[float], list[float]] | None = None
    told: list[float] = field(default_factory=list)
    restored: float | None = None
    embeddings: Embeddings | None = None
    branches: tuple[list[float], list[float]] | None = None
    entropy: dict[str, float] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values, for JSON; numbers that are not finite become None."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        if self.embeddings is not None:
            values["embeddings"] = {
                "distances": self.embeddings.distances.tolist(),
                "norms": self.embeddings.norms.tolist(),
                "to_null": self.embeddings.to_null,
            }
        values["losses"] = dataclasses.asdict(self.losses) if self.losses else None
        values["ways"] = {name: dataclasses.asdict(way) for name, way in self.ways.items()}
        return _plain(values)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def findings(measured: Diagnosis) -> list[Finding]:
    """What the measurements say, in the order in which one would look."""
    entries = [*weights(measured)]
    if not measured.broken:
        for look in (
            latents,
            restoring,
            learning,
            labels,
            null_class,
            gradients,
            classes,
            branches,
            attention,
            samples,
        ):
            entries += look(measured)
    return entries


def finding(subject: str, healthy: bool, text: str, advice: str) -> Finding:
    """A finding whose advice is given only where it is needed."""
    return Finding(subject, healthy, text, "" if healthy else advice)


def weights(measured: Diagnosis) -> Iterator[Finding]:
    """Are the weights numbers?"""
    number = len(measured.broken)
    if not number:
        yield Finding("weights", True, "All weights are finite numbers.")
        return
    yield Finding(
        "weights",
        False,
        f"{number} tensors of the network hold numbers that are not finite, the first is {measured.broken[0]}; "
        "there must be none. Nothing else can be measured.",
        "Go back to a checkpoint from before they appeared, and train on with a smaller --lr or with --precision fp32.",
    )


def latents(measured: Diagnosis) -> Iterator[Finding]:
    """Is what is diffused of the size that the schedule expects?"""
    if measured.latents is None:
        return
    if measured.told and min(measured.told) < TOLD:
        yield collapse(measured.told)
        return
    mean, std = measured.latents
    low, high = LATENT_STD
    healthy = all(low <= value <= high for value in std) and all(abs(value) <= LATENT_MEAN for value in mean)
    yield finding(
        "latent scale",
        healthy,
        f"The data's latents have standard deviation {_list(std)} and mean {_list(mean)} by channel; the schedule "
        f"expects 1 and 0 (limits {low:g} to {high:g}, and {LATENT_MEAN:g} from 0).",
        "Name with --vae the VAE that the model was trained with, and with --dataset its data. If they are right, the "
        "VAE's latent_mean and latent_std are wrong: train it to its end, where they are measured, then this model anew.",
    )


def collapse(told: list[float]) -> Finding:
    """The latents say nothing of the pictures."""
    return Finding(
        "posterior collapse",
        False,
        f"Of the latents' variance by channel, {_list(told)} lies between pictures (at least {TOLD:g}): the rest is the "
        "encoder's own noise. The posterior has collapsed to the prior, and latents say little or nothing of a picture.",
        f"Train the VAE anew with a smaller --kl_weight (the book's is {ELBOConfig().kl_weight:g}), then what is trained "
        "on its latents.",
    )


def restoring(measured: Diagnosis) -> Iterator[Finding]:
    """Does an autoencoder bring pictures back?"""
    if measured.restored is None:
        return
    yield finding(
        "reconstructions",
        measured.restored <= RESTORED,
        f"The squared error of reconstructions is {measured.restored:.1%} of the pictures' variance, what the mean picture "
        f"would have (at most {RESTORED:.0%}).",
        "Train longer, or with another --lr; if a posterior has collapsed, begin there.",
    )


def learning(measured: Diagnosis) -> Iterator[Finding]:
    """Has the network learned anything?"""
    if measured.losses is None:
        return
    share = measured.losses.true / measured.losses.zero
    yield finding(
        "loss",
        share <= LEARNED,
        f"The loss on training pictures is {measured.losses.true:.4f}, {share:.0%} of what a network that always says 0 "
        f"has (at most {LEARNED:.0%}).",
        "The network has learned next to nothing: train longer, or with another --lr, and look at loss_curves.png.",
    )


def labels(measured: Diagnosis) -> Iterator[Finding]:
    """Does the network listen to the label?"""
    if measured.losses is None or measured.losses.wrong is None:
        return
    rise = measured.losses.wrong / measured.losses.true - 1
    yield finding(
        "labels",
        rise >= HEARD,
        f"A wrong label raises the loss by {rise:.1%} (at least {HEARD:.0%}): the labels are "
        f"{'heard' if rise >= HEARD else 'ignored'}.",
        "Check that the labels reach the loss and belong to their pictures; train longer, for a model first learns to "
        "draw and then to listen; lower --unconditional_probability if it is above 0.3.",
    )


def null_class(measured: Diagnosis) -> Iterator[Finding]:
    """Was the null condition trained? Without a label, the average over all labels beats any guess."""
    still = measured.gradients.get("no class") == 0
    if still:
        yield Finding(
            "null class",
            False,
            "One step of the training gives the null class a gradient of 0 (it must be above 0): it is never trained.",
            "Train with --unconditional_probability 0.1: without hidden labels there is no unconditional branch to "
            "guide away from. Until then, sample with --guidance_scale 1.",
        )
    losses = measured.losses
    if losses is None or losses.wrong is None or losses.wrong / losses.true - 1 < HEARD:
        return  # to whom all labels are alike, none is no other
    share = (losses.none - losses.true) / (losses.wrong - losses.true)
    if still and share <= NULL:
        return
    yield finding(
        "null class",
        share <= NULL,
        f"No label costs {share:.0%} of what a wrong label costs (at most {NULL:.0%}): the null class "
        f"{'has learned to stand for any digit' if share <= NULL else 'says no more than a wrong label, as one that was never trained'}.",
        "Train longer with --unconditional_probability 0.1 or more. Until then, sample with --guidance_scale 1.",
    )


def gradients(measured: Diagnosis) -> Iterator[Finding]:
    """Does every layer learn?"""
    layers = {name: value for name, value in measured.gradients.items() if name != "no class"}
    if not layers:
        return
    broken = [name for name, value in layers.items() if not math.isfinite(value)]
    dead = [name for name, value in layers.items() if value == 0]
    alive = [value for value in layers.values() if math.isfinite(value) and value > 0]
    middle = statistics.median(alive) if alive else 0.0
    dwarfed = [name for name, value in layers.items() if 0 < value < DWARFED * middle]
    if broken:
        yield Finding(
            "gradient",
            False,
            f"The gradient is not finite in {_names(broken)} (it must be everywhere).",
            "Train with --precision fp32 and a smaller --lr.",
        )
    if dead:
        yield Finding(
            "gradient",
            False,
            f"The gradient is exactly 0 in {_names(dead)} (it must be above 0): nothing is learned there.",
            "Look whether the layer's output is used at all, and whether a layer behind it is stuck at zero weights. "
            "In a model that was not trained yet, layers before one that starts at zero have no gradient in the first step.",
        )
    if dwarfed:
        yield Finding(
            "gradient",
            False,
            f"The gradient in {_names(dwarfed)} is below {DWARFED:g} of the median layer's, {middle:.2g}: "
            "such layers hardly learn.",
            "Look for a layer before or behind it that lets almost nothing through, such as a norm with a tiny weight.",
        )
    if not (broken or dead or dwarfed):
        least = min(layers, key=layers.__getitem__)
        yield Finding(
            "gradient",
            True,
            f"The gradient reaches all {len(layers)} layers: the smallest, in {least}, is {layers[least] / middle:.2g} "
            f"of the median layer's (at least {DWARFED:g}).",
        )


def classes(measured: Diagnosis) -> Iterator[Finding]:
    """Are the classes told apart where they enter the network?"""
    embeddings = measured.embeddings
    if embeddings is None or not math.isfinite(embeddings.between):
        return
    apart = embeddings.between >= APART
    yield finding(
        "embeddings",
        apart,
        f"The embeddings of two classes lie {embeddings.between:.2f} of their norm apart on average (at least {APART:g}): "
        f"{'each class has its own' if apart else 'they are all the same'}.",
        "Check that each label picks its own row of the table, and that the table is among the trained parameters.",
    )
    if not apart:
        return
    pairs = embeddings.nearest
    mean = statistics.fmean(distance for *_, distance in pairs)
    twins = [f"{i} and {j}" for i, j, distance in pairs if distance < TWINS * mean]
    first, second, least = pairs[0]
    yield finding(
        "embeddings",
        not twins,
        f"The nearest two classes, {first} and {second}, lie {least / mean:.2f} of the mean distance apart "
        f"(at least {TWINS:g})" + (f": the model cannot tell {_names(twins)} apart." if twins else "."),
        "Look whether the data set gives these classes labels of their own.",
    )


def branches(measured: Diagnosis) -> Iterator[Finding]:
    """Is there anything for guidance to push along?"""
    if measured.branches is None:
        return
    times, shares = measured.branches
    largest = max(range(len(shares)), key=shares.__getitem__)
    differ = shares[largest] >= BRANCHES
    yield finding(
        "branches",
        differ,
        f"The conditional and the unconditional branch differ by {shares[largest]:.1%} of the predicted noise at "
        f"t = {times[largest]:.2f}, where they differ most (at least {BRANCHES:.0%}): "
        f"{'guidance has something to push along' if differ else 'guidance can do nothing'}.",
        "Where the branches agree no --guidance_scale helps: see what is said of labels and embeddings.",
    )


def attention(measured: Diagnosis) -> Iterator[Finding]:
    """Are the tokens told apart?"""
    if not measured.entropy:
        return
    mean = statistics.fmean(measured.entropy.values())
    low, high = ATTENTION
    if mean > high:
        meaning = "every place looks at all tokens alike, and several tokens are no better than one"
    elif mean < low:
        meaning = "every place looks at one token alone, and the others are unused"
    else:
        meaning = "the tokens are read with different weights"
    yield finding(
        "attention",
        low <= mean <= high,
        f"The entropy of cross-attention is {mean:.2f} of the largest possible, averaged over {len(measured.entropy)} "
        f"layers (limits {low:g} to {high:g}): {meaning}.",
        "Train longer; if it stays so, take fewer tokens a class (--num_tokens).",
    )


def samples(measured: Diagnosis) -> Iterator[Finding]:
    """Are the pictures good, whichever way they are drawn?"""
    endless = [name for name, way in measured.ways.items() if not way.finite]
    if endless:
        yield Finding(
            "samples",
            False,
            f"Samples are not finite numbers, drawn by {_names(endless)} (all must be).",
            "Sample with --precision fp32; a target that divides by a vanishing alpha at t = 1 also does this.",
        )
    ways = {name: way for name, way in measured.ways.items() if way.confident is not None}
    if "DDIM" in ways:
        ddim = ways["DDIM"]
        yield finding(
            "samples",
            ddim.confident >= SURE,
            f"A classifier is sure about {ddim.confident:.0%} of the samples (at least {SURE:.0%}).",
            "The pictures are unclear: train longer, and look at the grids.",
        )
        if ddim.accuracy is not None:
            yield finding(
                "classes drawn",
                ddim.accuracy >= ACCURACY,
                f"{ddim.accuracy:.0%} of the samples at guidance scale {ddim.guidance_scale:g} are of the class that "
                f"was asked for (at least {ACCURACY:.0%}).",
                "Train longer; a higher --guidance_scale also helps, if labels and null class are healthy.",
            )
    if {"DDIM", "DDPM"} <= set(ways):
        yield _samplers(ways["DDIM"], ways["DDPM"])
    if {"DDIM", "conditional"} <= set(ways):
        gain = ways["DDIM"].accuracy - ways["conditional"].accuracy
        yield finding(
            "guidance",
            gain >= -GUIDANCE,
            f"Guidance takes the share of the class that was asked for from {ways['conditional'].accuracy:.0%} at scale 1 to "
            f"{ways['DDIM'].accuracy:.0%} at scale {ways['DDIM'].guidance_scale:g} (at most {GUIDANCE:.0%} may be lost).",
            "Guidance does harm: lower --guidance_scale, and see what is said of the null class.",
        )


def _samplers(ddim: Way, ddpm: Way) -> Finding:
    """DDIM and DDPM draw from the same model, so their pictures should be equally good."""
    gaps = {"that a classifier is sure about": (ddim.confident, ddpm.confident)}
    if ddim.accuracy is not None:
        gaps["of the class that was asked for"] = (ddim.accuracy, ddpm.accuracy)
    what, (first, second) = max(gaps.items(), key=lambda item: abs(item[1][0] - item[1][1]))
    worse = "DDIM" if first < second else "DDPM"
    return finding(
        "samplers",
        abs(first - second) <= SAMPLERS,
        f"DDIM in {ddim.steps} steps and DDPM in {ddpm.steps} differ most in the share {what}: {first:.0%} and "
        f"{second:.0%} (at most {SAMPLERS:.0%} apart).",
        f"The same model should do as well with both, and {worse} does worse: give it more steps "
        f"({'--sampling_steps' if worse == 'DDIM' else '--ddpm_steps'}); if that does not help, look at the schedule's end at t = 1.",
    )


def report(title: str, entries: list[Finding]) -> str:
    """The findings as a text to read: what is not healthy first."""
    ill = [each for each in entries if not each.healthy]
    well = [each for each in entries if each.healthy]
    lines = [title, ""]
    if ill:
        lines.append(f"Not healthy ({len(ill)}):")
        for each in ill:
            lines += [f"  - {each.subject}: {each.text}", f"    Try: {each.advice}"]
        lines.append("")
    if well:
        lines.append(f"Healthy ({len(well)}):")
        lines += [f"  - {each.subject}: {each.text}" for each in well]
        lines.append("")
    lines.append("Nothing that was looked at is wrong." if not ill else "What to try stands under each fault.")
    return "\n".join(lines)


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _names(names: list[str], most: int = 4) -> str:
    """Some names in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
