"""From a failure to its cause, and to failures nobody asked about."""
