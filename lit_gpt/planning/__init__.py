"""Hardware facts: peak speeds of accelerators, and a report on this machine."""
