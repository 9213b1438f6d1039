"""Fail if tests leave out a line of a package, unless a comment there says why.

Run by `tox -e coverage` with the report of `coverage json` and the folder of the package.
Lines only: branches are shown, for a reader to judge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(report: Path, folder: str) -> int:
    files = json.loads(report.read_text())["files"]
    looked_at = {name: file for name, file in files.items() if f"{folder}/" in name}
    missing = [
        f"{name}:{line}: no test runs this; write one, or say why: # pragma: no cover (...)"
        for name, file in sorted(looked_at.items())
        for line in file["missing_lines"]
    ]
    print(*missing, f"{folder}: {len(looked_at)} files, {len(missing)} lines left out", sep="\n")
    return 1 if missing or not looked_at else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
