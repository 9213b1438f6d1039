"""Logging that costs nothing but the line: when a logger fails, and when clients decide the number.

May know logging and Gunicorn's logger. Never the events that are logged.
"""
