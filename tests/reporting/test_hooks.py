"""Gunicorn's server hooks: each called once, in its process, in order, with what hooks use."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from typing import Any

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually

Start = Callable[..., GunicornProcess]

APP = """
    import asyncio
    from tornado.web import Application, RequestHandler, FallbackHandler
    from tornado.websocket import WebSocketHandler
    from tornado_worker import WSGIContainer

    class Hello(RequestHandler):
        def get(self):
            self.set_header("X-Request-Id", self.request.headers.get("X-Request-Id", "none"))
            self.write("hello")

    class Poll(RequestHandler):
        async def get(self):
            await asyncio.sleep(30)

    class Socket(WebSocketHandler):
        pass

    def wsgi(environ, start_response):
        environ["seen.by.hook"] = "yes"
        start_response("201 Created", [
            ("X-Request-Id", environ.get("HTTP_X_REQUEST_ID", "none")), ("Content-Length", "4"),
        ])
        return [b"wsgi"]

    app = Application([
        ("/hello", Hello), ("/poll", Poll), ("/socket", Socket),
        ("/.*", FallbackHandler, {"fallback": WSGIContainer(wsgi)}),
    ])
"""

LIFECYCLE = """
    import os

    def say(name):
        with open("hooks.log", "a") as file:
            file.write(f"{name} {os.getpid()}\\n")

    def on_starting(server): say("on_starting")
    def on_reload(server): say("on_reload")
    def when_ready(server): say("when_ready")
    def pre_fork(server, worker): say("pre_fork")
    def post_fork(server, worker): say("post_fork")
    def post_worker_init(worker): say("post_worker_init")
    def worker_int(worker): say("worker_int")
    def worker_abort(worker): say("worker_abort")
    def child_exit(server, worker): say("child_exit")
    def worker_exit(server, worker): say("worker_exit")
    def nworkers_changed(server, new, old): say(f"nworkers_changed_{old}_{new}")
    def on_exit(server): say("on_exit")
    def pre_exec(server): say("pre_exec")
"""


def hooks_of(server: GunicornProcess) -> list[tuple[str, int]]:
    lines = (server.directory / "hooks.log").read_text().split("\n")[:-1]
    return [(name, int(pid)) for name, pid in map(str.split, lines)]


def wait_hook(server: GunicornProcess, name: str, count: int = 1) -> None:
    eventually(
        lambda: [seen for seen, _ in hooks_of(server)].count(name) >= count,
        what=f"hook {name} x{count}",
    )


def test_lifecycle_hooks_run_once_in_their_process_and_order(gunicorn: Start) -> None:
    server = gunicorn(APP, config=LIFECYCLE)
    master = server.pid
    [worker] = server.wait_workers(1)
    assert server.request("/hello").status == 200
    assert hooks_of(server) == [
        ("nworkers_changed_None_1", master),
        ("on_starting", master),
        ("when_ready", master),
        ("pre_fork", master),
        ("post_fork", worker),
        ("post_worker_init", worker),
    ]
    seen = len(hooks_of(server))
    server.signal(signal.SIGTTIN)
    wait_hook(server, "post_worker_init", 2)
    second = server.wait_workers(2)[1]
    assert hooks_of(server)[seen:] == [
        ("nworkers_changed_1_2", master),
        ("pre_fork", master),
        ("post_fork", second),
        ("post_worker_init", second),
    ]
    seen = len(hooks_of(server))
    server.signal(signal.SIGTTOU)
    wait_hook(server, "child_exit")
    assert hooks_of(server)[seen:] == [
        ("nworkers_changed_2_1", master),
        ("worker_exit", worker),
        ("child_exit", master),
    ]
    seen = len(hooks_of(server))
    server.signal(signal.SIGHUP)
    wait_hook(server, "child_exit", 2)
    third = server.wait_workers(1)[0]
    wait_hook(server, "post_worker_init", 3)
    after = hooks_of(server)[seen:]
    assert sorted(after) == sorted(
        [
            ("on_reload", master),
            ("nworkers_changed_1_1", master),
            ("pre_fork", master),
            ("post_fork", third),
            ("post_worker_init", third),
            ("worker_exit", second),
            ("child_exit", master),
        ]
    )
    seen = len(hooks_of(server))
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert hooks_of(server)[seen:] == [
        ("worker_exit", third),
        ("child_exit", master),
        ("on_exit", master),
    ]


def test_worker_int_and_worker_abort_run_in_the_worker(gunicorn: Start) -> None:
    server = gunicorn(APP, config=LIFECYCLE)
    for number, name in ((signal.SIGINT, "worker_int"), (signal.SIGABRT, "worker_abort")):
        [worker] = server.wait_workers(1)
        assert server.request("/hello").status == 200
        server.signal_worker(worker, number)
        server.wait_worker_exit(worker)
        assert [hook for hook in hooks_of(server) if hook[0] == name] == [(name, worker)]
        eventually(lambda worker=worker: server.worker_pids() not in ([], [worker]))


# -- requests ------------------------------------------------------------------


def test_header_that_a_hook_may_not_set_costs_no_other(
    gunicorn: Callable[..., GunicornProcess],
) -> None:
    config = """
        def pre_request(worker, req):
            req.headers.insert(0, ("X-START", 1.5))
        """
    server = gunicorn(
        """
        import tornado.web

        class Fields(tornado.web.RequestHandler):
            def get(self):
                self.write(self.request.headers.get("X-In", "lost"))

        app = tornado.web.Application([("/", Fields)])
        """,
        config=config,
    )
    assert server.request("/", headers={"X-In": "here"}).text == "here"
    assert server.count_log("Exception in pre_request hook") == 1


REQUESTS = """
    import json, time

    def pre_request(worker, req):
        req.began = time.time()
        req.headers.append(("X-REQUEST-ID", "7"))
        worker.requests = getattr(worker, "requests", 0) + 1

    def post_request(worker, req, environ, resp):
        with open("requests.log", "a") as file:
            file.write(json.dumps({
                "number": worker.requests, "pid": worker.pid, "cfg": worker.cfg.workers,
                "method": req.method, "uri": req.uri, "path": req.path, "query": req.query,
                "fragment": req.fragment, "version": req.version, "scheme": req.scheme,
                "headers": dict(req.headers), "trailers": req.trailers,
                "peer": req.peer_addr[0], "remote": req.remote_addr[0],
                "proxy": req.proxy_protocol_info, "seconds": time.time() - req.began,
                "status": resp.status, "code": resp.status_code, "sent": resp.sent,
                "length": resp.response_length, "id": dict(resp.headers).get("X-Request-Id"),
                "headers_sent": resp.headers_sent, "close": resp.should_close(),
                "chunked": resp.chunked, "version_": resp.version,
                "environ": {key: environ[key] for key in (
                    "REQUEST_METHOD", "RAW_URI", "PATH_INFO", "QUERY_STRING", "REMOTE_ADDR",
                    "SERVER_PROTOCOL", "HTTP_HOST", "wsgi.url_scheme", "SERVER_PORT",
                )},
                "seen": environ.get("seen.by.hook"),
            }) + "\\n")
"""


def requests_of(server: GunicornProcess, count: int) -> list[dict[str, Any]]:
    path = server.directory / "requests.log"
    eventually(lambda: path.exists() and len(path.read_text().splitlines()) >= count)
    lines = path.read_text().splitlines()
    assert len(lines) == count, lines
    return [json.loads(line) for line in lines]


def test_request_hooks_see_what_hooks_in_the_wild_use(gunicorn: Start) -> None:
    server = gunicorn(APP, config=REQUESTS)
    native = server.request("/hello?a=1", headers={"Host": "example", "X-In": "x"})
    wsgi = server.request("/%41?b", "POST", b"body", {"Host": "example"})
    # What the hook appended has reached the applications.
    assert (native.headers["X-Request-Id"], wsgi.headers["X-Request-Id"]) == ("7", "7")
    first, second = requests_of(server, 2)
    assert 0 <= first.pop("seconds") < 30 and second.pop("seconds") >= 0
    assert first == {
        "number": 1,
        "pid": server.worker_pids()[0],
        "cfg": 1,
        "method": "GET",
        "uri": "/hello?a=1",
        "path": "/hello",
        "query": "a=1",
        "fragment": "",
        "version": [1, 1],
        "scheme": "http",
        "headers": {
            "HOST": "example",
            "ACCEPT-ENCODING": "identity",
            "X-IN": "x",
            "X-REQUEST-ID": "7",
        },
        "trailers": [],
        "peer": "127.0.0.1",
        "remote": "127.0.0.1",
        "proxy": None,
        "status": "200 OK",
        "code": 200,
        "sent": 5,
        "length": 5,
        "id": "7",
        "headers_sent": True,
        "close": False,
        "chunked": False,
        "version_": first["version_"],
        "environ": {
            "REQUEST_METHOD": "GET",
            "RAW_URI": "/hello?a=1",
            "PATH_INFO": "/hello",
            "QUERY_STRING": "a=1",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "example",
            "wsgi.url_scheme": "http",
            "SERVER_PORT": str(server.port),
        },
        "seen": None,
    }
    assert second["number"] == 2 and second["seen"] == "yes"
    assert (second["status"], second["sent"]) == ("201 Created", 4)
    assert second["environ"]["PATH_INFO"] == "/A"


def test_request_hooks_run_once_whatever_happens(gunicorn: Start) -> None:
    server = gunicorn(APP, config=REQUESTS)
    with server.connect() as sock:
        sock.sendall(b"GET /poll HTTP/1.1\r\nHost: a\r\n\r\n")
    [gone] = requests_of(server, 1)
    assert (gone["status"], gone["headers_sent"]) == ("499 Client Closed Request", False)
    # Refused before an application heard of it: no hooks, as in Gunicorn.
    with server.connect() as sock:
        sock.sendall(b"GET /hello HTTP/1.1\r\nbad\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
    with server.connect() as sock:
        sock.sendall(
            b"GET /socket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert sock.recv(1000).startswith(b"HTTP/1.1 101 ")
    assert requests_of(server, 2)[1]["code"] == 101
    assert server.request("/hello").status == 200
    assert requests_of(server, 3)[2]["number"] == 3


def test_hook_that_raises_is_logged_and_breaks_nothing(gunicorn: Start) -> None:
    server = gunicorn(
        APP,
        config="""
            def pre_request(worker, req):
                raise ValueError("before")

            def post_request(worker, req):
                raise ValueError("after")
        """,
    )
    pid = server.wait_workers(1)
    for target, body in (("/hello", "hello"), ("/wsgi", "wsgi")):
        assert server.request(target).text == body
    server.wait_log("Exception in post_request hook")
    eventually(lambda: server.count_log("^ValueError: after") == 2)
    assert server.count_log(r"\[ERROR\] Exception in pre_request hook") == 2
    assert server.count_log("^ValueError: before") == 2
    assert server.worker_pids() == pid


def test_default_pre_request_logs_at_debug_level(gunicorn: Start) -> None:
    server = gunicorn(APP, args=["--log-level", "debug"])
    server.request("/hello?x")
    server.wait_log(r"\[DEBUG\] GET /hello$")


def test_failing_worker_exit_is_logged(gunicorn: Start) -> None:
    server = gunicorn(APP, config="def worker_exit(server, worker): raise ValueError('exit')")
    server.wait_workers(1)
    assert server.request("/hello").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert re.search(r"\[WARNING\] Exception during worker exit", server.log)
