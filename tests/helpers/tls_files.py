"""The files of a certificate, and TLS contexts made of them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

__all__ = ["TLSFiles"]


class TLSFiles(NamedTuple):
    """A self-signed certificate for localhost, 127.0.0.1 and ::1, as files."""

    certfile: Path
    keyfile: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certfile, self.keyfile)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Verify the server against this certificate, and nothing else."""
        return ssl.create_default_context(cafile=self.certfile)
