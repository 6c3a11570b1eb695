"""What a ledger promises, on every store; then what only a database has."""
