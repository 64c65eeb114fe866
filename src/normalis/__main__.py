"""``python -m normalis``: the command line."""

from normalis.cli import main

if __name__ == "__main__":
    main()
