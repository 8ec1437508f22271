"""Rows, fences and remembered requests in the PostgreSQL of one IDC.

`tables` describes them, `schema` brings a database up to them, `database` runs statements, `store` reads and writes.
"""
