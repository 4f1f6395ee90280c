"""RFC 6121: rosters and subscriptions."""

import asyncio
import xml.etree.ElementTree as ET

from conformance_case import scenario
from conformance_wire import CLIENT, ROSTER, child, error_of, local, pushed, sent_by, settle, show, stanza

PING = "<ping xmlns='urn:xmpp:ping'/>"


def refused(answer, *conditions):
    e = error_of(answer)
    assert e and e[1] in conditions, f"expected {conditions}: {show(answer)}"


def presence_of(sender):
    return lambda e: local(e) == "presence" and sent_by(e, sender)


def ver_of(answer):
    return child(answer, ROSTER, "query").get("ver")


# The roster


@scenario("local", "cross")
async def roster_changes(t):
    a, b = await t.online(0, "one"), await t.online(0, "two")
    deaf = await t.login(0, "deaf")  # never asked for the roster
    friend = f"friend@{t.domain}"
    async with t.rule("a new roster is empty", "RFC 6121 2.2"):
        assert await a.items() == {}
    async with t.rule("a roster set is answered by an empty result", "RFC 6121 2.1.5, 2.3.2"):
        answer = await a.put(friend, "Friend", ["Work", "Home"])
        assert answer.get("type") == "result" and len(answer) == 0, show(answer)
    async with t.rule("every interested resource gets the push, the one that set it too", "RFC 6121 2.1.6, 2.3.2"):
        for one in (a, b):
            item = await one.push(friend, subscription="none", name="Friend")
            assert {g.text for g in item} == {"Work", "Home"}, show(item)
    async with t.rule("a resource that has not asked for the roster gets no push", "RFC 6121 2.1.6, 2.2"):
        await settle(a, b, deaf)
        deaf.none(lambda e: pushed(e) is not None, "a roster push")
    async with t.rule("a push is addressed to the full JID, comes from nobody or the own account, has an id and a version", "RFC 6121 2.1.6, 2.6.3"):
        await a.put(friend, "Pal", ["Work"])
        for one in (a, b):
            got = await one.take(lambda e: pushed(e) is not None and pushed(e).get("name") == "Pal")
            assert got.get("to") == one.jid and got.get("from") in (None, one.bare) and got.get("id"), show(got)
            assert child(got, ROSTER, "query").get("ver"), show(got)
            one.send(stanza("iq", type="result", id=got.get("id")))
    async with t.rule("a set replaces name and groups as a whole", "RFC 6121 2.4"):
        item = (await a.items())[friend]
        assert item.get("name") == "Pal" and [g.text for g in item] == ["Work"] and item.get("subscription") == "none", show(item)
        await a.put(friend)
        item = await b.push(friend)
        assert not item.get("name") and len(item) == 0, show(item)
    async with t.rule("subscription, ask and approved of a client are ignored", "RFC 6121 2.1.2.1, 2.1.2.2, 2.1.2.5"):
        sly = f"sly@{t.domain}"
        answer = await a.iq("set", f"<query xmlns='{ROSTER}'><item jid='{sly}' subscription='both' ask='subscribe' approved='true'/></query>")
        if answer.get("type") == "result":
            item = (await a.items())[sly]
            assert item.get("subscription") == "none" and item.get("ask") is None and item.get("approved") is None, show(item)
            await a.remove(sly)
        else:
            refused(answer, "bad-request")
    async with t.rule("the full JID of a contact is not in the roster as such, or kept as its own item", "RFC 6121 2.1.2.3"):
        answer = await a.put(f"FRIEND2@{t.domain.upper()}")
        assert answer.get("type") == "result", show(answer)
        assert f"friend2@{t.domain}" in await a.items()
        await a.remove(f"friend2@{t.domain}")
    async with t.rule("removal: result, push subscription=remove to all, gone", "RFC 6121 2.5.2"):
        a.inbox.clear(), b.inbox.clear()
        answer = await a.remove(friend)
        assert answer.get("type") == "result", show(answer)
        for one in (a, b):
            await one.push(friend, subscription="remove")
        assert await b.items() == {}
    async with t.rule("removing who is not there: item-not-found", "RFC 6121 2.5.3"):
        refused(await a.remove(f"never@{t.domain}"), "item-not-found")


@scenario()
async def roster_refusals(t):
    a, b = await t.online(0), await t.online(1)
    x = f"x@{t.domain}"
    cases = [
        ("two items", f"<item jid='{x}'/><item jid='y@{t.domain}'/>", ("bad-request",)),
        ("no item", "", ("bad-request",)),
        ("a group twice", f"<item jid='{x}'><group>A</group><group>A</group></item>", ("bad-request",)),
        ("an empty group", f"<item jid='{x}'><group/></item>", ("not-acceptable",)),
        ("a name of 2,000 bytes", f"<item jid='{x}' name='{'n' * 2000}'/>", ("not-acceptable",)),
        ("a group of 2,000 bytes", f"<item jid='{x}'><group>{'g' * 2000}</group></item>", ("not-acceptable",)),
        ("no address", "<item name='x'/>", ("bad-request",)),
        ("a bad address", "<item jid='a@b@c'/>", ("jid-malformed", "bad-request")),
    ]
    for name, inner, conditions in cases:
        async with t.rule(f"a roster set with {name}: {'/'.join(conditions)}", "RFC 6121 2.3.3"):
            refused(await a.iq("set", f"<query xmlns='{ROSTER}'>{inner}</query>"), *conditions)
    async with t.rule("a refused set leaves nothing behind", "RFC 6121 2.3.3"):
        assert await a.items() == {}
    async with t.rule("a set of another's roster: forbidden; a get: not answered with it", "RFC 6121 2.3.3, 2.1.3, S30"):
        answer = await a.iq("set", f"<query xmlns='{ROSTER}'><item jid='{x}'/></query>", to=b.bare)
        refused(answer, "forbidden", "service-unavailable")
        answer = await a.iq("get", f"<query xmlns='{ROSTER}'/>", to=b.bare)
        refused(answer, "forbidden", "service-unavailable")
        assert await b.items() == {}
    async with t.rule("a set of another's roster is refused as forbidden", "RFC 6121 2.3.3"):
        refused(await a.iq("set", f"<query xmlns='{ROSTER}'><item jid='{x}'/></query>", to=b.bare), "forbidden")
    async with t.rule("the own account addressed by name is the same roster", "RFC 6121 2.1.3"):
        answer = await a.iq("get", f"<query xmlns='{ROSTER}'/>", to=a.bare)
        assert answer.get("type") == "result" and child(answer, ROSTER, "query") is not None, show(answer)
    async with t.rule("the own account as a contact is refused, or harmless", "spec 6.1.5"):
        answer = await a.put(a.bare)
        if answer.get("type") == "error":
            refused(answer, "not-allowed", "conflict", "not-acceptable")
        assert a.bare not in await a.items() or answer.get("type") == "result"
    async with t.rule("errors and results to a push are ignored", "RFC 6121 2.1.6"):
        await a.put(x)
        got = await a.take(lambda e: pushed(e) is not None)
        a.send(stanza("iq", "<error type='cancel'><not-acceptable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>", type="error", id=got.get("id")))
        await a.iq("get", PING, to=t.domain)
        assert x in await a.items()


@scenario("local", "cross")
async def roster_versions(t):
    a = await t.login(0, "one")
    b = await t.login(0, "two")
    async with t.rule("ver='' bootstraps: the full roster with a version", "RFC 6121 2.6.2"):
        answer = await a.roster(ver="")
        first = ver_of(answer)
        assert first, show(answer)
    await b.roster(ver="")
    names = [f"v{i}@{t.domain}" for i in range(4)]
    vers = []
    for name in names:
        await a.put(name, "first")
        vers.append(child(await a.take(lambda e: pushed(e) is not None), ROSTER, "query").get("ver"))
    async with t.rule("every push has a version of its own", "RFC 6121 2.6.3"):
        assert len(set(vers + [first])) == 5, vers
    async with t.rule("all resources get the same version with the same push", "RFC 6121 2.6.3"):
        for name, ver in zip(names, vers):
            got = await b.take(lambda e: pushed(e) is not None)
            assert pushed(got).get("jid") == name and child(got, ROSTER, "query").get("ver") == ver, show(got)
    c = await t.login(0, "three")
    async with t.rule("an unchanged roster: an empty result and no pushes", "RFC 6121 2.6.2"):
        answer = await c.roster(ver=vers[-1])
        assert answer.get("type") == "result", show(answer)
        query = child(answer, ROSTER, "query")
        assert query is None or len(query) == 0 and query.get("ver") == vers[-1], show(answer)
        await c.iq("get", PING, to=t.domain)
        c.none(lambda e: pushed(e) is not None, "a push")
    await a.put(names[0], "second")
    await a.put(names[0], "third")
    await a.remove(names[1])
    await a.put(names[3], "last")
    now = ver_of(await a.roster())
    async with t.rule("a changed roster: the final state of what changed, in order, or all of it", "RFC 6121 2.6.2, 2.6.3"):
        d = await t.login(0, "four")
        answer = await d.roster(ver=vers[-1])
        query = child(answer, ROSTER, "query")
        if query is not None:  # the full roster
            assert {i.get("jid"): i.get("name") for i in query} == {names[0]: "third", names[2]: "first", names[3]: "last"}, show(answer)
            assert query.get("ver") == now, show(answer)
        else:
            await d.until(lambda: sum(pushed(e) is not None for e in d.inbox) >= 3, 10, "three pushes")
            await d.iq("get", PING, to=t.domain)
            got = [(pushed(e).get("jid"), pushed(e).get("subscription"), pushed(e).get("name"), child(e, ROSTER, "query").get("ver"))
                   for e in d.inbox if pushed(e) is not None]
            assert [g[:3] for g in got] == [(names[0], "none", "third"), (names[1], "remove", None), (names[3], "none", "last")], got
            assert len({g[3] for g in got}) == 3, got
            assert now is None or got[-1][3] == now, f"{got} ends not at {now}"
    async with t.rule("a version that nobody gave out: the full roster", "RFC 6121 2.6.2"):
        for wrong in ("nonsense", "99999999999", "-1"):
            answer = await c.roster(ver=wrong)
            assert len(child(answer, ROSTER, "query")) == 3, show(answer)
    async with t.rule("without ver: the full roster", "RFC 6121 2.2"):
        assert set(await c.items()) == {names[0], names[2], names[3]}


# Subscriptions


async def state(client, contact):
    """(subscription, ask) as the client's roster has it."""
    item = (await client.items()).get(contact)
    return ("absent", None) if item is None else (item.get("subscription"), item.get("ask"))


@scenario("local", "cross")
async def subscribing(t):
    a, b = await t.online(0, "one"), await t.online(1, "one")
    a2, b2 = await t.online(0, "two"), await t.online(1, "two")
    everybody = (a, a2, b, b2)
    async with t.rule("a request: the bare addresses are on it, its extensions and id too, every resource gets it", "RFC 6121 3.1.2, 3.1.3"):
        a.presence("<status>let me in</status><nick xmlns='http://jabber.org/protocol/nick'>Ada</nick><x xmlns='urn:ext'><y/></x>",
                   to=b.bare + "/one", type="subscribe", id="sub1")
        for one in (b, b2):
            got = await one.get_presence(a.bare, "subscribe")
            assert got.get("from") == a.bare and got.get("to") == b.bare, show(got)
            assert child(got, CLIENT, "status").text == "let me in" and child(got, "urn:ext", "x") is not None, show(got)
    async with t.rule("the request makes an item with ask=subscribe, pushed to all resources", "RFC 6121 3.1.2"):
        for one in (a, a2):
            await one.push(b.bare, subscription="none", ask="subscribe")
        assert await state(a, b.bare) == ("none", "subscribe")
    async with t.rule("a contact that only asks is in no roster and no push", "RFC 6121 3.1.3, A.1"):
        await settle(*everybody)
        assert await b.items() == {}
        b.none(lambda e: pushed(e) is not None, "a push about who asks")
    async with t.rule("a repeated request is not delivered twice as another", "RFC 6121 3.1.3"):
        a.presence(to=b.bare, type="subscribe")
        await settle(*everybody)
        assert sum(e.get("type") == "subscribe" for e in b.inbox) <= 1
    async with t.rule("approval: From for who approved, To for who asked, all resources told", "RFC 6121 3.1.4-3.1.6"):
        b.presence(to=a.bare, type="subscribed")
        for one in (a, a2):
            await one.push(b.bare, subscription="to")
            got = await one.get_presence(b.bare, "subscribed")
            assert got.get("from") == b.bare and got.get("to") == a.bare, show(got)
        for one in (b, b2):
            await one.push(a.bare, subscription="from")
        assert await state(a, b.bare) == ("to", None) and await state(b, a.bare) == ("from", None)
    async with t.rule("the new watcher gets the presence of every resource", "RFC 6121 3.1.5"):
        for one in (a, a2):
            await one.get_presence(b.jid)
            await one.get_presence(b2.jid)
    async with t.rule("the one who approved gets no presence of the watcher", "RFC 6121 4.2.2"):
        a.presence("<show>dnd</show>")
        await settle(*everybody)
        b.none(lambda e: local(e) == "presence" and e.get("from") == a.jid, "presence without a subscription")
    async with t.rule("a request while From stands is approved by the server", "RFC 6121 3.1.3, A.3.1"):
        for one in everybody:
            one.inbox.clear()
        a.presence(to=b.bare, type="subscribe")
        await settle(*everybody)
        b.none(lambda e: e.get("type") == "subscribe", "a request that is settled")
        assert await state(a, b.bare) == ("to", None), await state(a, b.bare)
    async with t.rule("the other direction makes Both", "RFC 6121 3.1"):
        b.presence(to=a.bare, type="subscribe")
        await a.get_presence(b.bare, "subscribe")
        await b.push(a.bare, subscription="from", ask="subscribe")
        a.presence(to=b.bare, type="subscribed")
        await b.push(a.bare, subscription="both")
        await a.push(b.bare, subscription="both")
        await b.get_presence(a.jid)
        assert await state(a, b.bare) == ("both", None) and await state(b, a.bare) == ("both", None)
    async with t.rule("unsubscribe: From for who did it, To for the other, unavailable of every resource, all told", "RFC 6121 3.3"):
        for one in everybody:
            one.inbox.clear()
        a.presence(to=b.bare, type="unsubscribe")
        for one in (a, a2):
            await one.push(b.bare, subscription="from")
        for one in (b, b2):
            await one.push(a.bare, subscription="to")
            got = await one.get_presence(a.bare, "unsubscribe")
            assert got.get("from") == a.bare, show(got)
        for one in (a, a2):
            await one.get_presence(b.jid, "unavailable")
            await one.get_presence(b2.jid, "unavailable")
    async with t.rule("cancelling: None on both sides, unsubscribed delivered, unavailable of every resource", "RFC 6121 3.2"):
        for one in everybody:
            one.inbox.clear()
        a.presence(to=b.bare, type="unsubscribed")
        for one in (b, b2):
            await one.push(a.bare, subscription="none")
            await one.get_presence(a.bare, "unsubscribed")
            await one.get_presence(a.jid, "unavailable")
            await one.get_presence(a2.jid, "unavailable")
        await a.push(b.bare, subscription="none")
        assert await state(a, b.bare) == ("none", None) and await state(b, a.bare) == ("none", None)
    async with t.rule("after that no presence passes", "RFC 6121 4.4.2, S30"):
        for one in everybody:
            one.inbox.clear()
        a.presence("<show>away</show>"), b.presence("<show>away</show>")
        await settle(*everybody)
        a.none(presence_of(b.bare), "presence"), b.none(presence_of(a.bare), "presence")
    async with t.rule("a request refused: ask is cleared, unsubscribed delivered", "RFC 6121 3.2, A.3.4"):
        a.presence(to=b.bare, type="subscribe")
        await b.get_presence(a.bare, "subscribe")
        await a.push(b.bare, ask="subscribe")
        b.presence(to=a.bare, type="unsubscribed")
        await a.get_presence(b.bare, "unsubscribed")
        await a.push(b.bare, subscription="none", ask=None)
        assert await state(a, b.bare) == ("none", None)
    async with t.rule("a request taken back: ask is cleared, the contact is not asked again", "RFC 6121 3.3, ejabberd#2598"):
        a.presence(to=b.bare, type="subscribe")
        await b.get_presence(a.bare, "subscribe")
        a.presence(to=b.bare, type="unsubscribe")
        await a.push(b.bare, subscription="none", ask=None)
        await settle(*everybody)
        later = await t.online(1, "later")
        await settle(a, later)
        later.none(lambda e: e.get("type") == "subscribe", "a request that was taken back")


# Every cell of RFC 6121 appendix A that a client can bring about: what the
# states are, and what becomes of them. The pair (a's row for b) decides b's
# row for a when both are local.
BUILD = {
    "none": [], "none+out": ["a>subscribe"], "none+in": ["b>subscribe"], "none+out+in": ["a>subscribe", "b>subscribe"],
    "to": ["a>subscribe", "b>subscribed"], "to+in": ["a>subscribe", "b>subscribed", "b>subscribe"],
    "from": ["b>subscribe", "a>subscribed"], "from+out": ["b>subscribe", "a>subscribed", "a>subscribe"],
    "both": ["a>subscribe", "b>subscribed", "b>subscribe", "a>subscribed"],
}
NOTHING, PRE = None, "approved"
# start: act of a -> (a's subscription, a's ask, b's subscription, b's ask, what b's client gets)
CELLS = {
    "none": {"subscribe": ("none", 1, "absent", 0, 1), "unsubscribe": ("none", 0, "none", 0, 0), "subscribed": (PRE, 0, "absent", 0, 0), "unsubscribed": ("none", 0, "none", 0, 0)},
    "none+out": {"subscribe": ("none", 1, "absent", 0, 0), "unsubscribe": ("none", 0, "absent", 0, None), "subscribed": ("none+", 1, "absent", 0, 0), "unsubscribed": ("none", 1, "absent", 0, 0)},
    "none+in": {"subscribe": ("none", 1, "none", 1, 1), "unsubscribe": ("absent", 0, "none", 1, 0), "subscribed": ("from", 0, "to", 0, 1), "unsubscribed": ("absent", 0, "none", 0, 1)},
    "none+out+in": {"subscribe": ("none", 1, "none", 1, 0), "unsubscribe": ("none", 0, "none", 1, None), "subscribed": ("from", 1, "to", 0, 1), "unsubscribed": ("none", 1, "none", 0, 1)},
    "to": {"subscribe": ("to", 0, "from", 0, 0), "unsubscribe": ("none", 0, "none", 0, 1), "subscribed": ("to+", 0, "from", 0, 0), "unsubscribed": ("to", 0, "from", 0, 0)},
    "to+in": {"subscribe": ("to", 0, "from", 1, 0), "unsubscribe": ("none", 0, "none", 1, 1), "subscribed": ("both", 0, "both", 0, 1), "unsubscribed": ("to", 0, "from", 0, 1)},
    "from": {"subscribe": ("from", 1, "to", 0, 1), "unsubscribe": ("from", 0, "to", 0, 0), "subscribed": ("from", 0, "to", 0, 0), "unsubscribed": ("none", 0, "none", 0, 1)},
    "from+out": {"subscribe": ("from", 1, "to", 0, 0), "unsubscribe": ("from", 0, "to", 0, None), "subscribed": ("from", 1, "to", 0, 0), "unsubscribed": ("none", 1, "none", 0, 1)},
    "both": {"subscribe": ("both", 0, "both", 0, 0), "unsubscribe": ("from", 0, "to", 0, 1), "subscribed": ("both", 0, "both", 0, 0), "unsubscribed": ("to", 0, "from", 0, 1)},
}


async def act(a, b, kind):
    """One subscription stanza, and all that comes of it."""
    a.presence(to=b.bare, type=kind)
    await settle(a, b)
    await asyncio.gather(a.items(), b.items())


async def cells(t, start):
    a, b = await t.online(0, start), await t.online(1, start)
    for kind, (sub_a, ask_a, sub_b, ask_b, delivered) in CELLS[start].items():
        for one, other in ((a, b), (b, a)):  # back to nothing
            await one.remove(other.bare)
            one.presence(to=other.bare, type="unsubscribed")
        await settle(a, b)
        if start == "none":
            await a.put(b.bare), await b.put(a.bare)
            if kind in ("subscribe", "subscribed"):
                await b.remove(a.bare)
        for step in BUILD[start]:
            actor, other = (a, b) if step[0] == "a" else (b, a)
            await act(actor, other, step[2:])
        a.inbox.clear(), b.inbox.clear()
        async with t.rule(f"{start}: OUT {kind} -> {sub_a}{' +ask' if ask_a else ''}, contact {sub_b}{' +ask' if ask_b else ''}", "RFC 6121 A.2, A.3"):
            await act(a, b, kind)
            await act_settled(a, b)
            got_a, got_b = await state(a, b.bare), await state(b, a.bare)
            approved = (await a.items()).get(b.bare, ET.Element("none")).get("approved")
            want_a = "none" if sub_a == PRE else sub_a.rstrip("+")
            assert got_a == (want_a, "subscribe" if ask_a else None), f"own {got_a}"
            assert got_b == (sub_b, "subscribe" if ask_b else None), f"contact's {got_b}"
            if sub_a == PRE or sub_a.endswith("+"):
                assert approved == "true", "not pre-approved"
            if delivered is not None:
                number = sum(local(e) == "presence" and e.get("type") == kind for e in b.inbox)
                assert number == delivered, f"delivered {number} times"


async def act_settled(a, b):
    await settle(a, b, rounds=1)


@scenario("cross")
async def subscription_table_one(t):
    for start in ("none", "none+out", "none+in"):
        await cells(t, start)


@scenario("local")
async def subscription_table_two(t):
    for start in ("none+out+in", "to", "to+in"):
        await cells(t, start)


@scenario("cross")
async def subscription_table_three(t):
    for start in ("from", "from+out", "both"):
        await cells(t, start)


@scenario("local", "cross")
async def subscription_keeping(t):
    a = await t.online(0)
    b_user = t.user(1)
    bare = b_user["jid"]
    a.presence("<status>please</status><x xmlns='urn:ext'>kept</x>", to=bare, type="subscribe", id="kept")
    await a.push(bare, ask="subscribe")
    for visit in ("first", "second"):
        async with t.rule(f"a request to who is not there is kept whole and delivered at the {visit} login", "RFC 6121 3.1.3, ejabberd#4295"):
            b = await t.login(1, visit)
            await b.roster()
            await b.iq("get", PING, to=t.domain)
            b.none(lambda e: e.get("type") == "subscribe", "a request before presence")
            b.presence()
            got = await b.get_presence(a.bare, "subscribe")
            assert child(got, CLIENT, "status").text == "please" and child(got, "urn:ext", "x").text == "kept", show(got)
            await b.close()
    async with t.rule("a client with negative priority gets the request too", "RFC 6121 3.1.3, spec 6.1.7"):
        b = await t.login(1, "low")
        b.presence("<priority>-5</priority>")
        await b.get_presence(a.bare, "subscribe")
    async with t.rule("an answered request is not delivered again", "RFC 6121 3.1.3"):
        await b.roster()
        b.presence(to=a.bare, type="subscribed")
        await b.push(a.bare, subscription="from")
        c = await t.online(1, "next")
        await settle(a, c)
        c.none(lambda e: e.get("type") == "subscribe", "an answered request")
    async with t.rule("a request to nobody is met with silence", "RFC 6121 8.5.1, spec 6.1.4, S12"):
        a.inbox.clear()
        nobody = t.stranger()
        a.presence(to=nobody, type="subscribe")
        await a.push(nobody, ask="subscribe")
        await settle(a)
        a.none(presence_of(nobody), "an answer from nobody")


@scenario("local", "cross")
async def subscription_corners(t):
    a, b = await t.online(0), await t.online(1)
    everybody = (a, b)
    async with t.rule("two who ask and approve at the same time end in Both, on both sides", "RFC 6121 A.2, A.3, spec 6.1.6"):
        for one, other in ((a, b), (b, a)):
            one.presence(to=other.bare, type="subscribe")
        for one, other in ((a, b), (b, a)):
            await one.get_presence(other.bare, "subscribe")
        for one, other in ((a, b), (b, a)):
            one.presence(to=other.bare, type="subscribed")
        await a.push(b.bare, subscription="both")
        await b.push(a.bare, subscription="both")
        await a.get_presence(b.jid)
        await b.get_presence(a.jid)
        assert await state(a, b.bare) == ("both", None) and await state(b, a.bare) == ("both", None)
    async with t.rule("two who remove each other at the same time end without items", "RFC 6121 2.5, spec 6.1.6"):
        a.send(stanza("iq", f"<query xmlns='{ROSTER}'><item jid='{b.bare}' subscription='remove'/></query>", type="set", id="rm-a"))
        b.send(stanza("iq", f"<query xmlns='{ROSTER}'><item jid='{a.bare}' subscription='remove'/></query>", type="set", id="rm-b"))
        await a.take(lambda e: e.get("id") == "rm-a")
        await b.take(lambda e: e.get("id") == "rm-b")
        await settle(*everybody)
        for one, other in ((a, b), (b, a)):
            assert (await state(one, other.bare))[0] in ("absent", "none"), await state(one, other.bare)
            if (await state(one, other.bare))[0] == "none":
                await one.remove(other.bare)
    async with t.rule("an item that is added while its request is pending keeps the request", "RFC 6121 3.1.3, A.1"):
        a.presence(to=b.bare, type="subscribe")
        await b.get_presence(a.bare, "subscribe")
        await b.put(a.bare, "A")
        assert await state(b, a.bare) == ("none", None)
        b.presence(to=a.bare, type="subscribed")
        await a.push(b.bare, subscription="to")
        assert await state(b, a.bare) == ("from", None) and (await b.items())[a.bare].get("name") == "A"
    async with t.rule("a set keeps the subscription", "RFC 6121 2.4"):
        await a.put(b.bare, "B", ["X"])
        assert await state(a, b.bare) == ("to", None)
    async with t.rule("a contact that is away learns of a change at its next login", "RFC 6121 3.2, spec 6.1.6"):
        bare = a.bare
        await a.close()
        b.presence(to=bare, type="unsubscribed")
        await b.push(bare, subscription="none")
        a = await t.online(0, "back")
        assert await state(a, b.bare) == ("none", None)
        await settle(a, b)
        a.none(lambda e: local(e) == "presence" and e.get("type") is None and sent_by(e, b.bare), "presence without a subscription")
    async with t.rule("subscription stanzas to the own account or to nobody in particular change nothing", "RFC 6121 3.1"):
        before = await a.items()
        for kind in ("subscribe", "subscribed", "unsubscribe", "unsubscribed"):
            a.presence(to=a.bare, type=kind, id="self")
            a.presence(type=kind, id="self")
        await settle(a)
        assert set(await a.items()) == set(before), set(await a.items()) - set(before)
        assert len([e for e in a.inbox if e.get("id") == "self" and e.get("type") != "error"]) == 0


@scenario("local", "cross")
async def pre_approval(t):
    a, b = await t.online(0), await t.online(1)
    async with t.rule("pre-approval: approved='true', pushed, nothing sent", "RFC 6121 3.4.2"):
        b.presence(to=a.bare, type="subscribed")
        await b.push(a.bare, subscription="none", approved="true")
        await settle(a, b)
        a.none(presence_of(b.bare), "an approval nobody asked for")
    async with t.rule("a pre-approved request is answered by the server, not delivered; presence flows", "RFC 6121 3.4.2"):
        a.presence(to=b.bare, type="subscribe")
        await a.get_presence(b.bare, "subscribed")
        await a.push(b.bare, subscription="to")
        await b.push(a.bare, subscription="from")
        await a.get_presence(b.jid)
        await settle(a, b)
        b.none(lambda e: e.get("type") == "subscribe", "a request that was approved before")
    c = await t.online(2)
    async with t.rule("pre-approval taken back by unsubscribed: the request is delivered", "RFC 6121 3.4.2"):
        b.presence(to=c.bare, type="subscribed")
        await b.push(c.bare, approved="true")
        b.presence(to=c.bare, type="unsubscribed")
        await b.push(c.bare, approved=None)
        c.presence(to=b.bare, type="subscribe")
        await b.get_presence(c.bare, "subscribe")
    async with t.rule("removal of the contact takes pre-approval back and refuses a pending request", "RFC 6121 2.5, 3.4.2, spec 6.1.5"):
        await b.remove(c.bare)
        await c.get_presence(b.bare, "unsubscribed")
        assert (await state(c, b.bare))[1] is None


@scenario("local", "cross")
async def roster_removal(t):
    a, b = await t.online(0), await t.online(1)
    await t.befriend(a, b)
    async with t.rule("removing a contact of Both: unsubscribe and unsubscribed, None on the other side, unavailable both ways", "RFC 6121 2.5.2"):
        await a.remove(b.bare)
        await a.push(b.bare, subscription="remove")
        await b.get_presence(a.bare, "unsubscribe")
        await b.get_presence(a.bare, "unsubscribed")
        await b.get_presence(a.jid, "unavailable")
        await a.get_presence(b.jid, "unavailable")
        await settle(a, b)
        assert await state(b, a.bare) == ("none", None) and await state(a, b.bare) == ("absent", None)
    async with t.rule("after removal presence no longer passes", "RFC 6121 2.5.2, S30"):
        a.inbox.clear(), b.inbox.clear()
        b.presence("<show>away</show>"), a.presence("<show>away</show>")
        await settle(a, b)
        a.none(presence_of(b.bare), "presence"), b.none(presence_of(a.bare), "presence")
