"""The meaning of every setting that Gunicorn knows, under this worker.

A table, and the checks that follow from it: which settings are dangerous to
ignore and stop Gunicorn, and which do not apply and are worth a warning. Reads a
configuration; makes and changes nothing.
"""

from __future__ import annotations

import enum
import ssl
from typing import Any, NamedTuple

from gunicorn.config import KNOWN_SETTINGS, Config

from tornado_worker.config.server_arguments import (
    http2_options,
    loop_factory,
    reader_options,
    ssl_context,
)
from tornado_worker.http1.reader import ReaderOptions, Rules
from tornado_worker.http2.interfaces import HTTP2Options

__all__ = ["SETTINGS", "Known", "ObeyedBy", "check_settings", "markdown_table"]


class ObeyedBy(enum.Enum):
    """The part of the server that obeys a setting."""

    GUNICORN = "Gunicorn"  #: the arbiter, its logger, or what all workers inherit
    WORKER = "worker"  #: this package
    NOBODY = "does not apply"


class Known(NamedTuple):
    handler: ObeyedBy
    #: Its meaning here; of a setting that does not apply: why, and what to do instead.
    note: str = ""


def _gunicorn(*names: str) -> dict[str, Known]:
    return dict.fromkeys(names, Known(ObeyedBy.GUNICORN))


def _worker(**notes: str) -> dict[str, Known]:
    return {name: Known(ObeyedBy.WORKER, note) for name, note in notes.items()}


def _nobody(**notes: str) -> dict[str, Known]:
    return {name: Known(ObeyedBy.NOBODY, note) for name, note in notes.items()}


_TLS_HOOK = "use the ssl_context hook to choose TLS versions (Gunicorn ignores this one everywhere)"
_LIFESPAN = (
    "this is for ASGI applications: name an async context manager as the application"
    " (`module:make_app`) to run code at its start and end"
)

SETTINGS: dict[str, Known] = {
    **_gunicorn(
        *("config", "wsgi_app", "bind", "backlog", "workers", "worker_class"),
        *("spew", "check_config", "print_config", "chdir", "daemon", "raw_env", "pidfile"),
        *("worker_tmp_dir", "user", "group", "umask", "initgroups", "pythonpath", "paste"),
        *("raw_paste_global_conf", "proc_name", "default_proc_name", "enable_stdio_inheritance"),
        *("accesslog", "disable_redirect_access_to_syslog", "errorlog", "loglevel"),
        *("capture_output", "logger_class", "logconfig", "logconfig_dict", "logconfig_json"),
        *("syslog_addr", "syslog", "syslog_prefix", "syslog_facility", "enable_backlog_metric"),
        *("statsd_host", "dogstatsd_tags", "statsd_prefix"),
        *("on_starting", "on_reload", "when_ready", "pre_fork", "post_fork", "pre_exec"),
        *("child_exit", "worker_exit", "nworkers_changed", "on_exit"),
        *("dirty_apps", "dirty_workers", "dirty_timeout", "dirty_threads"),
        *("dirty_graceful_timeout", "on_dirty_starting", "dirty_post_fork"),
        *("dirty_worker_init", "dirty_worker_exit"),
        *("control_socket", "control_socket_mode", "control_socket_disable"),
    ),
    **_worker(
        threads="threads for WSGI requests, in each worker; native handlers need none",
        worker_connections=(
            "connections per worker, WebSockets included, at which accepting pauses; WSGI"
            " requests beyond as many that wait for a thread get 503"
        ),
        max_requests="counts requests, on kept-alive connections too; a WebSocket counts once",
        max_requests_jitter="",
        timeout="a loop that does not turn for so long is stuck, and the worker is killed",
        graceful_timeout=(
            "how long requests in flight may take when a worker leaves:"
            " [long-lived.md](long-lived.md)"
        ),
        keepalive="seconds a connection may wait for another request; 0 closes after each response",
        limit_request_line="0: one megabyte",
        limit_request_fields="0: 32768",
        limit_request_field_size="0: one megabyte",
        reload="",
        reload_engine="",
        reload_extra_files="",
        preload_app="for what is safe to share: an event loop made before the fork is an error",
        sendfile="for `wsgi.file_wrapper`, not with TLS; Gunicorn takes any value for False",
        reuse_port="a worker that leaves serves its own accept queue before it closes it",
        tmp_upload_dir="where WSGI request bodies go that arrive faster than they are read",
        secure_scheme_headers="`request.protocol` and `wsgi.url_scheme`",
        forwarded_allow_ips="also decides whose `xheaders` count",
        forwarder_headers="",
        header_map="",
        proxy_protocol="",
        proxy_allow_ips="",
        access_log_format=(
            "every atom; `{websocket.close_code}e`, `{websocket.received}e` and"
            " `{websocket.sent}e` (bytes) when a WebSocket ends"
        ),
        post_worker_init="after the application is loaded, before the first connection",
        worker_int="",
        worker_abort="",
        pre_request="its changes to `req.headers` reach the application",
        post_request="with a status of 499 if the client left before the answer began",
        ssl_context="",
        keyfile="",
        certfile="",
        cert_reqs="without `ca_certs` an error; handlers use `request.get_ssl_certificate()`",
        ca_certs="",
        ciphers="",
        suppress_ragged_eofs="a request cut short is never taken for whole, either way",
        do_handshake_on_connect="always, within 60 s",
        http_protocols=(
            "`h2` needs the package `h2`, for Gunicorn's own check: tornado-worker[http2];"
            " [http2.md](http2.md)"
        ),
        http2_cleartext="all four values; for peers in `forwarded_allow_ips`",
        http2_max_concurrent_streams="waiting polls and WebSockets too: one stream each",
        http2_initial_window_size=(
            "what a client may send ahead of the application, on each stream: an upload gets"
            " this far in one round trip; 0 is an error"
        ),
        http2_max_frame_size="of what clients send; frames of ours have at most 16 KB",
        http2_max_header_list_size="0: one megabyte; `limit_request_*` hold for streams as well",
        permit_obsolete_folding="",
        strip_header_spaces="",
        casefold_http_method="",
        permit_unconventional_http_version="served as 1.1 or 1.0; later 1.x are served without it",
        permit_unconventional_http_method="",
        asgi_loop="",
        http_parser="`auto`, `python` and `fast` mean the same: the worker's own",
        root_path="SCRIPT_NAME for WSGI, unless the environment or a trusted proxy gives one",
        websocket_max_message_size=(
            "for Tornado WebSockets whose application or handler sets no limit of its own"
        ),
        protocol="only http; anything else is an error",
    ),
    **_nobody(
        uwsgi_allow_ips="the uwsgi protocol is not spoken: let the proxy speak HTTP",
        ssl_version=_TLS_HOOK,
        asgi_lifespan=_LIFESPAN,
        asgi_disconnect_grace_period=(
            "handlers hear of a client that left at once, by on_connection_close(); WSGI code"
            " runs to its next write"
        ),
    ),
}


def check_settings(cfg: Any) -> list[str]:
    """Return what to warn of; raise RuntimeError, in one sentence, for what must not be ignored.

    For the arbiter, before it forks: calls no hook and opens no socket.
    """
    _refuse_dangerous(cfg)
    try:
        Rules(ReaderOptions(**reader_options(cfg)))
        HTTP2Options(**http2_options(cfg))
    except ValueError as e:
        raise RuntimeError(str(e)) from None
    loop_factory(cfg.asgi_loop)
    return _warnings(cfg)


def _refuse_dangerous(cfg: Any) -> None:
    if cfg.protocol != "http":
        raise RuntimeError(
            f"protocol = {cfg.protocol!r}: this worker speaks HTTP only; let the proxy speak HTTP"
            " to Gunicorn (nginx: proxy_pass), or use Gunicorn's sync or gthread worker"
        )
    hook_is_default = cfg.ssl_context is cfg.settings["ssl_context"].default
    if cfg.cert_reqs != ssl.CERT_NONE:
        if not cfg.is_ssl:
            raise RuntimeError(
                "cert_reqs asks for client certificates, but without certfile there is no TLS and"
                " nobody would be asked for one: set certfile and keyfile, or cert_reqs to 0"
            )
        if not cfg.ca_certs and hook_is_default:
            raise RuntimeError(
                "cert_reqs asks for client certificates, but without ca_certs none can be valid:"
                " set ca_certs, or load the authorities in the ssl_context hook"
            )
    if cfg.is_ssl and hook_is_default:
        if not cfg.certfile:
            raise RuntimeError("keyfile is set, but certfile is not: TLS needs both")
        try:
            ssl_context(cfg)
        except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
            files = ", ".join(filter(None, (cfg.certfile, cfg.keyfile, cfg.ca_certs)))
            raise RuntimeError(f"cannot use the TLS settings ({files}): {e}") from None


def _warnings(cfg: Any) -> list[str]:
    defaults = Config().settings
    warnings = []
    for name, known in SETTINGS.items():
        setting = cfg.settings.get(name)
        if (
            known.handler is ObeyedBy.NOBODY
            and setting is not None
            and setting.get() != defaults[name].get()
        ):
            warnings.append(f"{name} does not apply to this worker: {known.note}")
    return warnings


def markdown_table() -> str:
    """Return the table of docs/settings.md."""
    sections: dict[str, list[str]] = {}
    for setting in KNOWN_SETTINGS:
        known = SETTINGS[setting.name]
        row = f"| `{setting.name}` | {known.handler.value} | {known.note} |"
        sections.setdefault(setting.section, []).append(row)
    lines = []
    for section, rows in sections.items():
        lines += [f"### {section}", "", "| setting | handled by | here |", "|---|---|---|"]
        lines += [*rows, ""]
    return "\n".join(lines).rstrip() + "\n"
