"""The programs in examples/, started as their users start them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from feishu_mail_async.sandbox import Sandbox
from tests.helpers.cli import environment, run_process

EXAMPLES: Final = Path(__file__).parents[2] / "examples"


def run_example(name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_process([sys.executable, str(EXAMPLES / name), *arguments], environment(**env))


def rehearsed(name: str, **env: str) -> str:
    """The output of an example's `--sandbox`, which needs no setting and has ended well."""
    done = run_example(name, "--sandbox", **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "u-" not in done.stdout
    assert done.stdout.rstrip().splitlines()
    return done.stdout


def assert_in_order(text: str, *parts: str) -> None:
    place = 0
    for part in parts:
        place = text.find(part, place)
        assert place >= 0, f"{part!r} is missing, or comes too early:\n{text}"


def settings(sandbox: Sandbox, base_url: str | None = None, **more: str) -> dict[str, str]:
    """The environment in which an example uses this sandbox as it would use the real thing."""
    return environment(
        FEISHU_BASE_URL=base_url or sandbox.base_url,
        FEISHU_USER_ACCESS_TOKEN=json.dumps(sandbox.tokens),
        FEISHU_APP_ID=sandbox.client_id,
        PYTHONUNBUFFERED="1",
        **more,
    )
