// A foreign client (xmpp.js) logs in by SASL2 with Bind 2 and stream management, gets a token, and comes back with
// nothing but that: on another node, and after the node that gave it was killed.
//
//     node tokens.mjs run/cluster.json
//
// The packages are looked for in INTEROP_MODULES; the cluster's CA must be in NODE_EXTRA_CA_CERTS.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.INTEROP_MODULES + "/");
const { client, xml } = await import(pathToFileURL(require.resolve("@xmpp/client")));

const path = process.argv[2];
const root = resolve(dirname(new URL(import.meta.url).pathname), "../..");
const bin = process.env.BIN ?? root + "/bin";
const cluster = () => JSON.parse(readFileSync(path)); // afresh: process ids change
const AGENT = "d4565fa7-4d72-4749-b3d3-740edbf87770";
const OTHER_AGENT = "01234567-89ab-4cde-8f01-23456789abcd";
const LIMIT = 20_000; // milliseconds for one login

const rows = [];
async function check(name, what) {
  try {
    const detail = await what();
    rows.push(true);
    console.log(`PASS  ${name}${detail ? `  (${detail})` : ""}`);
  } catch (e) {
    rows.push(false);
    console.log(`FAIL  ${name}  (${e.message ?? e})`);
  }
}

function expect(condition, what) {
  if (!condition) throw new Error(what);
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${LIMIT} ms: ${what}`)), LIMIT);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Logs a user in at a node. Without a password it must have a token. */
async function login({ user, node, password, token, agent = AGENT }) {
  const local = user.jid.split("@")[0];
  const xmpp = client({
    service: `xmpp://${cluster().nodes[node].addresses.client}`,
    domain: cluster().domain,
    username: local,
    password: password ?? "not the password",
    resource: "xmpp.js",
    userAgent: xml("user-agent", { id: agent }, xml("software", {}, "interop")),
  });
  const seen = { sent: [], got: [], failures: 0, token };
  xmpp.reconnect.stop();
  xmpp.fast.fetchToken = async () => seen.token;
  xmpp.fast.saveToken = async (t) => {
    seen.token = t;
  };
  xmpp.fast.deleteToken = async () => {
    seen.token = undefined;
  };
  xmpp.on("element", (el) => {
    seen.got.push(el);
    if (el.name === "failure") seen.failures++;
  });
  xmpp.on("send", (el) => seen.sent.push(el));
  const failed = new Promise((_, reject) => xmpp.on("error", reject));
  failed.catch(() => {});
  try {
    const address = await within(Promise.race([xmpp.start(), failed]), "login");
    return { xmpp, seen, address: address.toString() };
  } catch (e) {
    xmpp.stop().catch(() => {});
    throw e;
  }
}

async function leave(...all) {
  for (const one of all) await within(one.xmpp.stop(), "logout").catch(() => {});
}

const authenticates = (one) => one.seen.sent.filter((el) => el.name === "authenticate");

/** One login by token, no password tried, bound with the first answer. */
function oneRoundTrip(one) {
  const sent = one.seen.sent.filter((el) => el.name !== "starttls");
  expect(authenticates(one).length === 1 && one.seen.failures === 0, "more than one attempt");
  expect(authenticates(one)[0].attrs.mechanism === "HT-SHA-256-NONE", `by ${authenticates(one)[0].attrs.mechanism}`);
  expect(sent[0].name === "authenticate" && !sent.some((el) => el.is("iq")), `sent ${sent.map((el) => el.name)}`);
  const success = one.seen.got.find((el) => el.is("success", "urn:xmpp:sasl:2"));
  expect(success?.getChild("bound", "urn:xmpp:bind:0")?.getChild("enabled", "urn:xmpp:sm:3"), `no session in ${success}`);
  expect(success.getChildText("authorization-identifier") === one.address, "another address in <success/>");
}

async function echo(one) {
  const id = `m${Math.random()}`;
  const back = new Promise((done) => one.xmpp.on("stanza", (s) => s.is("message") && s.attrs.id === id && done(s)));
  await one.xmpp.send(xml("message", { type: "chat", to: one.address, id }, xml("body", {}, "to myself")));
  expect((await within(back, "a message to oneself")).getChildText("body") === "to myself", "another body");
}

const [user, other] = [cluster().users[4], cluster().users[5]];
const kept = {};

await check("xmpp.js: SASL2, Bind 2 and stream management at once, and a token", async () => {
  const one = await login({ user, node: 0, password: user.password });
  expect(authenticates(one)[0].attrs.mechanism === "SCRAM-SHA-1", "not by SCRAM");
  expect(one.seen.token?.token && one.seen.token.mechanism === "HT-SHA-256-NONE", "no token");
  const days = (new Date(one.seen.token.expiry) - Date.now()) / 86_400_000;
  expect(days > 20.9 && days < 22.1, `good for ${days} days`);
  expect(one.xmpp.streamManagement.enabled, "no stream management");
  await echo(one);
  kept.token = one.seen.token;
  kept.address = one.address;
  await leave(one);
  return one.address;
});

await check("xmpp.js: a login by token alone on another node, in one round trip, with the same resource", async () => {
  const one = await login({ user, node: 1, token: kept.token });
  oneRoundTrip(one);
  expect(one.address === kept.address, `now ${one.address}`);
  await echo(one);
  await leave(one);
});

await check("xmpp.js: a token of another client is refused, and the password tried instead", async () => {
  const one = await login({ user, node: 1, token: kept.token, password: user.password, agent: OTHER_AGENT });
  expect(one.seen.failures === 1 && authenticates(one).length === 2, `${one.seen.failures} failures`);
  expect(one.seen.token && one.seen.token.token !== kept.token.token, "no token of its own");
  expect(one.address !== kept.address, "the resource of another client");
  await leave(one);
});

await check("xmpp.js: the token holds while the node that gave it is dead", async () => {
  const fresh = await login({ user: other, node: 0, password: other.password });
  await leave(fresh);
  process.kill(cluster().nodes[0].pid, "SIGKILL");
  try {
    for (const node of [1, 2]) {
      const one = await untilServed(() => login({ user: other, node, token: fresh.seen.token }));
      oneRoundTrip(one);
      await echo(one);
      await leave(one);
    }
  } finally {
    execFileSync(bin + "/muster", ["demo", "node", "--binary", bin + "/musterd", "--dir", dirname(resolve(path)), "1"], { cwd: root, timeout: 90_000 });
  }
});

/** A user whose home has just died is taken in by the next one within seconds. */
async function untilServed(attempt) {
  for (const end = Date.now() + LIMIT; ; ) {
    try {
      const one = await attempt();
      if (one.address.includes("/")) return one;
    } catch (e) {
      if (Date.now() > end) throw e;
    }
    await new Promise((done) => setTimeout(done, 200));
  }
}

await check("xmpp.js: a new password ends the token on every node", async () => {
  const data = cluster().nodes[1].data;
  execFileSync(bin + "/muster", ["--data", data, "user", "passwd", user.jid, "--stdin"], { cwd: root, input: user.password + "\n" });
  for (const node of [1, 2]) {
    const one = await login({ user, node, token: kept.token, password: user.password });
    expect(one.seen.failures === 1, `${one.seen.failures} failures on node ${node + 1}`);
    await leave(one);
  }
});

const failed = rows.filter((ok) => !ok).length;
console.log(`\n${rows.length - failed} passed, ${failed} failed`);
process.exit(failed === 0 && rows.length > 0 ? 0 : 1);
