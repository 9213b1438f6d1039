"""A Django project in one module: views that stream, take uploads and send files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.http import (
    FileResponse,
    HttpRequest,
    HttpResponse,
    JsonResponse,
    StreamingHttpResponse,
    UnreadablePostError,
)
from django.urls import path

__all__ = ["application", "broken", "finished", "gate"]

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not a secret",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    APPEND_SLASH=False,
    LOGGING_CONFIG=None,
)
django.setup()

#: What streams waits for.
gate = threading.Event()
#: The names of the threads in which a request started and finished.
finished: list[tuple[str, str]] = []
#: What reading a body raised.
broken: list[str] = []

_started = threading.local()


def on_started(**kwargs: Any) -> None:
    _started.thread = threading.current_thread().name


def on_finished(**kwargs: Any) -> None:
    # Asked of the thread itself: another one's local has no such attribute.
    finished.append((_started.thread, threading.current_thread().name))
    del _started.thread


request_started.connect(on_started)
request_finished.connect(on_finished)


def hello(request: HttpRequest, name: str) -> HttpResponse:
    return HttpResponse(f"Hello {name}")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def blocks() -> Iterator[bytes]:
        yield b"first"
        assert gate.wait(20)
        yield b"second"

    return StreamingHttpResponse(blocks())


def upload(request: HttpRequest) -> JsonResponse:
    file = request.FILES["file"]
    digest = hashlib.sha256()
    for chunk in file.chunks():
        digest.update(chunk)
    return JsonResponse(
        {
            "name": file.name,
            "size": file.size,
            "digest": digest.hexdigest(),
            "note": request.POST["note"],
        }
    )


def raw(request: HttpRequest) -> HttpResponse:
    try:
        return HttpResponse(request.body)
    except UnreadablePostError as e:
        broken.append(type(e).__name__)
        raise


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"), content_type="text/plain")


urlpatterns = [
    path("hello/<name>/", hello),
    path("stream/", stream),
    path("upload/", upload),
    path("raw/", raw),
    path("file/", file),
]

application = WSGIHandler()
