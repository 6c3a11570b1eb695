"""Real processes and threads: kill -9, crowds, forks, the fleet, refreshes, signals, stops."""
