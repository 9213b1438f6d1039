from __future__ import annotations

HELLO = """
    import tornado.web

    class Hello(tornado.web.RequestHandler):
        def get(self):
            self.write("hello")

    app = tornado.web.Application([("/", Hello)])
"""


def test_hello(gunicorn):
    g = gunicorn(HELLO)
    assert g.request("/").text == "hello"
    [pid] = g.wait_workers(1)
    import signal

    g.signal_worker(pid, signal.SIGTERM)
    print(g.wait_worker_exit(pid))
    assert g.request("/").text == "hello"
    g.signal(signal.SIGTERM)
    assert g.wait_exit() == 0
