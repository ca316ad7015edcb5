"""FickleNet (Lee et al., CVPR 2019): many maps of one class from hidden units that are chosen at random."""
