"""Make the virtual environment that the Makefile works in: locked packages and this project.

    python3 tools/bootstrap.py .venv run    what running needs
    python3 tools/bootstrap.py .venv dev    and what tests and lint need

Runs on a bare Python (>= 3.10). A second process waits for the first and then has nothing to do.
"""

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = {"run": "requirements.lock", "dev": "requirements-dev.lock"}
"""What is installed for a purpose; the second has all that the first has."""
MARKS = {"run": ".ready", "dev": ".ready-dev"}
BUILD_LOCK = "requirements-build.lock"


def main() -> None:
    """Bring the environment named on the command line up to date."""
    if sys.version_info < (3, 10):  # noqa: UP036  (said before pip says it less clearly)
        sys.exit(
            f"Python {sys.version.split()[0]} is too old: 3.10 or newer is needed (PYTHON=...)"
        )
    target, purpose = Path(sys.argv[1]), sys.argv[2]
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(target, purpose):
            install(target, LOCKS[purpose])
            mark(target, purpose).write_text(wanted(purpose))
        mark(target, purpose).touch()


def mark(target: Path, purpose: str) -> Path:
    """Return the file that says what an environment was made from; `make` looks at its time."""
    return target / MARKS[purpose]


def wanted(purpose: str) -> str:
    """Return the digest of all that decides what is installed."""
    names = (LOCKS[purpose], BUILD_LOCK, "pyproject.toml")
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()


def is_ready(target: Path, purpose: str) -> bool:
    """Tell whether an environment has what a purpose needs, or what more than that needs."""
    of = list(LOCKS)[list(LOCKS).index(purpose) :]
    marks = [(mark(target, name), wanted(name)) for name in of]
    return any(path.is_file() and path.read_text() == digest for path, digest in marks)


def install(target: Path, lock: str) -> None:
    """Make the environment and put everything into it."""
    python = target / "bin" / "python"
    if not (python.exists() and works(python)):
        print(f"making {target} with Python {sys.version.split()[0]}", flush=True)
        try:
            venv.create(target, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(f"cannot make {target}: this Python has no ensurepip; install python3-venv")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar=off"]
    fetch(*pip, "--require-hashes", "-r", ROOT / lock)
    missing = [name for name in ("cmake", "ninja") if not shutil.which(name)]
    if missing:
        print(f"{' and '.join(missing)} not found here: installing into {target}", flush=True)
        fetch(*pip, "--require-hashes", "-r", ROOT / BUILD_LOCK)
    fetch(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def works(python: Path) -> bool:
    """Tell whether an environment is whole and of this Python."""
    code = "import pip, sys; print(sys.version)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == sys.version


def fetch(*command: object) -> None:
    """Run pip and print a line for each package that it takes; end with its status if not 0."""
    words = [str(word) for word in command]
    said: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, errors="replace") as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            said.append(line.rstrip())
            step = re.match(r"(?:Collecting|Obtaining) (\S+)", line)
            if step:
                print(f"  {step[1]}", flush=True)
            elif line.startswith("Installing"):
                print("  installing them", flush=True)
    if pip.returncode:
        print(*said[-10:], sep="\n", file=sys.stderr)
        sys.exit(f"failed with status {pip.returncode}: {' '.join(words)}")


if __name__ == "__main__":
    main()
