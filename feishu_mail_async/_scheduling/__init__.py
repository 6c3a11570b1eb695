"""When a call may go: permits, pauses, suspensions, locks, and whose turn it is.

Time is handed in. Only `scheduler` awaits; what it decides rests on `state` (one app and endpoint), `budget` (its
permits) and `lanes` (who waits). `store` is the port that memory (`memory`, `process`) and a ledger fulfil.
"""
