"""RFC 6121: presence, and where stanzas go."""

from conformance_case import scenario
from conformance_roster import PING, presence_of, refused
from conformance_wire import CLIENT, child, error_of, fresh, local, settle, show, stanza


# Presence


CAPS = "<c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:client' ver='{}'/>"


@scenario("local", "cross")
async def presence_flow(t):
    a, b = await t.online(0, "one"), await t.online(1)
    await t.befriend(a, b)
    await a.close()
    await b.get_presence(a.jid, "unavailable")
    async with t.rule("initial presence: contacts get it as it was sent, with capabilities", "RFC 6121 4.2.2, XEP-0115"):
        a = await t.login(0, "one")
        await a.roster()
        await a.available("<show>chat</show><status xml:lang='de'>da</status><priority>3</priority>" + CAPS.format("v1"))
        got = await b.get_presence(a.jid)
        assert child(got, CLIENT, "show").text == "chat" and child(got, CLIENT, "priority").text == "3", show(got)
        assert child(got, "http://jabber.org/protocol/caps", "c").get("ver") == "v1", show(got)
        assert got.get("to") in (b.jid, b.bare), show(got)
    async with t.rule("initial presence: the client gets its contacts' presence", "RFC 6121 4.2.2, 4.3"):
        await a.get_presence(b.jid)
    async with t.rule("no contact gets a probe", "RFC 6121 4.3.2"):
        await settle(a, b)
        b.none(lambda e: e.get("type") == "probe", "a probe")
    async with t.rule("own other resources see each other", "RFC 6121 4.2.2, 4.2.3"):
        a2 = await t.online(0, "two", "<show>xa</show>")
        await a.get_presence(a2.jid)
        await a2.get_presence(a.jid)
    async with t.rule("the own other resource's contacts are given too, each once", "RFC 6121 4.2.2"):
        await a2.get_presence(b.jid)
        await settle(a, a2, b)
        a2.none(lambda e: local(e) == "presence" and e.get("from") == b.jid, "a second copy")
    async with t.rule("a change goes to contacts and own resources, new capabilities too", "RFC 6121 4.4.2, XEP-0115"):
        for one in (a, a2, b):
            one.inbox.clear()
        a.presence("<show>dnd</show>" + CAPS.format("v2"))
        for one in (a2, b):
            got = await one.get_presence(a.jid)
            assert child(got, CLIENT, "show").text == "dnd" and child(got, "http://jabber.org/protocol/caps", "c").get("ver") == "v2", show(got)
    async with t.rule("a change makes nobody's presence come again", "RFC 6121 4.4.2"):
        await settle(a, a2, b)
        a.none(presence_of(b.jid), "a contact's presence after a change")
    async with t.rule("a later resource of the contact is seen", "RFC 6121 4.2.3"):
        b2 = await t.online(1, "late")
        await a.get_presence(b2.jid)
        await a2.get_presence(b2.jid)
        got = await b2.get_presence(a.jid)
        assert child(got, CLIENT, "show").text == "dnd", show(got)
        await b2.get_presence(a2.jid)
    async with t.rule("unavailable: status passes to contacts and own resources, and nothing more comes to the client", "RFC 6121 4.5.2"):
        for one in (a, a2, b, b2):
            one.inbox.clear()
        a.presence("<status>gone home</status>", type="unavailable")
        for one in (a2, b, b2):
            got = await one.get_presence(a.jid, "unavailable")
            assert child(got, CLIENT, "status").text == "gone home", show(got)
        b.presence("<show>away</show>")
        await a2.get_presence(b.jid)
        await settle(a, b, a2)
        a.none(presence_of(b.jid), "presence after unavailable")
    async with t.rule("a client that is unavailable still gets roster pushes, and gets what is sent to its full JID", "RFC 6121 4.5.3, 8.5.3.1, 2.1.6"):
        number = b.message(a.jid, "are you connected?")
        await a.get_message(number)
        await a2.put(f"new@{t.domain}")
        await a.push(f"new@{t.domain}")
    async with t.rule("available again is initial presence again", "RFC 6121 4.2"):
        await a.available()
        await b.get_presence(a.jid)
        await a.get_presence(b.jid)
    async with t.rule("the end of a stream is unavailable to all, once", "RFC 6121 4.5.2"):
        for one in (a2, b, b2):
            one.inbox.clear()
        await a.close()
        for one in (a2, b, b2):
            await one.get_presence(a.jid, "unavailable")
        await settle(a2, b, b2)
        for one in (a2, b, b2):
            one.none(lambda e: local(e) == "presence" and e.get("from") == a.jid, "a second end")


@scenario()
async def presence_forms(t):
    a, b = await t.online(0), await t.online(1)
    await t.befriend(a, b)
    for name, inner in (("priority 128", "<priority>128</priority>"), ("priority -129", "<priority>-129</priority>"), ("priority 'high'", "<priority>high</priority>"),
                        ("an unknown show", "<show>sleeping</show>"), ("two shows", "<show>away</show><show>dnd</show>")):
        async with t.rule(f"presence with {name} is bad-request, and goes to nobody", "RFC 6121 4.7.2.1, 4.7.2.3"):
            number = fresh()
            a.presence(inner, id=number)
            got = await a.take(lambda e: e.get("id") == number and e.get("type") == "error")
            refused(got, "bad-request")
            await settle(a, b)
            b.none(presence_of(a.jid), "bad presence")
    async with t.rule("an unknown type of presence is bad-request", "RFC 6121 4.7.1"):
        a.presence(type="lurking", id="lurk")
        refused(await a.take(lambda e: e.get("id") == "lurk"), "bad-request")
    for value in ("-128", "127", "0"):
        async with t.rule(f"priority {value} is taken", "RFC 6121 4.7.2.3"):
            a.presence(f"<priority>{value}</priority>")
            got = await b.get_presence(a.jid)
            assert child(got, CLIENT, "priority").text == value, show(got)
    for value in ("away", "chat", "dnd", "xa"):
        async with t.rule(f"show {value} passes", "RFC 6121 4.7.2.1"):
            a.presence(f"<show>{value}</show>")
            assert child(await b.get_presence(a.jid), CLIENT, "show").text == value


@scenario("local", "cross")
async def presence_directed(t):
    a, b, c = await t.online(0), await t.online(1), await t.online(2)
    async with t.rule("directed presence reaches who is no contact, at a full JID only that one", "RFC 6121 4.6.3"):
        b2 = await t.online(1, "other")
        a.presence("<status>for you</status>" + CAPS.format("d"), to=b.jid)
        got = await b.get_presence(a.jid)
        assert child(got, CLIENT, "status").text == "for you" and got.get("to") == b.jid and child(got, "http://jabber.org/protocol/caps", "c") is not None, show(got)
        await settle(a, b, b2)
        b2.none(presence_of(a.bare), "presence directed at another resource")
    async with t.rule("at a bare JID every available resource gets it, unchanged", "RFC 6121 8.5.2.1.2"):
        a.presence("<status>all</status>", to=b.bare)
        for one in (b, b2):
            got = await one.get_presence(a.jid)
            assert got.get("to") == b.bare, show(got)
    async with t.rule("later broadcasts do not go there", "RFC 6121 4.6.3"):
        a.presence("<show>away</show>")
        await settle(a, b, b2)
        b.none(presence_of(a.jid), "a broadcast")
    async with t.rule("unavailable goes to all who got directed presence", "RFC 6121 4.6.3, 4.5.2"):
        a.presence(to=c.jid)
        await c.get_presence(a.jid)
        a.presence("<status>bye</status>", type="unavailable")
        for one in (b, b2, c):
            await one.get_presence(a.jid, "unavailable")
    async with t.rule("who is unavailable can still direct presence; the end of the stream ends it", "RFC 6121 4.6.1"):
        a.presence(to=b.jid)
        await b.get_presence(a.jid)
        await a.close()
        await b.get_presence(a.jid, "unavailable")
    d = await t.online(0, "again")
    async with t.rule("directed unavailable ends it: no second one later", "RFC 6121 4.6.3"):
        d.presence(to=b.jid)
        await b.get_presence(d.jid)
        d.presence(to=b.jid, type="unavailable")
        await b.get_presence(d.jid, "unavailable")
        await settle(d, b)
        d.drop()
        await c.iq("get", PING, to=t.domain)
        await settle(b, c)
        b.none(presence_of(d.jid), "a second unavailable")
    async with t.rule("a contact that got directed presence too gets one unavailable", "RFC 6121 4.6.3, 4.5.2"):
        f = await t.online(2, "friend")
        await t.befriend(b, f)
        f.presence(to=b.jid)
        await b.get_presence(f.jid)
        await f.close()
        await b.get_presence(f.jid, "unavailable")
        await settle(b, c)
        b.none(presence_of(f.jid), "a second unavailable")
    async with t.rule("a connection that breaks ends directed presence too", "RFC 6121 4.6.3, 4.5.2"):
        e = await t.online(0, "breaks")
        e.presence(to=b.jid)
        await b.get_presence(e.jid)
        e.drop()
        await b.get_presence(e.jid, "unavailable")
    async with t.rule("directed presence to nobody is ignored", "RFC 6121 8.5.1"):
        f = await t.online(0, "f")
        for to in (t.stranger(), t.stranger() + "/x", b.bare + "/none"):
            f.presence(to=to, id="void")
        await settle(f, b)
        f.none(lambda e: e.get("id") == "void", "an answer to directed presence")


@scenario("local", "cross")
async def presence_probes(t):
    a, b, c = await t.online(0), await t.online(1, inner="<show>away</show>"), await t.online(2)
    await t.befriend(a, b)
    b.presence("<show>dnd</show><status>busy</status>" + CAPS.format("p"))
    await a.get_presence(b.jid)
    await settle(a, b)
    a.inbox.clear()
    async with t.rule("a subscriber's probe: nothing, or the last presence as it was sent", "RFC 6121 4.3.2"):
        a.presence(to=b.bare, type="probe")
        await settle(a, b)
        got = [e for e in a.inbox if presence_of(b.bare)(e)]
        assert all(e.get("from") == b.jid and child(e, CLIENT, "show").text == "dnd" for e in got) and len(got) <= 1, [show(e) for e in got]
    async with t.rule("a probe never reaches the client", "RFC 6121 4.3.2"):
        b.none(lambda e: e.get("type") == "probe", "a probe")
    async with t.rule("a stranger's probe tells nothing about who is there", "RFC 6121 4.3.2, S12, S30"):
        answers = {}
        for name, to in (("online", b.bare), ("full", b.jid), ("nobody", t.stranger())):
            c.inbox.clear()
            c.presence(to=to, type="probe")
            await settle(c, b)
            answers[name] = [(local(e), e.get("type")) for e in c.inbox if local(e) == "presence" and e.get("from", "").partition("/")[0] == to.partition("/")[0]]
            assert all(kind in ("unsubscribed", "unavailable") for _, kind in answers[name]), answers
        assert answers["online"] == answers["nobody"], answers
    await a.close()
    await b.get_presence(a.jid, "unavailable")
    async with t.rule("after a login the contacts' presence is what they sent last, with all of its children", "RFC 6121 4.3.2"):
        a = await t.online(0, "again")
        got = await a.get_presence(b.jid)
        assert child(got, CLIENT, "show").text == "dnd" and child(got, CLIENT, "status").text == "busy", show(got)
        assert child(got, "http://jabber.org/protocol/caps", "c").get("ver") == "p", show(got)
    await b.close()
    await a.get_presence(b.jid, "unavailable")
    async with t.rule("at login, a contact who is away for good: nothing, or unavailable", "RFC 6121 4.3.2"):
        a2 = await t.online(0, "third")
        await settle(a, a2)
        assert all(e.get("type") == "unavailable" for e in a2.inbox if presence_of(b.bare)(e)), [show(e) for e in a2.inbox]


@scenario()
async def limits(t):
    operator = t.world.operator
    a, b = await t.online(0), await t.online(1)
    async with operator.lock:
        async with operator.setting("roster.max_contacts", "10"), t.rule("a contact too many is refused, and nothing is lost", "S15, issue 3 section 6"):
            for i in range(10):
                assert (await a.put(f"c{i}@{t.domain}")).get("type") == "result"
            answer = await a.put(f"c10@{t.domain}")
            assert error_of(answer) and error_of(answer)[1] in ("resource-constraint", "policy-violation", "not-allowed", "not-acceptable"), show(answer)
            assert (await a.put("c0@" + t.domain, "renamed")).get("type") == "result"
            assert len(await a.items()) == 10
            assert (await a.remove(f"c1@{t.domain}")).get("type") == "result"
            assert (await a.put(f"c11@{t.domain}")).get("type") == "result"
        async with operator.setting("presence.max_directed", "10"), t.rule("directed presence beyond its limit is refused, not forgotten", "S15, spec 6.1.7"):
            a.presence(to=b.jid)
            await b.get_presence(a.jid)
            for i in range(10):
                a.presence(to=f"d{i}@{t.domain}", id=f"directed{i}")
            await a.take(lambda e: e.get("id") == "directed9" and e.get("type") == "error", "refusal")
            a.presence(type="unavailable")
            await b.get_presence(a.jid, "unavailable")
    async with t.rule("a lookup of one's own roster is exact after that", "RFC 6121 2.2"):
        assert {f"c{i}@{t.domain}" for i in (0, 2, 3, 4, 5, 6, 7, 8, 9, 11)} == set(await a.items())


# Where stanzas go


async def routed(t, sender, sent, receivers, bystanders=()):
    """Which of the receivers got the stanza of that id, and what came back to the sender."""
    await settle(sender, *receivers, *bystanders)
    got = {name: [e for e in r.inbox if e.get("id") == sent] for name, r in zip("abcdefgh", (*receivers, *bystanders))}
    back = [e for e in sender.inbox if e.get("id") == sent]
    return {name for name, found in got.items() if found}, max((len(f) for f in got.values()), default=0), back


def expect_route(result, wanted, error, condition="service-unavailable", alternatives=()):
    got, most, back = result
    assert most <= 1, f"delivered {most} times to one client"
    assert got == wanted or got in alternatives, f"delivered to {sorted(got)}, not to {sorted(wanted)}"
    if error is None:
        return
    if error:
        assert len(back) == 1 and error_of(back[0]) and error_of(back[0])[1] == condition, f"came back: {[show(e) for e in back]}"
    else:
        assert not back, f"came back: {[show(e) for e in back]}"


TYPES = ("normal", None, "chat", "headline", "groupchat", "error", "strange")
KEPT = ("normal", None, "chat", "strange")  # with a body: they wait for who is not there
ERROR = "<error type='cancel'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>"


def typed(kind, number, to):
    return stanza("message", "<body>hello</body>" + (ERROR if kind == "error" else ""), type=kind, id=number, to=to)


@scenario("local", "cross")
async def routing_to_bare(t):
    s = await t.online(0)
    high, zero, low = await t.online(1, "high", "<priority>5</priority>"), await t.online(1, "zero"), await t.online(1, "low", "<priority>-1</priority>")
    silent = await t.login(1, "silent")  # bound, not available
    clients = (high, zero, low, silent)
    for kind in TYPES:
        name = kind or "no type"
        async with t.rule(f"message {name} to a bare JID with resources", "RFC 6121 8.5.2.1.1, spec 6.1.4"):
            number = fresh("bare")
            s.send(typed(kind, number, high.bare))
            result = await routed(t, s, number, clients)
            if kind == "groupchat":
                expect_route(result, set(), True)
            elif kind == "error":
                expect_route(result, set(), False)
            elif kind == "headline":
                expect_route(result, {"a", "b"}, False)
            else:
                expect_route(result, {"a", "b"}, False, alternatives=({"a"},))
                got = next(e for e in high.inbox if e.get("id") == number)
                assert got.get("to") == high.bare, f"'to' was rewritten: {show(got)}"
    async with t.rule("an IQ get or set to a bare JID is the server's to answer, never a client's", "RFC 6121 8.5.2.1.3"):
        for kind in ("get", "set"):
            answer = await s.iq(kind, "<q xmlns='urn:unknown'/>", to=high.bare)
            refused(answer, "service-unavailable")
        await settle(s, *clients)
        for one in clients:
            one.none(lambda e: local(e) == "iq" and e.find("{urn:unknown}q") is not None, "an IQ for the account")
    async with t.rule("an IQ result or error to a bare JID is dropped", "RFC 6121 8.5.2.1.3"):
        for kind in ("result", "error"):
            s.send(stanza("iq", ERROR if kind == "error" else "", type=kind, id="gone", to=high.bare))
        expect_route(await routed(t, s, "gone", clients), set(), False)
    async with t.rule("directed presence to a bare JID goes to all available resources, whatever their priority", "RFC 6121 8.5.2.1.2"):
        for kind in (None, "unavailable"):
            number = fresh("pres")
            s.presence(to=high.bare, type=kind, id=number)
            expect_route(await routed(t, s, number, clients), {"a", "b", "c"}, False)
    async with t.rule("a message to the own bare JID follows the same rules", "RFC 6121 8.5.2, spec 6.1.4"):
        number = fresh("own")
        high.send(typed("chat", number, high.bare))
        await settle(*clients)
        assert [len([e for e in one.inbox if e.get("id") == number]) for one in (zero, low, silent)] == [1, 0, 0]
        number = fresh("own")
        high.send(typed("chat", number, None))  # no address: the own account
        await settle(*clients)
        assert [len([e for e in one.inbox if e.get("id") == number]) for one in (zero, low, silent)] == [1, 0, 0]


@scenario("local", "cross")
async def routing_to_full(t):
    s = await t.online(0)
    one, low = await t.online(1, "one"), await t.online(1, "low", "<priority>-1</priority>")
    silent = await t.login(1, "silent")
    clients = (one, low, silent)
    for kind in TYPES:
        for index, target in enumerate(clients):
            async with t.rule(f"message {kind or 'no type'} to the full JID of a {('available', 'negative', 'connected')[index]} resource", "RFC 6121 8.5.3.1"):
                number = fresh("full")
                s.send(typed(kind, number, target.jid))
                expect_route(await routed(t, s, number, clients), {"abc"[index]}, False)
    async with t.rule("IQs of all types to a full JID are delivered", "RFC 6121 8.5.3.1"):
        for kind in ("get", "set", "result", "error"):
            number = fresh("fulliq")
            s.send(stanza("iq", ERROR if kind == "error" else "<q xmlns='urn:unknown'/>", type=kind, id=number, to=one.jid))
            expect_route(await routed(t, s, number, clients), {"a"}, False)
    nowhere = one.bare + "/nowhere"
    for kind in TYPES:
        async with t.rule(f"message {kind or 'no type'} to a full JID that no resource has", "RFC 6121 8.5.3.2.1, spec 6.1.4"):
            number = fresh("none")
            s.send(typed(kind, number, nowhere))
            result = await routed(t, s, number, clients)
            if kind == "error":
                expect_route(result, set(), False)
            elif kind == "groupchat":
                expect_route(result, set(), True)
            elif kind == "headline":
                expect_route(result, set(), None)
            elif kind == "chat":
                expect_route(result, {"a"}, False)
            else:  # normal: ignored, refused, or as if to the bare JID
                expect_route(result, set(), None, alternatives=({"a"},))
                assert result[0] or result[2], "neither delivered nor refused: silence"
    async with t.rule("IQ get and set to a full JID that no resource has: service-unavailable", "RFC 6121 8.5.3.2.3"):
        for kind in ("get", "set"):
            answer = await s.iq(kind, "<q xmlns='urn:unknown'/>", to=nowhere)
            refused(answer, "service-unavailable")
            assert answer.get("from") == nowhere, show(answer)
    async with t.rule("presence and IQ answers to a full JID that no resource has are dropped", "RFC 6121 8.5.3.2.2"):
        for text in (stanza("presence", id="lost", to=nowhere), stanza("presence", id="lost", to=nowhere, type="unavailable"),
                     stanza("iq", id="lost", type="result", to=nowhere), stanza("iq", ERROR, id="lost", type="error", to=nowhere)):
            s.send(text)
        expect_route(await routed(t, s, "lost", clients), set(), False)


@scenario("local", "cross")
async def routing_to_few(t):
    s = await t.online(0)
    low = await t.online(1, "low", "<priority>-1</priority>")
    silent = await t.login(1, "silent")
    clients, kept = (low, silent), []
    for kind in TYPES:
        async with t.rule(f"message {kind or 'no type'} to a bare JID with negative priorities only: as if nobody were there", "RFC 6121 8.5.2.1.1, spec 6.1.4"):
            number = fresh("neg")
            s.send(typed(kind, number, low.bare))
            expect_route(await routed(t, s, number, clients), set(), kind == "groupchat")
            kept += [number] if kind in KEPT else []
    async with t.rule("what was for nobody waits for a client of priority 0 or more, in order", "XEP-0160 2, RFC 6121 8.5.2.1.1"):
        low.presence("<priority>0</priority>")
        await low.until(lambda: low.find(lambda e: e.get("id") == kept[-1]) is not None, 10, "the last of what waits")
        got = [e for e in low.inbox if e.get("id") in kept]
        assert [e.get("id") for e in got] == kept, [show(e) for e in got]
        assert all(child(e, "urn:xmpp:delay", "delay") is not None for e in got), [show(e) for e in got]
    absent = t.user(2)["jid"]
    for kind in TYPES:
        for name, to in (("bare", absent), ("full", absent + "/desk")):
            async with t.rule(f"message {kind or 'no type'} to the {name} JID of who is not there", "RFC 6121 8.5.2.2.1, 8.5.3.2.1, issue 3 section 5"):
                number = fresh("abs")
                s.send(typed(kind, number, to))
                waits = kind in KEPT and (name == "bare" or kind == "chat")
                expect_route(await routed(t, s, number, clients), set(), None if kind == "headline" else kind != "error" and not waits)
    async with t.rule("IQs to the bare JID of who is not there are answered by the server", "RFC 6121 8.5.2.2.3"):
        refused(await s.iq("get", "<q xmlns='urn:unknown'/>", to=absent), "service-unavailable")
        refused(await s.iq("get", "<q xmlns='urn:unknown'/>", to=absent + "/desk"), "service-unavailable")
    async with t.rule("presence to who is not there is ignored", "RFC 6121 8.5.2.2.2"):
        s.presence(to=absent, id="ignored")
        s.presence(to=absent + "/desk", id="ignored")
        expect_route(await routed(t, s, "ignored", clients), set(), False)


@scenario()
async def routing_to_nobody(t):
    s = await t.online(0)
    nobody = t.stranger()
    for kind in TYPES:
        for name, suffix in (("bare", ""), ("full", "/desk")):
            async with t.rule(f"message {kind or 'no type'} to the {name} JID of nobody: service-unavailable", "RFC 6121 8.5.1"):
                number = fresh("nob")
                s.send(typed(kind, number, nobody + suffix))
                await routed(t, s, number, ())
                got = [error_of(e)[1] for e in s.inbox if e.get("id") == number]
                assert got == ([] if kind in ("error", "headline") else ["service-unavailable"]), got
    absent = t.user(2)["jid"]
    for kind in ("get", "set"):
        async with t.rule(f"IQ {kind} to nobody: service-unavailable", "RFC 6121 8.5.1"):
            for to in (nobody, nobody + "/desk"):
                refused(await s.iq(kind, "<q xmlns='urn:unknown'/>", to=to), "service-unavailable")
    async with t.rule("presence of any type to nobody is ignored, or answered as to who is not there", "RFC 6121 8.5.1, S12"):
        for kind in (None, "unavailable", "unsubscribe", "unsubscribed", "subscribed", "probe"):
            shapes = []
            for to in (nobody, absent):
                s.inbox = [e for e in s.inbox if local(e) != "presence"]
                s.presence(to=to, type=kind)
                await settle(s)
                shapes.append([e.get("type") for e in s.inbox if presence_of(to)(e)])
            assert shapes[0] == shapes[1], f"{kind}: {shapes}"
    async with t.rule("a message to the domain is answered or taken, not lost in a loop", "RFC 6121 8.4"):
        number = s.message(t.domain, "hello server")
        await settle(s)
        back = [e for e in s.inbox if e.get("id") == number]
        assert len(back) <= 1, [show(e) for e in back]
    async with t.rule("a message to the domain with a resource: refused or ignored, once", "RFC 6121 8.4"):
        number = s.message(t.domain + "/nowhere", "hello server")
        await settle(s)
        assert len([e for e in s.inbox if e.get("id") == number]) <= 1
