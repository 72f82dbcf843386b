"""`python tools/new_decoder.py ...` is `visionllm new-decoder ...`; see `--help`."""

import sys

from visionllm.cli import main

if __name__ == "__main__":
    main(["new-decoder", *sys.argv[1:]])
