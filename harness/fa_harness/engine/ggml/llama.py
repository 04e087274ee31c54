"""libllama with a mixed KV cache: a small model, its contexts, and the bytes of their state.

Declarations are in `llama.h`. The module is compiled against the headers of one build.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from cffi import recompiler

from fa_harness.arrays import F32, U8
from fa_harness.case import quants
from fa_harness.errors import SetupError

_DECL = Path(__file__).with_name("llama.h")
_PREAMBLE = """\
#include "ggml-cpu.h"
#include "gguf.h"
#include "llama.h"

static bool fa_abort_after(void * data) {
    return (*(int *) data)-- <= 0;
}

static void fa_no_log(enum ggml_log_level level, const char * text, void * user_data) {
    (void) level;
    (void) text;
    (void) user_data;
}

static void fa_log_nothing(void) {
    llama_log_set(fa_no_log, NULL);
}
"""
_FLASH_ATTN = 1
_NEVER = 2**31 - 1


def emit_c(out_c: Path) -> None:
    """Write the C source of the module `_llama`; it stays as it is where it is right already."""
    ffi = cffi.FFI()
    ffi.cdef(_DECL.read_text("utf-8"))
    ffi.set_source("_llama", _PREAMBLE)
    recompiler.make_c_source(ffi, "_llama", _PREAMBLE, str(out_c))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model that is made without a file, with random weights."""

    arch: str = "llama"  # or gemma3, of whose layers all but the sixth have a sliding window
    n_embd: int = 64
    n_head: int = 2
    n_head_kv: int = 1
    head_dim: int = 64
    n_vocab: int = 64
    n_swa: int = 32
    rope_base: float = 10000.0

    @property
    def n_layer(self) -> int:
        """Layers of all kinds."""
        return 6 if self.arch == "gemma3" else 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A context: the types of its parts, and how many tokens, sequences and batches it takes."""

    hot_k: str
    hot_v: str
    cold_k: str
    cold_v: str
    n_hot: int
    n_ubatch: int
    n_seq: int
    unified: bool
    n_ctx: int  # tokens of a stream, and of a batch at most


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of a batch."""

    id: int
    pos: int
    seqs: tuple[int, ...]


class Llama:
    """The loaded library."""

    def __init__(self, module_path: Path) -> None:
        spec = importlib.util.spec_from_file_location("_llama", module_path)
        assert spec is not None
        assert spec.loader is not None
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as error:
            raise SetupError(f"{module_path}: cannot be loaded ({error}); delete it") from error
        self.ffi: Any = module.ffi
        self.lib: Any = module.lib
        self._weights: dict[str, F32] = {}
        self.ffi.def_extern("fa_set_tensor_data")(self._fill)
        self.lib.fa_log_nothing()
        self.lib.llama_backend_init()

    def model(self, shape: Shape) -> Model:
        """Make a model. Its weights are a function of their names and shapes."""
        ffi, lib = self.ffi, self.lib
        gguf = lib.gguf_init_empty()

        def key(name: str) -> bytes:
            return (
                name if name.startswith(("general", "tok")) else f"{shape.arch}.{name}"
            ).encode()

        lib.gguf_set_val_str(gguf, key("general.architecture"), shape.arch.encode())
        lib.gguf_set_val_str(gguf, key("tokenizer.ggml.model"), b"no_vocab")
        numbers = {
            "vocab_size": shape.n_vocab,
            "context_length": 4096,
            "embedding_length": shape.n_embd,
            "block_count": shape.n_layer,
            "feed_forward_length": 96,
            "attention.head_count": shape.n_head,
            "attention.head_count_kv": shape.n_head_kv,
            "attention.key_length": shape.head_dim,
            "attention.value_length": shape.head_dim,
            "rope.dimension_count": shape.head_dim,
            "attention.sliding_window": shape.n_swa,
        }
        if shape.arch != "gemma3":
            del numbers["attention.sliding_window"]
        for name, number in numbers.items():
            lib.gguf_set_val_u32(gguf, key(name), number)
        lib.gguf_set_val_f32(gguf, key("attention.layer_norm_rms_epsilon"), 1e-5)
        lib.gguf_set_val_f32(gguf, key("rope.freq_base"), shape.rope_base)
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._weights = {}
        made = lib.llama_model_init_from_user(gguf, lib.fa_set_tensor_data, ffi.NULL, params)
        lib.gguf_free(gguf)
        if made == ffi.NULL:
            raise SetupError(f"llama.cpp does not make the model {shape}")
        return Model(self, shape, ffi.gc(made, lib.llama_model_free), self._weights)

    def decode(self, raw: U8, type_: str) -> F32:
        """Return the values, float32, of bytes of whole blocks, by ggml's `to_float`."""
        if type_ == "f32":
            return raw.view(np.float32)
        traits = self.lib.ggml_get_type_traits(quants.TYPES[type_].ggml_type)
        n = raw.size // traits.type_size * traits.blck_size
        values = np.empty(n, np.float32)
        buffer = self.ffi.from_buffer("float[]", values, require_writable=True)
        traits.to_float(self.ffi.from_buffer(np.ascontiguousarray(raw)), buffer, n)
        return values

    def encode(self, values: F32, type_: str) -> U8:
        """Return the bytes of values, of whole blocks, by the CPU backend's `from_float`."""
        if type_ == "f32":
            return values.view(np.uint8)
        number = quants.TYPES[type_].ggml_type
        traits = self.lib.ggml_get_type_traits(number)
        raw = np.empty(values.size // traits.blck_size * traits.type_size, np.uint8)
        buffer = self.ffi.from_buffer("uint8_t[]", raw, require_writable=True)
        source = self.ffi.from_buffer("float[]", np.ascontiguousarray(values, np.float32))
        self.lib.ggml_get_type_traits_cpu(number).from_float(source, buffer, values.size)
        return raw

    def _fill(self, tensor: Any, _: Any) -> None:
        """Give a tensor of the model that is being made its weights."""
        name = self.ffi.string(tensor.name).decode()
        shape = tuple(tensor.ne[i] for i in (3, 2, 1, 0))
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        kind = name.rpartition(".")[2]
        is_matrix = kind == "weight" and "norm" not in name and name != "rope_freqs.weight"
        # all optional tensors are there: biases are 0, scales and RoPE factors 1
        spread = 0.1 if is_matrix or "norm" in name else 0.0
        mean = 0.0 if is_matrix or kind == "bias" else 1.0
        weights = (mean + spread * rng.standard_normal(shape)).astype(np.float32)
        self._weights[name] = weights.reshape([n for n in shape if n > 1])
        buffer = self.ffi.from_buffer(weights)
        self.lib.ggml_backend_tensor_set(tensor, buffer, 0, weights.nbytes)


class Model:
    """A model, and its weights by their names, as float32 `[n_out, n_in]` or `[n]`."""

    def __init__(self, llama: Llama, shape: Shape, pointer: Any, weights: Mapping[str, F32]):
        self.llama, self.shape, self.weights = llama, shape, weights
        self._pointer = pointer

    def context(self, setting: Setting) -> LlamaContext:
        """Return an empty context; it computes on one thread.

        Raises:
            SetupError: llama.cpp refuses it.
        """
        ffi, lib = self.llama.ffi, self.llama.lib
        params = lib.llama_context_default_params()
        params.n_ctx = setting.n_ctx * (1 if setting.unified else setting.n_seq)
        params.n_batch, params.n_ubatch = setting.n_ctx, setting.n_ubatch
        params.n_seq_max, params.kv_unified = setting.n_seq, setting.unified
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = _FLASH_ATTN
        params.swa_full = True
        params.n_kv_hot = setting.n_hot
        for field, type_ in (
            ("type_k", setting.hot_k),
            ("type_v", setting.hot_v),
            ("type_k_cold", setting.cold_k),
            ("type_v_cold", setting.cold_v),
        ):
            setattr(params, field, quants.TYPES[type_].ggml_type)
        left = ffi.new("int *", _NEVER)
        params.abort_callback, params.abort_callback_data = lib.fa_abort_after, left
        made = lib.llama_init_from_model(self._pointer, params)
        if made == ffi.NULL:
            raise SetupError(f"llama.cpp refuses the context {setting}")
        return LlamaContext(self, ffi.gc(made, lib.llama_free), left)


class LlamaContext:
    """A context with its memory. Sequences are numbered from 0; an end of -1 is open."""

    def __init__(self, model: Model, pointer: Any, left: Any) -> None:
        self.model = model
        self._ffi, self._lib = model.llama.ffi, model.llama.lib
        self._pointer, self._left = pointer, left
        self._memory = self._lib.llama_get_memory(pointer)

    def decode(self, tokens: Sequence[Token], *, stop_after: int | None = None) -> int:
        """Compute a batch and return llama.cpp's status; 0 is success, 1 no room.

        With `stop_after` the computation is aborted after so many nodes of graphs.
        """
        new, n = self._ffi.new, len(tokens)
        seqs = [new("llama_seq_id[]", list(token.seqs)) for token in tokens]
        batch = new(
            "llama_batch *",
            {
                "n_tokens": n,
                "token": (ids := new("llama_token[]", [token.id for token in tokens])),
                "pos": (pos := new("llama_pos[]", [token.pos for token in tokens])),
                "n_seq_id": (n_seq := new("int32_t[]", [len(token.seqs) for token in tokens])),
                "seq_id": (seq_id := new("llama_seq_id *[]", seqs)),
                "logits": (logits := new("int8_t[]", [0] * (n - 1) + [1])),
            },
        )
        self._left[0] = _NEVER if stop_after is None else stop_after
        status = int(self._lib.llama_decode(self._pointer, batch[0]))
        self._left[0] = _NEVER
        del ids, pos, n_seq, seq_id, logits  # they lived as long as the batch
        return status

    def clear(self) -> None:
        """Forget all tokens and their bytes."""
        self._lib.llama_memory_clear(self._memory, True)

    def remove(self, seq: int, start: int = -1, end: int = -1) -> bool:
        """Remove a sequence's tokens at the positions `start` to `end`."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, seq, start, end))

    def copy(self, source: int, target: int, end: int = -1) -> None:
        """Let a sequence have another's tokens up to a position, too."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, end)

    def keep(self, seq: int) -> None:
        """Remove the tokens that a sequence does not have, of its stream."""
        self._lib.llama_memory_seq_keep(self._memory, seq)

    def shift(self, seq: int, start: int, by: int) -> None:
        """Add to the positions of a sequence's tokens from `start` on."""
        self._lib.llama_memory_seq_add(self._memory, seq, start, -1, by)

    def first(self, seq: int) -> int:
        """Return the least position of which all layers have the token; -1 for none."""
        return int(self._lib.llama_memory_seq_pos_min(self._memory, seq))

    def last(self, seq: int) -> int:
        """Return the greatest position of a sequence; -1 for none."""
        return int(self._lib.llama_memory_seq_pos_max(self._memory, seq))

    def state(self, seq: int | None = None) -> bytes:
        """Return what llama.cpp saves of all sequences, or of one."""
        lib, of = self._lib, () if seq is None else (seq,)
        all_ = seq is None
        size = (lib.llama_state_get_size if all_ else lib.llama_state_seq_get_size)(
            self._pointer, *of
        )
        buffer = self._ffi.new("uint8_t[]", size)
        get = lib.llama_state_get_data if all_ else lib.llama_state_seq_get_data
        written = get(self._pointer, buffer, size, *of)
        return bytes(self._ffi.buffer(buffer, written))

    def load(self, state: bytes, seq: int | None = None) -> bool:
        """Restore what was saved of all sequences, or of one; return whether it was taken."""
        lib, of = self._lib, () if seq is None else (seq,)
        put = lib.llama_state_set_data if seq is None else lib.llama_state_seq_set_data
        return bool(put(self._pointer, state, len(state), *of) == len(state))
