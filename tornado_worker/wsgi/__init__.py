"""`WSGIContainer`: WSGI applications on threads, behind Tornado's interfaces.

May know `tornado.httputil`, how fields are stored (`connection.fields`), `logs` and
Gunicorn's configuration. Never a connection or a server: it runs on Tornado's own too.
"""
