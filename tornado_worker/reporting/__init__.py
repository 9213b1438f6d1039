"""Reports on exchanges: access log, metrics, hooks.

May know `connection`, `logs`, the environ of `wsgi` and Gunicorn's logger. Never the loop
or the application.
"""
