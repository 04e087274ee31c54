"""What a project sees that gates with its own pytest."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import captured
from fa_harness.build.library import Library
from fa_harness.case.strategies import draw_cases
from fa_harness.case.suites import SUITES, suite
from fa_harness.pytest_plugin import case_id

pytest_plugins = ["pytester"]

TEST = """
import pytest

@pytest.mark.fa_cases({})
def test_kernel(fa_case):
    fa_case.check()
"""
SMALL = "FLASH_ATTN_EXT(hsk=32,hsv=32,nh=1,kv=20,nb=2,segments=2,regime=normal)"


def test_a_suite_is_a_test_a_case(pytester: pytest.Pytester, patched: Library) -> None:
    pytester.makepyfile(TEST.format('suite="smoke", pattern="kv=97"'))
    done = pytester.runpytest("-v", "--strict-markers")
    done.assert_outcomes(passed=sum("kv=97" in str(case) for case in suite("smoke")))
    done.stdout.fnmatch_lines(
        ["*::test_kernel[[]hs64-h6/3-kv97-b5-f16-ties-ne3-2-mask/6-alibi:8-softcap:5-t2-s3*"]
    )


def test_words_of_an_id_select_cases(pytester: pytest.Pytester, patched: Library) -> None:
    pytester.makepyfile(TEST.format('suite="smoke"'))
    done = pytester.runpytest("-k", "kv97 and alibi:8 or cut:20-620")
    done.assert_outcomes(passed=2, deselected=len(suite("smoke")) - 2)


def test_a_case_file_lies_beside_the_test(pytester: pytest.Pytester, patched: Library) -> None:
    folder = pytester.mkdir("gate")
    (folder / "test_gate.py").write_text(TEST.format('case_file="cases.txt", threads=[1, 2]'))
    (folder / "cases.txt").write_text(f"# two\n{SMALL}\n{SMALL.replace('kv=20', 'kv=21')}\n")
    pytester.runpytest("gate").assert_outcomes(passed=4)


def test_a_capture_lies_beside_the_test(pytester: pytest.Pytester, patched: Library) -> None:
    folder = pytester.mkdir("gate")
    (folder / "test_gate.py").write_text(TEST.format('captured="drawn.npz", modes=["mixed"]'))
    captured.write(folder / "drawn.npz")
    pytester.runpytest("gate").assert_outcomes(passed=4)


def test_a_failure_says_where_it_went_wrong_and_has_no_traceback(
    pytester: pytest.Pytester, bug: Library
) -> None:
    pytester.makepyfile(TEST.format('suite="seed"'))
    done = pytester.runpytest("--fa-library", "0001")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            "fail: state vs oracle: 4.00e+00, allowed 8.26e-03 at batch 0, *",
            "    *numerators are wrong*",
            "fa-harness run --library state@0001 --case 'FLASH_ATTN_EXT(hsk=4,*",
        ]
    )
    done.stdout.no_fnmatch_line("*pytest_plugin*")
    done.stdout.no_fnmatch_line("*Traceback*")


def test_a_crash_is_a_failure_with_its_last_words(
    pytester: pytest.Pytester, around_patched: Callable[[str], Path]
) -> None:
    module = around_patched("if name == 'ggml_graph_plan': os.write(2, b'here'); os.abort()")
    pytester.makeconftest(
        "import dataclasses, pathlib, pytest\n"
        "@pytest.fixture(scope='session')\n"
        "def ggml_library(ggml_library):\n"
        f"    module = pathlib.Path({str(module)!r})\n"
        "    return dataclasses.replace(ggml_library, path=module.parent, module=module.name)\n"
    )
    pytester.makepyfile(TEST.format(f"case_string={SMALL!r}"))
    done = pytester.runpytest()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["crash: standard: SIGABRT", "    here"])


def test_a_case_that_could_not_have_failed_fails(
    pytester: pytest.Pytester, patched: Library
) -> None:
    no_key_in_the_second = SMALL.replace("segments=2", "boundaries=[20]")
    pytester.makepyfile(TEST.format(f"case_string={no_key_in_the_second!r}"))
    done = pytester.runpytest()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["mistrusted: 2 segments were asked for*"])


def test_what_cannot_be_computed_is_skipped_with_the_reason(
    pytester: pytest.Pytester, patched: Library
) -> None:
    pytester.makepyfile(TEST.format('case_string="FLASH_ATTN_EXT(kv=64,type_V=mxfp4)"'))
    done = pytester.runpytest("-rs")
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["SKIPPED*type_V=mxfp4: the harness cannot encode it*"])


def test_the_library_is_that_of_the_setting(pytester: pytest.Pytester, bug: Library) -> None:
    pytester.makeini("[pytest]\nfa_library = 0001\n")
    pytester.makepyfile(
        "def test_name(ggml_library):\n    assert ggml_library.name == 'state@0001'\n"
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_the_library_is_held_while_the_tests_run(
    pytester: pytest.Pytester, patched: Library
) -> None:
    pytester.makepyfile(
        "def test_place(ggml_library):\n"
        "    assert '.held-' in ggml_library.path.parent.name\n"
        "    assert ggml_library.module_path.is_file()\n"
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_a_library_that_cannot_be_built_is_an_error_that_says_what_to_do(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "gone")
    for file, text in {
        "patches/state/series": "",
        "vendor/upstreams.toml": (
            'default = "mini"\n[upstreams.mini]\npackage = "mini"\nversion = "1.0"\n'
            f'sha256 = "{"0" * 64}"\nroot = "ggml"\ncommit = "abc123"\n'
        ),
    }.items():
        path = pytester.path / file
        path.parent.mkdir(parents=True)
        path.write_text(text)
    pytester.makepyfile(TEST.format('suite="seed"'))
    done = pytester.runpytest()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["C compiler: CC is 'gone', but there is no program 'gone'; *"])
    done.stdout.no_fnmatch_line("*Traceback*")
    done.stdout.no_fnmatch_line("*another exception*")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ('suite="none"', "suite 'none' is unknown; there are *"),
        ('case_file="none.txt"', "case file */none.txt: cannot be read *"),
        ('suit="smoke"', "*unexpected keyword argument 'suit'*"),
    ],
)
def test_a_marker_that_selects_nothing_is_an_error_of_the_collection(
    pytester: pytest.Pytester, arguments: str, message: str
) -> None:
    pytester.makepyfile(TEST.format(arguments))
    done = pytester.runpytest()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines([f"*::test_kernel: fa_cases: {message}"])
    done.stdout.no_fnmatch_line("*selection.py*")
    done.stdout.no_fnmatch_line("*another exception*")


def test_a_test_without_the_marker_is_told_to_have_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_kernel(fa_case):\n    fa_case.check()\n")
    done = pytester.runpytest()
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*::test_kernel: fa_case needs cases, such as @pytest.mark.*"])


def test_different_cases_have_different_ids() -> None:
    cases = {str(case): case for name in SUITES for case in suite(name)}
    cases |= {str(case): case for case in itertools.islice(draw_cases(1), 300)}
    ids = {case_id(case) for case in cases.values()}
    assert len(ids) == len(cases)
    assert all(set("[], '\"()") & set(id_) == set() for id_ in ids)


def test_a_project_that_has_no_such_tests_loads_nothing_heavy() -> None:
    code = (
        "import sys, fa_harness.pytest_plugin\n"
        "print({'numpy', 'rich', 'gguf', 'cffi', 'hypothesis'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
