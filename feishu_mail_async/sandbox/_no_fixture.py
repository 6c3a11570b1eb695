"""The fixture, for where pytest-asyncio is missing: it says so."""

import pytest


@pytest.fixture
def feishu_sandbox() -> None:
    """A started Feishu sandbox with one user, "alice"; needs pytest-asyncio."""
    pytest.fail("feishu_sandbox needs pytest-asyncio: pip install pytest-asyncio", pytrace=False)
