"""What cannot be compiled here is looked at: backends that would compute without the state."""

from pathlib import Path

import pytest

from fa_harness.build.builder import vendor
from fa_harness.project import find_project

TAG = "[TAG_ATTN_STATE]"
PASSES_ON = {"ggml-rpc", "ggml-virtgpu"}
CODE = {".c", ".cpp", ".cu", ".m", ".h", ".hpp"}


@pytest.fixture(scope="module")
def sources() -> Path:
    """The patched tree."""
    return vendor(find_project()).path / "ggml" / "src"


def texts(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.suffix in CODE)
    return {path: path.read_text(encoding="utf-8", errors="replace") for path in files}


def backends_that_know_the_op(sources: Path) -> dict[str, str]:
    """Return the sources of each backend that has a case for the op or passes every op on."""
    folders = [path for path in sources.glob("ggml-*") if path.is_dir()]
    folders.append(sources / "ggml-cpu" / "spacemit")
    code = {folder.name: "\n".join(texts(folder).values()) for folder in folders}
    code["meta"] = (sources / "ggml-backend-meta.cpp").read_text()
    del code["ggml-cpu"]  # it computes the op
    return {
        name: text
        for name, text in code.items()
        if name in PASSES_ON or "case GGML_OP_FLASH_ATTN_EXT:" in text
    }


def test_every_other_backend_that_knows_the_op_refuses_a_state(sources: Path) -> None:
    backends = backends_that_know_the_op(sources)
    assert {"ggml-cuda", "ggml-metal", "ggml-vulkan", "spacemit", "meta"} | PASSES_ON <= set(
        backends
    )
    assert [name for name, text in backends.items() if TAG not in text] == []


def test_a_refusal_looks_at_the_source_that_holds_the_state(sources: Path) -> None:
    for name, text in backends_that_know_the_op(sources).items():
        after = text.split(TAG, 1)[1][:400]
        before = text.split(TAG, 1)[0][-400:]
        assert "src[6]" in before + after, name
