"""AffinityNet (Ahn and Kwak, CVPR 2018): affinities between neighbouring positions, learned from class maps."""
