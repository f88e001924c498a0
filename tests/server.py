"""
Runs scripts for the tests, each in a process of its own that has torch loaded already.

A script of the tests takes a second, importing torch takes two. So conftest.py starts this process
once. It imports torch, and then forks for each line of its standard input: a job in JSON, see run()
in conftest.py. It answers with the exit code of the script.
"""

import json
import os
import runpy
import signal
import sys
import traceback

import numpy  # noqa: F401
import scipy.stats  # noqa: F401
import torch
import torchvision  # noqa: F401
from torch.utils.benchmark import Timer

blocked_autorange = Timer.blocked_autorange


def short_autorange(timer, min_run_time):
    """The speed of a net, measured for 0.01 s: the tests do not read it."""
    return blocked_autorange(timer, min_run_time=0.01)


def redirect(fd, path):
    """The file descriptor is the file from now on."""
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)


def run_job(job):
    """What the interpreter does with `python args...` -> exit code."""
    # A script that hangs is ended, and its test fails.
    signal.alarm(300)
    redirect(0, os.devnull)
    redirect(1, job['out'])
    redirect(2, job['err'])
    os.chdir(job['cwd'])
    os.environ.update(job['env'])
    encoding = os.environ.get('PYTHONIOENCODING', 'utf-8')
    sys.stdin = open(0)
    sys.stdout = open(1, 'w', encoding=encoding, closefd=False)
    sys.argv = job['args']
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    try:
        runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main():
    torch.set_num_threads(1)
    Timer.blocked_autorange = short_autorange
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = run_job(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
    main()
