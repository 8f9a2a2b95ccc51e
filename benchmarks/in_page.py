"""What drawing inside a page costs, beside PyTorch: `python benchmarks/in_page.py`, which prints a table.

CPU time of one thread each, for on a busy machine wall time tells of the neighbours: the browser's by its own account of
the thread that the engine runs on, PyTorch's by the operating system. Both take turns, and the best round counts.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

import diffusion_book

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import live

ROUNDS, COUNT = 3, 10
ASKED = {
    "ldm-concat": {"sampler": "ddim", "steps": 10, "guidance_scale": 3.0},
    "ldm-cross-attention": {"sampler": "ddim", "steps": 10, "guidance_scale": 3.0},
    "latent-rf-class-one-step": {"sampler": "euler", "steps": 1, "guidance_scale": 1.0},
    "ddpm": {"sampler": "ddim", "steps": 10},
    "rf-one-step": {"sampler": "euler", "steps": 1},
}
GLUE = """
const models = {};
function liveWeights(model) {
  models[model.name] = {recipe: model.recipe, weights: readWeights(model), vae: models[model.vae]};
}
"""
DRAW = """async ([name, wish]) => {
  for await (const state of states(models[name], wish, async () => {})) var x = state.x;
  toImages(models[name], x);
}"""


def page_draws(page, session, name: str, asked: dict) -> float:
    """Milliseconds of the page's thread for ten pictures."""
    labels = list(range(COUNT)) if "guidance_scale" in asked else None
    wish = {
        "task": "sample",
        "count": COUNT,
        "labels": labels,
        "eta": 0,
        "seed": 0,
        "scale": asked.get("guidance_scale"),
    }

    def used() -> float:
        metrics = {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}
        return 1000 * metrics["TaskDuration"]

    before = used()
    page.evaluate(DRAW, [name, {**wish, **asked}])
    return used() - before


def torch_draws(pipe, asked: dict) -> float:
    """Milliseconds of PyTorch's thread for the same."""
    before = time.thread_time()
    pipe.sample(COUNT, **asked)
    return 1000 * (time.thread_time() - before)


def main() -> None:
    torch.set_num_threads(1)
    pipes = {name: diffusion_book.load(name, device="cpu", precision="fp32") for name in ASKED}
    kinds = {"WebAssembly, fused": live.kernels()[:1], "WebAssembly": live.kernels()[1:], "JavaScript": []}
    best: dict[str, dict[str, float]] = {name: {} for name in ASKED}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        pages = {}
        for kind, kernels in kinds.items():
            page = chromium.new_page()
            page.goto("about:blank")
            page.add_script_tag(content=live.engine() + GLUE)
            page.evaluate("kernels => begin(kernels)", kernels)
            for name in ("vae", *ASKED):
                page.add_script_tag(content=live.shipped_script(name))
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            pages[kind] = page, session
        for _ in range(ROUNDS):
            for name, asked in ASKED.items():
                rounds = {kind: page_draws(*pages[kind], name, asked) for kind in kinds}
                rounds["PyTorch"] = torch_draws(pipes[name], asked)
                for kind, spent in rounds.items():
                    best[name][kind] = min(spent, best[name].get(kind, spent))
        version = chromium.version
        chromium.close()
    print(f"| ten digits, CPU milliseconds | {' | '.join(kinds)} | PyTorch | fused / PyTorch |")
    print("|---|" + "---:|" * (len(kinds) + 2))
    for name, asked in ASKED.items():
        spent = best[name]
        words = ", ".join(f"{key} {value}" for key, value in asked.items())
        ratio = spent["WebAssembly, fused"] / spent["PyTorch"]
        print(
            f"| `{name}`, {words} | {' | '.join(f'{spent[kind]:.0f}' for kind in (*kinds, 'PyTorch'))} | {ratio:.2f} |"
        )
    print(f"\nChromium {version}, torch {torch.__version__}, best of {ROUNDS} rounds.")


if __name__ == "__main__":
    main()
