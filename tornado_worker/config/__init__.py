"""Gunicorn's settings and the worker class's attributes: checked, and translated.

May know Gunicorn's configuration, and the arguments of `http1` and `connection` that
settings become. Never a socket, a running loop or a process.
"""
