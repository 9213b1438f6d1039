"""Runs atheris for the fuzzers, which are programs and no tests."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["fuzz"]


def fuzz(
    atheris: Any,
    look_at: Callable[[bytes], None],
    seeds: Iterable[bytes],
    seconds: int,
    *options: str,
    words: Iterable[str] = (),
) -> NoReturn:
    """Call `look_at` with made-up bytes; `words` are worth trying. libFuzzer ends the process."""
    with tempfile.TemporaryDirectory() as directory:
        if words := list(words):
            dictionary = Path(directory) / "words"
            dictionary.write_text("".join(f'"{word}"\n' for word in words))
            options += (f"-dict={dictionary}",)
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        options += (f"-max_total_time={seconds}", "-len_control=0")
        options += ("-print_final_stats=1", "-verbosity=0")
        atheris.Setup([sys.argv[0], str(corpus), *options], look_at)
        atheris.Fuzz()
    raise AssertionError("libFuzzer has returned")
