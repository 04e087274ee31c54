"""Where things are, and how two runs keep out of each other's way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import platformdirs

from fa_harness import stacks, terminal
from fa_harness.config import FILE, Config, load_config
from fa_harness.errors import SetupError, UsageError

HOME_VARIABLE = "FA_HARNESS_HOME"
PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "shipped"
"""The patches, pins and baselines of an installed package, laid out as in a checkout."""

PATCHES = "patches"
"""The lock of whoever changes the series or the pins."""

_held: set[tuple[int, Path]] = set()
"""Which thread holds which lock."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """What the tool works with, and the folders that it fills."""

    data: Path
    """Patches, pins and baselines: a checkout of fa-harness, or `SHIPPED`."""
    home: Path
    """Sources and builds: the same checkout, or the user's cache folder."""
    config: Config = field(default_factory=Config)
    """What the nearest `fa-harness.toml` says."""
    stack: tuple[str, ...] = (stacks.DEFAULT,)
    """The series that are applied, in order. The last one is what commands change and test."""

    more_series: tuple[Path, ...] = ()
    """Folders of series that go before all others."""

    @property
    def stack_name(self) -> str:
        """The names of the series, joined with `+`."""
        return "+".join(self.stack)

    @property
    def series(self) -> str:
        """The name of the last series of the stack."""
        return self.stack[-1]

    @property
    def series_folders(self) -> tuple[Path, ...]:
        """Where series lie: the user's own folder, if there is one, goes before ours."""
        own = self.config.patches
        return (*self.more_series, *([own] if own else []), self.data / "patches")

    def of(self, stack: str) -> Project:
        """Return the same project with another stack, named as on the command line."""
        return replace(self, stack=stacks.stack_of(self.series_folders, stack))

    def folder_of(self, series: str) -> Path:
        """The folder of a series."""
        return stacks.folder_of(self.series_folders, series)

    def about(self, series: str | None = None) -> stacks.About:
        """What a series says of itself, or the last one of the stack."""
        return stacks.about(self.folder_of(series or self.series))

    @property
    def patches(self) -> Path:
        """The folder of the last series, with everything that belongs to it."""
        return self.folder_of(self.series)

    @property
    def series_file(self) -> Path:
        """The order of its patches, one file name a line."""
        return self.patches / stacks.ORDER

    @property
    def mutants(self) -> Path:
        """The folder of the patches that put mutants into the patched library."""
        return self.patches / "mutants"

    @property
    def museum(self) -> Path:
        """The folder of the patches that put faults back that kernels really had."""
        return self.patches / "museum"

    @property
    def pins_file(self) -> Path:
        """The pinned upstreams."""
        return self.data / "vendor" / "upstreams.toml"

    @property
    def baselines(self) -> Path:
        """What gates of the stack compare with, one file per upstream and machine class."""
        return (self.config.baselines or self.data / "baselines") / self.stack_name

    @property
    def cache(self) -> Path:
        """Downloaded archives, each verified against its pin."""
        return self.home / "vendor" / "cache"

    @property
    def sources(self) -> Path:
        """Trees: one git repository per upstream."""
        return self.home / "vendor" / "src"

    @property
    def edits(self) -> Path:
        """Worktrees in which a change of the series is made."""
        return self.home / "vendor" / "edit"

    @property
    def build(self) -> Path:
        """Everything that compilers make."""
        return self.home / "build"

    @property
    def generated(self) -> Path:
        """The folder of the stack's generated mutants, a patch and a table."""
        return self.build / "generated" / self.stack_name

    @property
    def existing_home(self) -> Path:
        """The home, or the folder above in which it will be made."""
        return next(each for each in (self.home, *self.home.parents) if each.is_dir())

    @property
    def is_installed(self) -> bool:
        """Whether patches, pins and baselines are the package's own, outside any checkout."""
        return self.data == SHIPPED

    def relative(self, path: Path) -> str:
        """`path` as messages show it: relative to the checkout where it lies inside one."""
        inside = not self.is_installed and path.is_relative_to(self.data)
        return str(path.relative_to(self.data)) if inside else str(path)

    def refuse_to_change_shipped(self, path: Path, what: str) -> None:
        """Refuse a command that would change a file that the next installation overwrites."""
        if path.is_relative_to(SHIPPED):
            raise UsageError(
                f"{what} changes {path.name}, which belongs to the installed package; run it in "
                f"a checkout of fa-harness, or name a folder of your own in {FILE} "
                "(fa-harness init)"
            )


def find_project(start: Path | None = None, *, stack: str | None = None) -> Project:
    """Return the checkout of fa-harness around `start` (the working directory) or this package.

    Without one it is the installation. The nearest `fa-harness.toml` configures it. `stack` names
    the series; for None it is the default of that file, else ours.
    """
    start = (start or Path.cwd()).resolve()
    data = next(filter(_is_data, (start, *start.parents, *PACKAGE.parents)), SHIPPED)
    if not _is_data(data):
        raise SetupError(
            f"the installation of fa-harness is incomplete: {SHIPPED} lacks patches/*/series or "
            "vendor/upstreams.toml; install it again"
        )
    project = Project(data=data, home=_home(data), config=load_config(start))
    if stack is None and (own := project.config.series):
        try:
            return project.of(own)
        except UsageError as error:
            raise UsageError(f"{project.config.where('series')}: {error}") from None
    return project.of(stack or stacks.DEFAULT)


def _is_data(folder: Path) -> bool:
    has_series = any(folder.glob(f"patches/*/{stacks.ORDER}"))
    return has_series and (folder / "vendor" / "upstreams.toml").is_file()


def _home(data: Path) -> Path:
    """Where sources and builds go: FA_HARNESS_HOME, else the checkout, else the user's cache."""
    asked = os.environ.get(HOME_VARIABLE)
    if asked:
        return Path(asked).expanduser().resolve()
    if data != SHIPPED:
        return data
    cache = platformdirs.user_cache_path("fa-harness", appauthor=False)
    if not cache.is_absolute():  # no HOME, and a user whom the system does not know
        raise SetupError(
            f"user {os.getuid()} has no home folder for sources and builds; set {HOME_VARIABLE} "
            "to a folder that can be written"
        )
    return cache


@contextlib.contextmanager
def locked(project: Project, what: str) -> Iterator[None]:
    """Hold one of the project's locks: one process at a time changes what it is named after.

    The lock is the kernel's, so a killed process leaves none behind. A thread that holds it may
    take it again. Who takes several takes them in this order: `PATCHES`, a build folder, the tree
    of a checkout, that of a pin, an archive.
    `what` is such a folder, `PATCHES` or a file, as people know it.
    """
    path = project.build / ".locks" / f"{what.replace('/', '+')}.lock"
    key = (threading.get_ident(), path)
    if key in _held:
        yield
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            terminal.stage(f"waiting for another fa-harness (pid {holder}), which works on {what}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write at `path` (full disk, no permission) into a SetupError."""
    try:
        yield
    except OSError as error:
        # shutil.Error lists the errors of many files, each as a text
        is_listed = os.strerror(errno.ENOSPC) in str(error)
        if is_listed or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SetupError(f"cannot write {path}: {DISK_IS_FULL}") from error
        raise SetupError(
            f"cannot write {error.filename or path}: {error.strerror or error}; make it writable, "
            f"or move sources and builds: {HOME_VARIABLE}=/a/folder/of/yours"
        ) from error


DISK_IS_FULL = (
    "the disk is full; free some space and run again, or move sources and builds to another disk: "
    f"{HOME_VARIABLE}=/a/folder/there"
)
