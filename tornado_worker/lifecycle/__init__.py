"""A worker's life: signals, heartbeat, workers beside it, draining, leaving.

May know `server`, `connection.stream`, `wsgi` and Gunicorn's arbiter. Never what an application
is, or a byte of HTTP.
"""
