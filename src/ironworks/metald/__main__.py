"""`python -m ironworks.metald`: run metald."""

from ironworks.metald.service import NAME, compose
from ironworks.metald.settings import MetaldSettings
from ironworks.runtime.service import main

if __name__ == "__main__":
    main(NAME, MetaldSettings, compose)
