"""The pytest fixture `feishu_sandbox`: a started sandbox with one user, "alice", in the test's own loop.

pytest loads this module in every project that has the package installed, beside every version of every other
plugin. So it imports nothing but pytest until a test requests the fixture, and only then looks for the plugin that
runs asynchronous fixtures (pytest-asyncio or anyio). The one exception: older versions of pytest-asyncio collect
fixtures before the first test begins, so the fixture for it is registered as soon as pytest-asyncio is loaded.
"""

import contextlib
import importlib.util
from collections.abc import AsyncIterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from .server import Sandbox

_PYTEST_ASYNCIO: Final = "pytest_asyncio.plugin"
_ANYIO: Final = "anyio_backend"
_OF_PYTEST_ASYNCIO: Final = "_feishu_sandbox_of_pytest_asyncio"
_OF_ANYIO: Final = "_feishu_sandbox_of_anyio"


@pytest.fixture
def feishu_sandbox(request: pytest.FixtureRequest) -> "Sandbox":
    """Start a Feishu sandbox with one user, "alice"; it is closed after the test."""
    plugins = request.config.pluginmanager
    name = _OF_PYTEST_ASYNCIO
    if _ANYIO in request.fixturenames:
        name = _OF_ANYIO
        backend = request.getfixturevalue(_ANYIO)
        if (backend if isinstance(backend, str) else backend[0]) != "asyncio":
            pytest.fail('feishu_sandbox needs asyncio; in anyio_backend: return "asyncio"', pytrace=False)
        if not plugins.hasplugin(name):
            _offer(plugins, name, pytest.fixture)
    if not plugins.hasplugin(name):
        pytest.fail(f"feishu_sandbox needs pytest-asyncio{_remedy(plugins)}", pytrace=False)
    sandbox: Sandbox = request.getfixturevalue(name)
    return sandbox


def pytest_plugin_registered(plugin: object, manager: pytest.PytestPluginManager) -> None:
    """Register the fixture for pytest-asyncio as soon as that plugin is loaded."""
    if isinstance(plugin, ModuleType) and plugin.__name__ == _PYTEST_ASYNCIO:
        # No version of pytest-asyncio may break a test suite that does not use the fixture.
        with contextlib.suppress(Exception):
            # Versions without modes have no decorator of their own: they run all asynchronous fixtures.
            _offer(manager, _OF_PYTEST_ASYNCIO, getattr(plugin, "fixture", pytest.fixture))


def _offer(manager: pytest.PytestPluginManager, name: str, fixture: Any) -> None:
    async def started() -> AsyncIterator["Sandbox"]:
        from .server import Sandbox  # noqa: PLC0415 - it takes a while

        async with Sandbox(users=("alice",)) as sandbox:
            yield sandbox

    module = ModuleType(name)
    setattr(module, name, fixture(started))
    manager.register(module, name)


def _remedy(manager: pytest.PytestPluginManager) -> str:
    if any(getattr(plugin, "__name__", None) == _PYTEST_ASYNCIO for plugin in manager.get_plugins()):
        return " in another version: pip install -U pytest-asyncio"
    if importlib.util.find_spec("pytest_asyncio") is not None:
        return ", which is installed but not loaded: give pytest -p pytest_asyncio.plugin"
    return ": pip install pytest-asyncio"
