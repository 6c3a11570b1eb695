"""What is said of wrong parameters."""

import re


def begins_with(name: str) -> str:
    """A pattern for `pytest.raises(match=...)`: the message begins with the parameter's name."""
    return rf"^{re.escape(name)}\b"
