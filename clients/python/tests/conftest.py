"""Fixtures: the fake server, and the real one where its binary is given."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bespoke import Client
from fake_server import FakeServer

REPOSITORY = Path(__file__).resolve().parents[3]
# A debug build on a busy machine loads the 1 MB model in a few seconds.
START_SECONDS = 120.0


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.set_serving(True)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def model_folder() -> Path:
    given = os.environ.get("BESPOKE_TEST_MODEL")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "fixtures" / "stories260k"
    if not folder.exists():
        pytest.skip("no model: set BESPOKE_TEST_MODEL to a model folder")
    return folder


class RealServer:
    """A running `bespoke-engine serve`."""

    def __init__(self, model: Path, folder: Path) -> None:
        binary = os.environ.get("BESPOKE_ENGINE_BIN")
        if not binary:
            pytest.skip("no server: set BESPOKE_ENGINE_BIN to the `bespoke-engine` binary")
        port_file = folder / "port"
        self._log_path = folder / "log"
        command = [binary, "serve", "--model", str(model), "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.target = self._wait_for_target(port_file)
            with Client(self.target) as client:
                client.wait_ready(timeout=START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _wait_for_target(self, port_file: Path) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if port_file.exists() and (target := port_file.read_text().strip()):
                return target
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        log = self._log_path.read_text(errors="replace")
        raise AssertionError(f"the server did not listen; exit code {self.process.poll()}; log:\n{log}")


@pytest.fixture(scope="session")
def real_server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    running = RealServer(model_folder, tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


@pytest.fixture
def own_server(model_folder: Path, tmp_path: Path) -> Iterator[RealServer]:
    """A server that the test may end."""
    running = RealServer(model_folder, tmp_path)
    yield running
    running.kill()


@pytest.fixture
def real_client(real_server: RealServer) -> Iterator[Client]:
    with Client(real_server.target) as connected:
        yield connected
