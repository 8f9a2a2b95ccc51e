"""A data set as an autoencoder sees it: computed once, kept on disk, drawn anew at every step."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_book.data import Dataset, normalise
from diffusion_book.models.autoencoder import BATCH_SIZE, Autoencoder
from diffusion_book.system import processes
from diffusion_book.system.caches import cache_folder, cached
from diffusion_book.system.hashes import hash_of_tensors


@dataclass(frozen=True)
class LatentDataset:
    """The posteriors of a whole data set in memory. It stands in for a `Dataset` in the trainer.

    It holds distributions, not draws: the loss draws a latent from them at every step
    (`DiagonalGaussian.sample`), so that no picture is ever tied to one sample of its noise.

    Attributes:
        name: of the data set.
        moments: (N, 2 C, H, W), means and log-variances, after shift and scale.
        labels: int64, (N,).
    """

    name: str
    moments: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.moments)

    def to(self, device: torch.device | str) -> LatentDataset:
        """The same data on another device."""
        return LatentDataset(self.name, self.moments.to(device), self.labels.to(device))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Moments (B, 2 C, H, W) at `index`, and labels."""
        return self.moments[index], self.labels[index]


def encode_dataset(autoencoder: Autoencoder, dataset: Dataset, cache: Path | None = None) -> LatentDataset:
    """The posteriors of a data set: from the cache if they are there, else computed and stored there.

    They are computed in fp32 whatever the autoencoder runs in: bf16 would round the means to two or three digits,
    and the cache would depend on who filled it.

    Args:
        autoencoder: makes the latents.
        dataset: pictures and labels.
        cache: folder; default `latents` in the user's cache folder. A file in it belongs to one
            autoencoder and one data set, by their hashes. One that is damaged, or belongs to others, is
            made again, with a notice on stderr; a folder that cannot be written only costs the time.
    """
    hashes = {
        "autoencoder": hash_of_tensors(autoencoder.network.state_dict()),
        "images": hashlib.sha256(dataset.images.cpu().numpy().tobytes()).hexdigest(),
    }
    # The file's name tells data sets apart by name and size alone, so that a changed one is found to be stale.
    name = f"{dataset.name}-{len(dataset)}-{hashes['autoencoder'][:16]}.safetensors"
    path = (cache or cache_folder() / "latents") / name
    tensors = cached(path, hashes, "latents", lambda: {"moments": _compute(autoencoder, dataset)})
    return LatentDataset(dataset.name, tensors["moments"], dataset.labels.cpu())


def _compute(autoencoder: Autoencoder, dataset: Dataset) -> Tensor:
    autoencoder = dataclasses.replace(autoencoder, dtype=torch.float32)
    parts = dataset.images.split(BATCH_SIZE)
    bar = tqdm(parts, desc=f"latents of {dataset.name}", unit="batch", disable=processes.no_bar(), dynamic_ncols=True)
    moments = torch.cat([autoencoder.posterior(normalise(part)).moments.cpu() for part in bar])
    return moments.contiguous()  # some networks compute channels last, and files know one layout
