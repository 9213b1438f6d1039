# Settings of the chat: gunicorn -c demo_app/gunicorn.conf.py, from any directory.
# Each setting is explained in https://docs.gunicorn.org/en/stable/settings.html

import os
import ssl
import sys
from pathlib import Path

from gunicorn.http2 import is_http2_available

wsgi_app = "demo_app.app:chat"
worker_class = "tornado_worker.TornadoWorker"
pythonpath = str(Path(__file__).resolve().parent.parent)

# Under systemd's socket activation Gunicorn takes the socket it is given.
bind = os.environ.get("CHAT_BIND", "127.0.0.1:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "4"))

# With TLS comes HTTP/2: all windows of a browser share one connection, where HTTP/1.1
# gives them six. Checked here, so that one line says what is wrong with which variable.
certfile = os.environ.get("CHAT_CERTFILE") or None
keyfile = os.environ.get("CHAT_KEYFILE") or None
if keyfile and not certfile:
    sys.exit("CHAT_KEYFILE is set, but CHAT_CERTFILE is not: TLS needs a certificate")
if certfile:
    if not is_http2_available():
        sys.exit(
            "CHAT_CERTFILE switches HTTP/2 on, for which Gunicorn needs the package h2:"
            " pip install 'tornado-worker[http2]'"
        )
    for name, path in (("CHAT_CERTFILE", certfile), ("CHAT_KEYFILE", keyfile)):
        try:
            if path:
                Path(path).read_bytes()
        except OSError as error:
            sys.exit(f"{name}: cannot read {path!r}: {error.strerror}")
    try:
        # With a password it does not ask for one, which a service could not answer.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, password="")
    except ssl.SSLError as error:
        sys.exit(
            "CHAT_CERTFILE, CHAT_KEYFILE: expected a certificate and its private key, in PEM"
            f" format and without a passphrase; got {certfile!r}, {keyfile!r}: {error}"
        )
    http_protocols = "h2,h1"

# Nothing here needs it, and a service or a container has no home to put it in.
control_socket_disable = True

# A worker may serve this many clients at once, nearly all of them waiting.
worker_connections = 10_000
backlog = 2048

# The page asks again at once, so idle connections are worth keeping; longer
# than nginx keeps its own (60 s), so that the side that reuses a connection is
# not the one that finds it closed.
keepalive = 75

# Polls and streams end at once when a worker stops; this is for the rest, for
# instance the export of a large room.
graceful_timeout = 60
timeout = 30

# Long polls come every few seconds from everybody: no access log by default.
accesslog = os.environ.get("CHAT_ACCESS_LOG") or None
loglevel = os.environ.get("CHAT_LOG_LEVEL", "info")
