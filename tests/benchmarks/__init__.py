"""How fast traind is beside what the machine itself can do: figures, never a pass or a fail."""
