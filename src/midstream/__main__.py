"""`python -m midstream` is `midstream`."""

from midstream.cli import main

if __name__ == "__main__":
    main()
