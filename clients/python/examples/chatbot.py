"""A chatbot's backend: conversations over HTTP, answers streamed from the engine as server-sent events.

    python examples/chatbot.py --engine 127.0.0.1:50051 --port 8000
    curl -N localhost:8000/chat -d '{"conversation": "a", "persona": "The user is a novice cook.", "text": "Rice?"}'

Only the standard library stands between the chatbot and the engine, so that it fits whatever framework you have: what
matters is `Chatbot`. Each conversation keeps its last turns; the engine's prefix cache makes them cheap to send again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import OrderedDict
from collections.abc import Generator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from types import MappingProxyType

import bespoke

CONVERSATIONS_MAX = 1000
TURNS_MAX = 20
BODY_BYTES_MAX = 64 * 1024


class Chatbot:
    """Conversations, the oldest of which are forgotten, and the engine that answers them."""

    def __init__(self, client: bespoke.Client) -> None:
        self._client = client
        self._conversations: OrderedDict[str, list[bespoke.Message]] = OrderedDict()
        self._lock = Lock()

    def answer(self, conversation: str, persona: str | None, text: str) -> Generator[str, None, None]:
        """Yields the pieces of an answer; leaving early cancels it and keeps what was said before."""
        turns = [*self._turns(conversation), bespoke.Message("user", text)]
        said = ""
        with self._client.stream(messages=turns, persona=persona, max_new_tokens=400, timeout=120) as events:
            for event in events:
                # Text that may yet become a stop string is held back: such a delta has none.
                if isinstance(event, bespoke.Delta) and event.text:
                    said += event.text
                    yield event.text
        self._keep(conversation, [*turns, bespoke.Message("assistant", said)])

    def _turns(self, conversation: str) -> list[bespoke.Message]:
        with self._lock:
            return list(self._conversations.get(conversation, []))

    def _keep(self, conversation: str, turns: list[bespoke.Message]) -> None:
        with self._lock:
            self._conversations[conversation] = turns[-TURNS_MAX:]
            self._conversations.move_to_end(conversation)
            while len(self._conversations) > CONVERSATIONS_MAX:
                self._conversations.popitem(last=False)


class Handler(BaseHTTPRequestHandler):
    """`POST /chat` with `conversation`, `text` and perhaps `persona`."""

    chatbot: Chatbot

    def do_POST(self) -> None:
        """Streams an answer."""
        length = int(self.headers.get("content-length", 0))
        if self.path != "/chat" or length > BODY_BYTES_MAX:
            return self.send_error(404 if self.path != "/chat" else 413)
        try:
            asked = json.loads(self.rfile.read(length))
            conversation, text, persona = (asked.get(name) for name in ("conversation", "text", "persona"))
            if not isinstance(conversation, str) or not isinstance(text, str):
                raise TypeError("conversation and text are texts")
            pieces = self.chatbot.answer(conversation, persona, text)
            first = next(pieces, "")
        except (ValueError, AttributeError, TypeError, bespoke.InvalidArgument) as error:
            return self._refuse(400, str(error))
        except (bespoke.ResourceExhausted, bespoke.Unavailable) as error:
            return self._refuse(503, error.message, {"retry-after": str(math.ceil(error.retry_after or 1))})
        except bespoke.BespokeError as error:
            return self._refuse(502, error.message)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            self._send(first)
            for piece in pieces:
                self._send(piece)
            self.wfile.write(b"event: done\ndata: {}\n\n")
        except bespoke.BespokeError as error:
            self.wfile.write(f"event: error\ndata: {json.dumps(error.message)}\n\n".encode())
        except ConnectionError:
            # The person has gone: closing the pieces cancels the answer in the engine.
            pieces.close()
        return None

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in {"content-type": "text/plain; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(message.encode())

    def _send(self, piece: str) -> None:
        self.wfile.write(f"data: {json.dumps(piece)}\n\n".encode())
        self.wfile.flush()


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description="A chatbot's backend on the Bespoke engine.")
    parser.add_argument("--engine", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    with bespoke.Client(args.engine) as client:
        client.wait_ready(timeout=60)
        Handler.chatbot = Chatbot(client)
        with ThreadingHTTPServer(("127.0.0.1", args.port), Handler) as server:
            print(f"http://127.0.0.1:{server.server_address[1]}/chat", flush=True)
            server.serve_forever()


if __name__ == "__main__":
    main()
