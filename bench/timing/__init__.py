"""How things are timed on noisy machines, what the machines could do, and what is kept of it."""
