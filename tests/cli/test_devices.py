from click.testing import CliRunner

from fa_harness.build.library import Library
from fa_harness.cli.main import cli
from fa_harness.errors import SetupError


def test_devices_are_listed_by_the_names_that_backend_takes(patched: Library) -> None:
    found = CliRunner().invoke(cli, ["devices"])
    assert found.exit_code == 0
    names = [line.split()[0] for line in found.output.splitlines()]
    assert names[0] == "CPU"
    assert names[-1] == "RPC"


def test_a_run_on_a_server_says_so_and_repeats_there(patched: Library) -> None:
    arguments = ["run", "--suite", "seed", "--backend", "RPC", "-v"]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 0, found.output
    assert "on RPC" in found.output
    assert "--backend RPC" in found.output


def test_coverage_is_of_the_cpu_alone() -> None:
    arguments = ["run", "--suite", "seed", "--backend", "RPC", "--coverage"]
    found = CliRunner().invoke(cli, arguments)
    assert str(found.exception) == (
        "--coverage counts branches of the CPU's kernel; leave --backend out"
    )


def test_an_unknown_device_is_refused_with_what_there_is(patched: Library) -> None:
    found = CliRunner().invoke(cli, ["run", "--suite", "seed", "--backend", "CUDA0"])
    assert isinstance(found.exception, SetupError)
    assert str(found.exception) == (
        "backend 'CUDA0': the library has no such device; it has CPU, RPC; `fa-harness devices` "
        "tells more"
    )
