"""Build the sdist and the wheel, check what is in them, and use the wheel.

Run by `tox -e package` with a scratch directory as its argument. It may write
only there. It fails on any file in the wheel that is not listed here by kind,
on any warning of setuptools about the metadata, and on anything twine refuses.
It also does what the README begins with, on a machine without a compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# What a build of an extension module would call.
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "ld", "make", "cargo", "rustc")
# How long the README's server may take to listen.
START_LIMIT_S = 60


def main(scratch: Path) -> None:
    dist = scratch / "dist"
    # What a build leaves in the tree (build/, *.egg-info) would end up in the
    # next one; so it works on a copy of what is committed or about to be.
    source = copy_source(scratch / "source")
    build(source, dist)
    (sdist,) = dist.glob("*.tar.gz")
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
    check_sdist(sdist)
    check_wheel(wheel, source)
    check_install(wheel, scratch / "venv")
    check_quick_start(source, scratch / "no-compilers")
    print(f"{sdist.name} and {wheel.name}: as they should be")


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a command, print what it printed, and return it; exit when it failed."""
    result = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(f"$ {' '.join(command)}\n{result.stdout}", flush=True)
    if result.returncode:
        sys.exit(f"{command[0]} exited with {result.returncode}")
    return result.stdout


def check(condition: object, message: str) -> None:
    if not condition:
        sys.exit(message)


def copy_source(target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns(
        ".git", ".tox", "venv", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(REPOSITORY, target, ignore=ignored)
    return target


def build(source: Path, dist: Path) -> None:
    shutil.rmtree(dist, ignore_errors=True)
    output = run(sys.executable, "-m", "build", "--outdir", str(dist), cwd=source)
    for line in output.splitlines():
        lowered = line.lower()
        check("deprecat" not in lowered, f"the build warns: {line}")
        check(not re.search(r"no \w+ found matching", lowered), f"MANIFEST.in: {line}")


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "tornado_worker/py.typed",
        "tests/conftest.py",
        "benchmarks/README.md",
        "tox.ini",
        ".ci/run",
        "LICENSE",
    ):
        check(wanted in names, f"{sdist.name} lacks {wanted}")
    for name in names:
        check("__pycache__" not in name, f"{sdist.name} contains {name}")


def check_wheel(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata: Message = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    package = {
        path.relative_to(source).as_posix() for path in (source / "tornado_worker").rglob("*.py")
    } | {"tornado_worker/py.typed"}
    of_info = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")
    expected = package | {f"{info}/{name}" for name in (*of_info, "licenses/LICENSE")}
    check(names == expected, f"{wheel.name}: unexpected {sorted(names ^ expected)}")
    check(metadata["License-Expression"] == "MIT", "the licence is not an SPDX expression")
    required = sorted(
        requirement.partition("<")[0].partition(">")[0]
        for requirement in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in requirement
    )
    check(required == ["gunicorn", "tornado"], f"required: {required}")
    check("tornado_worker = tornado_worker:TornadoWorker" in entry_points, entry_points)


def check_install(wheel: Path, directory: Path) -> None:
    """Install the wheel with its required dependencies alone, and import all of it."""
    venv.create(directory, clear=True, with_pip=True)
    python = str(directory / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel), cwd=directory)
    run(
        python,
        "-W",
        "error",
        "-c",
        "import tornado_worker as t; "
        "from gunicorn.util import load_class; "
        "print(t.__version__, t.HTTPServer, t.WSGIContainer, t.draining); "
        "assert load_class('tornado_worker.TornadoWorker') is t.TornadoWorker; "
        "assert load_class('egg:tornado-worker#tornado_worker') is t.TornadoWorker",
        cwd=directory,
    )
    run(str(directory / "bin" / "gunicorn"), "--version", cwd=directory)


def check_quick_start(source: Path, stand_ins: Path) -> None:
    """Do what the README begins with where nothing can be compiled, and make a request."""
    install, start = quick_start(source / "README.md")
    env = without_compilers(stand_ins)
    run("bash", "-euc", install, cwd=source, env=env)
    serve_once(start, source, env)


def quick_start(readme: Path) -> tuple[str, str]:
    """Return the README's first command in two parts: installing, and starting a server."""
    commands = re.findall(r"^    (python3 -m venv .*)$", readme.read_text(), re.MULTILINE)
    check(commands, "README.md: no command that begins with a virtual environment")
    install, _, start = commands[0].rpartition(" && ")
    check("pip install" in install and "gunicorn" in start, f"README.md: {commands[0]}")
    return install, start


def without_compilers(stand_ins: Path) -> dict[str, str]:
    """Return an environment in which whatever needs a compiler fails."""
    shutil.rmtree(stand_ins, ignore_errors=True)
    stand_ins.mkdir(parents=True)
    for name in COMPILERS:
        path = stand_ins / name
        path.write_text("#!/bin/sh\necho 'there is no compiler here' >&2\nexit 127\n")
        path.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{stand_ins}{os.pathsep}{os.environ['PATH']}",
        "CC": "false",
        "CXX": "false",
        # Of what pip fetches; the checkout itself is built, which needs none.
        "PIP_ONLY_BINARY": ":all:",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def serve_once(command: str, cwd: Path, env: dict[str, str]) -> None:
    """Start a server on a free port, make one request, end it."""
    print(f"$ {command}", flush=True)
    server = subprocess.Popen(
        ["bash", "-c", f"exec timeout {START_LIMIT_S} {command} -b 127.0.0.1:0"],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        for line in server.stdout:
            print(line, end="")
            if found := re.search(r"Listening at: (http://\S+)", line):
                with urllib.request.urlopen(found[1], timeout=START_LIMIT_S) as response:
                    check(response.status == 200, f"{found[1]}: {response.status}")
                return
        sys.exit(f"{command}: ended without listening")
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=START_LIMIT_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
