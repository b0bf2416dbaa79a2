"""The machinery of a batch job, which knows nothing of atoms."""
