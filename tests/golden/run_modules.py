"""Runs jobs as ``python -m MODULE`` or ``python SCRIPT`` would, in one process to save its start.

``python run_modules.py JOBS.json``: a list of {argv, env}; the first word of argv is a module, or a
script that ends in .py. What each printed and its exit code are written beside it as done.json.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", ".*found in sys.modules after import of package", RuntimeWarning)


def run(argv: list[str], env: dict[str, str]) -> dict:
    """Exit code and printed text of one job."""
    sys.argv, printed, code = list(argv), io.StringIO(), 0
    os.environ.update(env)
    start = runpy.run_path if argv[0].endswith(".py") else runpy.run_module
    extra = {} if start is runpy.run_path else {"alter_sys": True}
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            start(argv[0], run_name="__main__", **extra)
        except SystemExit as e:
            code = e.code
    return {"code": code, "printed": printed.getvalue()}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    done = [run(job["argv"], job.get("env", {})) for job in json.loads(file.read_text())]
    file.with_name("done.json").write_text(json.dumps(done))
