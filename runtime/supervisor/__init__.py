"""Runs the embedded stack: several servers as children of one foreground process, on one data folder.

It knows roles, ports, files and signals, and nothing of rows or rules.
"""
