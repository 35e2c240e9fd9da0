"""What the model is asked and for whom: messages, personas and templates, as the caller writes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(str, Enum):
    """Who says a turn of a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Template(str, Enum):
    """How prompt and persona become the text that the model continues. UNSPECIFIED leaves the choice to the server."""

    UNSPECIFIED = "unspecified"
    PAPER = "paper"
    CHAT = "chat"
    NONE = "none"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role | str
    content: str


class _Kind(Enum):
    """The members of the wire's `PersonaSource.source`."""

    NONE = "none"
    SYSTEM = "system"
    TEXT = "text"
    ID = "id"


@dataclass(frozen=True)
class Persona:
    """Where the persona of a request comes from. Made by one of the class methods."""

    kind: _Kind
    value: str = ""

    @classmethod
    def text(cls, text: str) -> Persona:
        """Makes the persona itself; a plain `str` for `persona=` means the same."""
        return cls(_Kind.TEXT, text)

    @classmethod
    def id(cls, name: str) -> Persona:
        """Names a persona that the server keeps, one of `ServerInfo.persona_ids`."""
        return cls(_Kind.ID, name)

    @classmethod
    def system(cls) -> Persona:
        """Takes the one persona that the server is configured with."""
        return cls(_Kind.SYSTEM)

    @classmethod
    def none(cls) -> Persona:
        """Says that there is no persona; the same as `persona=None`."""
        return cls(_Kind.NONE)
