"""Carry, prove and guard ggml flash-attention patches."""

__version__ = "0.1.0"
