"""Adam for all parameters of a network in one launch."""
