"""Foreign clients on different nodes: they subscribe, see presence, chat, and survive the death of a node and of the leader.

Part a needs only two accounts and works against any XMPP server. Parts b and c
need a cluster of three nodes with five users, made by `make run`.

    two_clients.py run/cluster.json [--parts abc]
"""

import argparse
import asyncio
import contextlib
import sys
import time
from pathlib import Path

import slixmpp
from checks import Checks, expect, until
from cluster import Cluster
from person import Person, befriend
from slixmpp.exceptions import IqError

# How long a client on a surviving node may get retryable errors after a node died:
# three seconds until the silence is noticed, and two for the move.
FAILOVER = 5.0

# How long before the kill a message may have been sent and still be under way, in seconds.
UNDER_WAY = 1.0

# Features that RFC 6121 clients look for on the domain.
DOMAIN_FEATURES = {
    "http://jabber.org/protocol/disco#info", "urn:xmpp:ping", "vcard-temp", "urn:xmpp:blocking",
    "urn:xmpp:carbons:2", "jabber:iq:version", "urn:xmpp:time",
}


@contextlib.asynccontextmanager
async def people(cluster, *places):
    """Logs users in: (number of the user, node) or (number, node, resource)."""
    everyone = [Person(cluster, cluster.users[number], *resource) for number, _, *resource in places]
    try:
        for person, (_, node, *_) in zip(everyone, places):
            await person.arrive(node)
        yield everyone
    finally:
        for person in everyone:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(person.leave(), 5)


# Part a: two people


async def secured(a, b):
    for person in (a, b):
        expect(person.mechanism.startswith("SCRAM-"), f"logged in by {person.mechanism}")
        expect(person.tls is not None, "no TLS")
    return f"{a.tls.version()}, {a.mechanism}"


async def wrong_password(cluster, node):
    user = dict(cluster.users[0], password="certainly not this")
    intruder = Person(cluster, user)
    try:
        await intruder.arrive(node)
    except (AssertionError, asyncio.TimeoutError):
        return "refused"
    finally:
        await intruder.leave()
    raise AssertionError("a wrong password was accepted")


async def subscriptions(a, b):
    await a.forget(b)
    await b.forget(a)
    for one, other in ((a, b), (b, a)):
        expect(other.bare not in await one.contacts(), f"{one.bare} still has {other.bare} as a contact")
    await befriend(a, b)
    await a.sees(b, "available")
    await b.sees(a, "available")


async def presence_changes(a, b):
    for one, other in ((a, b), (b, a)):
        for show, kind in (("away", "away"), ("dnd", "dnd"), (None, "available")):
            one.send_presence(pshow=show, pstatus="as the test says")
            await other.sees(one, kind)


async def chat(a, b):
    bodies = ["hello", "<b>&amp;\"'</b>", "Grüße, 世界 🐎", "x" * 5000] + [f"line {i}" for i in range(20)]
    for body in bodies[:4]:
        await a.say(b, body)
        await b.say(a, body)
    start = len(b.inbox)
    for body in bodies[4:]:
        a.send_message(mto=slixmpp.JID(b.bare), mbody=body, mtype="chat")
    await until(lambda: len(b.inbox) == start + 20, 10, "twenty messages in a row")
    got = [body for _, body in b.inbox[start:]]
    expect(got == bodies[4:], f"out of order: {got}")
    expect(not a.bounces and not b.bounces, f"errors came back: {a.bounces + b.bounces}")


async def same_roster(cluster, a, nodes):
    seen = {}
    for node in nodes:
        async with people(cluster, (0, node, f"at-{node}")) as (device,):
            seen[node] = await device.contacts()
    mine = await a.contacts()
    expect(all(roster == mine for roster in seen.values()), f"rosters differ: {seen}")
    return f"{len(mine)} contacts on {len(nodes)} node(s)"


async def pings(cluster, a, b):
    await a.plugin["xep_0199"].ping(slixmpp.JID(cluster.domain), timeout=5)
    await a.plugin["xep_0199"].ping(b.boundjid, timeout=5)


async def discovery(cluster, a, required):
    info = await a.plugin["xep_0030"].get_info(jid=cluster.domain, timeout=5)
    kinds = {(category, kind) for category, kind, _, _ in info["disco_info"]["identities"]}
    expect(("server", "im") in kinds, f"identities {kinds}")
    missing = required - set(info["disco_info"]["features"])
    expect(not missing, f"the domain does not offer {missing}")


async def software_version(cluster, a):
    answer = await a.plugin["xep_0092"].get_version(cluster.domain, timeout=5)
    expect(answer["software_version"]["name"], "no name")
    return answer["software_version"]["name"]


async def cards(a, b):
    card = a.plugin["xep_0054"].make_vcard()
    card["FN"] = "Ada <Lovelace> & Söhne"
    await a.plugin["xep_0054"].publish_vcard(card, timeout=5)
    answer = await b.plugin["xep_0054"].get_vcard(slixmpp.JID(a.bare), local=False, timeout=5)
    expect(answer["vcard_temp"]["FN"] == "Ada <Lovelace> & Söhne", f"got {answer['vcard_temp']['FN']!r}")


async def blocking(a, b):
    before = len(a.inbox)
    await a.plugin["xep_0191"].block({slixmpp.JID(b.bare)}, timeout=5)
    try:
        await b.sees(a, "unavailable")
        b.send_message(mto=slixmpp.JID(a.bare), mbody="are you there?", mtype="chat")
        await until(lambda: b.bounces, 5, "an error for the message to somebody who blocks")
        expect(len(a.inbox) == before, "the blocked message was delivered")
    finally:
        await a.plugin["xep_0191"].unblock({slixmpp.JID(b.bare)}, timeout=5)
    b.bounces.clear()
    await b.say(a, "and now?")
    await b.sees(a, "available")


async def refusals(cluster, a):
    try:
        await a.plugin["xep_0199"].send_ping(slixmpp.JID(f"nobody-at-all@{cluster.domain}/none"), timeout=5)
    except IqError as e:
        return e.condition
    raise AssertionError("a ping to nobody was answered")


async def part_a(checks, cluster):
    names = [n["name"] for n in cluster.nodes]
    here, there = names[0], names[1 % len(names)]
    await checks.attempt("a wrong password is refused", wrong_password(cluster, here))
    async with people(cluster, (0, here), (1, there)) as (a, b):
        await checks.attempt("STARTTLS with a checked certificate, SCRAM", secured(a, b))
        await checks.attempt("mutual subscription", subscriptions(a, b))
        await checks.attempt("presence: away, dnd and back, both ways", presence_changes(a, b))
        await checks.attempt("chat both ways, bodies intact and in order", chat(a, b))
        await checks.attempt("the same roster on every node", same_roster(cluster, a, names))
        await checks.attempt("ping of the server and of the contact", pings(cluster, a, b))
        await checks.attempt("discovery of the domain", discovery(cluster, a, DOMAIN_FEATURES))
        await checks.attempt("software version", software_version(cluster, a))
        await checks.attempt("vCard set, and read by the contact", cards(a, b))
        await checks.attempt("blocking and unblocking", blocking(a, b))
        await checks.attempt("a request to nobody gets an error", refusals(cluster, a))
        expect(not a.dropped.is_set() and not b.dropped.is_set(), "a session was dropped")


# Parts b and c: nodes die


class Conversation:
    """Two people who write to each other without a pause while something happens around them."""

    def __init__(self, a, b):
        self.pair = (a, b)
        self.sent = []  # (time, id, sender, recipient, body)
        self.running = True

    async def run(self):
        number = 0
        while self.running:
            for one, other in (self.pair, self.pair[::-1]):
                number += 1
                body = f"message {number}"
                message = one.make_message(mto=slixmpp.JID(other.bare), mbody=body, mtype="chat")
                self.sent.append((time.monotonic(), message["id"], one, other, body))
                if not one.dropped.is_set():
                    message.send()
            await asyncio.sleep(0.2)

    def unsettled(self):
        """Messages that neither arrived nor came back."""
        return [m for m in self.sent if not self.arrived(m) and not self.refused(m)]

    @staticmethod
    def arrived(m):
        _, _, one, other, body = m
        return other.inbox.count((one.bare, body))

    @staticmethod
    def refused(m):
        return m[2].bounced.count(m[1])

    def verdict(self, died):
        """Each message arrived or came back, after the failover all arrived, and nothing happened twice.

        Only for what was under way when the node died may both happen, or one twice: the
        dead node cannot be asked, and exactly-once on the wire is not promised.
        """
        late = [m[4] for m in self.sent if m[0] > died + FAILOVER and not self.arrived(m)]
        expect(not late, f"{len(late)} messages did not arrive though they were sent more than {FAILOVER} s after the kill")
        silent = [m[4] for m in self.unsettled()]
        expect(not silent, f"{len(silent)} messages vanished without an error: {silent[:5]}")
        double = [m for m in self.sent if self.arrived(m) + self.refused(m) > 1]
        shown = [f"{m[4]} {m[0] - died:+.2f} s: arrived {self.arrived(m)}, refused {self.refused(m)}" for m in double[:5]]
        expect(not [m for m in double if not -UNDER_WAY < m[0] - died < FAILOVER], f"more than one outcome: {shown}")
        bounced = sum(1 for m in self.sent if self.refused(m))
        worst = max((m[0] - died for m in self.sent if self.refused(m)), default=0)
        summary = f"{len(self.sent)} messages, {bounced} came back"
        if bounced:
            summary += f", the last sent {max(worst, 0):.1f} s after the kill"
        return summary + (f"; under way at the kill: {shown}" if shown else "")


async def through(cluster, victim, *pairs):
    """Kills a node while pairs of people talk; returns the conversations and when it happened."""
    talks = [Conversation(*pair) for pair in pairs]
    talking = [asyncio.create_task(talk.run()) for talk in talks]
    try:
        await asyncio.sleep(2)
        await asyncio.to_thread(cluster.kill, victim)
        died = time.monotonic()
        await asyncio.sleep(FAILOVER + 5)
    finally:
        for talk in talks:
            talk.running = False
        await asyncio.gather(*talking)
    with contextlib.suppress(AssertionError):
        await until(lambda: not any(talk.unsettled() for talk in talks), 5, "all messages settled")
    return talks, died


async def gone_once(watcher, gone, since):
    """The watcher saw the end of the other's session exactly once, and nothing after it."""
    await watcher.sees(gone, "unavailable")
    events = [(t, kind) for t, bare, kind, _ in watcher.seen if bare == gone.bare and t > since]
    expect([kind for _, kind in events] == ["unavailable"], f"{watcher.bare} saw {[(kind, full.resource, round(t - since, 1)) for t, bare, kind, full in watcher.seen if bare == gone.bare and t > since]}")
    return f"{events[0][0] - since:.1f} s after the kill"


async def still_there(*everyone):
    for person in everyone:
        expect(not person.dropped.is_set(), f"{person.bare} was disconnected")


async def survive(checks, cluster, what, victim, here, there):
    """Kills the victim; c was on it, the others are on the surviving nodes.

    Two pairs talk: users' homes are spread over the nodes, so that with four of
    them at least one had its home on the victim.
    """
    places = (0, here), (1, there), (3, here), (4, there), (2, victim)
    async with people(cluster, *places) as (a, b, d, e, c):
        for pair in ((a, b), (d, e), (a, c), (b, c), (d, c)):
            await befriend(*pair)
        for watcher in (a, b, d):
            await watcher.sees(c, "available")
        talks, died = await through(cluster, victim, (a, b), (d, e))

        async def verdict(talk):
            return talk.verdict(died)

        await checks.attempt(f"{what}: sessions on the other nodes stay", still_there(a, b, d, e))
        for talk in talks:
            names = " and ".join(person.boundjid.user for person in talk.pair)
            await checks.attempt(f"{what}: {names} chat on, no message vanishes", verdict(talk))
        for watcher in (a, b, d):
            await checks.attempt(f"{what}: {watcher.boundjid.user} sees the lost contact leave once", gone_once(watcher, c, died))
        await checks.attempt(f"{what}: chat afterwards", chat_briefly(a, b))
        async with people(cluster, (2, here, "again")) as (again,):
            await checks.attempt(f"{what}: its client is back on another node", returned(again, a, b))


async def chat_briefly(a, b):
    await a.say(b, f"still there? {time.monotonic()}")
    await b.say(a, f"yes {time.monotonic()}")


async def returned(again, a, b):
    await a.sees(again, "available")
    await again.sees(b, "available")
    await chat_briefly(again, b)


async def restarted(cluster, name):
    begun = time.monotonic()
    await asyncio.to_thread(cluster.start, name)
    return f"ready after {time.monotonic() - begun:.1f} s"


async def caught_up(cluster):
    """All nodes are at one index with equal digests, as each of them tells."""
    names = [n["name"] for n in cluster.nodes]

    def agreed(pages):
        return all(page and page.get("equal") and len(page["nodes"]) == len(names) for page in pages)

    for _ in range(100):
        pages = [await asyncio.to_thread(cluster.health, name) for name in names]
        if agreed(pages):
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the nodes' digests do not become equal")


async def part_b(checks, cluster):
    leader = await asyncio.to_thread(cluster.leader)
    names = [n["name"] for n in cluster.nodes]
    victim = next(n for n in reversed(names) if n != leader)
    here, there = [n for n in names if n != victim][:2]
    await survive(checks, cluster, f"kill of {victim}", victim, here, there)
    await checks.attempt(f"{victim} starts again", restarted(cluster, victim), limit=90)
    await checks.attempt("digests are equal afterwards", caught_up(cluster))


async def part_c(checks, cluster):
    leader = await asyncio.to_thread(cluster.leader)
    here, there = [n["name"] for n in cluster.nodes if n["name"] != leader][:2]
    await survive(checks, cluster, f"kill of the leader, {leader}", leader, here, there)
    await checks.attempt("another node leads", new_leader(cluster, leader))
    await checks.attempt(f"{leader} starts again", restarted(cluster, leader), limit=90)
    await checks.attempt("digests are equal at the end", caught_up(cluster))


async def new_leader(cluster, old):
    now = await asyncio.to_thread(cluster.leader)
    expect(now != old, f"{old} is dead and still called the leader")
    return now


PARTS = {"a": part_a, "b": part_b, "c": part_c}


async def main(arguments):
    checks = Checks()
    cluster = Cluster(arguments.cluster, Path(__file__).resolve().parents[2])
    for letter in arguments.parts:
        await checks.attempt(f"part {letter} to its end", PARTS[letter](checks, cluster), limit=240)
    return checks.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cluster", help="run/cluster.json")
    parser.add_argument("--parts", default="abc", choices=["a", "b", "c", "ab", "ac", "bc", "abc"])
    sys.exit(asyncio.run(main(parser.parse_args())))
