import sys

from slos.replay.replay import main

if __name__ == "__main__":
    sys.exit(main())
