"""`python bench`: the same as `make bench`; `--help` lists what can be chosen."""

import sys

from run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
