import re
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.upstream.pins import load_pins, set_default

CHECKOUT = Path(__file__).parents[2]
GOOD = (
    'default = "a"\n[upstreams.a]\npackage = "some-package"\nversion = "1.0"\n'
    f'sha256 = "{"0" * 64}"\nroot = "vendor/ggml"\n'
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "upstreams.toml"
    path.write_text(text)
    return path


def test_the_project_pins_ggml_0_25_3_by_default() -> None:
    pin = load_pins(CHECKOUT / "vendor" / "upstreams.toml").get()
    assert (pin.ggml_version, pin.commit) == ("0.25.3", "0c1e57098")
    assert pin.archive_name == "llama_cpp_python-0.3.36.tar.gz"


def test_peers_are_pinned_and_are_no_upstreams(tmp_path: Path) -> None:
    pins = load_pins(CHECKOUT / "vendor" / "upstreams.toml")
    assert pins.peers["ik_llama.cpp"].package == "ik-llama-cpp-python"
    assert not pins.peers.keys() & pins.upstreams.keys()
    wrong = GOOD + '[peers.b]\npackage = "b"\n'
    with pytest.raises(SetupError, match="peer 'b': version is missing"):
        load_pins(write(tmp_path, wrong))
    assert not load_pins(write(tmp_path, GOOD)).peers


def test_commit_and_ggml_version_may_be_unknown(tmp_path: Path) -> None:
    pin = load_pins(write(tmp_path, GOOD)).get("a")
    assert (pin.commit, pin.ggml_version) == ("", "")


def test_an_unknown_upstream_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    pins = load_pins(write(tmp_path, GOOD))
    with pytest.raises(UsageError, match=r"unknown upstream 'b': vendor/upstreams\.toml has a$"):
        pins.get("b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[upstreams.a]", "[upstreams.a", "is not valid TOML"),
        ('default = "a"', 'default = "b"', "default is 'b', but the upstreams are a"),
        ('default = "a"', "", "default is None, but the upstreams are a"),
        (
            'default = "a"',
            'defaults = "a"',
            "unknown key 'defaults'; known: default, upstreams, peers",
        ),
        ("[upstreams.a]", "[upstreams]", "upstream 'package': must be a table"),
        ("[upstreams.a]", '[upstreams."../a"]', "upstream '../a': the name must be usable"),
        ('version = "1.0"\n', "", "upstream 'a': version is missing"),
        ('"1.0"', "1.0", "upstream 'a': version must be a string, not 1.0"),
        ("root =", "roots =", "upstream 'a': unknown key 'roots'; known: package, version"),
        ("0000", "00xy", "upstream 'a': sha256 must be 64 hexadecimal digits"),
        ("vendor/ggml", "../ggml", "upstream 'a': root must lie inside the archive"),
        ("vendor/ggml", "/ggml", "upstream 'a': root must lie inside the archive"),
    ],
)
def test_a_wrong_pin_is_refused_with_its_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(SetupError, match=re.escape(message)):
        load_pins(write(tmp_path, GOOD.replace(old, new, 1)))


def test_a_file_without_upstreams_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no upstream; add a table"):
        load_pins(write(tmp_path, 'default = "a"\n'))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read .*upstreams\.toml: No such file"):
        load_pins(tmp_path / "upstreams.toml")


@pytest.mark.parametrize("quote", ['"', "'"])
def test_another_default_leaves_the_rest_of_the_file_as_it_is(tmp_path: Path, quote: str) -> None:
    text = '# the pins\n\ndefault  =  {}  # of today\n\n[upstreams."a"]\nversion      = "1"\n'
    (tmp_path / "upstreams.toml").write_text(text.format(f"{quote}a{quote}"))
    set_default(tmp_path / "upstreams.toml", "b")
    assert (tmp_path / "upstreams.toml").read_text() == text.format('"b"')
