"""The only SQL of traind: one thread, one connection, one door for state."""
