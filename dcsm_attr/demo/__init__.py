"""The demonstration: the whole method on generated scenes, offline."""
