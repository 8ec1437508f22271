"""The audit trail: an append-only chain of what happened to the policy and to where rows lie, and of crossed borders.

Pure: `entry` (form, hash, check of a chain), `diff`, `facts` (what is recorded of a policy revision). Over etcd:
`chain`. An entry has names, numbers, times and digests; no row and no key of one is ever in it (law L1).
"""
