"""A local Feishu server to test against: strict, scriptable, with a call log.

    async with Sandbox() as sandbox:
        token = sandbox.add_user("alice")
        draft_id = sandbox.add_draft("alice")
        sandbox.script(draft_id, Fault.reset_after())
        ...
        assert sandbox.ledger.sent[draft_id] == 1

Theory of operation. Every call of a mail endpoint takes the same path:

    request -> way there -> judge -> processing -> effect -> way back -> answer
                              |
                              +-- rate limit -> token -> mailbox -> locks -> endpoint -> fault

- `server.py` owns the path and all waiting. `judge.py` decides about a call at the instant it arrives, and
  awaits nothing, so that no other call can come between a check and the lock that follows from it.
- A call refused by limit, token, mailbox or locks ends there. Only calls that may be carried out meet a scripted
  fault, which replaces the endpoint's answer (even a refusal) and effect. The one exception is a delay, which has
  to begin before the call arrives.
- A large message is judged in a thread while its call holds the locks. All else about the call, and with it the
  order of calls, has been decided when it arrived.
- A draft and the mail that becomes of it are one object, with two ids: paths below `drafts` take the draft's,
  paths below `messages` the mail's, and neither takes the other's.
- A mail never goes out twice, whatever is scripted: the effect of a send looks at the draft again. None goes out
  whose cancelling was answered with a success, though its time may have come meanwhile.
- Time is the running loop's, throughout, so a test with a virtual clock runs hours in milliseconds.
- The call log records what arrived and nothing that a client reports. For the same reason the sandbox has its own
  paths, scopes and limits: it shares only the table of codes and the check of ids with the client it judges.
- Where the documents are silent, the strictest reading is the default: a sliding window, and locks held until the
  answer has left. Both can be set.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import *  # noqa: F403 - it lists them
    from ._public import __all__ as __all__
else:
    from feishu_mail_async._lazy import lazily

    __getattr__, __dir__ = lazily(__name__)
