"""What is known of the GPUs, read in a process of its own."""
