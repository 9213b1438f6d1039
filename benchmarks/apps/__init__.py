"""The applications that the benchmark serves, one module per kind of worker."""
