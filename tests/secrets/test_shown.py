"""Health endpoints as software has them, in a run by the real commands: a daemon behind a private CA and client
certificates that wants a bearer token, and a gRPC health service (Temporal's own frontend). The daemon writes every token
it is shown into its log, and one release repeats it in its answer and dies saying it: still the token and the client's key
are nowhere where they do not belong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.exits import Exit
from tests.cli import scene as scenes
from tests.conftest import Tell
from tests.daemons import AS_US, end_below
from tests.host.certificates import Authority
from tests.secrets.conftest import found
from tests.secrets.test_planted import Sampler, World, write_releases

pytestmark = [pytest.mark.temporal, pytest.mark.slow, pytest.mark.timeout(300)]

TOKEN = "crowntoken-6183-{node}"
NODES = ("n1", "n2")
WORKFLOWS = "temporal.api.workflowservice.v1.WorkflowService"
DAEMON = """#!/usr/bin/python3
import http.server, json, os, ssl, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        shown = self.headers.get("Authorization", "")
        print(self.path, "with", shown, flush=True)
        bad = "{version}" == "1.0.2" and self.path == "/health"
        good = shown == "Bearer " + os.environ["WANTED"]
        body = ("not with " + shown if bad else json.dumps({"version": "{version}"})).encode()
        self.send_response(500 if bad else 200 if good else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if bad and good:
            self.wfile.flush()
            print("dies of", shown, flush=True)
            os._exit(4)
    def log_message(self, *args):
        pass

server = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
server.handle_error = lambda *args: None
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.environ["PAIR"] + ".pem", os.environ["PAIR"] + ".key")
context.load_verify_locations(os.environ["CA"])
context.verify_mode = ssl.CERT_REQUIRED
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
RUNBOOK = """kind: Runbook
name: shown
facts:
  healthy:
    parameters: [path]
    all:
      - http:
          url: "https://{{node.address}}:{{node.labels.port}}/{{fact.path}}"
          headers: {{Authorization: "Bearer {{secret.token}}"}}
          ca: {top}/kept/house-ca.pem
          certificate: {top}/kept/client.pem
          key: "{{secret.client-key}}"
        expect: {{version: "{{release.version}}"}}
      - grpc:
          url: grpcs://{engine}
          service: {service}
          ca: {ca}
          certificate: {client}
          server_name: kedge-engine
node:
  - stage
  - stop: {{grace: 5s}}
  - switch
  - configure
  - start: {{settle: 300ms}}
  - healthy: {{fact: healthy, with: {{path: health}}, within: 8s}}
waves:
  canary: {{nodes: 1, gate: widen}}
  widen: [100%]
gates:
  widen: {{approvals: {{threshold: 1, roles: [sre]}}}}
rollback: {{healthy: {{fact: healthy, with: {{path: health}}, within: 8s}}}}
retry: {{attempts: 1, backoff: 0s}}
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in opened]


def plant(top: Path) -> World:
    kept = top / "kept"
    kept.mkdir(mode=0o700)
    authority = Authority(kept, "house-ca")
    authority.signed("server", "127.0.0.1")
    authority.signed("client", "client")
    (kept / "client.key").chmod(0o600)
    for node in NODES:
        (kept / f"{node}.token").write_text(TOKEN.format(node=node) + "\n")
        (kept / f"{node}.token").chmod(0o600)
    keys = {name: scenes._key(top / "keys" / name) for name in ("olga", "alice", "dave")}
    roles = {"olga": "operator", "alice": "sre", "dave": "on-call"}
    policy: dict[str, Any] = {
        "kind": "Policy", "name": "house", "environment": "test",
        "people": [{"name": who, "roles": [roles[who]], "keys": [keys[who]]} for who in keys],
        "may": {"start": ["operator"], "approve": ["sre"], "decide": ["operator"], "rollback": ["on-call"]},
    }  # fmt: skip
    nodes = [
        {"name": node, "labels": {"port": str(port)}}
        for node, port in zip(NODES, free_ports(len(NODES)), strict=True)
    ]
    fleet: dict[str, Any] = {
        "kind": "Fleet", "name": "shown", "environment": "test", "release": "daemon-1.0.0.yaml",
        "root": f"{top}/nodes/{{node.name}}",
        "run": {
            "argv": ["{node.current}/daemon"],
            # The daemon knows its token by ways of its own, as software does.
            "env": {"PORT": "{node.labels.port}", "PAIR": f"{kept}/server", "CA": f"{kept}/house-ca.pem", "WANTED": "{secret.token}"},
            **AS_US,
        },
        "secrets": {
            "token": {"file": f"{kept}/{{node.name}}.token"},
            "client-key": {"file": f"{kept}/client.key"},
        },
        "nodes": nodes,
    }  # fmt: skip
    for name, document in (("policy", policy), ("fleet", fleet)):
        (top / f"{name}.yaml").write_text(yaml.safe_dump(document))
    write_releases(top, DAEMON)
    return World(top, {**os.environ, "COLUMNS": "160"})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = plant(tmp_path)
    try:
        yield world
    finally:
        world.run("down", code=None)
        end_below(tmp_path)


def story(world: World) -> None:
    """Up, an upgrade that goes through, one that dies showing what it was shown, and a way back."""

    def key(name: str) -> tuple[str, str]:
        return "--key", str(world.top / "keys" / name)

    world.run("codec", "init")
    world.run("up", "--fleet", str(world.top / "fleet.yaml"), "--policy", str(world.top / "policy.yaml"))  # fmt: skip
    (profile,) = world.home.rglob("engine/temporal.toml")
    engine = tomllib.loads(profile.read_text())["profile"]["default"]
    text = RUNBOOK.format(
        top=world.top, engine=engine["address"], service=WORKFLOWS,
        ca=engine["tls"]["server_ca_cert_path"], client=engine["tls"]["client_cert_path"],
    )  # fmt: skip
    (world.top / "runbook.yaml").write_text(text)
    world.run("start", *world.documents("1.0.1"), *key("olga"))
    world.run("watch", "upgrade/shown/1", "--until-waiting", code=Exit.WAITING)
    world.run("approve", "upgrade/shown/1", *key("alice"))
    world.run("watch", "upgrade/shown/1")
    world.run("start", *world.documents("1.0.2"), "--from", str(world.top / "daemon-1.0.1.yaml"), *key("olga"))  # fmt: skip
    world.run("watch", "upgrade/shown/2", "--until-waiting", code=Exit.WAITING)
    world.run("status", "upgrade/shown/2", "--json")
    world.run("decide", "upgrade/shown/2", "--choice", "rollback", *key("olga"))
    world.run("watch", "upgrade/shown/2", code=None)
    (world.top / "exports").mkdir()
    world.run("evidence", "export", "upgrade/shown/2", "-o", str(world.top / "exports" / "run.jsonl"))  # fmt: skip


def test_what_probes_show_is_nowhere_where_it_does_not_belong(world: World, tell: Tell) -> None:
    tokens = {node: TOKEN.format(node=node) for node in NODES}
    lines = (world.top / "kept/client.key").read_text().splitlines()[1:-1]
    every = [*tokens.values(), *(line for line in lines if len(line) >= 16)]
    sampler = Sampler(every)
    with sampler.looking():
        story(world)
    world.run("down")
    assert sampler.looks > 100
    assert sampler.seen == set()
    told = "".join(world.said)
    assert not [word for word in every if word in told]
    # What the daemon said of it is told, without it: the answer, or the end of its log.
    assert "[secret token]" in told

    held = found(world.searched, every)
    assert set(held) == set(tokens.values()), "the daemons wrote their tokens into their own logs"
    for node, token in tokens.items():
        for path in held[token]:
            assert Path(path).relative_to(world.nodes).parts[:2] == (node, "logs"), path
    versions = {
        node: json.loads((world.nodes / node / ".kedge/service.json").read_text()) for node in NODES
    }
    digest = hashlib.sha256((world.top / "daemon-1.0.1.tar").read_bytes()).hexdigest()
    assert {one["release"] for one in versions.values()} == {digest}
    looked = sum(token in log.read_text() for token in tokens.values() for log in world.nodes.rglob("logs/*"))  # fmt: skip
    tell(f"{len(every)} words looked for in {sampler.looks} looks and every file; {looked} logs of daemons have a token")  # fmt: skip
