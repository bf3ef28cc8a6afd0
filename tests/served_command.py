"""`launch/recommend.py --serve` as a command, from its start to Ctrl-C."""

import os
import re
import signal
import urllib.request
from pathlib import Path

import launched

ROOT = Path(__file__).resolve().parents[1]


def answer(workdir, folder, question):
    """(page that answers the question, log, exit status); logs all that compiles."""
    program, log = folder / "program.py", folder / "log"
    program.write_text(f"""import runpy
import signal
from mmsrec_jax.runtime import compiling

compiling.LONG = 0.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background
runpy.run_path({str(ROOT / "launch/recommend.py")!r}, run_name="__main__")
""")
    arguments = [f"--workdir={workdir}", "--serve", "--port=0"]
    log.touch()
    process = launched.start(str(program), *arguments, log=log)
    try:
        while process.exitcode is None and "(Ctrl-C ends it)" not in log.read_text():
            process.join(0.2)
        (address,) = re.findall(r"open (http://127\.0\.0\.1:\d+/) ", log.read_text())
        with urllib.request.urlopen(address + question, timeout=60) as answer:
            text = answer.read().decode()
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    finally:
        process.kill()
    return text, log.read_text(), process.exitcode
