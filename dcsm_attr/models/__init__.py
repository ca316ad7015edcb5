"""CNNs, fully convolutional networks, and their files."""
