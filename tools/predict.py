"""`python tools/predict.py ...` is `visionllm ask ...`; see `--help`."""

import sys

from visionllm.cli import main

if __name__ == "__main__":
    main(["ask", *sys.argv[1:]])
