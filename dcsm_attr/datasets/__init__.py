"""Pictures with labels: generated scenes."""
