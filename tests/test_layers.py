"""Which package may know which: arrows go down only, imports for type checking included.

The packages' docstrings say why. A new arrow is a decision: change the table here, and
what the docstrings promise.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import tornado_worker

ROOT = Path(tornado_worker.__file__).parent

# Modules beside the packages are packages of their own here. All but the package itself
# may know what is at the bottom.
BOTTOM = {"drain", "forked", "logs"}
ARROWS: dict[str, set[str]] = {
    "": {"drain", "server", "worker", "wsgi"},  # the public names
    "drain": set(),
    "forked": set(),
    "logs": set(),
    "connection": BOTTOM,
    "http1": {"connection", *BOTTOM},
    "http2": {"connection", *BOTTOM},
    "server": {"http1", "http2", "connection", *BOTTOM},
    "wsgi": {"connection.fields", *BOTTOM},
    "config": {
        "http1.reader",
        "http2.interfaces",
        "connection.peer",
        "connection.message_error",
        *BOTTOM,
    },
    "patches": {"connection.fields", "loading.gunicorn_loader", *BOTTOM},
    "reporting": {"connection", "wsgi.environ", *BOTTOM},
    "lifecycle": {"server", "connection.stream", "wsgi.container", *BOTTOM},
    "loading": BOTTOM,
    "worker": {
        "loading",
        "lifecycle",
        "reporting",
        "config",
        "patches",
        "server",
        "http1.connection",
        "connection",
        "wsgi",
        *BOTTOM,
    },
}
# The sans-IO part: bytes in, messages out.
SANS_IO = [
    *(f"http1.{m}" for m in ("chunks", "framing", "head_section", "host", "reader", "target")),
    *(
        f"http2.{m}"
        for m in ("errors", "frame_reader", "frames", "hpack", "huffman", "static_table")
    ),
]


class Import(NamedTuple):
    importer: str
    line: int
    module: str
    names: tuple[str, ...]


def modules() -> dict[str, Path]:
    """Return the modules by their names without the package's own, which is ""."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        .replace("__init__", "")
        .removesuffix("."): path
        for path in sorted(ROOT.rglob("*.py"))
    }


MODULES = modules()


def imports(importer: str) -> Iterator[Import]:
    """Yield what a module imports of this package, wherever it says so."""
    found: list[tuple[str, tuple[str, ...]]]
    for node in ast.walk(ast.parse(MODULES[importer].read_text())):
        if isinstance(node, ast.Import):
            found = [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{importer}:{node.lineno}: relative import"
            found = []
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner.partition(".")[2] in MODULES:
                    found.append((inner, ()))
                else:
                    found.append((node.module, (alias.name,)))
        else:
            continue
        for name, names in found:
            package, _, module = name.partition(".")
            if package == "tornado_worker":
                yield Import(importer, node.lineno, module, names)


def package_of(module: str) -> str:
    return module.partition(".")[0]


ALL = [found for importer in MODULES for found in imports(importer)]


def test_every_package_is_in_the_table() -> None:
    assert {package_of(module) for module in MODULES} == set(ARROWS)


@pytest.mark.parametrize("package", ARROWS)
def test_imports_follow_the_arrows(package: str) -> None:
    def is_allowed(module: str) -> bool:
        return any(
            module == allowed or (allowed and module.startswith(f"{allowed}."))
            for allowed in ARROWS[package]
        )

    wrong = [
        found
        for found in ALL
        if package_of(found.importer) == package != package_of(found.module)
        and not is_allowed(found.module)
    ]
    assert wrong == []


def test_every_arrow_is_used() -> None:
    """A table that allows what nobody needs says nothing."""
    used = {(package_of(found.importer), found.module) for found in ALL}
    unused = [
        (package, allowed)
        for package, arrows in ARROWS.items()
        for allowed in arrows - BOTTOM
        if not any(
            importer == package and (module == allowed or module.startswith(f"{allowed}."))
            for importer, module in used
        )
    ]
    assert unused == []


def test_no_module_leads_back_to_itself() -> None:
    graph = {
        module: {found.module for found in ALL if found.importer == module} for module in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_package_leads_back_to_itself() -> None:
    graph: dict[str, set[str]] = {package: set() for package in ARROWS}
    for found in ALL:
        importer, imported = package_of(found.importer), package_of(found.module)
        if importer != imported:
            graph[importer].add(imported)
    graphlib.TopologicalSorter(graph).prepare()


def test_private_names_stay_in_their_modules() -> None:
    assert [found for found in ALL if any(name.startswith("_") for name in found.names)] == []


@pytest.mark.parametrize("module", SANS_IO)
def test_sans_io_knows_neither_asyncio_nor_tornado(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    roots = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert roots.isdisjoint({"asyncio", "tornado", "gunicorn", "socket"})


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_its_job(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[module].read_text()))
    assert docstring
    assert len(docstring) > 60
