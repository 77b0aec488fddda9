"""What the tools say with --json, for scripts that measure."""
import json
import subprocess
import sys


def call(command):
    """The report of a tool that did what it was asked; ends the script where it did not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        sys.exit("%s: %s" % (" ".join(command), done.stderr))
    if done.returncode != 0 or report.get("error") is not None:
        sys.exit("%s: %s" % (" ".join(command), report.get("message") or done.stderr or report))
    return report
