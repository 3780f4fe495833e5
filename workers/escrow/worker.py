"""`python -m workers.escrow.worker`: holds money for its protection period and releases it after."""

import sys

from workers.escrow.actors import declare_actors
from workers.process import run_worker

if __name__ == "__main__":
    sys.exit(run_worker("escrow", declare_actors))
