"""`python -m lke_lightning`."""

from lke_lightning.cli import main

if __name__ == "__main__":
    main()
