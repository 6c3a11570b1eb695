"""The servers that a limit is tried on, and the ways to them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from feishu_mail_async.sandbox import Window


@dataclass(frozen=True)
class Server:
    window: Window
    count_refusals: bool = False

    def __str__(self) -> str:
        return f"{self.window}{'-counting-refusals' if self.count_refusals else ''}"


SERVERS: Final = [
    Server(Window.FIXED),
    Server(Window.SLIDING),
    Server(Window.TOKEN_BUCKET),
    Server(Window.SLIDING, count_refusals=True),
]

Ways = Callable[[random.Random], tuple[float, float]]


def near(draw: random.Random) -> tuple[float, float]:
    """A round trip of 0.05 to 0.25 s."""
    return draw.uniform(0.025, 0.125), draw.uniform(0.025, 0.125)


def far(draw: random.Random) -> tuple[float, float]:
    """0 to 2 s each way."""
    return draw.uniform(0, 2), draw.uniform(0, 2)


def stragglers(draw: random.Random) -> tuple[float, float]:
    """As near, but every fiftieth call takes up to 10 s, which it loses on either way."""
    if draw.random() >= 0.02:
        return near(draw)
    whole = draw.uniform(0.25, 10)
    there = draw.uniform(0, whole)
    return there, whole - there


WAYS: Final[list[Ways]] = [near, far, stragglers]
