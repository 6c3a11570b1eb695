"""What breaks under a ledger: no call without a record of the intent, nothing sent twice or held for good."""
