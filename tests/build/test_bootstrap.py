"""The parts of tools/bootstrap.py that need no network; `make test` itself has run the rest."""

import fcntl
import importlib.util
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest

from fa_harness.project import find_project

SCRIPT = find_project().data / "tools" / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path: Path) -> ModuleType:
    """The script as a module, with locks of its own."""
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    root = tmp_path / "checkout"
    root.mkdir()
    for name in (*module.LOCKS.values(), module.BUILD_LOCK, "pyproject.toml"):
        (root / name).write_text(f"# {name}\n")
    module.__dict__["ROOT"] = root
    return module


class Installs(list[str]):
    """Stands for the installation: notes the locks that it was asked for."""

    def __call__(self, target: Path, lock: str) -> None:
        target.mkdir(exist_ok=True)
        self.append(lock)


@pytest.fixture
def installs(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installs:
    noted = Installs()
    monkeypatch.setattr(bootstrap, "install", noted)
    call(monkeypatch, tmp_path / "venv", "run")
    return noted


def call(monkeypatch: pytest.MonkeyPatch, target: Path, purpose: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", str(target), purpose])


def test_an_environment_of_this_python_works(bootstrap: ModuleType, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    [packages] = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (packages / "pip.py").touch()  # what counts is that it can be imported
    assert bootstrap.works(tmp_path / "venv" / "bin" / "python")


def test_an_environment_without_pip_does_not_work(bootstrap: ModuleType, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    assert not bootstrap.works(tmp_path / "venv" / "bin" / "python")


def test_a_program_that_fails_ends_the_script_with_its_words(bootstrap: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"^failed with status 3: .* -c raise SystemExit\(3\)$"):
        bootstrap.fetch(sys.executable, "-c", "raise SystemExit(3)")


def test_a_program_that_fails_is_quoted(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bootstrap.fetch(
            sys.executable, "-c", "print('ERROR: no such version'); raise SystemExit(1)"
        )
    assert "ERROR: no such version" in capsys.readouterr().err


def test_each_package_that_is_taken_is_a_line(
    bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        "Collecting numpy==2.4.6 (from -r x)",
        "  Using cached numpy",
        "Installing collected: a",
    )
    bootstrap.fetch(sys.executable, "-c", f"print(*{said!r}, sep='\\n')")
    assert capsys.readouterr().out.splitlines() == ["  numpy==2.4.6", "  installing them"]


def test_the_environment_is_made_once(bootstrap: ModuleType, installs: Installs) -> None:
    bootstrap.main()
    bootstrap.main()
    assert len(installs) == 1


def test_an_environment_for_tests_runs_too(
    bootstrap: ModuleType, installs: Installs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for purpose in ("dev", "run", "dev"):
        call(monkeypatch, tmp_path / "venv", purpose)
        bootstrap.main()
    assert installs == ["requirements-dev.lock"]


def test_an_environment_that_runs_gets_what_tests_need(
    bootstrap: ModuleType, installs: Installs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.main()
    call(monkeypatch, tmp_path / "venv", "dev")
    bootstrap.main()
    assert installs == ["requirements.lock", "requirements-dev.lock"]


def pinned(name: str) -> set[str]:
    """Return a lock's packages, each with its version and hashes."""
    text = (SCRIPT.parents[1] / name).read_text()
    return set(re.split(r"\n(?=[a-z])", text)[1:])


def test_what_runs_has_no_tools_of_tests_and_these_have_all_that_runs() -> None:
    running, testing = pinned("requirements.lock"), pinned("requirements-dev.lock")
    names = {package.partition("==")[0] for package in running}
    assert not names & {"mypy", "ruff", "pytest", "clang-format"}
    assert {package.rstrip() for package in running} <= {package.rstrip() for package in testing}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock", "pyproject.toml"])
def test_a_changed_lock_brings_the_environment_up_to_date(
    bootstrap: ModuleType, installs: Installs, name: str
) -> None:
    bootstrap.main()
    (bootstrap.ROOT / name).write_text("# newer\n")
    bootstrap.main()
    assert len(installs) == 2


def test_make_takes_an_environment_that_is_current_for_newer_than_the_locks(
    bootstrap: ModuleType, installs: Installs, tmp_path: Path
) -> None:
    bootstrap.main()
    ready = tmp_path / "venv" / ".ready"
    os.utime(ready, (0, 0))
    bootstrap.main()
    assert ready.stat().st_mtime >= (bootstrap.ROOT / "pyproject.toml").stat().st_mtime


def test_an_installation_that_fails_is_tried_again(
    bootstrap: ModuleType, installs: Installs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_target: Path, _lock: str) -> None:
        raise SystemExit("no network")

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", fail)
        with pytest.raises(SystemExit, match="no network"):
            bootstrap.main()
    bootstrap.main()
    assert len(installs) == 1


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    ready = tmp_path / "venv"
    with (tmp_path / "venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen([sys.executable, SCRIPT, ready, "run"], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=0.5)
        second.kill()
        second.wait()
    assert not ready.exists()
