"""Make the virtual environment that the Makefile works in: the locked packages and this project.

Runs on a bare Python (>= 3.10). A second process waits for the first and then has nothing to do.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-build.lock", "pyproject.toml")


def main() -> None:
    """Bring the environment named on the command line up to date."""
    if sys.version_info < (3, 10):  # noqa: UP036  (said before pip says it less clearly)
        sys.exit(
            f"Python {sys.version.split()[0]} is too old: 3.10 or newer is needed (PYTHON=...)"
        )
    target = Path(sys.argv[1])
    ready = target / ".ready"
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in LOCKS)).hexdigest()
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.is_file() or ready.read_text() != wanted:
            install(target)
            ready.write_text(wanted)
        ready.touch()


def install(target: Path) -> None:
    """Make the environment and put everything into it."""
    python = target / "bin" / "python"
    print(f"making {target} with Python {sys.version.split()[0]}", flush=True)
    if not (python.exists() and works(python)):
        try:
            venv.create(target, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(f"cannot make {target}: this Python has no ensurepip; install python3-venv")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    run(*pip, "--require-hashes", "-r", ROOT / "requirements.lock")
    missing = [name for name in ("cmake", "ninja") if not shutil.which(name)]
    if missing:
        print(f"{' and '.join(missing)} not found here: installing into {target}", flush=True)
        run(*pip, "--require-hashes", "-r", ROOT / "requirements-build.lock")
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def works(python: Path) -> bool:
    """Tell whether an environment is whole and of this Python."""
    code = "import pip, sys; print(sys.version)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == sys.version


def run(*command: object) -> None:
    """Run a program; end with its status where that is not 0."""
    status = subprocess.run([str(word) for word in command], check=False).returncode
    if status:
        sys.exit(f"failed with status {status}: {' '.join(str(word) for word in command)}")


if __name__ == "__main__":
    main()
