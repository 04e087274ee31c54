import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import platformdirs
import pytest

from fa_harness import project as project_module
from fa_harness.cli.main import cli
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import HOME_VARIABLE, Project, find_project, locked, writing
from tiny_upstream import write_files

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for name in ("patches/state/series", "vendor/upstreams.toml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return Project(data=tmp_path, home=tmp_path)


def test_the_project_is_found_from_a_folder_in_it(project: Project) -> None:
    deep = project.home / "a" / "b"
    deep.mkdir(parents=True)
    assert find_project(deep) == project


@pytest.fixture
def own(project: Project) -> Path:
    """A folder of the user's own in the project, with a series on ours."""
    folder = project.home / "mine"
    write_files(
        folder,
        {
            "patches/mine/series": "",
            "patches/mine/series.toml": 'title = "t"\nwhy = "w"\non = ["state"]\n',
            "fa-harness.toml": 'patches = "patches"\n',
        },
    )
    return folder


def test_a_users_own_series_are_beside_ours(project: Project, own: Path) -> None:
    found = find_project(own)
    assert found.stack == ("state",)
    assert found.patches == project.data / "patches" / "state"
    mine = found.of("mine")
    assert (mine.stack, mine.series, mine.stack_name) == (("state", "mine"), "mine", "state+mine")
    assert mine.series_file == own / "patches" / "mine" / "series"
    assert mine.baselines == project.data / "baselines" / "state+mine"
    assert find_project(own, stack="mine") == mine


def test_a_users_own_series_may_be_the_default_in_place_of_ours(own: Path) -> None:
    with (own / "fa-harness.toml").open("a") as file:
        file.write('series = "mine"\nbaselines = "kept"\n')
    found = find_project(own)
    assert found.stack == ("state", "mine")
    assert found.baselines == own / "kept" / "state+mine"
    assert find_project(own, stack="state").stack == ("state",)
    write_files(own, {"patches/state/series": ""})
    assert found.of("state").patches == own / "patches" / "state"


def test_a_default_series_that_is_not_there_is_refused_with_its_line(own: Path) -> None:
    (own / "fa-harness.toml").write_text('patches = "patches"\nseries = "gone"\n')
    message = r"fa-harness\.toml:2: series: there is no series 'gone'; there are: mine, state$"
    with pytest.raises(UsageError, match=message):
        find_project(own)


def test_elsewhere_the_checkout_of_the_package_is_taken(tmp_path: Path) -> None:
    assert find_project(tmp_path) == Project(data=CHECKOUT, home=CHECKOUT)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package outside any checkout, with patches and pins of its own; where it lies."""
    package = tmp_path / "site" / "fa_harness"
    for name in ("patches/state/series", "vendor/upstreams.toml"):
        (package / "shipped" / name).parent.mkdir(parents=True)
        (package / "shipped" / name).touch()
    monkeypatch.setattr(project_module, "PACKAGE", package)
    monkeypatch.setattr(project_module, "SHIPPED", package / "shipped")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user's cache"))
    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    return package


def test_an_installed_package_works_with_its_own_patches_in_the_users_cache(
    installed: Path, tmp_path: Path
) -> None:
    project = find_project(tmp_path)
    assert project.series_file == installed / "shipped" / "patches" / "state" / "series"
    assert project.build == tmp_path / "user's cache" / "fa-harness" / "build"
    assert list(tmp_path.glob("user*")) == [], "looking makes no folder"


def test_a_checkout_around_the_working_directory_goes_before_the_installed_package(
    installed: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("patches/state/series", "vendor/upstreams.toml"):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    assert find_project(checkout / "patches") == Project(data=checkout, home=checkout)


@pytest.mark.usefixtures("installed")
def test_the_variable_moves_sources_and_builds_of_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    assert find_project(tmp_path).cache == tmp_path / "elsewhere" / "vendor" / "cache"


def test_the_variable_moves_sources_and_builds_of_a_checkout(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    found = find_project(project.data)
    assert (found.data, found.home) == (project.data, tmp_path / "elsewhere")


@pytest.mark.usefixtures("installed")
def test_a_user_without_a_home_is_told_to_name_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = Path("~/.cache/fa-harness")  # what platformdirs says then
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_name, **_more: relative)
    with pytest.raises(SetupError, match=r"no home folder .*; set FA_HARNESS_HOME to a folder"):
        find_project(tmp_path)


def test_an_incomplete_installation_is_told_from_a_missing_checkout(
    installed: Path, tmp_path: Path
) -> None:
    (installed / "shipped" / "patches" / "state" / "series").unlink()
    with pytest.raises(SetupError, match=r"incomplete: .* lacks patches/\*/series .*; install it"):
        find_project(tmp_path)


def test_what_would_change_the_installed_package_is_refused(
    installed: Path, tmp_path: Path
) -> None:
    project = find_project(tmp_path)
    expected = "series drop changes state, which belongs to the installed package; run it in "
    with pytest.raises(UsageError, match=expected):
        project.refuse_to_change_shipped(project.patches, "series drop")
    own = Project(data=tmp_path, home=tmp_path)
    own.refuse_to_change_shipped(own.patches, "series drop")


@pytest.mark.usefixtures("installed")
def test_paths_of_an_installation_are_shown_in_full(tmp_path: Path) -> None:
    project = find_project(tmp_path)
    assert project.relative(project.cache) == str(project.cache)


def test_a_home_that_cannot_be_written_is_named_with_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    project = Project(data=tmp_path, home=tmp_path / "file" / "home")
    with (
        pytest.raises(
            SetupError, match=r"cannot write .*/file/home.*FA_HARNESS_HOME=/a/folder/of/yours"
        ),
        locked(project, "mine"),
    ):
        pass


def test_paths_in_the_project_are_shown_relative_to_it(project: Project) -> None:
    assert project.relative(project.cache / "x") == "vendor/cache/x"
    assert project.relative(Path("/elsewhere/x")) == "/elsewhere/x"


def lock_of(project: Project, what: str) -> Path:
    return project.build / ".locks" / f"{what.replace('/', '+')}.lock"


def test_a_second_process_waits_for_the_lock_says_for_whom_and_gets_it(project: Project) -> None:
    code = (
        "import sys; from pathlib import Path; from fa_harness.project import Project, locked\n"
        "p = Path(sys.argv[1])\n"
        "with locked(Project(data=p, home=p), 'my-llama'):\n"
        " print('mine', flush=True); input()"
    )
    with locked(project, "my-llama"):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(project.home)],
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
        "p = Path(sys.argv[1])\n"
        "with locked(Project(data=p, home=p), 'my-llama'): os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(project.home)], check=False)
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


def test_a_gate_does_not_write_its_baseline_into_an_installed_package(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="gate --update-baseline changes state, which belongs"):
        cli.main(["gate", "--update-baseline", "--no-speed"], standalone_mode=False)
