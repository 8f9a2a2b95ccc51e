"""Commands whose pipe or terminal goes away."""

import errno
import os
import subprocess
import sys

import pytest

from diffusion_book.system.streams import Steady, steady

TALK = "import sys\nfrom diffusion_book.cli import main as cli\n"
TALK += "def talk(*arguments):\n    for _ in range(100_000):\n        print('a line of words')\n"
TALK += "    open(sys.argv[1], 'w').write('done')\n    return 0\n"
TALK += (
    "import types\nsys.modules['diffusion_book.cli.doctor'] = types.SimpleNamespace(main=talk)\ncli.main(['doctor'])\n"
)


def run(path, shell):
    environment = {**os.environ, "PY": sys.executable, "TALK": TALK, "FILE": str(path)}
    return subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$PY" -c "$TALK" "$FILE" | head -1; exit ${PIPESTATUS[0]}', 0, ""),
        ('"$PY" -c "$TALK" "$FILE" > /dev/full', 1, "error: stdout cannot be written (No space left on device)"),
        ('"$PY" -c "$TALK" "$FILE" >&-', 0, ""),
        ('"$PY" -c "$TALK" "$FILE" >/dev/null 2>&-', 0, ""),
    ],
    ids=["a pipe that closes", "a full disk", "no stdout", "no stderr"],
)
def test_work_goes_on_when_nobody_listens(tmp_path, shell, code, said):
    ended = run(tmp_path / "file", shell)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said)
    assert len(ended.stderr.splitlines()) == bool(said)
    assert (tmp_path / "file").read_text() == "done"


def test_a_bar_without_a_stderr_is_silent(tmp_path):
    code = TALK.replace("print('a line of words')", "pass").replace(
        "range(100_000)", "__import__('tqdm').tqdm(range(3))"
    )
    environment = {**os.environ, "PY": sys.executable, "TALK": code, "FILE": str(tmp_path / "file")}
    ended = subprocess.run(["bash", "-c", '"$PY" -c "$TALK" "$FILE" 2>&-'], env=environment, timeout=120)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_text() == "done"


def test_only_what_nobody_did_on_purpose_is_a_failure():
    class Broken:
        def __init__(self, number):
            self.number = number

        def write(self, text):
            raise OSError(self.number, os.strerror(self.number))

        def fileno(self):
            raise ValueError("none")

    for number, failed in ((errno.EPIPE, False), (errno.EIO, False), (errno.ENOSPC, True)):
        stream = Steady(Broken(number))
        stream.write("words")
        assert (stream.failure is not None) == failed


def test_the_streams_are_given_back():
    before = sys.stdout, sys.stderr
    with steady():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before
