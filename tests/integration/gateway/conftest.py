from tests.support.policy_fixtures import etcd
from tests.support.postgres import database_url, fresh_database, postgres_server

__all__ = ["database_url", "etcd", "fresh_database", "postgres_server"]
