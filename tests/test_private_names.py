"""What is used of Gunicorn, Tornado and others beyond their documented interfaces.

Run with the oldest and the newest supported versions: a release that moves one of
these must fail here, and not in somebody's request. docs/design.md names the users.
"""

from __future__ import annotations

import collections
import gc
import importlib
import inspect
import operator
from typing import Any

import pytest

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
    "tornado.httpserver:_HTTPRequestContext._apply_xheaders": "self headers",
    "tornado.iostream:BaseIOStream._check_closed": "self",
    "tornado.iostream:BaseIOStream._find_read_pos": "self",
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
    "tornado.httputil:HTTPHeaders.add": "_as_list",
    "tornado.iostream:BaseIOStream.read_into": "_user_read_buffer",
    "tornado.platform.asyncio:BaseAsyncIOLoop.add_callback": "_run_callback",
    "tornado.process:Subprocess._set_returncode": "_exit_callback",
    "tornado.tcpserver:TCPServer.__init__": "_sockets _stopped",
    "tornado.web:RequestHandler.__init__": "_finished _headers_written _prepared_future",
}


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
