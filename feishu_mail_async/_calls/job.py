"""A call on its way: its states, its listeners, and its end. The states are drawn in `_calls/__init__`.

A job is no task, and has none while it waits: it is called back by the scheduler with a turn, by the exchange with
its answer, by a timer. Each of them moves it from one state to the next.

A job has listeners, and not one future: they come and go while the call is under way, and each has a draft of its
own with its own tag, and its own copy of the error. Stopping is a flag and not a cancellation, because a call in
flight has to be finished and still counts.
"""

import asyncio
import functools
from typing import Final

from feishu_mail_async._api.protocol import CallEnd, Judgement, Reply, judge
from feishu_mail_async._hub import log_takes_infos
from feishu_mail_async._scheduling.record import Record
from feishu_mail_async._scheduling.waiters import Turn, Waiter
from feishu_mail_async._secrecy import Hidden, forget_frames, note_frames
from feishu_mail_async._tasks import look_at, start_task
from feishu_mail_async._transport import NOT_MADE, Failure
from feishu_mail_async.codes import ResumeWhen
from feishu_mail_async.errors import (
    ClientClosed,
    FeishuMailError,
    Misconfigured,
    OutcomeUnknown,
    RecordRefused,
)
from feishu_mail_async.events import AttemptStarted, DraftQueued, Event, TurnGranted

from .attempts import may_repeat, missed, on_record, renew, unanswered
from .context import JobContext, Listener
from .endings import given_up
from .guard import ends_if_it_fails
from .progress import Progress, State
from .reporting import About, attempt_ended, done, numbers, retry_planned
from .retry import Repetition

__all__ = ["Job"]

_BROKEN_OFF: Final = Failure(CallEnd.LOST, "the call was broken off")
"""The end of a call whose task was cancelled before an answer was there: it may have arrived."""


class Job(Progress):
    """A call on its way.

    Args:
        home: what it needs of its client.
        listener: the first party that wants it, with what it has submitted.

    Attributes:
        listeners: the parties that wait for its end.
    """

    __slots__ = (
        "_about",
        "_asked",
        "_before_retry",
        "_called",
        "_context",
        "_ended",
        "_home",
        "_reason",
        "_repetition",
        "_stopping",
        "_waiter",
        "listeners",
    )

    def __init__(self, home: JobContext, listener: Listener) -> None:
        call = listener.call
        super().__init__(call, home.time())
        self._home = home
        self._waiter = Waiter(
            call.key.user,
            call.key.mailbox,
            listener.priority,
            self,
            outage=home.outage,
            stream=listener.stream,
            draft_id=None if call.draft is None else call.draft.draft_id,
            schedule=call.schedule,
            timeout=home.transport.attempt_timeout,
        )
        self._about = About(next(numbers), home.endpoint.name, call.key.user, call.draft)
        self._context = listener.context.copy()
        self._stopping = False
        self._reason = "it was stopped"
        self._asked: float | None = None  # since when it waits for a turn
        self._called = 0.0  # when its last call was made
        self._before_retry: asyncio.TimerHandle | asyncio.Task[FeishuMailError | None] | None = None
        self._repetition: Repetition | None = None
        self._ended: asyncio.Future[None] | None = None
        self.listeners: list[Listener] = [listener]

    # -- the listeners' side ---------------------------------------------------------------------------

    def join(self, listener: Listener) -> None:
        """Add a listener; a more urgent one makes the call more urgent."""
        self._home.scheduler.move(self._waiter, listener.priority, listener.stream)
        self.listeners.append(listener)
        self._stopping = False  # it may have lost its last listener while in flight, and is wanted again

    def leave(self, listener: Listener, reason: str = "its run was left") -> None:
        """Remove a listener, before the end or after it; `reason` says why, if it is the last one."""
        if listener in self.listeners:
            self.listeners.remove(listener)
            self._reason = reason
            self.reconsider()

    def reconsider(self) -> None:
        """Stop if no listener wants further calls: a waiting job is given up, and a call in flight is the last."""
        if not any(listener.wants_calls for listener in self.listeners):
            self.stop()

    def stop(self) -> None:
        """Make no further call; one in flight is finished, and settles the outcome if it can."""
        self._stopping = True
        if self.state is State.GRANTED:
            self._forget()  # its call will not be made: the same draft submitted now must start a job of its own
        elif self.state in {State.QUEUED, State.BACKING_OFF}:
            self._end(None, self._stopped())

    def give_up(self, error: FeishuMailError) -> None:
        """End with this error if it waits for a turn."""
        if self.state is not State.DONE:
            self._home.scheduler.refuse(self._waiter, error)

    def condemned(self) -> bool:
        """Return whether an error was about to end the job and has ended it now: it cannot be joined any more."""
        return self._home.scheduler.refuse_condemned(self._waiter)

    def end(self) -> asyncio.Future[None]:
        """Return a future for the end of a job that is not done."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    # -- the scheduler's side --------------------------------------------------------------------------

    def begin(self) -> None:
        """Queue for the first turn."""
        self._home.jobs[self.call.key] = self
        if self.call.draft is not None and self._reported():
            self._tell(DraftQueued(self.began, *self._about))
            self.reconsider()  # a subscriber may have stopped its run just now
        if not self._stopping:
            self._queue()

    def _queue(self) -> None:
        """Submit the waiter; unless it is cancelled, `granted`, `refused` or `recorded` is called once."""
        self.state = State.QUEUED
        self._before_retry = None
        self._asked = self._home.time()
        self._home.scheduler.submit(self._waiter)

    def granted(self, turn: Turn) -> None:
        """Make the call of this turn, in a task."""
        home, call = self._home, self.call
        waited, reported = self._waited_enough(), self._reported()
        if turn.permit.in_doubt:
            self.tries.conclusive = False
        self.state = State.GRANTED
        try:
            token = home.tokens.current(call.account)
            may_go = functools.partial(self._may_go, turn)
            exchange = home.transport.exchange(call.endpoint.method, call.path, token, call.body, may_go=may_go)
            task = start_task(exchange, "feishu-mail-call", context=self._context)
        except BaseException as error:
            home.scheduler.give_back(turn)
            self.break_off(error)
            if isinstance(error, FeishuMailError):
                return
            raise
        task.add_done_callback(functools.partial(self._answered, turn, token), context=self._context)
        home.tasks.add(task)
        if reported:
            attempt, probe, priority = self.tries.calls + 1, turn.permit.probe, turn.waiter.priority
            self._tell(TurnGranted(home.time(), *self._about, attempt, waited, probe, priority))

    def refused(self, error: FeishuMailError) -> None:
        """End without a turn: the subject is suspended, or the server or the ledger cannot be reached."""
        self._end(None, self.final(error))

    def recorded(self, record: Record) -> None:
        """End without a call: the draft is on record as sent."""
        self._end(on_record(record), None)

    def _waited_enough(self) -> float:
        """Note that the wait for a turn is over; return its length in seconds."""
        waited, self._asked = 0.0 if self._asked is None else self._home.time() - self._asked, None
        self.waited += waited
        return waited

    # -- the call --------------------------------------------------------------------------------------

    def _may_go(self, turn: Turn) -> bool:
        """Return whether the call may be made, in the first step of its task; from then on it is in flight.

        Not if nobody wants it, nor if the process has stood still (a suspended laptop, SIGSTOP): the lease in the
        ledger may end before the call does, and another process would make a call for the same user.
        """
        home, reported, self._called = self._home, self._reported(), self._home.time()
        if not self._wanted():
            self.stop()
            return False
        if self._called > turn.permit.good_until or (self.call.schedule and missed(self.call, self._called)):
            return False
        self.state = State.IN_FLIGHT
        if reported:
            event = AttemptStarted(self._called, *self._about, self.tries.calls + 1, self.call.path)
            home.scheduler.events.publish(event)
        return True

    @ends_if_it_fails
    def _answered(self, turn: Turn, token: Hidden[str], task: "asyncio.Task[Reply | Failure]") -> None:
        """Settle the turn of a call that has ended, in whichever way."""
        home, reported = self._home, self._reported()
        home.tasks.discard(task)
        broken = None if task.cancelled() else task.exception()
        answer = _BROKEN_OFF if broken is not None or task.cancelled() else task.result()
        if answer is NOT_MADE:
            home.scheduler.give_back(turn)
            self._go_on()
            return
        if isinstance(answer, Reply):
            host, doubt = home.transport.base_url, not self.tries.conclusive
            judgement = judge(answer, home.endpoint, token.value, host, in_doubt=doubt)
        else:
            judgement = unanswered(home, answer)
        number, renewing = self.tries.calls + 1, judgement.until is ResumeWhen.TOKEN
        self.tries.count(judgement)
        try:
            if reported:
                event = attempt_ended(home.time(), self._about, number, self._called, judgement)
                home.scheduler.events.publish(event)
        finally:
            written = home.scheduler.settle(turn, judgement, home.delays, renewing=renewing)
        if broken is not None:
            self.break_off(broken)
            if isinstance(broken, KeyboardInterrupt | SystemExit):
                return  # the loop has raised it already
            raise broken
        if task.cancelled():
            self._end(None, self._stopped())
        elif written is None:
            self._settled(token, judgement)
        else:
            # The outcome is reported once it is on record. Shielded, because the permit and the locks have to come
            # back even if nobody waits for that any more, as when a client closes at once.
            on_record = asyncio.shield(written)
            home.tasks.add(on_record)
            done = functools.partial(self._on_record, token, judgement, written)
            on_record.add_done_callback(done, context=self._context)

    @ends_if_it_fails
    def _on_record(
        self, token: Hidden[str], judgement: Judgement, written: asyncio.Task[None], done: asyncio.Future[None]
    ) -> None:
        self._home.tasks.discard(done)
        failed = None if done.cancelled() else done.exception()
        end = failed if isinstance(failed, FeishuMailError) else None
        if done.cancelled() and not written.cancelled() and judgement.error is not None:
            end = self._stopped()
        if end is None:
            self._settled(token, judgement)
            return
        if judgement.until is ResumeWhen.TOKEN:
            self._home.scheduler.renewed(self.call.key.user)  # the user is held for a renewal that does not come
        self._end(None, self.final(end))

    def _settled(self, token: Hidden[str], judgement: Judgement) -> None:
        """End, or try again."""
        if judgement.error is None:
            self._end(judgement, None)
            return
        self.state = State.BACKING_OFF
        if judgement.until is ResumeWhen.TOKEN:
            work = renew(self._home, self.call, self.tries, token, judgement)
            renewal = self._before_retry = start_task(work, "feishu-mail-renew", context=self._context)
            renewal.add_done_callback(functools.partial(self._renewed, judgement), context=self._context)
            self._home.tasks.add(renewal)
        elif may_repeat(self._home, judgement):
            self._back_off(judgement)
        else:
            self._end(None, self.final(judgement.error))
            if isinstance(judgement.error, Misconfigured):
                self._home.end_waiting(judgement.error)

    @ends_if_it_fails
    def _renewed(self, judgement: Judgement, renewal: "asyncio.Task[FeishuMailError | None]") -> None:
        """Try again with another token, or end with the reason why there is none."""
        self._home.tasks.discard(renewal)
        if self.state is State.DONE:
            look_at(renewal)  # it was stopped meanwhile
        elif renewal.cancelled():
            self._end(None, self._stopped())
        elif (error := renewal.result()) is None:
            self._back_off(judgement)
        else:
            self._end(None, self.final(error))

    def _back_off(self, judgement: Judgement) -> None:
        """Wait as long as the policy says, and queue again; or end if it is used up."""
        home = self._home
        if not self._wanted():
            self._end(None, self._stopped())
            return
        self._repetition = self._repetition or Repetition(home.policy, self.tries)
        delay = self._repetition.after(judgement)
        if delay is None:
            self._end(None, self.final(judgement.failure()))
            return
        # Before the event: a subscriber may stop the job, and with it the timer.
        self._before_retry = asyncio.get_running_loop().call_later(delay, self._go_on, context=self._context)
        if self._reported():
            event = retry_planned(home.time(), self._about, self.tries.calls, delay, judgement)
            home.scheduler.events.publish(event)

    @ends_if_it_fails
    def _go_on(self) -> None:
        """Queue for another turn, if somebody wants it."""
        if not self._wanted():
            self._end(None, self._stopped())
        elif late := missed(self.call, self._home.time()):
            self._end(None, self.final(late))
        else:
            self._queue()

    def _wanted(self) -> bool:
        """Return whether further calls are to be made."""
        if self._stopping or self._home.closing:
            return False
        for listener in self.listeners:  # noqa: SIM110 - asked before each call: no generator for it
            if listener.wants_calls:
                return True
        return False

    # -- events ----------------------------------------------------------------------------------------

    def _reported(self) -> bool:
        """Return whether anybody listens; asked often, so without a detour by the hub."""
        return bool(self._home.scheduler.events.subscriptions) or log_takes_infos()

    def _tell(self, event: Event) -> None:
        """Publish an event from without the job's own context, in a copy: a context cannot be entered twice."""
        self._context.copy().run(self._home.scheduler.events.publish, event)

    # -- the end ---------------------------------------------------------------------------------------

    def _stopped(self) -> FeishuMailError:
        """Return the error of a job that was stopped."""
        home = self._home
        return self.final(given_up(home.endpoint, self._reason, closing=home.closing, conclusive=self.conclusive))

    def break_off(self, error: BaseException) -> None:
        """End with what a step has raised; a mistake of this package must not claim that nothing was sent."""
        if self.state is State.DONE:
            return
        if not isinstance(error, FeishuMailError):
            note_frames(error)
            cause, error = error, OutcomeUnknown(f"an internal error: {type(error).__name__}")
            error.__cause__ = cause
        self._end(None, self.final(error))

    def _end(self, success: Judgement | None, error: FeishuMailError | None) -> None:
        """End the job, once: record the outcome, publish it and notify the listeners."""
        home = self._home
        if self._waiter.lane is not None:
            home.scheduler.cancel(self._waiter)
        if self._before_retry is not None:
            self._before_retry.cancel()
        del self._waiter  # it holds the job, too: without this the two would stay until the garbage collector runs
        self._before_retry = None
        self.state = State.DONE
        self.success = success
        self.error = None if error is None else forget_frames(error)
        if self._asked is not None:
            self._waited_enough()
        try:
            if error and self.call.draft and not isinstance(error, ClientClosed | RecordRefused):
                # A draft that ended because its client was closed is left as the record has it: nothing new is
                # known. A refused record cannot be written at all.
                home.scheduler.store.note(self.call.key, error.status, error)
            self._forget()
            if self._reported():
                for event in done(home.time(), self._about, [one.call.draft for one in self.listeners], self):
                    self._tell(event)
        finally:  # even BaseExceptions of a subscriber must not leave the listeners waiting
            listeners, self.listeners = self.listeners, []
            for listener in listeners:
                listener.ended(self)
            if self._ended is not None and not self._ended.done():
                self._ended.set_result(None)

    def _forget(self) -> None:
        if self._home.jobs.get(self.call.key) is self:
            del self._home.jobs[self.call.key]
