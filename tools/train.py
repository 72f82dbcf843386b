"""`python tools/train.py ...` is `visionllm train ...`; see `--help`."""

import sys

from visionllm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
