"""The connection layer schedules, and calls the application, only by what `isolation` gives it.

Read from the source: a call that slips past runs somebody's code in another's context,
and shows in no test that does not know of it. What that means is in test_context.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tornado_worker

FOLDER = Path(tornado_worker.__file__).parent
LAYER = [
    *sorted(
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for package in ("connection", "http1", "server")
        for path in (FOLDER / package).glob("*.py")
        if path.stem != "isolation"
    ),
    "logs/counted_line",
    "reporting/traffic",
]
# What leads to a loop that is not isolated, and who may ask for it.
RAW_LOOPS = {
    "asyncio_loop": {
        "server/server._establish",  # runs in a context of the server's
        "connection/stream.write",  # makes a future
    },
    "current": {
        "server/server.add_sockets",  # where the isolated one is made
        "connection/stream_view.io_loop",  # for the application
    },
    "get_running_loop": {"server/server.drained"},  # makes a future
}
SCHEDULING = {
    "call_soon",
    "call_soon_threadsafe",
    "call_later",
    "call_at",
    "create_task",
    "ensure_future",
    "add_reader",
    "add_writer",
    "add_done_callback",
    "add_handler",
    "run_in_executor",
    "add_callback",
    "add_future",
    "add_timeout",
    "spawn_callback",
    "start_tls",
    "sendfile",
}
# On what they are called: an IsolatedLoop, or for the application's a RequestTask.
SCHEDULERS = {"loop", "conn.loop", "self.loop", "self._loop", "self._transport.loop", "exchange"}
APPLICATION = {
    "start_request",
    "headers_received",
    "data_received",
    "finish",
    "on_connection_close",
}


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a method or function of a module, and the name of where it is."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())

    def walk(node: ast.AST, where: str) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            name = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = child.name
            if isinstance(child, ast.Call):
                yield f"{module}.{name}", child
            yield from walk(child, name)

    return walk(tree, "")


@pytest.mark.parametrize("module", LAYER)
def test_what_is_scheduled_is_scheduled_on_an_isolated_loop(module: str) -> None:
    wrong = [
        ast.unparse(call)
        for _, call in calls(module)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in SCHEDULING
        and ast.unparse(call.func.value) not in SCHEDULERS
        and ast.unparse(call.func) != "os.sendfile"
    ]
    assert wrong == []


@pytest.mark.parametrize("module", LAYER)
def test_other_loops_are_asked_for_only_where_it_is_harmless(module: str) -> None:
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    wrong = []
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                name = node.attr if isinstance(node, ast.Attribute) else ""
                if name in RAW_LOOPS and f"{module}.{function.name}" not in RAW_LOOPS[name]:
                    wrong.append(f"{function.name}: {ast.unparse(node)}")
    assert wrong == []


@pytest.mark.parametrize("module", LAYER)
def test_the_application_is_called_in_the_context_of_its_request(module: str) -> None:
    """But for `_tell_head`, which is itself called there."""
    wrong = [
        f"{where}: {ast.unparse(call)}"
        for where, call in calls(module)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in APPLICATION
        and ast.unparse(call.func.value).rpartition(".")[2] in ("delegate", "server")
        and where != "connection/delivery._tell_head"
    ]
    assert wrong == []


def test_all_parts_of_a_request_are_told_so() -> None:
    told = {
        ast.unparse(call.args[0])
        for module in LAYER
        for _, call in calls(module)
        if ast.unparse(call.func) == "exchange.call"
    }
    assert told == {"self._tell_head", "exchange.delegate.data_received", "delegate.finish"}
