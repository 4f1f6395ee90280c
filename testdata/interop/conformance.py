"""The rules of RFC 6120, RFC 6121 and the extensions that the server offers, checked as a stranger would.

Users are spread over all nodes: what depends on where people are is checked with
everybody on one node, and with homes and connections on different ones.

    conformance.py run/cluster.json [--only part of a scenario's name] [--verbose]
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import conformance_admin  # noqa: F401: registers its scenarios
import conformance_im  # noqa: F401
import conformance_roster  # noqa: F401
import conformance_services  # noqa: F401
import conformance_sessions  # noqa: F401
import conformance_streams  # noqa: F401
from cluster import Cluster
from conformance_case import SCENARIOS, Record, World, play

USERS_PER_SCENARIO = 5


async def check(cluster, only, verbose):
    began = time.monotonic()
    world, record = World(cluster), Record(verbose)
    async with world.operator.setting("c2s.unlimited_networks", "127.0.0.0/8"):
        try:
            await world.populate(USERS_PER_SCENARIO * len(SCENARIOS))
            await play(world, record, only)
        finally:
            await world.clear()
    print(f"\nwithin {time.monotonic() - began:.0f} s")
    print(f"{record.passed} passed, {record.failed} failed", flush=True)
    return 0 if record.passed and not record.failed else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cluster")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    cluster = Cluster(options.cluster, Path(__file__).resolve().parents[2])
    sys.exit(asyncio.run(check(cluster, options.only, options.verbose)))


if __name__ == "__main__":
    main()
