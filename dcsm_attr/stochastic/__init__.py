"""Stochastic hidden unit selection: a convolution that reads other units of each window each time, in three forms."""
