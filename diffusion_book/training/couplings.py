"""Pairs of noise and the sample that a trained flow makes of it: what reflow learns from."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book.models.pipelines import Pipeline
from diffusion_book.models.recipes import ReflowConfig
from diffusion_book.system import processes
from diffusion_book.system.caches import cache_folder, cached
from diffusion_book.system.errors import BookError, NotFinite
from diffusion_book.system.hashes import hash_of_tensors

BATCH_SIZE = 200  # couplings drawn at once


@dataclass(frozen=True)
class CouplingDataset:
    """Couplings in memory. It stands in for a `Dataset` in the trainer.

    Attributes:
        name: of the data set that the flow was trained on.
        samples: (N, C, H, W), what the flow made.
        noise: (N, C, H, W), what it started from.
        labels: int64, (N,), the class it was asked for; 0 where it knows none.
        seconds: it took to draw them.
    """

    name: str
    samples: Tensor
    noise: Tensor
    labels: Tensor
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device | str) -> CouplingDataset:
        """The same data on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("samples", "noise", "labels")}
        return dataclasses.replace(self, **moved)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and their noise, stacked as channels (B, 2 C, H, W), float32, and labels."""
        return torch.cat([self.samples[index], self.noise[index]], dim=1).float(), self.labels[index]


def draw_couplings(
    parent: Pipeline, config: ReflowConfig, number: int, seed: int = 0, cache: Path | None = None
) -> CouplingDataset:
    """Draw noise, and follow a trained flow from it: (x0, eps) that belong to each other.

    Args:
        parent: the trained flow.
        config: how it is followed.
        number: of couplings.
        seed: of the noise; `Pipeline.sample` with the same seed draws the same.
        cache: folder; default `couplings` in the user's cache folder.

    Raises:
        BookError: the parent does not follow a straight path, or its samples are not finite.

    Source: Liu, Gong & Liu 2022, algorithm 1.
    """
    if parent.recipe.diffusion.schedule != "rectified":
        raise BookError(f"reflow starts from a rectified flow, not from a '{parent.recipe.model}': give one of those")
    weights = hash_of_tensors(parent.network.state_dict())
    made_from = {key: str(value) for key, value in asdict(config).items()}
    made_from |= {"weights": weights, "number": str(number), "seed": str(seed)}
    name = f"{parent.recipe.model}-{number}-{seed}-{weights[:16]}.safetensors"
    path = (cache or cache_folder() / "couplings") / name
    tensors = cached(path, made_from, "couplings", lambda: _compute(parent, config, number, seed))
    return CouplingDataset(parent.recipe.training.dataset, **{**tensors, "seconds": tensors["seconds"].item()})


def _compute(parent: Pipeline, config: ReflowConfig, number: int, seed: int) -> dict[str, Tensor]:
    began = time.perf_counter()
    parent = dataclasses.replace(parent, dtype=torch.float32)  # bf16 would bend the paths, and the cache not know it
    parts_of = {"samples": [], "noise": []}
    scale = config.guidance_scale if parent.num_classes else None
    settings = {"sampler": config.sampler, "steps": config.steps, "seed": seed}
    request = parent.ask(number, guidance_scale=scale, batch_size=BATCH_SIZE, **settings)
    description = f"couplings of {parent.recipe.model}"
    for batch in tqdm(request.batches(), desc=description, unit="batch", disable=processes.no_bar()):
        states = list(parent.walk(batch))
        # Half the digits of a float are more than a flow of this size deserves, and half the memory.
        parts_of["samples"].append(states[-1].x.half().cpu())
        if not parts_of["samples"][-1].isfinite().all():
            raise NotFinite(
                f"the samples of '{parent.recipe.model}' hold numbers that are not finite, and nothing can be learned "
                "from them: give another flow, or a lower --coupling_guidance_scale"
            )
        parts_of["noise"].append(states[0].x.half().cpu())
    labels = torch.zeros(number, dtype=torch.int64) if request.labels is None else request.labels.contiguous()
    seconds = torch.tensor(time.perf_counter() - began, dtype=torch.float64)
    return {
        **{key: torch.cat(parts).contiguous() for key, parts in parts_of.items()},
        "labels": labels,
        "seconds": seconds,
    }
