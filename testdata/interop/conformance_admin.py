"""Commands of administrators, and registration."""

from datetime import datetime

from conformance_case import becomes, scenario
from conformance_roster import refused, state
from conformance_services import ITEMS, COMMANDS, ADMIN, DATA, REGISTER, info, features, identities, forms
from conformance_wire import CLIENT, child, error_of, fresh, local, settle, show, stanza


# Commands of administrators


def submit(**values):
    fields = f"<field var='FORM_TYPE' type='hidden'><value>{ADMIN}</value></field>"
    for name, value in values.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        fields += f"<field var='{name}'>" + "".join(f"<value>{v}</value>" for v in several) + "</field>"
    return f"<x xmlns='{DATA}' type='submit'>{fields}</x>"


async def command(client, name, session=None, action="execute", inner="", to=None):
    more = f" sessionid='{session}'" if session else ""
    answer = await client.iq("set", f"<command xmlns='{COMMANDS}' node='{ADMIN}#{name}'{more} action='{action}'>{inner}</command>", to=to or client.domain)
    return answer


async def run(client, name, **values):
    """Both steps of a command; returns the last answer."""
    first = await command(client, name)
    begun = child(first, COMMANDS, "command")
    if begun is None or begun.get("status") != "executing":
        return first
    return await command(client, name, begun.get("sessionid"), "complete", submit(**values))


def done(answer):
    c = child(answer, COMMANDS, "command")
    assert c is not None and c.get("status") == "completed", show(answer)
    assert not [n for n in c.findall(f"{{{COMMANDS}}}note") if n.get("type") == "error"], show(answer)
    return forms(c).get(ADMIN, {})


async def tried(t, name, password, mechanism="SCRAM-SHA-1", node=2):
    """What a login comes to: None, or the failure's condition."""
    s = t.stream(node)
    await s.connect()
    await s.starttls()
    return await s.authenticate(mechanism, name, password)


async def administrator(t, resource):
    return await t.online(user=t.world.cluster.data["admin"], node=1, resource=f"{resource}-{fresh()}")


@scenario()
async def command_form(t):
    admin, a = await administrator(t, "form"), await t.online(0)
    async with t.rule("commands are listed for administrators, under the node", "XEP-0050 2.2"):
        answer = await admin.iq("get", f"<query xmlns='{ITEMS}' node='{COMMANDS}'/>", to=t.domain)
        names = {i.get("node").rpartition("#")[2] for i in child(answer, ITEMS, "query")}
        wanted = {"add-user", "delete-user", "disable-user", "reenable-user", "end-user-session", "change-user-password", "get-user-roster",
                  "get-user-lastlogin", "user-stats", "get-active-users", "get-idle-users", "get-active-users-num", "get-idle-users-num", "get-registered-users-num", "get-disabled-users-num", "get-online-users-num",
                  "get-registered-users-list", "get-disabled-users-list", "get-online-users-list", "announce"}
        assert wanted <= names, f"missing {wanted - names}"
        assert child(answer, ITEMS, "query").get("node") == COMMANDS and all(i.get("jid") == t.domain for i in child(answer, ITEMS, "query")), show(answer)
    async with t.rule("each listed command is described as a command node", "XEP-0050 2.2"):
        for name in sorted(names)[:6]:
            answer = await info(admin, t.domain, f"{ADMIN}#{name}")
            assert ("automation", "command-node") in [i[:2] for i in identities(answer)] and COMMANDS in features(answer) and DATA in features(answer), show(answer)
    async with t.rule("others see no commands, and may not run any: forbidden", "XEP-0133 3, spec 6.1.17, S29"):
        answer = await a.iq("get", f"<query xmlns='{ITEMS}' node='{COMMANDS}'/>", to=t.domain)
        assert answer.get("type") == "error" or len(child(answer, ITEMS, "query")) == 0, show(answer)
        for name in sorted(names):
            refused(await command(a, name), "forbidden")
            refused(await command(a, name, "made-up", "complete", submit(accountjid=a.bare)), "forbidden")
    async with t.rule("a command with a form: executing, a session, actions and the form with FORM_TYPE", "XEP-0050 2.4, XEP-0133 4.1"):
        answer = await command(admin, "add-user")
        begun = child(answer, COMMANDS, "command")
        assert begun.get("status") == "executing" and begun.get("sessionid") and begun.get("node") == f"{ADMIN}#add-user", show(answer)
        actions = child(begun, COMMANDS, "actions")
        assert actions is not None and child(actions, COMMANDS, "complete") is not None, show(answer)
        assert {"accountjid", "password", "password-verify"} <= set(forms(begun)[ADMIN]), show(answer)
    async with t.rule("cancel: canceled, and the session is over", "XEP-0050 2.4.3"):
        answer = await command(admin, "add-user", begun.get("sessionid"), "cancel")
        assert child(answer, COMMANDS, "command").get("status") == "canceled", show(answer)
        answer = await command(admin, "add-user", begun.get("sessionid"), "complete", submit(accountjid=f"x@{t.domain}", password="secret1", **{"password-verify": "secret1"}))
        refused(answer, "not-allowed", "bad-request", "item-not-found")
    async with t.rule("an unknown command: item-not-found", "XEP-0050 2.4"):
        refused(await command(admin, "make-coffee"), "item-not-found")
    async with t.rule("an unknown action: bad-request", "XEP-0050 2.4"):
        refused(await command(admin, "add-user", action="dance"), "bad-request")
    async with t.rule("a form of another session of the administrator's is not taken", "XEP-0050 5"):
        other = await administrator(t, "other")
        begun = child(await command(admin, "add-user"), COMMANDS, "command")
        answer = await command(other, "add-user", begun.get("sessionid"), "complete", submit(accountjid=f"x@{t.domain}", password="secret1", **{"password-verify": "secret1"}))
        assert answer.get("type") == "error", show(answer)


@scenario()
async def command_accounts(t):
    admin, witness = await administrator(t, "accounts"), await t.online(1)
    name = f"{t.world.prefix}made@{t.domain}"
    user = {"jid": name, "password": "first secret"}

    async def tries(password="first secret", node=2):
        return await tried(t, name.partition("@")[0], password, "SCRAM-SHA-256", node)

    async def refuses(*conditions):
        return await tries(user["password"]) in conditions

    async def forgotten():
        return (await state(witness, name))[0] in ("absent", "none")

    async with t.rule("add-user: the account can log in, on any node", "XEP-0133 4.1"):
        done(await run(admin, "add-user", accountjid=name, password=user["password"], **{"password-verify": user["password"]}))
        t.world.made.append(name)
        for node in range(3):
            await becomes(None, lambda: tries(node=node))
    async with t.rule("add-user of who exists: conflict", "XEP-0133 4.1"):
        refused(await run(admin, "add-user", accountjid=name, password="xyz123", **{"password-verify": "xyz123"}), "conflict")
    async with t.rule("add-user with two different passwords, no password, a bad address, another domain: refused", "XEP-0133 4.1"):
        for values in ({"accountjid": f"y-{name}", "password": "one", "password-verify": "two"}, {"accountjid": f"y-{name}"},
                       {"accountjid": "no@address@at", "password": "x", "password-verify": "x"}, {"accountjid": "y@elsewhere.test", "password": "x", "password-verify": "x"}):
            answer = await run(admin, "add-user", **values)
            assert answer.get("type") == "error", show(answer)
    async with t.rule("change-user-password: the new one is taken, the old one is not", "XEP-0133 4.6"):
        done(await run(admin, "change-user-password", accountjid=name, password="second secret"))
        await becomes("not-authorized", tries)
        await becomes(None, lambda: tries("second secret"))
        user["password"] = "second secret"
    c = await t.online(user=user, node=0, resource="c")
    d = await t.online(user=user, node=2, resource="d")
    await t.befriend(c, witness)
    await witness.get_presence(d.jid)
    async with t.rule("get-user-roster gives the roster", "XEP-0133 4.8"):
        answer = await run(admin, "get-user-roster", accountjids=name)
        done(answer)
        items = answer.findall(f"{{{COMMANDS}}}command/{{{DATA}}}x/{{jabber:iq:roster}}query/{{jabber:iq:roster}}item")
        assert [i.get("jid") for i in items] == [witness.bare] and items[0].get("subscription") == "both", show(answer)
    async with t.rule("user-stats counts contacts and names resources; get-user-lastlogin gives a time", "XEP-0133 4.9, 4.10, XEP-0082"):
        stats = done(await run(admin, "user-stats", accountjid=name))
        assert stats["rostersize"] == ["1"] and len(stats["onlineresources"]) == 2, stats
        last = done(await run(admin, "get-user-lastlogin", accountjids=name))["lastlogin"]
        assert datetime.fromisoformat(last[0].replace("Z", "+00:00")), last
    async with t.rule("counts and lists name who is registered and online", "XEP-0133 4.15-4.21"):
        assert int(done(await run(admin, "get-registered-users-num"))["registeredusersnum"][0]) > 6
        assert int(done(await run(admin, "get-online-users-num"))["onlineusersnum"][0]) >= 3
        assert name in done(await run(admin, "get-registered-users-list", max_items="1000"))["registereduserjids"]
        assert name in done(await run(admin, "get-online-users-list", max_items="1000"))["onlineuserjids"]
        assert len(done(await run(admin, "get-registered-users-list", max_items="25"))["registereduserjids"]) <= 25
    async with t.rule("end-user-session of a full JID ends that session only; contacts see it", "XEP-0133 4.5"):
        done(await run(admin, "end-user-session", accountjids=c.jid))
        await c.until(lambda: c.closed or c.lost, 10, "end of stream")
        await witness.get_presence(c.jid, "unavailable")
        await settle(d, witness)
    async with t.rule("end-user-session of a bare JID ends all", "XEP-0133 4.5"):
        c = await t.online(user=user, node=1, resource="c2")
        await witness.get_presence(c.jid)
        done(await run(admin, "end-user-session", accountjids=name))
        for one in (c, d):
            await one.until(lambda: one.closed or one.lost, 10, "end of stream")
            await witness.get_presence(one.jid, "unavailable")
    async with t.rule("disable-user: sessions end, login is refused, the account's data stays", "XEP-0133 4.3, spec 6.1.17"):
        c = await t.online(user=user, node=1, resource="c3")
        await witness.get_presence(c.jid)
        done(await run(admin, "disable-user", accountjids=name))
        await c.until(lambda: c.closed or c.lost, 10, "end of stream")
        await witness.get_presence(c.jid, "unavailable")
        await becomes(True, lambda: refuses("account-disabled", "not-authorized"))
        assert await tries("wrong password") == "not-authorized"
        assert name in done(await run(admin, "get-disabled-users-list", max_items="1000"))["disableduserjids"]
        assert int(done(await run(admin, "get-disabled-users-num"))["disabledusersnum"][0]) >= 1
        assert (await witness.items())[name].get("subscription") == "both"
    async with t.rule("reenable-user: login works, the roster is there", "XEP-0133 4.4"):
        done(await run(admin, "reenable-user", accountjids=name))
        await becomes(None, lambda: tries(user["password"]))
        c = await t.online(user=user, node=2, resource="c4")
        assert (await c.items())[witness.bare].get("subscription") == "both"
        await witness.get_presence(c.jid)
    async with t.rule("announce reaches who is online, from the domain", "XEP-0133 4.23"):
        done(await run(admin, "announce", announcement="A <conformance> test".replace("<", "&lt;"), subject="News"))
        for one in (c, witness):
            got = await one.take(lambda e: local(e) == "message" and (e.get("from") or "").partition("/")[0] == t.domain)
            assert child(got, CLIENT, "body").text == "A <conformance> test", show(got)
    async with t.rule("delete-user: sessions end, login is refused, contacts lose the subscription", "XEP-0133 4.2, tigase-extension#90"):
        done(await run(admin, "delete-user", accountjids=name))
        await c.until(lambda: c.closed or c.lost, 10, "end of stream")
        await witness.get_presence(c.jid, "unavailable")
        await becomes("not-authorized", lambda: tries(user["password"]))
        await becomes(True, forgotten)
    async with t.rule("delete-user of nobody: item-not-found", "XEP-0133 4.2"):
        refused(await run(admin, "delete-user", accountjids=t.stranger()), "item-not-found")
    async with t.rule("a new account of the same name starts with nothing", "XEP-0133 4.1, tigase-extension#90"):
        done(await run(admin, "add-user", accountjid=name, password="third secret", **{"password-verify": "third secret"}))
        await becomes(None, lambda: tries("third secret", 0))
        c = await t.online(user={"jid": name, "password": "third secret"}, node=0)
        assert await c.items() == {}


# Registration


async def registers(t, client):
    return REGISTER in features(await info(client, t.domain))


@scenario()
async def registration(t):
    operator = t.world.operator
    a = await t.online(0)
    query = f"<query xmlns='{REGISTER}'/>"
    async with t.rule("registration is off: not advertised, service-unavailable", "XEP-0077, issue 3 section 5"):
        assert REGISTER not in features(await info(a, t.domain))
        for to in (t.domain, None):
            refused(await a.iq("get", query, to=to), "service-unavailable")
            refused(await a.iq("set", f"<query xmlns='{REGISTER}'><username>x</username><password>y</password></query>", to=to), "service-unavailable")
    async with operator.lock, operator.setting("register.enabled", "true"):
        async with t.rule("turned on: advertised and answered at once, on every node", "XEP-0077 3.1, P8"):
            for node in range(3):
                one = await t.online(0, node=node)
                await becomes(True, lambda: registers(t, one))
                answer = await one.iq("get", query, to=t.domain)
                form = child(answer, REGISTER, "query")
                assert form is not None and child(form, REGISTER, "registered") is not None and child(form, REGISTER, "username").text == a.bare.partition("@")[0], show(answer)
        async with t.rule("a changed password is taken at the next login, the old one is not", "XEP-0077 3.3"):
            name, old = a.bare.partition("@")[0], t.user()["password"]
            answer = await a.iq("set", f"<query xmlns='{REGISTER}'><username>{name}</username><password>new &amp; secret</password></query>", to=t.domain)
            assert answer.get("type") == "result", show(answer)
            await becomes("not-authorized", lambda: tried(t, name, old))
            await becomes(None, lambda: tried(t, name, "new & secret"))
            t.user()["password"] = "new & secret"
        async with t.rule("another's password, no password: refused", "XEP-0077 3.3"):
            answer = await a.iq("set", f"<query xmlns='{REGISTER}'><username>{t.user(1)['jid'].partition('@')[0]}</username><password>hacked</password></query>", to=t.domain)
            assert answer.get("type") == "error", show(answer)
            refused(await a.iq("set", f"<query xmlns='{REGISTER}'><username>{name}</username><password/></query>", to=t.domain), "bad-request", "not-acceptable")
        async with t.rule("remove with other elements: bad-request", "XEP-0077 3.2"):
            refused(await a.iq("set", f"<query xmlns='{REGISTER}'><remove/><username>x</username></query>", to=t.domain), "bad-request")
        async with t.rule("remove deletes the account and ends its streams", "XEP-0077 3.2"):
            b = await t.online(3)
            b.send(stanza("iq", f"<query xmlns='{REGISTER}'><remove/></query>", type="set", id="rm", to=t.domain))
            assert (await b.take(lambda e: e.get("id") == "rm")).get("type") == "result"
            await b.until(lambda: b.closed or b.lost, 10, "end of stream")
            await becomes("not-authorized", lambda: tried(t, b.bare.partition("@")[0], t.user(3)["password"], "PLAIN"))
        async with t.rule("before login registration is offered, and makes an account that can log in", "XEP-0077 3.1, 8"):
            s = t.stream(1)
            await s.connect()
            offers = await s.starttls()
            assert child(offers, "http://jabber.org/features/iq-register", "register") is not None, show(offers)
            form = child(await s.iq("get", query), REGISTER, "query")
            assert child(form, REGISTER, "username") is not None and child(form, REGISTER, "password") is not None, show(form)
            fill = f"<query xmlns='{REGISTER}'><username>{{}}</username><password>pass &amp; word</password></query>"
            refused(await s.iq("set", fill.format(a.bare.partition("@")[0])), "conflict")
            refused(await s.iq("set", fill.format("")), "not-acceptable", "bad-request")
            made = f"{t.world.prefix}own-made"
            t.world.made.append(f"{made}@{t.domain}")
            assert (await s.iq("set", fill.format(made))).get("type") == "result"
            await becomes(None, lambda: tried(t, made, "pass & word"))
    async with t.rule("off: not offered before login, and a request ends the stream", "XEP-0077 8, RFC 6120 7.1"):
        async def offered():
            s = t.stream(node)
            await s.connect()
            return child(await s.starttls(), "http://jabber.org/features/iq-register", "register") is not None

        for node in range(3):
            await becomes(False, offered)
        s = t.stream(node)
        await s.connect()
        await s.starttls()
        s.send(stanza("iq", query, type="get", id="x", to=t.domain))
        answer = await s.next()
        assert local(answer) == "error" or error_of(answer), show(answer)
    async with t.rule("turned off again: gone at once", "XEP-0077, P8"):
        c = await t.online(2)
        await becomes(False, lambda: registers(t, c))
        refused(await c.iq("get", query, to=t.domain), "service-unavailable")
