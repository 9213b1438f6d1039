"""What stands behind a proxy, and applications of each kind behind each kind of proxy."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sysconfig
import textwrap
from pathlib import Path

import pytest
import tornado.web
import tornado.wsgi
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.routing import AnyMatches, Rule, RuleRouter

from tornado_worker.loading.lifespan import ApplicationError, Lifespan
from tornado_worker.loading.proxies import unwrap


class Forwarding:
    """A proxy of one's own that does not lie about its class."""

    def __init__(self, wrapped):
        self.__wrapped__ = wrapped

    def __getattr__(self, name):
        return getattr(self.__wrapped__, name)


class Calling(Forwarding):
    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)


def wrapt_proxy(name):
    def proxy(obj):
        return getattr(pytest.importorskip("wrapt"), name)(obj)

    return proxy


def function_wrapper(obj):
    def wrapper(wrapped, instance, args, kwargs):
        return wrapped(*args, **kwargs)

    return pytest.importorskip("wrapt").FunctionWrapper(obj, wrapper)


def local_proxy(obj):
    return pytest.importorskip("werkzeug.local").LocalProxy(lambda: obj)


def newrelic_proxy(name):
    def proxy(obj):
        module = pytest.importorskip("newrelic.common.object_wrapper")
        if name == "FunctionWrapper":
            return module.FunctionWrapper(obj, lambda wrapped, _, args, kwargs: wrapped(*args))
        return getattr(module, name)(obj)

    return proxy


PROXIES = {
    "wrapt object": wrapt_proxy("ObjectProxy"),
    "wrapt callable": wrapt_proxy("CallableObjectProxy"),
    "wrapt function": function_wrapper,
    "two of wrapt": lambda obj: function_wrapper(wrapt_proxy("CallableObjectProxy")(obj)),
    "werkzeug": local_proxy,
    "werkzeug of wrapt": lambda obj: local_proxy(function_wrapper(obj)),
    "newrelic object": newrelic_proxy("ObjectProxy"),
    "newrelic function": newrelic_proxy("FunctionWrapper"),
    "forwarding": Forwarding,
    "calling": Calling,
}


@pytest.fixture(params=PROXIES)
def proxy(request):
    return PROXIES[request.param]


# -- kinds -------------------------------------------------------------------------


def application():
    return tornado.web.Application()


async def async_application():
    return application()


class Delegate(HTTPServerConnectionDelegate):
    def start_request(self, server_conn, request_conn):
        return "started"


class Manager:
    async def __aenter__(self):
        return application()

    async def __aexit__(self, *exc_info):
        pass


class OwnManager(tornado.web.Application):
    entered = left = False

    async def __aenter__(self):
        self.entered = True
        return self

    async def __aexit__(self, *exc_info):
        self.left = True


@contextlib.asynccontextmanager
async def manager():
    yield application()


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


class Site(tornado.web.Application):
    pass


class RouterSite(RuleRouter):
    def __init__(self):
        super().__init__([Rule(AnyMatches(), application())])


NATIVE = {
    "application": application,
    "router": RouterSite,
    "delegate": Delegate,
    "class of applications": lambda: Site,
    "class of routers": lambda: RouterSite,
    "class of delegates": lambda: Delegate,
    "factory": lambda: application,
    "decorated factory": lambda: logged(application),
    "cached factory": lambda: functools.lru_cache(application),
    "async factory": lambda: async_application,
    "decorated async factory": lambda: logged(async_application),
    "partial async factory": lambda: functools.partial(async_application),
    "context manager": Manager,
    "class of context managers": lambda: Manager,
    "generator as context manager": manager,
    "function that makes a context manager": lambda: manager,
    "decorated one": lambda: logged(manager),
    "its own context manager": OwnManager,
}


def wsgi(environ, start_response):
    return []


def generating(environ, start_response):
    yield b""


class WSGIClass:
    def __init__(self, environ, start_response):
        pass

    def __iter__(self):
        return iter(())


class WSGIInstance:
    def __call__(self, environ, start_response):
        return []


WSGI = {
    "function": wsgi,
    "generator": generating,
    "decorated": logged(wsgi),
    "class": WSGIClass,
    "instance": WSGIInstance(),
    "method": WSGIInstance().__call__,
    "partial": functools.partial(lambda config, environ, start_response: [], {}),
}


def resolve(obj):
    """Return what a Lifespan serves for `obj`, ("wsgi", callable) for WSGI, and its kind."""

    async def run():
        lifespan = Lifespan("app:app", lambda app: ("wsgi", app))
        result = await lifespan.start(lambda: obj, on_failed=pytest.fail)
        await lifespan.stop()
        return result, lifespan.kind

    return asyncio.run(run())


@pytest.mark.parametrize("kind", NATIVE)
def test_native_kinds_are_recognised_behind_a_proxy(proxy, kind):
    found, _ = resolve(proxy(NATIVE[kind]()))
    assert isinstance(found, HTTPServerConnectionDelegate)


@pytest.mark.parametrize("kind", WSGI)
def test_wsgi_kinds_are_recognised_behind_a_proxy(proxy, kind):
    obj = proxy(WSGI[kind])
    # One that cannot be called cannot want to see the calls.
    called = obj if callable(obj) else WSGI[kind]
    (adapter, app), name = resolve(obj)
    assert (adapter, name) == ("wsgi", "WSGI application")
    assert app is called


def test_stock_container_behind_a_proxy_is_replaced(proxy):
    assert resolve(proxy(tornado.wsgi.WSGIContainer(wsgi)))[0] == ("wsgi", wsgi)
    router = RuleRouter([Rule(AnyMatches(), proxy(tornado.wsgi.WSGIContainer(wsgi)))])
    inner = RuleRouter([Rule(AnyMatches(), proxy(router))])
    resolve(proxy(inner))
    assert router.rules[0].target == ("wsgi", wsgi)


def test_application_is_served_through_its_proxy(proxy):
    obj = proxy(Delegate())
    found, kind = resolve(obj)
    assert found is obj or found.start_request(None, None) == "started"
    assert kind == "connection delegate"


def test_application_that_is_its_own_context_manager_is_served_through_its_proxy():
    app = OwnManager()
    obj = wrapt_proxy("ObjectProxy")(app)
    found, _ = resolve(obj)
    assert found is obj
    assert app.entered and app.left


def test_proxy_of_something_else_is_refused(proxy):
    with pytest.raises(ApplicationError, match=r"got str 'text'$"):
        resolve(proxy("text"))
    with pytest.raises(ApplicationError, match=r"put handlers into a tornado.web.Application"):
        resolve(proxy(tornado.web.RequestHandler))


def test_unbound_local_is_told_in_its_own_words():
    local = pytest.importorskip("werkzeug.local")
    with pytest.raises(RuntimeError, match="object is not bound"):
        resolve(local.Local()("app"))


@pytest.mark.parametrize("obj", [1, None, wsgi, logged(wsgi), WSGIInstance(), Site, Manager()])
def test_what_is_no_proxy_stays_as_it_is(obj):
    assert unwrap(obj) is obj


def test_decorator_that_takes_certain_arguments_is_what_it_says():
    # A WSGI middleware around a native application is a WSGI application.
    class Middleware:
        def __init__(self, app):
            self.__wrapped__ = app

        def __call__(self, environ, start_response):
            return []

    middleware = Middleware(application())
    assert resolve(middleware)[0] == ("wsgi", middleware)


def test_proxy_of_itself_ends():
    proxy = Forwarding(None)
    proxy.__wrapped__ = proxy
    with pytest.raises(ApplicationError, match="got Forwarding"):
        resolve(proxy)


# -- through Gunicorn --------------------------------------------------------------

TORNADO = """
    import tornado.web

    class Hello(tornado.web.RequestHandler):
        def get(self):
            self.write("hello")

    app = tornado.web.Application([("/", Hello)])
    """
WSGI_APP = """
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]
    """
SEEN = """
    import wrapt

    def wrapper(wrapped, instance, args, kwargs):
        print("seen", flush=True)
        return wrapped(*args, **kwargs)

    app = wrapt.FunctionWrapper(app, wrapper)
    """


@pytest.mark.parametrize("source", [TORNADO, WSGI_APP], ids=["tornado", "wsgi"])
def test_application_behind_a_proxy_is_served(gunicorn, source):
    pytest.importorskip("wrapt")
    server = gunicorn(textwrap.dedent(source) + textwrap.dedent(SEEN))
    assert server.request("/").text == "hello"
    if source is WSGI_APP:
        server.wait_log("^seen$")
    assert "[ERROR]" not in server.log
    assert "[WARNING]" not in server.log


NEWRELIC = """
    [newrelic]
    license_key = 0000000000000000000000000000000000000000
    app_name = test
    monitor_mode = false
    developer_mode = true
    log_file = stderr
    log_level = error
    """


@pytest.mark.parametrize("source", [TORNADO, WSGI_APP], ids=["tornado", "wsgi"])
def test_application_starts_under_newrelic_admin(gunicorn, tmp_path, source):
    pytest.importorskip("newrelic")
    (tmp_path / "newrelic.ini").write_text(textwrap.dedent(NEWRELIC))
    scripts = Path(sysconfig.get_path("scripts"))
    server = gunicorn(
        source,
        script=str(scripts / "newrelic-admin"),
        args=[
            *("run-program", str(scripts / "gunicorn"), "-c", "gunicorn.conf.py"),
            *("-k", "tornado_worker.TornadoWorker", "-b", "127.0.0.1:0", "app:app"),
        ],
        env={"NEW_RELIC_CONFIG_FILE": str(tmp_path / "newrelic.ini")},
    )
    assert server.request("/").text == "hello"
    assert "[ERROR]" not in server.log
    assert "Traceback" not in server.log
