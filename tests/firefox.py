"""A Firefox of the system, led by Marionette, the protocol that it brings along: as few words of it as the tests need."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 180  # seconds
# Under automation Firefox takes settings that relax its rules for files; a reader's Firefox has none of them.
PREFERENCES = {
    "remote.prefs.recommended": False,
    "marionette.port": 0,  # a free one, which it writes into its profile
    "datareporting.policy.dataSubmissionEnabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.aboutwelcome.enabled": False,
    "app.update.disabledForTesting": True,
    "network.dns.disabled": True,  # no network but this machine's own
}


def path() -> str | None:
    """Where there is a Firefox: $BOOK_FIREFOX or one on the path."""
    return os.environ.get("BOOK_FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")


class Firefox:
    """One window of a running Firefox."""

    def __init__(self, connection: socket.socket):
        self.connection, self.number = connection, 0
        self._receive()  # its greeting
        self.send("WebDriver:NewSession", capabilities={})
        self.send("WebDriver:SetTimeouts", script=1000 * PATIENCE, pageLoad=1000 * PATIENCE)

    def goto(self, address: str) -> None:
        self.send("WebDriver:Navigate", url=address)

    def run(self, code: str, *values):
        """What an asynchronous function of JavaScript returns, called with these values."""
        script = f"const [done] = [...arguments].slice(-1); ({code})(...[...arguments].slice(0, -1))"
        script += ".then(value => done({value}), error => done({error: String(error)}))"
        found = self.send("WebDriver:ExecuteAsyncScript", script=script, args=list(values), sandbox=None)["value"]
        if "error" in found:
            raise RuntimeError(found["error"])
        return found.get("value")

    def send(self, command: str, **values):
        self.number += 1
        text = json.dumps([0, self.number, command, values]).encode()
        self.connection.sendall(b"%d:%s" % (len(text), text))
        _, _, error, result = self._receive()
        if error:
            raise RuntimeError(f"{command}: {error['message']}")
        return result

    def _receive(self):
        size = b""
        while (letter := self._read(1)) != b":":
            size += letter
        return json.loads(self._read(int(size)))

    def _read(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            part = self.connection.recv(size - len(parts))
            if not part:
                raise RuntimeError("Firefox has gone")
            parts += part
        return parts


@contextlib.contextmanager
def started(profile: Path) -> Iterator[Firefox]:
    """A Firefox without a window of its own, with a new profile in this empty folder."""
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
    (profile / "user.js").write_text("".join(lines), encoding="utf-8")
    command = [path(), "--headless", "--no-remote", "--marionette", "--profile", str(profile)]
    environment = {**os.environ, "HOME": str(profile)}
    with (profile / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        port, until = profile / "MarionetteActivePort", time.monotonic() + PATIENCE
        while not (port.is_file() and port.read_text()):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((profile / "log").read_text(encoding="utf-8"))
            time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=2 * PATIENCE) as connection:
            yield Firefox(connection)
    finally:
        process.terminate()
        process.wait(PATIENCE)
