"""`python tools/score.py ...` is `visionllm score ...`; see `--help`."""

import sys

from visionllm.cli import main

if __name__ == "__main__":
    main(["score", *sys.argv[1:]])
