"""A GGUF of about 1 MB that llama.cpp runs: Gemma 3 in small, with random weights."""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

N_LAYER = 7
"""Of every six layers the sixth is global; one more shows that the pattern goes on."""
N_EMBD = 64
N_FF = 128
N_HEAD = 4
N_HEAD_KV = 1
HEAD_DIM = 64
N_SWA = 32
"""Keys that a layer with a sliding window sees."""
N_CTX = 8192

SCORE_SPREAD = 2.5
"""Standard deviation of the attention scores before the softmax."""

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
_SPACE = "▁"

FIRST_BYTE = len(_SPECIAL)
"""The token of byte 0; those of the other bytes follow."""


def write(path: Path, *, n_swa: int = N_SWA) -> None:
    """Write the model to `path`: F16 weights, F32 norms; the same bytes each time.

    With an `n_swa` of 0 all layers are global.

    It predicts nothing: its perplexity is far above the 261 tokens of its vocabulary. But what
    attention gives is as large in every layer as what it is added to, so a fault shows there.
    """
    writer = gguf.GGUFWriter(path, "gemma3")
    _add_shape(writer, n_swa)
    _add_vocabulary(writer)
    _add_weights(writer, np.random.default_rng(20))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, n_swa: int) -> None:
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(N_CTX)
    writer.add_block_count(N_LAYER)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if n_swa:
        writer.add_sliding_window(n_swa)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A SentencePiece vocabulary without merges: each byte is a token, and the space is one."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE]
    control, unknown = gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN
    types = [control, control, control, unknown, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([*types, gguf.TokenType.NORMAL])
    writer.add_pad_token_id(_SPECIAL.index("<pad>"))
    writer.add_eos_token_id(_SPECIAL.index("<eos>"))
    writer.add_bos_token_id(_SPECIAL.index("<bos>"))
    writer.add_unk_token_id(_SPECIAL.index("<unk>"))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def _add_weights(writer: gguf.GGUFWriter, rng: np.random.Generator) -> None:
    def add_matrix(name: str, n_out: int, n_in: int) -> None:
        """Rows that turn an input of unit variance into outputs of unit variance."""
        weights = rng.normal(0.0, n_in**-0.5, size=(n_out, n_in)).astype(np.float16)
        writer.add_tensor(f"{name}.weight", weights)

    def add_norm(name: str, n: int, scale: float = 1.0) -> None:
        weights: NDArray[np.float32] = np.full(n, scale, dtype=np.float32)
        writer.add_tensor(f"{name}.weight", weights)

    n_vocab = len(_SPECIAL) + 256 + 1
    # llama.cpp scales embeddings by sqrt(n_embd), so they begin with unit variance, too.
    add_matrix("token_embd", n_vocab, N_EMBD)
    add_matrix("output", n_vocab, N_EMBD)
    add_norm("output_norm", N_EMBD)
    for layer in range(N_LAYER):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm", N_EMBD)
        add_matrix(f"{block}.attn_q", N_HEAD * HEAD_DIM, N_EMBD)
        add_matrix(f"{block}.attn_k", N_HEAD_KV * HEAD_DIM, N_EMBD)
        add_matrix(f"{block}.attn_v", N_HEAD_KV * HEAD_DIM, N_EMBD)
        add_matrix(f"{block}.attn_output", N_EMBD, N_HEAD * HEAD_DIM)
        # Both are normed, so that a score is their scales' product times a variable of unit
        # variance: head_dim * cos / sqrt(head_dim).
        add_norm(f"{block}.attn_q_norm", HEAD_DIM, SCORE_SPREAD**0.5)
        add_norm(f"{block}.attn_k_norm", HEAD_DIM, SCORE_SPREAD**0.5)
        add_norm(f"{block}.post_attention_norm", N_EMBD)
        add_norm(f"{block}.ffn_norm", N_EMBD)
        add_matrix(f"{block}.ffn_gate", N_FF, N_EMBD)
        add_matrix(f"{block}.ffn_up", N_FF, N_EMBD)
        add_matrix(f"{block}.ffn_down", N_EMBD, N_FF)
        add_norm(f"{block}.post_ffw_norm", N_EMBD)
