"""The law: documents, decisions, routes and plans in pure code; store, follower and controller over etcd.

Pure: `document`, `loading`, `compile`, `access`, `sharding`, `assignment`, `table`, `plan`, `explain`. Over etcd:
`store`, `apply`, `follower`, `presence`, `controller`. No row and no key of one is ever stored by it (law L1).
"""
