"""Every setting that Gunicorn knows: classified, checked at boot, documented."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config

from helpers.gunicorn_process import GunicornProcess
from helpers.server_thread import Messages, Serve
from helpers.tls_files import TLSFiles
from tornado_worker.config.known_settings import SETTINGS, ObeyedBy, check_settings, markdown_table
from tornado_worker.config.server_arguments import reader_options, server_arguments

Start = Callable[..., GunicornProcess]

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"

APP = """
    from tornado.web import Application
    app = Application()
"""


def configured(**settings: object) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


# -- the table -----------------------------------------------------------------


def test_every_setting_is_classified() -> None:
    names = {setting.name for setting in KNOWN_SETTINGS}
    assert names - set(SETTINGS) == set(), "new in this Gunicorn: add them to known_settings.py"
    # Known to newer versions than the oldest supported.
    assert set(SETTINGS) - names <= {"websocket_max_message_size"}


def test_what_does_not_apply_has_a_reason() -> None:
    for name, known in SETTINGS.items():
        assert known.note or known.handler is not ObeyedBy.NOBODY, name


def test_documentation_shows_the_table() -> None:
    # To write it, print `tornado_worker.config.known_settings.markdown_table()`.
    if "websocket_max_message_size" not in {setting.name for setting in KNOWN_SETTINGS}:
        pytest.skip("the documentation is that of newer versions of Gunicorn")
    _, _, table = DOCS.read_text().partition("<!-- table -->\n\n")
    assert table == markdown_table()


# -- errors and warnings -------------------------------------------------------


def test_defaults_pass_without_a_word() -> None:
    assert check_settings(Config()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "uwsgi"}, "protocol = 'uwsgi': this worker speaks HTTP only"),
        (
            {"http2_initial_window_size": 0},
            "^http2_initial_window_size: expected 1 to 2147483647; got 0$",
        ),
        ({"cert_reqs": 2}, "without certfile there is no TLS"),
        ({"cert_reqs": 2, "certfile": "CERT", "keyfile": "KEY"}, "without ca_certs none can be"),
        ({"cert_reqs": 1, "certfile": "CERT", "keyfile": "KEY"}, "without ca_certs none can be"),
        ({"keyfile": "KEY"}, "keyfile is set, but certfile is not"),
        (
            {"certfile": "/none", "keyfile": "KEY"},
            r"cannot use the TLS settings \(/none, .*No such",
        ),
        ({"certfile": "KEY", "keyfile": "CERT"}, "cannot use the TLS settings"),
        ({"certfile": "CERT", "keyfile": "KEY", "ciphers": "NONE"}, "No cipher can be selected"),
    ],
)
def test_what_is_dangerous_to_ignore_is_an_error(
    settings: dict[str, object], message: str, tls: TLSFiles
) -> None:
    files = {"CERT": str(tls.certfile), "KEY": str(tls.keyfile)}
    cfg = configured(
        **{
            name: files.get(value, value) if isinstance(value, str) else value
            for name, value in settings.items()
        }
    )
    with pytest.raises(RuntimeError, match=message):
        check_settings(cfg)


def test_ssl_context_hook_may_know_better_and_is_not_called(tls: TLSFiles) -> None:
    def hook(cfg: Config, default: object) -> None:
        raise AssertionError("called")

    cfg = configured(cert_reqs=2, certfile=str(tls.certfile), ssl_context=hook)
    assert check_settings(cfg) == []


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (
            {"uwsgi_allow_ips": "10.0.0.1"},
            "uwsgi_allow_ips does not apply to this worker: the uwsgi",
        ),
        ({"asgi_lifespan": "off"}, "asgi_lifespan does not apply to this worker: this is for ASGI"),
        ({"asgi_disconnect_grace_period": 9}, "asgi_disconnect_grace_period does not apply"),
    ],
)
def test_changed_setting_that_does_not_apply_gives_one_warning(
    settings: dict[str, object], warning: str
) -> None:
    [text] = check_settings(configured(**settings))
    assert text.startswith(warning)


def test_every_parser_setting_reaches_the_server() -> None:
    assert set(reader_options(Config())) >= {
        name
        for name in SETTINGS
        if name.startswith(("limit_request", "permit_", "strip_", "casefold_"))
    }


# -- through Gunicorn ----------------------------------------------------------


def test_dangerous_setting_stops_gunicorn_before_a_worker_is_forked(gunicorn: Start) -> None:
    server = gunicorn(APP, config="protocol = 'uwsgi'", wait=False)
    assert server.wait_exit() == 1
    assert "Error: protocol = 'uwsgi': this worker speaks HTTP only" in server.stderr
    assert "Traceback" not in server.log
    assert "Booting worker" not in server.log


def test_setting_that_does_not_apply_is_warned_of_once(gunicorn: Start) -> None:
    server = gunicorn(APP, config="asgi_lifespan = 'on'; workers = 2")
    server.wait_workers(2)
    assert server.request("/").status == 404
    assert server.count_log(r"\[WARNING\] asgi_lifespan does not apply to this worker") == 1


def run(directory: Path, config: str, *args: str) -> subprocess.CompletedProcess[str]:
    process = GunicornProcess(
        directory,
        """
        from tornado.routing import RuleRouter
        app = RuleRouter([])
        """,
        config=config,
        args=args,
        files={"plain.py": "from tornado.web import Application; app = Application()"},
    )
    return subprocess.run(
        process.command,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(DOCS.parent.parent), "PATH": str(Path(sys.executable).parent)},
        check=False,
    )


IMPORT = "from tornado_worker import TornadoWorker\n"


def test_check_config_is_silent_about_a_good_configuration(tmp_path: Path) -> None:
    result = run(tmp_path, IMPORT, "--check-config")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_check_config_says_what_is_wrong(tmp_path: Path) -> None:
    result = run(tmp_path, IMPORT + "protocol = 'uwsgi'", "--check-config")
    assert result.returncode == 1
    assert (
        result.stderr.rstrip()
        .splitlines()[-1]
        .startswith("RuntimeError: protocol = 'uwsgi': this worker speaks HTTP only")
    )
    result = run(tmp_path, IMPORT + "asgi_lifespan = 'on'", "--check-config")
    assert result.returncode == 0
    assert result.stderr.startswith("asgi_lifespan does not apply to this worker")


def test_print_config_shows_the_worker(tmp_path: Path) -> None:
    result = run(tmp_path, IMPORT, "--print-config")
    assert result.returncode == 0
    assert re.search(r"^worker_class += tornado_worker\.TornadoWorker$", result.stdout, re.M)


def test_check_config_loads_a_callable_application_without_help(tmp_path: Path) -> None:
    # Gunicorn does not import the worker class for it.
    process = GunicornProcess(tmp_path, APP, args=["--check-config"])
    process.start(wait=False)
    assert process.wait_exit() == 0
    process.close()


def test_field_size_of_zero_is_a_megabyte(serve: Serve) -> None:
    """As the table says; the bound on the head as a whole must not be smaller."""
    cfg = Config()
    cfg.set("limit_request_field_size", 0)
    client = serve(Messages(), **server_arguments(cfg, {})).connect()
    field = b"X: " + b"x" * (1024 * 1024 - 10)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n")
    assert client.response().status == 200
