"""Libraries: built from a tree of sources, recorded, and found by name."""
