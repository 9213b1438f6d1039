from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import signal
import textwrap
import types

import pytest
import tornado.web
import tornado.wsgi
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.routing import AnyMatches, PathMatches, Rule, RuleRouter

from tornado_worker.loading.lifespan import ApplicationError, Lifespan

# What most applications here are made of.
HANDLER = """
import asyncio
import contextlib
import logging

import tornado.web
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.routing import PathMatches, Rule, RuleRouter

log = logging.getLogger("gunicorn.error")

class Handler(tornado.web.RequestHandler):
    def initialize(self, text="served"):
        self.text = text

    def get(self):
        self.write(self.text)

def application(text="served"):
    return tornado.web.Application([(".*", Handler, {"text": text})])
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def serve(gunicorn):
    """Start Gunicorn on HANDLER and the source given."""

    def start(source, app="app:app", loop="auto", args=(), **kwargs):
        args = [*args, "--asgi-loop", loop]
        return gunicorn(HANDLER + textwrap.dedent(source), app=app, args=args, **kwargs)

    return start


# -- each kind, through a real Gunicorn --------------------------------------------

NATIVE = {
    "application": ("app = application()", "app:app"),
    "default name": ("application = application()", "app"),
    "router": ("app = RuleRouter([Rule(PathMatches('/.*'), application())])", "app:app"),
    "router from a call": (
        "def make(text): return RuleRouter([Rule(PathMatches('/.*'), application(text))])",
        "app:make('served')",
    ),
    "any delegate": (
        """
        class Delegate(tornado.httputil.HTTPServerConnectionDelegate):
            def start_request(self, server_conn, request_conn):
                return application().start_request(server_conn, request_conn)

        app = Delegate()
        """,
        "app:app",
    ),
    "class of applications": (
        """
        class App(tornado.web.Application):
            def __init__(self):
                super().__init__([(".*", Handler)])
        """,
        "app:App",
    ),
    "class of routers": (
        """
        class App(RuleRouter):
            def __init__(self):
                super().__init__([Rule(PathMatches("/.*"), application())])
        """,
        "app:App",
    ),
    "factory": ("def make_app(): return application()", "app:make_app"),
    "factory with optional arguments": (
        "def make_app(text='served', debug=False): return application(text)",
        "app:make_app",
    ),
    "async factory": (
        """
        async def make_app():
            await asyncio.sleep(0)
            return application()
        """,
        "app:make_app",
    ),
    "call of an async factory": (
        """
        async def make_app(text):
            await asyncio.sleep(0)
            return application(text)
        """,
        "app:make_app(text='served')",
    ),
    "function that makes a context manager": (
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            yield application()
        """,
        "app:lifespan",
    ),
    "context manager": (
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            yield application()

        app = lifespan()
        """,
        "app:app",
    ),
    "class of context managers": (
        """
        class App:
            async def __aenter__(self):
                return application()

            async def __aexit__(self, *exc_info):
                pass
        """,
        "app:App",
    ),
    "application that is its own context manager": (
        """
        class App(tornado.web.Application):
            async def __aenter__(self):
                self.add_handlers(".*", [(".*", Handler)])
                return self

            async def __aexit__(self, *exc_info):
                pass

        app = App()
        """,
        "app:app",
    ),
    "context manager that yields a factory": (
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            yield application
        """,
        "app:lifespan",
    ),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_native_kinds_are_served(serve, kind):
    source, app = NATIVE[kind]
    server = serve(source, app)
    assert server.request("/").text == "served"
    assert "[ERROR]" not in server.log
    assert "[WARNING]" not in server.log


WSGI = {
    "function": """
        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", "6")])
            return [b"served"]
        """,
    "generator function": """
        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", "6")])
            yield b"served"
        """,
    "class": """
        class app:
            def __init__(self, environ, start_response):
                start_response("200 OK", [("Content-Length", "6")])

            def __iter__(self):
                yield b"served"
        """,
    "instance": """
        class App:
            def __call__(self, environ, start_response):
                start_response("200 OK", [("Content-Length", "6")])
                return [b"served"]

        app = App()
        """,
    "function that takes anything": """
        def app(*args, **kwargs):
            environ, start_response = args
            start_response("200 OK", [("Content-Length", "6")])
            return [b"served"]
        """,
    "factory": """
        def wsgi(environ, start_response):
            start_response("200 OK", [("Content-Length", "6")])
            return [b"served"]

        def app():
            return wsgi
        """,
    "stock container": """
        import tornado.wsgi

        def wsgi(environ, start_response):
            start_response("200 OK", [("Content-Length", "6")])
            return [b"served"]

        app = tornado.wsgi.WSGIContainer(wsgi)
        """,
    "flask": """
        import flask

        app = flask.Flask(__name__)

        @app.get("/")
        def index():
            return "served"
        """,
    "django": """
        import django.conf
        import django.http
        import django.urls
        from django.core.wsgi import get_wsgi_application as app

        django.conf.settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])
        urlpatterns = [django.urls.path("", lambda request: django.http.HttpResponse("served"))]
        """,
}


@pytest.mark.parametrize("kind", WSGI)
def test_wsgi_kinds_are_served(gunicorn, kind):
    server = gunicorn(WSGI[kind])
    assert server.request("/").text == "served"
    assert "[ERROR]" not in server.log
    assert "[WARNING]" not in server.log


def test_application_named_by_the_setting_is_served(serve):
    server = serve("app = application()", app=None, config="wsgi_app = 'app:app'")
    assert server.request("/").text == "served"


def test_several_applications_are_served_by_one_router(serve):
    server = serve(
        """
        app = RuleRouter([
            Rule(PathMatches("/one"), application("one")),
            Rule(PathMatches("/two"), application("two")),
        ])
        """,
    )
    assert server.request("/one").text == "one"
    assert server.request("/two").text == "two"
    assert server.request("/three").status == 404


def test_embedded_gunicorn_serves_a_router(gunicorn):
    # A BaseApplication of one's own, as in Gunicorn's documentation.
    main = """
        from gunicorn.app.base import BaseApplication

        class Standalone(BaseApplication):
            def load_config(self):
                self.cfg.set("worker_class", "tornado_worker.TornadoWorker")
                self.cfg.set("bind", "127.0.0.1:0")
                self.cfg.set("control_socket_disable", True)

            def load(self):
                return RuleRouter([Rule(PathMatches("/.*"), application())])

        if __name__ == "__main__":
            Standalone().run()
        """
    server = gunicorn(HANDLER + textwrap.dedent(main), script="app.py")
    assert server.request("/").text == "served"


# -- the loop ----------------------------------------------------------------------


def test_module_code_acts_on_the_serving_loop(serve, loop):
    server = serve(
        """
        seen = {"loop": IOLoop.current(), "ticks": 0, "spawned": None}

        def tick():
            seen["ticks"] += 1

        async def spawned():
            seen["spawned"] = asyncio.get_running_loop()

        periodic = PeriodicCallback(tick, 10)
        periodic.start()
        IOLoop.current().spawn_callback(spawned)

        class Seen(tornado.web.RequestHandler):
            async def get(self):
                while seen["ticks"] < 3:
                    await asyncio.sleep(0.01)
                loop = asyncio.get_running_loop()
                self.write({
                    "current": seen["loop"] is IOLoop.current(),
                    "spawned": seen["spawned"] is loop,
                    "kind": type(loop).__module__.partition(".")[0],
                })

        app = tornado.web.Application([("/", Seen)])
        """,
        loop=loop,
    )
    assert server.request("/").text == f'{{"current": true, "spawned": true, "kind": "{loop}"}}'


@pytest.mark.parametrize("app", ["app:make_app", "app:make_app()"])
def test_factory_runs_on_the_serving_loop(serve, loop, app):
    server = serve(
        """
        def make_app():
            loop = asyncio.get_running_loop()
            result = loop.create_task(asyncio.sleep(0.01, "from a task"))

            class Seen(tornado.web.RequestHandler):
                async def get(self):
                    assert asyncio.get_running_loop() is loop
                    self.write(await result)

            return tornado.web.Application([("/", Seen)])
        """,
        app,
        loop=loop,
    )
    assert server.request("/").text == "from a task"


def test_module_code_may_run_a_loop_itself(serve, loop):
    server = serve(
        """
        text = IOLoop.current().run_sync(lambda: asyncio.sleep(0.01, "one "))
        text += asyncio.run(asyncio.sleep(0.01, "two"))
        app = application(text)
        """,
        loop=loop,
    )
    assert server.request("/").text == "one two"


def test_factory_that_runs_a_loop_itself_is_told_what_to_do(serve):
    source = "def make_app(): asyncio.run(asyncio.sleep(0))"
    server = serve(source, "app:make_app", wait=False)
    assert server.wait_exit() == 3
    assert server.count_log("^Factories are called on the running event loop") == 1


# -- context managers --------------------------------------------------------------

LIFESPAN = """
    @contextlib.asynccontextmanager
    async def lifespan():
        log.info("entering")
        await asyncio.sleep(0.2)
        log.info("entered")
        yield tornado.web.Application([("/", Slow)])
        log.info("leaving")
        await asyncio.sleep(0.2)
        log.info("left")

    class Slow(tornado.web.RequestHandler):
        async def get(self):
            log.info("request")
            await asyncio.sleep(0.5)
            log.info("response")
            self.write("served")
    """


def events(server):
    return re.findall(r"\] (entering|entered|leaving|left|request|response)$", server.log, re.M)


def test_context_manager_is_entered_before_the_first_request_and_left_after_the_last_response(
    serve, loop
):
    server = serve(LIFESPAN, "app:lifespan", loop)
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_log("request$")
        server.signal(signal.SIGTERM)
        assert client.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
    assert server.wait_exit() == 0
    assert events(server) == ["entering", "entered", "request", "response", "leaving", "left"]


def test_context_manager_is_left_and_entered_again_at_max_requests(serve):
    server = serve(LIFESPAN, "app:lifespan", args=["--max-requests", "1"])
    [first] = server.wait_workers()
    assert server.request("/").text == "served"
    server.wait_worker_exit(first)
    assert rf"[{first}] [INFO] left" in server.log
    [second] = server.wait_workers()
    server.wait_log(rf"\[{second}\] \[INFO\] entered$")


def test_context_manager_is_left_when_the_worker_is_told_to_quit(serve):
    server = serve(LIFESPAN, "app:lifespan")
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        server.wait_log("request$")
        server.signal(signal.SIGQUIT)
        assert server.wait_exit() == 0
    assert events(server) == ["entering", "entered", "request", "leaving", "left"]


def test_failing_exit_of_a_context_manager_is_logged(serve):
    server = serve(
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            yield application()
            raise ValueError("pool is gone")
        """,
        "app:lifespan",
    )
    assert server.request("/").text == "served"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log("context manager failed on exit") == 1
    assert server.count_log("^ValueError: pool is gone") == 1


def test_context_manager_that_awaits_what_it_cancelled_does_not_break_the_exit(serve):
    server = serve(
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            task = asyncio.create_task(asyncio.sleep(3600))
            yield application()
            task.cancel()
            await task
        """,
        "app:lifespan",
    )
    assert server.request("/").text == "served"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log("context manager failed on exit") == 1
    assert server.count_log("exited with code") == 0


def test_context_manager_that_never_exits_does_not_hold_the_worker(serve):
    server = serve(
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            yield application()
            await asyncio.Event().wait()
        """,
        "app:lifespan",
        args=["--graceful-timeout", "4"],
    )
    assert server.request("/").text == "served"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert server.count_log("context manager did not exit in time") == 1
    assert not server.count_log("SIGKILL")


def test_task_group_may_span_the_life_of_the_application(serve):
    # Entered and left in one task, or it would fail on exit.
    server = serve(
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            async with asyncio.TaskGroup() as group:
                task = group.create_task(asyncio.sleep(3600))
                yield application()
                task.cancel()
            log.info("left")
        """,
        "app:lifespan",
    )
    assert server.request("/").text == "served"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert events(server) == ["left"]
    assert "[ERROR]" not in server.log


def test_worker_is_replaced_when_its_context_manager_fails(serve):
    server = serve(
        """
        failed = asyncio.Event()

        class Fail(tornado.web.RequestHandler):
            def get(self):
                failed.set()

        async def work():
            await failed.wait()
            raise ValueError("lost the queue")

        @contextlib.asynccontextmanager
        async def lifespan():
            async with asyncio.TaskGroup() as group:
                group.create_task(work())
                yield tornado.web.Application([("/", Handler), ("/fail", Fail)])
        """,
        "app:lifespan",
    )
    [pid] = server.wait_workers()
    assert server.request("/fail").status == 200
    server.wait_log("context manager ended by itself")
    server.wait_log("ValueError: lost the queue")
    server.wait_worker_exit(pid)
    assert server.request("/").text == "served"
    assert server.count_log("ValueError: lost the queue") == 1


# -- what cannot be served ---------------------------------------------------------

WRONG = {
    "None": ("app = None", "app:app", "Failed to find application object: 'app'"),
    "nothing": ("", "app:app", "Failed to find attribute 'app' in 'app'."),
    "text": (
        "app = 'a string'",
        "app:app",
        r"cannot serve app:app: expected a tornado.web.Applic"
        r"ation, .* or a WSGI callable; got str 'a string'$",
    ),
    "handlers": (
        "app = [('/', Handler)]",
        "app:app",
        r"got list \[\('/', <class 'app.Handler'>\)\]",
    ),
    "handler class": ("", "app:Handler", r"got class <class 'app.Handler'> \(put handlers into a"),
    "class that needs arguments": (
        """
        class App(RuleRouter):
            def __init__(self, database):
                pass
        """,
        "app:App",
        r"got class <class 'app.App'> \(it cannot be called without arguments\)",
    ),
    "function of one argument": (
        "def app(request): pass",
        "app:app",
        r"got function <function app .*> \(a WSGI callable takes two arguments",
    ),
    "asgi": ("async def app(scope, receive, send): pass", "app:app", "an ASGI application needs"),
    "factory of nothing": (
        "def make_app(): pass",
        "app:make_app",
        "what app:make_app returns: .*; got None$",
    ),
    "undecorated generator": (
        "async def lifespan(): yield application()",
        "app:lifespan",
        "decorate it with contextlib.asynccontextmanager",
    ),
    "context manager of nothing": (
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            yield
        """,
        "app:lifespan",
        "what the context manager of app:lifespan yields: .*; got None$",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_served_stops_gunicorn_with_an_explanation(serve, kind):
    source, app, message = WRONG[kind]
    server = serve(source, app, wait=False)
    assert server.wait_exit() == 4  # Arbiter.APP_LOAD_ERROR
    assert server.count_log(message) == 1
    assert server.count_log("Booting worker") == 1
    assert "Traceback" not in server.log


FAILING = {
    "factory": ("def make_app(): raise ValueError('no database')", "app:make_app"),
    "call of a factory": ("def make_app(): raise ValueError('no database')", "app:make_app()"),
    "async factory": ("async def make_app(): raise ValueError('no database')", "app:make_app"),
    "module": ("raise ValueError('no database')", "app:app"),
    "context manager": (
        """
        @contextlib.asynccontextmanager
        async def lifespan():
            raise ValueError('no database')
            yield
        """,
        "app:lifespan",
    ),
}


@pytest.mark.parametrize("kind", FAILING)
def test_exception_while_loading_stops_gunicorn_with_its_traceback(serve, kind):
    source, app = FAILING[kind]
    server = serve(source, app, wait=False)
    assert server.wait_exit() == 3  # Arbiter.WORKER_BOOT_ERROR
    assert server.count_log("^ValueError: no database$") == 1
    assert server.count_log("Booting worker") == 1


def test_sys_exit_while_loading_stops_gunicorn(serve):
    server = serve("def make_app(): raise SystemExit('no database')", "app:make_app", wait=False)
    assert server.wait_exit() == 3
    assert server.count_log(r"the application called sys.exit\('no database'\) while") >= 1
    assert server.count_log("Booting worker") == 1


# -- preload_app -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "app"),
    [
        ("app = application()", "app:app"),
        ("app = RuleRouter([Rule(PathMatches('/.*'), application())])", "app:app"),
        ("async def make_app(): return application()", "app:make_app"),
        ("async def make_app(): return application()", "app:make_app()"),
    ],
)
def test_preloaded_application_is_served(serve, source, app):
    server = serve(source, app, args=["--preload"])
    assert server.request("/").text == "served"
    assert "[WARNING]" not in server.log


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("PeriodicCallback(print, 1000).start()", "callback PeriodicCallback._run"),
        ("IOLoop.current().spawn_callback(print)", "callback print"),
        ("IOLoop.current().asyncio_loop.create_task(asyncio.sleep(0))", "task sleep"),
    ],
)
def test_work_scheduled_before_the_fork_stops_gunicorn(serve, source, name):
    server = serve(f"{source}\napp = application()", args=["--preload"], wait=False)
    assert server.wait_exit() == 1
    assert server.count_log(f"scheduled work before the fork, .*: {name}. With preload_app") == 1
    assert "Traceback" not in server.log


def test_factory_that_needs_a_loop_before_the_fork_is_explained(serve):
    source = "def make_app(): asyncio.get_running_loop()"
    server = serve(source, "app:make_app()", args=["--preload"], wait=False)
    assert server.wait_exit() == 1
    assert (
        server.count_log(r"^Error: preload_app: app:make_app\(\) needs a running event loop") == 1
    )
    assert "Traceback" not in server.log


def test_loop_made_before_the_fork_is_explained(serve):
    server = serve("loop = IOLoop.current()\napp = application()", args=["--preload"])
    assert server.request("/").text == "served"
    assert server.count_log(r"\[WARNING\] preload_app: the application created an event loop") == 1


# -- kinds, without Gunicorn -------------------------------------------------------


def native():
    return tornado.web.Application()


def native_with(handlers):
    return tornado.web.Application(handlers)


def wsgi(environ, start_response):
    return []


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class WSGIClass:
    def __init__(self, environ, start_response):
        pass


class WSGIMethods:
    def method(self, environ, start_response):
        return []

    @classmethod
    def of_class(cls, environ, start_response):
        return []

    @staticmethod
    def of_nothing(environ, start_response):
        return []


class NoSignature:
    __signature__ = "none"

    def __call__(self, *args):
        return []


class Delegate(HTTPServerConnectionDelegate):
    pass


class AsyncCallable:
    async def __call__(self):
        return native()


def with_defaults(environ=None, start_response=None):
    return []


def with_more(environ, start_response, exc_info=None):
    return []


def create_app(config=None, debug=False):
    return native()


async def async_factory():
    return native()


async def async_create_app(config=None, debug=False):
    return native()


@contextlib.asynccontextmanager
async def manager(value=None):
    yield value or native()


def resolve(obj):
    """Return what a Lifespan serves for `obj`: ("wsgi", callable) for a WSGI callable."""

    async def run():
        lifespan = Lifespan("app:app", lambda app: ("wsgi", app))
        result = await lifespan.start(lambda: obj, on_failed=pytest.fail)
        await lifespan.stop()
        return result

    return asyncio.run(run())


@pytest.mark.parametrize(
    "obj",
    [
        native(),
        Delegate(),
        Delegate,
        native,
        lambda: native(),
        functools.partial(native_with, []),
        functools.partial(create_app, None, False),
        create_app,
        decorated(lambda: native()),
        async_factory,
        async_create_app,
        functools.partial(async_factory),
        AsyncCallable(),
        AsyncCallable,
        manager,
        functools.partial(manager, native()),
        lambda: manager(),
        lambda: Delegate,
        lambda: manager,
    ],
)
def test_native_callables_are_recognised(obj):
    assert isinstance(resolve(obj), HTTPServerConnectionDelegate)


@pytest.mark.parametrize(
    "obj",
    [
        wsgi,
        lambda *args: [],
        lambda environ, *args: [],
        functools.partial(lambda app, environ, start_response: [], None),
        decorated(wsgi),
        with_defaults,
        with_more,
        WSGIClass,
        WSGIMethods().method,
        WSGIMethods.of_class,
        WSGIMethods.of_nothing,
        NoSignature(),
        dict.get,
        max,
    ],
)
def test_wsgi_callables_are_recognised(obj):
    assert resolve(obj) == ("wsgi", obj)


def test_what_a_factory_returns_may_be_wsgi():
    assert resolve(lambda: wsgi) == ("wsgi", wsgi)
    assert resolve(functools.partial(manager, wsgi)) == ("wsgi", wsgi)


@pytest.mark.parametrize(
    ("obj", "hint"),
    [
        (1, "got int 1$"),
        (types, "name an object in the module"),
        (contextlib.ExitStack(), "a context manager must be an async one"),
        (lambda one: None, "a WSGI callable takes two arguments"),
        (lambda one, two, three: None, "a WSGI callable takes two arguments"),
        (lambda *, environ, start_response: None, "a WSGI callable takes two arguments"),
        (tornado.web.RequestHandler, "put handlers into a tornado.web.Application"),
        (tornado.web.FallbackHandler, "put handlers into a tornado.web.Application"),
    ],
)
def test_what_is_neither_is_refused(obj, hint):
    with pytest.raises(ApplicationError, match=hint):
        resolve(obj)


def test_factory_that_returns_itself_is_refused():
    def endless():
        return endless

    with pytest.raises(ApplicationError, match="too many factories"):
        resolve(endless)


def test_stock_containers_are_replaced_wherever_a_rule_leads_to_one():
    stock = tornado.wsgi.WSGIContainer
    own_executor = stock(wsgi, executor=object())
    application = tornado.web.Application(
        [(".*", tornado.web.FallbackHandler, {"fallback": stock(wsgi)})]
    )
    router = RuleRouter(
        [
            Rule(PathMatches("/one"), stock(wsgi)),
            Rule(PathMatches("/two"), own_executor),
            Rule(AnyMatches(), RuleRouter([Rule(AnyMatches(), application)])),
        ]
    )
    router.rules.append(Rule(AnyMatches(), router))  # a circle
    assert resolve(router) is router
    assert router.rules[0].target == ("wsgi", wsgi)
    assert router.rules[1].target is own_executor
    [rule] = application.wildcard_router.rules
    assert rule.target_kwargs == {"fallback": ("wsgi", wsgi)}
    assert resolve(stock(wsgi)) == ("wsgi", wsgi)
    assert resolve(own_executor) is own_executor


def test_subclass_of_the_stock_container_is_left_alone():
    class Container(tornado.wsgi.WSGIContainer):
        pass

    container = Container(wsgi)
    assert resolve(container) is container
