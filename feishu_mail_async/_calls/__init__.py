"""The life of one call from request to outcome, alone (`sending`) or in a run (`bulk`).

`retry` decides whether an attempt is repeated, and computes all delays. This package knows turns and answers. It
knows neither SQL nor aiohttp: the scheduler hides the ledger, and the transport returns every result of an
exchange as a value.

Theory of operation
===================

    request -> record -> token -> turn -> attempt -> verdict -> outcome
                                   ^                    |
                                   `------ retry -------'

    request   `Sender.sending` and `Sender.asking` make a `Call`: method, path, key, user, draft.
    record    With a ledger, the draft's record is read first. On record as sent: done, without a call. In doubt:
              the job begins in doubt, so that it cannot end as "certainly not sent".
    token     `Sender.prepare` waits for the user's token BEFORE a turn is requested.
    turn      A `Job` submits a `Waiter` to the scheduler, and is called back: granted, refused or recorded.
    attempt   One HTTP exchange inside that turn.
    verdict   `_api.protocol.judge` says what the answer means; `Scheduler.settle` gets it, returns the permit and
              the locks, and decides who waits and who is suspended.
    outcome   `Job._end` records it, publishes DraftDone, and notifies the listeners.

A job and its listeners. A `Job` is a call on its way; a `Listener` wants its outcome: a caller of `send_draft`, or
an entry of a run. The same draft submitted twice is one job with two listeners. A job without a listener that
wants calls makes no further call.

The states of a job are not stored in one variable; these are the combinations that occur.

                     lease too old
                  .------------------.
                  v                  |
    start --> QUEUED --granted--> GRANTED --exchange--> IN_FLIGHT --settled--> DONE
                  ^                                         |
                  |                                         | worth a retry
                  `--next turn-- BACKING_OFF <--------------'

    And to DONE directly: from QUEUED (refused, on record as sent, stopped), from GRANTED (not wanted any more, no
    token), from BACKING_OFF (no other token, stopped). IN_FLIGHT ends in DONE when the retries are used up, too.

    QUEUED       The scheduler holds the waiter. At first there is no task and `_granted` is None; a later turn,
                 and the first one of a job that is alone, is awaited by the task in the future `_granted`.
    GRANTED      The job owns a turn: a permit, the user's lock and the mailbox's lock. Nothing is awaited here but
                 the task's own first step.
    IN_FLIGHT    `_in_flight` is true: from the request until the turn is settled, and with a ledger until the
                 result is on record. Cancelling callers does not reach it.
    BACKING_OFF  The task sleeps (a failure of the draft's own), or waits for a new token (`_renew`). It owns no
                 turn. After a refusal on account of the user or the app it does not sleep: it queues at once, and
                 the scheduler keeps it until they may go on.
    DONE         `_waiter` is None; `success` or `error` is set; the listeners have been notified and let go.

What may never happen
---------------------
* An exchange outside a turn, or two exchanges in one turn: the rate limit rests on it.
* A turn that is neither settled nor given back: its permit and its locks would be lost until the process ends or
  its lease lapses.
* Waiting for a token, a ledger or a consumer with a turn in hand: it would waste the window for all others.
* An error that says "not sent" after an attempt that may have sent the mail. `Tries.conclusive` remembers;
  `_final` turns every later error into an OutcomeUnknown.
* A job that ends twice or never, or a listener that is not notified. Hence `_end` is reached from every way out of
  `_run`, an internal error included, and a subscriber's exception cannot get in its way.
* An exchange that is cancelled because a caller was: without its answer, the draft would be in doubt. Only `close`
  cancels exchanges, after its time-out.

Reasons why it is not simpler
-----------------------------
* Waiters have no task. A hundred thousand of them would cost a task and a stack each; a job is one object with
  slots, and the task begins with the first turn. `Job` therefore has callbacks for the scheduler, beside a
  coroutine.
* Listeners, and not one future a job: they come and go while the call is under way, and each has a draft of its
  own with its own tag, and its own copy of the error.
* The first attempt runs outside of tenacity's loop, which costs more than all else: most calls need no second one.
* Stopping is a flag and not a cancellation, because a call in flight has to be finished and still counts.
"""
