"""No test of upstream sources sees the user's settings."""

import shutil

import pytest

from fa_harness.project import Project


@pytest.fixture(autouse=True)
def _own_settings(own_settings: None) -> None:
    pass


@pytest.fixture
def project(project: Project) -> Project:
    """A project that has fetched nothing yet."""
    shutil.rmtree(project.cache)
    return project
