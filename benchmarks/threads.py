"""How long a forward pass takes with one thread and with several, alone and beside a busy program.

    python benchmarks/threads.py --write

OpenMP's threads wait for one another by spinning, which is quickest as long as every thread has a core to itself. Where
another program takes one of the cores, the others spin while their partner is not running. GOMP_SPINCOUNT says how often a
thread looks before it sleeps. Every setting runs in a process of its own, for the variable is read when torch is
loaded; the settings take turns, round after round, and a figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from diffusion_book.system.files import write_text

DOCS = Path(__file__).parents[1] / "docs"
DEFAULT = None  # not set: what libgomp does by itself
SPINS = (DEFAULT, 0, 1000, 10_000, 100_000)
CORES = len(os.sched_getaffinity(0))
BATCH = 64
WORKER = """
import json, sys, time
import torch, diffusion_book
threads, batch = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(threads)
pipe = diffusion_book.load("ddpm", device="cpu")
images, t = pipe.noise(batch, 0), torch.full((batch,), 0.5)
seconds = []
with torch.inference_mode():
    for _ in range(12):
        began = time.perf_counter()
        pipe.network(images, t)
        seconds.append(time.perf_counter() - began)
print(json.dumps(sorted(seconds[2:])[5]))
"""


def forward_seconds(threads: int, spins: int | None) -> float:
    """Median time of a forward pass in a new process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    # The package sets the variable only where it is missing; this is libgomp's own default.
    environment["GOMP_SPINCOUNT"] = "300000" if spins is DEFAULT else str(spins)
    command = [sys.executable, "-c", WORKER, str(threads), str(BATCH)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@contextlib.contextmanager
def busy_core(busy: bool) -> Iterator[None]:
    """While inside, another process keeps one core busy."""
    if not busy:
        yield
        return
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", spin])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def page(figures: dict[tuple[int, int | None], dict[bool, float]], rounds: int) -> str:
    """The page of the docs."""
    alone = figures[1, DEFAULT]
    lines = [
        "# Threads beside a busy program",
        "",
        f"Milliseconds for one forward pass of `ddpm` over {BATCH} pictures on {CORES} cores: alone, and while another "
        f"process keeps one of the cores busy. Everything took turns, and each figure is the median of {rounds} rounds; "
        "the factor is against one thread in the same column.",
        "",
        "| threads | GOMP_SPINCOUNT | alone, ms | | beside a busy core, ms | |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for (threads, spins), times in figures.items():
        name = "libgomp's default" if spins is DEFAULT else f"{spins:,}"
        cells = " | ".join(f"{1000 * times[busy]:.0f} | {times[busy] / alone[busy]:.2f}x" for busy in (False, True))
        lines.append(f"| {threads} | {name if threads > 1 else '(no matter)'} | {cells} |")
    return "\n".join(
        [
            *lines,
            "",
            "The threads of OpenMP wait for one another by spinning. That is quickest where every thread has a core to "
            "itself; where another program takes one of the cores, all others spin while their partner is not running. "
            "The book sets `GOMP_SPINCOUNT=1000` before PyTorch is loaded, unless you have set it yourself: in the "
            "package, in every target of the Makefile, and in the conda environment. In a notebook of your own, import "
            "`diffusion_book` before `torch`.",
            "",
            "Repeat it with `python benchmarks/threads.py --write`.",
            "",
        ]
    )


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often everything takes its turn")
    parser.add_argument("--write", action="store_true", help="write docs/threads.md")
    options = parser.parse_args()
    settings = [(1, DEFAULT), *((CORES, spins) for spins in SPINS if CORES > 1)]
    seconds = {setting: {False: [], True: []} for setting in settings}
    for number in range(options.rounds):
        for busy in (False, True):
            for setting in settings:
                with busy_core(busy):
                    seconds[setting][busy].append(forward_seconds(*setting))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    medians = {key: {busy: statistics.median(all_) for busy, all_ in times.items()} for key, times in seconds.items()}
    text = page(medians, options.rounds)
    if options.write:
        print(write_text(DOCS / "threads.md", text))
    else:
        print(text)


if __name__ == "__main__":
    main()
