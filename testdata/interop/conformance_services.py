"""What the server does beyond RFC 6121: discovery, small queries, storage, carbons, blocking."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from datetime import datetime, timezone

import slixmpp
from conformance_case import becomes, scenario
from conformance_roster import PING, presence_of, refused
from conformance_wire import CLIENT, child, error_of, fresh, local, settle, show, stanza
from person import Person

INFO = "http://jabber.org/protocol/disco#info"
ITEMS = "http://jabber.org/protocol/disco#items"
CAPS = "http://jabber.org/protocol/caps"
CARBONS = "urn:xmpp:carbons:2"
FORWARD = "urn:xmpp:forward:0"
BLOCKING = "urn:xmpp:blocking"
COMMANDS = "http://jabber.org/protocol/commands"
ADMIN = "http://jabber.org/protocol/admin"
DATA = "jabber:x:data"
REGISTER = "jabber:iq:register"
VCARD = "vcard-temp"
PRIVATE = "jabber:iq:private"
LAST = "jabber:iq:last"

DOMAIN_FEATURES = {INFO, ITEMS, CAPS, CARBONS, BLOCKING, COMMANDS, VCARD, PRIVATE, LAST, "urn:xmpp:ping", "urn:xmpp:time", "jabber:iq:version"}
ACCOUNT_FEATURES = {INFO, ITEMS, VCARD, CARBONS, BLOCKING, "urn:xmpp:ping"}


async def info(client, to, node=None):
    return await client.iq("get", f"<query xmlns='{INFO}'" + (f" node='{node}'" if node else "") + "/>", to=to)


def features(answer):
    return [f.get("var") for f in child(answer, INFO, "query").findall(f"{{{INFO}}}feature")]


def identities(answer):
    return [(i.get("category"), i.get("type"), i.get("{http://www.w3.org/XML/1998/namespace}lang") or "", i.get("name") or "")
            for i in child(answer, INFO, "query").findall(f"{{{INFO}}}identity")]


def forms(element):
    """Forms by FORM_TYPE: values by field."""
    found = {}
    for x in element.iter(f"{{{DATA}}}x"):
        fields = {f.get("var"): [v.text or "" for v in f.findall(f"{{{DATA}}}value")] for f in x.findall(f"{{{DATA}}}field")}
        found[(fields.pop("FORM_TYPE", None) or [""])[0]] = fields
    return found


def verification(answer):
    """The capabilities hash of XEP-0115 section 5.1."""
    s = "".join("/".join(i) + "<" for i in sorted((c, t, lang, name) for c, t, lang, name in identities(answer)))
    s += "".join(f + "<" for f in sorted(features(answer)))
    for name, fields in sorted(forms(answer).items()):
        s += name + "<" + "".join(var + "<" + "".join(v + "<" for v in sorted(values)) for var, values in sorted(fields.items()))
    return s.encode()


# Discovery and small queries


@scenario()
async def discovery(t):
    async with t.world.operator.lock:  # other scenarios turn features on and off
        await discovered(t)


async def discovered(t):
    a, b, c = await t.online(0), await t.online(1), await t.online(2)
    await t.befriend(a, b)
    domain = await info(a, t.domain)
    async with t.rule("the domain is a server of type im", "XEP-0030 3.1, spec 5.1"):
        assert ("server", "im") in [i[:2] for i in identities(domain)], show(domain)
    async with t.rule("the domain advertises what is there", "spec 5.1, issue 3 section 5"):
        missing = DOMAIN_FEATURES - set(features(domain))
        assert not missing, missing
    async with t.rule("nothing is advertised twice", "XEP-0030 3.1"):
        assert len(set(features(domain))) == len(features(domain)) and len(set(identities(domain))) == len(identities(domain)), show(domain)
    async with t.rule("what is off or missing is not advertised: register, upload, rooms", "spec 5.1"):
        wrong = [f for f in features(domain) if re.search(r"iq:register|http:upload|/muc|pubsub|push:0|extdisco", f)]
        assert not wrong, wrong
    account = await info(a, a.bare)
    async with t.rule("the own bare JID is account/registered with its features", "XEP-0030 8, spec 5.1"):
        assert ("account", "registered") in [i[:2] for i in identities(account)], show(account)
        missing = ACCOUNT_FEATURES - set(features(account))
        assert not missing, missing
        assert account.get("from") == a.bare, show(account)
    for name, client, to in (("a subscriber", b, a.bare),):
        async with t.rule(f"{name} may look at an account", "XEP-0030 8"):
            answer = await info(client, to)
            assert answer.get("type") == "result" and ("account", "registered") in [i[:2] for i in identities(answer)], show(answer)
    async with t.rule("a stranger gets the same for an account as for nobody: service-unavailable", "XEP-0030 8, spec 6.1.11, S12"):
        for query in (INFO, ITEMS):
            shapes = []
            for to in (a.bare, t.stranger()):
                answer = await c.iq("get", f"<query xmlns='{query}'/>", to=to)
                refused(answer, "service-unavailable")
                shapes.append(error_of(answer))
            assert shapes[0] == shapes[1], shapes
    async with t.rule("disco#items of domain and account are answered, the node is echoed", "XEP-0030 4"):
        for to in (t.domain, a.bare):
            answer = await a.iq("get", f"<query xmlns='{ITEMS}'/>", to=to)
            assert answer.get("type") == "result" and child(answer, ITEMS, "query") is not None, show(answer)
    async with t.rule("an unknown node: item-not-found (or service-unavailable)", "XEP-0030 7"):
        for to in (t.domain, a.bare):
            refused(await info(a, to, "urn:no:such:node"), "item-not-found", "service-unavailable")
    async with t.rule("a set is refused", "XEP-0030 3"):
        answer = await a.iq("set", f"<query xmlns='{INFO}'/>", to=t.domain)
        assert answer.get("type") == "error", show(answer)
    caps = child(a.offers, CAPS, "c")
    async with t.rule("the capabilities hash of the stream features is that of the domain's info", "XEP-0115 5.1, 6.3"):
        assert caps is not None and caps.get("hash") == "sha-1", show(caps)
        want = base64.b64encode(hashlib.sha1(verification(domain)).digest()).decode()
        assert caps.get("ver") == want, f"{caps.get('ver')} is not {want} of {verification(domain)}"
    async with t.rule("node#ver is answered with the same info and the node echoed", "XEP-0115 6.2"):
        node = f"{caps.get('node')}#{caps.get('ver')}"
        answer = await info(a, t.domain, node)
        assert child(answer, INFO, "query").get("node") == node and set(features(answer)) == set(features(domain)), show(answer)
    async with t.rule("caps#optimize is advertised if capabilities are left out", "XEP-0115 8.4, spec 5.1"):
        assert CAPS in features(domain)
    async with t.rule("every advertised IQ namespace of the domain answers something else than service-unavailable", "issue 3 section 5"):
        kinds = {"urn:xmpp:ping": PING, "urn:xmpp:time": "<time xmlns='urn:xmpp:time'/>", "jabber:iq:version": "<query xmlns='jabber:iq:version'/>",
                 LAST: f"<query xmlns='{LAST}'/>", COMMANDS: f"<command xmlns='{COMMANDS}' node='x'/>"}
        for feature, payload in kinds.items():
            kind = "set" if feature == COMMANDS else "get"
            answer = await a.iq(kind, payload, to=t.domain)
            assert answer.get("type") == "result" or error_of(answer)[1] != "service-unavailable", f"{feature}: {show(answer)}"
    async with t.rule("every advertised IQ namespace of the account answers its owner", "issue 3 section 5"):
        kinds = {"urn:xmpp:ping": PING, VCARD: f"<vCard xmlns='{VCARD}'/>", PRIVATE: f"<query xmlns='{PRIVATE}'><x xmlns='urn:x'/></query>",
                 LAST: f"<query xmlns='{LAST}'/>", BLOCKING: f"<blocklist xmlns='{BLOCKING}'/>"}
        for feature in set(features(account)) & set(kinds):
            for to in (a.bare, None):
                if feature == "urn:xmpp:ping" and to is None:
                    continue
                answer = await a.iq("get", kinds[feature], to=to)
                assert answer.get("type") == "result" or error_of(answer)[1] == "item-not-found", f"{feature} to {to}: {show(answer)}"
    async with t.rule("what answers at the account is advertised at the account", "issue 3 section 5"):
        answering = set()
        for feature, payload in {"urn:xmpp:ping": PING, "urn:xmpp:time": "<time xmlns='urn:xmpp:time'/>", "jabber:iq:version": "<query xmlns='jabber:iq:version'/>",
                                 LAST: f"<query xmlns='{LAST}'/>", VCARD: f"<vCard xmlns='{VCARD}'/>", BLOCKING: f"<blocklist xmlns='{BLOCKING}'/>",
                                 PRIVATE: f"<query xmlns='{PRIVATE}'><x xmlns='urn:x'/></query>"}.items():
            answer = await a.iq("get", payload, to=a.bare)
            if answer.get("type") == "result" or error_of(answer)[1] != "service-unavailable":
                answering.add(feature)
        assert answering <= set(features(account)), answering - set(features(account))


@scenario()
async def contact_addresses(t):
    operator = t.world.operator
    a = await t.online(0)
    async with operator.lock, operator.setting("contact.abuse", f"mailto:abuse@{t.domain} xmpp:abuse@{t.domain}"):
        async with t.rule("contact addresses are in the domain's serverinfo form, at once", "XEP-0157 2, P8"):
            async def listed():
                form = forms(await info(a, t.domain)).get("http://jabber.org/network/serverinfo", {})
                return form.get("abuse-addresses")

            await becomes([f"mailto:abuse@{t.domain}", f"xmpp:abuse@{t.domain}"], listed)
        async with t.rule("the capabilities hash covers the form", "XEP-0115 5.1, XEP-0128"):
            async def covered():  # the setting reaches one node after the other
                b = await t.login(0)
                want = base64.b64encode(hashlib.sha1(verification(await info(b, t.domain))).digest()).decode()
                return child(b.offers, CAPS, "c").get("ver") == want

            await becomes(True, covered)


@scenario()
async def small_queries(t):
    a, b, c = await t.online(0), await t.online(1), await t.online(2)
    await t.befriend(a, b)
    for name, to in (("the domain", t.domain), ("the own bare JID", a.bare), ("no address", None)):
        async with t.rule(f"ping to {name}: an empty result", "XEP-0199 4.1"):
            answer = await a.iq("get", PING, to=to)
            assert answer.get("type") == "result" and len(answer) == 0, show(answer)
    async with t.rule("a ping from client to client is the client's", "XEP-0199 4.2"):
        a.send(stanza("iq", PING, type="get", id="c2c", to=b.jid))
        got = await b.take(lambda e: e.get("id") == "c2c")
        b.send(stanza("iq", type="result", id="c2c", to=got.get("from")))
        assert (await a.take(lambda e: e.get("id") == "c2c")).get("type") == "result"
    async with t.rule("software version: a name and a version", "XEP-0092 3"):
        answer = await a.iq("get", "<query xmlns='jabber:iq:version'/>", to=t.domain)
        query = child(answer, "jabber:iq:version", "query")
        assert query is not None and child(query, "jabber:iq:version", "name").text and child(query, "jabber:iq:version", "version").text, show(answer)
    async with t.rule("entity time: zone and UTC, right", "XEP-0202 3, XEP-0082"):
        answer = await a.iq("get", "<time xmlns='urn:xmpp:time'/>", to=t.domain)
        time = child(answer, "urn:xmpp:time", "time")
        zone, utc = child(time, "urn:xmpp:time", "tzo").text, child(time, "urn:xmpp:time", "utc").text
        assert re.fullmatch(r"Z|[+-]\d\d:\d\d", zone) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", utc), show(answer)
        moment = datetime.fromisoformat(utc.replace("Z", "+00:00"))
        assert abs((datetime.now(timezone.utc) - moment).total_seconds()) < 60, utc
    async with t.rule("last activity of the domain: the uptime", "XEP-0012 5"):
        answer = await a.iq("get", f"<query xmlns='{LAST}'/>", to=t.domain)
        assert int(child(answer, LAST, "query").get("seconds")) >= 0, show(answer)
    async with t.rule("last activity of who is online: 0", "XEP-0012 3, 4"):
        answer = await a.iq("get", f"<query xmlns='{LAST}'/>", to=b.bare)
        assert int(child(answer, LAST, "query").get("seconds")) == 0, show(answer)
    async with t.rule("last activity for a stranger: forbidden", "XEP-0012 3, S30"):
        answer = await c.iq("get", f"<query xmlns='{LAST}'/>", to=b.bare)
        refused(answer, "forbidden", "service-unavailable")
    async with t.rule("last activity to a full JID is the client's", "XEP-0012 3"):
        a.send(stanza("iq", f"<query xmlns='{LAST}'/>", type="get", id="idle", to=b.jid))
        await b.take(lambda e: e.get("id") == "idle")
    async with t.rule("last activity of who has left: seconds since, and the last status", "XEP-0012 4"):
        b.presence("<status>home now</status>", type="unavailable")
        await a.get_presence(b.jid, "unavailable")
        await b.close()
        await settle(a, c)
        answer = await a.iq("get", f"<query xmlns='{LAST}'/>", to=b.bare)
        query = child(answer, LAST, "query")
        assert query is not None and 0 <= int(query.get("seconds")) < 60 and query.text == "home now", show(answer)


@scenario("local", "cross")
async def vcards(t):
    a, b = await t.online(0), await t.online(1)
    card = f"<vCard xmlns='{VCARD}'><FN>Ada &amp; Söhne</FN><N><FAMILY>L</FAMILY></N><PHOTO><TYPE>image/png</TYPE><BINVAL>AAAA</BINVAL></PHOTO></vCard>"
    async with t.rule("no vCard yet: item-not-found, or an empty one", "XEP-0054 3.1"):
        answer = await a.iq("get", f"<vCard xmlns='{VCARD}'/>")
        assert answer.get("type") == "result" or error_of(answer)[1] == "item-not-found", show(answer)
    async with t.rule("no vCard and no user look the same", "XEP-0054, spec 6.1.15"):
        one, other = await b.iq("get", f"<vCard xmlns='{VCARD}'/>", to=a.bare), await b.iq("get", f"<vCard xmlns='{VCARD}'/>", to=t.stranger())
        assert one.get("type") == other.get("type") and error_of(one) == error_of(other), f"{show(one)} is not {show(other)}"
    async with t.rule("a vCard is stored, and given to its owner and to others as it was", "XEP-0054 3.1-3.3"):
        answer = await a.iq("set", card)
        assert answer.get("type") == "result", show(answer)
        want = ET.canonicalize(ET.tostring(ET.fromstring(card)))
        for client, to in ((a, None), (a, a.bare), (b, a.bare)):
            got = await client.iq("get", f"<vCard xmlns='{VCARD}'/>", to=to)
            assert child(got, VCARD, "vCard") is not None and ET.canonicalize(ET.tostring(child(got, VCARD, "vCard"))) == want, show(got)
            assert to is None or got.get("from") == to, show(got)
    async with t.rule("another's vCard cannot be set: forbidden or not-allowed", "XEP-0054 3.2"):
        refused(await b.iq("set", card, to=a.bare), "forbidden", "not-allowed")
    async with t.rule("a vCard that is too large is refused, and the old one stays", "XEP-0054, imp-domain"):
        answer = await a.iq("set", f"<vCard xmlns='{VCARD}'><PHOTO><BINVAL>{'A' * 250_000}</BINVAL></PHOTO></vCard>")
        assert answer.get("type") == "error", "250,000 bytes were taken"
        got = await b.iq("get", f"<vCard xmlns='{VCARD}'/>", to=a.bare)
        assert child(child(got, VCARD, "vCard"), VCARD, "FN") is not None, show(got)


@scenario("cross")
async def private_storage(t):
    a, b = await t.online(0, "one"), await t.online(1)
    other = await t.online(0, "two")
    async with t.rule("nothing stored: the element comes back empty", "XEP-0049 3"):
        got = await a.iq("get", f"<query xmlns='{PRIVATE}'><storage xmlns='storage:bookmarks'/></query>")
        stored = child(child(got, PRIVATE, "query"), "storage:bookmarks", "storage")
        assert got.get("type") == "result" and stored is not None and len(stored) == 0, show(got)
    async with t.rule("what was stored comes back, to every client of the user", "XEP-0049 3"):
        marks = "<storage xmlns='storage:bookmarks'><conference jid='room@rooms.test' name='A &amp; B'><nick>ä</nick></conference></storage>"
        assert (await a.iq("set", f"<query xmlns='{PRIVATE}'>{marks}</query>")).get("type") == "result"
        for client, to in ((a, None), (other, None), (other, other.bare)):
            got = await client.iq("get", f"<query xmlns='{PRIVATE}'><storage xmlns='storage:bookmarks'/></query>", to=to)
            stored = child(child(got, PRIVATE, "query"), "storage:bookmarks", "storage")
            assert ET.canonicalize(ET.tostring(stored)) == ET.canonicalize(ET.tostring(ET.fromstring(marks))), show(got)
    async with t.rule("two elements in one set are stored both", "XEP-0049 3"):
        answer = await a.iq("set", f"<query xmlns='{PRIVATE}'><one xmlns='urn:p'>1</one><two xmlns='urn:p'>2</two></query>")
        assert answer.get("type") == "result", show(answer)
        for name in ("one", "two"):
            got = await a.iq("get", f"<query xmlns='{PRIVATE}'><{name} xmlns='urn:p'/></query>")
            assert child(child(got, PRIVATE, "query"), "urn:p", name).text, show(got)
    async with t.rule("another's storage: forbidden or service-unavailable", "XEP-0049 3"):
        for kind in ("get", "set"):
            refused(await b.iq(kind, f"<query xmlns='{PRIVATE}'><one xmlns='urn:p'/></query>", to=a.bare), "forbidden", "service-unavailable", "not-allowed")
    async with t.rule("nothing asked for: bad-request", "XEP-0049 3"):
        refused(await a.iq("get", f"<query xmlns='{PRIVATE}'/>"), "bad-request", "not-acceptable")
        refused(await a.iq("set", f"<query xmlns='{PRIVATE}'><x xmlns=''/></query>"), "bad-request", "not-acceptable")


# Carbons


def carbon(direction, number):
    def fits(e):
        inner = child(child(child(e, CARBONS, direction), FORWARD, "forwarded"), CLIENT, "message")
        return inner is not None and inner.get("id") == number
    return fits


def inner_of(e, direction):
    return child(child(child(e, CARBONS, direction), FORWARD, "forwarded"), CLIENT, "message")


@scenario("local", "cross")
async def carbons(t):
    b = await t.online(1, "peer")
    phone, desk, plain = await t.online(0, "phone"), await t.online(0, "desk"), await t.online(0, "plain")
    everybody = (b, phone, desk, plain)
    async with t.rule("enable is answered, also when repeated", "XEP-0280 4"):
        for _ in range(2):
            for one in (phone, desk):
                answer = await one.iq("set", f"<enable xmlns='{CARBONS}'/>")
                assert answer.get("type") == "result" and len(answer) == 0, show(answer)
    async with t.rule("a message received by one is copied to the other that enabled it: from the own bare JID, of the same type, whole", "XEP-0280 7"):
        number = b.message(phone.jid, "to the phone", inner="<x xmlns='urn:x'/>", type="chat")
        await phone.get_message(number)
        got = await desk.take(carbon("received", number))
        inner = inner_of(got, "received")
        assert got.get("from") == desk.bare and got.get("to") == desk.jid and got.get("type") == "chat", show(got)
        assert inner.get("from") == b.jid and inner.get("to") == phone.jid and child(inner, "urn:x", "x") is not None, show(got)
    async with t.rule("who has not enabled carbons gets none, and nobody gets it twice", "XEP-0280 7"):
        await settle(*everybody)
        plain.none(lambda e: local(e) == "message", "a copy")
        phone.none(lambda e: local(e) == "message", "a copy of what it got")
        b.none(lambda e: local(e) == "message", "a copy")
    async with t.rule("a message sent by one is copied to the other, not to itself", "XEP-0280 8"):
        number = phone.message(b.jid, "from the phone", type="chat")
        await b.get_message(number)
        got = await desk.take(carbon("sent", number))
        inner = inner_of(got, "sent")
        assert got.get("from") == desk.bare and inner.get("from") == phone.jid and inner.get("to") == b.jid, show(got)
        await settle(*everybody)
        phone.none(lambda e: local(e) == "message", "a copy of its own message")
    async with t.rule("a message to the bare JID reaches each client once, as itself or as a copy", "XEP-0280 7, RFC 6121 8.5.2"):
        number = b.message(phone.bare, "to all", type="chat")
        await settle(*everybody)
        for one in (phone, desk):
            direct = [e for e in one.inbox if e.get("id") == number and child(e, CARBONS, "received") is None]
            copies = [e for e in one.inbox if carbon("received", number)(e)]
            assert len(direct) + len(copies) == 1, f"{one.jid}: {len(direct)} direct, {len(copies)} copies"
    for one in everybody:
        one.inbox.clear()
    for name, text, wanted in (
            ("normal with a body", ("normal", "<body>x</body>"), True),
            ("chat without a body: a chat state", ("chat", "<composing xmlns='http://jabber.org/protocol/chatstates'/>"), True),
            ("a receipt", ("normal", "<received xmlns='urn:xmpp:receipts' id='1'/>"), True),
            ("a marker", ("normal", "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>"), True),
            ("headline", ("headline", "<body>x</body>"), False),
            ("groupchat", ("groupchat", "<body>x</body>"), False),
            ("marked private", ("chat", f"<body>x</body><private xmlns='{CARBONS}'/><no-copy xmlns='urn:xmpp:hints'/>"), False),
            ("marked private only", ("chat", f"<body>x</body><private xmlns='{CARBONS}'/>"), False),
            ("marked no-copy", ("chat", "<body>x</body><no-copy xmlns='urn:xmpp:hints'/>"), False),
            ("a forged copy, which is taken out", ("chat", f"<no-copy xmlns='urn:xmpp:hints'/><received xmlns='{CARBONS}'><forwarded xmlns='{FORWARD}'><message xmlns='{CLIENT}' from='{b.bare}' to='{desk.bare}'><body>lie</body></message></forwarded></received>"), False)):
        kind, inner = text
        async with t.rule(f"{name}: {'copied' if wanted else 'not copied'}, both ways", "XEP-0280 6, 7, 8, S7"):
            received, sent = fresh("in"), fresh("out")
            b.message(phone.jid, inner=inner, id=received, type=kind)
            phone.message(b.jid, inner=inner, id=sent, type=kind)
            await settle(*everybody)
            got = (any(carbon("received", received)(e) for e in desk.inbox), any(carbon("sent", sent)(e) for e in desk.inbox))
            assert not [e for one in (phone, b) for e in one.inbox if child(e, CARBONS, "received") is not None and e.get("from") != one.bare], "a forged copy came through"
            assert got == (wanted, wanted), f"received {got[0]}, sent {got[1]}"
    async with t.rule("a message between two clients of one user: the one that it names gets it, a third one copy, the sender none", "XEP-0280 7, 8, spec 6.1.9"):
        third = await t.online(0, "third")
        await third.iq("set", f"<enable xmlns='{CARBONS}'/>")
        number = phone.message(desk.jid, "note to myself", type="chat")
        await desk.get_message(number)
        await settle(phone, desk, third)
        copies = [[e for e in one.inbox if carbon("received", number)(e) or carbon("sent", number)(e)] for one in (phone, desk, third)]
        assert [len(c) for c in copies] == [0, 0, 1], [len(c) for c in copies]
        await third.close()
    async with t.rule("an error for what one client sent goes to that client only", "XEP-0280 8, 11"):
        for one in everybody:
            one.inbox.clear()
        number = phone.message(t.stranger(), "nobody there", type="chat")
        await phone.take(lambda e: e.get("id") == number and e.get("type") == "error")
        await settle(*everybody)
        desk.none(lambda e: local(e) == "message" and e.get("type") == "error", "the error of another client's message")
    async with t.rule("a copy to a client that has gone bounces to nobody", "XEP-0280 7, spec 6.1.9"):
        desk.drop()
        number = b.message(phone.jid, "after that", type="chat")
        await phone.get_message(number)
        await settle(b, phone, plain)
        b.none(lambda e: e.get("type") == "error", "an error for a copy")
    async with t.rule("disable ends it", "XEP-0280 5"):
        for one in everybody:
            one.inbox.clear()
        assert (await phone.iq("set", f"<disable xmlns='{CARBONS}'/>")).get("type") == "result"
        number = b.message(plain.jid, "to the plain one", type="chat")
        await plain.get_message(number)
        await settle(b, phone, plain)
        phone.none(lambda e: local(e) == "message", "a copy")
    async with t.rule("carbons of another account cannot be had", "XEP-0280 4, S7"):
        refused(await b.iq("set", f"<enable xmlns='{CARBONS}'/>", to=phone.bare), "service-unavailable", "forbidden", "not-allowed")


# Blocking


async def block(client, *jids):
    return await client.iq("set", f"<block xmlns='{BLOCKING}'>" + "".join(f"<item jid='{j}'/>" for j in jids) + "</block>")


async def unblock(client, *jids):
    return await client.iq("set", f"<unblock xmlns='{BLOCKING}'>" + "".join(f"<item jid='{j}'/>" for j in jids) + "</unblock>")


async def blocked(client):
    answer = await client.iq("get", f"<blocklist xmlns='{BLOCKING}'/>")
    return {i.get("jid") for i in child(answer, BLOCKING, "blocklist")}


def block_push(name):
    return lambda e: local(e) == "iq" and e.get("type") == "set" and child(e, BLOCKING, name) is not None


@scenario("local", "cross")
async def blocking(t):
    a, a2, b = await t.online(0, "one"), await t.online(0, "two"), await t.online(1)
    await t.befriend(a, b)
    await b.get_presence(a2.jid)
    await a2.get_presence(b.jid)
    for one in (a, a2, b):
        one.inbox.clear()
    async with t.rule("the list is empty at first", "XEP-0191 3.2"):
        assert await blocked(a) == set()
    async with t.rule("an empty block: bad-request", "XEP-0191 3.3"):
        refused(await block(a), "bad-request")
    async with t.rule("block: the contact gets unavailable of every resource", "XEP-0191 3.3, spec 6.1.14"):
        assert (await block(a, b.bare)).get("type") == "result"
        await b.get_presence(a.jid, "unavailable")
        await b.get_presence(a2.jid, "unavailable")
    async with t.rule("block: pushed to who fetched the list, and only to them", "XEP-0191 3.3"):
        got = await a.take(block_push("block"))
        assert [i.get("jid") for i in child(got, BLOCKING, "block")] == [b.bare] and got.get("to") == a.jid and got.get("from") in (None, a.bare), show(got)
        a.send(stanza("iq", type="result", id=got.get("id")))
        await settle(a, a2)
        a2.none(block_push("block"), "a push without having asked")
        assert await blocked(a2) == {b.bare}
    async with t.rule("a message from who is blocked: service-unavailable; nothing is delivered", "XEP-0191 3.6"):
        for to in (a.bare, a.jid):
            number = b.message(to, "let me in", type="chat")
            got = await b.take(lambda e: e.get("id") == number and e.get("type") == "error")
            assert error_of(got) == ("cancel", "service-unavailable"), show(got)
    async with t.rule("an IQ from who is blocked: service-unavailable, to bare and full JIDs", "XEP-0191 3.6"):
        for to in (a.bare, a.jid):
            refused(await b.iq("get", f"<vCard xmlns='{VCARD}'/>", to=to), "service-unavailable")
    async with t.rule("presence and requests of who is blocked vanish", "XEP-0191 3.6"):
        b.presence("<show>away</show>")
        b.presence(to=a.jid, id="direct")
        b.presence(to=a.bare, type="subscribe", id="ask")
        b.presence(to=a.bare, type="probe", id="probe")
        await settle(a, a2), await b.iq("get", PING, to=t.domain)
        for one in (a, a2):
            one.none(lambda e: (e.get("from") or "").startswith(b.bare), "something of who is blocked")
        b.none(lambda e: e.get("type") == "error" and local(e) == "presence", "an error for presence")
    async with t.rule("own changes of presence do not reach who is blocked", "XEP-0191 3.3"):
        b.inbox.clear()
        a.presence("<show>dnd</show>")
        a.presence(type="unavailable"), a.presence()
        await settle(a, a2), await b.iq("get", PING, to=t.domain)
        b.none(presence_of(a.bare), "presence of who blocks")
    async with t.rule("what goes to who is blocked: not-acceptable with the blocked condition", "XEP-0191 3.5"):
        for to in (b.bare, b.jid):
            number = a.message(to, "hello", type="chat")
            got = await a.take(lambda e: e.get("id") == number and e.get("type") == "error")
            assert error_of(got)[1] == "not-acceptable" and child(child(got, CLIENT, "error"), "urn:xmpp:blocking:errors", "blocked") is not None, show(got)
        answer = await a.iq("get", PING, to=b.jid)
        refused(answer, "not-acceptable")
        a.presence(to=b.jid, id="to-blocked")
        await settle(a, a2)
        b.none(presence_of(a.bare), "directed presence of who blocks")
    async with t.rule("a login of who is blocked tells nothing, nor does the blocker's", "XEP-0191 3.3, S30"):
        c = await t.online(1, "again")
        await settle(a, a2), await c.iq("get", PING, to=t.domain)
        c.none(presence_of(a.bare), "presence of who blocks")
        a.none(presence_of(b.bare), "presence of who is blocked")
    async with t.rule("the roster is as it was", "XEP-0191 3.3"):
        assert (await a.items())[b.bare].get("subscription") == "both"
    async with t.rule("unblock: presence flows again, both ways, and is pushed", "XEP-0191 3.4"):
        for one in (a, a2, b):
            one.inbox.clear()
        assert (await unblock(a, b.bare)).get("type") == "result"
        await b.get_presence(a.jid)
        await b.get_presence(a2.jid)
        await a.get_presence(b.jid)
        await a2.take(block_push("unblock"))
        number = b.message(a.jid, "again", type="chat")
        await a.get_message(number)
    async with t.rule("unblock without items empties the list", "XEP-0191 3.4"):
        await block(a, b.bare, t.stranger(), "spam.test")
        assert len(await blocked(a)) == 3
        assert (await unblock(a)).get("type") == "result"
        assert await blocked(a2) == set()
        await b.get_presence(a.jid)
    async with t.rule("a bad address: jid-malformed or bad-request", "XEP-0191 3.3"):
        refused(await block(a, "a@b@c"), "jid-malformed", "bad-request")
    async with t.rule("another's list cannot be read or changed", "XEP-0191, S30"):
        refused(await b.iq("get", f"<blocklist xmlns='{BLOCKING}'/>", to=a.bare), "service-unavailable", "forbidden", "not-allowed")
        refused(await b.iq("set", f"<block xmlns='{BLOCKING}'><item jid='x@y'/></block>", to=a.bare), "service-unavailable", "forbidden", "not-allowed")


@scenario("cross")
async def blocking_reach(t):
    a, one, two = await t.online(0), await t.online(1, "one"), await t.online(1, "two")
    async with t.rule("a blocked full JID: only that resource", "XEP-0191 3.3 (JID matching)"):
        await block(a, one.jid)
        number = one.message(a.jid, "x", type="chat")
        await one.take(lambda e: e.get("id") == number and e.get("type") == "error")
        await a.get_message(two.message(a.jid, "y", type="chat"))
        await unblock(a)
    async with t.rule("blocking the domain blocks its users, not the server", "XEP-0191 3.3 (JID matching)"):
        await block(a, t.domain)
        number = two.message(a.jid, "z", type="chat")
        await two.take(lambda e: e.get("id") == number and e.get("type") == "error")
        assert (await a.iq("get", PING, to=t.domain)).get("type") == "result"
        assert (await a.iq("get", PING)).get("type") == "result"
        await unblock(a, t.domain)
        await a.get_message(two.message(a.jid, "w", type="chat"))
    async with t.rule("the list is there after a new login, on another node", "XEP-0191, P5"):
        await block(a, one.bare)
        b = await t.login(0, "elsewhere")
        assert await blocked(b) == {one.bare}


# A library's client


@scenario()
async def library_client(t):
    """slixmpp goes the usual way, and finds what it looks for."""
    people = [Person(t.world.cluster, t.user(seat), "lib") for seat in (0, 1)]
    nodes = [n["name"] for n in t.world.cluster.nodes]
    try:
        async with t.rule("slixmpp logs in, discovers, manages contacts, blocks and chats", "issue 3 section 8"):
            for person, node in zip(people, nodes[1:]):
                for plugin in ("xep_0012", "xep_0049", "xep_0050", "xep_0115", "xep_0198", "xep_0202", "xep_0280", "xep_0352"):
                    person.register_plugin(plugin)
                await person.arrive(node)
            a, b = people
            await a.plugin["xep_0280"].enable(timeout=10)
            reply = await a.plugin["xep_0012"].get_last_activity(slixmpp.JID(t.domain), timeout=10)
            assert int(reply["last_activity"]["seconds"]) >= 0
            reply = await a.plugin["xep_0030"].get_info(jid=slixmpp.JID(a.bare), local=False, timeout=10)
            assert CARBONS in reply["disco_info"]["features"], reply
            await a.say(b, "hello"), await b.say(a, "hello")
            await a.plugin["xep_0191"].block({slixmpp.JID(b.bare)}, timeout=10)
            reply = await a.plugin["xep_0191"].get_blocked(timeout=10)
            assert [item["jid"] for item in reply["blocklist"]["items"]] == [b.bare], reply
            await a.plugin["xep_0191"].unblock({slixmpp.JID(b.bare)}, timeout=10)
    finally:
        for person in people:
            await person.leave()
