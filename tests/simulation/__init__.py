"""Client and sandbox on the virtual clock, one promise a file: limit, order, fairness, outage, faults, closing."""
