"""Upstream sources: pinned, fetched, verified."""
