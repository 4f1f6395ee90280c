"""A person with a slixmpp client: what they did, and what their screen would have shown."""

import asyncio
import logging
import time

import slixmpp
from checks import expect, until
from slixmpp.exceptions import IqError

logging.getLogger("slixmpp").setLevel(logging.CRITICAL)


class Person(slixmpp.ClientXMPP):
    def __init__(self, cluster, user, resource="desk"):
        super().__init__(f"{user['jid']}/{resource}", user["password"])
        self.cluster = cluster
        self.bare = user["jid"]
        self.auto_authorize = True
        self.auto_subscribe = False
        self.enable_direct_tls = False  # STARTTLS is what is tested
        if cluster.ca:
            self.ca_certs = cluster.ca
        else:  # a peer server with a certificate of its own making
            self.ssl_context.check_hostname = False
            self.ssl_context.verify_mode = 0
        for plugin in ("xep_0030", "xep_0054", "xep_0092", "xep_0191", "xep_0199"):
            self.register_plugin(plugin)
        self.seen = []  # (time, bare JID, type or show, full JID) of contacts' presence
        self.inbox = []  # (from, body)
        self.bounced = []  # ids of messages that came back as errors
        self.bounces = []  # conditions of those
        self.dropped = asyncio.Event()
        self.leaving = False
        self.add_event_handler("presence", self._on_presence)
        self.add_event_handler("message", self._on_message)
        self.add_event_handler("message_error", self._on_error)
        self.add_event_handler("disconnected", self._on_disconnected)

    def _on_presence(self, presence):
        kind = presence["type"]
        if presence["from"].bare != self.bare and kind in slixmpp.stanza.Presence.showtypes | {"available", "unavailable"}:
            self.seen.append((time.monotonic(), presence["from"].bare, kind, presence["from"]))

    def _on_message(self, message):
        if message["type"] != "error" and message["body"]:
            self.inbox.append((message["from"].bare, message["body"]))

    def _on_error(self, message):
        self.bounced.append(message["id"])
        self.bounces.append(message["error"]["condition"])

    def _on_disconnected(self, _):
        if not self.leaving:
            self.dropped.set()

    async def arrive(self, node, limit=15):
        """Connects to the named node, logs in, fetches the roster and becomes available."""
        host, port = self.cluster.address(node)
        session = asyncio.get_running_loop().create_future()

        def settle(result):
            if not session.done():
                session.set_result(result)

        self.add_event_handler("session_start", lambda _: settle(None), disposable=True)
        self.add_event_handler("failed_all_auth", lambda _: settle("the password was refused"), disposable=True)
        self.connect(host, port)
        failure = await asyncio.wait_for(session, limit)
        expect(failure is None, failure)
        await self.get_roster(timeout=limit)
        self.send_presence()
        return self

    async def leave(self):
        self.leaving = True
        if self.is_connected():
            await self.disconnect(wait=1.0)
        else:
            self.cancel_connection_attempt()

    @property
    def mechanism(self):
        return self.plugin["feature_mechanisms"].mech.name

    @property
    def tls(self):
        return self.transport.get_extra_info("ssl_object")

    def latest(self, contact):
        """The last presence seen of a contact, or None."""
        return next((kind for _, bare, kind, _ in reversed(self.seen) if bare == contact.bare), None)

    async def sees(self, contact, kind, limit=10):
        begun = time.monotonic()
        try:
            await until(lambda: self.latest(contact) == kind, limit, f"{self.bare} sees {contact.bare} {kind}")
        except AssertionError as e:
            events = [f"{event} of {source.resource} {when - begun:+.1f} s" for when, bare, event, source in self.seen if bare == contact.bare]
            raise AssertionError(f"{e}; it saw {events or 'nothing'}") from None

    async def contacts(self):
        """The roster as the server has it now: subscription by bare JID.

        It is asked for without a version: the answer to a known version may be empty.
        """
        request = self.make_iq_get(queryxmlns="jabber:iq:roster")
        answer = await request.send(timeout=10)
        return {str(jid): item["subscription"] for jid, item in answer["roster"]["items"].items()}

    async def say(self, contact, body, limit=10):
        """Sends a message and waits until it is on the contact's screen, once."""
        before = contact.inbox.count((self.bare, body))
        self.send_message(mto=slixmpp.JID(contact.bare), mbody=body, mtype="chat")
        await until(lambda: contact.inbox.count((self.bare, body)) == before + 1, limit, f"{contact.bare} gets {body!r}")

    async def forget(self, contact):
        """Removes a contact, if it is there."""
        if contact.bare in await self.contacts():
            try:
                await self.del_roster_item(contact.bare)
            except IqError as e:
                expect(e.condition == "item-not-found", f"removing a contact: {e.condition}")


async def befriend(a, b):
    """Makes two people mutual contacts, whatever was before."""
    for one, other in ((a, b), (b, a)):
        if (await one.contacts()).get(other.bare) not in ("to", "both"):
            one.send_presence_subscription(pto=other.bare, ptype="subscribe")
    for one, other in ((a, b), (b, a)):
        for _ in range(100):
            if (await one.contacts()).get(other.bare) == "both":
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError(f"{one.bare} does not have {other.bare} as a mutual contact: {await one.contacts()}")
