"""A foreign client reads the archive: pages, people, times, ids, metadata, preferences, and what waited for somebody offline.

    archive.py run/cluster.json

It needs two users. With several nodes the clients are on different ones.
"""

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import slixmpp
from checks import Checks, expect, until
from cluster import Cluster
from person import Person
from slixmpp.exceptions import IqError

MESSAGES = 130  # more than two pages of the default size


class Reader(Person):
    """A person whose client reads archives."""

    def __init__(self, *args):
        super().__init__(*args)
        for plugin in ("xep_0059", "xep_0313", "xep_0359", "xep_0441", "xep_0013"):
            self.register_plugin(plugin)

    async def page(self, **query):
        """One page as slixmpp has it: the results, and the answer that ends it."""
        answer = await self.plugin["xep_0313"].retrieve(iterator=False, timeout=10, **query)
        return answer["mam"]["results"], answer["mam_fin"]

    async def history(self, **query):
        """All results, page by page, as (id, body, stamp)."""
        found = []
        async for message in self.plugin["xep_0313"].iterate(**query):
            result = message["mam_result"]
            inside = result["forwarded"]["stanza"]
            found.append((result["id"], inside["body"], result["forwarded"]["delay"]["stamp"]))
        return found


async def arrived(cluster, number, node):
    person = Reader(cluster, cluster.users[number], f"reader-{time.monotonic_ns()}")
    await person.arrive(node)
    return person


async def written(a, bare, tag):
    for i in range(MESSAGES):
        a.send_message(mto=slixmpp.JID(bare), mbody=f"{tag} {i}", mtype="chat")
        await asyncio.sleep(0.001)


async def waited(b, tag):
    """Everything comes, once and in order, to whoever was away."""
    def got():
        return [body for _, body in b.inbox if body.startswith(tag)]

    await until(lambda: len(got()) >= MESSAGES, 20, "all that waited")
    await asyncio.sleep(0.3)  # for what should not come
    expect(got() == [f"{tag} {i}" for i in range(MESSAGES)], "what waited came out of order, or twice")
    return f"{MESSAGES} messages"


async def paged(person, other, tag):
    begun = time.monotonic()
    found = await person.history(with_jid=slixmpp.JID(other.bare), rsm={"max": 50})
    mine = [body for _, body, _ in found if body.startswith(tag)]
    expect(mine == [f"{tag} {i}" for i in range(MESSAGES)], f"{len(mine)} messages, of which the first is {mine[:1]}")
    ids = [ident for ident, _, _ in found]
    expect(len(set(ids)) == len(ids), "ids are not unique")
    return f"{len(found)} messages in {(time.monotonic() - begun) * 1000:.0f} ms"


async def backwards(person, other, tag):
    found = await person.history(with_jid=slixmpp.JID(other.bare), reverse=True, rsm={"max": 30}, total=60)
    bodies = [body for _, body, _ in found]
    expect(sorted(bodies, key=lambda b: int(b.split()[-1])) == [f"{tag} {i}" for i in range(MESSAGES - 60, MESSAGES)], f"got {bodies[:3]} … {bodies[-3:]}")


async def same_ids(one, two):
    """The ids are the same at every node, and not those that the other person has."""
    mine = [ident for ident, _, _ in await one.history(rsm={"max": 50}, total=50)]
    again = [ident for ident, _, _ in await two.history(rsm={"max": 50}, total=50)]
    expect(mine == again and mine, "the ids differ between nodes")


async def by_time(person, other, tag):
    found = await person.history(with_jid=slixmpp.JID(other.bare), rsm={"max": 100})
    marked = [entry for entry in found if entry[1].startswith(tag)]
    stamp = marked[-10][2]
    later = [body for _, body, _ in await person.history(with_jid=slixmpp.JID(other.bare), start=stamp, rsm={"max": 100})]
    expect(marked[-10][1] in later and later[-1] == marked[-1][1], f"since {stamp}: {later[:2]} … {later[-2:]}")


async def refused(person, other):
    with contextlib.suppress(IqError):
        await person.page(rsm={"after": "no-such-id"})
        raise AssertionError("an unknown id was accepted")
    try:
        await person.plugin["xep_0313"].retrieve(jid=slixmpp.JID(other.bare), iterator=False, timeout=10)
    except IqError as e:
        expect(e.condition == "forbidden", f"another's archive: {e.condition}")
        return
    raise AssertionError("another's archive was shown")


async def metadata(person):
    answer = await person.plugin["xep_0313"].get_archive_metadata(timeout=10)
    data = answer["mam_metadata"]
    expect(data["start"]["id"] and data["end"]["timestamp"], f"metadata {data}")


async def preferences(person, other):
    prefs = person.plugin["xep_0441"]
    before, _, _ = await prefs.get_preferences(timeout=10)
    try:
        await prefs.set_preferences(default="always", never=[slixmpp.JID(other.bare)], timeout=10)
        tag = f"off the record {time.monotonic()}"
        await person.say(other, tag)
        kept = [body for _, body, _ in await person.history(with_jid=slixmpp.JID(other.bare), rsm={"max": 100})]
        expect(tag not in kept, "a message to somebody on the list never was archived")
        theirs = [body for _, body, _ in await other.history(with_jid=slixmpp.JID(person.bare), rsm={"max": 100})]
        expect(tag in theirs, "the other's archive is the other's own affair")
    finally:
        await prefs.set_preferences(default=before, timeout=10)


def operate(cluster, *command, given=None):
    """Runs the administrator's tool on the first node."""
    tool = [str(cluster.bin / "muster"), "--data", cluster.nodes[0]["data"], *command]
    done = subprocess.run(tool, cwd=cluster.root, input=given, capture_output=True, text=True, timeout=30, check=False)
    expect(done.returncode == 0, f"{command}: {done.stderr}")


async def deleted(cluster, a, node):
    """Who gets the name of a deleted user gets nothing that was the other's."""
    name = f"gone{time.monotonic_ns()}@{cluster.domain}"
    user = {"jid": name, "password": "a password for a moment"}
    for _ in range(2):
        await asyncio.to_thread(operate, cluster, "user", "create", name, "--stdin", given=user["password"] + "\n")
        person = Reader(cluster, user)
        await person.arrive(node)
        try:
            expect(not await person.history(), "a new user's archive is not empty")
            await a.say(person, f"hello {time.monotonic_ns()}")
            expect(len(await person.history()) == 1, "the message is not archived")
        finally:
            await person.leave()
        await asyncio.to_thread(operate, cluster, "user", "delete", name)
        await asyncio.sleep(12)  # purged within five seconds, on a busy machine a little later
    expect([body for _, body, _ in await a.history(with_jid=slixmpp.JID(name))], "what the deleted user got is gone from the sender's archive")


async def main(arguments):
    checks = Checks()
    cluster = Cluster(arguments.cluster, Path(__file__).resolve().parents[2])
    nodes = [n["name"] for n in cluster.nodes]
    tag = f"archive {time.monotonic_ns()}"
    everyone = []
    try:
        a = await arrived(cluster, 0, nodes[0])
        everyone.append(a)
        bob = cluster.users[1]["jid"]
        await checks.attempt("messages are written to somebody who is away", written(a, bob, tag))
        b = await arrived(cluster, 1, nodes[-1])
        everyone.append(b)
        await checks.attempt("what waited is delivered, in order and once", waited(b, tag), limit=60)
        elsewhere = await arrived(cluster, 0, nodes[len(nodes) // 2])
        everyone.append(elsewhere)
        for name, check in (
            ("the sender pages through the archive", lambda: paged(a, b, tag)),
            ("the recipient does", lambda: paged(b, a, tag)),
            ("from the end", lambda: backwards(a, b, tag)),
            ("ids are the same on every node", lambda: same_ids(a, elsewhere)),
            ("by time", lambda: by_time(a, b, tag)),
            ("wrong requests are refused", lambda: refused(a, b)),
            ("metadata", lambda: metadata(a)),
            ("preferences", lambda: preferences(a, b)),
            ("deleted users", lambda: deleted(cluster, a, nodes[-1])),
        ):
            await checks.attempt(name, check(), limit=60)
    finally:
        for person in everyone:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(person.leave(), 5)
    return checks.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cluster", help="run/cluster.json")
    sys.exit(asyncio.run(main(parser.parse_args())))
