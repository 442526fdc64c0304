"""From any target to a call: what it is, how it is called, and where it runs."""
