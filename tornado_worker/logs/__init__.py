"""Logs: a failing log costs a line, repeated lines are counted, Tornado's records reach Gunicorn's.

May know logging and Gunicorn's logger. Never the events that are logged.
"""
