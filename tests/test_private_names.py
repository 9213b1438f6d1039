"""What is used of Gunicorn and Tornado beyond their documented interfaces.

Run with the oldest and the newest supported versions: a release that moves one of
these must fail here, and not in somebody's request. docs/design.md names the users.
"""

from __future__ import annotations

import importlib
import inspect
import operator

import pytest

NAMES = {
    # What is no function has no parameters: None.
    "gunicorn.http.message:HeaderPolicy._apply_header_policy": (
        "self name value scheme_state seen secure_scheme_headers forwarder_headers from_trailer"
    ),
    "gunicorn.http.message:_ip_in_allow_list": "ip_str allow_list networks",
    "gunicorn.http.wsgi:SERVER": None,
    "gunicorn.util:import_app": "module",
    "tornado.http1connection:_GzipMessageDelegate": "delegate chunk_size max_body_size",
    "tornado.httpserver:_HTTPRequestContext._apply_xheaders": "self headers",
    "tornado.iostream:BaseIOStream._check_closed": "self",
    "tornado.iostream:BaseIOStream._find_read_pos": "self",
    "tornado.iostream:BaseIOStream._read_from_buffer": "self pos",
    "tornado.iostream:BaseIOStream._signal_closed": "self",
    "tornado.iostream:BaseIOStream._try_inline_read": "self",
    "tornado.web:RequestHandler._execute": "self transforms args kwargs",
}


# Attributes that a function sets or asks for.
USED_IN = {
    "SIG_QUEUE": "gunicorn.arbiter:Arbiter.__init__",
    "_decompressed_body_size": "tornado.http1connection:_GzipMessageDelegate.data_received",
    "_prepared_future": "tornado.web:RequestHandler.__init__",
    "_exit_callback": "tornado.process:Subprocess._set_returncode",
    "_run_callback": "tornado.platform.asyncio:BaseAsyncIOLoop.add_callback",
    "_as_list": "tornado.httputil:HTTPHeaders.add",
    "_user_read_buffer": "tornado.iostream:BaseIOStream.read_into",
}


@pytest.mark.parametrize("name", USED_IN)
def test_private_attribute_is_used_where_it_was(name: str) -> None:
    module, _, attributes = USED_IN[name].partition(":")
    function = operator.attrgetter(attributes)(importlib.import_module(module))
    assert name in function.__code__.co_names


@pytest.mark.parametrize("name", NAMES)
def test_private_name_is_what_it_was(name: str) -> None:
    module, _, attributes = name.partition(":")
    found = operator.attrgetter(attributes)(importlib.import_module(module))
    parameters = NAMES[name]
    if parameters is not None:
        assert " ".join(inspect.signature(found).parameters) == parameters
