"""Scenarios, the users and places that they play with, and the record of what held."""

import asyncio
import contextlib
import csv
import io
import json
import secrets
import subprocess
import time
import traceback

from cluster import Cluster
from conformance_wire import Client, Stream, pushed

COMMANDS = "http://jabber.org/protocol/commands"
SCENARIOS = []  # (function, place, whether it is shown, whether nothing else may run)
AT_ONCE = 6  # scenarios that run side by side
PATIENCE = 60  # seconds for one scenario

# Where the actors of a scenario are: for each seat the number of the home node
# and of the node that the client is connected to.
PLACES = {
    "local": ((0, 0), (0, 0), (0, 0), (0, 0)),
    "cross": ((0, 1), (1, 2), (2, 0), (1, 1)),
}


def scenario(*places, alone=False):
    """Registers a scenario; it runs once for each place, or once at its own. One that
    turns settings which others would feel runs alone, after them."""
    def register(function):
        for place in places or ("cross",):
            SCENARIOS.append((function, place, bool(places), alone))
        return function
    return register


class Record:
    def __init__(self, verbose):
        self.passed, self.failed, self.verbose = 0, 0, verbose

    def note(self, ok, name, source, detail=""):
        if ok:
            self.passed += 1
        else:
            self.failed += 1
        print(f"{'PASS' if ok else 'FAIL'}  {name}  [{source}]" + ("" if ok else f"  -- {detail}"), flush=True)


class Operator:
    """The administrator's command line on the first node."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.lock = asyncio.Lock()

    async def run(self, *arguments, given=None):
        command = [str(self.cluster.bin / "muster"), "--data", self.cluster.nodes[0]["data"], *arguments]
        return await asyncio.to_thread(self._run, command, given)

    @staticmethod
    def _run(command, given):
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"muster {command[3:5]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    @contextlib.asynccontextmanager
    async def setting(self, name, value):
        """Holds a setting while a scenario needs it."""
        before = (await self.run("settings", "get", name)).strip()
        default = "(default)" in (await self.run("settings", "get", "--verbose", name)).partition("\n")[0]
        await self.run("settings", "set", name, value)
        try:
            yield
        finally:
            await self.run("settings", *(["reset", name] if default else ["set", name, before]))


class World:
    """The cluster, and a pool of users made for this run."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.domain = cluster.domain
        self.operator = Operator(cluster)
        self.prefix = "conf-" + secrets.token_hex(3) + "-"
        self.pool = {}
        self.made = []

    async def populate(self, number):
        passwords = {f"{self.prefix}{i:03}@{self.domain}": secrets.token_hex(8) for i in range(number)}
        rows = io.StringIO()
        csv.writer(rows).writerows(passwords.items())
        await self.operator.run("user", "import", "--quiet", "-", given=rows.getvalue())
        self.made = list(passwords)
        names = [n["name"] for n in self.cluster.nodes]
        for line in (await self.operator.run("user", "list", "--json", self.prefix)).splitlines():
            user = json.loads(line)
            home = names.index(user["home"])
            self.pool.setdefault(home, []).append({"jid": user["jid"], "password": passwords[user["jid"]], "home": home})

    def user(self, home):
        return self.pool[home % len(self.cluster.nodes)].pop()

    async def clear(self):
        """Deletes the users, as an administrator does it from a chat client."""
        host, _, port = self.cluster.nodes[0]["addresses"]["client"].rpartition(":")
        admin = Client(host, int(port), self.domain, self.cluster.ca)
        await admin.login(self.cluster.data["admin"])
        await admin.bind()
        node = "http://jabber.org/protocol/admin#delete-user"
        number = 0
        for start in range(0, len(self.made), 250):
            values = "".join(f"<value>{name}</value>" for name in self.made[start:start + 250])
            first = await admin.iq("set", f"<command xmlns='{COMMANDS}' node='{node}'/>", to=self.domain)
            session = first[0].get("sessionid")
            answer = await admin.iq("set", f"<command xmlns='{COMMANDS}' node='{node}' sessionid='{session}' action='complete'>"
                                    f"<x xmlns='jabber:x:data' type='submit'><field var='accountjids'>{values}</field></x></command>",
                                    to=self.domain, limit=30)
            number += answer.get("type") == "result"
        await admin.close()
        return number


class Case:
    """One run of a scenario: its users, its clients, its rules."""

    def __init__(self, world, record, name, place, shown):
        self.world, self.record, self.name = world, record, name
        self.seats = PLACES[place]
        self.suffix = f" ({place})" if shown else ""
        self.people = {}
        self.clients = []
        self.count = {}

    @property
    def domain(self):
        return self.world.domain

    def user(self, seat=0):
        """The user of a seat; always the same in one scenario."""
        if seat not in self.people:
            self.people[seat] = self.world.user(self.seats[seat % 4][0])
        return self.people[seat]

    def stranger(self):
        """An address of the domain that nobody has."""
        return f"nobody-{secrets.token_hex(4)}@{self.domain}"

    def stream(self, node=0, kind="client", cls=Client):
        """A client that is not connected yet."""
        nodes = self.world.cluster.nodes
        host, _, port = nodes[node % len(nodes)]["addresses"][kind].rpartition(":")
        made = cls(host, int(port), self.domain, self.world.cluster.ca)
        self.clients.append(made)
        return made

    async def plain(self, node=0):
        return await self.stream(node, cls=Stream).connect()

    def node(self, seat):
        """Each further client of a user connects one node further on, unless all are in one place."""
        home, node = self.seats[seat % 4]
        if len(set(self.seats)) == 1:
            return node
        number = self.count.get(seat, 0)
        self.count[seat] = number + 1
        return node + number

    async def login(self, seat=0, resource=None, user=None, node=None):
        """A bound session."""
        client = self.stream(self.node(seat) if node is None else node)
        await client.login(user or self.user(seat))
        answer = await client.bind(resource)
        if answer.get("type") != "result":
            raise AssertionError(f"{client.bare} cannot bind {resource}")
        return client

    async def online(self, seat=0, resource=None, inner="", user=None, node=None):
        """A session that has its roster and is available."""
        client = await self.login(seat, resource, user, node)
        await client.roster()
        await client.available(inner)
        return client

    @contextlib.asynccontextmanager
    async def rule(self, name, source):
        """What is inside holds, or the rule is broken."""
        try:
            yield
        except Exception as e:
            self.record.note(False, name + self.suffix, source, f"{self.name}: {type(e).__name__}: {e}" +
                             (f" {traceback.format_exc()}" if self.record.verbose else f" (line {line_of(e)})"))
        else:
            self.record.note(True, name + self.suffix, source)

    async def befriend(self, a, b):
        """Makes the users of two available clients mutual contacts."""
        for one, other in ((a, b), (b, a)):
            one.presence(to=other.bare, type="subscribe")
            await other.get_presence(one.bare, "subscribe")
            other.presence(to=one.bare, type="subscribed")
            await one.get_presence(other.bare, "subscribed")
        await a.get_presence(b.jid)
        await b.get_presence(a.jid)
        for one, other in ((a, b), (b, a)):
            await one.push(other.bare, subscription="both")
            one.inbox = [e for e in one.inbox if e.get("from") not in (other.bare, other.jid) and pushed(e) is None]

    async def leave(self):
        await asyncio.gather(*(c.close() for c in self.clients), return_exceptions=True)


async def becomes(wanted, ask, limit=3):
    """Asks until the answer is as wanted: what one node confirmed reaches the others within moments."""
    deadline = time.monotonic() + limit
    while (answer := await ask()) != wanted:
        if time.monotonic() > deadline:
            raise AssertionError(f"{answer!r} instead of {wanted!r}")
        await asyncio.sleep(0.05)


def line_of(e):
    frames = traceback.extract_tb(e.__traceback__)
    ours = [f for f in frames if "conformance_" in f.filename and "_case" not in f.filename and "_wire" not in f.filename]
    return f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno}" if ours else "?"


async def play(world, record, only):
    """Runs every scenario, some at a time."""
    gate = asyncio.Semaphore(AT_ONCE)
    times = []

    async def one(function, place, shown):
        async with gate:
            case = Case(world, record, function.__name__, place, shown)
            began = time.monotonic()
            try:
                await asyncio.wait_for(function(case), PATIENCE)
            except Exception as e:
                record.note(False, f"{function.__name__}: goes through{case.suffix}", "scenario", f"{type(e).__name__}: {e} (line {line_of(e)})")
                if record.verbose:
                    traceback.print_exc()
            finally:
                await case.leave()
            times.append((time.monotonic() - began, function.__name__))

    chosen = [s for s in SCENARIOS if not only or any(o in s[0].__name__ for o in only)]
    await asyncio.gather(*(one(*s) for *s, alone in chosen if not alone))
    for *s, alone in chosen:
        if alone:
            await one(*s)
    if record.verbose:
        for took, name in sorted(times)[-8:]:
            print(f"      {took:.1f} s {name}")
    return len(chosen)
