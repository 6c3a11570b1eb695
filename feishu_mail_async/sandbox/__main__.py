"""Entry point of `python -m feishu_mail_async.sandbox`: a sandbox in a process of its own.

It needs no extra, so it reads its command line with argparse.
"""

from feishu_mail_async._signals import end_at_once
from feishu_mail_async._streams import run_program


def main() -> int:
    """Read the command line, run a sandbox until SIGINT or SIGTERM, and return the exit code."""
    end_at_once()
    import argparse  # noqa: PLC0415 - imports take a while, and signals must end the program meanwhile
    import asyncio  # noqa: PLC0415
    import contextlib  # noqa: PLC0415

    from .process import read_latency, serve  # noqa: PLC0415
    from .window import Window  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m feishu_mail_async.sandbox",
        description="A Feishu to try against. The first line printed is JSON: base_url and tokens.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="an IP address of this machine")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--calls", type=int, default=20, help="sends allowed in a window")
    parser.add_argument("--per", type=float, default=60.0, help="the window's length in seconds")
    parser.add_argument("--window", type=Window, choices=list(Window), default=Window.SLIDING)
    parser.add_argument(
        "--latency",
        type=read_latency,
        default=(0.02, 0.1),
        help="seconds: 0.2 a round trip, 0.02-0.1 each way",
    )
    parser.add_argument("--users", default="alice", help="names, with commas between them")
    parser.add_argument("--drafts", type=int, default=0, help="drafts for each user")
    given = parser.parse_args()
    users = [name for name in given.users.split(",") if name]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            serve(
                host=given.host,
                port=given.port,
                calls=given.calls,
                per=given.per,
                window=given.window,
                latency=given.latency,
                users=users,
                drafts=given.drafts,
            )
        )
    return 0


if __name__ == "__main__":
    run_program(main)
