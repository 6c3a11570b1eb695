"""Where the package and the samples of replies are."""

from pathlib import Path
from typing import Final

import feishu_mail_async

PACKAGE: Final = Path(feishu_mail_async.__file__).parent
SAMPLES: Final = Path(__file__).parents[1] / "samples"


def sample(name: str) -> bytes:
    """The bytes of a reply in tests/samples."""
    return (SAMPLES / name).read_bytes()
