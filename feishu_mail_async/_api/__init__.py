"""Wire rules: the requests to the API, and the meaning of its answers.

Pure: no clock, no event loop, no I/O. A `Reply` (one HTTP answer) goes in, a `Judgement` comes out:

    Reply --judge--> code in the body? -- yes --> row of `codes.CODES` --> verdict, subject, conclusive,
                          |                           how long and how far; a pause is in the headers
                          | no
                          +-- 429 --------------> the gateway limits the app: FrequencyLimited
                          +-- 301, 308, 404, ...> not the API's address: Misconfigured
                          `-- anything else ----> in doubt: BadReply, retry

    no answer: `lost` (the call may have arrived: in doubt) or `never_left` (it provably did not)

The code decides and not the HTTP status, because a 429 alone means seven different things. An answer is never
taken for a success unless it says so: code 0 with `automation_send_disable` is a refusal.
"""
