"""`llama-server` with a KV cache of two types: a tiny model of random weights, over HTTP.

It computes in F16 and F32, so two servers differ by their caches and by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tiny_model
from fa_harness.model.llama import SERVER, build_llama
from fa_harness.model.models import text_path
from fa_harness.project import find_project
from llama_server import Server, run_to_end, serving

pytestmark = pytest.mark.full

Answer = dict[str, Any]
Words = tuple[str | Path, ...]

SLOT = 512
"""Tokens that a slot has room for."""
HOT = 64
BATCH = 64
ROUNDING = 0.01
"""How far logarithms of probabilities may be apart that differ by the order of sums alone."""

N_VOCAB = 261
NO_TEXT = [(tiny_model.FIRST_BYTE + byte, False) for byte in range(128, 256)]
"""Tokens that no answer has, since most sequences of these bytes are no text."""

SETTING = (
    *("-fa", "on", "-t", "1", "-ub", str(BATCH), "-np", "2", "-c", str(2 * SLOT)),
    *("--no-warmup", "--no-repack", "-fit", "off", "--cache-ram", "0"),
)
SHARED = ("--kv-unified", "--kv-unified-per-slot", str(SLOT))


@pytest.fixture(scope="module")
def program() -> Path:
    return build_llama(find_project(stack="mixed"), [SERVER]).program(SERVER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model all of whose layers are global, so that all have two parts."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.write(path, n_swa=0)
    return path


def mixed(cold: str, n_hot: int = HOT) -> tuple[str, ...]:
    return ("-ctkc", cold, "-ctvc", cold, "--cache-hot", str(n_hot))


def tokens(start: int, n: int) -> list[int]:
    """Return tokens of the built-in text; each is a byte."""
    return [tiny_model.FIRST_BYTE + byte for byte in text_path().read_bytes()[start : start + n]]


def ask(server: Server, prompt: Sequence[int], n: int, **options: object) -> Answer:
    """Let the server go on with a prompt by `n` tokens, the most likely ones."""
    answer = server.post(
        "/completion",
        prompt=prompt, n_predict=n, n_keep=16, ignore_eos=True, return_tokens=True,
        temperature=0, logit_bias=NO_TEXT, n_probs=N_VOCAB, **options,
    )  # fmt: skip
    assert "error" not in answer, answer
    return answer


def converse(server: Server, slot: int) -> tuple[list[Answer], list[int]]:
    """Have a conversation that fills a slot, and another one that begins like it.

    Return the answers, and the tokens of the second conversation.
    """
    answers, history = [], list[int]()
    for turn, n in enumerate((150, 170, 180, 40)):
        if turn == 3:
            del history[100:]
        history += tokens(5000 * slot + 500 * turn, n)
        answers.append(ask(server, history, 24, id_slot=slot))
    return answers, history + answers[-1]["tokens"]


def apart(found: Answer, expected: Answer) -> float:
    """Return how far logarithms of probabilities are apart, up to the first other token.

    How much less likely than the expected one that token is counts, too.
    """
    largest = 0.0
    for one, other in zip(
        found["completion_probabilities"], expected["completion_probabilities"], strict=True
    ):
        ours = {each["id"]: each["logprob"] for each in one["top_logprobs"]}
        theirs = {each["id"]: each["logprob"] for each in other["top_logprobs"]}
        # the server has none of a token that was a draft
        pairs = [(ours[each], theirs[each]) for each in ours]
        if one["id"] != other["id"]:
            pairs.append((theirs[other["id"]], theirs[one["id"]]))
        largest = max([largest, *(abs(a - b) for a, b in pairs)])
        if one["id"] != other["id"]:
            break
    return largest


def assert_same_bits(found: list[Answer], expected: list[Answer], *, n_cached: int) -> None:
    """See that answers are equal, and had this many tokens at least in the cache."""
    for one, other in zip(found, expected, strict=True):
        assert one["timings"]["cache_n"] == other["timings"]["cache_n"] >= n_cached
        assert one["tokens"] == other["tokens"]
        assert one["completion_probabilities"] == other["completion_probabilities"]


@pytest.mark.parametrize("share", [(), SHARED], ids=["a cache each", "one cache"])
def test_two_slots_at_once_answer_as_with_a_uniform_cache(
    program: Path, model: Path, tmp_path: Path, share: Sequence[str]
) -> None:
    answers: list[list[Answer]] = []
    for cache in ((), mixed("f16")):
        setting: Words = ("-m", model, *SETTING, *share, *cache, "--context-shift")
        log = tmp_path / f"{len(cache)}.txt"
        with serving(program, *setting, log=log) as server, ThreadPoolExecutor(2) as pool:
            (first, _), (second, _) = pool.map(lambda slot: converse(server, slot), (0, 1))
        answers.append(first + second)
        assert server.said("slot context shift") == 2
    assert server.said("moved [1-9][0-9]* cells") > 8
    for found in answers:
        assert [each["truncated"] for each in found] == [False, False, True, False] * 2
        # what both conversations begin with is not computed again
        assert found[3]["timings"]["cache_n"] == found[7]["timings"]["cache_n"] > 16
    assert max(map(apart, *answers)) < ROUNDING


@pytest.mark.parametrize("share", [(), SHARED], ids=["a cache each", "one cache"])
@pytest.mark.parametrize("cold", ["f16", "q4_0"])
def test_after_a_restart_saved_slots_go_on_with_the_same_bits(
    program: Path, model: Path, tmp_path: Path, share: Sequence[str], cold: str
) -> None:
    setting: Words = ("-m", model, *SETTING, *share, *mixed(cold), "--context-shift")
    setting = (*setting, "--slot-save-path", f"{tmp_path}/")
    prompts: list[list[int]] = []

    def go_on(server: Server) -> list[Answer]:
        return [
            ask(server, [*prompt, *tokens(9000, n)], 24, id_slot=slot)
            for n in (20, 330)
            for slot, prompt in enumerate(prompts)
        ]

    with serving(program, *setting, log=tmp_path / "before.txt") as server:
        for slot in (0, 1):
            prompts.append(converse(server, slot)[1])
        for slot in (0, 1):
            saved = server.post(f"/slots/{slot}?action=save", filename=f"{slot}.bin")
            assert saved["n_saved"] == len(prompts[slot]) - 1 > HOT + BATCH
        expected = go_on(server)
    with serving(program, *setting, log=tmp_path / "after.txt") as server:
        for slot in (0, 1):
            restored = server.post(f"/slots/{slot}?action=restore", filename=f"{slot}.bin")
            assert restored["n_restored"] == saved["n_saved"]
        found = go_on(server)
        assert server.said("slot context shift") == 2
    assert_same_bits(found, expected, n_cached=HOT + BATCH)


def test_a_conversation_comes_back_from_the_prompt_cache_with_the_same_bits(
    program: Path, model: Path, tmp_path: Path
) -> None:
    setting: Words = ("-m", model, *SETTING, *mixed("q4_0"), "-np", "1", "--cache-ram", "64")
    prompt, other = tokens(0, 300), tokens(5000, 250)
    found = []
    for between in ([], other):
        with serving(program, *setting, log=tmp_path / "log.txt") as server:
            first = ask(server, prompt, 24)
            if between:
                assert ask(server, between, 24)["timings"]["cache_n"] < 10
            found.append(ask(server, [*prompt, *first["tokens"], *tokens(9000, 20)], 24))
    assert_same_bits(found[1:], found[:1], n_cached=len(prompt))


def test_drafts_that_are_taken_back_out_of_the_cold_part_change_nothing(
    program: Path, model: Path, tmp_path: Path
) -> None:
    # drafts have tokens that no answer has, and are right up to there; a batch of them is
    # computed in parts, so the first ones are cold already
    setting: Words = ("-m", model, *SETTING, *mixed("f16", 1), "-ub", "4")
    drafts = ("-md", model, "--spec-type", "draft-simple", "--spec-draft-n-max", "8")
    answers = []
    for options in ((), drafts):
        with serving(program, *setting, *options, log=tmp_path / "log.txt") as server:
            answers.append(ask(server, tokens(0, 200), 64))
    n_draft, n_right = (answers[1]["timings"][f"draft_n{each}"] for each in ("", "_accepted"))
    assert 0 < n_right < n_draft - 20
    assert apart(answers[1], answers[0]) < ROUNDING


def test_a_full_context_ends_as_that_of_a_uniform_cache_does(
    program: Path, model: Path, tmp_path: Path
) -> None:
    ends = []
    for cache in ((), mixed("f16")):
        with serving(program, "-m", model, *SETTING, *cache, log=tmp_path / "log.txt") as server:
            last = ask(server, tokens(0, SLOT - 12), 24, id_slot=0)
            error = server.post("/completion", prompt=tokens(0, SLOT), id_slot=0)["error"]
            again = ask(server, tokens(0, SLOT - 12), 24, id_slot=0)
        assert last["stop_type"] == "limit"
        assert last["truncated"]
        ends.append((last["tokens_predicted"], again["tokens_predicted"], error))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-ctkc", "q4_0", "--cache-hot", "0"), 'argument "--cache-hot": must be at least 1'),
        (mixed("f17"), 'argument "-ctkc": Unsupported cache type: f17'),
        (("-ctkc", "q4_0"), "error: --cache-hot requires --cache-type-k-cold or"),
        (("--cache-hot", "64"), "error: --cache-hot requires --cache-type-k-cold or"),
        ((*mixed("q4_0"), "-fa", "off"), "--cache-type-v-cold require flash attention"),
        (mixed("q4_0", SLOT + 1), f"n_kv_hot ({SLOT + 1}) is larger than n_ctx_seq ({SLOT})"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    program: Path, model: Path, options: Sequence[str], reason: str
) -> None:
    done = run_to_end(program, "-m", model, *SETTING, *options)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count(reason) == 1


def test_a_head_that_is_no_whole_number_of_blocks_is_refused(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.gguf"
    monkeypatch.setattr(tiny_model, "HEAD_DIM", 48)
    tiny_model.write(model, n_swa=0)
    done = run_to_end(program, "-m", model, *SETTING, *mixed("q4_0"))
    assert done.returncode == 1
    reason = "cold K cache type q4_0 with block size 32 does not divide n_embd_head_k=48"
    assert (done.stdout + done.stderr).count(reason) == 1
