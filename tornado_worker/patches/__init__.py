"""Changes to Tornado and Gunicorn that hold for the whole process: `apply.py` lists them.

May know Tornado's and Gunicorn's classes, how fields are stored (`connection.fields`), and
`loading`'s import of an application. Of a worker only its class's
attributes and whether it has booted; never a server or a request.
"""
