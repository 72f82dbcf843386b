"""Seconds of whole processes: import, help, loading. python tools/bench/startup.py

Each command runs in a process of its own, in turn, five times; minimum and median are printed. Loading is measured
inside the process, imports excluded. The import is timed beside twenty installed plugins too, each of which would take
a second to load: they are not.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGINS = 20
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
    crowded = f"import, {PLUGINS} plugins"
    seconds: dict[str, list[float]] = {name: [] for name in [*COMMANDS, crowded, "load the embedded model"]}
    folder = tempfile.TemporaryDirectory()
    site = install(Path(folder.name))
    for _ in range(ROUNDS):
        started = time.perf_counter()
        subprocess.run(COMMANDS["import visionllm"], check=True, env=site)
        seconds[crowded].append(time.perf_counter() - started)
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
        done = subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, text=True)
        seconds["load the embedded model"].append(float(done.stdout.split()[-1]))
    for name, values in seconds.items():
        print(f"{name:26} min {min(values):6.3f} s   median {statistics.median(values):6.3f} s")
    more = min(seconds[crowded]) - min(seconds["import visionllm"])
    print(f"each plugin adds {1000 * more / PLUGINS:.2f} ms to the import (minima)")
    folder.cleanup()


def install(folder: Path) -> dict[str, str]:
    """The environment of a process that finds plugins which are slow to load."""
    for number in range(PLUGINS):
        name = f"slow_plugin_{number}"
        (folder / f"{name}.py").write_text("import time\ntime.sleep(1)\n", encoding="utf-8")
        meta = folder / f"{name}-1.0.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (meta / "entry_points.txt").write_text(f"[visionllm.decoders]\n{name} = {name}\n", encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


if __name__ == "__main__":
    main()
