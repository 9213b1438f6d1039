"""A worker's life: signals, heartbeat, workers beside it, draining, leaving.

May know `server`, `connection.stream`, `wsgi` and Gunicorn's arbiter. Never a byte of HTTP, and
nothing about kinds of applications.
"""
