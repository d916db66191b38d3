"""Reference and engine trained on the same numbers, and whether their trajectories differ."""
