import sys

from slos.fleet.gateway import main

if __name__ == "__main__":
    sys.exit(main())
