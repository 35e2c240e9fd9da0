from . import prompt_pb2 as _prompt_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpanKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPAN_KIND_UNSPECIFIED: _ClassVar[SpanKind]
    SPAN_KIND_TEXT: _ClassVar[SpanKind]
    SPAN_KIND_CONTROL: _ClassVar[SpanKind]
SPAN_KIND_UNSPECIFIED: SpanKind
SPAN_KIND_TEXT: SpanKind
SPAN_KIND_CONTROL: SpanKind

class TokenizeRequest(_message.Message):
    __slots__ = ("text", "add_special", "parse_control")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_FIELD_NUMBER: _ClassVar[int]
    PARSE_CONTROL_FIELD_NUMBER: _ClassVar[int]
    text: str
    add_special: bool
    parse_control: bool
    def __init__(self, text: _Optional[str] = ..., add_special: bool = ..., parse_control: bool = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids", "pieces")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("token_ids", "skip_control")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_CONTROL_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_control: bool
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., skip_control: bool = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class RenderPromptRequest(_message.Message):
    __slots__ = ("spec", "response")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    spec: _prompt_pb2.PromptSpec
    response: str
    def __init__(self, spec: _Optional[_Union[_prompt_pb2.PromptSpec, _Mapping]] = ..., response: _Optional[str] = ...) -> None: ...

class RenderPromptResponse(_message.Message):
    __slots__ = ("text", "spans", "token_ids", "trained", "template", "persona", "template_hash")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    PERSONA_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_HASH_FIELD_NUMBER: _ClassVar[int]
    text: str
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    trained: _containers.RepeatedScalarFieldContainer[bool]
    template: _prompt_pb2.Template
    persona: str
    template_hash: str
    def __init__(self, text: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., trained: _Optional[_Iterable[bool]] = ..., template: _Optional[_Union[_prompt_pb2.Template, str]] = ..., persona: _Optional[str] = ..., template_hash: _Optional[str] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("text", "kind", "trained")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    text: str
    kind: SpanKind
    trained: bool
    def __init__(self, text: _Optional[str] = ..., kind: _Optional[_Union[SpanKind, str]] = ..., trained: bool = ...) -> None: ...
