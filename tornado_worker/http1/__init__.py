"""HTTP/1: messages read (sans-IO), and a connection that has one exchange at a time.

May know `connection` and `logs`. `reader`, `head_section`, `host`, `framing`, `chunks` and
`target` know neither asyncio nor Tornado. Never listening sockets, signals, WSGI or Gunicorn.
"""
