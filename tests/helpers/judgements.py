"""Judgements on answers, for a scheduler that no server answers."""

from typing import Final

from feishu_mail_async._api.base_url import FEISHU
from feishu_mail_async._api.endpoints import SEND
from feishu_mail_async._api.protocol import CallEnd, Judgement, Reply, judge
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError

ERROR: Final = FeishuMailError("refused")


def fatal(scope: Subject, until: ResumeWhen | None) -> Judgement:
    return Judgement(Verdict.FATAL, subject=scope, until=until, error=ERROR)


def throttled(scope: Subject, pause: float | None = None, end: CallEnd = CallEnd.ANSWERED) -> Judgement:
    return Judgement(Verdict.RETRY, end, subject=scope, pause=pause, error=ERROR)


SENT: Final = Judgement(Verdict.DONE)


def judge_send(reply: Reply, token: str | None = None, base_url: str = FEISHU) -> Judgement:
    """The judgement on the answer to a send, no earlier attempt of which is in doubt."""
    return judge(reply, SEND, token, base_url)
