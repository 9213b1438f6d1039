"""Check that what the documents link to inside the repository exists.

Run by `tox -e lint` at the root. Looks at Markdown links without a scheme: the
file must be there, and a fragment must be one of its headings.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def headings(document: Path) -> set[str]:
    """Return the fragments that a forge makes of a document's headings."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    found = re.findall(r"^#+\s+(.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken(document: Path) -> list[str]:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    found = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (
            fragment and target.suffix == ".md" and fragment not in headings(target)
        ):
            found.append(f"{document}: broken link {link}")
    return found


def main() -> int:
    tracked = subprocess.run(
        ["git", "ls-files", "*.md"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout.split()
    # Without git (an unpacked sdist) there is nothing to leave out.
    documents = [Path(name) for name in tracked] or sorted(Path().glob("**/*.md"))
    problems = [problem for document in documents for problem in broken(document)]
    print(*problems, f"{len(documents)} documents, {len(problems)} broken links", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
