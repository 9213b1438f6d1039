"""What is used of Gunicorn, Tornado and others beyond their documented interfaces.

Run with the oldest and the newest supported versions: a release that moves one of
these must fail here, and not in somebody's request. docs/design.md names the users.
The package's source is searched as well, so that no private name is missing here.
"""

from __future__ import annotations

import ast
import collections
import gc
import importlib
import inspect
import operator
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tornado_worker

NAMES = {
    # What is no function has no parameters: None.
    "asyncio.tasks:_enter_task": "loop task",
    "asyncio.tasks:_leave_task": "loop task",
    "asyncio.base_events:BaseEventLoop._run_once": "self",
    "gunicorn.glogging:Logger._get_user": "self environ",
    "gunicorn.http.message:HeaderPolicy._apply_header_policy": (
        "self name value scheme_state seen secure_scheme_headers forwarder_headers from_trailer"
    ),
    "gunicorn.http.message:_ip_in_allow_list": "ip_str allow_list networks",
    "gunicorn.http.wsgi:SERVER": None,
    "gunicorn.util:import_app": "module",
    "logging:FileHandler._open": "self",
    "threading:_register_atexit": "func arg kwargs",
    "tornado.http1connection:_GzipMessageDelegate": "delegate chunk_size max_body_size",
    "tornado.httpserver:_HTTPRequestContext": "stream address protocol trusted_downstream",
    "tornado.httpserver:_HTTPRequestContext._apply_xheaders": "self headers",
    "tornado.iostream:BaseIOStream._add_io_state": "self state",
    "tornado.iostream:BaseIOStream._check_closed": "self",
    "tornado.iostream:BaseIOStream._consume": "self loc",
    "tornado.iostream:BaseIOStream._find_read_pos": "self",
    "tornado.iostream:BaseIOStream._maybe_add_error_listener": "self",
    "tornado.iostream:BaseIOStream._read_from_buffer": "self pos",
    "tornado.iostream:BaseIOStream._signal_closed": "self",
    "tornado.iostream:BaseIOStream._try_inline_read": "self",
    "tornado.web:RequestHandler._execute": "self transforms args kwargs",
    "uvloop:Loop._get_backend_id": None,
    "werkzeug.local:LocalProxy._get_current_object": None,
}
# Of what need not be installed.
OPTIONAL = {"uvloop", "werkzeug"}


# Functions that set or ask for an attribute, and those attributes.
USES = {
    "asyncio.base_events:BaseEventLoop.__init__": "_ready _scheduled",
    "asyncio.events:Handle.__init__": "_callback _args",
    "asyncio.selector_events:BaseSelectorEventLoop.__init__": "_selector _transports",
    "asyncio.selector_events:_SelectorSocketTransport.__init__": "_read_ready_cb",
    "asyncio.selector_events:_SelectorSocketTransport.write": "_write_ready",
    "asyncio.selector_events:_SelectorTransport.__init__": "_sock",
    "asyncio.sslproto:SSLProtocol.__init__": "_transport",
    "asyncio.sslproto:_SSLProtocolTransport.__init__": "_ssl_protocol",
    "asyncio.tasks:_GatheringFuture.__init__": "_children",
    "gunicorn.arbiter:Arbiter.__init__": "SIG_QUEUE",
    "gunicorn.glogging:Logger._set_handler": "_gunicorn",
    "logging:Formatter.__init__": "_fmt",
    "tornado.http1connection:_GzipMessageDelegate.__init__": "_max_body_size",
    "tornado.http1connection:_GzipMessageDelegate.data_received": "_decompressed_body_size",
    "tornado.httputil:HTTPHeaders.__init__": "_combined_cache",
    "tornado.httputil:HTTPHeaders.add": "_as_list",
    "tornado.iostream:BaseIOStream.__init__": "_closed _read_buffer",
    "tornado.iostream:BaseIOStream.read_into": "_user_read_buffer",
    "tornado.platform.asyncio:BaseAsyncIOLoop.add_callback": "_run_callback",
    "tornado.process:Subprocess._set_returncode": "_exit_callback",
    "tornado.tcpserver:TCPServer.__init__": "_handlers _sockets _stopped",
    "tornado.web:RequestHandler.__init__": "_finished _headers_written _prepared_future",
}


# Documented in spite of their underscores.
DOCUMENTED = {"_current_frames", "_exit", "_getframe", "_make", "_thread"}
# Made by `abc`, for each class.
MADE = {"_abc_impl"}
# Of Tornado 6.5 only: `connection.fields` asks at import what HTTPHeaders stores.
OLDER = {"_last_key"}
# The package's own, used from another module than the class that has them.
OURS = {"_conn", "_on_wakeup", "_run_to_end"}

ROOT = Path(tornado_worker.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def _is_private(name: str) -> bool:
    return re.fullmatch(r"_(?!_).*[^_]", name) is not None and name.isidentifier()


def _members(definition: ast.ClassDef) -> Iterator[str]:
    """Yield what a class statement gives to its instances."""
    for node in ast.walk(definition):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name


def _classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _private_names_of_others() -> Iterator[tuple[str, str]]:
    """Yield each private name that the class or the module using it does not define itself.

    Attributes, strings (for `getattr`) and imports, each with its place.
    """
    own: dict[str, set[str]] = collections.defaultdict(set)
    bases: dict[str, set[str]] = collections.defaultdict(set)
    for tree in TREES.values():
        for definition in _classes(tree):
            own[definition.name].update(_members(definition))
            bases[definition.name].update(map(ast.unparse, definition.bases))

    def members(name: str) -> set[str]:
        return own[name].union(*map(members, bases[name])) if name in own else set()

    for path, tree in TREES.items():
        of_module = {definition.name for definition in _classes(tree)}
        of_module = of_module.union(*map(members, of_module))
        of_self: dict[ast.AST, set[str]] = {
            node: members(definition.name)
            for definition in _classes(tree)
            for node in ast.walk(definition)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
        }
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(attr=name):
                    names = {name}
                case ast.Constant(value=str(name)):
                    names = {name}
                case ast.ImportFrom(names=aliases):
                    names = {alias.name for alias in aliases}
                case _:
                    continue
            own_names = of_self.get(node, of_module)
            for name in names - own_names:
                if _is_private(name):
                    yield name, f"{path.relative_to(ROOT)}:{node.lineno}"


def _overridden_names() -> Iterator[tuple[str, str]]:
    """Yield each private name that a class of ours has instead of a base class of others."""
    for module in pkgutil.walk_packages(tornado_worker.__path__, "tornado_worker."):
        for obj in vars(importlib.import_module(module.name)).values():
            if not isinstance(obj, type) or obj.__module__ != module.name:
                continue
            for base in obj.__mro__[1:]:
                if base.__module__.partition(".")[0] in ("gunicorn", "tornado", "asyncio"):
                    for name in filter(_is_private, vars(obj).keys() & vars(base).keys()):
                        yield name, f"{module.name}.{obj.__name__}"


def _listed() -> set[str]:
    names = {name.rpartition(":")[2].rpartition(".")[2] for name in NAMES}
    return names.union(*(attributes.split() for attributes in USES.values()))


def test_private_names_that_the_package_uses_are_listed() -> None:
    known = _listed() | DOCUMENTED | MADE | OLDER | OURS
    found = {*_private_names_of_others(), *_overridden_names()}
    assert sorted(place for place in found if place[0] not in known) == []


def test_private_names_that_are_listed_are_used() -> None:
    source = "".join(path.read_text() for path in TREES)
    assert [name for name in _listed() if not re.search(rf"\b{name}\b", source)] == []


def _find(name: str) -> Any:
    module, _, attributes = name.partition(":")
    package = module.partition(".")[0]
    if package in OPTIONAL:
        pytest.importorskip(package)
    return operator.attrgetter(attributes)(importlib.import_module(module))


@pytest.mark.parametrize("function", USES)
def test_private_attribute_is_used_where_it_was(function: str) -> None:
    assert set(USES[function].split()) <= set(_find(function).__code__.co_names)


@pytest.mark.parametrize("name", NAMES)
def test_private_name_is_what_it_was(name: str) -> None:
    found = _find(name)
    parameters = NAMES[name]
    if parameters is not None:
        assert " ".join(inspect.signature(found).parameters) == parameters


def test_queue_of_uvloop_is_the_one_that_the_garbage_collector_shows() -> None:
    loop = pytest.importorskip("uvloop").new_event_loop()
    try:
        queues = [obj for obj in gc.get_referents(loop) if type(obj) is collections.deque]
        assert len(queues) == 1
    finally:
        loop.close()
