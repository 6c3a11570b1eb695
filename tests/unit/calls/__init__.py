"""One call from request to outcome, alone or in a run."""
