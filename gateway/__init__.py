"""The gateway of an IDC, and the SDK that speaks to it.

A call climbs `ladder`, becomes operations in a service, and goes through `engine`: `judge` decides, `coalescer` and
`peers` perform, `branches` makes the outcomes. `client` is the SDK and imports nothing of the rest but pure helpers.
"""
