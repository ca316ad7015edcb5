"""``python -m dcsm_attr`` is the command line."""

from dcsm_attr.cli import main

if __name__ == "__main__":
    main()
