"""Train the patients of chapter 9: the shipped `ldm`, each time with another fault, until the network is used to it.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/patients.py --minutes 12

Takes the minutes given for each patient, on one core. What is stored, and used, is chapter 9's.
"""

from __future__ import annotations

import argparse
import time

from diffusion_book import data
from diffusion_book.evaluation.clinic import train_on
from diffusion_book.evaluation.patients import FAULTS, PARENT, folder
from diffusion_book.models import weights
from diffusion_book.models.pipelines import load
from diffusion_book.system.machine import cpu_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(FAULTS), help=", ".join(FAULTS))
    parser.add_argument("--minutes", type=float, default=12.0, help="for each patient")
    options = parser.parse_args()
    parent, pictures = load(PARENT, device="cpu"), data.load("mnist")
    for name in options.names:
        fault = FAULTS[name]
        dataset = fault.data(parent.autoencoder, pictures)
        began = time.perf_counter()
        patient, losses = train_on(
            parent,
            fault.loss_of(parent),
            dataset,
            steps=10**6,
            batch_size=128,
            ema_decay=0.999,
            max_minutes=options.minutes,
        )
        card = {
            "model": PARENT,
            "fault": name,
            "recipe": parent.recipe.to_dict(),
            "data_set": pictures.name,
            "minutes": round((time.perf_counter() - began) / 60, 1),
            "steps": len(losses),
            "cpu": cpu_name(),
            "loss": [round(sum(losses[at : at + 100]) / 100, 4) for at in (0, len(losses) - 100)],
            "parent_sha256": weights.read_card(PARENT)["sha256"],
            "command": f"python benchmarks/patients.py '{name}' --minutes {options.minutes:g}",
        }
        print(
            weights.write_weights(fault.file, patient.network.state_dict(), card, folder()), card["loss"], len(losses)
        )


if __name__ == "__main__":
    main()
