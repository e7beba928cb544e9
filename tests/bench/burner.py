#!/usr/bin/python3
"""Another program on the machine: takes a share of one core, in bursts, until SIGTERM; then prints the share that it got.

    burner.py CPU SHARE [PERIOD_MS]

It is pinned to that CPU and sleeps for the rest of each period (20 ms). What it is kept from in one period it takes in the
next, so that it gets its share however busy the core is."""

import os
import signal
import sys
import time


def main():
    share = float(sys.argv[2])
    period = (float(sys.argv[3]) if len(sys.argv) > 3 else 20) / 1000
    os.sched_setaffinity(0, {int(sys.argv[1])})
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    begun, taken = time.monotonic(), time.process_time()
    end = begun
    while not stop:
        end = max(end + period, time.monotonic())
        while not stop and time.process_time() - taken < share * (end - begun):
            pass
        time.sleep(max(0.0, end - time.monotonic()))
    print((time.process_time() - taken) / (time.monotonic() - begun))


if __name__ == "__main__":
    main()
