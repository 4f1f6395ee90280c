"""The cluster under test, as run/cluster.json describes it, and what a test may do to it."""

import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


class Cluster:
    """Reads cluster.json afresh each time, because process ids change when nodes restart."""

    def __init__(self, path, root):
        self.path = Path(path)
        self.root = Path(root)
        self.bin = Path(os.environ.get("BIN", self.root / "bin"))

    @property
    def data(self):
        return json.loads(self.path.read_text())

    @property
    def domain(self):
        return self.data["domain"]

    @property
    def ca(self):
        """The CA file, or None where the target has none."""
        name = self.data.get("ca")
        if not name:
            return None
        path = Path(name)
        return path if path.is_absolute() else self.root / path

    @property
    def users(self):
        return self.data["users"]

    @property
    def nodes(self):
        return self.data["nodes"]

    def node(self, name):
        return next(n for n in self.nodes if n["name"] == name)

    def address(self, name):
        """Host and port where the node speaks STARTTLS."""
        host, _, port = self.node(name)["addresses"]["client"].rpartition(":")
        return host, int(port)

    def _get(self, name, path):
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = False  # the certificate names the domain, we ask by address
        url = "https://" + self.node(name)["addresses"]["https"] + path
        with urllib.request.urlopen(url, context=context, timeout=5) as answer:
            return answer.status, answer.read()

    def health(self, name):
        """The node's replication page, or None while it does not answer."""
        try:
            return json.loads(self._get(name, "/health/replication")[1])
        except (OSError, ValueError):
            return None

    def ready(self, name):
        try:
            return self._get(name, "/health/ready")[0] == 200
        except OSError:
            return False

    def leader(self, limit=15):
        """The name of the control log's leader, as a node that lives tells it."""
        names = {n["name"] for n in self.nodes}
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            for node in self.nodes:
                page = self.health(node["name"]) or {}
                leader = page.get("leader")
                by_id = {str(n["id"]): n["name"] for n in self.nodes}
                leader = by_id.get(str(leader), leader)
                if leader in names:
                    return leader
            time.sleep(0.2)
        raise TimeoutError("no node names a leader")

    def kill(self, name):
        """kill -9 of the node's process."""
        os.kill(self.node(name)["pid"], signal.SIGKILL)
        host, port = self.address(name)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with socket.socket() as s:
                if s.connect_ex((host, port)) != 0:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"{name} still listens after kill -9")

    def start(self, name, limit=60):
        """Starts a node again, as `make run-node` does, and waits until it serves clients."""
        number = 1 + [n["name"] for n in self.nodes].index(name)
        command = [self.bin / "muster", "demo", "node", "--binary", self.bin / "musterd", "--dir", self.path.parent, str(number)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{name} does not start: {done.stderr.strip() or done.stdout.strip()}")
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.ready(name):
                return
            time.sleep(0.2)
        raise TimeoutError(f"{name} is not ready {limit} s after its start")
