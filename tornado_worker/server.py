"""Placeholder while the connection layer is written."""
import tornado.httpserver
__all__ = ["HTTPServer"]


class HTTPServer(tornado.httpserver.HTTPServer):
    def initialize(self, request_callback, **kwargs):
        for name in ("http_parser", "limit_request_line", "limit_request_fields",
                     "limit_request_field_size", "permit_unconventional_http_method",
                     "permit_unconventional_http_version", "proxy_protocol", "header_timeout"):
            kwargs.pop(name, None)
        super().initialize(request_callback, **kwargs)

    def begin_drain(self) -> None:
        self.stop()
        self.conn_params.no_keep_alive = True

    async def drained(self) -> None:
        import asyncio
        while self._connections:
            await asyncio.sleep(0.05)

    def abort_all(self) -> tuple[int, int]:
        n = len(self._connections)
        for c in list(self._connections):
            c.stream.close()
        return 0, n
