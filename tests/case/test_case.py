import dataclasses
import itertools
import re
from typing import Any

import pytest

from fa_harness.case.case import MASK_KINDS, REGIMES, Case
from fa_harness.case.case_string import spelled
from fa_harness.errors import UsageError

UPSTREAM_LINE = (
    "  FLASH_ATTN_EXT(hsk=65,hsv=67,nh=4,nr23=[3,2],kv=113,nb=75,mask=1,sinks=1,"
    "max_bias=8.000000,logit_softcap=10.500000,prec=def,type_K=bf16,type_V=f32,"
    "permute=[0,2,1,3],kv_view=0,v_is_view_of_k=0,n_kv_max=0): \x1b[1;32mOK\x1b[0m\n"
)
UPSTREAM_FIELDS = UPSTREAM_LINE.split("(", 1)[1].split(")")[0]


def test_a_line_of_test_backend_ops_parses_with_colours_and_trailing_text() -> None:
    assert Case.parse(UPSTREAM_LINE) == Case(
        hsk=65,
        hsv=67,
        n_head_kv=4,
        n_group=3,
        ne3=2,
        n_kv=113,
        n_batch=75,
        sinks=True,
        max_bias=8.0,
        logit_softcap=10.5,
        prec="def",
        type_K="bf16",
        type_V="f32",
        permute=(0, 2, 1, 3),
        kv_view=False,
    )


def test_head_sizes_are_padded_to_whole_blocks_as_upstream_pads_them() -> None:
    case = Case(hsk=72, hsv=40, type_K="q8_0", type_V="q2_0")
    assert (case.hsk_padded, case.hsv_padded) == (96, 64)
    assert "hsk=72,hsv=40," in str(case)
    assert case.scale == Case(hsk=72).scale
    case = Case(hsk=65, hsv=67)
    assert (case.hsk_padded, case.hsv_padded) == (65, 67)


def test_a_type_that_only_ggml_knows_makes_a_case() -> None:
    case = Case(type_K="q4_K", hsk=72)
    assert case.hsk_padded == 256
    assert Case.parse(str(case)) == case


def test_a_line_with_two_cases_is_refused() -> None:
    with pytest.raises(UsageError, match="is more than one case; one looks like FLASH_ATTN_EXT"):
        Case.parse("FLASH_ATTN_EXT(kv=7) FLASH_ATTN_EXT(kv=8)")


def test_colours_inside_a_line_do_not_matter() -> None:
    assert Case.parse("\x1b[1;31mFLASH_ATTN_EXT(\x1b[0mkv=7)\x1b[0m").n_kv == 7


def test_a_case_prints_upstreams_fields_as_upstream_does_and_then_its_own() -> None:
    assert str(Case.parse(UPSTREAM_LINE)) == (
        f"FLASH_ATTN_EXT({UPSTREAM_FIELDS},segments=1,regime=uniform,seed=0,threads=1)"
    )


def test_the_defaults_are_those_of_upstreams_constructor() -> None:
    assert str(Case.parse("FLASH_ATTN_EXT()")) == (
        "FLASH_ATTN_EXT(hsk=128,hsv=128,nh=32,nr23=[1,1],kv=96,nb=8,mask=1,sinks=0,"
        "max_bias=0.000000,logit_softcap=0.000000,prec=f32,type_K=f16,type_V=f16,"
        "permute=[0,1,2,3],kv_view=1,v_is_view_of_k=0,n_kv_max=0,"
        "segments=1,regime=uniform,seed=0,threads=1)"
    )


def test_own_fields_that_differ_from_their_defaults_are_printed() -> None:
    case = Case(mask_kind="causal", mask_heads=4, boundaries=(1, 1, 96))
    assert "n_kv_max=0,mask_kind=causal,mask_heads=4,segments=4,boundaries=[1,1,96],regime" in str(
        case
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(mask=False),
        Case(max_bias=0.000001, logit_softcap=123456.789012),
        Case(max_bias=8, logit_softcap=30),
        Case(segments=7, boundaries="random", seed=2**64 - 1),
        Case(boundaries=(0, 0, 96), regime="spiky", threads=8),
        Case(boundaries=()),
        Case(n_kv_max=5),
        Case(hsk=576, hsv=512, type_K="q4_0", type_V="q4_0", v_is_view_of_k=True),
        Case(hsk=4, hsv=4, n_head_kv=1, n_kv=2, n_batch=1, regime="seed", segments=2),
        *(Case(mask_kind=kind) for kind in MASK_KINDS if kind not in ("none", "sparse")),
    ],
    ids=str,
)
def test_a_printed_case_parses_to_itself(case: Case) -> None:
    assert Case.parse(str(case)) == case
    assert str(Case.parse(str(case))) == str(case)


TYPED = "FLASH_ATTN_EXT(kv=64,segments=3,type_K=f32,type_V=f32,segment_types=[q4_0,q8_0/f16])"


def test_the_field_order_is_the_printed_order() -> None:
    names = [field.name for field in dataclasses.fields(Case) if field.name != "ne3"]
    fields = ["nr23" if name == "n_group" else spelled(name) for name in names]
    options: dict[str, Any] = {
        "mask_kind": "causal",
        "mask_heads": 2,
        "segments": 2,
        "boundaries": "random",
    }
    typed = Case(**options, type_K="f32", type_V="f32", segment_types=("f16",))
    rolling = Case(**options, n_kv=8, n_batch=8, hot_window=4)
    of_rolling, of_model = ("hot_window", "group", "cold_type"), ("captured", "kq_scale")
    fields = [field for field in fields if field not in of_model]
    assert re.findall(r"(\w+)=", str(typed)) == [f for f in fields if f not in of_rolling]
    assert re.findall(r"(\w+)=", str(rolling)) == [f for f in fields if f != "segment_types"]


def test_the_last_segment_type_goes_on() -> None:
    case = Case.parse(TYPED)
    assert [case.types_of_segment(i) for i in range(3)] == [
        ("q4_0", "q4_0"), ("q8_0", "f16"), ("q8_0", "f16"),
    ]  # fmt: skip
    assert Case.parse(str(case)) == case


def test_the_case_of_a_segment_has_its_types_for_the_whole_cache() -> None:
    case = Case.parse(TYPED)
    of_second = case.of_segment(1)
    assert (of_second.type_K, of_second.type_V, of_second.segment_types) == ("q8_0", "f16", ())
    assert of_second.segment_bounds() == case.segment_bounds()
    plain = Case(segments=2)
    assert plain.of_segment(1) is plain


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("q4_0", "q4_9", r"segment_types=\[q4_9,q8_0/f16\]: unknown type"),
        ("type_K=f32", "type_K=f16", "segment_types=.*: needs type_K=f32,type_V=f32"),
        ("segments=3", "segments=1", "segment_types=.*: more than the segments=1"),
        ("kv=64", "kv=64,hsk=80", "segment_types=.*: hsk=80 is not a multiple of the 32 elements"),
        ("[q4_0", "[q4_0,", "segment_types=.*: must be a list of types such as"),
    ],
)
def test_segment_types_that_cannot_be_are_refused(old: str, new: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Case.parse(TYPED.replace(old, new, 1))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ("", "random"),
        ("mask=0", "none"),
        ("n_kv_max=5", "sparse"),
        ("hsk=4,hsv=4,nh=1,kv=2,nb=1,regime=seed", "zeros"),
    ],
)
def test_the_mask_kind_follows_from_the_other_fields(fields: str, kind: str) -> None:
    assert Case.parse(f"FLASH_ATTN_EXT({fields})").mask_kind == kind


@pytest.mark.parametrize(
    ("fields", "n_head", "n_head_kv", "ne3"),
    [
        ("n_head=32,n_head_kv=8", 32, 8, 1),
        ("nh=8,n_head=24", 24, 8, 1),
        ("n_head=6", 6, 6, 1),
        ("n_head=12,nr23=[3,2]", 12, 4, 2),
        ("n_head_kv=8,nr23=[4,1]", 32, 8, 1),
        ("n_head=32,n_head_kv=8,nr23=[4,2]", 32, 8, 2),
    ],
)
def test_heads_may_be_given_by_the_names_of_the_field(
    fields: str, n_head: int, n_head_kv: int, ne3: int
) -> None:
    case = Case.parse(f"FLASH_ATTN_EXT({fields})")
    assert (case.n_head, case.n_head_kv, case.ne3) == (n_head, n_head_kv, ne3)


def test_n_kv_and_n_batch_may_be_given_by_the_names_of_the_field() -> None:
    case = Case.parse("FLASH_ATTN_EXT(n_kv=5, n_batch=3)")
    assert (case.n_kv, case.n_batch) == (5, 3)
    assert (case.n_kv, case.n_batch) == (5, 3)


def test_the_scale_is_rounded_to_float32_as_upstream_does() -> None:
    assert Case(hsk=64).scale == 0.125
    assert Case(hsk=80).scale == float.fromhex("0x1.c9f25cp-4")


@pytest.mark.parametrize(
    ("case", "bounds"),
    [
        (Case(n_kv=10), (0, 10)),
        (Case(n_kv=10, segments=4), (0, 2, 5, 7, 10)),
        (Case(n_kv=3, segments=3), (0, 1, 2, 3)),
        (Case(n_kv=10, boundaries=(1, 9)), (0, 1, 9, 10)),
        (Case(n_kv=10, boundaries=(0, 4, 4, 10)), (0, 0, 4, 4, 10, 10)),
        (Case(n_kv=10, boundaries=()), (0, 10)),
        (Case(n_kv=1, boundaries="random"), (0, 1)),
    ],
    ids=str,
)
def test_segment_bounds(case: Case, bounds: tuple[int, ...]) -> None:
    assert case.segment_bounds() == bounds


def test_explicit_boundaries_set_the_number_of_segments() -> None:
    assert Case(boundaries=(1, 2, 3)).segments == 4


def test_random_boundaries_leave_no_segment_empty() -> None:
    for seed in range(50):
        bounds = Case(n_kv=9, segments=7, boundaries="random", seed=seed).segment_bounds()
        assert len(bounds) == 8
        assert all(start < stop for start, stop in itertools.pairwise(bounds))


def test_random_boundaries_come_from_the_seed_alone() -> None:
    def bounds(seed: int, regime: str) -> tuple[int, ...]:
        return Case(
            n_kv=100, segments=4, boundaries="random", seed=seed, regime=regime
        ).segment_bounds()

    assert bounds(7, "uniform") == bounds(7, "spiky") == (0, 9, 35, 38, 100)
    assert bounds(7, "uniform") != bounds(8, "uniform")


def test_as_many_random_segments_as_keys_hold_one_key_each() -> None:
    assert Case(n_kv=5, segments=5, boundaries="random").segment_bounds() == (0, 1, 2, 3, 4, 5)


def test_changing_a_case_checks_it_again() -> None:
    assert Case().with_(n_kv=7, threads=3) == Case(n_kv=7, threads=3)
    with pytest.raises(UsageError, match="segments=97"):
        Case().with_(segments=97)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("hsk=0", "hsk=0: must be at least 1"),
        ("kv=0", "kv=0: must be at least 1"),
        ("nb=-1", "nb=-1: must be at least 1"),
        ("nh=0", "nh=0: must be at least 1"),
        ("nr23=[0,1]", "nr23=[0,1]: must be two numbers of at least 1"),
        ("nr23=[1]", "nr23=[1]: must be two whole numbers such as [4,1]"),
        ("permute=[2,1,0,3]", "permute=[2,1,0,3]: must order 0,1,2,3 and begin with 0"),
        ("permute=[0,1,1,3]", "permute=[0,1,1,3]: must order 0,1,2,3"),
        ("type_K=q9_9", "type_K=q9_9: unknown type; known are f32, f16, bf16, q8_0"),
        (
            "hsk=4,hsv=4,nh=1,kv=2,nb=1,mask=0,regime=seed,type_K=q8_0",
            "regime=seed: needs types without blocks (they are q8_0, f16)",
        ),
        ("type_V=f32,v_is_view_of_k=1", "needs type_V = type_K (they are f32, f16)"),
        ("hsv=256,v_is_view_of_k=1", "and hsv <= hsk (they are 256, 128)"),
        ("max_bias=nan", "max_bias=nan: must be a number of at least 0"),
        ("logit_softcap=-1", "logit_softcap=-1.000000: must be a number of at least 0"),
        ("logit_softcap=0.0000001", "has more than the six decimals that a case string keeps"),
        ("max_bias=8,mask=0", "max_bias=8.000000: ALiBi needs mask=1"),
        ("prec=f16", "prec=f16: must be f32 or def"),
        ("threads=0", "threads=0: must be from 1 to 512"),
        ("threads=513", "threads=513: must be from 1 to 512"),
        ("mask_kind=diagonal", "mask_kind=diagonal: unknown; known are none, random, causal"),
        ("mask_kind=none", "mask_kind=none: contradicts mask=1"),
        ("mask=0,mask_kind=causal", "mask_kind=causal: contradicts mask=0"),
        ("mask_heads=5", "mask_heads=5: must divide the 32 query heads"),
        ("mask_heads=0", "mask_heads=0: must divide"),
        ("mask=0,mask_heads=2", "mask_heads=2: needs mask=1"),
        ("n_kv_max=-1", "n_kv_max=-1: must be from 0 to kv=96"),
        ("n_kv_max=97", "n_kv_max=97: must be from 0 to kv=96"),
        ("n_kv_max=5,mask=0", "n_kv_max=5: contradicts mask_kind=none"),
        ("mask_kind=sparse", "n_kv_max=0: contradicts mask_kind=sparse"),
        ("segments=0", "segments=0: must be at least 1"),
        ("segments=97", "segments=97: more than the kv=96 keys"),
        ("segments=97,boundaries=random", "segments=97: more than the kv=96 keys"),
        ("segments=3,boundaries=[1,2,3]", "segments=3: boundaries=[1,2,3] make 4"),
        ("boundaries=[5,4]", "boundaries=[5,4]: out of order"),
        ("boundaries=[5,97]", "boundaries=[5,97]: must lie from 0 to kv=96"),
        ("regime=calm", "regime=calm: unknown; known are uniform, normal"),
        ("seed=-1", "seed=-1: must be from 0 to 2^64 - 1"),
        ("regime=nan,type_K=q8_0", "regime=nan: needs types that have NaN: f32, f16, bf16"),
        (
            "regime=nan,type_K=f32,type_V=f32,segments=2,segment_types=[f16,q8_0/f16]",
            "regime=nan: needs types that have NaN",
        ),
        (
            "regime=nan,nb=96,mask_kind=causal,hot_window=8",
            "regime=nan: has no rolling cache",
        ),
        ("regime=seed", "regime=seed: has one shape: hsk=4,hsv=4,nh=1,nr23=[1,1],kv=2,nb=1"),
        (
            "hsk=4,hsv=4,nh=1,kv=2,nb=1,regime=seed,mask_kind=random",
            "mask_kind=random: regime=seed has no mask or one of zeros",
        ),
        ("n_head=6,n_head_kv=4", "n_head=6: must be a multiple of n_head_kv=4"),
        ("n_head=6,n_head_kv=0", "n_head=6: must be a multiple of n_head_kv=0"),
        ("n_head=7,nr23=[3,1]", "n_head=7: contradicts nh=2 and nr23=[3,1]; leave n_head or"),
        ("kv=5,n_kv=6", "n_kv=6: kv is given twice; leave one out"),
        ("type_k=f16", "case field 'type_k' is unknown; the nearest is type_K"),
        ("n_haed=4", "case field 'n_haed' is unknown; the nearest is n_head"),
        ("zzz=4", "case field 'zzz' is unknown; known are hsk,"),
        ("kv=many", "kv=many: must be a whole number"),
        ("n_kv", "kv=: must be a whole number"),
        ("max_bias=x", "max_bias=x: must be a number"),
        ("mask=yes", "mask=yes: must be 0 or 1"),
        ("boundaries=[1,]", "boundaries=[1,]: must be a list of whole numbers such as [1,2]"),
        ("mask_kind=", "mask_kind=: must be a word"),
    ],
)
def test_a_case_that_cannot_be_is_refused(fields: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Case.parse(f"FLASH_ATTN_EXT({fields})")


@pytest.mark.parametrize("text", ["", "hsk=64,hsv=64", "MUL_MAT(m=1,n=2)", "FLASH_ATTN_EXT(kv=1"])
def test_a_text_without_a_case_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a case; one looks like FLASH_ATTN_EXT"):
        Case.parse(text)


def test_every_regime_makes_a_case() -> None:
    for regime in set(REGIMES) - {"seed"}:
        assert Case.parse(f"FLASH_ATTN_EXT(regime={regime})").regime == regime
