"""Compare Gunicorn workers: CPU time, latency and memory, one run, one machine.

`python -m benchmarks` is the command; README.md says what it measures and how
to read it. Nothing here is installed with the package or imported by it.
"""
