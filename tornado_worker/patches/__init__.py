"""Changes to Tornado and Gunicorn that hold for the whole process, each named once.

May know Tornado's and Gunicorn's classes, and how fields are stored
(`connection.fields`). Never a worker, a server or a request.
"""
