"""The list of changes to the whole process, and its copy in docs/design.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tornado_worker.patches.apply import CHANGES, Change, When

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
TABLE = DESIGN.read_text().partition("## Changes to the process")[2].partition("\n## ")[0]
assert TABLE, "docs/design.md has no such section"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.names[0])
def test_every_change_is_documented(change: Change) -> None:
    for name in change.names:
        owner, _, attribute = name.rpartition(".")
        rows = [row for row in TABLE.splitlines() if re.search(rf"\b{attribute}`", row)]
        assert any(owner in row for row in rows), name
        if change.when is not When.IMPORT:
            where = row_end(rows[0])
            assert where.startswith("the arbiter" if change.when is When.ARBITER else "a worker")


def row_end(row: str) -> str:
    return row.strip("| ").rpartition("|")[2].strip()
