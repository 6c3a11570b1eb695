"""The life of one call from request to outcome, alone or in a run. It knows turns and answers, no SQL, no aiohttp.

    caller     a single caller that waits            bulk, backlog   a run: its input, its drafts and outcomes
    entry      a party that wants a call made        preparing       what a scheduled send has to know before
    intake     from a wish to a job                  job             a call on its way: the states below
    attempts   an attempt that did not succeed       retry           whether to repeat it, and all delays
    progress   what has become of a call so far      endings         the errors with which it may end
    reporting  its events                            context, call   what passes between these

The scheduler hides the ledger, and the transport returns every result of an exchange as a value.

Theory of operation
===================

    request -> record -> token -> turn -> attempt -> verdict -> outcome
                                   ^                    |
                                   `------ retry -------'

    request   A `Call`: method, path, key, account, draft. Whoever wants it is an `Entry`.
    record    With a ledger, the draft's record is read first. On record as sent: done, without a call. In doubt:
              the job begins in doubt, so that it cannot end as "certainly not sent".
    prepare   A scheduled send only: its draft is read, for the id of the mail that it will be.
    token     The intake waits for the user's token BEFORE a turn is requested.
    turn      A `Job` submits a `Waiter` to the scheduler, and is called back: granted, refused or recorded.
    attempt   One HTTP exchange inside that turn, in a task.
    verdict   `_api.protocol.judge` says what the answer means; `Scheduler.settle` gets it, returns the permit and
              the locks, and decides who waits and who is suspended.
    outcome   `Job._end` records it, publishes DraftDone, and notifies the listeners.

A job and its listeners. A `Job` is a call on its way; a `Listener` wants its outcome: a caller of `send_draft`, or
an entry of a run. The same draft submitted twice is one job with two listeners. A job without a listener that
wants calls makes no further call.

The states of a job (`job.State`), and what it owns in each:

    begin --> QUEUED --granted--> GRANTED --may go--> IN_FLIGHT --settled--> DONE
                 ^                   |                    |
                 |                   | lease too old      | worth a retry
                 +-------------------+--- BACKING_OFF <---+

    And to DONE directly: from QUEUED (refused, on record as sent, stopped), from GRANTED (not wanted any more),
    from BACKING_OFF (no other token, stopped). IN_FLIGHT ends in DONE when the retries are used up, too.

    QUEUED       a waiter, which the scheduler holds
    GRANTED      a turn (a permit, the user's lock and the mailbox's lock) and a task that has not taken its first
                 step: there it asks whether the call may still be made, and from then on it may have arrived
    IN_FLIGHT    the turn and the task of the exchange; then, with a ledger, the write of the result. Cancelling
                 callers does not reach it
    BACKING_OFF  a timer (a failure of the draft's own, or at once if the user or the app has to wait: then the
                 scheduler keeps it), or a task that fetches another token. No turn
    DONE         `success` or `error`; the listeners have been notified and let go

What may never happen
---------------------
* An exchange outside a turn, or two exchanges in one turn: the rate limit rests on it.
* A turn that is neither settled nor given back: its permit and its locks would be lost until the process ends or
  its lease lapses.
* Waiting for a token, a ledger or a consumer with a turn in hand: it would waste the window for all others.
* An error that says "not sent" after an attempt that may have sent the mail. `Tries.conclusive` remembers;
  `Progress.final` turns every later error into an OutcomeUnknown.
* A job that ends twice or never, or a listener that is not notified. Hence every step that is called back ends the
  job if it fails, an internal error included, and a subscriber's exception cannot get in its way.
* An exchange that is cancelled because a caller was: without its answer, the draft would be in doubt. Only `close`
  cancels exchanges, after its time-out.

Reasons why it is not simpler
-----------------------------
* A job has no task but for its exchange. A hundred thousand waiting drafts would cost a task and a stack each; a
  job is one object with slots that is called back.
* Listeners, and not one future a job: they come and go while the call is under way, and each has a draft of its
  own with its own tag, and its own copy of the error.
* Stopping is a flag and not a cancellation, because a call in flight has to be finished and still counts.
"""
