"""The real server, as a process, for clients that know nothing of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# A debug build on a busy machine takes a while to start.
START_SECONDS = 120.0
CONFIG = '[personas]\nnovice = "The user is new to this and likes small steps."\n'


class Server:
    """A running `bespoke-engine serve` with its HTTP address."""

    def __init__(self, folder: Path, *flags: str) -> None:
        binary, model = os.environ.get("BESPOKE_ENGINE_BIN"), os.environ.get("BESPOKE_TEST_MODEL")
        if not binary or not model:
            pytest.skip("set BESPOKE_ENGINE_BIN and BESPOKE_TEST_MODEL")
        self.model = Path(model).name
        grpc, http, config = folder / "grpc", folder / "http", folder / "config.toml"
        config.write_text(CONFIG)
        command = [binary, "serve", "--model", model, "--config", str(config), "--listen", "127.0.0.1:0"]
        command += ["--port-file", str(grpc), "--http-address", "127.0.0.1:0", "--http-port-file", str(http), *flags]
        self._log_path = folder / "log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.grpc, self.http = (self._address(path) for path in (grpc, http))
        except BaseException:
            self.kill()
            raise

    @property
    def openai(self) -> str:
        """The base URL of OpenAI's API."""
        return f"http://{self.http}/v1"

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()

    def _address(self, path: Path) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if path.exists() and (address := path.read_text().strip()):
                return address
            time.sleep(0.02)
        log = self._log_path.read_text(errors="replace")
        raise AssertionError(f"the server did not listen; exit code {self.process.poll()}; log:\n{log}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that leave it as it is."""
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


@pytest.fixture
def narrow_server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own that answers one request, lets one wait and refuses the rest."""
    running = Server(tmp_path, "--queue-max", "1", "--sequences-max", "1")
    yield running
    running.kill()
