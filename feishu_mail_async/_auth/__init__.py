"""The source of users' access tokens: fetching, caching, refreshing and storing them, with one request at a time.

Theory of operation
===================

    Intake --ready, current, renew--> Tokens --token, refused--> TokenSource --lease, load, save--> TokenStore

    Tokens       (`tokens`) one interface for every kind of source that a client accepts (`sources`), and a cache
    TokenSource  the caller's own, or `RefreshingTokens` (`refresh`), which asks the token endpoint (`endpoint`)
                 and keeps new tokens until a store has them (`saving`)
    TokenStore   (`store`) `MemoryTokens`, or a ledger's

A client accepts a string, a mapping, a callable or a `TokenSource`. Of `Tokens`, `ready` may wait and is awaited
before a turn is requested; `current` never waits and is called inside the turn; `renew` follows a refusal by the
server. A call holds its user's `Account`, and with it the token: the tokens of users who wait are never forgotten,
however many there are, and of the others only the latest are kept.

Single flight, three times
--------------------------
Within a client (`Tokens`) there is one fetch for each user at a time, within a process (`RefreshingTokens`) one
refresh, both by a `SingleFlight` (`flight`): all who need the token wait for the same task. They wait behind a
shield: cancelling one waiter does not cancel the fetch. A fetch that was under way when a token was refused may
have been requested before the refusal: its result counts only if it is another token than the refused one.

Between processes: a lease in the store.

    find --> load --> good enough? ------------------------------> return it
              ^          | no
              |          +-- no refresh token, or no app secret --> last resort
              |          |
              |          +-- lease taken by another process: wait 0.2 s, look again
              |          v
              |        lease --> load again --> good? release, look again
              |                      | no
              |                   POST to the token endpoint (up to 3 tries)
              |                      |
              |     +----------------+------------------+
              |  granted       refused for good     refused for now
              |     |                |                  |
              |   save under     save without       release the lease
              |   the lease      refresh token          |
              |     |                |                  |
              |   return it          `--> last resort <-'
              |     | the lease has lapsed and others were saved
              `-----'

    Last resort: a token that cannot be refreshed serves as long as it lives; after that LoginRequired or NotSent.

What may never happen
---------------------
* A refresh token used twice. It works once: the answer brings the next one, and a second use ends the login for
  all. So a process takes the lease, and looks again whether another has refreshed before it does so itself.
* New tokens handed out, or dropped, before they are saved: no other copy of them exists, and the old ones are
  dead. The save cannot be cancelled (`finish`); if the store fails it is repeated, by the next caller, by a timer
  and by `close`.
* A permit held while a token is fetched: hence `ready` and `current`.
* A token in a repr, a message, a log or a traceback's frames: hence `Hidden` and `forget_frames`.
* A transaction of the store that is open while the server is asked.

Reasons why it is not simpler
-----------------------------
* A lock within the process is not enough: several processes share one login. A transaction held open during the
  request would block the database for as long as the server takes. A lease does not, and lapses if its holder
  dies.
* A lease may lapse while its holder still lives (a sleeping laptop). So saving names the lease, and a holder that
  comes too late keeps its tokens only if no newer ones were saved since.
* A token is refreshed ahead of its expiry, since a draft may wait for hours: a refusal would cost a turn of the
  limit.
"""
