"""The inputs of a step: noise, codes and real images."""
