"""Browser tests skip where there is no Chromium; `.ci/run` sets REQUIRE_BROWSER, which makes that an error.

The whole-DAG test goes first: begun last, the longest file would run while the other process has nothing left to do.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from tests.chromium import CHROMIUM, NO_CHROMIUM


def pytest_configure() -> None:
    if not os.environ.get("REQUIRE_BROWSER"):
        return
    if find_spec("playwright") is None:
        raise pytest.UsageError("REQUIRE_BROWSER is set, but playwright is not installed: browser tests would skip")
    if CHROMIUM is None:
        raise pytest.UsageError(f"REQUIRE_BROWSER is set, but browser tests would skip: {NO_CHROMIUM}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_e2e.py")
