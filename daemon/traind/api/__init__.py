"""The HTTP API: desired state in, the truth out."""
