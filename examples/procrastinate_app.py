"""Your procrastinate app, as you have one already; procrastinate_task.py adds a task to it."""

import os

from procrastinate import App, PsycopgConnector

__all__ = ["app"]

app = App(connector=PsycopgConnector(conninfo=os.environ.get("DATABASE_URL", "")))
