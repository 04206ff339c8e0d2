"""`python -m hpc_ecg` is `hpc-ecg`: what srun starts, one process per GPU."""

import sys

from hpc_ecg.cli import main

if __name__ == "__main__":
    sys.exit(main())
