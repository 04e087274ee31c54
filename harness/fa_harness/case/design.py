"""Cases by design: every two values of the dimensions of the problem meet in some case.

A dimension has the values at which the kernel's code, or the numbers, take another turn: head sizes
by what is left over from a vector and a block, keys about the ends of tiles and chunks, rows about
tiles and threads, and so on. They do not come from a list of faults: where nobody knows what the
next fault is, two of them are what it most likely takes to show it. Three at a time meet where they
work on the same numbers (`TRIPLES`).

Each block has the values that its path of the kernel takes. The rows, a value for each dimension of
the block, are in `design.csv`, which `tools/design.py` makes from what stands here.
"""

from __future__ import annotations

import csv
import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import resources
from typing import Any, NamedTuple

from fa_harness.case.case import Case
from fa_harness.kernel import KV_TILE, SPLIT_KV

Row = Mapping[str, str]
"""A value for each dimension of a block."""
Fields = dict[str, Any]
Tuples = set[tuple[tuple[str, str], ...]]
"""Of each, some dimensions and a value of each."""

_HEADS = ("1x1", "1x2", "2x1", "3x1", "2x3", "1x5", "3x4", "1x8", "7x1")
"""KV heads, and query heads of each: powers of two, which ALiBi treats apart, and others."""
_FEW_HEADS = ("1x1", "1x2", "2x1", "3x1", "1x3", "2x2")
_MASKS = ("none", "zeros", "random", "causal", "leading", "masked_segment", "sparse")
_PERMUTATIONS = tuple("0" + "".join(rest) for rest in itertools.permutations("123"))
_REGIMES = (
    "uniform", "normal", "spiky", "rising", "falling", "ties", "offset", "outlier", "constructed",
)  # fmt: skip
_TYPES = (
    "f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q2_0", "q1_0",
)  # fmt: skip
_OPTIONS: dict[str, tuple[str, ...]] = {
    "mask": _MASKS,
    "mask_heads": ("1", "all"),
    "sinks": ("0", "1"),
    "max_bias": ("0", "0.75", "8"),
    "softcap": ("0", "4", "15"),
    "scale": ("0", "0.0625", "0.3"),
    "permute": _PERMUTATIONS,
    "kv_view": ("0", "1"),
    "prec": ("f32", "def"),
}
"""What every path must bear."""
_CUTS = ("1", "2", "3", "5", "random", "first-empty", "middle-empty", "last-empty", "singles")

BLOCKS: dict[str, dict[str, tuple[str, ...]]] = {
    "short": {
        "path": ("vec", "quantised", "split-kv", "tiled"),
        "type_K": ("f16", "f32"),
        "hsk": ("40", "64", "72"),
        "hsv": ("40", "65", "80"),
        "n_kv": ("65", "130"),
        "heads": ("3x1", "1x5", "2x3"),
        "ne3": ("1", "2"),
        "threads": ("1", "2"),
        "mask": ("none", "random", "causal", "leading"),
        "mask_heads": ("1", "all"),
        "sinks": ("0", "1"),
        "max_bias": ("0", "8"),
        "softcap": ("0", "4"),
        "scale": ("0", "0.3"),
        "permute": ("0123", "0213", "0132"),
        "regime": ("normal", "spiky", "rising", "falling"),
        "cut": ("1", "3", "singles", "first-empty"),
    },
    "vec": {
        "type_K": _TYPES,
        "type_V": _TYPES,
        "hsk": ("16", "33", "64", "72", "100", "128", "192", "256"),
        "hsv": ("16", "40", "64", "65", "100", "128", "256"),
        "n_kv": ("1", "2", "17", "63", "64", "65", "130", "257", "511", "600", "1030"),
        "n_batch": ("1", "2", "3", "5", "8", "16", "33", "63"),
        "heads": _HEADS,
        "ne3": ("1", "2", "3"),
        "threads": ("1", "2", "3"),
        **_OPTIONS,
        "v_view": ("0", "1"),
        "regime": _REGIMES,
        "cut": _CUTS,
    },
    "split-kv": {
        "type_K": ("f16", "f32"),
        "hsk": ("16", "33", "64", "72", "100", "128", "256"),
        "hsv": ("16", "40", "64", "65", "100", "128", "256"),
        "n_kv": ("512", "513", "575", "640", "777", "1023", "1024", "1030", "2051"),
        "heads": _HEADS,
        "threads": ("1", "2", "3"),
        **_OPTIONS,
        "v_view": ("0", "1"),
        "regime": _REGIMES,
        "cut": (*_CUTS, "short-first", "short-last"),
    },
    "tiled": {
        "type_K": ("f16", "f32"),
        "hsk": ("16", "33", "64", "72", "100", "128", "256"),
        "hsv": ("16", "40", "64", "65", "100", "128", "256"),
        "n_kv": ("1", "31", "63", "64", "65", "100", "128", "129", "191", "257"),
        "n_batch": ("64", "65", "96", "127", "128", "129", "150"),
        "heads": _FEW_HEADS,
        "ne3": ("1", "2", "3"),
        "threads": ("1", "2", "3"),
        **_OPTIONS,
        "v_view": ("0", "1"),
        "regime": _REGIMES,
        "cut": (*_CUTS, "tiles"),
    },
    "long": {
        "path": ("vec", "quantised", "split-kv", "tiled"),
        "type_K": ("f16", "f32"),
        "n_kv": ("4096", "4099", "9000"),
        "hsk": ("32", "48"),
        "hsv": ("32", "40"),
        "threads": ("1", "2", "3"),
        "mask": ("none", "random", "causal", "leading"),
        "sinks": ("0", "1"),
        "regime": ("normal", "spiky", "rising", "falling", "ties"),
        "cut": ("2", "5", "random", "singles", "middle-empty"),
    },
    "threads": {
        "path": ("vec", "quantised", "split-kv", "tiled"),
        "type_K": ("f16", "f32"),
        "threads": ("4", "5", "8"),
        "n_kv": ("65", "130"),
        "heads": ("1x1", "3x1", "1x5"),
        "hsk": ("32", "64"),
        "hsv": ("32", "40"),
        "cut": ("1", "2"),
    },
    "wild": {
        "path": ("vec", "quantised", "split-kv", "tiled"),
        "type_K": ("f16", "f32"),
        "regime": ("normal", "nan"),
        "mask": ("none", "random", "causal", "leading", "lowest"),
        "mask_heads": ("1", "all"),
        "sinks": ("0", "1"),
        "max_bias": ("0", "8"),
        "softcap": ("0", "4"),
        "hsk": ("40", "64"),
        "hsv": ("40", "65"),
        "n_kv": ("65", "130"),
        "heads": ("3x1", "2x3"),
        "threads": ("1", "2"),
        "cut": ("1", "3", "singles"),
    },
    "mixed": {
        "first": ("f16", "f32", "bf16", "q8_0", "q4_0/f16", "f16/q8_0", "f32/f16"),
        "second": ("f16", "f32", "bf16/f32", "q4_0", "q5_1/q8_0", "iq4_nl", "f16/f32"),
        "third": ("f16", "f32", "q8_0/f16", "q4_1", "q5_0", "bf16"),
        "sizes": ("64/64", "32/96", "128/128", "192/128", "96/32"),
        "n_kv": ("97", "200", "1600"),
        "n_batch": ("1", "2", "7", "65"),
        "heads": _FEW_HEADS,
        "ne3": ("1", "2", "3"),
        "threads": ("1", "2", "3"),
        **_OPTIONS,
        "regime": ("normal", "spiky", "rising", "falling", "outlier"),
        "cut": ("3", "5", "random", "first-empty", "middle-empty", "last-empty", "singles"),
    },
    "fifo": {
        "types": ("f16", "f32", "q8_0/f16", "bf16", "f16/q4_0"),
        "cold_type": _TYPES[:9],
        "window": ("1/1", "2/1", "7/3", "16/16", "24/5", "33/32"),
        "n_kv": ("36", "45"),
        "sizes": ("64/64", "32/96", "128/128", "192/128"),
        "heads": _FEW_HEADS,
        "ne3": ("1", "2", "3"),
        "threads": ("1", "2"),
        **{name: _OPTIONS[name] for name in (
            "mask_heads", "sinks", "max_bias", "softcap", "scale", "permute", "kv_view",
        )},
        # with one below 1 all slopes are so large that cold tokens have no weight
        "max_bias": ("0", "1.5", "8"),
        "regime": ("normal", "spiky", "rising", "falling", "offset", "outlier"),
    },
}  # fmt: skip
"""The dimensions of each block, and their values."""

TRIPLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "short": (("path", "type_K", "cut"),),
    "vec": (
        ("mask", "sinks", "cut"), ("max_bias", "softcap", "mask"), ("type_V", "sinks", "cut"),
        ("hsk", "hsv", "threads"),
    ),
    "split-kv": (
        ("n_kv", "threads", "type_K"), ("mask", "sinks", "type_K"), ("hsk", "hsv", "threads"),
    ),
    "tiled": (
        ("n_batch", "n_kv", "type_K"), ("mask", "sinks", "cut"), ("hsk", "hsv", "threads"),
    ),
    "long": (("path", "type_K", "n_kv"),),
    "threads": (("path", "threads", "type_K"),),
    "wild": (("path", "regime", "cut"), ("path", "mask", "cut")),
    "mixed": (("first", "second", "sinks"),),
    "fifo": (("types", "cold_type", "sinks"),),
}  # fmt: skip
"""Dimensions of which all values of three meet: keys that a row sees, in segments; the sizes by
which work memory is laid out for the threads; and so on."""


def _is_cut_into_parts(n_kv: str, cut: str) -> bool:
    """Tell whether there are keys enough for a cut."""
    return int(n_kv) >= {"1": 1, "tiles": 65}.get(cut, 17)


def _is_near(mask: str, max_bias: str, n_kv: str) -> bool:
    """Tell whether ALiBi, which counts the distance under a causal mask, leaves all keys a weight.

    With a maximum bias of 0.75 all slopes are near 1, with one of 8 some are 2^-8.
    """
    farthest = {"0": 2**63, "0.75": 17, "8": 130}
    return mask != "causal" or int(n_kv) <= farthest[max_bias]


Rule = tuple[tuple[str, ...], Callable[..., bool]]
"""Dimensions, and whether a value of each can meet."""

RULES: dict[str, tuple[Rule, ...]] = {
    "": (
        (("mask", "mask_heads"), lambda mask, heads: mask != "none" or heads == "1"),
        (("mask", "max_bias"), lambda mask, bias: mask != "none" or bias == "0"),
        (("n_kv", "cut"), _is_cut_into_parts),
        (("mask", "max_bias", "n_kv"), _is_near),
        (("v_view", "type_K", "type_V"), lambda view, k, v: view == "0" or k == v),
        (("v_view", "hsk", "hsv"), lambda view, hsk, hsv: view == "0" or int(hsv) <= int(hsk)),
    ),
    "short": ((("path", "ne3"), lambda path, ne3: path != "split-kv" or ne3 == "1"),),
    "wild": (
        (("path", "regime"), lambda path, regime: (path, regime) != ("quantised", "nan")),
        # of far keys the weight is rounded to 0, which makes NaN of infinities
        (
            ("path", "regime", "max_bias"),
            lambda path, regime, bias: (path, regime, bias) != ("split-kv", "nan", "8"),
        ),
    ),
    "long": (
        (
            ("path", "type_K", "regime"),
            lambda path, type_, regime: (path, type_, regime) != ("split-kv", "f16", "spiky"),
        ),
    ),
    "split-kv": (
        # F16 sums of so many such V lose more than a lost state would, as do those of very many
        (("type_K", "regime"), lambda type_, regime: (type_, regime) != ("f16", "offset")),
        (("type_K", "n_kv"), lambda type_, n_kv: (type_, n_kv) != ("f16", "2051")),
        # a single row's weight may lie in one segment; in F32 the rest shows all the same
        (("type_K", "regime"), lambda type_, regime: (type_, regime) != ("f16", "spiky")),
        (("type_K", "scale"), lambda type_, scale: (type_, scale) != ("f16", "0.3")),
        # of a single row it is the mean of V, which F16 sums of more keys may round away
        (
            ("type_K", "regime", "heads", "n_kv"),
            lambda type_, regime, heads, n_kv: (
                (type_, regime, heads) != ("f16", "constructed", "1x1") or n_kv == "512"
            ),
        ),
        # there all K, and V with them, are nearly the same
        (("v_view", "regime"), lambda v, regime: v == "0" or regime not in ("rising", "falling")),
    ),
}
"""Which values cannot meet: in each block that has the dimensions, and in one alone."""


def rules_of(block: str) -> list[Rule]:
    """Return the rules of a block."""
    of_all = [rule for rule in RULES[""] if set(rule[0]) <= BLOCKS[block].keys()]
    return [*of_all, *RULES.get(block, ())]


class Covered(NamedTuple):
    """How much of the design some cases cover."""

    pairs: int
    """Of two dimensions, the values that meet in a case."""
    of_pairs: int
    """Those that meet in the design, which are all that can."""
    triples: int
    """The same of three dimensions, of `TRIPLES`."""
    of_triples: int


def cases(*blocks: str) -> list[Case]:
    """Return the cases of some blocks, or all, each once, in the order of the file."""
    found = dict.fromkeys(
        case_of(block, row, turn)
        for block, rows in rows_by_block().items()
        for turn, row in enumerate(rows)
        if not blocks or block in blocks
    )
    return list(found)


@functools.cache
def rows_by_block() -> dict[str, list[Row]]:
    """Return the rows of `design.csv`, which has a table for each block."""
    text = resources.files("fa_harness.case").joinpath("design.csv").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> dict[str, list[Row]]:
    """Return the tables of a text: `# BLOCK`, the dimensions' names, then the rows."""
    tables: dict[str, list[Row]] = {}
    for table in text.split("# ")[1:]:
        block, _, rest = table.partition("\n")
        tables[block] = list(csv.DictReader(rest.strip().splitlines()))
    return tables


def covered(some: Iterable[Case]) -> Covered:
    """Return what cases cover; a case is of the design whatever its seed and threads."""
    threads: dict[Case, set[str]] = {}
    for case in some:
        threads.setdefault(case.with_(seed=0, threads=1), set()).add(str(case.threads))
    counts = [0, 0, 0, 0]
    for block, rows in rows_by_block().items():
        met = [
            {**row, "threads": n}
            for row in rows
            for n in threads.get(case_of(block, row).with_(threads=1), ())
        ]
        pairs = list(itertools.combinations(BLOCKS[block], 2))
        for i, names in enumerate((pairs, TRIPLES[block])):
            every, found = (tuples_of(those, names) for those in (rows, met))
            counts[2 * i] += len(found & every)
            counts[2 * i + 1] += len(every)
    return Covered(*counts)


def tuples_of(rows: Iterable[Row], dimensions: Collection[tuple[str, ...]]) -> Tuples:
    """Return the values of some dimensions that meet in rows."""
    return {tuple((name, row[name]) for name in names) for row in rows for names in dimensions}


def case_of(block: str, row: Row, turn: int = 0) -> Case:
    """Return the case of a row; `turn` becomes its seed."""
    of_block = {
        "short": _plain, "vec": _one_type, "split-kv": _one_row, "tiled": _one_type, "long": _plain,
        "threads": _plain, "wild": _plain, "mixed": _mixed, "fifo": _rolling,
    }  # fmt: skip
    return Case(**{**of_block[block](row), "seed": turn})


def _one_type(row: Row) -> Fields:
    return {
        "type_K": row["type_K"],
        "type_V": row.get("type_V", row["type_K"]),
        "v_is_view_of_k": row["v_view"] == "1",
        **_shape_and_options(row),
        **_cut(row["cut"], int(row["n_kv"])),
    }


def _one_row(row: Row) -> Fields:
    return _one_type({**row, "n_batch": "1", "ne3": "1"})


def _plain(row: Row) -> Fields:
    """Return the fields of a case on a path that the row names, without most of the options."""
    is_quantised, is_tiled = row["path"] == "quantised", row["path"] == "tiled"
    is_split = row["path"] == "split-kv"
    usual = {name: values[0] for name, values in _OPTIONS.items()}
    fields: Row = {
        **usual, "kv_view": "1", "ne3": "1", "v_view": "0", "regime": "normal",
        "n_batch": "64" if is_tiled else "2" if row["path"] == "vec" else "1",
        "heads": "1x1" if is_tiled else "1x2", **row,
        **({"type_K": "q8_0", "type_V": "q4_0"} if is_quantised else {}),
    }  # fmt: skip
    if is_split and int(row["n_kv"]) < SPLIT_KV:
        fields = {**fields, "n_kv": str(int(row["n_kv"]) + SPLIT_KV)}
    return _one_type(fields)


def _mixed(row: Row) -> Fields:
    return {
        "type_K": "f32",
        "type_V": "f32",
        "segment_types": (row["first"], row["second"], row["third"]),
        **_shape_and_options(row),
        **_cut(row["cut"], int(row["n_kv"])),
    }


def _rolling(row: Row) -> Fields:
    hot_window, group = map(int, row["window"].split("/"))
    type_k, _, type_v = row["types"].partition("/")
    return {
        "type_K": type_k,
        "type_V": type_v or type_k,
        "cold_type": row["cold_type"],
        "hot_window": hot_window,
        "group": group,
        **_shape_and_options({**row, "n_batch": row["n_kv"], "mask": "causal", "prec": "f32"}),
    }


def _shape_and_options(row: Row) -> Fields:
    hsk, hsv = row["sizes"].split("/") if "sizes" in row else (row["hsk"], row["hsv"])
    n_head_kv, n_group = map(int, row["heads"].split("x"))
    mask, n_kv = row["mask"], int(row["n_kv"])
    return {
        "hsk": int(hsk),
        "hsv": int(hsv),
        "n_kv": n_kv,
        "n_batch": int(row["n_batch"]),
        "ne3": int(row["ne3"]),
        "n_head_kv": n_head_kv,
        "n_group": n_group,
        "threads": int(row["threads"]),
        "mask": mask != "none",
        "mask_kind": mask,
        "n_kv_max": max(1, n_kv // 3) if mask == "sparse" else 0,
        "mask_heads": n_head_kv * n_group if row["mask_heads"] == "all" else 1,
        "sinks": row["sinks"] == "1",
        "max_bias": float(row["max_bias"]),
        "logit_softcap": float(row["softcap"]),
        "kq_scale": float(row["scale"]),
        "permute": tuple(map(int, row["permute"])),
        "kv_view": row["kv_view"] == "1",
        "prec": row["prec"],
        "regime": row["regime"],
    }


def _cut(name: str, n_kv: int) -> Fields:
    """Return the fields of segments."""
    third = n_kv // 3
    listed = {
        "first-empty": (0, third),
        "middle-empty": (third, third),
        "last-empty": (third, n_kv),
        "singles": (1, n_kv // 2, n_kv // 2 + 1, n_kv - 1),
        "short-first": (20, n_kv // 2),
        "short-last": (n_kv // 2, n_kv - 20),
        "tiles": tuple(range(KV_TILE, n_kv, KV_TILE)),
    }
    if name == "random":
        return {"segments": 5, "boundaries": "random"}
    return {"boundaries": listed[name]} if name in listed else {"segments": int(name)}
