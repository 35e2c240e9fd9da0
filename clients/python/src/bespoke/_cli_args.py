"""The arguments of the command `bespoke`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bespoke._channel import DEFAULT_TARGET

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = """\
examples:
  bespoke generate "How do I boil an egg?" --persona "The user is a novice cook."
  bespoke generate "" --template none --temperature 0 --max-new-tokens 50 --json
  bespoke score "What is the capital of France?" " Paris" --template chat
  bespoke health --wait 60 && bespoke info

exit codes: 0 ok (health: serving), 1 the server answered with an error or cannot be reached, 2 usage
"""


class UsageError(Exception):
    """Arguments that do not go together."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments; exits with 2 and a message where they are wrong, with 0 after `--help`."""
    parser = argparse.ArgumentParser(
        prog="bespoke",
        description="Asks a Bespoke server for text tailored to a persona.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = _shared()
    rendering = _rendering()
    _add_generate(commands.add_parser("generate", parents=[rendering, shared], help="print an answer as it grows"))
    score = commands.add_parser("score", parents=[rendering, shared], help="print log-probabilities of a given answer")
    score.add_argument("prompt", metavar="PROMPT")
    score.add_argument("continuation", metavar="CONTINUATION", help="text that follows the rendered prompt")
    tokenize = commands.add_parser("tokenize", parents=[shared], help="print the tokens of a text")
    tokenize.add_argument("text", metavar="TEXT")
    tokenize.add_argument("--add-special", action="store_true", help="add what the tokenizer adds to a prompt, as BOS")
    tokenize.add_argument("--parse-control", action="store_true", help="take spelled control tokens as such")
    commands.add_parser("info", parents=[shared], help="print the facts of the server, its model and its load")
    health = commands.add_parser("health", parents=[shared], help="print whether the server serves")
    health.add_argument("--wait", type=float, metavar="SECONDS", help="wait so long at most until it serves")
    args = parser.parse_args(argv)
    if args.command == "generate" and args.stream is None:
        args.stream = not args.json
    if (args.client_certificate is None) != (args.client_key is None):
        raise UsageError("`--client-certificate` and `--client-key` go together")
    if args.timeout is not None and args.timeout <= 0:
        raise UsageError("`--timeout` must be above 0")
    return args


def _shared() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--target", default=DEFAULT_TARGET, metavar="HOST:PORT", help="the server (default: %(default)s)"
    )
    shared.add_argument("--tls", action="store_true", help="connect with TLS; BESPOKE_TOKEN is the bearer token")
    shared.add_argument("--root-certificates", metavar="FILE", help="PEM file to trust instead of the system's")
    shared.add_argument("--client-certificate", metavar="FILE", help="PEM file of this client's certificate chain")
    shared.add_argument("--client-key", metavar="FILE", help="PEM file of its key")
    shared.add_argument("--timeout", type=float, metavar="SECONDS", help="deadline of the call (default: none)")
    shared.add_argument(
        "--json", action="store_true", help="print one JSON object; a stream: one a line for each event"
    )
    return shared


def _rendering() -> argparse.ArgumentParser:
    rendering = argparse.ArgumentParser(add_help=False)
    persona = rendering.add_mutually_exclusive_group()
    persona.add_argument("--persona", metavar="TEXT", help='such as "The user is a novice cook."')
    persona.add_argument(
        "--persona-id", metavar="ID", help="a persona that the server keeps; `bespoke info` lists them"
    )
    persona.add_argument("--system-persona", action="store_true", help="the persona of the server's configuration")
    rendering.add_argument(
        "--template",
        choices=["paper", "chat", "none"],
        help="how prompt and persona become text (default: the server's)",
    )
    return rendering


def _add_generate(generate: argparse.ArgumentParser) -> None:
    generate.add_argument("prompt", metavar="PROMPT", help='may be "": the model then starts from the template alone')
    generate.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print text as it comes, or at the end (default: --stream, with --json --no-stream)",
    )
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: 512)")
    generate.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token (default: 1)")
    generate.add_argument("--top-k", type=int, metavar="K", help="keep the K most likely tokens (default: all)")
    generate.add_argument("--top-p", type=float, metavar="P", help="keep the most likely tokens of mass P (default: 1)")
    generate.add_argument("--seed", type=int, metavar="S", help="fixes the random draw (default: the server chooses)")
    generate.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
