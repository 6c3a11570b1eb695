"""Where tokens come from, how they are renewed, and what is kept of them."""
