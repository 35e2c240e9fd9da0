"""Regenerates `src/bespoke/_generated` from the .proto files of the repository: `python generate.py`.

Needs the `dev` extra, which pins the generator's version and says why.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROTO_ROOT = HERE.parent.parent / "proto" / "proto"
GENERATED = HERE / "src" / "bespoke" / "_generated"

INIT_TEXT = '"""Generated from the .proto files by `generate.py`. Do not edit."""\n'
# The generator imports by the path of the .proto file; inside this package the files are neighbours.
ABSOLUTE_IMPORT = re.compile(r"^from bespoke\.v1 import ", re.MULTILINE)


def generate(out: Path) -> None:
    """Writes the generated package to the folder `out`, which must be absent or empty.

    Raises ImportError where grpcio-tools is missing and RuntimeError where the generator refuses the .proto files.
    """
    from grpc_tools import protoc

    package = out / "v1"
    package.mkdir(parents=True)
    raw = out / "raw"
    raw.mkdir()
    protos = sorted(str(path.relative_to(PROTO_ROOT)) for path in PROTO_ROOT.glob("bespoke/v1/*.proto"))
    flags = [f"--{kind}_out={raw}" for kind in ("python", "pyi", "grpc_python")]
    if not protos or protoc.main(["protoc", f"-I{PROTO_ROOT}", *flags, *protos]) != 0:
        raise RuntimeError(f"protoc failed for {protos} in {PROTO_ROOT}")
    for path in sorted((raw / "bespoke" / "v1").iterdir()):
        text = path.read_text(encoding="utf-8")
        # A .proto file without a service gets an empty file of stubs.
        if path.name.endswith("_pb2_grpc.py") and "class " not in text:
            continue
        (package / path.name).write_text(ABSOLUTE_IMPORT.sub("from . import ", text), encoding="utf-8")
    shutil.rmtree(raw)
    for folder in (out, package):
        (folder / "__init__.py").write_text(INIT_TEXT, encoding="utf-8")


def main() -> int:
    """Replaces the committed package by a new one; where the generator fails, the old one stays."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / GENERATED.name
        generate(fresh)
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)
    print(f"wrote {GENERATED}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
