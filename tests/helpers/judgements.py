"""Judgements on answers, for a scheduler that no server answers."""

from typing import Final

from feishu_mail_async._api.protocol import CallEnd, Judgement
from feishu_mail_async.codes import ResumeWhen, Subject, Verdict
from feishu_mail_async.errors import FeishuMailError

ERROR: Final = FeishuMailError("refused")


def fatal(scope: Subject, until: ResumeWhen | None) -> Judgement:
    return Judgement(Verdict.FATAL, subject=scope, until=until, error=ERROR)


def throttled(scope: Subject, pause: float | None = None, end: CallEnd = CallEnd.ANSWERED) -> Judgement:
    return Judgement(Verdict.RETRY, end, subject=scope, pause=pause, error=ERROR)


SENT: Final = Judgement(Verdict.DONE)
