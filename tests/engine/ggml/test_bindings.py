import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from fa_harness.build.library import Library
from fa_harness.engine.ggml import bindings


def test_the_call_with_a_state_is_bound_where_the_headers_have_it(
    pristine: Library, patched: Library, tmp_path: Path
) -> None:
    for library, has_state in ((pristine, False), (patched, True)):
        out = tmp_path / f"{library.name}.c"
        bindings.emit_c(library.include_dir, out)
        assert ("ggml_flash_attn_ext_with_state" in out.read_text()) == has_state


def test_a_constant_is_bound_where_the_headers_have_it(patched: Library, tmp_path: Path) -> None:
    include, out = tmp_path / "include", tmp_path / "out.c"
    shutil.copytree(patched.include_dir, include)
    bindings.emit_c(include, out)
    assert "GGML_KQ_MASK_PAD" not in out.read_text()
    header = include / "ggml.h"
    header.write_text("#define GGML_KQ_MASK_PAD 64\n" + header.read_text())
    bindings.emit_c(include, out)
    assert "GGML_KQ_MASK_PAD" in out.read_text()
    assert compile_error(out, include) == ""


def test_a_right_source_is_left_alone(patched: Library, tmp_path: Path) -> None:
    out = tmp_path / "out.c"
    bindings.emit_c(patched.include_dir, out)
    before = out.stat()
    bindings.emit_c(patched.include_dir, out)
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    assert out.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("struct ggml_tensor * sinks);", "struct ggml_tensor * sinks, int head);"),
        ("bool   no_alloc;", "bool   without_alloc;"),
    ],
    ids=["signature", "struct"],
)
def test_another_header_is_a_compile_error(
    patched: Library, tmp_path: Path, old: str, new: str
) -> None:
    include = tmp_path / "include"
    shutil.copytree(patched.include_dir, include)
    bindings.emit_c(include, tmp_path / "out.c")
    assert compile_error(tmp_path / "out.c", include) == ""
    header = include / "ggml.h"
    text = header.read_text()
    assert old in text
    header.write_text(text.replace(old, new))
    assert "error: " in compile_error(tmp_path / "out.c", include)


def compile_error(source: Path, include: Path) -> str:
    python = sysconfig.get_path("include")
    command = ["cc", "-fsyntax-only", f"-I{include}", f"-I{python}", str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr
