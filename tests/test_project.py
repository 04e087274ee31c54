import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fa_harness import project as project_module
from fa_harness.errors import SetupError
from fa_harness.project import Project, find_project, locked, writing

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for name in ("patches/series", "vendor/upstreams.toml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return Project(root=tmp_path)


def test_the_project_is_found_from_a_folder_in_it(project: Project) -> None:
    deep = project.root / "a" / "b"
    deep.mkdir(parents=True)
    assert find_project(deep) == project


def test_elsewhere_the_checkout_of_the_package_is_taken(tmp_path: Path) -> None:
    assert find_project(tmp_path) == Project(root=CHECKOUT)


def test_without_a_project_the_error_says_what_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_module, "__file__", str(tmp_path / "site" / "project.py"))
    with pytest.raises(SetupError, match=r"no folder with patches/series and vendor/upstreams"):
        find_project(tmp_path)


def test_paths_in_the_project_are_shown_relative_to_it(project: Project) -> None:
    assert project.relative(project.cache / "x") == "vendor/cache/x"
    assert project.relative(Path("/elsewhere/x")) == "/elsewhere/x"


def lock_of(project: Project, what: str) -> Path:
    return project.build / ".locks" / f"{what.replace('/', '+')}.lock"


def test_a_second_process_waits_for_the_lock_says_for_whom_and_gets_it(project: Project) -> None:
    code = (
        "import sys; from pathlib import Path; from fa_harness.project import Project, locked\n"
        "with locked(Project(root=Path(sys.argv[1])), 'my-llama'):\n"
        " print('mine', flush=True); input()"
    )
    with locked(project, "my-llama"):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(project.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert other.stderr is not None
        assert other.stdout is not None
        line = other.stderr.readline()
        waits = f"waiting for another fa-harness (pid {os.getpid()}), which works on my-llama"
        assert waits in line
    assert other.stdout.readline() == "mine\n"
    with lock_of(project, "my-llama").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.communicate("\n", timeout=30)
    assert other.returncode == 0


def test_the_lock_of_a_killed_process_does_not_hold(project: Project) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fa_harness.project import Project, locked\n"
        "with locked(Project(root=Path(sys.argv[1])), 'my-llama'): os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(project.root)], check=False)
    assert ended.returncode == -9
    with locked(project, "my-llama"):
        assert lock_of(project, "my-llama").read_text() == f"{os.getpid()}\n"


def is_free(project: Project, what: str) -> bool:
    """Whether another process could take a lock now."""
    code = (
        "import fcntl, sys\n"
        "with open(sys.argv[1]) as lock: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    command = [sys.executable, "-c", code, str(lock_of(project, what))]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def test_who_works_on_one_upstream_does_not_keep_others_from_another(project: Project) -> None:
    with locked(project, "my-llama/abi"):
        pass
    with locked(project, "mine"):
        assert not is_free(project, "mine")
        assert is_free(project, "my-llama/abi")


def test_a_thread_that_holds_a_lock_may_take_it_again(project: Project) -> None:
    with locked(project, "mine"):
        with locked(project, "mine"):
            pass
        assert not is_free(project, "mine")
    assert is_free(project, "mine")


def test_another_thread_of_the_process_waits_for_the_lock(project: Project) -> None:
    order = []

    def other() -> None:
        with locked(project, "mine"):
            order.append("other")

    with locked(project, "mine"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(30)
    assert order == ["first", "other"]


def test_a_full_disk_is_told_from_other_failures_to_write() -> None:
    with (
        pytest.raises(SetupError, match=r"cannot write /x: the disk is full; free some space"),
        writing(Path("/x")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(SetupError, match=r"cannot write /x/y: Permission denied"),
        writing(Path("/x")),
    ):
        raise PermissionError(errno.EACCES, "Permission denied", "/x/y")
