"""Where a potential may not hold: structures unlike the data, made to find holes in it."""
