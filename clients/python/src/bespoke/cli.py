"""The command `bespoke`: one subcommand for each thing to ask a server."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bespoke import _cli_output as output
from bespoke._cli_args import UsageError, parse
from bespoke.client import Client
from bespoke.errors import BespokeError
from bespoke.events import Delta
from bespoke.options import ConnectOptions
from bespoke.prompt import Persona
from bespoke.results import HealthStatus

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType

EXIT_OK = 0
EXIT_SERVER = 1
EXIT_USAGE = 2
# What a shell reports for a process that SIGINT or SIGPIPE ended: 128 plus the signal's number.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    try:
        args = parse(argv)
        with Client(args.target, **_connect_options(args)) as client:
            return _RUN[args.command](client, args)
    except BespokeError as error:
        output.print_error(error)
        return EXIT_SERVER
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (UsageError, TypeError, ValueError, OSError) as error:
        # TypeError and ValueError: the wire cannot carry a parameter. OSError: a file of a certificate.
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


def _connect_options(args: argparse.Namespace) -> ConnectOptions:
    options = ConnectOptions(token=os.environ.get("BESPOKE_TOKEN"))
    if args.tls:
        options["tls"] = True
    if args.root_certificates is not None:
        options["root_certificates"] = Path(args.root_certificates).read_bytes()
    if args.client_certificate is not None:
        options["client_certificate"] = (
            Path(args.client_certificate).read_bytes(),
            Path(args.client_key).read_bytes(),
        )
    return options


def _generate(client: Client, args: argparse.Namespace) -> int:
    options: dict[str, Any] = {
        "persona": _persona(args),
        "template": args.template,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "seed": args.seed,
        "stop_strings": args.stop,
        "timeout": args.timeout,
    }
    if not args.stream:
        generation = client.generate(args.prompt, **options)
        if args.json:
            output.print_json(output.generation(generation))
        else:
            print(generation.text)
        return EXIT_OK
    interrupted = False
    with client.stream(args.prompt, **options) as events:

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            nonlocal interrupted
            interrupted = True
            events.close()

        # No exception: one that a signal raises is lost in a destructor, and a fast stream runs many.
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            for event in events:
                if args.json:
                    output.print_json(output.event(event))
                elif isinstance(event, Delta):
                    print(event.text, end="", flush=True)
        finally:
            signal.signal(signal.SIGINT, before)
    if interrupted:
        return EXIT_INTERRUPTED
    if not args.json:
        print()
    return EXIT_OK


def _score(client: Client, args: argparse.Namespace) -> int:
    score = client.score(
        args.prompt,
        continuation=args.continuation,
        persona=_persona(args),
        template=args.template,
        timeout=args.timeout,
    )
    if args.json:
        output.print_json(output.plain(score))
        return EXIT_OK
    for token in score.tokens:
        print(f"{token.logprob:10.4f}  {token.token_id:6}  {output.quoted(token.piece)}")
    print(f"{score.total_logprob:10.4f}  total")
    return EXIT_OK


def _tokenize(client: Client, args: argparse.Namespace) -> int:
    tokens = client.tokenize(
        args.text, add_special=args.add_special, parse_control=args.parse_control, timeout=args.timeout
    )
    if args.json:
        output.print_json(output.plain(tokens))
        return EXIT_OK
    for token_id, piece in zip(tokens.token_ids, tokens.pieces):
        print(f"{token_id:6}  {output.quoted(piece)}")
    return EXIT_OK


def _info(client: Client, args: argparse.Namespace) -> int:
    info = output.plain(client.server_info(timeout=args.timeout))
    if args.json:
        output.print_json(info)
    else:
        output.print_tree(info)
    return EXIT_OK


def _health(client: Client, args: argparse.Namespace) -> int:
    if args.wait is not None:
        client.wait_ready(args.wait)
    status = client.health(timeout=args.timeout)
    if args.json:
        output.print_json({"status": status.value})
    else:
        print(status.value)
    return EXIT_OK if status is HealthStatus.SERVING else EXIT_SERVER


_RUN = {"generate": _generate, "score": _score, "tokenize": _tokenize, "info": _info, "health": _health}


def _persona(args: argparse.Namespace) -> Persona | None:
    if args.persona is not None:
        return Persona.text(args.persona)
    if args.persona_id is not None:
        return Persona.id(args.persona_id)
    return Persona.system() if args.system_persona else None
