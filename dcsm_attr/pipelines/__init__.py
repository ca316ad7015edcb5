"""Pseudo-labels of whole collections, on one machine or on many."""
