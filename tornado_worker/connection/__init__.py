"""One connection, whatever it speaks: bytes both ways, time, context, and its exchanges.

May know asyncio, Tornado's interfaces (`httputil`, `iostream`) and `logs`. Never a
protocol's grammar, a listening socket, Gunicorn or a worker.
"""
