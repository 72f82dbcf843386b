"""Seconds of whole processes: import, help, loading. python tools/bench/startup.py

Each command runs in a process of its own, in turn, five times; minimum and median are printed. Loading is measured
inside the process, imports excluded.
"""

import os
import statistics
import subprocess
import sys
import time

ROUNDS = 5
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import visionllm": [sys.executable, "-c", "import visionllm"],
    "visionllm --help": [sys.executable, "-c", "from visionllm.cli import main; main(['--help'])"],
}
LOAD = (
    "from visionllm import VisionLLM; import torch, time, transformers\n"
    "import visionllm.model\n"
    "t = time.perf_counter(); VisionLLM.from_pretrained(); print(time.perf_counter() - t)"
)


def main() -> None:
    print(f"threads {os.environ.get('OMP_NUM_THREADS', os.cpu_count())}, load {os.getloadavg()[0]:.2f}")
    seconds: dict[str, list[float]] = {name: [] for name in [*COMMANDS, "load the embedded model"]}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
        done = subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, text=True)
        seconds["load the embedded model"].append(float(done.stdout.split()[-1]))
    for name, values in seconds.items():
        print(f"{name:26} min {min(values):6.3f} s   median {statistics.median(values):6.3f} s")


if __name__ == "__main__":
    main()
