"""The sandbox in a process of its own, for crowd.py: what it saw is what counts."""

import asyncio
import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from children import obey

from feishu_mail_async.sandbox import Sandbox


class Court:
    """One sandbox after another."""

    def __init__(self) -> None:
        self._sandbox: Sandbox | None = None
        self._calls = 0
        self._per = 0.0

    async def act(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do what crowd.py asks for."""
        match command.pop("do"):
            case "open":
                return await self._open(**command)
            case "wait":
                return await self._wait(**command)
            case _:
                return self._judge()

    async def _open(self, *, calls: int, per: float, latency: float, users: int, drafts: int) -> dict[str, Any]:
        await self.close()
        self._calls, self._per = calls, per
        names = [f"user{number}" for number in range(users)]
        self._sandbox = Sandbox(calls=calls, per=per, latency=latency, users=names)
        await self._sandbox.start()
        owners = itertools.islice(itertools.cycle(names), drafts)
        return {
            "base_url": self._sandbox.base_url,
            "tokens": self._sandbox.tokens,
            "drafts": [(self._sandbox.add_draft(user), user) for user in owners],
        }

    async def _wait(self, *, sends: int) -> dict[str, Any]:
        """Until so many have arrived."""
        assert self._sandbox is not None
        while len(self._sandbox.ledger.sends) < sends:  # noqa: ASYNC110 - the sandbox has no event for that
            await asyncio.sleep(0.01)
        return {}

    def _judge(self) -> dict[str, Any]:
        assert self._sandbox is not None
        ledger = self._sandbox.ledger
        return {
            "calls": len(ledger.sends),
            "sent": len(ledger.sent),
            "twice": sum(times > 1 for times in ledger.sent.values()),
            "refused": ledger.refusals,
            "conflicts": ledger.conflicts,
            "busiest": ledger.busiest_window(accepted_only=False),
            "used": 100 * self._per / statistics.fmean(cycles([send.time for send in ledger.sends], self._calls)),
        }

    async def close(self) -> None:
        """Close the sandbox that is open."""
        if self._sandbox is not None:
            await self._sandbox.close()


def cycles(times: list[float], calls: int) -> Iterable[float]:
    """Seconds from each arrival to the one that has its permit next."""
    return (later - earlier for earlier, later in zip(times, times[calls:], strict=False))


async def main() -> None:
    court = Court()
    await obey(court.act)
    await court.close()


if __name__ == "__main__":
    asyncio.run(main())
