"""Fuzz framing: the same bytes for our reader and for others, for minutes.

    python tests/http1/fuzz_reader.py [seconds]

atheris makes up bytes and keeps those that reach new code of the reader; where it is not
installed, hypothesis makes up streams that are nearly valid, and a line says so. Fails with
the bytes for which another reader sees other messages (see helpers/other_readers.py), or
for which ours depends on how they arrive.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

try:
    import atheris
except ImportError:
    atheris = None

if atheris is None:
    from helpers import other_readers
else:
    with atheris.instrument_imports(include=["tornado_worker.http1"]):
        from helpers import other_readers

from helpers.fuzzing import fuzz  # noqa: E402
from http1 import test_reader_differential as nearly_valid  # noqa: E402

# Longer ones are no other cases, and read byte by byte they take long.
LENGTH_MAX = 1000
WORDS = [
    *("GET ", "POST ", "CONNECT ", "OPTIONS * ", " HTTP/1.1", " HTTP/1.0", "\\x0d\\x0a"),
    *("Host: a", "Content-Length: ", "Transfer-Encoding: chunked", "Connection: close"),
    *("Connection: keep-alive", "Expect: 100-continue", "Upgrade: ", ";a=b", "0\\x0d\\x0a"),
]


def look_at(stream: bytes) -> None:
    """Raise AssertionError if readers differ about these bytes."""
    ours = other_readers.read_by_us(stream, [])
    # The same for the same bytes, so that a finding can be repeated.
    splits = random.Random(stream).sample(range(len(stream) + 1), min(4, len(stream)))
    assert other_readers.read_by_us(stream, splits) == ours, splits
    assert other_readers.read_by_us(stream, list(range(len(stream)))) == ours, "byte by byte"
    other_readers.check(stream, [], other_readers.read_by_h11(stream))
    other_readers.check(stream, [], other_readers.read_by_gunicorn(stream))
    if ours[0]:  # each takes a loop of its own: only where there is something to compare
        other_readers.check(stream, [], other_readers.read_by_tornado(stream))


def fuzz_with_hypothesis(seconds: int) -> None:
    from hypothesis import HealthCheck, given, seed, settings

    deadline = time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < deadline:
        number = random.getrandbits(64)
        test = given(nearly_valid.STREAMS)(look_at)
        test = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))(
            test
        )
        seed(number)(test)()
        rounds += 1
    print(f"hypothesis: {rounds} rounds of 500 streams")


def main(seconds: int) -> None:
    logging.getLogger("tornado.general").disabled = True
    if atheris is None:
        print("atheris is not installed for this Python: hypothesis makes up the streams")
        fuzz_with_hypothesis(seconds)
    else:
        seeds = [*nearly_valid.KNOWN, nearly_valid.RIGHT]
        fuzz(atheris, look_at, seeds, seconds, f"-max_len={LENGTH_MAX}", words=WORDS)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
