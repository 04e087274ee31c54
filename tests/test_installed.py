"""The wheel, in an environment of its own and outside any checkout."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
SMALL = "fa_harness.Case(hsk=32, hsv=32, n_head_kv=1, n_kv=20, n_batch=2, segments=2)"

pytestmark = pytest.mark.full


class Installed:
    """An environment with the wheel, and the folder in which its commands run."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self.project = folder / "an empty folder"
        self.home = folder / "Cache größer"
        kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        self.env = {**kept, "PATH": os.defpath, "FA_HARNESS_HOME": str(self.home)}

    def __call__(
        self, program: str, *arguments: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, without HOME and in no language."""
        return subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.project,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of this checkout, installed with what it depends on."""
    folder = tmp_path_factory.mktemp("Größe mit Raum")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder,
        CHECKOUT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    assert list(folder.glob("*.tar.gz"))
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "-q", "install", wheel, "pytest"], check=True)
    (folder / "an empty folder").mkdir()
    return Installed(folder)


def test_a_run_in_an_empty_folder_fetches_builds_and_passes_and_needs_no_network_again(
    installed: Installed,
) -> None:
    first = installed("fa-harness", "run", "--suite", "smoke")
    assert first.returncode == 0, first.stderr
    assert "building library 'state'" in first.stderr
    assert " pass | library state of llama.cpp-" in first.stdout
    again = installed(
        "fa-harness",
        "run",
        "--suite",
        "smoke",
        PIP_INDEX_URL="http://127.0.0.1:9",
        PIP_NO_INDEX="1",
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert list(installed.project.iterdir()) == []


def test_what_changes_the_series_or_the_pins_needs_a_checkout(installed: Installed) -> None:
    for command in (["series", "drop", "1"], ["upstream", "add", "llama-cpp-python==0.3.1"]):
        done = installed("fa-harness", *command)
        assert done.returncode == 2
        assert "belongs to the installed package; run it in a checkout" in done.stderr


def test_a_notebook_compares_a_case(installed: Installed) -> None:
    code = f"import fa_harness; print(fa_harness.compare({SMALL}))"
    done = installed("python", "-c", code)
    assert done.stdout.startswith("pass  hs32 h1 kv20 b2 "), done.stderr


def test_a_project_of_ones_own_gates_with_its_own_pytest(
    installed: Installed, tmp_path: Path
) -> None:
    [tree] = (installed.home / "vendor" / "src").glob("llama.cpp-*")
    installed.project = tmp_path / "my project"
    (installed.project / "tests").mkdir(parents=True)
    (installed.project / "llama.cpp").symlink_to(tree)
    assert installed("fa-harness", "init").returncode == 0
    (installed.project / "tests" / "test_kernel.py").write_text(
        "import pytest\n\n"
        '@pytest.mark.fa_cases(suite="seed")\n'
        "def test_kernel(fa_case):\n    fa_case.check()\n\n"
        "def test_sources(ggml_library):\n    assert ggml_library.upstream == 'dir:"
        + tree.name
        + "'\n"
    )
    done = installed("python", "-m", "pytest", "-q", "tests")
    assert done.returncode == 0, done.stdout + done.stderr
