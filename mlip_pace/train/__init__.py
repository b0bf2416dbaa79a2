"""The fit."""
