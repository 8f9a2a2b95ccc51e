"""A progress bar."""

from __future__ import annotations

from tqdm import tqdm

from diffusion_book.system import processes


class progress_bar(tqdm):
    """A bar that a sampler's callback moves; silent where stderr is no terminal."""

    def __init__(self, description: str) -> None:
        super().__init__(desc=description, unit="step", disable=processes.no_bar(), dynamic_ncols=True)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` steps are done."""
        self.total = total
        self.update(done - self.n)
