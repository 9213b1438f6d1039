"""Applications that others wrote the framework of, or all of: Flask, Django, httpbin.

In this process on both servers and loops, behind the validator; then in a real
Gunicorn with several threads. The client is `requests`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from helpers.gunicorn_process import GunicornProcess
from helpers.waiting import eventually
from helpers.wsgi_server import ServeWSGI, WSGIServer, serve_wsgi

__all__ = ["serve_wsgi"]

flask = pytest.importorskip("flask")

Gunicorn = Callable[..., GunicornProcess]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False  # no proxy of the machine's
        yield session


class Sized:
    """Gives the validator's input a `read` without a size, which Werkzeug calls.

    PEP 3333 allows that; the validator is older than the sentence that does.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"] = SizedInput(environ["wsgi.input"])
        return self._app(environ, start_response)


class SizedInput:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return self._stream.read(size)  # type: ignore[no-any-return]
        return b"".join(iter(lambda: self._stream.read(65536), b""))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def url_of(server: WSGIServer) -> str:
    return f"http://127.0.0.1:{server.port}"


# -- Flask -----------------------------------------------------------------------


def flask_app(gate: threading.Event) -> Any:
    app = flask.Flask(__name__)
    app.secret_key = "not a secret"

    @app.route("/")
    def index() -> str:
        return "Hello"

    @app.route("/echo/<path:rest>", methods=["GET", "POST"])
    def echo(rest: str) -> Any:
        request = flask.request
        return {
            "rest": rest,
            "args": request.args,
            "form": request.form,
            "json": request.get_json(silent=True),
            "url": request.url,
            "remote": request.remote_addr,
        }

    @app.route("/count")
    def count() -> str:
        flask.session["count"] = flask.session.get("count", 0) + 1
        return str(flask.session["count"])

    @app.route("/upload", methods=["POST"])
    def upload() -> Any:
        file = flask.request.files["file"]
        return {
            "name": file.filename,
            "digest": hashlib.sha256(file.stream.read()).hexdigest(),
            "note": flask.request.form["note"],
        }

    @app.route("/stream")
    def stream() -> Any:
        def generate() -> Iterator[str]:
            yield "first,"
            assert gate.wait(20)
            yield f"second {flask.request.args['x']}"

        return flask.Response(flask.stream_with_context(generate()), mimetype="text/plain")

    @app.route("/raw", methods=["PUT"])
    def raw() -> Any:
        digest = hashlib.sha256()
        while block := flask.request.stream.read(65536):
            digest.update(block)
        return digest.hexdigest()

    @app.route("/file")
    def file() -> Any:
        return flask.send_file(__file__, mimetype="text/plain", conditional=True)

    @app.route("/fail")
    def fail() -> str:
        raise ValueError("oops")

    return Sized(app)


def test_flask(serve_wsgi: ServeWSGI, session: requests.Session) -> None:
    gate = threading.Event()
    url = url_of(serve_wsgi(flask_app(gate), threads=2))

    response = session.get(url)
    assert (response.status_code, response.text) == (200, "Hello")
    assert response.headers["Content-Length"] == "5"
    assert session.head(url).text == ""

    echo = session.get(f"{url}/echo/a%2Fb/é?x=1&x=ü").json()
    assert echo["rest"] == "a/b/é"
    assert echo["args"] == {"x": "1"}
    assert echo["remote"] == "127.0.0.1"
    echo = session.post(f"{url}/echo/x", data={"a": "b" * 10_000}).json()
    assert echo["form"] == {"a": "b" * 10_000}
    echo = session.post(f"{url}/echo/x", json={"a": [1, None]}).json()
    assert echo["json"] == {"a": [1, None]}

    assert [session.get(f"{url}/count").text for _ in range(3)] == ["1", "2", "3"]

    assert session.get(f"{url}/nowhere").status_code == 404
    assert session.get(f"{url}/fail").status_code == 500
    assert session.post(url).status_code == 405
    assert "GET" in session.options(url).headers["Allow"]


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_flask_uploads(serve_wsgi: ServeWSGI, session: requests.Session, size: int) -> None:
    url = url_of(serve_wsgi(flask_app(threading.Event())))
    data = os.urandom(size)
    digest = hashlib.sha256(data).hexdigest()
    for _ in range(2):
        response = session.post(
            f"{url}/upload", data={"note": "n"}, files={"file": ("é.bin", data)}
        )
        assert response.json() == {"name": "é.bin", "digest": digest, "note": "n"}
        blocks = (data[i : i + 70_000] for i in range(0, size, 70_000))
        assert session.put(f"{url}/raw", data=blocks).text == digest  # chunked


def test_flask_streams(serve_wsgi: ServeWSGI, session: requests.Session) -> None:
    gate = threading.Event()
    url = url_of(serve_wsgi(flask_app(gate)))
    response = session.get(f"{url}/stream?x=y", stream=True)
    blocks = response.iter_content(None)
    assert next(blocks) == b"first,"
    gate.set()
    assert b"".join(blocks) == b"second y"


def test_flask_files(serve_wsgi: ServeWSGI, session: requests.Session) -> None:
    content = Path(__file__).read_bytes()
    # The validator hides the file from the server.
    for validate in (True, False):
        url = url_of(serve_wsgi(flask_app(threading.Event()), validate=validate))
        response = session.get(f"{url}/file")
        assert response.content == content
        assert response.headers["Content-Length"] == str(len(content))
        response = session.get(f"{url}/file", headers={"Range": "bytes=10-19"})
        assert (response.status_code, response.content) == (206, content[10:20])
        response = session.get(f"{url}/file", headers={"If-None-Match": response.headers["ETag"]})
        assert (response.status_code, response.content) == (304, b"")
        assert session.head(f"{url}/file").headers["Content-Length"] == str(len(content))


# -- Django ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def django_app() -> Any:
    pytest.importorskip("django")
    from helpers import wsgi_django_site

    return wsgi_django_site


def test_django(serve_wsgi: ServeWSGI, session: requests.Session, django_app: Any) -> None:
    server = serve_wsgi(django_app.application, threads=3)
    url = url_of(server)
    django_app.finished.clear()

    response = session.get(f"{url}/hello/w%C3%B6rld/")
    assert response.text == "Hello wörld"
    assert session.get(f"{url}/hello/x").status_code == 404

    # request_finished fires in the thread that served the request.
    eventually(lambda: len(django_app.finished) == 2)
    for called, finished in django_app.finished:
        assert called == finished
        assert called.startswith("wsgi-")

    response = session.get(f"{url}/stream/", stream=True)
    blocks = response.iter_content(None)
    assert next(blocks) == b"first"
    django_app.gate.set()
    assert b"".join(blocks) == b"second"
    django_app.gate.clear()

    response = session.get(f"{url}/file/")
    assert response.content == Path(django_app.__file__).read_bytes()


@pytest.mark.parametrize("size", [10, 4_000_000])
def test_django_uploads(
    serve_wsgi: ServeWSGI, session: requests.Session, django_app: Any, size: int
) -> None:
    """Above 2.5 MB Django itself puts them in a file."""
    url = url_of(serve_wsgi(django_app.application))
    data = os.urandom(size)
    response = session.post(f"{url}/upload/", data={"note": "ä"}, files={"file": ("a.bin", data)})
    assert response.json() == {
        "name": "a.bin",
        "size": size,
        "digest": hashlib.sha256(data).hexdigest(),
        "note": "ä",
    }


def test_django_file_responses_go_through_the_file_wrapper(
    serve_wsgi: ServeWSGI, session: requests.Session, django_app: Any
) -> None:
    url = url_of(serve_wsgi(django_app.application, validate=False))
    django_app.finished.clear()
    for _ in range(2):
        response = session.get(f"{url}/file/")
        assert response.content == Path(django_app.__file__).read_bytes()
        assert "attachment" not in response.headers.get("Content-Disposition", "")
    eventually(lambda: len(django_app.finished) == 2)


def test_django_sees_a_client_that_stops_half_way(serve_wsgi: ServeWSGI, django_app: Any) -> None:
    server = serve_wsgi(django_app.application)
    django_app.broken.clear()
    client = server.connect()
    client.send(b"POST /raw/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nx")
    eventually(lambda: server.container.running(), "the view reads")
    client.close()
    eventually(lambda: django_app.broken == ["UnreadablePostError"])


# -- httpbin -----------------------------------------------------------------------

HTTPBIN = """
import httpbin
app = httpbin.app
"""


def check_httpbin(url: str, session: requests.Session) -> None:
    data = session.get(f"{url}/get?a=b&a=c", headers={"X-One": "1"}).json()
    assert data["args"] == {"a": ["b", "c"]}
    assert data["headers"]["X-One"] == "1"
    assert data["url"] == f"{url}/get?a=b&a=c"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        data = session.request(method, f"{url}/{method.lower()}", data={"k": "v"}).json()
        assert data["form"] == {"k": "v"}
    data = session.post(f"{url}/post", data=(b"x" * 1000 for _ in range(5))).json()
    assert data["data"] == "x" * 5000
    for code in (200, 201, 204, 304, 404, 418, 500):
        assert session.get(f"{url}/status/{code}").status_code == code
    assert session.get(f"{url}/redirect/3").json()["url"] == f"{url}/get"
    assert session.get(f"{url}/cookies/set?a=b").json() == {"cookies": {"a": "b"}}
    assert session.get(f"{url}/basic-auth/u/p", auth=("u", "p")).json()["authenticated"]
    assert len(session.get(f"{url}/bytes/100000?seed=1").content) == 100_000
    assert len(session.get(f"{url}/stream-bytes/100000?chunk_size=1000").content) == 100_000
    assert len(session.get(f"{url}/stream/20").text.splitlines()) == 20
    assert session.get(f"{url}/gzip").json()["gzipped"]
    response = session.get(f"{url}/range/1000", headers={"Range": "bytes=10-19"})
    assert (response.status_code, len(response.content)) == (206, 10)
    assert session.get(f"{url}/image/png").content.startswith(b"\x89PNG")
    assert session.head(f"{url}/get").content == b""
    assert "GET" in session.options(f"{url}/get").headers["Allow"]
    response = session.get(f"{url}/drip?numbytes=5&duration=0.1&code=200")
    assert response.content == b"*****"


def test_httpbin(serve_wsgi: ServeWSGI, session: requests.Session) -> None:
    httpbin = pytest.importorskip("httpbin")
    # Not validated: it sends a Content-Type with 204 and 304.
    check_httpbin(url_of(serve_wsgi(httpbin.app, validate=False, threads=2)), session)


def test_httpbin_in_gunicorn(gunicorn: Gunicorn, session: requests.Session) -> None:
    pytest.importorskip("httpbin")
    process = gunicorn(HTTPBIN, args=["--threads", "4"])
    check_httpbin(process.url, session)

    failures: list[Exception] = []

    def client() -> None:
        try:
            with requests.Session() as own:
                own.trust_env = False
                for i in range(25):
                    data = own.post(f"{process.url}/anything/{i}", data=b"y" * 3000 * i).json()
                    assert data["method"] == "POST"
                    assert len(data["data"]) == 3000 * i
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert process.count_log("ERROR") == 0
