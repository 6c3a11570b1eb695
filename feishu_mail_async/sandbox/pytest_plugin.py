"""The fixture `feishu_sandbox`: a started sandbox with one user, "alice", in the test's own loop.

pytest loads this module in every project that has the package installed, so it imports nothing but pytest;
the fixture itself is brought in once it is known which plugins are there.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Bring in the fixture: the real one where pytest-asyncio runs, else one that says what is missing."""
    if config.pluginmanager.hasplugin("asyncio"):
        from . import _fixture as fixture  # noqa: PLC0415 - needs pytest-asyncio
    else:
        from . import _no_fixture as fixture  # type: ignore[no-redef]  # noqa: PLC0415
    config.pluginmanager.register(fixture, "feishu_mail_async_fixture")
