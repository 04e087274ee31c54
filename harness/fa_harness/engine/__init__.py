"""Cases on a library: tensors, modes, and the child processes that compute them."""
