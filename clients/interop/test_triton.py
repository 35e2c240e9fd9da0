"""`tritonclient[grpc]` against the gRPC port: the Open Inference Protocol v2."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from conftest import Server
from tritonclient.utils import InferenceServerException

PARAMETERS = {"max_tokens": 20, "seed": 7, "ignore_eos": True}
# For an answer of the debug build on a busy machine.
ANSWER_SECONDS = 60.0


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as connected:
        yield connected


def inputs(prompt: str, **more: str) -> list[Any]:
    made = []
    for name, value in {"text_input": prompt, **more}.items():
        tensor = triton.InferInput(name, [1], "BYTES")
        tensor.set_data_from_numpy(np.array([value.encode()], dtype=object))
        made.append(tensor)
    return made


def text(result: Any) -> str:  # noqa: ANN401 (tritonclient has no types)
    output = result.as_numpy("text_output")
    return "" if output is None else b"".join(output).decode()


def test_live_ready_and_metadata(client: triton.InferenceServerClient, server: Server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(server.model)
    assert client.is_model_ready(server.model, "1")
    assert not client.is_model_ready("absent")
    assert client.get_server_metadata().name == "bespoke-engine"
    metadata = client.get_model_metadata(server.model)
    assert metadata.name == server.model
    assert {(tensor.name, tensor.datatype) for tensor in metadata.inputs} == {
        ("text_input", "BYTES"),
        ("persona", "BYTES"),
        ("sampling_parameters", "BYTES"),
    }
    assert [tensor.name for tensor in metadata.outputs] == ["text_output"]


def test_infer(client: triton.InferenceServerClient, server: Server) -> None:
    result = client.infer(server.model, inputs("How?"), request_id="a-1", parameters=PARAMETERS)
    response = result.get_response()
    assert text(result)
    assert (response.id, response.model_name) == ("a-1", server.model)
    as_tensor = inputs("How?", sampling_parameters=json.dumps(PARAMETERS))
    assert text(client.infer(server.model, as_tensor)) == text(result)


def test_a_persona_as_parameter_or_tensor(client: triton.InferenceServerClient, server: Server) -> None:
    persona = "The user is a novice cook."
    plain = client.infer(server.model, inputs("How?"), parameters=PARAMETERS)
    as_parameter = client.infer(server.model, inputs("How?"), parameters={**PARAMETERS, "persona": persona})
    as_tensor = client.infer(server.model, inputs("How?", persona=persona), parameters=PARAMETERS)
    assert text(as_parameter) == text(as_tensor) != text(plain)
    client.infer(server.model, inputs("How?"), parameters={**PARAMETERS, "persona_id": "novice"})


def test_stream_infer(client: triton.InferenceServerClient, server: Server) -> None:
    whole = text(client.infer(server.model, inputs("How?"), parameters=PARAMETERS))
    answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer(
        server.model, inputs("How?"), parameters=PARAMETERS, request_id="s", enable_empty_final_response=True
    )
    pieces = []
    while True:
        result, error = answers.get(timeout=ANSWER_SECONDS)
        assert error is None, error
        response = result.get_response()
        assert response.id == "s"
        if response.parameters["triton_final_response"].bool_param:
            break
        pieces.append(text(result))
    assert len(pieces) > 10
    assert "".join(pieces) == whole
    assert response.parameters["finish_reason"].string_param == "length"

    # What is wrong with one request of a stream does not end the stream.
    client.async_stream_infer(server.model, inputs("How?"), parameters={"temperature": -1.0})
    _, error = answers.get(timeout=ANSWER_SECONDS)
    assert error is not None
    assert "temperature" in error.message()
    client.async_stream_infer(
        server.model, inputs("How?"), parameters={**PARAMETERS, "max_tokens": 1}, enable_empty_final_response=True
    )
    _, error = answers.get(timeout=ANSWER_SECONDS)
    assert error is None
    client.stop_stream(cancel_requests=True)


def test_errors(client: triton.InferenceServerClient, server: Server) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("absent", inputs("How?"))
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    for parameters in ({"temperature": -1.0}, {"temprature": 1.0}):
        (name,) = parameters
        with pytest.raises(InferenceServerException, match=name) as caught:
            client.infer(server.model, inputs("How?"), parameters=parameters)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as caught:
        client.infer(server.model, inputs("How?"), parameters={**PARAMETERS, "max_tokens": 1500}, client_timeout=0.01)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_asyncio(server: Server) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": server.model, "inputs": inputs("How?"), "parameters": PARAMETERS}

    async def body() -> None:
        async with triton_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_ready()
            whole = text(await client.infer(server.model, inputs("How?"), parameters=PARAMETERS))
            pieces = []
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                pieces.append(text(result))
            assert "".join(pieces) == whole

    asyncio.run(body())
