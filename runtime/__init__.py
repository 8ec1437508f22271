"""Ground that knows nothing of residency: etcd, embedded servers, telemetry, settings, process lifecycle."""
