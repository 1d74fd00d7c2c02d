"""`python -m edgepipe`."""

from edgepipe.cli import main

if __name__ == "__main__":
    main()
