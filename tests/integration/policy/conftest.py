from tests.support.policy_fixtures import cluster, etcd, own_etcd

__all__ = ["cluster", "etcd", "own_etcd"]
