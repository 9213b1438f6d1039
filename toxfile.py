"""What tox does here beyond tox.ini: finds pyenv's interpreters, and tells which are missing.

tox loads this file as a plugin. `skip_missing_interpreters` lets a machine without
some of the interpreters test with the others; but nobody should take that for a
test with all of them, and with none of them there is none.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tox.plugin import impl
from tox.report import HandledError

RUNS = ("run", "run-parallel", "legacy")


@impl
def tox_add_option(parser: Any) -> None:
    """Put pyenv's interpreters on PATH, behind all others. The first hook that tox calls."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = sorted(str(path) for path in root.glob("versions/3.*/bin"))
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *found])


@impl
def tox_add_core_config(core_conf: Any, state: Any) -> None:
    """Tell at the end what was not tested; stop at once if nothing could be."""
    options = state.conf.options
    if options.command not in RUNS:
        return
    asked = list(getattr(options, "env", None) or core_conf["env_list"])
    names = [name for name in asked if re.fullmatch(r"py3\d+", name)]
    missing = [name for name in names if not has_interpreter(f"python3.{name[3:]}")]
    if not missing:
        return
    text = f"NOT TESTED, for there is no such interpreter: {', '.join(missing)}"
    if missing == names:
        raise HandledError(text)
    atexit.register(print, text, flush=True)


def has_interpreter(command: str) -> bool:
    """Tell whether some `command` on PATH works; pyenv's own are there, and fail, if not chosen."""
    for directory in os.get_exec_path():
        path = shutil.which(command, path=directory)
        if (
            path is not None
            and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
        ):
            return True
    return False
