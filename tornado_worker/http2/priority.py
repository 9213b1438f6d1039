"""The urgency that a client gives to a response (RFC 9218). Sans-IO; knows nothing else."""

from __future__ import annotations

import re

__all__ = ["DEFAULT_URGENCY", "read_urgency"]

#: Section 4.1: 0 is the most urgent, 7 the least.
DEFAULT_URGENCY = 3

# A member of a dictionary of structured fields (RFC 8941): one digit, parameters ignored.
_URGENCY = re.compile(rb"[ \t]*u=([0-7])(?:;[^,]*)?[ \t]*")


def read_urgency(value: bytes) -> int:
    """Return the urgency in a Priority field's value; the default, if there is none to read.

    What cannot be read is ignored, as section 4 wants it. Streams of the same urgency
    take turns, whether they call themselves incremental or not.
    """
    urgency = DEFAULT_URGENCY
    if value and len(value) <= 256:
        for member in value.split(b","):
            if match := _URGENCY.fullmatch(member):
                urgency = int(match[1])  # the last one counts
    return urgency
