"""The patch series: trees that have it, and how it is changed and carried."""
