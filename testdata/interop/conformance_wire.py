"""A client that does what it is told, right or wrong: streams, SASL and stanzas by hand.

The conformance checks need to say things that no library would say, and to
see every byte that comes back; this is the little that takes.
"""

import asyncio
import base64
import ctypes
import hashlib
import hmac
import itertools
import os
import ssl
import time
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

CLIENT = "jabber:client"
STREAM = "http://etherx.jabber.org/streams"
STREAM_ERRORS = "urn:ietf:params:xml:ns:xmpp-streams"
STANZA_ERRORS = "urn:ietf:params:xml:ns:xmpp-stanzas"
TLS = "urn:ietf:params:xml:ns:xmpp-tls"
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"
BIND = "urn:ietf:params:xml:ns:xmpp-bind"
SESSION = "urn:ietf:params:xml:ns:xmpp-session"
SM = "urn:xmpp:sm:3"
ROSTER = "jabber:iq:roster"
MARK = "urn:muster:conformance"

LIMIT = 10.0  # seconds that any one answer may take

_numbers = itertools.count(1)


class Missing(AssertionError):
    """What was waited for did not come."""


def fresh(prefix="c"):
    """An id that no other stanza of the run has."""
    return f"{prefix}{next(_numbers)}"


def local(element):
    return element.tag.rpartition("}")[2]


def space(element):
    return element.tag[1:].partition("}")[0] if element.tag.startswith("{") else ""


def child(element, ns, name):
    return None if element is None else element.find(f"{{{ns}}}{name}")


def show(element):
    return "nothing" if element is None else ET.tostring(element, encoding="unicode")[:400]


def error_of(stanza):
    """(type, condition) of an error stanza, or None."""
    error = child(stanza, CLIENT, "error")
    if error is None:
        return None
    names = [local(e) for e in error if space(e) == STANZA_ERRORS and local(e) != "text"]
    return error.get("type"), names[0] if names else None


def attributes(**values):
    return "".join(f" {k.rstrip('_')}={quoteattr(str(v))}" for k, v in values.items() if v is not None)


def stanza(name, inner="", **values):
    return f"<{name}{attributes(**values)}>{inner}</{name}>"


class Stream(asyncio.Protocol):
    """One connection. What comes is parsed into elements, in self.inbox."""

    def __init__(self, host, port, domain, ca):
        self.host, self.port, self.domain, self.ca = host, port, domain, ca
        self.transport = None
        self.inbox = []
        self.header = None
        self.closed = False  # the server ended the stream
        self.lost = False  # the connection is gone
        self.h = 0  # stanzas received since stream management began
        self._news = asyncio.Event()
        self._reset()

    # -- the connection

    def context(self, alpn=None, version=None):
        context = ssl.create_default_context(cafile=self.ca)
        if alpn:
            context.set_alpn_protocols([alpn])
        if version:
            context.minimum_version = context.maximum_version = version
        return context

    async def connect(self):
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.create_connection(lambda: self, self.host, self.port), LIMIT)
        return self

    async def secure(self, alpn=None, version=None):
        """The TLS handshake on the open connection."""
        loop = asyncio.get_running_loop()
        plain = self.transport
        self.transport = await asyncio.wait_for(
            loop.start_tls(plain, self, self.context(alpn, version), server_hostname=self.domain), LIMIT)
        self._reset()

    @property
    def tls(self):
        return self.transport.get_extra_info("ssl_object")

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, exc):
        self.lost = True
        self._news.set()

    def drop(self):
        """Ends the connection as a broken network would: nothing is said."""
        self.transport.abort()

    async def close(self):
        if not self.lost and self.transport is not None:
            if not self.closed and self.header is not None:
                self.send("</stream:stream>")
                try:
                    await self.until(lambda: self.closed or self.lost, 3, "the end of the stream")
                except Missing:
                    pass
            self.transport.abort()

    def send(self, data):
        self.transport.write(data if isinstance(data, bytes) else data.encode())

    # -- what comes

    def _reset(self):
        self._parser = ET.XMLPullParser(("start", "end"))
        self._depth = 0
        self._root = None
        self.header = None

    def data_received(self, data):
        self._parser.feed(data)
        for event, element in self._parser.read_events():
            if event == "start":
                self._depth += 1
                if self._depth == 1:
                    self._root = self.header = element
            else:
                self._depth -= 1
                if self._depth == 1:
                    self._root.remove(element)
                    self.inbox.append(element)
                    self._count(element)
                elif self._depth == 0:
                    self.closed = True
        self._news.set()

    def _count(self, element):
        """Keeps the number of stanzas received since stream management began (XEP-0198 section 4)."""
        if element.tag == f"{{{SM}}}enabled":
            self.h = 0
        elif space(element) == CLIENT:
            self.h += 1

    async def until(self, condition, limit, what):
        deadline = time.monotonic() + limit
        while not condition():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.001, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                if not condition():
                    raise Missing(f"no {what} within {limit:g} s; got {[show(e) for e in self.inbox[-4:]]}") from None

    def find(self, wanted):
        return next((e for e in self.inbox if wanted(e)), None)

    async def take(self, wanted, what="answer", limit=LIMIT):
        """Waits for the first element that fits, and removes it from the inbox."""
        await self.until(lambda: self.find(wanted) is not None or self.closed or self.lost, limit, what)
        found = self.find(wanted)
        if found is None:
            raise Missing(f"the stream ended before {what} came: {[show(e) for e in self.inbox[-3:]]}")
        self.inbox.remove(found)
        return found

    async def next(self, limit=LIMIT):
        return await self.take(lambda e: True, "element", limit)

    # -- the opening

    async def open(self, **changes):
        """Sends a stream header and waits for the server's."""
        self._reset()
        values = {"to": self.domain, "version": "1.0", "xml:lang": "en", "xmlns": CLIENT, "xmlns:stream": STREAM, **changes}
        self.send("<?xml version='1.0'?><stream:stream" + attributes(**values) + ">")
        await self.until(lambda: self.header is not None, LIMIT, "stream header")
        return self.header

    async def features(self):
        return await self.take(lambda e: e.tag == f"{{{STREAM}}}features", "stream features")

    async def starttls(self, version=None):
        """From a new connection to the features after TLS."""
        await self.open()
        await self.features()
        self.send(f"<starttls xmlns='{TLS}'/>")
        await self.take(lambda e: e.tag == f"{{{TLS}}}proceed", "proceed")
        await self.secure(version=version)
        await self.open()
        return await self.features()

    async def stream_error(self, limit=LIMIT):
        """The condition of the stream error that has to come, with the end of stream behind it."""
        element = await self.take(lambda e: e.tag == f"{{{STREAM}}}error", "stream error", limit)
        await self.until(lambda: self.closed or self.lost, LIMIT, "end of stream after the error")
        names = [local(e) for e in element if space(e) == STREAM_ERRORS and local(e) != "text"]
        self.last_error = element
        return names[0] if names else None

    # -- SASL

    async def authenticate(self, mechanism, user, password, **options):
        """Logs in; returns None or the failure's condition."""
        login = Login(mechanism, user, password, **options)
        login.bind_to(self)
        self.send(f"<auth xmlns='{SASL}' mechanism='{mechanism}'>{login.first()}</auth>")
        while True:
            answer = await self.take(lambda e: space(e) == SASL, "SASL answer")
            data = base64.b64decode(answer.text or "")
            if local(answer) == "failure":
                return next((local(e) for e in answer if local(e) != "text"), "none")
            if local(answer) == "success":
                login.check(data)
                return None
            self.send(f"<response xmlns='{SASL}'>{login.answer(data)}</response>")


_salted = {}


class Login:
    """The client's side of SCRAM (RFC 5802) and PLAIN (RFC 4616)."""

    def __init__(self, mechanism, user, password, authzid="", flag=None, binding="tls-exporter"):
        self.mechanism, self.user, self.password, self.authzid = mechanism, user, password, authzid
        self.hash = hashlib.sha256 if "256" in mechanism else hashlib.sha1
        self.binding, self.cbdata = binding, b""
        self.flag = flag or (f"p={binding}" if mechanism.endswith("-PLUS") else "n")
        self.signature = None

    def bind_to(self, stream):
        if self.flag.startswith("p="):
            self.cbdata = channel_binding(stream.tls, self.binding)

    def first(self):
        if self.mechanism == "PLAIN":
            return encode(f"{self.authzid}\0{self.user}\0{self.password}".encode())
        self.gs2 = f"{self.flag},{'a=' + self.authzid if self.authzid else ''},"
        self.nonce = base64.b64encode(os.urandom(18)).decode()
        self.bare = f"n={self.user.replace('=', '=3D').replace(',', '=2C')},r={self.nonce}"
        return encode((self.gs2 + self.bare).encode())

    def answer(self, challenge):
        values = dict(part.split("=", 1) for part in challenge.decode().split(","))
        if not values["r"].startswith(self.nonce) or len(values["r"]) <= len(self.nonce):
            raise AssertionError("the server's nonce does not continue the client's")
        self.salt, self.iterations = values["s"], int(values["i"])
        key = (self.hash, self.password, values["s"], values["i"])
        if key not in _salted:
            _salted[key] = hashlib.pbkdf2_hmac(self.hash().name, self.password.encode(), base64.b64decode(values["s"]), int(values["i"]))
        salted = _salted[key]
        client = hmac.digest(salted, b"Client Key", self.hash)
        without = f"c={encode(self.gs2.encode() + self.cbdata)},r={values['r']}"
        message = f"{self.bare},{challenge.decode()},{without}".encode()
        proof = hmac.digest(self.hash(client).digest(), message, self.hash)
        self.signature = hmac.digest(hmac.digest(salted, b"Server Key", self.hash), message, self.hash)
        both = bytes(x ^ y for x, y in zip(client, proof))
        return encode(f"{without},p={encode(both)}".encode())

    def check(self, data):
        if self.signature is not None and data != b"v=" + base64.b64encode(self.signature):
            raise AssertionError("the server did not prove that it knows the password")


def encode(data):
    return base64.b64encode(data).decode()


def channel_binding(tls, kind):
    """The data of RFC 9266 (tls-exporter) and RFC 5929 (tls-server-end-point)."""
    if kind == "tls-server-end-point":
        return hashlib.sha256(tls.getpeercert(binary_form=True)).digest()
    # The ssl module has no exporter: it is asked of the library below it. The
    # module's object holds, after its head and a reference, the library's.
    import _ssl

    library = ctypes.CDLL(_ssl.__file__)
    head = object.__basicsize__
    handle = ctypes.c_void_p.from_address(id(tls._sslobj) + head + ctypes.sizeof(ctypes.c_void_p))
    label, out = b"EXPORTER-Channel-Binding", ctypes.create_string_buffer(32)
    ok = library.SSL_export_keying_material(
        handle, out, ctypes.c_size_t(32), label, ctypes.c_size_t(len(label)), None, ctypes.c_size_t(0), 1 if tls.version() == "TLSv1.3" else 0)
    if ok != 1:
        raise AssertionError("the TLS library exports nothing")
    return out.raw


class Client(Stream):
    """A stream with a session on it."""

    jid = bare = resource = ""

    async def login(self, user, resource=None, mechanism="SCRAM-SHA-256"):
        """Up to the features that offer to bind."""
        await self.connect()
        await self.starttls()
        self.bare = user["jid"]
        name = self.bare.partition("@")[0]
        failure = await self.authenticate(mechanism, name, user["password"])
        if failure is not None:
            raise AssertionError(f"{self.bare} cannot log in: {failure}")
        await self.open()
        self.offers = await self.features()

    async def bind(self, resource=None):
        inner = f"<resource>{escape(resource)}</resource>" if resource else ""
        answer = await self.iq("set", f"<bind xmlns='{BIND}'>{inner}</bind>")
        if answer.get("type") == "result":
            self.jid = child(child(answer, BIND, "bind"), BIND, "jid").text
            self.bare, _, self.resource = self.jid.partition("/")
        return answer

    # -- stanzas

    async def iq(self, kind, payload, to=None, from_=None, limit=LIMIT):
        number = fresh("q")
        self.send(stanza("iq", payload, type=kind, id=number, to=to, **({"from": from_} if from_ else {})))
        return await self.take(lambda e: local(e) == "iq" and e.get("id") == number and e.get("type") in ("result", "error"),
                               f"answer to {payload[:80]}", limit)

    def presence(self, inner="", **values):
        self.send(stanza("presence", inner, **values))

    def message(self, to, body=None, inner="", **values):
        number = values.pop("id", None) or fresh("m")
        text = f"<body>{escape(body)}</body>" if body is not None else ""
        self.send(stanza("message", text + inner, to=to, id=number, **values))
        return number

    async def available(self, inner="", **values):
        """Initial presence; returns when the server has handled it."""
        self.presence(inner, **values)
        await self.take(lambda e: local(e) == "presence" and e.get("from") == self.jid and e.get("type") is None, "own presence")

    async def roster(self, ver=None):
        return await self.iq("get", f"<query xmlns='{ROSTER}'{attributes(ver=ver)}/>")

    async def items(self):
        """The roster as the server has it: attributes by address."""
        answer = await self.roster()
        return {i.get("jid"): i for i in child(answer, ROSTER, "query")}

    async def put(self, contact, name=None, groups=()):
        inner = "".join(f"<group>{escape(g)}</group>" for g in groups)
        return await self.iq("set", f"<query xmlns='{ROSTER}'><item jid='{contact}'{attributes(name=name)}>{inner}</item></query>")

    async def remove(self, contact):
        return await self.iq("set", f"<query xmlns='{ROSTER}'><item jid='{contact}' subscription='remove'/></query>")

    async def push(self, contact, limit=LIMIT, **wanted):
        """Waits for a roster push about a contact, with these attributes."""
        def fits(e):
            item = pushed(e)
            return item is not None and item.get("jid") == contact and all(item.get(k) == v for k, v in wanted.items())
        return pushed(await self.take(fits, f"roster push of {contact} {wanted}", limit))

    async def get_presence(self, sender, kind=None, limit=LIMIT):
        """Waits for a presence of that type from that address; a bare address stands for any of its resources."""
        def fits(e):
            return local(e) == "presence" and e.get("type") == kind and sent_by(e, sender)
        return await self.take(fits, f"presence {kind or 'available'} from {sender}", limit)

    async def get_message(self, number, limit=LIMIT):
        return await self.take(lambda e: local(e) == "message" and e.get("id") == number, f"message {number}", limit)

    def none(self, wanted, what):
        found = self.find(wanted)
        if found is not None:
            raise AssertionError(f"{self.jid} got {what}: {show(found)}")


def sent_by(element, sender):
    source = element.get("from") or ""
    return source == sender or ("/" not in sender and source.partition("/")[0] == sender)


def pushed(element):
    """The item of a roster push, or None."""
    if local(element) != "iq" or element.get("type") != "set":
        return None
    query = child(element, ROSTER, "query")
    return None if query is None or len(query) != 1 else query[0]


async def settle(*clients, rounds=2):
    """Waits until what was sent before has arrived: a marker travels from everybody to everybody, twice."""
    for _ in range(rounds):
        mark = fresh("mark")
        for one in clients:
            for other in clients:
                one.send(stanza("message", f"<mark xmlns='{MARK}'/>", to=other.jid, id=mark + one.jid, type="normal"))
        for one in clients:
            for other in clients:
                await one.get_message(mark + other.jid)
            await one.iq("get", "<ping xmlns='urn:xmpp:ping'/>", to=one.domain)
