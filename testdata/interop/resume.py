"""A foreign client's stream goes on at another node after kill -9 of its node (XEP-0198 with slixmpp).

    resume.py run/cluster.json

Needs a cluster of three nodes with five users, made by `make run`.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import slixmpp
from checks import Checks, expect, until
from cluster import Cluster
from person import Person, befriend

GRACE = 20  # seconds within which the stream must have been resumed


class Stayer(Person):
    """A person whose client resumes its stream, at any node."""

    def __init__(self, cluster, user, resource="stay"):
        super().__init__(cluster, user, resource)
        self.register_plugin("xep_0198")
        self.plugin["xep_0198"].allow_resume = True
        self.resumed, self.failed, self.started = [], [], 0
        self.location = None  # where the server would have us resume
        self.add_event_handler("sm_enabled", lambda enabled: setattr(self, "location", enabled["location"]))
        self.ids = {}  # stanza-id of each body
        self.add_event_handler("session_resumed", lambda _: self.resumed.append(time.monotonic()))
        self.add_event_handler("sm_failed", self.failed.append)
        self.add_event_handler("session_start", self._count)
        self.add_event_handler("message", self._note)

    def _count(self, _):
        self.started += 1

    def _note(self, message):
        for child in message.xml:
            if child.tag == "{urn:xmpp:sid:0}stanza-id":
                self.ids.setdefault(message["body"], set()).add(child.get("id"))

    async def move(self, node, limit=GRACE):
        """Connects to another node until the stream is resumed there."""
        before, end = len(self.resumed), time.monotonic() + limit
        while len(self.resumed) == before:
            expect(time.monotonic() < end, f"not resumed in {limit} s; {len(self.failed)} times refused")
            expect(not self.failed, "the server refused to resume the stream")
            self.dropped.clear()
            self.connect(*self.cluster.address(node))
            for _ in range(30):
                await asyncio.sleep(0.1)
                if len(self.resumed) > before or self.dropped.is_set():
                    break


async def resume_elsewhere(cluster, who, kill):
    """kill ends the first node; the client goes on at the second."""
    first, second, third = (n["name"] for n in cluster.nodes)
    ada, bob = Stayer(cluster, cluster.users[who]), Person(cluster, cluster.users[1])
    await ada.arrive(first)
    await bob.arrive(third)
    try:
        await befriend(ada, bob)
        await bob.sees(ada, "available")
        await ada.say(bob, "before")
        await bob.say(ada, "before, too")
        others = [n["addresses"]["client"] for n in cluster.nodes if n["name"] != first]
        expect(ada.location in others, f"the server names {ada.location!r} to resume at")
        await asyncio.sleep(1)
        seen, jid = len(bob.seen), ada.boundjid.full
        begun = time.monotonic()
        kill(first)
        for i in range(10):  # sent while nobody is there to take them
            bob.send_message(mto=slixmpp.JID(ada.bare), mbody=f"while away {i}", mtype="chat")
            await asyncio.sleep(0.1)
        await ada.move(second)
        took = ada.resumed[-1] - begun
        expect(ada.started == 1, "the client had to log in anew")
        expect(ada.boundjid.full == jid, "it has another address")
        await until(lambda: all((bob.bare, f"while away {i}") in ada.inbox for i in range(10)), 15, "all messages of the meantime")
        got = [body for _, body in ada.inbox if body.startswith("while away")]
        firsts = list(dict.fromkeys(got))
        expect(firsts == [f"while away {i}" for i in range(10)], f"out of order: {got}")
        expect(all(len(ada.ids[body]) == 1 for body in firsts), "a message came with two ids")
        expect(not bob.bounces, f"errors came back: {bob.bounces}")
        await ada.say(bob, "after")
        await bob.say(ada, "after, too")
        events = [kind for _, bare, kind, _ in bob.seen[seen:] if bare == ada.bare]
        expect("unavailable" not in events, f"the contact saw it go: {events}")
        return f"resumed {took:.1f} s after the kill, {len(got) - len(firsts)} of 10 messages twice"
    finally:
        await ada.leave()
        await bob.leave()


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cluster")
    parser.add_argument("--root", default=Path(__file__).parents[2])
    options = parser.parse_args()
    cluster, checks = Cluster(options.cluster, options.root), Checks()
    for who in (0, 2, 3):  # with homes on different nodes
        await checks.attempt(f"user {who + 1}: the stream goes on at another node after kill -9 of its own", resume_elsewhere(cluster, who, cluster.kill), 90)
        cluster.start(cluster.nodes[0]["name"])
    return checks.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
