"""The scene of the demo: users, drafts, scripted faults, and the outcome that each draft must have."""

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from feishu_mail_async.model import Draft, OutcomeStatus, RateLimit
from feishu_mail_async.outcomes import Outcome
from feishu_mail_async.sandbox import CallLog, Fault, Sandbox

__all__ = ["FEWEST", "Scene", "mistakes", "set_scene"]

FEWEST: Final = 20
"""The number of drafts that the demo needs for all its stories."""

_SENT, _ALREADY, _FAILED = OutcomeStatus.SENT, OutcomeStatus.ALREADY_SENT, OutcomeStatus.FAILED
_UNKNOWN, _SKIPPED = OutcomeStatus.UNKNOWN, OutcomeStatus.SKIPPED

_WORKING: Final = ("alice", "bob", "carol")
_NEWS: Final = "news@example.com"
_QUOTA: Final = 2


@dataclass(frozen=True, slots=True)
class Story:
    """A scripted event and its drafts.

    Attributes:
        what: the event, in a few words.
        drafts: the drafts that it happens to.
        ends: the number of these drafts that must have each status.
    """

    what: str
    drafts: tuple[Draft, ...]
    ends: Counter[OutcomeStatus]


@dataclass(slots=True)
class Scene:
    """The drafts and stories of the demo.

    Attributes:
        drafts: the drafts, in the order in which the client gets them.
        stories: the stories; every draft is in exactly one.
    """

    drafts: list[Draft] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)

    def tell(self, what: str, drafts: Iterable[Draft], *ends: OutcomeStatus) -> None:
        """Add a story.

        Args:
            what: the event, in a few words.
            drafts: its drafts.
            *ends: the status of all of them, or one status for each draft in any order.
        """
        told = tuple(drafts)
        self.drafts += told
        self.stories.append(Story(what, told, Counter(ends if len(ends) == len(told) else ends * len(told))))


def set_scene(sandbox: Sandbox, count: int, *, seed: int, attempts: int, pause: int) -> Scene:
    """Add users and drafts to the sandbox, script the faults, and return the scene with the outcomes to expect.

    Args:
        sandbox: an empty sandbox.
        count: the number of drafts, at least `FEWEST`.
        seed: the seed of the assignment of stories, and of the order.
        attempts: the number of calls after which the client gives a failing draft up.
        pause: the pause that the server demands in one of the faults, in seconds.
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
    # Placed late, so that a viewer sees the limit itself at work before the scripted pause.
    scene.drafts.remove(disturbed)
    scene.drafts.insert(count * 3 // 4, disturbed)
    return scene


def mistakes(
    scene: Scene, outcomes: Iterable[Outcome], ledger: CallLog, limit: RateLimit, *, whole: bool
) -> list[str]:
    """Return a sentence for each deviation of the client's outcomes from the sandbox's own record and the scene.

    Args:
        scene: the scene, with the expected outcomes.
        outcomes: the outcomes that the client reported.
        ledger: the sandbox's call log.
        limit: the rate limit that the client had to keep.
        whole: True if the run was not stopped, so that every story must be complete.
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
