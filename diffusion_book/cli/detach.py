"""`diffusion-book train MODEL --detach`: a training that outlives its terminal, in a session of GNU screen."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from diffusion_book.models.checkpoints import find_checkpoint
from diffusion_book.system import processes
from diffusion_book.system.errors import BookError
from diffusion_book.system.files import only_writer, timestamped_folder
from diffusion_book.training.experiment import LOG, claim, experiment_of, named_folder
from diffusion_book.training.options import RunOptions


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
    folder = experiment_of(None if options.resume is None else find_checkpoint(options.resume))
    if folder is None:
        if options.name:
            folder = named_folder(options.output_dir, options.name)
        else:
            folder = timestamped_folder(options.output_dir, model)
            rest += ["--name", folder.name]
        log = claim(folder)
    else:
        with only_writer(folder):  # refused here rather than in the log
            log = folder / LOG
    # -P: else Python would take a file of the current folder, such as a queue.py, for one of its own library.
    command = [sys.executable, "-P", "-m", "diffusion_book", "train", *rest]
    written = str(log.absolute()).replace("%", "%%")  # screen would read %t as its title
    started = subprocess.run([screen, "-L", "-Logfile", written, "-dmS", folder.name, *command], capture_output=True)
    if started.returncode:
        answer = " ".join((started.stdout + started.stderr).decode(errors="replace").split())
        if options.resume is None:  # what was made for it alone
            log.unlink()
            folder.rmdir()
        raise BookError(f"screen could not start ({answer}): leave out --detach")
    name = shlex.quote(folder.name)
    print(f"training in the background, in the screen session {folder.name}")
    print(f"look in:    screen -r {name}    (and leave again with Ctrl-A, then D)")
    print(f"read along: tail -f {shlex.quote(str(log))}")
    print(f"stop:       screen -S {name} -X stuff $'\\003'    (it saves first)")
    print(folder)
    return 0
