"""The only place that touches C: a loaded library, its contexts, tensors, graphs and backends.

    with library.context() as ctx, library.backend(n_threads=2) as backend:
        q = ctx.tensor("f32", (head_dim, n_batch, n_head, 1))
        ...
        out = ctx.flash_attn_ext(q, k, v, mask, scale=0.125)
        backend.allocate(ctx)
        q.write(q_array)
        backend.compute(ctx.graph([out]))
        result = out.read()

Shapes are in ggml's order, `ne[0]` first. Arrays are in NumPy's: the last axis is `ne[0]`.
"""

from fa_harness.engine.ggml.devices import CPU, Device, RefusedError
from fa_harness.engine.ggml.graphs import Backend, Context, Graph
from fa_harness.engine.ggml.loaded import EVERY_MUTANT, Ggml, load
from fa_harness.engine.ggml.tensors import Tensor, WrongTensorError

__all__ = [
    "CPU",
    "EVERY_MUTANT",
    "Backend",
    "Context",
    "Device",
    "Ggml",
    "Graph",
    "RefusedError",
    "Tensor",
    "WrongTensorError",
    "load",
]
