"""The command line as `nohup` starts it."""

import signal

from feishu_mail_async.cli import main as run

__all__ = ["main"]


def main() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run()
