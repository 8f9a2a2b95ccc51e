"""`diffusion-book train MODEL --detach`: a training that outlives its terminal, in a session of GNU screen."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_book.models.checkpoints import find_checkpoint
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.training.experiment import LOG, named_folder
from diffusion_book.training.run import RunOptions


def detach(model: str, arguments: Sequence[str], options: RunOptions) -> int:
    """Start the same command without --detach in a screen session, and say how to reach it.

    The session is called as the experiment folder, which also keeps what it says.

    Args:
        model: to train.
        arguments: of `train`, the model first.
        options: as they were read from the arguments.

    Raises:
        BookError: screen is missing or cannot start, or the folder cannot be made.
    """
    if processes.launched() > 1:
        raise BookError(
            "--detach starts one process: leave it out, and start the launcher itself in a session of screen"
        )
    screen = shutil.which("screen")
    if screen is None:
        raise BookError("--detach needs the program screen: install it (apt-get install screen), or leave out --detach")
    rest = [argument for argument in arguments if argument != "--detach"]
    folder = running_folder(options)
    if folder is None:
        name = options.name or f"{datetime.datetime.now():%Y%m%d_%H%M%S}-{model}"
        folder = named_folder(options.output_dir, name)
        rest += [] if options.name else ["--name", name]
    log = folder / LOG
    command = [sys.executable, "-m", "diffusion_book", "train", *rest]
    started = subprocess.run([screen, "-L", "-Logfile", str(log), "-dmS", folder.name, *command], capture_output=True)
    if started.returncode:
        said = " ".join((started.stdout + started.stderr).decode(errors="replace").split())
        raise BookError(f"screen could not start ({said}): leave out --detach")
    print(f"training in the background, in the screen session {folder.name}")
    print(f"look in:    screen -r {folder.name}    (and leave again with Ctrl-A, then D)")
    print(f"read along: tail -f {log}")
    print(f"stop:       screen -S {folder.name} -X stuff $'\\003'    (it saves first)")
    print(folder)
    return 0


def running_folder(options: RunOptions) -> Path | None:
    """The experiment folder of a training to continue; None where a new one begins."""
    if options.resume is None:
        return None
    path = find_checkpoint(options.resume)
    return path.parent.parent if path.parent.name == "checkpoints" else None
