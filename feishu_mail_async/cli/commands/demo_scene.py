"""What the demo is about: made-up users, drafts, what goes wrong on purpose, and how each must end."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async._calls.bulk import Outcome
from feishu_mail_async.model import Draft, OutcomeStatus, RateLimit
from feishu_mail_async.sandbox import CallLog, Fault, Sandbox

__all__ = ["FEWEST", "Scene", "mistakes", "set_scene"]

FEWEST: Final = 20
"""Drafts that the demo needs for all its stories."""

_SENT, _ALREADY, _FAILED = OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT, OutcomeStatus.FAILED
_UNKNOWN, _SKIPPED = OutcomeStatus.UNKNOWN, OutcomeStatus.SKIPPED

_WORKING: Final = ("alice", "bob", "carol")
_NEWS: Final = "news@example.com"
_QUOTA: Final = 2


@dataclass(frozen=True, slots=True)
class Story:
    """Something that happens to some drafts.

    Attributes:
        what: in a few words.
        drafts: to which.
        ends: how many of them must end how.
    """

    what: str
    drafts: tuple[Draft, ...]
    ends: Counter[OutcomeStatus]


@dataclass(slots=True)
class Scene:
    """All of the demo.

    Attributes:
        drafts: in the order in which they are given to the client.
        stories: every draft is in one of them.
    """

    drafts: list[Draft] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)

    def tell(self, what: str, drafts: Iterable[Draft], *ends: OutcomeStatus) -> None:
        """Add a story; `ends` has one status, or one for each draft in any order."""
        told = tuple(drafts)
        self.drafts += told
        self.stories.append(Story(what, told, Counter(ends if len(ends) == len(told) else ends * len(told))))


def set_scene(sandbox: Sandbox, count: int, *, seed: int, attempts: int, pause: int) -> Scene:
    """Fill the sandbox, script what goes wrong, and say how it must end.

    Args:
        sandbox: an empty one.
        count: drafts, `FEWEST` or more.
        seed: of who gets what, and of the order.
        attempts: calls after which the client gives a failing draft up.
        pause: seconds for which the server is told to ask for a pause.
    """
    chance = random.Random(seed)
    for name in (*_WORKING, "dora", "erik"):
        sandbox.add_user(name)
    sandbox.share_mailbox(_NEWS, "carol")
    scene, numbers = Scene(), Counter[str]()

    def draft(user: str | None = None, *faults: Fault, mailbox: str = "me", there: bool = True) -> Draft:
        user = user or chance.choice(_WORKING)
        numbers[user] += 1
        made = Draft(f"{user}-{numbers[user]:02}", mailbox, user)
        if there:
            sandbox.add_draft(user, made.draft_id, mailbox)
        sandbox.script(made.draft_id, *faults)
        return made

    failing = [Fault.gateway(502, accepted=True), *[Fault.gateway(502)] * (attempts - 1)]
    scene.tell("a server error, then all is well", [draft(None, Fault.code("InternalError"))], _SENT)
    scene.tell("sent, and the answer was lost", [draft(None, Fault.reset_after())], _ALREADY)
    scene.tell("sent before", [draft(None, Fault.code("AlreadySent", accepted=True))], _ALREADY)
    scene.tell("risky content", [draft(None, Fault.code("ContentRisk"))], _FAILED)
    scene.tell("no such draft", [draft(None, there=False)], _FAILED)
    disturbed = draft(None, Fault.frequency(reset=str(pause)))
    scene.tell("another program used up the limit", [disturbed], _SENT)
    scene.tell("the server never answers clearly", [draft(None, *failing)], _UNKNOWN)
    slow = [Fault.code("MailThrottled")] * 2
    scene.tell("a user who is slowed down", [draft("erik", *slow), draft("erik")], _SENT)
    sandbox.set_quota("dora", _QUOTA)
    dora = [draft("dora") for _ in range(_QUOTA + 2)]
    scene.tell("a daily quota that is reached", dora, *[_SENT] * _QUOTA, _FAILED, _SKIPPED)
    sandbox.disable_automation(_NEWS, "switched off by its owner")
    news = [draft("carol", mailbox=_NEWS) for _ in range(3)]
    scene.tell("a mailbox without automated sending", news, _FAILED, _SKIPPED, _SKIPPED)
    scene.tell("nothing special", [draft() for _ in range(count - len(scene.drafts))], _SENT)
    chance.shuffle(scene.drafts)
    # Late, so that the limit itself is seen at work first.
    scene.drafts.remove(disturbed)
    scene.drafts.insert(count * 3 // 4, disturbed)
    return scene


def mistakes(
    scene: Scene, outcomes: Iterable[Outcome], ledger: CallLog, limit: RateLimit, *, whole: bool
) -> list[str]:
    """What did not go as it should, by the sandbox's own record; nothing is taken from what the client says.

    Args:
        scene: what was to happen.
        outcomes: what the client said became of the drafts.
        ledger: what really happened.
        limit: what the client was told to keep.
        whole: the run was not stopped, so that every story came to its end.
    """
    ends = {outcome.draft: outcome.status for outcome in outcomes}
    found = []
    for draft in scene.drafts:
        status, times = ends.get(draft), ledger.sent[draft.draft_id]
        if status is None or not (times <= 1 if status is _UNKNOWN else times == int(status.good)):
            found.append(f"{draft.draft_id} ended as {status or 'nothing'}, and was sent {times} times")
    for story in scene.stories if whole else ():
        told = Counter(ends[draft] for draft in story.drafts if draft in ends)
        if told != story.ends:
            found.append(f"{story.what}: ended as {_list(told)}, not as {_list(story.ends)}")
    if ledger.refusals:
        found.append(f"the server refused {ledger.refusals} calls as too many")
    if ledger.conflicts:
        found.append(f"the server saw {ledger.conflicts} calls while another of that user was under way")
    if ledger.busiest_window() > limit.calls:
        found.append(f"{ledger.busiest_window()} calls came in {limit.per:g} s")
    return found


def _list(counts: Counter[OutcomeStatus]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
