"""How good the result is."""
