"""From the object that `module:app` names to one that serves, on the loop that will serve.

May know Gunicorn's loader, Tornado's routing and `logs`. Of the worker's life only
whether it is to leave; never connections or requests.
"""
