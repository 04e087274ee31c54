import os
import re

import pytest

from fa_harness.errors import SetupError
from fa_harness.upstream import index
from fa_harness.upstream.index import IndexConfig, load_index_config, parse_default_index

DEFAULT_INDEX = "https://default/simple"


def parse_index_config(listing: list[str]) -> IndexConfig:
    return index.parse_index_config(listing, default_index=DEFAULT_INDEX)


def test_without_settings_the_default_index_is_asked() -> None:
    assert parse_index_config([]).indexes == (DEFAULT_INDEX,)


@pytest.mark.parametrize("space", [" ", "\n                              "])
def test_pips_help_names_its_default_index(space: str) -> None:
    usage = (
        "  -d, --dest <dir>            Where to (default .).\n"
        f"  -i, --index-url <url>       Base URL of the index (default{space}https://d/simple).\n"
        "  --extra-index-url <url>     Extra URLs (default none).\n"
    )
    assert parse_default_index(usage) == "https://d/simple"


def test_without_a_setting_this_pips_default_index_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert load_index_config().indexes[0].startswith("https://")


def test_extra_indexes_follow_the_index_and_are_split_at_any_white_space() -> None:
    config = parse_index_config(
        [
            "global.extra-index-url='file:///a/simple\\nhttps://b/simple  https://c/simple'",
            "global.index-url='https://main/simple'",
        ]
    )
    assert config.indexes == (
        "https://main/simple",
        "file:///a/simple",
        "https://b/simple",
        "https://c/simple",
    )


def test_the_environment_goes_before_the_install_section_and_that_before_global() -> None:
    lines = ["global.cert='g'", "install.cert='i'", ":env:.proxy='e'", "global.proxy='g'"]
    config = parse_index_config(lines)
    assert (config.cert, config.proxy) == ("i", "e")


def test_sections_of_other_commands_and_warnings_are_passed_over() -> None:
    lines = ["WARNING: something", "download.index-url='https://x'", ""]
    assert parse_index_config(lines).indexes == (DEFAULT_INDEX,)


def test_no_index_leaves_find_links_only() -> None:
    config = parse_index_config([":env:.no-index='1'", ":env:.find-links='/wheels /more'"])
    assert config.indexes == ()
    assert config.find_links == ("/wheels", "/more")


def test_either_spelling_of_the_timeout_counts() -> None:
    assert parse_index_config([":env:.default-timeout='180'"]).timeout == 180
    assert parse_index_config(["global.timeout='7'"]).timeout == 7


def test_pip_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mine/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mine other")
    config = load_index_config()
    assert config.indexes == ("https://mine/simple",)
    assert config.trusted_hosts == ("mine", "other")


def test_certificates_that_cannot_be_read_are_named() -> None:
    config = parse_index_config([":env:.cert='/no/such.pem'"])
    with pytest.raises(SetupError, match=re.escape("certificates in '/no/such.pem'")):
        config.ssl_context()


def test_unusable_certificates_are_named() -> None:
    config = parse_index_config([f":env:.cert='{os.devnull}'"])
    with pytest.raises(SetupError, match="cannot use the certificates"):
        config.ssl_context()
