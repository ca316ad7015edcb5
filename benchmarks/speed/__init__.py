"""Speed and memory of the package, compared with other libraries, plain PyTorch and lower bounds of the machine."""
