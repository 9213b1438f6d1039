"""`HTTPServer`: the set of connections, accepted, swept for timeouts and drained.

May know `http1`, `connection`, `logs` and Tornado's HTTPServer. Never parses a byte;
knows nothing of Gunicorn, signals or applications.
"""
