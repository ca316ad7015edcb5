"""Ablations: the paper's tables on any trained classifier, and a comparison with other methods."""
