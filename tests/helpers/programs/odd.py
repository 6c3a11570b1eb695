"""The command line in surroundings that not every shell gives it."""

import os
import signal

from feishu_mail_async.cli import main

__all__ = ["nohup", "without_umask"]


def nohup() -> None:
    """As `nohup` starts it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    main()


def without_umask() -> None:
    """With a umask of 000."""
    os.umask(0)
    main()
