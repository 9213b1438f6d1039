"""Fuzz frames and field blocks: the same bytes for our engine and for others, for minutes.

    python tests/http2/fuzz_engine.py [seconds]

atheris makes up bytes and keeps those that reach new code; where it is not installed, they are
random changes of valid ones, and a line says so. Fails with the bytes of which hyperframe or
hpack make something else, or for which our reader depends on how they arrive.
"""

from __future__ import annotations

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
    from http2 import test_frame_reader, test_hpack
else:
    with atheris.instrument_imports(include=["tornado_worker.http2"]):
        from http2 import test_frame_reader, test_hpack

from helpers.fuzzing import fuzz  # noqa: E402

# Longer ones are no other cases, and read byte by byte they take long.
LENGTH_MAX = 400


def look_at(data: bytes) -> None:
    """Raise AssertionError if readers differ: the first byte says what the others are."""
    kind, data = data[:1], data[1:]
    if kind == b"f":
        test_frame_reader.check_parts(data, random.Random(data).randrange(1, 20))
        test_frame_reader.check_with_hyperframe(data)
    else:
        test_hpack.check_blocks(blocks_of(data))


def blocks_of(data: bytes) -> list[bytes]:
    """Cut into blocks, the size of each being in front of it."""
    blocks = []
    while data:
        blocks.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return blocks


def seeds() -> list[bytes]:
    frames = [b"f" + wire for wire, _ in test_frame_reader.GOOD.values()]
    frames += [b"f" + wire for wire, _, _ in test_frame_reader.CONNECTION_FAULTS.values()]
    frames += [b"f" + wire for wire, _, _ in test_frame_reader.STREAM_FAULTS.values()]
    blocks = []
    for _, _, hexes, _ in test_hpack.EXAMPLES.values():
        example = [bytes.fromhex(digits) for digits in hexes]
        blocks.append(b"h" + b"".join(bytes((len(block),)) + block for block in example))
    return [seed for seed in frames + blocks if len(seed) <= LENGTH_MAX]


def fuzz_with_random_changes(seconds: int) -> None:
    deadline = time.monotonic() + seconds
    rounds = 0
    known = seeds()
    while time.monotonic() < deadline:
        data = bytearray(random.choice(known))
        for _ in range(random.randrange(1, 6)):
            at = random.randrange(1, len(data) + 1)
            change = random.randrange(4)
            if change == 0:
                data[at : at + 1] = bytes((random.getrandbits(8),))
            elif change == 1:
                del data[at : at + random.randrange(1, 4)]
            elif change == 2:
                data[at:at] = random.choice(known)[1:][: random.randrange(1, 40)]
            elif at < len(data):
                data[at] ^= 1 << random.randrange(8)
        stream = bytes(data[:LENGTH_MAX])
        try:
            look_at(stream)
        except BaseException:
            print("failed with", stream)
            raise
        rounds += 1
    print(f"{rounds} changed streams")


def main(seconds: int) -> None:
    if atheris is None:
        print("atheris is not installed for this Python: valid bytes are changed at random")
        fuzz_with_random_changes(seconds)
    else:
        fuzz(atheris, look_at, seeds(), seconds, f"-max_len={LENGTH_MAX}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
