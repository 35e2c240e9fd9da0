"""The committed stubs are what the .proto files give."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER))

import generate  # noqa: E402


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*.py*") if path.suffix in {".py", ".pyi"})
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


def test_regenerating_gives_what_is_committed(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="no grpcio-tools: install the `dev` extra (Python 3.12 or older)")
    if not generate.PROTO_ROOT.is_dir():
        pytest.skip("no .proto files: not inside the repository")
    generate.generate(tmp_path / "out")
    fresh, committed = files(tmp_path / "out"), files(generate.GENERATED)
    assert sorted(fresh) == sorted(committed)
    stale = [name for name, text in fresh.items() if text != committed[name]]
    assert stale == [], "run `python generate.py`"


def test_committed_stubs_import_each_other_relatively() -> None:
    for name, text in files(generate.GENERATED).items():
        assert not re.search(r"^(import|from) bespoke", text, re.MULTILINE), name
