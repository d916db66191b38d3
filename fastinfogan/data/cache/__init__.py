"""DecodedBatch images, cached."""
