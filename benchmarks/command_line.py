"""What the commands of this package have in common."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

__all__ = ["end_in_order", "positive_float", "positive_int"]


def end_in_order() -> None:
    """End servers and clients at SIGTERM and SIGHUP too, as an interrupt from the keyboard does."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(f"ended by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def positive_int(text: str) -> int:
    """Convert an argument; argparse says what was wrong with it."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value


def positive_float(text: str) -> float:
    """Convert an argument; argparse says what was wrong with it."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return value
