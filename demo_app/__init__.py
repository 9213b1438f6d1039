"""A chat on several worker processes: the reference for long polling here.

`gunicorn -c demo_app/gunicorn.conf.py` starts it. Read `app.py` first: it says
how the parts are put together. Nothing in `tornado_worker` knows of this package.
"""

from __future__ import annotations

__all__: list[str] = []
