"""The runtimes are other people's code: their deprecation warnings are none of ours."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/reference/" in item.path.as_posix():
            item.add_marker(pytest.mark.filterwarnings("ignore"))
