"""The place of region-local jobs; there are none yet."""
