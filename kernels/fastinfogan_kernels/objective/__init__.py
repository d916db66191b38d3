"""The heads' losses: log-likelihood of the codes, D's losses, and metrics."""
