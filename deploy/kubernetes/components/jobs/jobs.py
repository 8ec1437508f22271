"""Jobs of this cluster: put yours in the place of this one."""

import structlog

import regiongate

log = structlog.get_logger("jobs")


@regiongate.job(dataset="customers", trigger=regiongate.Every(hours=1))
def count_changes(batch: regiongate.Batch) -> None:
    """Says how many customers have changed; what it says must hold nothing of a row."""
    log.info("changed customers", region_code=batch.region_code, rows=len(batch))
