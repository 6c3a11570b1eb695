"""A sandbox in a process of its own."""

import json
import subprocess
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from tests.helpers.cli import TOKEN_VARIABLE, environment, start_command
from tests.helpers.nursery import Program


@dataclass
class Server:
    """A sandbox in a process of its own."""

    told: dict[str, Any]
    used: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return str(self.told["base_url"])

    @property
    def token(self) -> str:
        return str(self.told["tokens"]["alice"])

    def take(self, count: int = 1) -> list[str]:
        """Drafts of alice's that no other test uses."""
        self.used += count
        return list(self.told["drafts"]["alice"][self.used - count : self.used])

    def script(self, draft_id: str, *faults: dict[str, Any]) -> None:
        self.control("script", json.dumps({"draft_id": draft_id, "faults": faults}).encode())

    def calls(self, draft_id: str) -> int:
        return sum(call["draft_id"] == draft_id for call in self.control("ledger")["arrivals"])

    def control(self, what: str, body: bytes | None = None) -> Any:
        token = {"X-Sandbox-Token": self.told["control_token"]}
        request = urllib.request.Request(f"{self.base_url}/_sandbox/{what}", body, token)
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    def arguments(self, *arguments: str) -> list[str]:
        return ["send", "--base-url", self.base_url, *arguments]

    def start(
        self,
        *arguments: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> Program:
        """`send` in a process of its own."""
        env = environment(**{TOKEN_VARIABLE: self.token})
        return start_command(*self.arguments(*arguments), env=env, stdin=stdin, stdout=stdout, stderr=stderr)
