"""`WSGIContainer`: WSGI applications on threads, behind Tornado's interfaces.

A request is a `WSGICall` on the loop (call.py) and an `ApplicationRun` in a thread (run.py,
response.py). They share its body (body.py) and the queue of its response (output.py), nothing
else. connections.py is the only module that looks at how a server's connection is made.

May know `tornado.httputil`, how fields are stored (`connection.fields`), `logs` and
Gunicorn's configuration. Never a connection or a server: it runs on Tornado's own too.
"""
