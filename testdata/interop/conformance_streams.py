"""Streams, TLS and SASL."""

import asyncio
import base64
import ssl

from conformance_case import scenario
from conformance_wire import CLIENT, STREAM, TLS, SASL, BIND, Missing, Login, child, encode, local, show, space, stanza

PING = "<ping xmlns='urn:xmpp:ping'/>"
HEAD = f"<stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' version='1.0' to="


# Streams


@scenario()
async def stream_headers(t):
    s = await t.plain()
    head = await s.open(**{"from": f"somebody@{t.domain}"})
    async with t.rule("the server's header names its domain, version 1.0 and a language", "RFC 6120 4.7"):
        lang = head.get("{http://www.w3.org/XML/1998/namespace}lang")
        assert head.get("from") == t.domain and head.get("version") == "1.0" and lang, show(head)
    async with t.rule("the header's 'to' is the client's 'from'", "RFC 6120 4.7.2"):
        assert head.get("to") == f"somebody@{t.domain}", show(head)
    features = await s.features()
    async with t.rule("before TLS only STARTTLS is offered, as required", "RFC 6120 5.3.1, S10"):
        assert [e.tag for e in features] == [f"{{{TLS}}}starttls"], show(features)
        assert child(features[0], TLS, "required") is not None, show(features)
    ids = [head.get("id")]
    s.send(f"<starttls xmlns='{TLS}'/>")
    await s.next()
    await s.secure()
    ids.append((await s.open()).get("id"))
    await s.features()
    user = t.user()
    assert await s.authenticate("PLAIN", user["jid"].partition("@")[0], user["password"]) is None
    ids.append((await s.open()).get("id"))
    async with t.rule("every stream has an id of its own that cannot be guessed", "RFC 6120 4.7.3"):
        assert len(set(ids)) == 3 and all(i and len(i) >= 16 for i in ids), ids
    s.send("</stream:stream>")
    async with t.rule("the end of a stream is answered", "RFC 6120 4.4"):
        await s.until(lambda: s.closed, 5, "end of stream")


@scenario()
async def stream_openings(t):
    cases = [
        ("an unknown host", f"<?xml version='1.0'?>{HEAD}'elsewhere.test'>", {"host-unknown"}),
        ("no host", f"<stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' version='1.0'>", {"host-unknown", "improper-addressing"}),
        ("another stream namespace", f"<stream:stream xmlns='{CLIENT}' xmlns:stream='urn:wrong' version='1.0' to='{t.domain}'>", {"invalid-namespace"}),
        ("another content namespace", f"<stream:stream xmlns='urn:wrong' xmlns:stream='{STREAM}' version='1.0' to='{t.domain}'>", {"invalid-namespace"}),
        ("the servers' namespace", f"<stream:stream xmlns='jabber:server' xmlns:stream='{STREAM}' version='1.0' to='{t.domain}'>", {"invalid-namespace"}),
        ("an element that is no stream", f"<stream:other xmlns='{CLIENT}' xmlns:stream='{STREAM}' version='1.0' to='{t.domain}'>", {"bad-format", "invalid-namespace"}),
        ("no version", f"<stream:stream xmlns='{CLIENT}' xmlns:stream='{STREAM}' to='{t.domain}'>", {"unsupported-version"}),
        ("garbage", "GET / HTTP/1.1\r\n\r\n", {"not-well-formed", "bad-format", "invalid-xml"}),
        ("another encoding", f"<?xml version='1.0' encoding='ISO-8859-1'?>{HEAD}'{t.domain}'>", {"unsupported-encoding"}),
        ("a DTD", f"<?xml version='1.0'?><!DOCTYPE lolz [<!ENTITY lol 'lol'>]>{HEAD}'{t.domain}'>", {"restricted-xml"}),
        ("a comment", f"<!-- hello -->{HEAD}'{t.domain}'>", {"restricted-xml"}),
        ("a processing instruction", f"<?php hello?>{HEAD}'{t.domain}'>", {"restricted-xml"}),
    ]
    for name, text, conditions in cases:
        async with t.rule(f"opening with {name}: a header, then {'/'.join(sorted(conditions))}", "RFC 6120 4.9.1.2, 4.9.3, 11"):
            s = await t.plain(len(name))
            s.send(text)
            condition = await s.stream_error()
            assert s.header is not None and s.header.get("id") and s.header.get("from"), "no header before the error"
            assert condition in conditions, condition
    for name, text in (("a byte order mark", "\ufeff<?xml version='1.0' encoding='utf-8'?>" + f"{HEAD}'{t.domain}'>"),
                       ("no XML declaration", f"{HEAD}'{t.domain}'>"),
                       ("another case of the domain", f"{HEAD}'{t.domain.upper()}'>")):
        async with t.rule(f"opening with {name} is taken", "RFC 6120 11.5, 11.6; RFC 7622 3.2"):
            s = await t.plain(1)
            s.send(text)
            await s.features()
    async with t.rule("a stream prefix other than 'stream' works or is refused as bad-namespace-prefix", "RFC 6120 4.8.5"):
        s = await t.plain(2)
        s.send(f"<s:stream xmlns='{CLIENT}' xmlns:s='{STREAM}' version='1.0' to='{t.domain}'>")
        answer = await s.next()
        assert local(answer) in ("features", "error"), show(answer)


@scenario()
async def before_tls(t):
    for name, text in (("SASL", f"<auth xmlns='{SASL}' mechanism='PLAIN'>{encode(b'%0a%0b')}</auth>"),
                       ("a message", stanza("message", "<body>x</body>", to=t.user()["jid"])),
                       ("binding", stanza("iq", f"<bind xmlns='{BIND}'/>", type="set", id="b"))):
        async with t.rule(f"{name} before TLS ends the stream", "RFC 6120 5.3.1, 7.1, S10"):
            s = await t.plain()
            await s.open()
            await s.features()
            s.send(text)
            assert await s.stream_error() in ("policy-violation", "not-authorized"), show(s.last_error)
    async with t.rule("what is sent in one piece with STARTTLS is forgotten", "RFC 6120 5.4.3.3, S10"):
        s = await t.plain()
        await s.open()
        await s.features()
        s.send(f"<starttls xmlns='{TLS}'/><stream:stream to='elsewhere.test'><auth xmlns='{SASL}' mechanism='PLAIN'>AA==</auth>")
        answer = await s.next()
        assert local(answer) == "proceed", show(answer)
        try:
            await s.secure()
        except (ssl.SSLError, OSError):
            return  # the rest was read as a broken handshake: refused, which is as good
        await s.open()
        features = await s.features()
        assert child(features, SASL, "mechanisms") is not None, show(features)
        assert not s.inbox, show(s.inbox[0])


@scenario()
async def tls_versions(t):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        async with t.rule(f"{version.name} is spoken", "RFC 7590, spec 6.1.2"):
            s = await t.plain()
            features = await s.starttls(version=version)
            kinds = {e.get("type") for e in features.iter("{urn:xmpp:sasl-cb:0}channel-binding")}
            mechanisms = {e.text for e in features.iter(f"{{{SASL}}}mechanism")}
            assert "tls-server-end-point" in kinds, kinds
            assert "SCRAM-SHA-256-PLUS" in mechanisms, mechanisms
            if version == ssl.TLSVersion.TLSv1_3:
                assert "tls-exporter" in kinds and "tls-unique" not in kinds, kinds
            user = t.user()
            assert await s.authenticate("SCRAM-SHA-256-PLUS", user["jid"].partition("@")[0], user["password"],
                                        binding="tls-server-end-point") is None
    async with t.rule("TLS 1.1 is refused", "RFC 8996"):
        s = await t.plain()
        await s.open()
        await s.features()
        s.send(f"<starttls xmlns='{TLS}'/>")
        await s.next()
        context = ssl.create_default_context(cafile=s.ca)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
        s.context = lambda *_: context
        try:
            await s.secure()
        except (ssl.SSLError, OSError):
            return
        raise AssertionError(f"agreed on {s.tls.version()}")


@scenario()
async def direct_tls(t):
    for node in range(3):
        async with t.rule(f"direct TLS on node {node + 1}: ALPN xmpp-client is chosen, SASL is offered at once", "XEP-0368 4"):
            s = t.stream(node, kind="client_tls")
            await s.connect()
            await s.secure(alpn="xmpp-client")
            assert s.tls.selected_alpn_protocol() == "xmpp-client", s.tls.selected_alpn_protocol()
            await s.open()
            features = await s.features()
            assert child(features, SASL, "mechanisms") is not None and child(features, TLS, "starttls") is None, show(features)
            user = t.user(node)
            assert await s.authenticate("SCRAM-SHA-256-PLUS", user["jid"].partition("@")[0], user["password"]) is None
            await s.open()
            await s.features()
            assert (await s.bind("direct")).get("type") == "result"
    async with t.rule("direct TLS without ALPN works", "XEP-0368 4"):
        s = t.stream(0, kind="client_tls")
        await s.connect()
        await s.secure()
        await s.open()
        await s.features()
    async with t.rule("direct TLS for another protocol gets no stream", "RFC 7301 3.2"):
        s = t.stream(0, kind="client_tls")
        await s.connect()
        try:
            await s.secure(alpn="http/1.1")
            chosen = s.tls.selected_alpn_protocol()
            assert chosen != "http/1.1", chosen
        except (ssl.SSLError, OSError):
            pass


# SASL


def name_of(user):
    return user["jid"].partition("@")[0]


async def greeted(t, node=0):
    s = t.stream(node)
    await s.connect()
    s.offers = await s.starttls()
    return s


@scenario()
async def sasl_offers(t):
    s = await greeted(t)
    offered = [e.text for e in s.offers.iter(f"{{{SASL}}}mechanism")]
    async with t.rule("all mechanisms are offered, strongest first", "spec 6.1.2, RFC 6120 6.3.3"):
        assert offered == ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"], offered
    async with t.rule("channel bindings are announced", "XEP-0440 3"):
        kinds = {e.get("type") for e in s.offers.iter("{urn:xmpp:sasl-cb:0}channel-binding")}
        assert kinds >= {"tls-server-end-point", "tls-exporter"} and "tls-unique" not in kinds, kinds
    async with t.rule("the limits before login are announced", "XEP-0478 3, S3"):
        limits = child(s.offers, "urn:xmpp:stream-limits:0", "limits")
        most = int(child(limits, "urn:xmpp:stream-limits:0", "max-bytes").text)
        assert most >= 10000, most
        assert int(child(limits, "urn:xmpp:stream-limits:0", "idle-seconds").text) > 0


@scenario()
async def sasl_logins(t):
    ways = [(m, b) for m in ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS") for b in ("tls-exporter", "tls-server-end-point")]
    ways += [(m, None) for m in ("SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN")]
    user = t.user()
    for number, (mechanism, binding) in enumerate(ways):
        async with t.rule(f"login by {mechanism}{' with ' + binding if binding else ''}", "RFC 5802, RFC 7677, RFC 9266, RFC 5929, RFC 4616"):
            s = await greeted(t, number)
            failure = await s.authenticate(mechanism, name_of(user), user["password"], **({"binding": binding} if binding else {}))
            assert failure is None, failure
            await s.open()
            await s.features()
    for mechanism in ("SCRAM-SHA-256", "PLAIN"):
        async with t.rule(f"{mechanism}: the name is compared without case", "RFC 7622 3.3, RFC 8265 3.3"):
            s = await greeted(t)
            assert await s.authenticate(mechanism, name_of(user).upper(), user["password"]) is None
            await s.open()
            await s.features()
            await s.bind("case")
            assert s.bare == user["jid"], s.jid
        for authzid, source in ((user["jid"], "own bare JID"), (None, "none")):
            async with t.rule(f"{mechanism}: authzid {source} is taken", "RFC 6120 6.3.8"):
                s = await greeted(t)
                assert await s.authenticate(mechanism, name_of(user), user["password"], authzid=authzid or "") is None
        async with t.rule(f"{mechanism}: another user's authzid is refused as invalid-authzid", "RFC 6120 6.5.6"):
            s = await greeted(t)
            failure = await s.authenticate(mechanism, name_of(user), user["password"], authzid=t.user(1)["jid"])
            assert failure == "invalid-authzid", failure


@scenario()
async def sasl_refusals(t):
    user, stranger = t.user(), t.stranger().partition("@")[0]
    shapes = {}
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"):
        for name, who in (("a wrong password", name_of(user)), ("an unknown user", stranger)):
            async with t.rule(f"{mechanism}: {name} is not-authorized", "RFC 6120 6.5.10, S12"):
                s = await greeted(t)
                login = Login(mechanism, who, "certainly wrong")
                s.send(f"<auth xmlns='{SASL}' mechanism='{mechanism}'>{login.first()}</auth>")
                answer, steps = await s.next(), 0
                while local(answer) == "challenge":
                    s.send(f"<response xmlns='{SASL}'>{login.answer(base64.b64decode(answer.text))}</response>")
                    answer, steps = await s.next(), steps + 1
                shapes[mechanism, name] = (steps, getattr(login, "iterations", 0), len(getattr(login, "salt", "")), show(answer))
                shapes[mechanism, name, "salt"] = getattr(login, "salt", "")
                assert [local(e) for e in answer][0] == "not-authorized", show(answer)
        async with t.rule(f"{mechanism}: an unknown user looks like a wrong password", "S12"):
            one, other = shapes.get((mechanism, "a wrong password")), shapes.get((mechanism, "an unknown user"))
            assert one == other, f"{one} is not {other}"
    async with t.rule("the salt of an unknown user is the same each time", "S12"):
        s = await greeted(t, 1)  # another node
        login = Login("SCRAM-SHA-256", stranger, "wrong again")
        failure = await s.authenticate("SCRAM-SHA-256", stranger, "wrong again")
        assert failure == "not-authorized", failure
        s = await greeted(t, 2)
        s.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256'>{login.first()}</auth>")
        login.answer(base64.b64decode((await s.next()).text))
        assert login.salt == shapes["SCRAM-SHA-256", "an unknown user", "salt"], "another salt"
    name, right = name_of(user), user["password"]
    for text, mechanism, options, conditions in (
            ("a client that says the server has no binding, though it has", "SCRAM-SHA-256", {"flag": "y"}, {"not-authorized", "malformed-request", "mechanism-too-weak"}),
            ("a PLUS mechanism without binding", "SCRAM-SHA-256-PLUS", {"flag": "n"}, {"not-authorized", "malformed-request"}),
            ("a binding without a PLUS mechanism", "SCRAM-SHA-256", {"flag": "p=tls-exporter"}, {"not-authorized", "malformed-request"}),
            ("no password", "PLAIN", {"password": ""}, {"not-authorized", "malformed-request"})):
        async with t.rule(f"SASL: {text} is refused", "RFC 5802 6, S11"):
            s = await greeted(t)
            failure = await s.authenticate(mechanism, name, options.pop("password", right), **options)
            assert failure in conditions, failure
    async with t.rule("SASL: a binding to another connection is refused", "RFC 5802 6, RFC 9266"):
        s, other = await greeted(t), await greeted(t)
        login = Login("SCRAM-SHA-256-PLUS", name, right)
        login.bind_to(other)
        s.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256-PLUS'>{login.first()}</auth>")
        s.send(f"<response xmlns='{SASL}'>{login.answer(base64.b64decode((await s.next()).text))}</response>")
        answer = await s.next()
        assert local(answer) == "failure", show(answer)
    async with t.rule("SASL: an unknown kind of binding is refused", "RFC 5802 6"):
        s = await greeted(t)
        s.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256-PLUS'>{encode(f'p=tls-unique,,n={name},r=abcdefghijkl'.encode())}</auth>")
        answer = await s.next()
        assert local(answer) == "failure", show(answer)


@scenario()
async def sasl_protocol(t):
    user = t.user()
    s = await greeted(t)

    async def attempt(text, condition):
        s.send(text)
        answer = await s.take(lambda e: space(e) == SASL)
        assert local(answer) == "failure" and child(answer, SASL, condition) is not None, f"{condition}: {show(answer)}"

    async with t.rule("SASL: an unknown mechanism is invalid-mechanism", "RFC 6120 6.5.7"):
        await attempt(f"<auth xmlns='{SASL}' mechanism='DIGEST-MD5'/>", "invalid-mechanism")
    async with t.rule("SASL: what is not Base64 is incorrect-encoding", "RFC 6120 6.5.5"):
        await attempt(f"<auth xmlns='{SASL}' mechanism='PLAIN'>*** no ***</auth>", "incorrect-encoding")
    async with t.rule("SASL: a malformed message is malformed-request", "RFC 6120 6.5.8"):
        await attempt(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-1'>{encode(b'nonsense')}</auth>", "malformed-request")
    async with t.rule("after failures the right password is still taken on the same stream", "RFC 6120 6.4.5"):
        assert await s.authenticate("SCRAM-SHA-1", name_of(user), user["password"]) is None
    s = await greeted(t, 1)
    async with t.rule("SASL: abort is answered by aborted", "RFC 6120 6.4.4"):
        s.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-1'>{Login('SCRAM-SHA-1', name_of(user), 'x').first()}</auth>")
        assert local(await s.next()) == "challenge"
        await attempt(f"<abort xmlns='{SASL}'/>", "aborted")
    async with t.rule("SASL: a client that sends no initial response is asked for it", "RFC 6120 6.4.2, RFC 4422 5"):
        login = Login("SCRAM-SHA-256", name_of(user), user["password"])
        s.send(f"<auth xmlns='{SASL}' mechanism='SCRAM-SHA-256'/>")
        answer = await s.next()
        assert local(answer) == "challenge" and not answer.text, show(answer)
        s.send(f"<response xmlns='{SASL}'>{login.first()}</response>")
        answer = await s.next()
        assert local(answer) == "challenge" and answer.text, show(answer)
        s.send(f"<abort xmlns='{SASL}'/>")
        await s.next()
    async with t.rule("an IQ before login ends the stream with not-authorized", "RFC 6120 6.3.1, 7.1"):
        s = await greeted(t, 2)
        s.send(stanza("iq", f"<query xmlns='jabber:iq:roster'/>", type="get", id="x"))
        assert await s.stream_error() == "not-authorized"
    async with t.rule("between two and five failures end the stream", "RFC 6120 6.4.5, S13"):
        s = await greeted(t, 2)
        failures = 0
        lonely = t.user(3)
        while not s.closed and failures < 7:
            try:
                await s.authenticate("PLAIN", name_of(lonely), "wrong")
                failures += 1
            except Missing:
                break
            await asyncio.sleep(0.05)
        assert 2 <= failures <= 5, f"{failures} failures"
    async with t.rule("SASL after login is refused", "RFC 6120 6.4.6"):
        s = t.stream(1)
        await s.login(user)
        s.send(f"<auth xmlns='{SASL}' mechanism='PLAIN'>AGEAYg==</auth>")
        await s.stream_error()
