"""How fast the parts of the package are, beside what a user would pick instead and beside what the machine can do."""
