"""Scheduling: permits, pauses, suspensions, locks, and the order of the waiters. It knows nothing of HTTP.

Time is passed in, and only `scheduler` awaits. Each module opens with its theory of operation:

    scheduler     the ends of turns, on top of the dispatcher; `snapshot`: what is shown of it all
    dispatcher    when the next call of an endpoint may go, and which; who is refused (`sweeps`: many of them)
    lanes         the order of the waiters: the choice of the next one among `waiters`, by their locks (`alarms`)
    state         the rules of one endpoint: its `budget` of permits, spacing, pauses, and the judgement on a call
    suspensions   the subjects of an app for which no call is attempted
    notices       what has been told of pauses and suspensions
    store         the port to where all that is kept: in memory (`memory`, `process`) or in a ledger (`record`)
"""
