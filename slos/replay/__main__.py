import sys

from slos.replay.command import main

if __name__ == "__main__":
    sys.exit(main())
