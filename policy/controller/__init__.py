"""The elected process that brings about what the current policy says: observe, decide, act, say it in one sentence."""
