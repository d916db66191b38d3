"""Cache of decoded images: in memory, or in a file that later runs map."""
