"""A loop in a process that stands ready, and no library: what standing ready buys by itself."""
