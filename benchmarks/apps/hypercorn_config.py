"""Hypercorn's settings that have no option: as for Gunicorn's workers, the client ends connections.

Names are Hypercorn's; its defaults end a connection after 1,000 requests or 5 s of silence.
"""

__all__ = ["keep_alive_max_requests", "keep_alive_timeout", "workers"]

keep_alive_max_requests = 1 << 30
keep_alive_timeout = 600
workers = 1
