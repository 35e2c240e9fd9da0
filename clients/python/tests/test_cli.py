"""The command line, run as a process against a scripted server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2

from fake_server import Context, FakeServer, Response, abort, whole_stream

COMMAND = [sys.executable, "-m", "bespoke"]


def bespoke(server: FakeServer | None, *args: str) -> subprocess.CompletedProcess[str]:
    target = ["--target", server.target] if server else []
    return subprocess.run([*COMMAND, *args, *target], capture_output=True, text=True, timeout=30, check=False)


def test_generate_streams(server: FakeServer) -> None:
    done = bespoke(
        server, "generate", "Hi", "--persona", "novice", "--temperature", "0", "--max-new-tokens", "5", "--seed", "7"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    request = server.requests[0]
    assert type(request).__name__ == "GenerateStreamRequest"
    assert (request.spec.text, request.spec.persona.text) == ("Hi", "novice")
    assert (request.params.sampling.temperature, request.params.sampling.seed) == (0, 7)
    assert request.params.max_new_tokens == 5


def test_generate_whole_and_as_json(server: FakeServer) -> None:
    done = bespoke(server, "generate", "Hi", "--no-stream", "--persona-id", "x", "--template", "chat", "--stop", "!")
    assert (done.returncode, done.stdout) == (0, "Hello\n")
    request = server.requests[0]
    assert type(request).__name__ == "GenerateRequest"
    assert (request.spec.persona.id, request.spec.template, request.params.stop.strings) == ("x", 2, ["!"])
    answer = json.loads(bespoke(server, "generate", "", "--json").stdout)
    assert (answer["text"], answer["token_ids"], answer["finish_reason"]) == ("Hello", [0, 1], "stop")
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["timings"]["decode_ms"] == 3
    assert (answer["seed"], answer["request_id"]) == (7, "r1")


def test_generate_streams_json_lines(server: FakeServer) -> None:
    done = bespoke(server, "generate", "Hi", "--json", "--stream", "--system-persona")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [next(iter(line)) for line in lines] == ["started", "delta", "delta", "finished"]
    assert lines[-1]["finished"]["choices"][0]["reason"] == "length"


def test_other_commands(server: FakeServer) -> None:
    score = bespoke(server, "score", "Hi", " Paris")
    assert score.returncode == 0
    assert score.stdout.splitlines()[-1].split() == ["-0.5000", "total"]
    assert json.loads(bespoke(server, "score", "Hi", "x", "--json").stdout)["total_logprob"] == -0.5
    assert bespoke(server, "tokenize", "ab").stdout.splitlines()[0].split() == ["4", '"a"']
    assert json.loads(bespoke(server, "tokenize", "ab", "--json").stdout)["pieces"] == ["a", "\\xff"]
    assert "name: tiny" in bespoke(server, "info").stdout
    assert json.loads(bespoke(server, "info", "--json").stdout)["model"]["default_template"] == "paper"


def test_health(server: FakeServer) -> None:
    done = bespoke(server, "health", "--wait", "10")
    assert (done.returncode, done.stdout) == (0, "serving\n")
    server.set_serving(False)
    done = bespoke(server, "health")
    assert (done.returncode, done.stdout) == (1, "not_serving\n")


def test_server_errors_exit_1_and_name_the_field(server: FakeServer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="params.n", description="is above 16")
    detail = error_details_pb2.BadRequest(field_violations=[violation])

    def fails(context: Context) -> Iterator[Response]:
        yield from list(whole_stream())[:1]
        abort(context, grpc.StatusCode.INVALID_ARGUMENT, "bad", detail)

    server.on_stream = fails
    done = bespoke(server, "generate", "Hi")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: INVALID_ARGUMENT: bad", "  params.n: is above 16"]


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["generate"],
        ["generate", "Hi", "--template", "papre"],
        ["generate", "Hi", "--persona", "a", "--system-persona"],
        ["generate", "Hi", "--seed", "-1"],
        ["info", "--timeout", "0"],
    ],
)
def test_wrong_usage_exits_2(args: list[str]) -> None:
    done = bespoke(None, *args)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_the_commands() -> None:
    done = bespoke(None, "--help")
    assert done.returncode == 0
    for command in ("generate", "score", "tokenize", "info", "health"):
        assert command in done.stdout


def test_ctrl_c_cancels_and_exits_without_a_traceback(server: FakeServer) -> None:
    server.on_stream = server.endless_stream
    command = [*COMMAND, "generate", "Hi", "--target", server.target]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"a"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (130, b"")
    assert server.cancelled.wait(5)


def test_a_closed_pipe_ends_the_stream(server: FakeServer) -> None:
    server.on_stream = server.endless_stream
    command = [*COMMAND, "generate", "Hi", "--target", server.target]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"a"
    process.stdout.close()
    assert process.wait(timeout=10) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert server.cancelled.wait(5)
