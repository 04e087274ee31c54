"""llama.cpp with a KV cache of two types: quality, bytes and speed beside uniform caches.

The newest tokens of a sequence have one type, the hot one, older ones the cold type. Quality is the
divergence of the next token's distribution from that with an F16 cache, as `llama-perplexity
--kl-divergence` prints it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fa_harness.case.quants import TYPES
from fa_harness.errors import FaHarnessError, UsageError

BASE = "f16"
"""The cache that the others are compared with."""

_NUMBER = r"(-?\d+\.\d+)"
_QUALITY = {
    "perplexity": rf"Mean PPL\(Q\)\s*:\s*{_NUMBER} ± +{_NUMBER}",
    "mean": rf"Mean +KLD: +{_NUMBER} ± +{_NUMBER}",
    "p999": rf"99\.9% +KLD: +{_NUMBER}",
    "median": rf"Median +KLD: +{_NUMBER}",
    "same_top": rf"Same top p: +{_NUMBER} ± +{_NUMBER}",
}
_MIB = r"(\d+\.\d+) MiB"
_KV = re.compile(rf"KV buffer size = +{_MIB}")
_LAYERS = re.compile(r"llama_kv_cache: size = .*?cells, +(\d+) layers")
_COMPUTE = re.compile(rf"compute buffer size = +{_MIB}")
_PEAK = "fa-harness: peak of"
_PEAK_KIB = re.compile(rf"^{_PEAK} (\d+) KiB$", re.MULTILINE)
WITH_PEAK = (
    "import resource, subprocess, sys\n"
    "status = subprocess.call(sys.argv[1:])\n"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    f"print('{_PEAK}', peak, 'KiB', flush=True)\n"
    "sys.exit(status)\n"
)
"""A program for Python that runs another one and then prints the most memory that it held."""


def bytes_per_element(name: str) -> float:
    """Return the bytes per element of a ggml type, scales included."""
    if name not in TYPES:
        raise UsageError(f"type {name!r} is not known; known are {', '.join(TYPES)}")
    return TYPES[name].block_bytes / TYPES[name].block_size


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a model whose attention reads a KV cache."""

    n_full: int  # which see all tokens
    n_window: int = 0  # which see a window, and stay as they are in a cache of two types
    window: int = 0  # tokens of that window


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A KV cache of llama.cpp, K and V alike."""

    hot: str  # ggml type of the newest tokens, or of all
    cold: str = ""  # of the older ones; empty for a uniform cache
    n_hot: int = 0  # tokens of a sequence that stay hot

    def __post_init__(self) -> None:
        bytes_per_element(self.hot)
        if bool(self.cold) != bool(self.n_hot) or self.n_hot < 0:
            raise UsageError(f"cache {self.name}: a cold type needs a number of hot tokens")
        if self.cold:
            bytes_per_element(self.cold)

    @classmethod
    def parse(cls, text: str) -> Cache:
        """Read `f16`, or `q4_0+f16:512` for a cache whose newest 512 tokens are F16.

        Raises:
            UsageError: It is neither.
        """
        found = re.fullmatch(r"(\w+)(?:\+(\w+):(\d+))?", text)
        if not found:
            raise UsageError(f"cache '{text}': write a type, or COLD+HOT:TOKENS as in q4_0+f16:512")
        first, hot, n_hot = found.groups()
        return cls(hot=hot, cold=first, n_hot=int(n_hot)) if hot else cls(hot=first)

    @property
    def name(self) -> str:
        """What `parse` reads."""
        return f"{self.cold}+{self.hot}:{self.n_hot}" if self.cold else self.hot

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options of llama.cpp's programs."""
        types = ("-ctk", self.hot, "-ctv", self.hot)
        if not self.cold:
            return types
        return (*types, "-ctkc", self.cold, "-ctvc", self.cold, "--cache-hot", str(self.n_hot))

    def bytes_per_element(self, n_token: int, layers: Layers) -> float:
        """Return the mean bytes of an element of K or V where a sequence has `n_token` tokens."""
        in_window = layers.n_window * min(layers.window, n_token)
        n_all = layers.n_full * n_token + in_window
        n_cold = layers.n_full * max(0, n_token - self.n_hot) if self.cold else 0
        cold = bytes_per_element(self.cold) if self.cold else 0.0
        return ((n_all - n_cold) * bytes_per_element(self.hot) + n_cold * cold) / n_all


DEFAULT = (
    "f16", "q8_0", "q5_1", "q4_0",
    "q4_0+f16:128", "q4_0+f16:512", "q4_0+f16:1024", "q8_0+f16:512", "f16+f16:512",
)  # fmt: skip
"""The last one has two parts of one type: it differs by the order of sums alone."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How far a cache is from the base, over all evaluated tokens.

    A divergence is in nats.
    """

    perplexity: float
    perplexity_error: float  # the standard error, as of the others
    mean: float
    mean_error: float
    median: float
    p999: float  # 99.9 % of the tokens have at most this
    same_top: float  # percent of the tokens whose most likely next token is the base's
    same_top_error: float


def parse_quality(output: str) -> Quality:
    """Read what `llama-perplexity --kl-divergence` prints.

    Raises:
        FaHarnessError: A line is missing.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name, pattern in _QUALITY.items():
        match = re.search(pattern, output)
        if not match:
            last = next((each for each in reversed(output.splitlines()) if each.strip()), "nothing")
            raise FaHarnessError(
                f"llama-perplexity: no {name} in the statistics; the output ends in: {last.strip()}"
            )
        found[name] = tuple(map(float, match.groups()))
    return Quality(
        perplexity=found["perplexity"][0],
        perplexity_error=found["perplexity"][1],
        mean=found["mean"][0],
        mean_error=found["mean"][1],
        median=found["median"][0],
        p999=found["p999"][0],
        same_top=found["same_top"][0],
        same_top_error=found["same_top"][1],
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a program of llama.cpp says it has, and what its process held at most, in bytes."""

    kv: int  # buffers of the KV cache
    compute: int  # buffers of what a graph computes: copies of K and V would be here
    process: int  # resident, with the model


def parse_layers(output: str, window: int) -> Layers:
    """Read the layers of a uniform cache; a model with a `window` has two, that with it the second.

    Raises:
        FaHarnessError: There are other caches.
    """
    n_layer = [int(n) for n in _LAYERS.findall(output)]
    if len(n_layer) != 1 + (window > 0):
        raise FaHarnessError(
            f"llama.cpp: {len(n_layer)} lines 'llama_kv_cache: size = ...' in the output, "
            f"{1 + (window > 0)} are known"
        )
    n_full, *n_window = n_layer
    return Layers(n_full=n_full, n_window=sum(n_window), window=window)


def parse_memory(output: str) -> Memory:
    """Read what a program says of its buffers, and what `WITH_PEAK` printed of its process.

    Raises:
        FaHarnessError: Something is missing.
    """
    peak = _PEAK_KIB.search(output)
    buffers = {"KV": _KV.findall(output), "compute": _COMPUTE.findall(output)}
    for name, found in buffers.items():
        if not found:
            raise FaHarnessError(f"llama.cpp: no line '{name} buffer size = ... MiB' in the output")
    if not peak:
        raise FaHarnessError(f"llama.cpp: no line '{_PEAK} ... KiB' behind the output")
    kv, compute = (round(sum(map(float, found)) * 2**20) for found in buffers.values())
    return Memory(kv=kv, compute=compute, process=int(peak[1]) << 10)


def parse_bench(output: str) -> Mapping[tuple[int, int, int], Sequence[float]]:
    """Return tokens per second from `llama-bench -o json`, by n_prompt, n_gen and n_depth.

    Raises:
        FaHarnessError: It is no such document.
    """
    try:
        start = output.index("[")
        rows = json.JSONDecoder().raw_decode(output[start:])[0]
        return {
            (row["n_prompt"], row["n_gen"], row["n_depth"]): tuple(row["samples_ts"])
            for row in rows
        }
    except (ValueError, KeyError, TypeError) as error:
        raise FaHarnessError(f"llama-bench: its output is no table of results ({error})") from error
