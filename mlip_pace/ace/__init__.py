"""The atomic cluster expansion, and what is computed with it."""
