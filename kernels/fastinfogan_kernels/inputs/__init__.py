"""What a step reads: codes, noise and real images."""
