"""What the tests of the commands share."""

import pytest

from diffusion_book.cli.main import main


def refused(capsys, *arguments):
    """The one line on stderr with which a command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line
