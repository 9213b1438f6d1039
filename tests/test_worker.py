from __future__ import annotations

import configparser
import contextlib
import re
import signal
import socket
import textwrap
import time

import pytest

from helpers.gunicorn_process import REPOSITORY, GunicornError
from helpers.waiting import eventually, read_all
from tornado_worker.config import versions

# Handlers that most tests need; a test adds its own to `app`.
HANDLERS = """
import asyncio
import contextlib
import logging
import os
import threading
import time

import tornado.web

log = logging.getLogger("gunicorn.error")

class Hello(tornado.web.RequestHandler):
    def get(self):
        self.write("hello")

class Pid(tornado.web.RequestHandler):
    def get(self):
        self.write(str(os.getpid()))

class Wait(tornado.web.RequestHandler):
    async def get(self):
        log.info("waiting")
        await asyncio.sleep(float(self.get_argument("s")))
        self.write("waited")

class Block(tornado.web.RequestHandler):
    def get(self):
        log.info("blocking")
        block_the_loop(float(self.get_argument("s")))

def block_the_loop(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)

app = tornado.web.Application(
    [("/", Hello), ("/pid", Pid), ("/wait", Wait), ("/block", Block)]
)
"""

# Long enough that nothing may ever wait for it.
FOREVER = 300

LOADS_FOREVER = f"""
async def make_app():
    log.info("loading")
    await asyncio.sleep({FOREVER})
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def serve(gunicorn):
    """Start Gunicorn on HANDLERS and the source given."""

    def start(source="", *, loop="auto", args=(), **kwargs):
        args = [*map(str, args), "--asgi-loop", loop]
        return gunicorn(HANDLERS + textwrap.dedent(source), args=args, **kwargs)

    return start


@contextlib.contextmanager
def request_in_flight(server, target, line):
    """Send a request, and yield its connection when the log has `line`."""
    since = server.mark()
    with server.connect() as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        server.wait_log(line, since=since)
        yield client


def wait_served(server):
    """Wait for a Gunicorn that logs elsewhere and listens at gunicorn.sock; return the worker."""

    def connect():
        with contextlib.suppress(OSError):
            return server.connect(address="unix:gunicorn.sock")

    while (client := connect()) is None:
        assert server.running
    client.close()
    return int(server.request("/pid", address="unix:gunicorn.sock").text)


# -- boot --------------------------------------------------------------------------


def test_boot_and_service_warn_of_nothing_deprecated(serve, loop):
    server = serve(loop=loop, env={"PYTHONWARNINGS": "error::DeprecationWarning"})
    assert server.request("/").text == "hello"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "Warning" not in server.log


def test_what_was_loaded_is_kept_out_of_garbage_collection(serve):
    server = serve(
        """
        import gc

        class Cycle:
            pass

        class Frozen(tornado.web.RequestHandler):
            def get(self):
                cycle = Cycle()
                cycle.self = cycle
                gone = weakref.ref(cycle)
                del cycle
                gc.collect()
                loaded = any(each is app for each in gc.get_objects())
                self.write(f"{gc.get_freeze_count() > 1000} {loaded} {gone() is None}")

        import weakref

        app = tornado.web.Application([("/", Frozen)])
        """
    )
    assert server.request("/").text == "True False True"


def test_handlers_have_the_date_for_less(serve, loop):
    server = serve(
        """
        import email.utils

        from tornado_worker.connection.fields import http_date

        class Dated(tornado.web.RequestHandler):
            def get(self):
                date = self._headers["Date"]
                second = email.utils.parsedate_to_datetime(date).timestamp()
                self.write(f"{0 <= time.time() - second < 60} {date is http_date(second)}")

        app = tornado.web.Application([("/", Dated)])
        """,
        loop=loop,
    )
    response = server.request("/")
    assert response.text == "True True"
    assert response.headers["Date"].endswith(" GMT")


def test_auto_is_asyncio_without_uvloop(serve):
    server = serve(
        """
        class Loop(tornado.web.RequestHandler):
            def get(self):
                self.write(type(asyncio.get_running_loop()).__module__)

        app = tornado.web.Application([("/", Loop)])
        """,
        files={"uvloop.py": "raise ImportError('not installed')"},
    )
    assert server.request("/").text.startswith("asyncio.")


def test_missing_uvloop_stops_gunicorn_when_it_was_asked_for(serve):
    server = serve(loop="uvloop", files={"uvloop.py": "raise ImportError('gone')"}, wait=False)
    assert server.wait_exit() == 1
    assert server.count_log(r"^Error: asgi_loop = 'uvloop' needs the package uvloop \(gone\)") == 1
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            "import tornado; tornado.version = '6.4.2'",
            "tornado_worker needs Tornado >= 6.5.7, < 7; version 6.4.2 is installed",
        ),
        (
            "import gunicorn; gunicorn.__version__ = '28.0.0'",
            "tornado_worker needs Gunicorn >= 26.2, < 28; version 28.0.0 is installed",
        ),
        (
            "import sys; sys.version_info = (3, 10, 1); sys.version = '3.10.1 (main)'",
            "tornado_worker needs Python >= 3.11; this is 3.10.1",
        ),
    ],
)
def test_unsupported_version_stops_gunicorn_with_one_sentence(serve, config, sentence):
    server = serve(config=config, wait=False)
    assert server.wait_exit() == 1
    assert server.stderr.strip() == f"Error: {sentence}"


def test_supported_versions_are_those_of_the_package_metadata():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")

    def dotted(version):
        return ".".join(map(str, version))

    first, end = versions._GUNICORN
    assert f"gunicorn>={dotted(first)},<{dotted(end)}" in config["options"]["install_requires"]
    first, end = versions._TORNADO
    assert f"tornado>={dotted(first)},<{dotted(end)}" in config["options"]["install_requires"]
    assert config["options"]["python_requires"] == f">={dotted(versions._PYTHON)}"


@pytest.mark.parametrize("option", ["--check-config", "--print-config"])
def test_configuration_can_be_checked(serve, option):
    server = serve(args=[option], wait=False)
    assert server.wait_exit() == 0
    assert ("tornado_worker.TornadoWorker" in server.stdout) == (option == "--print-config")


def test_hooks_are_called_in_order(serve):
    config = """
        def post_fork(arbiter, worker):
            worker.log.info("hook post_fork")

        def post_worker_init(worker):
            worker.log.info("hook post_worker_init")

        def worker_exit(arbiter, worker):
            worker.log.info("hook worker_exit")
        """
    server = serve("log.info('hook (application loaded)')", config=config)
    assert server.request("/").text == "hello"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert re.findall(r"hook (\S+)", server.log) == [
        "post_fork",
        "(application",
        "post_worker_init",
        "worker_exit",
    ]


def test_failing_post_worker_init_stops_gunicorn(serve):
    server = serve(config="def post_worker_init(worker): raise ValueError('hook')", wait=False)
    assert server.wait_exit() == 3
    assert server.count_log("^ValueError: hook") == 1


def test_term_while_the_application_is_loaded_ends_the_worker(serve, loop):
    server = serve(LOADS_FOREVER, app="app:make_app", loop=loop)
    server.wait_log("loading")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "Traceback" not in server.log


def test_term_while_loading_reaches_an_application_that_swallows_it(serve, loop):
    server = serve(
        f"""
        import contextlib

        @contextlib.asynccontextmanager
        async def make_app():
            with contextlib.suppress(asyncio.CancelledError):
                log.info("loading")
                await asyncio.sleep({FOREVER})
            yield app
            log.info("left")
        """,
        app="app:make_app",
        loop=loop,
    )
    server.wait_log("loading")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert "left" in server.log


def test_second_term_does_not_cut_what_the_first_has_ended(serve, loop):
    server = serve(
        f"""
        async def make_app():
            try:
                log.info("loading")
                await asyncio.sleep({FOREVER})
            finally:
                log.info("cleaning up")
                await asyncio.sleep(0.5)
                log.info("clean")
        """,
        app="app:make_app",
        loop=loop,
    )
    server.wait_log("loading")
    [pid] = server.wait_workers()
    server.signal_worker(pid, signal.SIGTERM)
    server.wait_log("cleaning up")
    server.signal_worker(pid, signal.SIGTERM)
    server.wait_worker_exit(pid)
    assert f"[{pid}] [INFO] clean\n" in server.log


# -- settings ----------------------------------------------------------------------


def subclass(options):
    return f"""
        from tornado_worker import TornadoWorker

        class Worker(TornadoWorker):
            SERVER_OPTIONS = {options}

        worker_class = Worker
        """


def test_server_options_reach_the_server(serve):
    server = serve(config=subclass({"max_body_size": 10}), worker_class=None)
    assert server.request("/", "POST", b"x" * 10).status == 405
    assert server.request("/", "POST", b"x" * 11).status == 400  # as Tornado answers it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_body": 1},
            r"unknown name 'max_body' .*; expected some of body_timeout, .*xheaders$",
        ),
        ({"no_keep_alive": True}, "'no_keep_alive' is Gunicorn's to set: use keepalive = 0$"),
        ({"http_parser": "fast"}, "'http_parser' is Gunicorn's to set: use http_parser$"),
        ({"ssl_options": {}}, "'ssl_options' is Gunicorn's to set: use certfile and keyfile"),
        ([], "expected a dict of HTTPServer arguments; got list$"),
    ],
)
def test_wrong_server_options_stop_gunicorn(serve, options, message):
    server = serve(config=subclass(options), worker_class=None, wait=False)
    assert server.wait_exit() == 1
    where = "^Error: invalid SERVER_OPTIONS of gunicorn.conf.py:Worker: "
    assert server.count_log(where + message) == 1
    assert "Traceback" not in server.log


def test_keepalive_is_how_long_a_connection_may_be_idle(serve):
    server = serve(args=["--keep-alive", 1])
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"Connection: close" not in read_all(client)  # it ends, in much less than 30 s


def test_keepalive_0_closes_after_each_response(serve):
    server = serve(args=["--keep-alive", 0])
    assert server.request("/").headers["Connection"] == "close"


@pytest.mark.parametrize("parser", ["auto", "fast", "python"])
def test_limits_of_the_request_are_gunicorns(serve, parser):
    server = serve(
        args=[
            *("--limit-request-line", 100),
            *("--limit-request-fields", 5),
            *("--limit-request-field_size", 200),
            *("--http-parser", parser),
        ]
    )
    assert server.request("/" + 60 * "x").status == 404
    assert server.request("/" + 100 * "x").status == 414
    assert server.request("/", headers={f"X-{i}": "x" for i in range(5)}).status == 431
    assert server.request("/", headers={"X": 300 * "x"}).status == 431


def test_every_address_is_served(serve, loop):
    args = ["-b", "unix:gunicorn.sock", "-b", "127.0.0.1:0"]
    if socket.has_ipv6:
        args += ["-b", "[::1]:0"]
    server = serve(args=args, loop=loop)
    assert len(server.addresses) == len(args) / 2 + 1
    for address in server.addresses:
        assert server.request("/", address=address).text == "hello"


def test_tls_is_served_and_http_2_never_promised(serve, tls):
    config = f"""
        certfile = {str(tls.certfile)!r}
        keyfile = {str(tls.keyfile)!r}

        def ssl_context(config, default_ssl_context_factory):
            context = default_ssl_context_factory()
            context.set_alpn_protocols(["h2", "http/1.1"])
            return context
        """
    server = serve(config=config)
    context = tls.client_context()
    assert server.request("/", ssl_context=context).text == "hello"
    for offer, answer in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None)):
        context.set_alpn_protocols(offer)
        with context.wrap_socket(server.connect(), server_hostname="localhost") as client:
            assert client.selected_alpn_protocol() == answer


def test_unusable_certificate_stops_gunicorn(serve, tls):
    config = f"certfile = {str(tls.keyfile)!r}; keyfile = {str(tls.keyfile)!r}"
    server = serve(config=config, wait=False)
    assert server.wait_exit() == 1
    assert server.count_log(r"^Error: cannot use the TLS settings .*\[SSL\]") == 1


# -- heartbeat ---------------------------------------------------------------------


def test_requests_may_wait_longer_than_timeout_also_while_draining(serve, loop):
    server = serve(args=["--timeout", 1], loop=loop)
    [pid] = server.wait_workers()
    with request_in_flight(server, "/wait?s=6", "waiting") as client:
        assert server.request("/wait?s=3").text == "waited"
        server.signal_worker(pid, signal.SIGTERM)
        assert read_all(client).endswith(b"waited")
    server.wait_worker_exit(pid)
    assert "TIMEOUT" not in server.log
    assert "[ERROR]" not in server.log


def test_blocked_loop_is_killed_and_its_stack_logged(serve, loop):
    server = serve(args=["--timeout", 2], config=ABORT_HOOK, loop=loop)
    [pid] = server.wait_workers()
    with request_in_flight(server, f"/block?s={FOREVER}", "blocking"):
        server.wait_log(r"\[ERROR\] Worker \(pid:\d+\) aborted \d+\.\d s after its last heartbeat")
        server.wait_worker_exit(pid)
    server.wait_log("hook worker_abort")
    assert server.request("/").text == "hello"
    stack = server.stderr[server.stderr.index("aborted") :]
    assert re.search(r"line \d+, in get\n    block_the_loop\(.*\n.*, in block_the_loop\n", stack)
    assert "arbiter.py" not in stack
    assert server.count_log("SIGKILL") == 0


ABORT_HOOK = "def worker_abort(worker): worker.log.info('hook worker_abort')"


# -- signals -----------------------------------------------------------------------


def test_term_ends_an_idle_worker_at_once(serve, loop):
    server = serve(loop=loop)
    [pid] = server.wait_workers()
    with server.connect() as never_used:
        assert server.request("/").text == "hello"
        server.signal_worker(pid, signal.SIGTERM)
        # Far from graceful_timeout, 30 s.
        assert server.wait_worker_exit(pid) < 5
        assert read_all(never_used) == b""


def test_term_lets_requests_in_flight_finish(serve, loop):
    server = serve(loop=loop)
    with request_in_flight(server, "/wait?s=2", "waiting") as client:
        server.signal(signal.SIGTERM)
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"waited")
    assert server.wait_exit() == 0


def read_to_the_end(client, request):
    client.sendall(request)
    return read_all(client)


@pytest.mark.parametrize("over", ["plain", "tls"])
def test_clients_see_the_end_although_a_child_has_their_sockets(serve, tls, loop, over):
    server = serve(
        f"""
        class Fork(tornado.web.RequestHandler):
            # What multiprocessing does, to a child that outlives all requests.
            def get(self):
                if os.fork() == 0:
                    for _ in range({FOREVER}):
                        if os.path.exists("end"):
                            break
                        time.sleep(1)
                    os._exit(0)
                self.write("forked")

        class Cut(tornado.web.RequestHandler):
            async def get(self):
                self.set_header("Content-Length", 5)
                self.write("part")
                await self.flush()
                for _ in range(3):  # uvloop writes at the end of a turn
                    await asyncio.sleep(0)
                raise RuntimeError

        class Detach(tornado.web.RequestHandler):
            async def get(self):
                stream = self.detach()
                await stream.write(b"detached")
                stream.close()

        app.add_handlers(".*", [("/fork", Fork), ("/cut", Cut), ("/detach", Detach)])
        """,
        args=["--certfile", tls.certfile, "--keyfile", tls.keyfile] if over == "tls" else [],
        loop=loop,
    )

    def connect():
        sock = server.connect()
        if over == "tls":
            sock = tls.client_context().wrap_socket(sock, server_hostname="localhost")
        return stack.enter_context(sock)

    try:
        with contextlib.ExitStack() as stack:
            ways = [
                (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"hello"),
                (b"GET / HTTP/1.0\r\n\r\n", b"hello"),
                (b"GET /cut HTTP/1.1\r\nHost: a\r\n\r\n", b"part"),
                (b"GET /detach HTTP/1.1\r\nHost: a\r\n\r\n", b"detached"),
            ]
            clients = [connect() for _ in ways]
            for client in clients:  # all of them the worker's when it forks
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
            forking = connect()
            request = b"GET /fork HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            assert read_to_the_end(forking, request).endswith(b"forked")
            for client, (request, end) in zip(clients, ways, strict=True):
                assert read_to_the_end(client, request).endswith(end)
    finally:
        server.write("end", "")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGQUIT", "SIGINT"])
def test_signal_is_not_lost_before_the_worker_handles_it(serve, number):
    config = f"""
        import os, signal

        def post_fork(arbiter, worker):
            os.kill(os.getpid(), signal.{number})
        """
    server = serve(config=config)
    server.wait_log("Worker exiting")
    server.signal(signal.SIGKILL)
    assert "Traceback" not in server.log


def test_signals_that_come_while_handlers_change_do_no_harm(serve, loop):
    # A shower of them, to hit the moments in which they do.
    server = serve(
        """
        def wsgi(environ, start_response):
            start_response("200 OK", [("Content-Length", "0")])
            return []
        """,
        app="app:wsgi",
        config="""
        import subprocess, sys

        SHOWER = '''
        import contextlib, os, signal, sys, time
        worker = int(sys.argv[1])
        print(flush=True)
        with contextlib.suppress(ProcessLookupError):
            while os.getppid() == worker:
                os.kill(worker, signal.SIGTERM)
                time.sleep(0.0002)
        '''

        def post_fork(arbiter, worker):
            if worker.age <= 5:
                argv = [sys.executable, "-c", SHOWER, str(worker.pid)]
                subprocess.Popen(argv, stdout=subprocess.PIPE).stdout.read(1)
        """,
        loop=loop,
    )
    eventually(lambda: server.count_log("Booting worker") == 6)
    for _ in range(5):
        [pid] = server.wait_workers()
        assert server.request("/").status == 200
        deadline = time.monotonic() + 30
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                server.signal_worker(pid, signal.SIGTERM)
                time.sleep(0.0002)  # not so many that nothing else is done
        server.wait_worker_exit(pid)
    assert server.count_log("Traceback|was sent|ERROR") == 0


def test_second_term_changes_nothing(serve, loop):
    server = serve(loop=loop)
    [pid] = server.wait_workers()
    with request_in_flight(server, "/wait?s=2", "waiting") as client:
        for _ in range(5):
            server.signal_worker(pid, signal.SIGTERM)
        assert read_all(client).endswith(b"waited")


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_quit_and_int_do_not_wait_for_requests(serve, loop, number):
    hook = "def worker_int(worker): worker.log.info('hook worker_int')"
    server = serve(config=hook, loop=loop)
    with request_in_flight(server, f"/wait?s={FOREVER}", "waiting") as client:
        server.signal(number)
        assert server.wait_exit(10) == 0
        assert read_all(client).startswith(b"HTTP/1.1 503 ")
    assert server.count_log("hook worker_int") == 1
    assert "Traceback" not in server.log


def test_quit_ends_a_drain(serve, loop):
    server = serve(loop=loop)
    [pid] = server.wait_workers()
    with request_in_flight(server, f"/wait?s={FOREVER}", "waiting"):
        server.signal_worker(pid, signal.SIGTERM)
        server.wait_workers(1)  # a new one: the drain has begun
        server.signal_worker(pid, signal.SIGQUIT)
        server.wait_worker_exit(pid, 10)
    assert "SIGKILL" not in server.log


def test_quit_ends_a_blocked_worker(serve, loop):
    hook = "def worker_int(worker): worker.log.info('hook worker_int')"
    server = serve(config=hook, loop=loop)
    [pid] = server.wait_workers()
    with request_in_flight(server, f"/block?s={FOREVER}", "blocking"):
        server.signal_worker(pid, signal.SIGQUIT)
        server.wait_worker_exit(pid, 10)
    server.wait_log("Leaving in the middle of:")
    server.wait_log("in block_the_loop")
    assert server.count_log("hook worker_int") == 1


def test_quit_ends_a_worker_whose_handler_catches_everything(serve):
    server = serve(
        """
        class Stubborn(tornado.web.RequestHandler):
            def get(self):
                log.info("stubborn")
                while True:
                    try:
                        time.sleep(0.1)
                    except BaseException:
                        pass

        app = tornado.web.Application([("/", Stubborn)])
        """
    )
    [pid] = server.wait_workers()
    with request_in_flight(server, "/", "stubborn"):
        server.signal_worker(pid, signal.SIGQUIT)
        server.wait_worker_exit(pid, 10)


def test_quit_while_the_application_is_imported_ends_the_worker(serve):
    server = serve(f"log.info('importing'); time.sleep({FOREVER})")
    server.wait_log("importing")
    server.signal(signal.SIGQUIT)
    assert server.wait_exit(10) == 0


def test_quit_while_the_application_is_loaded_ends_the_worker(serve, loop):
    server = serve(LOADS_FOREVER, app="app:make_app", loop=loop)
    server.wait_log("loading")
    server.signal(signal.SIGQUIT)
    assert server.wait_exit(10) == 0
    assert "Task was destroyed" not in server.log
    assert "Traceback" not in server.log


def test_usr1_reopens_log_files(serve, loop):
    server = serve(
        args=["--error-logfile", "error.log"], bind="unix:gunicorn.sock", loop=loop, wait=False
    )
    pid = wait_served(server)
    log = server.directory / "error.log"
    log.rename(log.with_name("rotated.log"))
    server.signal_worker(pid, signal.SIGUSR1)
    eventually(log.exists, what="the new log file")
    server.signal_worker(pid, signal.SIGTERM)
    eventually(lambda: f"Worker exiting (pid: {pid})" in log.read_text(), what="the last line")


def test_winch_is_ignored(serve, loop):
    server = serve(args=["--log-level", "debug"], loop=loop)
    pid = int(server.request("/pid").text)
    server.signal_worker(pid, signal.SIGWINCH)
    server.wait_log("worker: SIGWINCH ignored.")
    assert server.request("/pid").text == str(pid)


def test_abort_of_a_worker_that_is_not_blocked_is_logged_too(serve, loop):
    server = serve(config=ABORT_HOOK, loop=loop)
    [pid] = server.wait_workers()
    assert server.request("/").text == "hello"
    server.signal_worker(pid, signal.SIGABRT)
    server.wait_worker_exit(pid)
    server.wait_log("exited with code 1")
    assert server.count_log("hook worker_abort") == 1


def test_failing_hook_is_logged_and_the_worker_leaves(serve):
    server = serve(config="def worker_int(worker): raise ValueError('hook')")
    assert server.request("/").text == "hello"
    server.signal(signal.SIGINT)
    assert server.wait_exit(10) == 0
    assert server.count_log("Exception in the hook worker_int") == 1
    assert server.count_log("^ValueError: hook") == 1


def test_death_of_the_arbiter_ends_the_worker_gracefully(serve, loop):
    server = serve(loop=loop)
    [pid] = server.wait_workers()
    with request_in_flight(server, "/wait?s=3", "waiting") as client:
        server.signal(signal.SIGKILL)
        server.wait_log("Parent changed, shutting down")
        assert read_all(client).endswith(b"waited")
    server.wait_worker_exit(pid)


def test_death_of_the_arbiter_ends_a_worker_that_loads_its_application(serve, loop):
    server = serve(LOADS_FOREVER, app="app:make_app", loop=loop)
    server.wait_log("loading")
    [pid] = server.worker_pids()
    server.signal(signal.SIGKILL)
    server.wait_log("Parent changed, shutting down")
    server.wait_worker_exit(pid)


# -- drain -------------------------------------------------------------------------


def test_worker_enforces_graceful_timeout_itself(serve, loop):
    server = serve(
        """
        class Stream(tornado.web.RequestHandler):
            async def get(self):
                log.info("streaming")
                await self.flush()
                await asyncio.sleep(300)

        app.add_handlers(".*", [("/stream", Stream)])
        """,
        args=["--graceful-timeout", 2],
        loop=loop,
    )
    [pid] = server.wait_workers()
    with (
        request_in_flight(server, f"/wait?s={FOREVER}", "waiting") as waiting,
        request_in_flight(server, "/stream", "streaming") as streaming,
    ):
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert read_all(waiting).startswith(b"HTTP/1.1 503 ")
        with contextlib.suppress(ConnectionResetError):
            assert b"\r\n0\r\n\r\n" not in read_all(streaming)
    assert server.count_log(r"answered 1 requests with 503, aborted 1 connections$") == 1
    assert f"Worker exiting (pid: {pid})" in server.log
    assert "SIGKILL" not in server.log


def test_graceful_timeout_0_ends_at_once(serve):
    server = serve(args=["--graceful-timeout", 0])
    [pid] = server.wait_workers()
    with request_in_flight(server, f"/wait?s={FOREVER}", "waiting"):
        server.signal_worker(pid, signal.SIGTERM)
        server.wait_worker_exit(pid)


def test_max_requests_counts_requests_not_connections(serve, loop):
    server = serve(args=["--max-requests", 3], loop=loop)
    [pid] = server.wait_workers()
    with server.connect() as client, client.makefile("rb") as file:
        for number in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = b"".join(iter(file.readline, b"\r\n"))
            assert file.read(5) == b"hello"
            assert b"Connection: close" not in head or number == 2
        # Once a replacement is there.
        assert file.read() == b""
    server.wait_worker_exit(pid)
    assert server.count_log("Autorestarting worker after current request.") == 1
    assert server.request("/").text == "hello"


@pytest.mark.parametrize("work", ["run_in_executor(None, ", "create_task(ignore_cancel("])
def test_what_never_ends_does_not_hold_the_worker(serve, loop, work):
    server = serve(
        f"""
        async def ignore_cancel(function, *args):
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(300)

        class Start(tornado.web.RequestHandler):
            def get(self):
                self.application.task = asyncio.get_running_loop().{work}
                    time.sleep, {FOREVER}{")" * work.count("(")}

        app = tornado.web.Application([("/", Start)])
        """,
        args=["--graceful-timeout", 4],
        loop=loop,
        config="def worker_exit(arbiter, worker): worker.log.info('hook worker_exit')",
    )
    assert server.request("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log(r"Leaving although these have not ended: ") == 1
    assert server.count_log("hook worker_exit") == 1
    assert "SIGKILL" not in server.log


def test_idle_threads_of_an_executor_do_not_hold_the_worker(serve):
    # As tornado.concurrent.run_on_executor has them: not daemons, and the
    # interpreter ends them only at its own end.
    server = serve(
        """
        from concurrent.futures import ThreadPoolExecutor

        executor = ThreadPoolExecutor()

        class Use(tornado.web.RequestHandler):
            async def get(self):
                await asyncio.get_running_loop().run_in_executor(executor, time.sleep, 0)

        app = tornado.web.Application([("/", Use)])
        """
    )
    [pid] = server.wait_workers()
    assert server.request("/").status == 200
    server.signal_worker(pid, signal.SIGTERM)
    assert server.wait_worker_exit(pid) < 5
    assert "[WARNING]" not in server.log


def test_thread_at_work_is_waited_for(serve, loop):
    # Longer than `timeout`: what is left of the process must still notify the arbiter.
    server = serve(
        """
        def work():
            time.sleep(5)
            log.info("work is done")

        class Work(tornado.web.RequestHandler):
            def get(self):
                threading.Thread(target=work).start()

        app = tornado.web.Application([("/", Work)])
        """,
        args=["--timeout", 2],
        loop=loop,
    )
    [pid] = server.wait_workers()
    assert server.request("/").status == 200
    server.signal_worker(pid, signal.SIGTERM)
    server.wait_log("work is done")
    server.wait_worker_exit(pid)
    assert "[ERROR]" not in server.log


def test_thread_that_never_ends_does_not_hold_the_worker(serve):
    server = serve(
        f"""
        threading.Thread(target=time.sleep, args=[{FOREVER}], name="poller").start()
        """,
        args=["--graceful-timeout", 4],
    )
    assert server.request("/").text == "hello"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log("Leaving although these threads still run: poller$") == 1
    assert "SIGKILL" not in server.log


def test_thread_does_not_keep_a_failure_from_stopping_gunicorn(serve):
    server = serve(
        f"""
        threading.Thread(target=time.sleep, args=[{FOREVER}]).start()
        raise ValueError("no database")
        """,
        wait=False,
    )
    assert server.wait_exit() == 3


def test_background_tasks_are_cancelled_after_the_last_response(serve, loop):
    server = serve(
        """
        async def background():
            try:
                await asyncio.sleep(300)
            finally:
                await asyncio.sleep(0.1)
                log.info("cancelled")

        async def make_app():
            app.task = asyncio.create_task(background())
            return app
        """,
        app="app:make_app",
        loop=loop,
    )
    with request_in_flight(server, "/wait?s=1", "waiting") as client:
        server.signal(signal.SIGTERM)
        assert read_all(client).endswith(b"waited")
    assert server.wait_exit() == 0
    assert server.log.index("cancelled") > server.log.index("waiting")
    assert "[WARNING]" not in server.log


def test_exception_handler_of_the_application_hears_of_failures_at_the_end(serve, loop):
    server = serve(
        """
        async def background():
            try:
                await asyncio.sleep(300)
            finally:
                raise ValueError("while it was cancelled")

        async def make_app():
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: log.error("mine: %r", context["exception"])
            )
            app.task = asyncio.create_task(background())
            return app
        """,
        app="app:make_app",
        loop=loop,
    )
    assert server.request("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log(r"mine: ValueError\('while it was cancelled'\)") == 1


def test_view_that_outlives_its_client_is_waited_for_and_then_named(gunicorn):
    server = gunicorn(
        """
        import logging, time

        def app(environ, start_response):
            logging.getLogger("gunicorn.error").info("view")
            time.sleep(float(environ["QUERY_STRING"]))
            logging.getLogger("gunicorn.error").info("view ends")
            return []
        """,
        args=["--graceful-timeout", "4"],
    )
    [pid] = server.wait_workers()
    with request_in_flight(server, "/short?1", "view"):
        pass
    server.signal_worker(pid, signal.SIGTERM)
    server.wait_log("view ends")
    server.wait_worker_exit(pid)
    [pid] = server.wait_workers()
    with request_in_flight(server, f"/long?{FOREVER}", "view$"):
        pass
    server.signal_worker(pid, signal.SIGTERM)
    server.wait_log(rf"Leaving although a view still runs: GET /long\?{FOREVER} \(\d\.\d s\)")
    server.wait_worker_exit(pid)


# -- reload ------------------------------------------------------------------------

RELOAD = """
    class Version(tornado.web.RequestHandler):
        def get(self):
            self.write("1")

    app = tornado.web.Application([("/", Version), ("/wait", Wait)], debug={debug})
    """


@pytest.mark.parametrize("debug", [False, True])
def test_reload_restarts_at_once_and_survives_a_syntax_error(serve, loop, debug):
    def edit(text):
        [pid] = server.wait_workers()
        # Gunicorn's reloader sees no change that comes before its first look.
        for _ in range(20):
            server.write("app.py", text)
            with contextlib.suppress(GunicornError):
                server.wait_worker_exit(pid, 1.5)
                return
        raise server.error("not reloaded")

    server = serve(RELOAD.format(debug=debug), args=["--reload"], loop=loop)
    source = (server.directory / "app.py").read_text()
    assert server.request("/").text == "1"

    # Somebody's long poll must not hold it.
    with request_in_flight(server, f"/wait?s={FOREVER}", "waiting"):
        edit(source.replace('"1"', '"2"'))
    assert server.count_log("Worker reloading: .*app.py modified") == 1
    assert server.request("/").text == "2"

    edit(source + "\nthis is no Python\n")
    answer = server.request("/")
    assert answer.status == 500
    assert "this is no Python" in answer.text
    assert "SyntaxError" in answer.text

    edit(source.replace('"1"', '"3"'))
    assert server.request("/").text == "3"
    assert server.count_log("SyntaxError: invalid syntax") == 1
    assert bool(server.count_log("autoreload is left to Gunicorn's reloader")) == debug


def test_syntax_error_without_reload_stops_gunicorn(serve):
    server = serve("this is no Python", wait=False)
    assert server.wait_exit() == 3
    assert server.count_log("SyntaxError: invalid syntax") >= 1


def test_tornados_autoreload_does_nothing_in_a_worker(serve):
    server = serve(RELOAD.format(debug=True))
    [pid] = server.wait_workers()
    assert server.request("/").text == "1"
    assert server.count_log(r"\[WARNING\] Tornado's autoreload .* run gunicorn with --reload") == 1
    path = server.directory / "app.py"
    path.write_text(path.read_text().replace('"1"', '"2"'))
    # Tornado looks every 0.5 s.
    assert server.request("/wait?s=1.5").text == "waited"
    assert server.request("/").text == "1"
    assert server.worker_pids() == [pid]


# -- logs --------------------------------------------------------------------------

FAILING = """
    from tornado.log import app_log, gen_log

    class Fail(tornado.web.RequestHandler):
        def get(self):
            raise ValueError("in the handler")

    class Log(tornado.web.RequestHandler):
        def get(self):
            app_log.info("an app_log record")
            app_log.debug("an app_log detail")
            gen_log.warning("a gen_log record")
            asyncio.get_running_loop().call_exception_handler({"message": "an asyncio record"})

    app.add_handlers(".*", [("/fail", Fail), ("/log", Log)])
    """


def test_exception_in_a_handler_is_logged_once(serve, loop):
    server = serve(FAILING, loop=loop)
    assert server.request("/fail").status == 500
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log(r"\[\d+\] \[ERROR\] Uncaught exception GET /fail") == 1
    assert server.count_log("^ValueError: in the handler$") == 1
    assert server.count_log("Traceback") == 1
    assert "500 GET /fail" not in server.log  # Tornado's access log


def test_keyboard_interrupt_of_a_handler_ends_its_worker_alone(serve, loop):
    source = """
        class Interrupt(tornado.web.RequestHandler):
            def get(self):
                raise KeyboardInterrupt

        app.add_handlers(".*", [("/interrupt", Interrupt)])
    """
    server = serve(source, loop=loop, bind="unix:g.sock", args=["--workers", 2])
    before = set(server.wait_workers(2))
    with server.connect() as client:
        client.sendall(b"GET /interrupt HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 503 ")
    server.wait_log("The application stops this worker: a KeyboardInterrupt at .* in get$")
    server.wait_log("Worker exiting")
    eventually(lambda: set(server.worker_pids()) - before, what="another worker")
    assert len(before & set(server.wait_workers(2))) == 1
    assert server.request("/").status == 200


def test_records_of_tornado_and_asyncio_are_in_the_error_log(serve):
    server = serve(FAILING)
    assert server.request("/log").status == 200
    server.wait_log("an asyncio record")
    assert server.count_log(r"\[INFO\] an app_log record$") == 1
    assert server.count_log(r"\[WARNING\] a gen_log record$") == 1
    assert server.count_log(r"\[ERROR\] an asyncio record$") == 1
    assert "an app_log detail" not in server.log


def test_loglevel_holds_for_tornado_too(serve):
    server = serve(FAILING, args=["--log-level", "error"], bind="unix:gunicorn.sock", wait=False)
    wait_served(server)
    assert server.request("/log", address="unix:gunicorn.sock").status == 200
    server.wait_log("an asyncio record")
    assert "an app_log record" not in server.log
    assert "a gen_log record" not in server.log


@pytest.mark.parametrize("name", ["", "tornado", "tornado.application"])
def test_records_go_where_the_user_sends_them_and_nowhere_else(serve, name):
    server = serve(
        FAILING
        + f"""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mine: %(message)s"))
    logging.getLogger({name!r}).addHandler(handler)
    """
    )
    assert server.request("/fail").status == 500
    server.wait_log("ValueError: in the handler")
    assert server.count_log("Uncaught exception") == 1
    assert server.count_log("^mine: Uncaught exception GET /fail") == 1
    assert server.count_log("^ValueError: in the handler$") == 1


def test_levels_stay_as_the_user_set_them(serve):
    configure = "\n    logging.basicConfig(level=logging.ERROR, format='mine: %(message)s')\n"
    server = serve(FAILING + configure)
    assert server.request("/log").status == 200
    server.wait_log("mine: an asyncio record")
    assert "an app_log record" not in server.log
    assert "a gen_log record" not in server.log


def test_tornados_access_log_can_be_asked_for(serve):
    server = serve("logging.basicConfig(level=logging.INFO, format='mine: %(message)s')")
    assert server.request("/").status == 200
    server.wait_log(r"^mine: 200 GET / \(127.0.0.1\)")


def test_logging_configured_through_gunicorn_counts(serve):
    config = """
        logconfig_dict = {
            "root": {"level": "INFO", "handlers": ["mine"]},
            "handlers": {
                "mine": {"class": "logging.StreamHandler", "formatter": "mine"},
                "console": {"class": "logging.StreamHandler"},
                "error_console": {"class": "logging.StreamHandler"},
            },
            "formatters": {"mine": {"format": "mine: %(message)s"}},
        }
        """
    server = serve(FAILING, config=config)
    assert server.request("/log").status == 200
    server.wait_log("an asyncio record")
    assert server.count_log("a gen_log record") == 1
    assert server.count_log("^mine: a gen_log record") == 1
