"""Segmentation networks trained from seeds: the losses of SEC (ECCV 2016) and DSRG (CVPR 2018)."""
