from . import event_pb2 as _event_pb2
from . import params_pb2 as _params_pb2
from . import prompt_pb2 as _prompt_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateStreamRequest(_message.Message):
    __slots__ = ("spec", "params", "request_id", "priority")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    spec: _prompt_pb2.PromptSpec
    params: _params_pb2.GenerationParams
    request_id: str
    priority: int
    def __init__(self, spec: _Optional[_Union[_prompt_pb2.PromptSpec, _Mapping]] = ..., params: _Optional[_Union[_params_pb2.GenerationParams, _Mapping]] = ..., request_id: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("started", "delta", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: _event_pb2.Started
    delta: _event_pb2.Delta
    finished: _event_pb2.Finished
    def __init__(self, started: _Optional[_Union[_event_pb2.Started, _Mapping]] = ..., delta: _Optional[_Union[_event_pb2.Delta, _Mapping]] = ..., finished: _Optional[_Union[_event_pb2.Finished, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("spec", "params", "request_id", "priority")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    spec: _prompt_pb2.PromptSpec
    params: _params_pb2.GenerationParams
    request_id: str
    priority: int
    def __init__(self, spec: _Optional[_Union[_prompt_pb2.PromptSpec, _Mapping]] = ..., params: _Optional[_Union[_params_pb2.GenerationParams, _Mapping]] = ..., request_id: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "choices", "usage", "timings", "prompt_logprobs")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    started: _event_pb2.Started
    choices: _containers.RepeatedCompositeFieldContainer[GeneratedChoice]
    usage: _event_pb2.Usage
    timings: _event_pb2.Timings
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_event_pb2.TokenLogprob]
    def __init__(self, started: _Optional[_Union[_event_pb2.Started, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[GeneratedChoice, _Mapping]]] = ..., usage: _Optional[_Union[_event_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[_event_pb2.Timings, _Mapping]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_event_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...

class GeneratedChoice(_message.Message):
    __slots__ = ("choice", "text", "token_ids", "logprobs", "reason", "matched_stop", "generated_tokens")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STOP_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    choice: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_event_pb2.TokenLogprob]
    reason: _event_pb2.FinishReason
    matched_stop: _event_pb2.MatchedStop
    generated_tokens: int
    def __init__(self, choice: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_event_pb2.TokenLogprob, _Mapping]]] = ..., reason: _Optional[_Union[_event_pb2.FinishReason, str]] = ..., matched_stop: _Optional[_Union[_event_pb2.MatchedStop, _Mapping]] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("spec", "continuation", "top_logprobs", "request_id", "priority")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    spec: _prompt_pb2.PromptSpec
    continuation: Continuation
    top_logprobs: int
    request_id: str
    priority: int
    def __init__(self, spec: _Optional[_Union[_prompt_pb2.PromptSpec, _Mapping]] = ..., continuation: _Optional[_Union[Continuation, _Mapping]] = ..., top_logprobs: _Optional[int] = ..., request_id: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class Continuation(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _prompt_pb2.TokenIdList
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[_prompt_pb2.TokenIdList, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("tokens", "total_logprob", "prompt_tokens")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_event_pb2.TokenLogprob]
    total_logprob: float
    prompt_tokens: int
    def __init__(self, tokens: _Optional[_Iterable[_Union[_event_pb2.TokenLogprob, _Mapping]]] = ..., total_logprob: _Optional[float] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...
