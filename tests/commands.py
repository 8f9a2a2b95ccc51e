"""What the tests of the commands share."""

import pytest

from diffusion_book.cli.main import main
from diffusion_book.training.trainer import Trainer


def refused(capsys, *arguments):
    """The one line on stderr with which a command refuses: at the door, before any training."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "steps", lambda trainer: pytest.fail("it was not refused: a training began"))
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line
