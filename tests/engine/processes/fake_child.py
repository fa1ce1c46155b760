"""A child that misbehaves on demand: `fake_child.py BEHAVIOUR [ARGUMENT]`. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the behaviour named on the command line."""
    behaviour, argument = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "grandchild":
        # It must end with its parent.
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(argument).write_text(str(grandchild.pid))
    if behaviour == "noise":
        sys.stdout.write("x" * 3_000_000 + "\n" + "\udcff" * 0)
        sys.stdout.flush()
        os.write(1, b"\xff\xfe broken \x00 \x1b[2J bytes\n" * 2000)
        os.write(1, b"no newline at the end")
        sys.exit(3)
    if behaviour == "flood":
        for number in range(10_000):
            sys.stdout.write(f"line {number} of a long text that fills the pipe if it is not read\n")
        print("last line", flush=True)
        sys.exit(int(argument))
    if behaviour == "escape":
        # It leaves the process group and keeps standard output open.
        escaped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        Path(argument).write_text(str(escaped.pid))
        os._exit(4)
    if behaviour == "exit":
        print("about to go", flush=True)
        sys.exit(int(argument))
    if behaviour == "kill":
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"running {os.getpid()}", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
