"""HTTP/2: frames and field blocks (sans-IO), and a connection whose streams are exchanges.

May know `connection` and `logs`. `errors`, `frames`, `frame_reader`, `hpack`, `huffman` and
`static_table` import nothing but each other: neither asyncio nor Tornado. Never listening
sockets, signals, WSGI or Gunicorn.
"""
