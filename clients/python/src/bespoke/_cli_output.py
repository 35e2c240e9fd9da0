"""What the command `bespoke` prints."""

from __future__ import annotations

import dataclasses
import json
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bespoke.errors import BespokeError
    from bespoke.events import Event
    from bespoke.results import Generation


def print_json(value: object) -> None:
    """Prints one JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_tree(value: dict[str, Any], indent: str = "") -> None:
    """Prints nested names and values, one a line."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            print(f"{indent}{name}")
            print_tree(inner, indent + "  ")
        else:
            shown = ", ".join(map(str, inner)) if isinstance(inner, list) else inner
            print(f"{indent}{name}: {shown}")


def print_error(error: BespokeError) -> None:
    """Prints what went wrong and the details that say what to do."""
    details = error.details
    print(f"error: {error}", file=sys.stderr)
    for violation in details.violations:
        print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    if details.retry_after is not None:
        print(f"  try again in {details.retry_after:g} s", file=sys.stderr)


def generation(value: Generation) -> dict[str, Any]:
    """Returns an answer with the names that `bespoke-engine try --json` uses, and what the server said at the start."""
    return {
        "text": value.text,
        "token_ids": list(value.token_ids),
        "finish_reason": value.reason.value,
        "usage": plain(value.usage),
        "timings": plain(value.timings),
        **plain(value.started),
    }


def event(value: Event) -> dict[str, Any]:
    """Returns an event under its name on the wire."""
    return {type(value).__name__.lower(): plain(value)}


def plain(value: Any) -> Any:  # noqa: ANN401 (any JSON value)
    """Returns dataclasses as dictionaries, enums as their values and bytes as text."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        # A token's bytes need not be UTF-8.
        return value.decode("utf-8", errors="backslashreplace")
    return value


def quoted(piece: bytes) -> str:
    """Returns the bytes of a token on one line, spaces visible."""
    return json.dumps(plain(piece), ensure_ascii=False)
