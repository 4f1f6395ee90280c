"""Binding, the form of stanzas, stream management, client state."""

import asyncio
import time
import xml.etree.ElementTree as ET

from conformance_case import scenario
from conformance_streams import greeted, PING
from conformance_wire import (CLIENT, SASL, BIND, SESSION, SM, attributes, child, error_of, fresh,
                              local, settle, show, space, stanza)


def is_failed(element, condition):
    names = [local(e) for e in element]
    assert local(element) == "failed" and condition in names, f"expected failed/{condition}: {show(element)}"


# Binding


@scenario()
async def binding(t):
    a = t.stream(0)
    await a.login(t.user())
    offers = {e.tag: e for e in a.offers}
    async with t.rule("after login: bind, session (optional), sm, csi, roster versions, pre-approval, caps and limits are offered",
                      "spec 5.1, RFC 6120 7, RFC 6121 2.6.1/3.4.1, XEP-0198, 0352, 0115 6.3, 0478"):
        wanted = [f"{{{BIND}}}bind", f"{{{SESSION}}}session", f"{{{SM}}}sm", "{urn:xmpp:csi:0}csi", "{urn:xmpp:features:rosterver}ver",
                  "{urn:xmpp:features:pre-approval}sub", "{http://jabber.org/protocol/caps}c", "{urn:xmpp:stream-limits:0}limits"]
        missing = [w for w in wanted if w not in offers]
        assert not missing, missing
        assert child(offers[f"{{{SESSION}}}session"], SESSION, "optional") is not None, "session is not optional"
        caps = offers["{http://jabber.org/protocol/caps}c"]
        assert caps.get("hash") and caps.get("node") and caps.get("ver"), show(caps)
        most = int(child(offers["{urn:xmpp:stream-limits:0}limits"], "urn:xmpp:stream-limits:0", "max-bytes").text)
        assert most >= 10000, most
    async with t.rule("an empty bind gets a resource of the server's", "RFC 6120 7.6"):
        answer = await a.bind()
        assert answer.get("type") == "result" and a.resource and a.bare == t.user()["jid"], show(answer)
    async with t.rule("a second bind is not-allowed", "RFC 6120 7.7.2.3 (bind once), spec 6.1.2"):
        answer = await a.iq("set", f"<bind xmlns='{BIND}'><resource>two</resource></bind>")
        assert error_of(answer) and error_of(answer)[1] == "not-allowed", show(answer)
    async with t.rule("the session request is answered", "RFC 3921 3, spec 6.1.2"):
        answer = await a.iq("set", f"<session xmlns='{SESSION}'/>")
        assert answer.get("type") == "result", show(answer)
    async with t.rule("two resources of the server's making differ", "RFC 6120 7.6"):
        b = await t.login(0)
        assert a.resource != b.resource, a.resource
    async with t.rule("a requested resource is kept as it is, case too", "RFC 6120 7.7, RFC 7622 3.4"):
        c = await t.login(0, "My Desk/Ünïcode")
        assert c.resource == "My Desk/Ünïcode", c.resource
    for name, resource in (("too long", "r" * 1024), ("with control characters", "a&#x9;b")):
        async with t.rule(f"a resource {name} is refused or replaced", "RFC 6120 7.7.2.1, RFC 7622 3.4"):
            s = t.stream(1)
            await s.login(t.user())
            answer = await s.iq("set", f"<bind xmlns='{BIND}'><resource>{resource}</resource></bind>")
            if answer.get("type") == "result":
                jid = child(child(answer, BIND, "bind"), BIND, "jid").text
                assert resource not in jid and "\t" not in jid, jid
            else:
                assert error_of(answer)[1] in ("bad-request", "jid-malformed", "not-acceptable"), show(answer)
    other = await t.online(1)
    async with t.rule("a message before bind ends the stream with not-authorized and goes nowhere", "RFC 6120 7.1"):
        s = t.stream(2)
        await s.login(t.user())
        s.send(stanza("message", "<body>too early</body>", to=other.jid, id="early"))
        assert await s.stream_error() == "not-authorized", show(s.last_error)
        await settle(other)
        other.none(lambda e: e.get("id") == "early", "a message of a client that has not bound")
    async with t.rule("an IQ other than bind before bind ends the stream", "RFC 6120 7.1"):
        s = t.stream(2)
        await s.login(t.user())
        s.send(stanza("iq", PING, type="get", id="early", to=t.domain))
        assert await s.stream_error() == "not-authorized", show(s.last_error)


@scenario("local", "cross")
async def binding_conflict(t):
    watcher = await t.online(1)
    old = await t.online(0, "desk")
    await t.befriend(old, watcher)
    async with t.rule("a new session with the same resource ends the older with conflict", "RFC 6120 7.7.2.2"):
        new = await t.online(0, "desk")
        assert new.resource == "desk", new.resource
        assert await old.stream_error() == "conflict"
    async with t.rule("the new session is reached, the old one is not", "RFC 6120 7.7.2.2"):
        number = watcher.message(new.jid, "to whom?", type="chat")
        await new.get_message(number)
    async with t.rule("contacts see the new session last", "RFC 6121 4.5"):
        await settle(new, watcher)
        seen = [e.get("type") for e in watcher.inbox if local(e) == "presence" and e.get("from") == new.jid]
        assert seen and seen[-1] is None, seen


@scenario(alone=True)
async def binding_policies(t):
    operator = t.world.operator
    async with operator.lock:
        old = await t.login(0, "desk")
        async with operator.setting("session.conflict", "reject"):
            async with t.rule("by setting, a resource in use is refused with conflict", "RFC 6120 7.7.2.2"):
                s = t.stream(1)
                await s.login(t.user())
                answer = await s.bind("desk")
                assert error_of(answer) and error_of(answer)[1] == "conflict", show(answer)
                answer = await s.bind("other desk")
                assert answer.get("type") == "result", show(answer)
        async with operator.setting("session.conflict", "rename"):
            async with t.rule("by setting, a resource in use is replaced by another", "RFC 6120 7.7.2.2"):
                s = await t.login(0, "desk")
                assert s.resource != "desk", s.jid
        await settle(old, s)
        async with operator.setting("session.max_per_user", "3"):
            async with t.rule("one session too many is refused with resource-constraint", "RFC 6120 7.6.2.1, S15"):
                s = t.stream(2)
                await s.login(t.user())
                answer = await s.bind("one too many")
                assert error_of(answer) == ("wait", "resource-constraint"), show(answer)


# The form of stanzas


@scenario("local", "cross")
async def stanza_from(t):
    a, b = await t.online(0), await t.online(1)
    async with t.rule("a message carries the sender's full JID, also if the client gave none or its bare", "RFC 6120 8.1.2.1"):
        for given in (None, a.jid, a.bare):
            number = a.message(b.jid, "hello", **({"from": given} if given else {}))
            got = await b.get_message(number)
            assert got.get("from") == a.jid and got.get("to") == b.jid, show(got)
    for name, forged in (("another user's", b.jid), ("another resource's", a.bare + "/other"), ("the server's", t.domain), ("an elsewhere", "x@elsewhere.test")):
        async with t.rule(f"{name} 'from' ends the stream with invalid-from; nothing is delivered", "RFC 6120 8.1.2.1, 4.9.3.9, S6"):
            s = await t.online(0, fresh("forger"))
            number = s.message(b.jid, "forged", **{"from": forged})
            assert await s.stream_error() == "invalid-from", show(s.last_error)
            await settle(a, b)
            b.none(lambda e: e.get("id") == number, "a forged message")


@scenario("local", "cross")
async def stanza_fidelity(t):
    a, b = await t.online(0), await t.online(1)
    payload = ("<body xml:lang='de'>Grüße &amp; &lt;Küsse&gt; \"'  世界 🐎 &#x41;\n\ttab</body><body xml:lang='en'><![CDATA[<raw> & ]]></body>"
               "<x:ext xmlns:x='urn:ext' xmlns:y='urn:attr' y:deep='1' plain=\"quote's &quot;\"><x:in/><in xmlns=''>a<b/>c</in></x:ext>"
               "<thread parent='p'>t1</thread><nick xmlns='http://jabber.org/protocol/nick'>Ada</nick>")
    async with t.rule("a message arrives as it was sent: text, languages, extensions, namespaces", "RFC 6120 8.4, S5"):
        a.send(f"<message xmlns:z='urn:unused' to='{b.jid}' id='fid1' type='chat' xml:lang='de'>{payload}</message>")
        got = await b.get_message("fid1")
        sent = ET.fromstring(f"<message xmlns='{CLIENT}' to='{b.jid}' from='{a.jid}' id='fid1' type='chat' xml:lang='de'>{payload}</message>")
        mark = child(got, "urn:xmpp:sid:0", "stanza-id")
        assert mark is not None and mark.get("by") == b.bare and mark.get("id"), show(got)
        got.remove(mark)
        assert ET.canonicalize(ET.tostring(got)) == ET.canonicalize(ET.tostring(sent)), f"{show(got)} is not {show(sent)}"
    async with t.rule("an address in another case is the same address", "RFC 7622 3.2, 3.3"):
        number = a.message(b.bare.upper() + "/" + b.resource, "case")
        await b.get_message(number)
    async with t.rule("a message without a language gets none, or the stream's", "RFC 6120 8.1.5"):
        number = a.message(b.jid, "which language?")
        got = await b.get_message(number)
        assert got.get("{http://www.w3.org/XML/1998/namespace}lang") in (None, "en"), show(got)
    async with t.rule("whitespace between stanzas is taken", "RFC 6120 4.6.1"):
        a.send(" \n ")
        number = a.message(b.jid, "after whitespace")
        a.send("  ")
        await b.get_message(number)
    async with t.rule("a message of 100,000 bytes passes", "RFC 6120 13.12, XEP-0478"):
        number = a.message(b.jid, "x" * 100_000)
        got = await b.get_message(number)
        assert len(child(got, CLIENT, "body").text) == 100_000
    async with t.rule("messages, presence and IQs of one pair arrive in order", "RFC 6120 10.1"):
        for i in range(150):
            if i % 3 == 0:
                a.send(stanza("message", f"<body>{i}</body>", to=b.jid, id=f"order{i}", type="chat"))
            elif i % 3 == 1:
                a.send(stanza("presence", f"<status>{i}</status>", to=b.jid, id=f"order{i}"))
            else:
                a.send(stanza("iq", "<x xmlns='urn:order'/>", to=b.jid, id=f"order{i}", type="get"))
        await b.until(lambda: b.find(lambda e: e.get("id") == "order149") is not None, 10, "last of the row")
        got = [e.get("id") for e in b.inbox if (e.get("id") or "").startswith("order")]
        assert got == [f"order{i}" for i in range(150)], got
    async with t.rule("what a client must not claim is taken out: a stanza-id of the server's, a delay of the server's", "S6, XEP-0359 5, XEP-0203 5"):
        forged = (f"<stanza-id xmlns='urn:xmpp:sid:0' id='forged' by='{b.bare}'/><stanza-id xmlns='urn:xmpp:sid:0' id='forged2' by='{a.bare}'/>"
                  f"<delay xmlns='urn:xmpp:delay' from='{t.domain}' stamp='2001-01-01T00:00:00Z'/>")
        number = a.message(b.jid, "forged marks", inner=forged, type="chat")
        got = await b.get_message(number)
        assert got.find("{urn:xmpp:sid:0}stanza-id[@id='forged']") is None, show(got)
        assert got.find("{urn:xmpp:delay}delay") is None, show(got)
    async with t.rule("a roster push that a user forges goes nowhere", "S7, RFC 6121 2.1.6"):
        a.send(stanza("iq", f"<query xmlns='jabber:iq:roster'><item jid='evil@{t.domain}' subscription='both'/></query>", type="set", id="evil", to=b.jid))
        await settle(a, b)
        b.none(lambda e: e.get("id") == "evil", "a forged roster push")


@scenario()
async def stanza_errors(t):
    a, b = await t.online(0), await t.online(1)

    async def refused(text, number, condition, kind=None):
        a.send(text)
        got = await a.take(lambda e: e.get("id") == number and e.get("type") == "error", f"error for {text[:80]}")
        e = error_of(got)
        assert e and e[1] in condition, show(got)
        assert kind is None or e[0] == kind, show(got)
        return got

    for name, inner in (("no child", ""), ("two children", PING + "<time xmlns='urn:xmpp:time'/>")):
        for kind in ("get", "set"):
            async with t.rule(f"IQ {kind} with {name}: bad-request", "RFC 6120 8.2.3"):
                number = fresh()
                await refused(stanza("iq", inner, type=kind, id=number, to=t.domain), number, {"bad-request"}, "modify")
    async with t.rule("IQ with an unknown type: bad-request", "RFC 6120 8.2.3"):
        await refused(stanza("iq", PING, type="subscribe", id="t1", to=t.domain), "t1", {"bad-request"})
    async with t.rule("IQ without a type: bad-request", "RFC 6120 8.2.3"):
        await refused(stanza("iq", PING, id="t2", to=t.domain), "t2", {"bad-request"})
    async with t.rule("IQ without id: bad-request or stream error, not handled", "RFC 6120 8.1.3"):
        s = await t.login(0, "no id")
        s.send(stanza("iq", PING, type="get", to=t.domain))
        got = await s.next()
        assert got.get("type") == "error" or local(got) == "error", show(got)
    for where, to in (("the domain", t.domain), ("the own account", a.bare), ("no address", None), ("another account", b.bare)):
        for kind in ("get", "set"):
            async with t.rule(f"IQ {kind} of an unknown kind to {where}: service-unavailable", "RFC 6120 8.4, RFC 6121 8.5.2.1.3"):
                answer = await a.iq(kind, "<query xmlns='urn:no:such:thing'/>", to=to)
                assert error_of(answer) == ("cancel", "service-unavailable"), show(answer)
                assert to is None or answer.get("from") == to, show(answer)
    async with t.rule("an error names its type, and comes from the address that was asked", "RFC 6120 8.3"):
        answer = await a.iq("get", "<query xmlns='urn:no:such:thing'/>", to=t.domain)
        assert answer.get("from") == t.domain and answer.get("to") in (a.jid, None), show(answer)
    async with t.rule("results and errors are never answered", "RFC 6120 8.2.3, 8.3.1"):
        for to in (t.domain, a.bare, b.bare, None, t.stranger(), b.bare + "/none"):
            for kind in ("result", "error"):
                inner = "" if kind == "result" else "<error type='cancel'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>"
                a.send(stanza("iq", inner, type=kind, id="never", to=to))
                if kind == "error":
                    a.send(stanza("message", inner, type=kind, id="never", to=to))
                    if to:
                        a.send(stanza("presence", inner, type=kind, id="never", to=to))
        await settle(a, b)
        a.none(lambda e: e.get("id") == "never", "an answer to a result or error")
        b.none(lambda e: e.get("id") == "never", "a stray result")
    for name, to in (("two @", f"a@b@{t.domain}"), ("an empty local part", f"@{t.domain}"), ("a space", f"a b@{t.domain}"),
                     ("a part of 1,024 bytes", "x" * 1024 + f"@{t.domain}"), ("an empty resource", f"x@{t.domain}/")):
        async with t.rule(f"an address with {name}: jid-malformed", "RFC 6120 8.3.3.8, RFC 7622"):
            number = fresh()
            await refused(stanza("message", "<body>x</body>", to=to, id=number), number, {"jid-malformed"}, "modify")
            number = fresh()
            await refused(stanza("iq", PING, type="get", to=to, id=number), number, {"jid-malformed"}, "modify")
    async with t.rule("another domain: remote-server-not-found", "RFC 6120 10.4, 8.3.3.16"):
        await refused(stanza("message", "<body>x</body>", to="x@elsewhere.test", id="far"), "far", {"remote-server-not-found"}, "cancel")
        await refused(stanza("iq", PING, type="get", to="elsewhere.test", id="far2"), "far2", {"remote-server-not-found"}, "cancel")
    async with t.rule("an error keeps the stanza's kind and id, and is addressed to the sender", "RFC 6120 8.3.1"):
        got = await refused(stanza("message", "<body>x</body>", to=t.stranger(), id="back"), "back", {"service-unavailable", "item-not-found"})
        assert local(got) == "message" and got.get("to") in (a.jid, None), show(got)
    async with t.rule("an IQ of an unknown namespace reaches the client that it names, and its answer comes back", "RFC 6121 8.5.3.1"):
        a.send(stanza("iq", "<query xmlns='urn:private:talk'/>", type="get", id="talk", to=b.jid))
        got = await b.take(lambda e: e.get("id") == "talk")
        assert got.get("from") == a.jid and got.get("type") == "get", show(got)
        b.send(stanza("iq", "<query xmlns='urn:private:talk'>yes</query>", type="result", id="talk", to=a.jid))
        got = await a.take(lambda e: e.get("id") == "talk")
        assert got.get("from") == b.jid and got.get("type") == "result", show(got)


@scenario()
async def stream_errors_in_session(t):
    bystander = await t.online(1)
    deep = "".join(f"<a{i}>" for i in range(40))
    broken = [
        ("a comment", "<message><!-- x --></message>", {"restricted-xml"}),
        ("a DTD", "<!DOCTYPE x [<!ENTITY a 'b'>]>", {"restricted-xml"}),
        ("a processing instruction", "<message><?x y?></message>", {"restricted-xml"}),
        ("an XML declaration", "<?xml version='1.0'?><message/>", {"restricted-xml", "not-well-formed"}),
        ("an entity of its own", "<message><body>&lol;</body></message>", {"restricted-xml", "not-well-formed"}),
        ("tags that do not match", "<message><body></message></body>", {"not-well-formed"}),
        ("an undeclared prefix", "<message><x:y/></message>", {"not-well-formed"}),
        ("a duplicate attribute", "<message to='a' to='b'/>", {"not-well-formed"}),
        ("a bare ampersand", "<message><body>a & b</body></message>", {"not-well-formed"}),
        ("a bare < in an attribute", "<message id='<'/>", {"not-well-formed"}),
        ("the character U+0000", "<message><body>&#0;</body></message>", {"not-well-formed"}),
        ("a surrogate", "<message><body>&#xD800;</body></message>", {"not-well-formed"}),
        ("bytes that are not UTF-8", b"<message><body>\xc3\x28</body></message>", {"not-well-formed", "unsupported-encoding", "bad-format"}),
        ("an overlong encoding", b"<message><body>\xc0\xaf</body></message>", {"not-well-formed", "unsupported-encoding", "bad-format"}),
        ("an unknown element", "<letter/>", {"unsupported-stanza-type"}),
        ("a stanza of another namespace", "<message xmlns='jabber:server'/>", {"invalid-namespace", "unsupported-stanza-type"}),
        ("text between stanzas", "hello", {"bad-format", "not-well-formed"}),
        ("a second stream header", f"<stream:stream to='{t.domain}' version='1.0'></stream:stream>", {"not-authorized", "bad-format", "unsupported-stanza-type", "invalid-namespace"}),
        ("40 levels of elements", f"<message>{deep}", {"policy-violation"}),
        ("70 attributes", "<message " + " ".join(f"a{i}='x'" for i in range(70)) + "/>", {"policy-violation"}),
        ("40 namespace declarations", "<message><x " + " ".join(f"xmlns:a{i}='urn:{i}'" for i in range(40)) + "/></message>", {"policy-violation"}),
        ("5,000 elements", "<message>" + "<x/>" * 5000 + "</message>", {"policy-violation"}),
        ("a name of 300 bytes", f"<message><{'n' * 300}/></message>", {"policy-violation"}),
        ("300,000 bytes", f"<message><body>{'x' * 300_000}", {"policy-violation"}),
    ]

    async def one(number, name, text, conditions):
        async with t.rule(f"{name} in a session: {'/'.join(sorted(conditions))}, then the end", "RFC 6120 4.9.3, 11; S1-S3"):
            s = await t.login(0 if number % 2 else 2, f"r{number}", node=number)
            began = time.monotonic()
            s.send(text)
            condition = await s.stream_error()
            assert condition in conditions, condition
            assert time.monotonic() - began < 2, f"after {time.monotonic() - began:.1f} s"
    for start in range(0, len(broken), 4):
        await asyncio.gather(*(one(start + i, *case) for i, case in enumerate(broken[start:start + 4])))
    async with t.rule("200,000 nested elements end one stream and disturb nobody", "S2"):
        s = await t.login(3)
        s.send("<message>" + "<a>" * 200_000)
        assert await s.stream_error() == "policy-violation"
        await settle(bystander)
    async with t.rule("what follows a stream error is not processed", "RFC 6120 4.9.1.1"):
        s = await t.login(3)
        s.send("<letter/>" + stanza("message", "<body>late</body>", to=bystander.jid, id="late"))
        await s.stream_error()
        await settle(bystander)
        bystander.none(lambda e: e.get("id") == "late", "a message sent after a stream error")
    async with t.rule("what follows the end of the stream is not processed, and the end is answered", "RFC 6120 4.4"):
        s = await t.login(3)
        s.send("</stream:stream>" + stanza("message", "<body>late</body>", to=bystander.jid, id="late2"))
        await s.until(lambda: s.closed, 5, "end of stream")
        await settle(bystander)
        bystander.none(lambda e: e.get("id") == "late2", "a message sent after the end")


# Stream management


def is_sm(name):
    return lambda e: e.tag == f"{{{SM}}}{name}"


async def enable(client, resume=True):
    client.send(f"<enable xmlns='{SM}'{attributes(resume='true' if resume else None)}/>")
    return await client.take(lambda e: space(e) == SM, "enabled")


async def handled(client):
    client.send(f"<r xmlns='{SM}'/>")
    return int((await client.take(is_sm("a"), "acknowledgement")).get("h"))


async def resume(t, client, previd, h=None, user=None, node=None):
    """A new connection that resumes; returns it and the answer."""
    s = t.stream(0)
    s.host, s.port = client.host, client.port
    if node is not None:
        s = t.stream(node)
    await s.login(user or {"jid": client.bare, "password": next(u["password"] for u in t.people.values() if u["jid"] == client.bare)})
    s.h = client.h if h is None else h
    s.send(f"<resume xmlns='{SM}' previd='{previd}' h='{s.h}'/>")
    answer = await s.take(lambda e: space(e) == SM, "answer to resume")
    s.jid, s.bare = client.jid, client.bare
    return s, answer


@scenario()
async def management_acks(t):
    s = t.stream(0)
    await s.login(t.user())
    async with t.rule("enable before bind fails with unexpected-request", "XEP-0198 3"):
        is_failed(await enable(s), "unexpected-request")
    a, b = await t.online(0), await t.online(1)
    async with t.rule("enable with resumption: id and max are given", "XEP-0198 3, 5"):
        on = await enable(a)
        assert local(on) == "enabled" and on.get("id") and on.get("resume") in ("true", "1") and int(on.get("max")) > 0, show(on)
    async with t.rule("enable without resumption: no resumption is promised", "XEP-0198 3"):
        on = await enable(b, resume=False)
        assert local(on) == "enabled" and on.get("resume") in (None, "false", "0"), show(on)
    async with t.rule("h counts stanzas after enable, and only those", "XEP-0198 4"):
        assert await handled(a) == 0
        await a.iq("get", PING, to=t.domain)
        number = a.message(b.jid, "counted")
        await b.get_message(number)
        a.presence("<show>away</show>")
        a.send("<active xmlns='urn:xmpp:csi:0'/> ")
        a.send(f"<a xmlns='{SM}' h='0'/>")
        h = await handled(a)
        assert h == 3, h
    async with t.rule("the server asks for acknowledgements", "XEP-0198 4"):
        for _ in range(20):
            last = b.message(a.jid, "ask", type="chat")
        await a.get_message(last)
        await a.take(is_sm("r"), "request for an acknowledgement")
    async with t.rule("an h that is too high ends the stream: undefined-condition, handled-count-too-high with both counts", "XEP-0198 4"):
        a.send(f"<a xmlns='{SM}' h='4000'/>")
        condition = await a.stream_error()
        extra = child(a.last_error, SM, "handled-count-too-high")
        assert condition == "undefined-condition" and extra is not None and extra.get("h") == "4000" and extra.get("send-count"), show(a.last_error)
    async with t.rule("a second enable is refused", "XEP-0198 3"):
        b.send(f"<enable xmlns='{SM}'/>")
        answer = await b.take(lambda e: space(e) == SM and local(e) not in ("r", "a") or local(e) == "error", "refusal")
        assert local(answer) in ("failed", "error"), show(answer)
    async with t.rule("an acknowledgement asked for before enable is refused, or left unanswered", "XEP-0198 3"):
        s = await t.login(2)
        s.send(f"<r xmlns='{SM}'/>")
        await s.iq("get", PING, to=t.domain)
        s.none(is_sm("a"), "an acknowledgement")


@scenario("local", "cross")
async def management_resume(t):
    a, b = await t.online(0, "phone"), await t.online(1)
    await t.befriend(a, b)
    on = await enable(a)
    first = b.message(a.jid, "seen", type="chat")
    await a.get_message(first)
    a.send(f"<a xmlns='{SM}' h='1'/>")
    sent = a.message(b.jid, "counted", type="chat")
    await b.get_message(sent)
    a.drop()
    waiting = [b.message(a.jid, f"while away {i}", type="chat") for i in range(8)] + [b.message(a.bare, "to the account", type="chat")]
    await settle(b)
    s, answer = await resume(t, a, on.get("id"))
    async with t.rule("a lost stream is resumed: previd and h are given", "XEP-0198 5"):
        assert local(answer) == "resumed" and answer.get("previd") == on.get("id") and int(answer.get("h")) == 1, show(answer)
    async with t.rule("what was not acknowledged comes again, in order, once; what was acknowledged does not", "XEP-0198 5"):
        await s.until(lambda: s.find(lambda e: e.get("id") == waiting[-1]), 10, "last message")
        await settle(s, b)
        got = [e.get("id") for e in s.inbox if local(e) == "message"]
        assert got == waiting, f"{got} is not {waiting}"
    async with t.rule("after resumption no features, roster or presence are sent", "XEP-0198 5"):
        s.none(lambda e: local(e) in ("features", "presence", "iq"), "more than messages")
    async with t.rule("contacts notice nothing", "XEP-0198 5, P6"):
        b.none(lambda e: local(e) == "presence" and e.get("from") == a.jid, "presence of a resumed session")
        assert not [e for e in b.inbox if e.get("type") == "error"], "errors came back"
    async with t.rule("the resumed session is counted on, and sends", "XEP-0198 5"):
        number = s.message(b.jid, "still here", type="chat")
        got = await b.get_message(number)
        assert got.get("from") == a.jid, show(got)
        h = await handled(s)
        assert h >= 2, h
    async with t.rule("a session is taken over from a stream that is still open, which gets conflict", "XEP-0198 5"):
        s2, answer = await resume(t, s, on.get("id"))
        assert local(answer) == "resumed", show(answer)
        assert await s.stream_error() == "conflict"
        await settle(s2, b)
    async with t.rule("presence that changed while the client was away comes after resumption, the latest at least", "XEP-0198 5"):
        s2.drop()
        for text in ("away", "xa", "dnd"):
            b.presence(f"<show>{text}</show>")
        await settle(b)
        s2, answer = await resume(t, s2, on.get("id"))
        assert local(answer) == "resumed", show(answer)
        await s2.take(lambda e: local(e) == "presence" and e.get("from") == b.jid and child(e, CLIENT, "show").text == "dnd", "latest presence")
        await settle(s2, b)
        s2.none(lambda e: local(e) == "presence" and e.get("from") == b.jid and child(e, CLIENT, "show").text == "dnd", "it twice")
    async with t.rule("another user cannot resume the session", "XEP-0198 5"):
        s2.drop()
        thief, answer = await resume(t, s2, on.get("id"), user=t.user(1))
        is_failed(answer, "item-not-found")
        b.none(lambda e: local(e) == "presence" and e.get("type") == "unavailable", "an end")
    async with t.rule("after a failed resumption the client can bind", "XEP-0198 5"):
        assert (await thief.bind("afresh")).get("type") == "result"
    async with t.rule("a client that ends its stream ends its session: contacts see it go, no resumption", "XEP-0198 5, RFC 6120 4.4"):
        s3, answer = await resume(t, s2, on.get("id"))
        assert local(answer) == "resumed", show(answer)
        await s3.close()
        await b.get_presence(a.jid, "unavailable")
        _, answer = await resume(t, s3, on.get("id"))
        is_failed(answer, "item-not-found")
    async with t.rule("an unknown id: item-not-found", "XEP-0198 5"):
        for wrong in ("nonsense", "", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", on.get("id")[:-2] + "xx"):
            _, answer = await resume(t, s3, wrong, 0)
            assert local(answer) == "failed", show(answer)


@scenario()
async def management_elsewhere(t):
    a = await t.online(0)
    one = await enable(a)
    other = await t.online(0)
    two = await enable(other)
    async with t.rule("ids differ", "XEP-0198 3"):
        assert one.get("id") != two.get("id")
    a.drop()
    async with t.rule("resumption on another node fails cleanly, and the client can bind there", "issue 3 section 5, XEP-0198 5"):
        nodes = t.world.cluster.nodes
        elsewhere = next(i for i, n in enumerate(nodes) if not n["addresses"]["client"].endswith(f":{a.port}"))
        s, answer = await resume(t, a, one.get("id"), 0, node=elsewhere)
        if local(answer) == "failed":
            assert (await s.bind("new")).get("type") == "result"
    async with t.rule("resumption before login is refused", "XEP-0198 5"):
        s = await greeted(t)
        s.send(f"<resume xmlns='{SM}' previd='{one.get('id')}' h='0'/>")
        answer = await s.next()
        assert local(answer) in ("failed", "error"), show(answer)


@scenario(alone=True)
async def management_expiry(t):
    operator = t.world.operator
    async with operator.lock, operator.setting("c2s.resume_timeout", "1s"):
        a, b = await t.online(0, "phone"), await t.online(1)
        await t.befriend(a, b)
        desk = await t.online(0, "desk")
        on = await enable(a)
        a.drop()
        chat = b.message(a.jid, "for the phone", type="chat")
        b.send(stanza("iq", "<query xmlns='urn:x'/>", type="get", id="unanswered", to=a.jid))
        async with t.rule("when the time for resumption is over, contacts see the session end once", "XEP-0198 5, RFC 6121 4.5.2"):
            await b.get_presence(a.jid, "unavailable")
            await settle(b, desk)
            b.none(lambda e: local(e) == "presence" and e.get("from") == a.jid, "a second end")
        async with t.rule("a message that was not acknowledged goes to the other client", "XEP-0198 5, RFC 6121 8.5.3.2.1"):
            await desk.get_message(chat)
        async with t.rule("an IQ that was not acknowledged is answered by an error", "XEP-0198 5"):
            got = await b.take(lambda e: e.get("id") == "unanswered", "error")
            assert got.get("type") == "error", show(got)
        async with t.rule("resumption is too late: item-not-found, with h", "XEP-0198 1.6 5"):
            _, answer = await resume(t, a, on.get("id"), 0)
            is_failed(answer, "item-not-found")
            assert answer.get("h") is not None, show(answer)
        await desk.close()
        await b.get_presence(desk.jid, "unavailable")
        c = await t.online(0, "tablet")
        await enable(c)
        c.drop()
        chat = b.message(c.jid, "for nobody", type="chat")
        async with t.rule("a message that nobody acknowledged and nobody else takes waits for the next client", "XEP-0198 5, XEP-0160 2"):
            await b.get_presence(c.jid, "unavailable")
            later = await t.online(0, "later")
            await later.get_message(chat)
            b.none(lambda e: e.get("id") == chat and e.get("type") == "error", "an error")


@scenario(alone=True)
async def idle_connections(t):
    operator = t.world.operator
    async with operator.lock, operator.setting("c2s.idle_timeout", "1s"), operator.setting("c2s.probe_timeout", "1s"):
        a, b = await t.online(0), await t.online(1)
        await t.befriend(a, b)
        async with t.rule("a silent client is asked for a sign of life; one that gives none is gone, as its contacts see", "RFC 6120 4.6.4, XEP-0199 4.3"):
            ping = await a.take(lambda e: local(e) == "iq" and e.get("type") == "get" and child(e, "urn:xmpp:ping", "ping") is not None, "ping")
            assert ping.get("from") in (t.domain, a.bare, None), show(ping)
            b.send(" ")
            asked = b.take(lambda e: local(e) == "presence" and e.get("from") == a.jid and e.get("type") == "unavailable", "unavailable")
            waiting = asyncio.ensure_future(asked)
            while not waiting.done():
                b.send(" ")  # whitespace keeps the other one alive
                await asyncio.sleep(0.3)
            await waiting
        async with t.rule("whitespace is a sign of life", "RFC 6120 4.6.1"):
            assert not b.closed and not b.lost
            assert (await b.iq("get", PING, to=t.domain)).get("type") == "result"


@scenario(alone=True)
async def slow_clients(t):
    operator = t.world.operator
    async with operator.lock, operator.setting("c2s.header_timeout", "1s"), operator.setting("c2s.login_timeout", "2s"):
        async with t.rule("who says nothing, or one byte a time, is cut off in the time for the first stream header", "S14"):
            for drip in ("", "<stream:stream xmlns='jabber:client'"):
                s = await t.plain(1)
                began = time.monotonic()
                for byte in drip:
                    if s.lost or s.closed:
                        break
                    s.send(byte)
                    await asyncio.sleep(0.1)
                await s.until(lambda: s.lost or s.closed, 6, "end of the connection")
                assert time.monotonic() - began < 6
        async with t.rule("who does not log in is cut off in the time for that", "S14"):
            s = await greeted(t)
            await s.until(lambda: s.lost or s.closed, 8, "end of the connection")
    async with t.rule("more than fits before login ends the stream with policy-violation", "S3"):
        s = await greeted(t)
        s.send(f"<auth xmlns='{SASL}' mechanism='PLAIN'>{'A' * 20_000}</auth>")
        assert await s.stream_error() == "policy-violation"


@scenario()
async def certificates(t):
    a, b = await t.online(0), await t.online(1)
    async with t.rule("certificates are read again without a connection lost", "F23, RFC 6120 5"):
        for node in t.world.cluster.nodes:
            await asyncio.to_thread(t.world.operator._run, [str(t.world.cluster.bin / "muster"), "--data", node["data"], "certs", "reload"], None)
        await settle(a, b)
        for node in range(3):
            await t.login(2, node=node)


@scenario("local", "cross")
async def connection_loss(t):
    a, b = await t.online(0), await t.online(1)
    await t.befriend(a, b)
    async with t.rule("a connection that breaks without stream management ends the session: unavailable, once", "RFC 6121 4.5.2"):
        a.drop()
        await b.get_presence(a.jid, "unavailable")
        await settle(b)
        b.none(lambda e: local(e) == "presence" and e.get("from") == a.jid, "a second end")


@scenario("local", "cross")
async def client_state(t):
    a, b = await t.online(0), await t.online(1)
    await t.befriend(a, b)
    a.send("<inactive xmlns='urn:xmpp:csi:0'/>")
    await a.iq("get", PING, to=t.domain)
    async with t.rule("client state is not answered", "XEP-0352 5"):
        a.none(lambda e: space(e) == "urn:xmpp:csi:0", "an answer")
    for show_ in ("away", "dnd", "xa"):
        b.presence(f"<show>{show_}</show>")
    number = b.message(a.jid, "important", type="chat")
    async with t.rule("messages reach an inactive client at once, behind the presence before them", "XEP-0352 5, RFC 6120 10.1"):
        await a.until(lambda: a.find(lambda e: e.get("id") == number), 10, "message")
        at = next(i for i, e in enumerate(a.inbox) if e.get("id") == number)
        before = [child(e, CLIENT, "show").text for e in a.inbox[:at] if local(e) == "presence" and e.get("from") == b.jid]
        after = [e for e in a.inbox[at:] if local(e) == "presence" and e.get("from") == b.jid]
        assert (before and before[-1] == "xa") and not after, f"before {before}, after {len(after)}"
    a.inbox.clear()
    b.presence("<show>chat</show>")
    await b.iq("get", PING, to=t.domain)
    a.send("<active xmlns='urn:xmpp:csi:0'/>")
    async with t.rule("an active client gets the presence that was held", "XEP-0352 5"):
        got = await a.get_presence(b.jid)
        assert child(got, CLIENT, "show").text == "chat", show(got)
