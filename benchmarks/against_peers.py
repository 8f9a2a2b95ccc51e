"""How fast, and how good after the same minutes, is our network beside other libraries on a CPU?

    uv pip install denoising-diffusion-pytorch smalldiffusion  # each may be missing, and is left out then
    python benchmarks/against_peers.py --train-minutes 2.5 --num-samples 500 --rounds 3 --write

All contenders share one run on the same threads and take turns, so that whatever else the machine
is doing meets all of them alike:

- ours: the shipped recipe, by our Trainer and Pipeline;
- diffusers (a): a UNet2DModel as its users run it on 32 x 32 pixels, of like parameters, with noise
  prediction and linear betas, and the settings of diffusers' own training example;
- diffusers (b): a UNet2DModel that is fed the same folded input as ours, at the same widths and
  depth, with our target, schedule, learning rate and average;
- denoising-diffusion-pytorch: its Unet of like parameters on 28 x 28 pixels in its GaussianDiffusion as it
  comes, with the Adam and average of its Trainer and our learning rate, for its own is made for 700,000 steps;
- smalldiffusion: the network, schedule, learning rate, average and sampler of its example of a U-Net for 28 x 28
  pixels, of half the width: its normalisation allows no smaller one.

Each peer runs in the memory layout and precision that a trial finds fastest for it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import diffusers
import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_book import data
from diffusion_book.evaluation.distances import frechet_distance
from diffusion_book.evaluation.features import features, reference_features
from diffusion_book.evaluation.measures import floor
from diffusion_book.evaluation.speed import matrix_rate
from diffusion_book.models.pipelines import build
from diffusion_book.models.recipes import Recipe, recipe_of
from diffusion_book.networks.unet import UNet
from diffusion_book.system.devices import autocast, resolve_precision
from diffusion_book.system.files import write_text
from diffusion_book.system.machine import cpu_name
from diffusion_book.training.ema import ExponentialMovingAverage
from diffusion_book.training.losses import loss_of_diffusion
from diffusion_book.training.trainer import Trainer, learning_rate

DOCS = Path(__file__).parents[1] / "docs"
CPU = torch.device("cpu")
TURN = 10.0  # seconds a contender trains before the next one does
FEWER = (5, 10, 20)  # steps that samples are drawn with too, to see who needs how many
LIBRARIES = ("diffusers", "denoising-diffusion-pytorch", "smalldiffusion")
BEFORE = 3  # steps a contender may warm up with before it is timed


@dataclass(frozen=True)
class Options:
    """What is measured, and how long."""

    rounds: int = 5
    batch_size: int = 128
    sample_batch: int = 100
    sample_steps: int = 50
    train_minutes: float = 0.0
    num_samples: int = 1000
    threads: int = 0
    seed: int = 0


@dataclass
class Contender:
    """A network with its training and its sampling.

    Attributes:
        settings: layout and precision, in words.
        train_step: trains one batch, given the share of the training that is done.
        draw: draws so many pictures with the averaged weights in so many steps: (N, 1, 28, 28) in [-1, 1].
        forward_flops, training_flops: an image, counted.
        seconds, steps: of training so far.
    """

    name: str
    settings: str
    parameters: int
    train_step: Callable[[float], object]
    draw: Callable[[int, int], Tensor]
    forward_flops: float
    training_flops: float
    seconds: float = 0.0
    steps: int = 0

    def turn(self, seconds: float, budget: float) -> None:
        """Train for so many seconds, or until the budget is spent."""
        stop = min(self.seconds + seconds, budget)
        while self.seconds < stop:
            started = time.perf_counter()
            self.train_step(self.seconds / budget)
            self.seconds += time.perf_counter() - started
            self.steps += 1


# --- The contenders ------------------------------------------------------------------------------


def ours(dataset: data.Dataset, options: Options) -> Contender:
    """The shipped recipe, by our own Trainer and Pipeline."""
    shipped = recipe_of("ddpm")
    training = {**asdict(shipped.training), "batch_size": options.batch_size, "epochs": 10**6, "seed": options.seed}
    recipe = Recipe(shipped.model, type(shipped.training)(**training), shipped.network, shipped.diffusion)
    torch.manual_seed(options.seed)
    network = UNet(recipe.network)
    minutes = options.train_minutes or None
    trainer = Trainer(
        network, loss_of_diffusion(recipe.diffusion), dataset, recipe.training, device=CPU, max_minutes=minutes
    )
    steps = trainer.steps()

    def draw(number: int, sample_steps: int) -> Tensor:
        pipe = build(recipe, trainer.ema.network.state_dict(), device=CPU)
        sampler = "dpm++" if sample_steps in FEWER else "ddim"
        return pipe.sample(number, sampler=sampler, steps=sample_steps, seed=options.seed)

    x, t = torch.zeros(2, 1, 32, 32), torch.zeros(2)
    return Contender(
        "ours",
        f"{_layout(network)}, {_words(trainer.dtype)}",
        sum(parameter.numel() for parameter in network.parameters()),
        lambda _: next(steps, None),
        draw,
        *_flops(network, x, t),
    )


def diffusers_as_usual(dataset: data.Dataset, options: Options) -> Contender:
    """Contender (a): 32 x 32 pixels, noise prediction, linear betas, the training example's settings.

    Blocks as in the DDPM that diffusers publishes for 32 x 32 (attention at 16 x 16), with widths that
    come closest to our number of parameters.
    """
    target = sum(parameter.numel() for parameter in UNet(recipe_of("ddpm").network).parameters())

    def config(width: int, multipliers: tuple[int, ...]) -> dict:
        attention = [level == 1 for level in range(len(multipliers))]
        return _unet_options(32, 1, [width * multiplier for multiplier in multipliers], attention, layers=2)

    def size(candidate: dict) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in diffusers.UNet2DModel(**candidate).parameters())

    shapes = ((1, 2, 2, 2), (1, 2, 4), (1, 2, 3), (1, 2, 2))
    candidates = [config(width, shape) for width in range(16, 129, 8) for shape in shapes]
    chosen = min(candidates, key=lambda candidate: abs(math.log(size(candidate) / target)))
    if abs(size(chosen) / target - 1) > 0.15:
        raise SystemExit(f"error: no UNet2DModel within 15 % of {target} parameters: widen the search")
    return _peer(
        f"diffusers (a), widths {chosen['block_out_channels']}",
        dataset,
        options,
        network=chosen,
        patch_size=1,
        schedule={"beta_schedule": "linear", "prediction_type": "epsilon"},
        spacing="leading",
        average={"decay": 0.9999, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75},
        weight_decay=1e-6,
        # The example warms up over 500 steps and then follows a cosine; a tenth of the time here.
        rate=lambda step, done: 1e-4 * min(1.0, 10 * done + 0.01) * (1 + math.cos(math.pi * done)) / 2,
    )


def diffusers_folded(dataset: data.Dataset, options: Options) -> Contender:
    """Contender (b): our folded input, widths, depth, attention, target, schedule, learning rate and average."""
    recipe = recipe_of("ddpm")
    config, diffusion, training = recipe.network, recipe.diffusion, recipe.training
    levels = range(len(config.channel_multipliers))
    network = _unet_options(
        config.image_size // config.patch_size,
        config.in_channels * config.patch_size**2,
        [config.base_channels * multiplier for multiplier in config.channel_multipliers],
        [level in config.attention_levels for level in levels],
        layers=config.layers_per_block,
    )
    return _peer(
        f"diffusers (b), folded, widths {network['block_out_channels']}",
        dataset,
        options,
        network=network,
        patch_size=config.patch_size,
        schedule={
            "beta_schedule": {"cosine": "squaredcos_cap_v2", "linear": "linear"}[diffusion.schedule],
            "prediction_type": {"noise": "epsilon", "image": "sample", "v": "v_prediction"}[diffusion.target],
        },
        spacing="trailing",
        average={"decay": training.ema_decay},  # warmed up by the same formula as ours
        weight_decay=training.weight_decay,
        rate=lambda step, done: learning_rate(training, step, done),
    )


def _unet_options(size: int, channels: int, widths: list[int], attention: list[bool], layers: int) -> dict:
    down = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attention)
    up = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attention))
    return {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "down_block_types": down,
        "up_block_types": up,
        "norm_num_groups": 8,
    }


def _peer(
    name: str,
    dataset: data.Dataset,
    options: Options,
    *,
    network: dict,
    patch_size: int,
    schedule: dict,
    spacing: str,
    average: dict,
    weight_decay: float,
    rate: Callable[[int, float], float],
) -> Contender:
    """A UNet2DModel in the training loop of diffusers' example, its data in memory as ours are."""
    torch.manual_seed(options.seed)
    model = diffusers.UNet2DModel(**network)
    channels, size = network["in_channels"], network["sample_size"]
    settings, layout, dtype = _fastest(
        model, lambda x: model(x, torch.zeros(len(x))).sample, torch.randn(options.batch_size, channels, size, size)
    )
    model.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=weight_decay, fused=True)
    ema = EMAModel(model.parameters(), foreach=True, **average)
    noising = diffusers.DDPMScheduler(num_train_timesteps=1000, **schedule)
    generator = torch.Generator().manual_seed(options.seed)
    steps = 0

    def train_step(done: float) -> None:
        nonlocal steps
        for group in optimizer.param_groups:
            group["lr"] = rate(steps, done)
        index = torch.randint(len(dataset), (options.batch_size,), generator=generator)
        x0 = F.pixel_unshuffle(dataset.batch(index)[0], patch_size)
        eps = torch.randn(x0.shape, generator=generator)
        t = torch.randint(1000, (len(x0),), generator=generator)
        goal = {"epsilon": lambda: eps, "sample": lambda: x0, "v_prediction": lambda: noising.get_velocity(x0, eps, t)}
        x_t = noising.add_noise(x0, eps, t).contiguous(memory_format=layout)
        model.train()
        with autocast(CPU, dtype):
            output = model(x_t, t).sample
        F.mse_loss(output.float(), goal[schedule["prediction_type"]]()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(model.parameters())
        steps += 1

    @torch.no_grad()
    def draw(number: int, sample_steps: int) -> Tensor:
        sampling = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, **schedule)
        sampling.set_timesteps(sample_steps)
        averaged = diffusers.UNet2DModel(**network).to(memory_format=layout).eval()
        averaged.load_state_dict(model.state_dict())
        ema.copy_to(averaged.parameters())
        seeded = torch.Generator().manual_seed(options.seed)
        pictures = []
        for start in range(0, number, options.sample_batch):
            count = min(options.sample_batch, number - start)
            x = torch.randn(count, channels, size, size, generator=seeded)
            for t in sampling.timesteps:
                with autocast(CPU, dtype):
                    output = averaged(x.contiguous(memory_format=layout), t).sample
                x = sampling.step(output.float(), t, x).prev_sample
            pictures.append(data.crop(F.pixel_shuffle(x, patch_size)).clamp(-1, 1))
        return torch.cat(pictures)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = _flops(lambda x, t: model(x, t).sample, torch.zeros(2, channels, size, size), torch.zeros(2))
    model.zero_grad(set_to_none=True)
    return Contender(name, settings, parameters, train_step, draw, *flops)


def denoising_diffusion_pytorch(dataset: data.Dataset, options: Options) -> Contender:
    """Its Unet, of the width that comes closest to our number of parameters, and its GaussianDiffusion as it comes."""
    import denoising_diffusion_pytorch as peer

    module = peer.denoising_diffusion_pytorch
    module.tqdm = lambda steps, **_: steps  # its bar would be timed too
    target = sum(parameter.numel() for parameter in UNet(recipe_of("ddpm").network).parameters())

    def network(width: int) -> nn.Module:
        return peer.Unet(width, dim_mults=(1, 2, 4), channels=1)

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in network(width).parameters())

    width = min(range(8, 49, 4), key=lambda width: abs(math.log(size(width) / target)))
    torch.manual_seed(options.seed)
    model = network(width)
    diffusion = peer.GaussianDiffusion(model, image_size=data.CROP_SIZE, auto_normalize=False)
    training = recipe_of("ddpm").training

    def draw(averaged: nn.Module, x: Tensor, sample_steps: int) -> Tensor:
        diffusion.model, diffusion.sampling_timesteps = averaged, sample_steps
        try:
            return diffusion.ddim_sample(tuple(x.shape))
        finally:
            diffusion.model = model

    return _peer_of_crops(
        f"denoising-diffusion-pytorch, width {width}",
        dataset,
        options,
        model=model,
        call=lambda network, x: network(x, torch.zeros(len(x))),
        loss=lambda x0: diffusion(x0),
        draw=draw,
        optimizer=torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True),
        decay=0.995,
        rate=lambda step, done: learning_rate(training, step, done),
    )


def smalldiffusion(dataset: data.Dataset, options: Options) -> Contender:
    """The settings of its example of a U-Net for 28 x 28 pixels, at half its width."""
    import smalldiffusion as peer

    torch.manual_seed(options.seed)
    model = peer.Scaled(peer.Unet)(data.CROP_SIZE, 1, 1, ch=32, ch_mult=(1, 1, 2), attn_resolutions=(14,))
    schedule = peer.ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800)
    here = SimpleNamespace(device=CPU)

    def loss(x0: Tensor) -> Tensor:
        x0, sigma, eps, _ = peer.diffusion.generate_train_sample(x0, schedule)
        return model.get_loss(x0, sigma, eps)

    def draw(averaged: nn.Module, x: Tensor, sample_steps: int) -> Tensor:
        sigmas = schedule.sample_sigmas(sample_steps)
        *_, found = peer.samples(averaged, sigmas, gam=1.6, xt=x * sigmas[0], accelerator=here)
        return found

    return _peer_of_crops(
        "smalldiffusion, width 32",
        dataset,
        options,
        model=model,
        call=lambda network, x: network(x, torch.ones(len(x), 1, 1, 1)),
        loss=loss,
        draw=draw,
        optimizer=torch.optim.AdamW(model.parameters(), fused=True),
        decay=0.999,
        rate=lambda step, done: 7e-4,
    )


def _peer_of_crops(
    name: str,
    dataset: data.Dataset,
    options: Options,
    *,
    model: nn.Module,
    call: Callable[[nn.Module, Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    draw: Callable[[nn.Module, Tensor, int], Tensor],
    optimizer: torch.optim.Optimizer,
    decay: float,
    rate: Callable[[int, float], float],
) -> Contender:
    """A library's network on MNIST's own 28 x 28 pixels, its data in memory as ours are.

    Args:
        call: the network on pictures at some time, to see what suits it and to count.
        loss: of a batch of pictures in [-1, 1].
        draw: the averaged network, noise and a number of steps -> pictures.
        rate: (step, share of the training done) -> learning rate.
    """
    size = data.CROP_SIZE
    flops = _flops(lambda x, t: call(model, x), torch.zeros(2, 1, size, size), torch.zeros(2))
    settings, layout, dtype = _fastest(model, lambda x: call(model, x), torch.randn(options.batch_size, 1, size, size))
    model.to(memory_format=layout)
    ema = ExponentialMovingAverage(model, decay)
    generator = torch.Generator().manual_seed(options.seed)
    steps = 0

    def train_step(done: float) -> None:
        nonlocal steps
        for group in optimizer.param_groups:
            group["lr"] = rate(steps, done)
        index = torch.randint(len(dataset), (options.batch_size,), generator=generator)
        x0 = dataset.images[index].float() / 127.5 - 1
        model.train()
        with autocast(CPU, dtype):
            value = loss(x0.contiguous(memory_format=layout))
        value.float().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        steps += 1

    @torch.no_grad()
    def draw_all(number: int, sample_steps: int) -> Tensor:
        torch.manual_seed(options.seed)
        pictures = []
        for start in range(0, number, options.sample_batch):
            x = torch.randn(min(options.sample_batch, number - start), 1, size, size)
            with autocast(CPU, dtype):
                pictures.append(
                    draw(ema.network, x.contiguous(memory_format=layout), sample_steps).float().clamp(-1, 1)
                )
        return torch.cat(pictures)

    model.zero_grad(set_to_none=True)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Contender(name, settings, parameters, train_step, draw_all, *flops)


def _fastest(
    model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[str, torch.memory_format, torch.dtype]:
    """The layout and precision in which a forward and backward pass takes least."""
    dtypes = {torch.float32, resolve_precision("auto", CPU)}
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    taken = {}
    for words, layout in layouts.items():
        model.to(memory_format=layout)
        for dtype in dtypes:
            for _ in range(2):  # the first pass warms up
                started = time.perf_counter()
                with autocast(CPU, dtype):
                    output = call(x.contiguous(memory_format=layout))
                output.float().square().mean().backward()
                model.zero_grad(set_to_none=True)
                taken[f"{words}, {_words(dtype)}", layout, dtype] = time.perf_counter() - started
    return min(taken, key=taken.get)


def _words(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def _layout(network: nn.Module) -> str:
    first = next(weight for weight in network.parameters() if weight.ndim == 4 and weight.shape[1] > 1)
    return "channels last" if first.is_contiguous(memory_format=torch.channels_last) else "contiguous"


def _flops(network: Callable[..., Tensor], x: Tensor, t: Tensor) -> tuple[float, float]:
    """Floating-point operations an image: of a forward pass, and of forward and backward."""
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(x, t)
    with FlopCounterMode(display=False) as both:
        network(x, t).square().mean().backward()
    return forward.get_total_flops() / len(x), both.get_total_flops() / len(x)


# --- What is measured ----------------------------------------------------------------------------


def measure_speed(contenders: list[Contender], options: Options) -> dict[str, dict]:
    """Images a second in training and in sampling, medians over rounds in which all take their turn."""
    for contender in contenders:
        for _ in range(BEFORE):
            contender.train_step(0.0)
        contender.draw(1, 2)
    found: dict[str, dict[str, list]] = {
        contender.name: {"training": [], "sampling": [], "share": []} for contender in contenders
    }
    for number in range(options.rounds):
        for contender in contenders:
            row = found[contender.name]
            product = matrix_rate(CPU, torch.bfloat16 if "bf16" in contender.settings else torch.float32)
            started = time.perf_counter()
            contender.train_step(0.0)
            row["training"].append(options.batch_size / (time.perf_counter() - started))
            row["share"].append(row["training"][-1] * contender.training_flops / product)
            started = time.perf_counter()
            contender.draw(options.sample_batch, options.sample_steps)
            row["sampling"].append(options.sample_batch / (time.perf_counter() - started))
            print(
                f"round {number + 1} of {options.rounds}: {contender.name}: training {row['training'][-1]:.1f} images/s, "
                f"sampling {row['sampling'][-1]:.2f} images/s",
                flush=True,
            )
    return found


def measure_quality(contenders: list[Contender], options: Options) -> dict[str, dict]:
    """cFID after equal minutes of training, in turns."""
    budget = 60 * options.train_minutes
    while any(contender.seconds < budget for contender in contenders):
        for contender in contenders:
            contender.turn(min(TURN, budget / 4), budget)
        spent = ", ".join(f"{contender.name} {contender.steps} steps" for contender in contenders)
        print(f"{contenders[0].seconds / 60:.1f} of {options.train_minutes:g} minutes: {spent}", flush=True)
    found = {}
    for contender in contenders:
        drawn = []
        for steps in (*FEWER, options.sample_steps):
            began = time.perf_counter()
            images = contender.draw(options.num_samples, steps)
            rate = options.num_samples / (time.perf_counter() - began)
            cfid = frechet_distance(features(images), reference_features()["test"])
            drawn.append({"steps": steps, "images_per_second": rate, "cfid": cfid})
            print(f"{contender.name}: {steps} steps, {rate:.2f} images/s, cFID {cfid:.2f}", flush=True)
        found[contender.name] = {
            "steps": contender.steps,
            "train_batch_size": options.batch_size,
            "images": contender.steps * options.batch_size,
            "cfid": drawn[-1]["cfid"],
            "drawn": drawn,
        }
    return found


# --- The page ------------------------------------------------------------------------------------


def page(result: dict) -> str:
    """The page of the docs."""
    options, machine, rows = result["options"], result["machine"], result["rows"]
    first = rows[0]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    lines = [
        "# Beside other libraries",
        "",
        f"The shipped network beside those of {libraries}, in one run on {machine['threads']} "
        f"threads of one machine ({machine['cpu']}, torch {machine['torch']}). diffusers (a) is its `UNet2DModel` as its "
        "users run it at 32 x 32 pixels, with noise prediction; (b) is fed our folded input, at our widths and depth, with "
        "our target and schedule. Other libraries run on MNIST's own 28 x 28 pixels, mostly with the settings of their own "
        "examples, at the width that comes closest to our number of parameters. All took turns, so that other work on the "
        "machine slowed all of them alike; read the ratios rather than the rates. Each peer ran in the memory layout and "
        "precision that suits it best.",
        "",
        f"Training is one step of {options['batch_size']} images with AdamW (denoising-diffusion-pytorch: Adam) and the running average; sampling is "
        f"{options['sample_steps']} steps of each library's fast sampler (of ours and most, DDIM) for {options['sample_batch']} images. Medians of {options['rounds']} rounds; a ratio is taken in each round, and its median is shown.",
        "",
        "| network | settings | parameters | MFLOP forward | training, images/s | ours is faster by | sampling, images/s "
        "| ours is faster by | share of a matrix product's FLOP/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['name']} | {row['settings']} | {row['parameters'] / 1e6:.2f} M | {row['forward_flops'] / 1e6:.0f} | "
        f"{row['training']:.1f} | {_ratio(first, row, 'training')} | {row['sampling']:.2f} | "
        f"{_ratio(first, row, 'sampling')} | {row['share']:.0%} |"
        for row in rows
    ]
    lines += [
        "",
        "The share compares the floating-point operations of a training step with those of a plain matrix product in "
        "the same precision, timed just before it.",
    ]
    if "cfid" in first:
        lines += [
            "",
            f"## After {options['train_minutes']:g} minutes of training each",
            "",
            f"On MNIST, in batches of {first['train_batch_size']} and turns of a few seconds; then {options['num_samples']:,} digits in {options['sample_steps']} steps "
            "of the same samplers, measured by the distance of the book's classifier (cFID, lower is better). The same number of real "
            f"training digits has {result['floor']:.3f}: the floor. Peer (a) learned with the settings of diffusers' "
            "training example (learning rate 1e-4, cosine), peer (b) and denoising-diffusion-pytorch with ours, smalldiffusion "
            "with those of its example.",
            "",
            "| network | images seen | cFID | over the floor | times ours |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in rows:
            lines.append(
                f"| {row['name']} | {row['images']:,} | {row['cfid']:.2f} | {row['cfid'] / result['floor']:.1f} | "
                f"{'' if row is first else format(row['cfid'] / first['cfid'], '.1f')} |"
            )
        lines += ["", "## Sampling at equal quality", "", *equal_quality(rows), ""]
        lines += [
            "Each peer at the number of steps that suits it best, beside the fastest of our settings whose cFID is no "
            f"worse: DPM-Solver++ in {', '.join(map(str, FEWER))} steps, or DDIM in {options['sample_steps']}. Here the "
            "contenders drew one after another.",
        ]
    return "\n".join([*lines, "", f"Repeat it with `{result['command']}`.", ""])


def equal_quality(rows: list[dict]) -> list[str]:
    """A table: every peer at its best, and the fastest of our settings that is no worse."""
    lines = [
        "| network | its best cFID | in steps | images/s | ours: cFID | in steps | images/s | ours is faster by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours, *peers = rows
    for peer in peers:
        best = min(peer["drawn"], key=lambda drawn: drawn["cfid"])
        cells = [f"{best['cfid']:.2f}", str(best["steps"]), f"{best['images_per_second']:.2f}"]
        no_worse = [drawn for drawn in ours["drawn"] if drawn["cfid"] <= best["cfid"]]
        if no_worse:
            mine = max(no_worse, key=lambda drawn: drawn["images_per_second"])
            ratio = mine["images_per_second"] / best["images_per_second"]
            cells += [f"{mine['cfid']:.2f}", str(mine["steps"]), f"{mine['images_per_second']:.2f}", f"{ratio:.1f}x"]
        else:
            cells += ["never as good", "", "", ""]
        lines.append(f"| {peer['name']} | {' | '.join(cells)} |")
    return lines


def _ratio(first: dict, row: dict, key: str) -> str:
    return "" if row is first else f"{row[key + '_ratio']:.1f}x"


def machine() -> dict:
    """What the figures were taken on."""
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES if is_here(name)},
    }


def is_here(library: str) -> bool:
    """Whether a library is installed."""
    try:
        return bool(importlib.metadata.version(library))
    except importlib.metadata.PackageNotFoundError:
        return False


def run(options: Options, command: str) -> dict:
    """Measure everything."""
    dataset = data.load("mnist" if options.train_minutes else "auto")
    makers = [ours, diffusers_as_usual, diffusers_folded]
    for library, maker in (
        ("denoising-diffusion-pytorch", denoising_diffusion_pytorch),
        ("smalldiffusion", smalldiffusion),
    ):
        if is_here(library):
            makers.append(maker)
        else:
            print(f"{library} is not here and is left out: uv pip install {library}")
    contenders = [make(dataset, replace(options, train_minutes=0.0)) for make in makers]
    for contender in contenders:
        print(
            f"{contender.name}: {contender.parameters / 1e6:.2f} M parameters, {contender.forward_flops / 1e6:.0f} MFLOP "
            f"forward, {contender.settings}",
            flush=True,
        )
    speed = measure_speed(contenders, options)
    quality = {}
    if options.train_minutes:
        training = replace(options, batch_size=min(options.batch_size, recipe_of("ddpm").training.batch_size))
        contenders = [make(dataset, training) for make in makers]  # untrained again
        quality = measure_quality(contenders, training)
    rows = []
    for contender in contenders:
        rounds = speed[contender.name]
        rows.append(
            {
                "name": contender.name,
                "settings": contender.settings,
                "parameters": contender.parameters,
                "forward_flops": contender.forward_flops,
                "training_flops": contender.training_flops,
                **{key: statistics.median(values) for key, values in rounds.items()},
                # The ratio of every round, then the median: a slow minute of the machine cancels.
                **{
                    f"{key}_ratio": statistics.median(
                        mine / theirs for mine, theirs in zip(speed[contenders[0].name][key], rounds[key], strict=True)
                    )
                    for key in ("training", "sampling")
                },
                "rounds": rounds,
                **quality.get(contender.name, {}),
            }
        )
    result = {"command": command, "machine": machine(), "options": asdict(options), "rows": rows}
    return result | ({"floor": floor(options.num_samples).mean} if quality else {})


def main() -> None:
    """Measure, print the page, and store it if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = Options()
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="rounds of timing, each with all")
    parser.add_argument("--train-minutes", type=float, default=0.0, help="minutes of training each; 0 = speed alone")
    parser.add_argument("--num-samples", type=int, default=defaults.num_samples, help="digits drawn for cFID")
    parser.add_argument("--threads", type=int, default=0, help="threads; 0 = as many as torch takes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--quick", action="store_true", help="a minute's run that shows that everything works")
    parser.add_argument("--write", action="store_true", help="store the page and its figures in docs/")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    options = Options(
        rounds=given.rounds,
        train_minutes=given.train_minutes,
        num_samples=given.num_samples,
        threads=torch.get_num_threads(),
        seed=given.seed,
    )
    command = "python benchmarks/against_peers.py"
    for name in ("rounds", "train_minutes", "num_samples", "threads", "seed"):
        if getattr(given, name) != parser.get_default(name):
            command += f" --{name.replace('_', '-')} {getattr(given, name):g}"
    if given.quick:
        options = Options(1, 8, 4, 2, min(given.train_minutes, 0.05), 12, torch.get_num_threads(), given.seed)
        command += " --quick"
    result = run(options, command + (" --write" if given.write else ""))
    print("\n" + page(result))
    if given.write:
        print(write_text(DOCS / "benchmarks.json", json.dumps(result, indent=2) + "\n"))
        print(write_text(DOCS / "benchmarks.md", page(result)))


if __name__ == "__main__":
    main()
