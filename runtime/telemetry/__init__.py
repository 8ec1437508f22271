"""What a process tells of itself: traces, logs, metrics and health. None of it ever holds a row or a key (law L1)."""
