"""Weakly supervised semantic segmentation: AffinityNet, FickleNet, seeds, SEC and DSRG."""
