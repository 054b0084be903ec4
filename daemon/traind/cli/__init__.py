"""The command line: a client of the API like any other, quick to start."""
