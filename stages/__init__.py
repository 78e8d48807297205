"""The stages of the pipeline, each a command: python -m stages.NAME."""

import signal
import sys


def _interrupted(*_) -> None:
    """Ctrl-C while the libraries are still being loaded, which takes seconds; later it is for vw2.console.run."""
    print("error: interrupted; run the same command again", file=sys.stderr)
    sys.exit(130)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # about to be run
    signal.signal(signal.SIGINT, _interrupted)
