"""Run the command line with ``python -m currents_ingest``."""

from currents_ingest.cli import main

if __name__ == "__main__":
    main()
