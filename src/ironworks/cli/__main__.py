"""`python -m ironworks.cli`."""

from ironworks.cli.main import main

main()
