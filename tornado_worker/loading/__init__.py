"""From what `module:app` names to something that serves, on the loop that will serve.

May know Gunicorn's loader, Tornado's routing, `wsgi`, `lifecycle`, `patches`, `config` and
`logs`. Never connections or requests.
"""
