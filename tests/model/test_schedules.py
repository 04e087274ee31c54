"""A KV cache of two types: its rule, and llama.cpp's memory beside it."""

import re
import subprocess
import sys

import pytest

from fa_harness.engine.ggml.llama import Setting, Token
from fa_harness.hunt.mutants import load
from fa_harness.model.rule import Rule
from fa_harness.project import find_project


def rule(*, n_seq: int = 1, unified: bool = True) -> Rule:
    """A rule for 4 hot tokens of a sequence and batches of 4; what is cold is upper case."""
    setting = Setting(
        hot_k="f16", hot_v="f16", cold_k="q8_0", cold_v="q8_0",
        n_hot=4, n_ubatch=4, n_seq=n_seq, unified=unified, n_ctx=256,
    )  # fmt: skip
    return Rule(setting, lambda k, v: (k.upper(), v.upper()))


def decode(cache: Rule, seq: int, n: int) -> bool:
    first = cache.last(seq) + 1
    tokens = [Token(id=0, pos=pos, seqs=(seq,)) for pos in range(first, first + n)]
    return cache.decode(tokens) is not None


def hot(cache: Rule, seq: int) -> list[int]:
    return [cell.pos for cell in cache.of(seq) if cell.is_hot]


def test_older_tokens_move_when_a_batch_does_not_fit() -> None:
    cache = rule()
    decode(cache, 0, 8)
    assert hot(cache, 0) == [0, 1, 2, 3, 4, 5, 6, 7]
    for cell in cache.of(0):
        cell.k, cell.v = b"k", b"v"
    decode(cache, 0, 1)
    assert hot(cache, 0) == [4, 5, 6, 7, 8]
    assert [(cell.k, cell.v) for cell in cache.of(0)[3:5]] == [(b"K", b"V"), (b"k", b"v")]


def test_a_token_that_has_moved_stays_cold() -> None:
    cache = rule()
    decode(cache, 0, 12)
    assert hot(cache, 0) == [4, 5, 6, 7, 8, 9, 10, 11]
    cache.remove(0, 2, 256)
    assert hot(cache, 0) == []
    decode(cache, 0, 2)
    assert hot(cache, 0) == [2, 3]


def test_a_shared_token_is_hot_while_one_sequence_needs_it() -> None:
    cache = rule(n_seq=2)
    decode(cache, 0, 4)
    cache.copy(0, 1, 256)
    decode(cache, 0, 12)
    assert hot(cache, 1) == [0, 1, 2, 3]
    assert hot(cache, 0) == [0, 1, 2, 3, *range(8, 16)]
    decode(cache, 1, 8)
    assert hot(cache, 1) == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_batch_without_room_changes_nothing() -> None:
    cache = rule()
    decode(cache, 0, 250)
    before = [(cell.key, cell.is_hot) for cell in cache.of(0)]
    assert not decode(cache, 0, 7)
    assert [(cell.key, cell.is_hot) for cell in cache.of(0)] == before


def test_streams_take_turns_in_a_micro_batch() -> None:
    cache = rule(n_seq=2, unified=False)
    tokens = [Token(id=0, pos=pos, seqs=(seq,)) for seq in (0, 1) for pos in range(3)]
    states = cache.decode(tokens, stops=True)
    assert states is not None
    sizes = [[len(cells) for cells in streams] for streams in states]
    assert sizes == [[0, 0], [0, 0], [2, 2], [2, 2]]


def test_the_table_has_the_mutants_of_the_patches() -> None:
    folder = find_project(stack="mixed").mutants
    for patch in ("0002-cells.patch", "0003-graph.patch"):
        text = (folder / patch).read_text("utf-8")
        of_code = set(re.findall(r'llama_kv_mutant\("([\w-]+)"\)', text))
        table = load(folder / "mutants.toml")
        assert of_code == {mutant.id for mutant in table if mutant.patch == patch}


@pytest.mark.full
@pytest.mark.parametrize("options", [("--count", "200"), ("--mutants",)], ids=" ".join)
def test_memory_is_as_the_rule_says_and_each_fault_shows(options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "fa_harness.cli", "schedules", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
