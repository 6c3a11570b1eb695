"""Files of drafts, written and read."""

from pathlib import Path

from feishu_mail_async.cli.rows import Rows, read_rows


def read(tmp_path: Path, content: str | bytes, name: str = "drafts.csv") -> Rows:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(str(path), "me", lambda user: user)
