import os
import secrets
import sys
import tempfile

from slos.serving.guard import guard

if __name__ == "__main__":
    os.environ.setdefault("RAY_TMPDIR", tempfile.gettempdir())  # Ray keeps its logs
    guard(grace=8.0)

if not os.environ.get("RAY_ADDRESS"):
    # Ray of this machine alone binds loopback, as on Windows, by what it reads when it is imported.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # No setting binds the gRPC server of a Ray Serve replica; so it requires a token.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

from slos.fleet.gateway import main

if __name__ == "__main__":
    sys.exit(main())
