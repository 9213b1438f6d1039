from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path

import pytest

from helpers.waiting import eventually
from tornado_worker.logs.failures import count_log_failures

APP = """
import logging
import tornado.web

class Hello(tornado.web.RequestHandler):
    def get(self):
        logging.getLogger("tornado.application").error("a line of the application's")
        self.write("hello")

app = tornado.web.Application([("/", Hello)])
"""

VIEW = """
def app(environ, start_response):
    environ["wsgi.errors"].write("a line of the view's\\n")
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""

# A file cannot grow beyond this: what a full disk is, without one.
LIMIT = 16384
FULL_DISK = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, resource.RLIM_INFINITY))
"""

LOGS = {
    "error log": ["--error-logfile", "error.log"],
    "both": ["--error-logfile", "error.log", "--access-logfile", "access.log"],
    "captured": ["--error-logfile", "error.log", "--capture-output", "--access-logfile", "-"],
}


def fill(server, name, count=20):
    path = server.directory / name
    # Sparse: the size is all that counts.
    eventually(path.exists)
    os.truncate(path, LIMIT)
    for _ in range(count):
        assert server.request("/").status == 200


def pids_of(server):
    """Return the workers' pids; the log that tells them is in a file."""
    return [
        int(pid)
        for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ]


@pytest.mark.parametrize("source", [APP, VIEW], ids=["native", "wsgi"])
@pytest.mark.parametrize("args", LOGS.values(), ids=LOGS)
def test_full_disk_costs_a_line_and_the_log_goes_on_when_there_is_room(gunicorn, source, args):
    server = gunicorn(source, args=args, config=FULL_DISK, wait=False)
    eventually(lambda: (server.directory / "error.log").exists())
    error_log = server.directory / "error.log"
    eventually(lambda: "Listening at" in error_log.read_text())
    server.addresses_from(error_log)
    assert server.request("/").status == 200
    pids = pids_of(server)
    names = ["error.log", "access.log"] if "access.log" in args else ["error.log"]
    for name in names:
        fill(server, name, 200)
    # Neither the arbiter nor the worker may end of it.
    for _ in range(3):
        server.signal(signal.SIGUSR1)
        assert server.request("/").status == 200
    # The arbiter has heeded those, and lost lines of its own, when it has heeded the next.
    server.signal(signal.SIGTTIN)
    eventually(lambda: len(pids_of(server)) == 2)
    assert set(pids) < set(pids_of(server))
    told = server.stderr
    assert "Traceback" not in told
    assert len(told) < 10_000
    if "--capture-output" not in args:
        assert "log records have not been written to" in told
        assert "File too large" in told
    for name in names:
        os.truncate(server.directory / name, 0)

    def visit_and_read(name):
        assert server.request("/").status == 200
        return (server.directory / name).read_text()

    eventually(lambda: "a line of the" in visit_and_read("error.log"))
    if "access.log" in names:
        eventually(lambda: '"GET / HTTP/1.1" 200' in visit_and_read("access.log"))
        assert "have not been written" not in visit_and_read("access.log")
        eventually(lambda: "have not been written to" in visit_and_read("error.log"))
    server.signal(signal.SIGTTOU)
    eventually(lambda: "Handling signal: ttou" in visit_and_read("error.log"))
    text = error_log.read_text()
    assert f"log records have not been written to {error_log}" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("args", LOGS.values(), ids=LOGS)
def test_log_that_cannot_be_reopened_ends_nothing(gunicorn, args):
    args = [f"logs/{arg}" if arg.endswith(".log") else arg for arg in args]
    server = gunicorn(APP, args=args, files={"logs/empty": ""}, wait=False)
    logs, error_log = server.directory / "logs", server.directory / "logs" / "error.log"
    eventually(lambda: error_log.exists() and "Listening at" in error_log.read_text())
    server.addresses_from(error_log)
    assert server.request("/").status == 200
    workers = pids_of(server)
    logs.rename(server.directory / "moved")
    server.signal(signal.SIGUSR1)
    # The arbiter has heeded it when it has heeded the next.
    server.signal(signal.SIGTTIN)
    eventually(lambda: len(pids_of(server)) == 2)
    for _ in range(50):
        assert server.request("/").status == 200
    assert set(workers) <= set(pids_of(server))
    assert "Traceback" not in server.stderr
    assert len(server.stderr) < 10_000
    logs.mkdir()
    server.signal(signal.SIGTTOU)
    eventually(lambda: error_log.exists() and "Handling signal: ttou" in error_log.read_text())
    assert "log records have not been written to" in error_log.read_text()
    eventually(lambda: "the application's" in (server.request("/") and error_log.read_text()))


def test_standard_error_that_nobody_reads_ends_nothing(gunicorn):
    server = gunicorn(APP, args=["--access-logfile", "-"])
    pids = server.wait_workers()
    assert server.request("/").status == 200
    address = server.url
    for pipe in (server._process.stdout, server._process.stderr):
        # The reader of it keeps its descriptor; this end of the pipe is gone.
        os.dup2(os.open(os.devnull, os.O_RDONLY), pipe.fileno())
    for _ in range(50):
        assert server.request("/", address=address).status == 200
    server.signal(signal.SIGUSR1)
    assert server.request("/", address=address).status == 200
    assert pids_of(server) == pids


def test_syslog_that_is_gone_ends_nothing(gunicorn, tmp_path):
    path = tmp_path / "syslog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(path))
        server = gunicorn(
            APP,
            args=["--log-syslog", "--log-syslog-to", f"unix://{path}#dgram"],
        )
        server.wait_workers()
        assert server.request("/").status == 200
    path.unlink()
    for _ in range(50):
        assert server.request("/").status == 200
    assert server.count_log("Traceback") == 0
    # From the arbiter and the worker; each may be one for the access log more.
    assert 1 <= server.count_log("log records have not been written to") <= 4


def test_statsd_that_is_gone_costs_a_line(gunicorn, tmp_path):
    path = tmp_path / "statsd"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as statsd:
        statsd.bind(str(path))
        server = gunicorn(APP, args=["--statsd-host", f"unix://{path}"])
        server.wait_workers()
        assert server.request("/").status == 200
    path.unlink()
    for _ in range(50):
        assert server.request("/").status == 200
    assert server.count_log("Error sending message to statsd") <= 4


def test_mistake_in_a_logging_call_is_told_as_before(capsys):
    count_log_failures()
    handler = logging.StreamHandler()
    record = logging.LogRecord("name", logging.ERROR, __file__, 1, "%d", ("x",), None)
    handler.handle(record)
    assert "Traceback" in capsys.readouterr().err
