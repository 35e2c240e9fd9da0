from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]

class Template(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TEMPLATE_UNSPECIFIED: _ClassVar[Template]
    TEMPLATE_PAPER: _ClassVar[Template]
    TEMPLATE_CHAT: _ClassVar[Template]
    TEMPLATE_NONE: _ClassVar[Template]
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
TEMPLATE_UNSPECIFIED: Template
TEMPLATE_PAPER: Template
TEMPLATE_CHAT: Template
TEMPLATE_NONE: Template

class PromptSpec(_message.Message):
    __slots__ = ("text", "messages", "token_ids", "persona", "template", "persona_in_prompt", "response_prefix", "prefix_cache")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    PERSONA_IN_PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    text: str
    messages: MessageList
    token_ids: TokenIdList
    persona: PersonaSource
    template: Template
    persona_in_prompt: bool
    response_prefix: str
    prefix_cache: PrefixCache
    def __init__(self, text: _Optional[str] = ..., messages: _Optional[_Union[MessageList, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIdList, _Mapping]] = ..., persona: _Optional[_Union[PersonaSource, _Mapping]] = ..., template: _Optional[_Union[Template, str]] = ..., persona_in_prompt: bool = ..., response_prefix: _Optional[str] = ..., prefix_cache: _Optional[_Union[PrefixCache, _Mapping]] = ...) -> None: ...

class PrefixCache(_message.Message):
    __slots__ = ("off", "salt")
    OFF_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    off: bool
    salt: str
    def __init__(self, off: bool = ..., salt: _Optional[str] = ...) -> None: ...

class MessageList(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIdList(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class PersonaSource(_message.Message):
    __slots__ = ("none", "system", "text", "id")
    NONE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    none: NoPersona
    system: SystemPersona
    text: str
    id: str
    def __init__(self, none: _Optional[_Union[NoPersona, _Mapping]] = ..., system: _Optional[_Union[SystemPersona, _Mapping]] = ..., text: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class NoPersona(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SystemPersona(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
