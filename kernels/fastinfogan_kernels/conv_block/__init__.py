"""Convolution, batch norm and activation as one trainable block."""
