"""What bench/process.lua measures, with what python3 brings; prints ns.
Arguments: run (subprocess.run of /bin/true) | fork | spawn (multiprocessing:
until the child's first message), seconds."""

import multiprocessing
import subprocess
import sys
import time


def child(end):
    end.send(1)


def run():
    subprocess.run(["/bin/true"], check=True)
    return 0


def started(context):
    def batch():
        mine, its = context.Pipe()
        process = context.Process(target=child, args=(its,))
        process.start()
        its.close()
        assert mine.recv() == 1
        then = time.monotonic()
        process.join()
        mine.close()
        return time.monotonic() - then

    return batch


def main(work, seconds):
    seconds = float(seconds)
    batch = run if work == "run" else started(multiprocessing.get_context(work))
    now = time.monotonic
    begin = now()
    while True:
        batch()
        if now() - begin >= seconds / 10:
            break
    took = []
    begin = last = now()
    while len(took) < 3 or last - begin < seconds:
        aside = batch()
        at = now()
        took.append(at - last - aside)
        last = at
    print("%.1f" % (sorted(took)[len(took) // 2] * 1e9))


if __name__ == "__main__":
    main(*sys.argv[1:])
