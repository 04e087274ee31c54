"""Caches of two types: their names, sizes and options, and what llama.cpp prints of them."""

import json
import subprocess
import sys

import pytest

from fa_harness.errors import FaHarnessError, UsageError
from fa_harness.model.mixed import (
    DEFAULT,
    WITH_PEAK,
    Cache,
    Layers,
    bytes_per_element,
    parse_bench,
    parse_layers,
    parse_memory,
    parse_quality,
)

OUTPUT = """\
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence

====== Perplexity statistics ======
Mean PPL(Q)                   :  21.503126 ±   0.911312
Mean PPL(base)                :  21.401122 ±   0.905312
====== KL divergence statistics ======
Mean    KLD:   0.012345 ±   0.000456
Maximum KLD:   1.234567
99.9%   KLD:   0.654321
99.0%   KLD:   0.223344
Median  KLD:   0.004321
====== Token probability statistics ======
Same top p: 93.141 ± 0.351 %
"""


@pytest.mark.parametrize("name", DEFAULT)
def test_a_cache_is_what_its_name_says(name: str) -> None:
    assert Cache.parse(name).name == name


def test_options_of_a_mixed_cache() -> None:
    assert Cache.parse("q4_0+f16:512").arguments == (
        *("-ctk", "f16", "-ctv", "f16"),
        *("-ctkc", "q4_0", "-ctvc", "q4_0", "--cache-hot", "512"),
    )
    assert Cache.parse("q8_0").arguments == ("-ctk", "q8_0", "-ctv", "q8_0")


@pytest.mark.parametrize(
    ("name", "size"),
    [("f16", 2), ("q8_0", 34 / 32), ("q5_1", 0.75), ("q5_0", 22 / 32), ("q4_0", 18 / 32)],
)
def test_scales_count_as_bytes_of_an_element(name: str, size: float) -> None:
    assert bytes_per_element(name) == size


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'q9_9' is not known; known are f32, f16"):
        bytes_per_element("q9_9")


def test_bytes_are_those_of_hot_and_cold_tokens() -> None:
    layers = Layers(n_full=30)
    assert Cache.parse("f16").bytes_per_element(1000, layers) == 2
    mixed = Cache.parse("q4_0+f16:256")
    assert mixed.bytes_per_element(1024, layers) == (256 * 2 + 768 * 18 / 32) / 1024
    assert mixed.bytes_per_element(100, layers) == 2  # all of them are hot


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f17", "type 'f17' is not known"),
        ("q4_0+f17:8", "type 'f17' is not known"),
        ("q4_9+f16:8", "type 'q4_9' is not known"),
        ("q4_0+f16", "cache 'q4_0+f16': write a type, or COLD"),
        ("q4_0+f16:0", r"cache q4_0\+f16:0|needs a number of hot tokens"),
    ],
)
def test_what_is_no_cache_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("+f16'", r"\+f16'")):
        Cache.parse(text)


def test_quality_is_read() -> None:
    found = parse_quality(OUTPUT)
    assert (found.perplexity, found.perplexity_error) == (21.503126, 0.911312)
    assert (found.mean, found.mean_error) == (0.012345, 0.000456)
    assert (found.median, found.p999) == (0.004321, 0.654321)
    assert (found.same_top, found.same_top_error) == (93.141, 0.351)


def test_a_program_that_stopped_early_is_named() -> None:
    with pytest.raises(FaHarnessError, match="no same_top in the statistics; the output ends in"):
        parse_quality(OUTPUT[: OUTPUT.index("Same")])


def test_layers_with_a_window_stay_hot_and_hold_no_more_tokens_than_it() -> None:
    text = """\
llama_kv_cache_iswa: creating non-SWA KV cache, size = 2048 cells
llama_kv_cache: size =    6.00 MiB (  2048 cells,   3 layers,  1/1 seqs), K (f16):    3.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 768 cells
llama_kv_cache: size =   11.25 MiB (   768 cells,  15 layers,  1/1 seqs), K (f16):    5.62 MiB
"""
    layers = parse_layers(text, 512)
    assert layers == Layers(n_full=3, n_window=15, window=512)
    of_mixed = Cache.parse("q4_0+f16:128").bytes_per_element(2048, layers)
    n_all, n_cold = 3 * 2048 + 15 * 512, 3 * (2048 - 128)
    assert of_mixed == ((n_all - n_cold) * 2 + n_cold * 18 / 32) / n_all
    assert Cache.parse("q4_0").bytes_per_element(2048, layers) == 18 / 32
    with pytest.raises(FaHarnessError, match=r"2 lines .* in the output, 1 are known"):
        parse_layers(text, 0)


def test_buffers_of_all_parts_are_counted_and_the_process_beside_them() -> None:
    text = """\
llama_kv_cache:        CPU KV buffer size =     3.00 MiB
llama_kv_cache:        CPU KV buffer size =     1.50 MiB
sched_reserve:        CPU compute buffer size =    10.25 MiB
"""
    peak = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, sys.executable, "-c", "x = b'x' * (64 << 20)"],
        stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip
    memory = parse_memory(text + peak)
    assert (memory.kv, memory.compute) == (4.5 * 2**20, 10.25 * 2**20)
    assert 64 << 20 < memory.process < 128 << 20
    for missing, message in (
        (peak, "no line 'KV buffer size"),
        (text.replace("compute", "other") + peak, "no line 'compute buffer size"),
        (text, "no line 'fa-harness: peak of"),
    ):
        with pytest.raises(FaHarnessError, match=message):
            parse_memory(missing)


def test_speeds_are_read() -> None:
    rows = [
        {"n_prompt": 0, "n_gen": 32, "n_depth": 4096, "samples_ts": [101.5, 99.5]},
        {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "samples_ts": [1500.0]},
    ]
    found = parse_bench("a warning\n" + json.dumps(rows))
    assert found == {(0, 32, 4096): (101.5, 99.5), (512, 0, 0): (1500.0,)}
    with pytest.raises(FaHarnessError, match="llama-bench: its output is no table"):
        parse_bench("error: failed to load model")
