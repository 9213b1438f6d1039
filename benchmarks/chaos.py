"""Run the chaos test for longer than the tests do, and show what it saw.

    python -m benchmarks.chaos
    python -m benchmarks.chaos --minutes 30

The test is tests/test_chaos.py: 4 workers, 64 clients in a loop, 200 long polls and 50
WebSockets, while reloads, upgrades, TTIN, TTOU and max_requests come and go. Needs
what the tests need (`pip install -e '.[fast,test]'`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks.server_process import REPOSITORY


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    environ = {**os.environ, "TORNADO_WORKER_CHAOS_S": str(arguments.minutes * 60)}
    command = [sys.executable, "-m", "pytest", "-s", "tests/test_chaos.py", "-k", "come_and_go"]
    return subprocess.run(command, cwd=REPOSITORY, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
