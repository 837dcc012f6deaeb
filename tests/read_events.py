#!/usr/bin/env python3
"""Whether TensorBoard's own package reads what the runtime library writes.

usage: read_events.py PROGRAM     PROGRAM FOLDER writes the events of a run that was taken up again at
step 20 (test_metrics does). Exit 77, which is "skipped", without the package tensorboard.
"""
import subprocess
import sys
import tempfile

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("the Python package tensorboard is not installed")
    sys.exit(77)

WANTED = {
    "training/loss": [(0, 7.0), (10, 6.5), (20, 3.0), (30, 2.5)],
    "lr": [(0, 0.0), (10, 0.125), (20, 0.25), (30, 0.375)],
}


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], folder], check=True)
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        found = {tag: [(value.step, value.value) for value in events.Scalars(tag)]
                 for tag in events.Tags()["scalars"]}
    if found != WANTED:
        sys.exit(f"wanted {WANTED}\nfound  {found}")


main()
