"""The way of one draft: how many calls of the package's own functions it takes, and through how many files.

    python benchmarks/frames.py

Counted at run time, for one `send_draft` in memory that waits for nothing. The sandbox, which answers it, is left
out.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import feishu_mail_async
from feishu_mail_async import FeishuMailClient
from feishu_mail_async.sandbox import Sandbox

PACKAGE = str(Path(feishu_mail_async.__file__).parent)


class Trip:
    """The calls on the way, in their order."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.functions: Counter[str] = Counter()

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Note a call of a function of the package."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or _serves(frame):
            return
        file = code.co_filename.removeprefix(f"{PACKAGE}/")
        self.files.append(file)
        self.functions[f"{file}:{code.co_qualname}"] += 1

    def counts(self) -> dict[str, int]:
        """Return what was counted."""
        changes = sum(one != other for one, other in zip(self.files, self.files[1:], strict=False))
        return {
            "calls": len(self.files),
            "functions": len(self.functions),
            "files": len(set(self.files)),
            "changes of file": changes,
        }


def _serves(frame: FrameType | None) -> bool:
    """Return whether a call is the sandbox's own, or made for it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(f"{PACKAGE}/sandbox/"):
            return True
        frame = frame.f_back
    return False


async def travel() -> Trip:
    """Send two drafts one after the other; the second one's way is counted."""
    async with Sandbox(users=["alice"], latency=0.0) as sandbox:
        first, second = sandbox.add_drafts("alice", 2)
        async with FeishuMailClient(sandbox.token("alice"), base_url=sandbox.base_url) as client:
            await client.send_draft(first)
            await asyncio.sleep(1.0)
            trip = Trip()
            sys.setprofile(trip.note)
            try:
                await client.send_draft(second)
            finally:
                sys.setprofile(None)
    return trip


def main() -> None:
    """Print the counts, or with `--json` all of it."""
    trip = asyncio.run(travel())
    if "--json" in sys.argv[1:]:
        print(json.dumps({**trip.counts(), "by function": dict(trip.functions.most_common())}, indent=2))
        return
    for name, count in trip.counts().items():
        print(f"{count:>5} {name}")


if __name__ == "__main__":
    main()
