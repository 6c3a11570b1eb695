"""Processes that do as they are told: one JSON object a line each way, over their standard input and output."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["Child", "obey"]

_PATIENCE: Final = 20.0
"""Seconds that a process may take to end."""


class Child:
    """A program of this folder that obeys, until the end of a `with`.

    Args:
        program: its name, without the ending.
        arguments: for it.
        python: which Python runs it; None: this one.
    """

    def __init__(self, program: str, *arguments: str, python: str | None = None) -> None:
        self._name = " ".join([program, *arguments])
        # A proxy of the environment has no business on loopback, and those who heed it pay for each call.
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            [python or sys.executable, str(Path(__file__).with_name(f"{program}.py")), *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Tell it what to do, and wait for its answer."""
        self.tell(**command)
        return self.hear()

    def tell(self, **command: Any) -> None:
        """Tell it what to do; `hear` has the answer, later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its next answer; SystemExit if it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended too early; what it said stands above")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def kill(self) -> None:
        """End it with SIGKILL, whatever it does."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Let it end, and see to it that it does."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def obey(act: Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]) -> None:
    """Be such a process: do what each line says and answer it, until there are no more.

    Args:
        act: does what a command says, and returns the answer. The loop runs on between the commands.
    """
    # The thread does nothing but wait.
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await act(json.loads(line))), flush=True)
