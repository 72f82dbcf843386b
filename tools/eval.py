"""`python tools/eval.py ...` is `visionllm eval ...`; see `--help`."""

import sys

from visionllm.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
