"""What tox.ini selects exists: a path or a word of `-k` that names nothing any more fails here.

A selection that matches nothing would pass, and an exception to it come back unseen.
"""

from __future__ import annotations

import ast
import configparser
import re

import pytest

from helpers.gunicorn_process import REPOSITORY

# Ids of parametrized tests, which have no function of that name: loops, servers, agents.
IDS = {"uvloop", "asyncio", "tls", "stock", "newrelic", "NewRelic"}

tox = configparser.ConfigParser(interpolation=None)
tox.read(REPOSITORY / "tox.ini")
VALUES = "\n".join(value for section in tox.sections() for value in tox[section].values())


def selected() -> set[str]:
    """Return the words of all `-k` expressions, those of their parts included."""
    text = " ".join(re.findall(r'-k "([^"]*)"', VALUES))
    part = re.compile(r"\{\[(testenv(?::\w+)?)\](\w+)\}")
    while part.search(text):
        text = part.sub(lambda match: tox[match[1]][match[2]], text)
    return set(re.findall(r"\w+", text)) - {"and", "or", "not"}


def names_of_tests() -> str:
    """Return the names of all folders, files and functions, a line each."""
    names = []
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        names += [path.parent.name, path.stem]
        names += [
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
    return "\n".join(names)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\btests/[\w/.]+", VALUES))))
def test_path_that_is_selected_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()


def test_words_that_are_selected_match_something() -> None:
    existing = names_of_tests()
    assert [word for word in selected() - IDS if word not in existing] == []


def test_parts_of_selections_are_looked_at() -> None:
    assert {"blocked_loop", "test_growth", "test_forked_child", "test_demo"} <= selected()
