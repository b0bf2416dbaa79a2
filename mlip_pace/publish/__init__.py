"""The potential as users get it: its errors, its files, its predictions."""
