"""Scheduling: permits, pauses, suspensions, locks, and the order of the waiters. It knows nothing of HTTP.

Time is passed in, and only `scheduler` awaits. Each module opens with its theory of operation:

    scheduler     when the next call of an endpoint may go, and which: the dispatcher, and the ends of turns
    lanes         the waiters and their locks: the choice of the next one (`sweeps`: ending many of them)
    state         the rules of one endpoint: its budget of permits (`budget`), pauses, and the judgement on a call
    suspensions   the subjects of an app for which no call is attempted
    store         the port to where all that is kept: in memory (`memory`, `process`) or in a ledger (`record`)
"""
