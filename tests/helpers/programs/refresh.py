"""Refreshes a user's tokens in processes of their own, for tests that count refreshes and kill.

    ask N      asks for the token N times at once, and prints what it got
    rounds     for each line of its input a child is forked that refreshes for ever, or until it is killed; its
               process id is printed

What it needs stands in the environment: LEDGER, BASE_URL, APP_ID, APP_SECRET.
"""

import asyncio
import os
import signal
import sys

from feishu_mail_async import RefreshingTokens, open_ledger
from feishu_mail_async._auth.store import TokenStore


async def ask(times: int) -> None:
    """Ask for the token so many times at once."""
    ledger = open_ledger(os.environ["LEDGER"])
    async with _tokens(ledger.tokens(os.environ["BASE_URL"], os.environ["APP_ID"])) as tokens:
        await tokens.store.users()  # opens the database
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(tokens.token("alice") for _ in range(times)))
        print(*sorted(set(found)), flush=True)
    await ledger.close()


async def refresh_for_ever() -> None:
    """Refuse each token as soon as it is there."""
    ledger = open_ledger(os.environ["LEDGER"])
    tokens = _tokens(ledger.tokens(os.environ["BASE_URL"], os.environ["APP_ID"]))
    while True:
        await tokens.refused("alice", await tokens.token("alice"))


def _tokens(store: TokenStore) -> RefreshingTokens:
    environment = os.environ
    return RefreshingTokens(
        environment["APP_ID"], environment["APP_SECRET"], store, base_url=environment["BASE_URL"]
    )


def rounds() -> None:
    """Fork a child for each line of the input, and wait for its end."""
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(refresh_for_ever())
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else status, flush=True)


def main() -> None:
    """Do what the program's arguments say."""
    if sys.argv[1] == "ask":
        asyncio.run(ask(int(sys.argv[2])))
    else:
        rounds()
