"""The left half: upstream sources, the patch series, and the libraries built from them."""
