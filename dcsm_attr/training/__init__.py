"""Training from image-level labels."""
