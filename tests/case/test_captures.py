"""A model's own attention: its file, its cases, and that every mode computes them."""

import dataclasses
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import captured
from fa_harness.build.library import Library
from fa_harness.case import captures
from fa_harness.case.capture_stream import make_entry, read_stream
from fa_harness.case.captures import Arrays, Entry
from fa_harness.case.case import Case
from fa_harness.case.inputs import Inputs, make_inputs
from fa_harness.case.label import label
from fa_harness.case.modes import MODES
from fa_harness.case.quants import decode, encode
from fa_harness.case.selection import Selection, case_of, select
from fa_harness.engine.compute import run_case
from fa_harness.engine.ggml import Ggml, load
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Results
from fa_harness.errors import UsageError
from fa_harness.hunt.shrink import Failure, _simpler, shrink
from fa_harness.judge.shares import in_words
from fa_harness.judge.verdict import Verdict, judge
from fa_harness.report.console import print_summary

TINY = Path(__file__).parents[1] / "data" / "tiny-attention.npz"
"""Of the model of the end-to-end test, with random weights: its first layer."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    captured.write(tmp_path / "drawn.npz")
    return tmp_path / "drawn.npz"


def case(file: Path, name: str = "layer-0.prefill", **changes: Any) -> Case:
    reference = f"{file}#{name}"
    entry = captures.entry_of(reference)
    return case_of(reference, entry, n_kv=entry.n_kv_seen).with_(**changes)


def judged(library: Ggml, of: Case) -> Verdict:
    inputs = make_inputs(of)
    return judge(of, inputs, run_case(library, of, inputs), features=library.features())


def same(a: Arrays, b: Arrays) -> bool:
    pairs = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(x is y is None or (x.dtype, x.tobytes()) == (y.dtype, y.tobytes()) for x, y in pairs)


# the file


def test_a_capture_comes_out_of_its_file_bit_for_bit(file: Path) -> None:
    capture = captures.load(file)
    assert (capture.model, capture.sha256, capture.upstream) == (
        "drawn.gguf",
        "0" * 64,
        "llama.cpp",
    )
    for (entry, arrays), read in zip(captured.calls(), capture.entries, strict=True):
        assert read == entry
        assert same(captures.arrays_of(f"{file}#{entry.name}"), arrays)


def test_an_entry_says_what_its_mask_hides() -> None:
    sliding, whole, sliding_step, step = (entry for entry, _ in captured.calls())
    assert [e.name for e in (sliding, step)] == ["layer-0.prefill", "layer-5.decode"]
    assert [e.sliding_window for e in (sliding, whole, sliding_step, step)] == [24, 0, 24, 0]
    assert [e.n_kv_seen for e in (sliding, whole, sliding_step, step)] == [40, 40, 41, 41]
    assert [e.n_causal for e in (sliding, whole)] == [24, 40]
    assert captured.call(n_batch=20)[0].sliding_window == 0  # the prompt is shorter than the window


def test_a_capture_replaces_an_older_one_of_the_same_name(file: Path) -> None:
    assert len(captures.load(file).entries) == 4
    captured.write(file, captured.calls()[:1])
    assert len(captures.load(file).entries) == 1
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_v_that_lies_in_k_is_kept_once(tmp_path: Path) -> None:
    entry, arrays = captured.call(type_k="f16")
    in_k = dataclasses.replace(arrays, v=np.ascontiguousarray(arrays.k[..., :64]))
    file = tmp_path / "mla.npz"
    captured.write(file, [(dataclasses.replace(entry, v_is_view_of_k=True), in_k)])
    with np.load(file) as data:
        assert "layer-0.prefill.v" not in data
    assert same(captures.arrays_of(f"{file}#layer-0.prefill"), in_k)
    inputs = make_inputs(case(file))
    assert inputs.v.tobytes() == inputs.k[..., :32].tobytes()


def _with_meta(path: Path, **changes: Any) -> None:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data}
    meta = json.loads(arrays["meta"].tobytes()) | changes
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(path, **arrays)


def _without(path: Path, array: str) -> None:
    with np.load(path) as data:
        arrays = {name: data[name] for name in data if name != array}
    np.savez_compressed(path, **arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file or directory); `fa-harness cap"),
        (lambda path: path.write_text("x"), "is no capture, or damaged (it is no .npz)"),
        (lambda path: path.write_bytes(b""), "is no capture, or damaged ("),
        (lambda path: path.write_bytes(path.read_bytes()[:-99]), "is no capture, or damaged ("),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "damaged (it holds one array)"),
        (lambda path: _without(path, "meta"), "damaged (it holds no description)"),
        (lambda path: _with_meta(path, schema="other/1"), "damaged (its schema is 'other/1')"),
        (lambda path: _with_meta(path, schema="fa-harness.capture/2"), "take a newer fa-harness"),
        (lambda path: _with_meta(path, entries=[{"layer": 0}]), "its description is damaged ("),
        (lambda path: _with_meta(path, entries=3), "its description is damaged ("),
    ],
)  # fmt: skip
def test_what_is_no_capture_is_refused_with_the_reason(
    file: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(file)
    with pytest.raises(UsageError, match=rf"capture .*drawn\.npz: .*{re.escape(message)}"):
        captures.load(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: _without(path, "layer-0.prefill.k"), "(layer-0.prefill: k is missing, not"),
        (
            lambda path: captured.write(path, [(captured.call()[0], captured.call(n_kv=80)[1])]),
            "k is uint8 [1, 2, 80, 68], not uint8 [1, 2, 64, 68]); capture again",
        ),
    ],
)
def test_an_entry_whose_arrays_are_damaged_is_refused_with_the_reason(
    file: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(file)
    with pytest.raises(
        UsageError, match=rf"entry layer-0\.prefill is damaged .*{re.escape(message)}"
    ):
        captures.arrays_of(f"{file}#layer-0.prefill")


def test_numbers_that_are_not_finite_are_refused_where_a_row_sees_them() -> None:
    entry, arrays = captured.call(type_k="f16")
    for key, is_seen in ((39, True), (40, False)):
        k = arrays.k.copy()
        k[0, 0, key] = 0xFF
        damaged = dataclasses.replace(arrays, k=k)
        remake: dict[str, Any] = {
            "layer": 0,
            "phase": "prefill",
            "type_k": "f16",
            "type_v": "f16",
            "scale": 1.0,
        }
        if is_seen:
            with pytest.raises(UsageError, match=r"layer-0\.prefill: K holds numbers that are not"):
                make_entry(damaged, **remake)
        else:
            assert make_entry(damaged, **remake).n_kv_seen == entry.n_kv_seen


# what the program writes


def test_the_programs_stream_becomes_entries_bit_for_bit() -> None:
    entries = read_stream(io.BytesIO(captured.stream(*captured.calls())))
    for (entry, arrays), (read, read_arrays) in zip(captured.calls(), entries, strict=True):
        assert read == entry
        assert same(read_arrays, arrays)


def test_rows_that_only_fill_a_mask_up_are_left_out() -> None:
    entry, arrays = captured.call()
    assert arrays.mask is not None
    filled = np.pad(arrays.mask, ((0, 0), (0, 0), (0, 24), (0, 0)))
    data = captured.stream((entry, dataclasses.replace(arrays, mask=filled)))
    [(read, read_arrays)] = read_stream(io.BytesIO(data))
    assert read == entry
    assert same(read_arrays, arrays)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (captured.stream(captured.call())[:-13], "ends too early or is damaged"),
        (captured.stream(captured.call())[:5000], "ends too early; run again"),
        (b"", "ends too early or is damaged"),
        (b'{"stream":2}\n', "is of version 2, not 1; build the program anew"),
        (captured.stream(captured.call()).replace(b'"f16"', b'"q6_K"'), "mask is q6_K"),
    ],
)
def test_a_stream_that_cannot_be_read_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        read_stream(io.BytesIO(data))


def test_a_type_that_cannot_be_decoded_is_refused_with_those_that_can() -> None:
    data = captured.stream(captured.call()).replace(b'"q8_0"', b'"q6_K"')
    with pytest.raises(
        UsageError, match="K is q6_K, which the harness cannot decode; capture with"
    ):
        read_stream(io.BytesIO(data))


# the case


def test_a_captured_case_is_printed_and_parses_to_itself(file: Path) -> None:
    found = case(file, segments=4)
    assert str(found).endswith(
        f"segments=4,regime=captured,seed=0,threads=1,captured={file}#layer-0.prefill,kq_scale=0.15)"
    )
    assert Case.parse(str(found)) == found
    without_mask = found.with_(mask=False, mask_kind="none")
    assert Case.parse(str(without_mask)) == without_mask


def test_a_scale_keeps_all_that_a_float32_has() -> None:
    for scale in np.random.default_rng(0).random(200).astype(np.float32):
        of = Case(kq_scale=float(scale))
        assert of.scale == scale
        assert Case.parse(str(of)) == of
    assert "kq_scale" not in str(Case())


def test_a_scale_counts_with_drawn_inputs_too(library: Ggml) -> None:
    of = Case(
        hsk=64, hsv=64, n_head_kv=2, n_kv=96, n_batch=3, segments=3, regime="normal", kq_scale=0.5
    )
    assert judged(library, of).status == "pass"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"captured": "drawn.npz"}, "captured=drawn.npz: is not FILE#ENTRY, such as"),
        ({"captured": "a,b.npz#layer-0.decode"}, "a case string cannot hold this name; rename"),
        ({"captured": "{file}#layer-1.decode"}, "has no entry 'layer-1.decode'; it has"),
        ({"captured": "no.npz#layer-0.decode"}, "capture no.npz: cannot be read (No such file"),
        ({"regime": "spiky"}, "regime=spiky: captured={file}#layer-0.prefill needs regime"),
        ({"captured": "", "mask_kind": "zeros"}, "regime=captured: needs captured=FILE#ENTRY"),
        ({"mask_kind": "causal"}, "mask_kind=causal: captured={file}#layer-0.prefill has a mask"),
        ({"hsk": 128}, "hsk=128: {file}#layer-0.prefill has 64"),
        ({"hsv": 64}, "hsv=64: {file}#layer-0.prefill has 32"),
        ({"n_kv": 65}, "kv=65: {file}#layer-0.prefill has no more than 64"),
        ({"n_batch": 41}, "nb=41: {file}#layer-0.prefill has no more than 40"),
        ({"n_head_kv": 3}, "nh=3: {file}#layer-0.prefill has no more than 2"),
        ({"n_group": 2, "ne3": 2}, "nr23=[2,2]: {file}#layer-0.prefill has no more than [2,1]"),
        ({"mask_heads": 2}, "mask_heads=2: {file}#layer-0.prefill has no more than 1"),
        ({"max_bias": 8.0}, "max_bias=8.000000: {file}#layer-0.prefill has 0"),
        ({"kq_scale": 0.0}, "kq_scale=0.0: {file}#layer-0.prefill has 0.15"),
        ({"v_is_view_of_k": True, "type_V": "q8_0"}, "v_is_view_of_k=1: {file}#layer-0.prefill"),
        (
            {"hot_window": 8, "n_kv": 40},
            "hot_window=8: needs a causal mask; that of {file}#layer-0.prefill is one for the "
            "first 24 tokens, and kv is 40",
        ),
    ],
)  # fmt: skip
def test_a_captured_case_that_cannot_be_is_refused(
    file: Path, changes: dict[str, Any], message: str
) -> None:
    changes = {key: v.format(file=file) if isinstance(v, str) else v for key, v in changes.items()}
    with pytest.raises(UsageError, match=re.escape(message.format(file=file))):
        captures.checked(case(file).with_(**changes))


def test_a_case_reads_no_file_when_it_is_made_changed_or_unpickled(file: Path) -> None:
    of = case(file)
    pickled = pickle.dumps(of)
    file.unlink()
    again = pickle.loads(pickled)
    assert again.with_(n_kv=10) == Case.parse(str(of)).with_(n_kv=10)
    with pytest.raises(UsageError, match="cannot be read"):
        captures.checked(again)


@pytest.mark.parametrize("source", ["case_string", "case_file"])
def test_a_captured_case_that_cannot_be_is_refused_before_it_is_selected(
    file: Path, tmp_path: Path, source: str
) -> None:
    text = str(case(file).with_(n_kv=65))
    (tmp_path / "cases.txt").write_text(text)
    chosen: dict[str, Any] = {"case_string": text, "case_file": tmp_path / "cases.txt"}
    with pytest.raises(UsageError, match=r"kv=65: .* has no more than 64"):
        select(Selection(**{source: chosen[source]}))


def test_a_change_that_a_capture_has_not_is_refused_before_it_is_selected(file: Path) -> None:
    text = str(case(file).with_(n_batch=40, n_kv=40))
    with pytest.raises(UsageError, match="hot_window=8: needs a causal mask"):
        select(Selection(case_string=text, hot_window=8))


def test_a_captured_case_that_cannot_be_is_refused_before_it_runs(
    patched: Library, file: Path
) -> None:
    impossible = case(file).with_(n_kv=65)
    with pytest.raises(UsageError, match="kv=65"):
        make_inputs(impossible)
    with Runner(patched.module_path) as runner, pytest.raises(UsageError, match="kv=65"):
        list(runner.run([impossible]))


def test_shrinking_offers_no_case_that_a_capture_has_not(file: Path) -> None:
    for candidate, _ in _simpler(case(file, segments=4)):
        captures.checked(candidate)


def test_captured_without_a_file_is_no_regime() -> None:
    with pytest.raises(UsageError, match="regime=captured: needs captured=FILE#ENTRY"):
        Case.parse("FLASH_ATTN_EXT(regime=captured,mask=0)")
    with pytest.raises(UsageError, match="mask_kind=captured: unknown; known are none,"):
        Case.parse("FLASH_ATTN_EXT(mask_kind=captured)")


def test_the_label_of_a_captured_case_names_its_entry(file: Path) -> None:
    assert label(case(file)) == (
        "hs64/32 h4/2 kv40 b40 q8_0/f16 drawn.npz#layer-0.prefill sinks t1"
    )


# the inputs


def test_the_inputs_are_those_of_the_model(file: Path) -> None:
    [(_, arrays), *_] = captured.calls()
    inputs = make_inputs(case(file))
    assert inputs.q.tobytes() == arrays.q.tobytes()
    assert inputs.k_raw.tobytes() == arrays.k[:, :, :40].tobytes()
    assert inputs.v_raw.tobytes() == arrays.v[:, :, :40].tobytes()
    assert arrays.mask is not None
    assert arrays.sinks is not None
    assert inputs.mask is not None
    assert inputs.sinks is not None
    assert inputs.mask.tobytes() == arrays.mask[..., :40].tobytes()
    assert inputs.sinks.tobytes() == arrays.sinks.tobytes()
    assert inputs.model_output is not None
    assert inputs.model_output.tobytes() == arrays.out.tobytes()
    assert not any(x.flags.writeable for x in vars(inputs).values() if isinstance(x, np.ndarray))


def test_a_case_may_take_the_first_of_all_that_an_entry_has(file: Path) -> None:
    [(_, arrays), *_] = captured.calls()
    inputs = make_inputs(case(file, n_head_kv=1, n_group=1, ne3=1, n_batch=7, n_kv=9, sinks=False))
    assert inputs.q.tobytes() == arrays.q[:, :1, :7].tobytes()
    assert inputs.k_raw.tobytes() == arrays.k[:, :1, :9].tobytes()
    assert inputs.mask is not None
    assert arrays.mask is not None
    assert inputs.mask.tobytes() == arrays.mask[:, :, :7, :9].tobytes()
    assert inputs.sinks is None
    assert inputs.model_output is None  # that one saw more


def test_query_heads_stay_with_their_kv_head(file: Path) -> None:
    [(_, arrays), *_] = captured.calls()
    inputs = make_inputs(case(file, n_group=1, ne3=1))
    assert inputs.q.tobytes() == arrays.q[:, [0, 2]].tobytes()
    assert inputs.sinks is not None
    assert arrays.sinks is not None
    assert inputs.sinks.tobytes() == arrays.sinks[[0, 2]].tobytes()


@pytest.mark.parametrize(("type_k", "type_v"), [("f32", "f16"), ("q4_0", "q5_1"), ("q8_0", "bf16")])
def test_values_are_encoded_anew_in_other_types(file: Path, type_k: str, type_v: str) -> None:
    [(_, arrays), *_] = captured.calls()
    inputs = make_inputs(case(file, type_K=type_k, type_V=type_v))
    k, v = decode(arrays.k[:, :, :40], "q8_0"), decode(arrays.v[:, :, :40], "f16")
    assert inputs.k_raw.tobytes() == encode(k, type_k).tobytes()
    assert inputs.v_raw.tobytes() == encode(v, type_v).tobytes()
    assert inputs.model_output is None


def test_segments_have_types_of_their_own(file: Path) -> None:
    types: dict[str, Any] = {
        "type_K": "f32",
        "type_V": "f32",
        "segments": 3,
        "segment_types": ("q4_0", "f16"),
    }
    inputs = make_inputs(case(file, **types))
    whole = make_inputs(case(file, type_K="q4_0", type_V="q4_0"))
    assert inputs.segments[0][0].tobytes() == whole.k_raw[:, :, :13].tobytes()
    assert inputs.k[:, :, :13].tobytes() == whole.k[:, :, :13].tobytes()
    assert inputs.model_output is None


def test_head_sizes_are_filled_up_to_blocks_with_zeros(tmp_path: Path) -> None:
    _, arrays = captured.call(type_k="f16")
    arrays = dataclasses.replace(
        arrays,
        q=np.ascontiguousarray(arrays.q[..., :40]),
        k=np.ascontiguousarray(arrays.k[..., :80]),
    )
    entry = make_entry(arrays, layer=0, phase="prefill", type_k="f16", type_v="f16", scale=0.15)
    captured.write(tmp_path / "odd.npz", [(entry, arrays)])
    inputs = make_inputs(case(tmp_path / "odd.npz", type_K="q8_0"))
    assert inputs.q.shape[-1] == inputs.k.shape[-1] == 64
    assert not inputs.q[..., 40:].any()
    assert not inputs.k[..., 40:].any()


# the modes


def test_every_mode_computes_a_capture_and_passes(library: Ggml, file: Path) -> None:
    verdicts = [judged(library, of) for of in select(Selection(captured=file))]
    assert {verdict.status for verdict in verdicts} == {"pass"}
    assert {mode for verdict in verdicts for mode in verdict.modes} == {*MODES} - {
        "preset",
        "reduced",
    }
    assert {verdict.path for verdict in verdicts} == {"vec"}


@pytest.mark.parametrize(
    "options", [{"max_bias": 8.0}, {"logit_softcap": 30.0}, {"type_k": "f16", "sinks": False}],
    ids=str,
)  # fmt: skip
def test_every_mode_passes_with_a_models_options(
    library: Ggml, tmp_path: Path, options: dict[str, Any]
) -> None:
    captured.write(tmp_path / "drawn.npz", [captured.call(n_swa=0, **options)])
    cases = select(Selection(captured=tmp_path / "drawn.npz"))
    assert len(cases) == 3
    assert [judged(library, of).reason for of in cases] == ["", "", ""]


def test_every_mode_passes_where_v_lies_in_k(library: Ggml, tmp_path: Path) -> None:
    entry, arrays = captured.call(type_k="f16")
    in_k = dataclasses.replace(arrays, v=np.ascontiguousarray(arrays.k[..., :64]))
    captured.write(tmp_path / "mla.npz", [(dataclasses.replace(entry, v_is_view_of_k=True), in_k)])
    cases = select(Selection(captured=tmp_path / "mla.npz"))
    assert [of.v_is_view_of_k for of in cases] == [True, False, False]
    assert [judged(library, of).reason for of in cases] == ["", "", ""]


def test_the_model_of_the_end_to_end_test_passes_and_has_the_bits_of_standard(
    library: Ggml,
) -> None:
    [prefill, decode] = captures.load(TINY).entries
    assert (prefill.sliding_window, decode.sliding_window, prefill.n_head) == (32, 32, 4)
    verdicts = [judged(library, of) for of in select(Selection(captured=TINY))]
    assert {verdict.status for verdict in verdicts} == {"pass"}
    assert {mode for verdict in verdicts for mode in verdict.modes} == {*MODES} - {
        "preset",
        "reduced",
    }
    own = [
        v.comparisons["standard_vs_model"] for v in verdicts if "standard_vs_model" in v.comparisons
    ]
    assert len(own) == 2
    assert all(comparison.max_rel_row < 1e-2 for comparison in own)


def test_a_library_that_loses_the_numerators_fails_on_a_capture(bug: Library, file: Path) -> None:
    broken = load(bug.module_path)
    for of in select(Selection(captured=file)):
        if not of.hot_window:
            inputs = make_inputs(of)
            run = run_case(broken, of, inputs, ("segmented",))
            assert judge(of, inputs, run, features=broken.features()).status == "fail"


def test_a_model_that_gave_something_else_is_reported_and_does_not_fail(
    library: Ggml, tmp_path: Path
) -> None:
    entry, arrays = captured.call()
    file = tmp_path / "other.npz"
    captured.write(file, [(entry, dataclasses.replace(arrays, out=arrays.out + np.float32(1)))])
    verdict = judged(library, case(file, segments=2))
    assert verdict.status == "pass"
    own = verdict.comparisons["standard_vs_model"]
    assert (own.required, own.ok, own.bitwise) == ("none", True, False)
    assert own.max_abs == pytest.approx(1, rel=0.1)
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, results(verdict))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "the model's own result has the bits of standard in 0 of 1 cases, elsewhere it is" in text
    )


def test_a_cache_of_two_types_is_one_case_of_two_segments_with_the_models_bytes(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mixed.npz"
    entry, arrays = captured.two_parts(n_batch=3)
    captured.write(file, [(entry, arrays)])
    [read] = read_stream(io.BytesIO(captured.stream((entry, arrays))))
    assert read[0] == entry
    assert same(read[1], arrays)
    [own] = select(Selection(captured=file))
    assert (own.segment_types, own.boundaries, own.n_kv) == (("q4_0", "f16"), (32,), 51)
    [cold, hot] = make_inputs(own).segments
    assert cold[0].tobytes() == arrays.k_cold.tobytes()  # type: ignore[union-attr]
    assert hot[1].tobytes() == arrays.v[:, :, :19].tobytes()


def test_the_result_of_a_model_with_two_parts_is_compared_with_the_oracle(
    library: Ggml, tmp_path: Path
) -> None:
    file = tmp_path / "mixed.npz"
    made = [captured.two_parts(), captured.two_parts(n_batch=3)]
    captured.write(file, made)
    for i, of in enumerate(select(Selection(captured=file))):  # the model is this library
        run = run_case(library, of, make_inputs(of), ("mixed",))
        out = run.results["mixed"].first.calls[-1].output
        made[i] = (made[i][0], dataclasses.replace(made[i][1], out=out))
    captured.write(file, made)
    verdicts = [judged(library, of) for of in select(Selection(captured=file))]
    assert {verdict.status for verdict in verdicts} == {"pass"}
    of_bound = [v.comparisons["model_vs_oracle"].of_bound for v in verdicts]
    assert max(of_bound) < 1, of_bound
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, results(*verdicts))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the model's own result has the bits of mixed in 2 of 2 cases" in text
    assert f"its error is up to {in_words(max(of_bound))} of this library's bound" in text

    # a part's mask that is the other's, or a part that is left out
    entry, arrays = made[1]
    assert arrays.mask is not None
    assert arrays.v_cold is not None
    for wrong in (
        dataclasses.replace(arrays, mask=np.roll(arrays.mask, 32, axis=-1)),
        dataclasses.replace(arrays, v_cold=np.zeros_like(arrays.v_cold)),
    ):
        captured.write(file, [(dataclasses.replace(entry, n_kv_seen=64), wrong)])
        [of] = select(Selection(captured=file))
        assert judged(library, of).comparisons["model_vs_oracle"].of_bound > 100


def test_a_part_of_old_tokens_that_no_row_sees_is_left_out() -> None:
    entry, arrays = captured.two_parts()
    assert arrays.mask is not None
    mask = arrays.mask.copy()
    mask[..., :32] = -np.inf
    unseen = dataclasses.replace(arrays, mask=mask)
    [read] = read_stream(io.BytesIO(captured.stream((entry, unseen))))
    assert (read[0].n_kv_cold, read[0].segment_types, read[0].n_kv) == (0, (), 32)
    assert read[1].k_cold is read[1].v_cold is None


def test_parts_of_which_one_has_no_mask_are_refused() -> None:
    entry, arrays = captured.two_parts()
    stream = captured.stream((entry, arrays)).replace(b'"mask_cold"', b'"mask_other"')
    with pytest.raises(UsageError, match="one of its two parts has no mask"):
        read_stream(io.BytesIO(stream))


def results(*verdicts: Verdict) -> Results:
    from datetime import datetime, timezone

    return Results(
        tool_version="0", library={"name": "patched", "upstream": "x", "ggml_version": "0"},
        features=(), machine={}, modes=(), started=datetime.now(timezone.utc), seconds=0.0,
        verdicts=verdicts, selected=len(verdicts), interrupted=False,
    )  # fmt: skip


# what is selected


def test_an_entry_becomes_a_case_for_each_number_of_segments_and_the_other_modes(
    file: Path,
) -> None:
    cases = select(Selection(captured=file, segments=(2, 5), pattern="layer-5.prefill"))
    assert [(c.segments, c.segment_types, c.hot_window) for c in cases] == [
        (2, (), 0),
        (5, (), 0),
        (2, ("q4_0", "q8_0"), 0),
        (5, ("q4_0", "q8_0", "f16"), 0),
        (1, (), 13),
    ]
    assert {(c.n_kv, c.n_batch) for c in cases} == {(40, 40)}


def test_a_rolling_cache_takes_the_tokens_that_see_all_before_them(file: Path) -> None:
    rolling = [c for c in select(Selection(captured=file)) if c.hot_window]
    assert [(c.captured.partition("#")[2], c.n_kv, c.n_batch) for c in rolling] == [
        ("layer-0.prefill", 24, 24),
        ("layer-5.prefill", 40, 40),
    ]
    rolling = select(
        Selection(captured=file, hot_window=30, group=5, cold_type="q4_0", modes=("fifo",))
    )
    assert [(c.n_kv, c.hot_window, c.group, c.cold_type) for c in rolling] == [(40, 30, 5, "q4_0")]


def test_modes_choose_the_cases_that_they_apply_to(file: Path) -> None:
    assert all(c.segment_types for c in select(Selection(captured=file, modes=("mixed", "merged"))))
    assert not any(c.hot_window for c in select(Selection(captured=file, modes=("segmented",))))
    with pytest.raises(UsageError, match="holds no case that --mode fifo,mixed applies to"):
        select(Selection(captured=file, modes=("fifo", "mixed")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "smoke"}, "--suite, --case, --case-file and --captured exclude each other"),
        ({"regimes": ("spiky",)}, "--regime: the inputs of --captured are a model's"),
        ({"segment_types": ("q9",)}, "segment_types=[q9]: unknown type"),
        ({"segment_types": ("q1_0",)}, "hsk=64 is not a multiple of the 128 elements in a block"),
        ({"segments": (2,), "segment_types": ("f16",) * 3}, "more than the segments=2"),
        ({"group": 50}, "group=50: must be from 1 to hot_window=8"),
        ({"pattern": "layer-7"}, "none matches -k 'layer-7'"),
    ],
)
def test_options_that_do_not_go_with_a_capture_are_refused(
    file: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        select(Selection(captured=file, **options))


# shrinking


def test_a_captured_case_shrinks_within_its_entry_and_to_drawn_inputs_where_they_fail_too(
    file: Path,
) -> None:
    failure = Failure(status="fail", name="segmented_vs_oracle", kind="bound")

    def smallest(is_bad: Callable[[Case], bool]) -> Case:
        found = shrink(case(file, segments=4), lambda of: failure if is_bad(of) else None)
        assert found is not None
        assert Case.parse(str(found.case)) == found.case
        return found.case

    in_capture = smallest(lambda of: bool(of.captured) and of.n_kv > 4)
    assert (in_capture.n_kv, in_capture.n_batch, in_capture.n_head_kv, in_capture.n_group) == (
        5,
        1,
        1,
        1,
    )
    assert (in_capture.hsk, in_capture.mask, in_capture.sinks) == (64, False, False)
    drawn = smallest(lambda of: of.n_kv > 4)
    assert (drawn.captured, drawn.regime, drawn.kq_scale, drawn.n_kv) == ("", "few", 0.0, 5)


def test_inputs_of_one_reference_are_read_anew_when_the_file_changes(file: Path) -> None:
    def first(inputs: Inputs) -> float:
        return float(inputs.q[0, 0, 0, 0])

    before = first(make_inputs(case(file)))
    entry, arrays = captured.call()
    captured.write(file, [(entry, dataclasses.replace(arrays, q=arrays.q + np.float32(1)))])
    assert first(make_inputs(case(file))) == pytest.approx(before + 1)


def test_the_name_of_an_entry_is_its_layer_and_phase() -> None:
    entry: Entry = captured.call(layer=17, position=3, n_batch=1)[0]
    assert entry.name == "layer-17.decode"
