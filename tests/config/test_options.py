"""What a subclass of the worker may set: checked at boot, documented."""

from __future__ import annotations

import inspect
import math
import signal
from pathlib import Path

import pytest
from tornado.web import Application

from tornado_worker import TornadoWorker
from tornado_worker.config.options import (
    ATTRIBUTES,
    SERVER_OPTIONS,
    class_name,
    find_errors,
    find_strangers,
    markdown_tables,
)
from tornado_worker.config.server_arguments import SAME_NAMES, SETTINGS_FOR
from tornado_worker.server.server import HTTPServer
from tornado_worker.wsgi.body import SPOOL_SIZE

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def subclass(**attributes):
    return type("Worker", (TornadoWorker,), attributes)


def error(**attributes):
    [text] = find_errors(subclass(**attributes)).values()
    return text


# -- the tables --------------------------------------------------------------------


def test_every_constant_of_the_worker_is_in_the_table():
    constants = {
        name
        for base in TornadoWorker.__mro__
        for name in vars(base)
        if name.isupper() and base.__module__.startswith("tornado_worker")
    }
    assert constants == set(ATTRIBUTES)


def test_every_argument_of_the_server_is_an_option_or_a_setting():
    arguments = set(inspect.signature(HTTPServer.initialize).parameters) - {"options"}
    arguments -= {"self", "request_callback", "policy"}
    settings = set(SAME_NAMES) | set(SETTINGS_FOR)
    assert arguments <= set(SERVER_OPTIONS) | settings
    assert not settings & set(SERVER_OPTIONS)


def test_unknown_argument_of_the_server_is_an_error_that_names_it():
    message = "unexpected argument 'limit_request_lines' of HTTPServer: .*, limit_request_line,"
    with pytest.raises(TypeError, match=message):
        HTTPServer(Application(), limit_request_lines=1)


def test_line_may_fill_the_head_unless_something_else_is_said():
    rules = HTTPServer(Application(), max_header_size=1 << 20, limit_request_line=None).rules
    assert (rules.line_max, rules.field_max, rules.fields_max) == (1 << 20, 1 << 20, 100)
    rules = HTTPServer(Application(), limit_request_line=50, limit_request_fields=7).rules
    assert (rules.line_max, rules.field_max, rules.fields_max) == (50, 65536, 7)


def test_documentation_shows_the_tables():
    # To write them, print `tornado_worker.config.options.markdown_tables()`.
    _, _, rest = DOCS.read_text().partition("<!-- options -->\n\n")
    assert rest.startswith(markdown_tables() + "\n")


def test_defaults_of_the_attributes_are_those_of_the_worker():
    for name, option in ATTRIBUTES.items():
        assert option.default == repr(getattr(TornadoWorker, name)), name


def test_defaults_of_the_arguments_are_those_of_the_server():
    parameters = inspect.signature(HTTPServer.initialize).parameters
    # Both are None in the signature, for a size that is chosen later.
    sizes = {
        "max_buffer_size": HTTPServer(Application()).max_buffer_size,
        "max_spool_size": SPOOL_SIZE,
    }
    for name, option in SERVER_OPTIONS.items():
        if name in sizes:
            assert option.default == f"{sizes[name] / 2**20:g} MiB", name
        else:
            assert option.default == repr(parameters[name].default), name


def test_defaults_are_right():
    assert find_errors(TornadoWorker) == {}
    assert find_strangers(TornadoWorker) == []


# -- values ------------------------------------------------------------------------

SECONDS = ["30s", None, True, -1, -0.1, math.inf, math.nan, [], object()]
WRONG_ATTRIBUTES = {
    "RECYCLE_TIMEOUT": SECONDS,
    "WEBSOCKET_CLOSE_SPREAD": SECONDS,
    "WEBSOCKET_PING_INTERVAL": SECONDS,
    "SLOW_HANDLER": SECONDS,
    "WEBSOCKET_CLOSE_CODE": ["1001", None, True, 1001.0, 0, 999, 1005, 1006, 1015, 2000, 5000],
    "SERVER_OPTIONS": [None, [], "xheaders", {"max_body_size": "10MB"}],
}
RIGHT_ATTRIBUTES = {
    "RECYCLE_TIMEOUT": [0, 0.5, 600],
    "WEBSOCKET_CLOSE_SPREAD": [0, 10.0],
    "WEBSOCKET_PING_INTERVAL": [0, 25],
    "SLOW_HANDLER": [0, 0.05],
    "WEBSOCKET_CLOSE_CODE": [1000, 1001, 1012, 3000, 4999],
    "SERVER_OPTIONS": [{}, {"xheaders": True}],
}

POSITIVE = ["60", True, 0, -1, math.inf, math.nan]
WRONG_OPTIONS = {
    "body_timeout": POSITIVE,
    "chunk_size": ["64k", True, 0, -1, 1.5],
    "decompress_request": ["yes", 1, None],
    "header_timeout": POSITIVE,
    "max_body_size": ["10MB", True, -1, 1e6],
    "max_buffer_size": ["10MB", True, 0, -1, 1e6],
    "max_spool_size": ["1GB", False, -1, 1e9],
    "protocol": ["ftp", "HTTPS", 1, True],
    "stall_timeout": [*POSITIVE, None],
    "trusted_downstream": ["10.0.0.1", b"10.0.0.1", [1], 5],
    "xheaders": ["yes", 1, None],
}
RIGHT_OPTIONS = {
    "body_timeout": [None, 60, 0.5],
    "chunk_size": [None, 65536],
    "decompress_request": [True, False],
    "header_timeout": [None, 60],
    "max_body_size": [None, 0, 10_000_000],
    "max_buffer_size": [None, 1],
    "max_spool_size": [None, 0, 1 << 30],
    "protocol": [None, "http", "https"],
    "stall_timeout": [0.1, 60],
    "trusted_downstream": [None, [], ["10.0.0.1"], {"10.0.0.1"}, ("10.0.0.1",)],
    "xheaders": [True, False],
}


def test_every_attribute_and_option_is_tried():
    assert set(WRONG_ATTRIBUTES) == set(RIGHT_ATTRIBUTES) == set(ATTRIBUTES)
    assert set(WRONG_OPTIONS) == set(RIGHT_OPTIONS) == set(SERVER_OPTIONS)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_is_checked(name):
    for value in WRONG_ATTRIBUTES[name]:
        text = error(**{name: value})
        assert text.startswith(f"invalid {name} of test_options.Worker: "), value
        assert "expected " in text, value
    for value in RIGHT_ATTRIBUTES[name]:
        assert find_errors(subclass(**{name: value})) == {}, value


@pytest.mark.parametrize("name", SERVER_OPTIONS)
def test_server_option_is_checked(name):
    for value in WRONG_OPTIONS[name]:
        text = error(SERVER_OPTIONS={name: value})
        assert text.startswith(f"invalid SERVER_OPTIONS of test_options.Worker: {name!r}: "), value
        assert "expected " in text, value
    for value in RIGHT_OPTIONS[name]:
        assert find_errors(subclass(SERVER_OPTIONS={name: value})) == {}, value


def test_error_says_what_was_expected_and_what_came():
    where = " of test_options.Worker: "
    assert error(SERVER_OPTIONS={"max_body_size": "10MB"}) == (
        f"invalid SERVER_OPTIONS{where}'max_body_size': expected an integer of bytes >= 0, or None;"
        " got '10MB'"
    )
    assert error(WEBSOCKET_PING_INTERVAL="30s") == (
        f"invalid WEBSOCKET_PING_INTERVAL{where}expected a number of seconds >= 0; got '30s'"
    )
    assert error(RECYCLE_TIMEOUT="x" * 100).endswith(f"got '{'x' * 56}...")
    assert error(RECYCLE_TIMEOUT=[]).endswith("got list")


def test_property_of_a_subclass_is_asked_for_its_value():
    cls = subclass(SLOW_HANDLER=property(lambda self: "1s"))
    assert find_errors(cls) == {}
    assert list(find_errors(cls.__new__(cls))) == ["SLOW_HANDLER"]


# -- names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SLOW_HANDLERS", "SLOW_HANDLER"),
        ("WEBSOCKET_PING", "WEBSOCKET_PING_INTERVAL"),
        ("SERVER_OPTION", "SERVER_OPTIONS"),
        ("server_options", "SERVER_OPTIONS"),
        ("slow_handler", "SLOW_HANDLER"),
        ("XHEADERS", 'SERVER_OPTIONS["xheaders"]'),
        ("MAX_BODY_SIZE", 'SERVER_OPTIONS["max_body_size"]'),
        ("GRACEFUL_TIMEOUT", "Gunicorn's setting graceful_timeout"),
    ],
)
def test_misspelt_attribute_is_told_by_its_nearest_right_name(name, meant):
    assert error(**{name: 1}) == (
        f"unknown attribute {name} of test_options.Worker: did you mean {meant}?"
    )


def test_names_of_its_own_are_the_subclass_s():
    cls = subclass(_POOL_SIZE=1, pool_size=1, pool=lambda self: 1, SIGNALS=[], PIPE=[])
    assert find_errors(cls) == {}
    assert find_strangers(cls) == []


def test_other_constant_is_warned_of():
    cls = subclass(POOL=1)
    assert find_errors(cls) == {}
    [text] = find_strangers(cls)
    assert text.startswith("unknown attribute POOL of test_options.Worker: it means nothing to the")


def test_misspelt_option_is_told_by_its_nearest_right_name():
    text = error(SERVER_OPTIONS={"max_body": 1})
    assert "unknown name 'max_body' (did you mean 'max_body_size'?); expected some of " in text
    assert "did you mean" not in error(SERVER_OPTIONS={"colour": 1})
    assert "unknown name 1; expected" in error(SERVER_OPTIONS={1: 1})


def test_class_is_named_by_its_module():
    assert class_name(subclass()) == "test_options.Worker"
    assert class_name(TornadoWorker) == "tornado_worker.worker.TornadoWorker"


# -- through Gunicorn --------------------------------------------------------------

APP = """
    import tornado.web

    class Hello(tornado.web.RequestHandler):
        def get(self):
            self.write("hello")

    app = tornado.web.Application([("/", Hello)])
    """


def config(*attributes, rest=""):
    body = "".join(f"\n    {attribute}" for attribute in attributes) or "\n    pass"
    return (
        "from tornado_worker import TornadoWorker\n"
        f"class worker_class(TornadoWorker):{body}\n{rest}\n"
    )


def start(gunicorn, text, **kwargs):
    return gunicorn(APP, config=text, worker_class=None, **kwargs)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (
            'SERVER_OPTIONS = {"max_body_size": "10MB"}',
            "invalid SERVER_OPTIONS of gunicorn.conf.py:worker_class: 'max_body_size': expected an"
            " integer of bytes >= 0, or None; got '10MB'",
        ),
        ("SLOW_HANDLERS = 2", "unknown attribute SLOW_HANDLERS of gunicorn.conf.py:worker_class: "),
    ],
)
@pytest.mark.parametrize("args", [[], ["--check-config"]])
def test_wrong_attribute_stops_gunicorn_with_one_sentence(gunicorn, attribute, message, args):
    server = start(gunicorn, config(attribute), args=args, wait=False)
    assert server.wait_exit() == 1
    assert message in server.stderr
    assert "Booting worker" not in server.log


def test_foreign_constant_is_warned_of_once(gunicorn):
    server = start(gunicorn, config("POOL = 5", rest="workers = 2"))
    server.wait_workers(2)
    assert server.request("/").text == "hello"
    assert server.count_log(r"\[WARNING\] unknown attribute POOL of gunicorn.conf.py:work") == 1


def test_wrong_attribute_at_a_reload_keeps_what_serves(gunicorn):
    server = start(gunicorn, config("SLOW_HANDLER = 3.0", 'SERVER_OPTIONS = {"xheaders": True}'))
    [first] = server.wait_workers()
    assert server.request("/").text == "hello"
    since = server.mark()
    options = 'SERVER_OPTIONS = {"xheaders": 1}'
    server.write("gunicorn.conf.py", config('SLOW_HANDLER = "3s"', options))
    server.signal(signal.SIGHUP)
    server.wait_log(r"invalid SLOW_HANDLER .* got '3s'; the reload keeps 3.0$", since=since)
    server.wait_log(r"invalid SERVER_OPTIONS .* got 1; the reload keeps {'xheaders': True}$")
    server.wait_worker_exit(first)
    assert server.request("/").text == "hello"
    assert server.count_log("invalid SLOW_HANDLER", since=since) == 1
    since = server.mark()
    server.write("gunicorn.conf.py", config("SLOW_HANDLER = 4.0"))
    server.signal(signal.SIGHUP)
    server.wait_log("tornado_worker .* on ", since=since)
    assert server.request("/").text == "hello"
    assert server.count_log("invalid", since=since) == 0


def test_attribute_that_a_hook_sets_is_checked(gunicorn):
    rest = "def post_fork(arbiter, worker): worker.SLOW_HANDLER = '1s'"
    server = start(gunicorn, config(rest=rest), wait=False)
    assert server.wait_exit() == 3
    assert server.count_log(r"\[ERROR\] invalid SLOW_HANDLER of gunicorn.conf.py:worker_class") == 1
    assert "Traceback" not in server.log
