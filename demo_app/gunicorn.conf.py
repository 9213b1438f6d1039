# Settings of the chat: gunicorn -c demo_app/gunicorn.conf.py, from any directory.
# Each setting is explained in https://docs.gunicorn.org/en/stable/settings.html

import os
from pathlib import Path

wsgi_app = "demo_app.app:chat"
worker_class = "tornado_worker.TornadoWorker"
pythonpath = str(Path(__file__).resolve().parent.parent)

# Under systemd's socket activation Gunicorn takes the socket it is given.
bind = os.environ.get("CHAT_BIND", "127.0.0.1:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "4"))

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
