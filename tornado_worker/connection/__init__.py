"""One connection, whatever it speaks: bytes both ways, time, context, and its exchanges.

May know asyncio, Tornado's interfaces (`httputil`, `iostream`), HTTP's fields and `logs`. Never
the framing of a protocol, a listening socket, Gunicorn or a worker.
"""
