"""What a potential says of crystals: numbers that a person knows by heart."""
