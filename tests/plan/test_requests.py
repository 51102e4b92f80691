"""Requests of probes in documents: what they show of secrets, addresses of IPv6, and what is refused with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kedge.host import probespec
from kedge.model.errors import DocumentError
from kedge.model.runbook import Runbook
from kedge.plan.compile import ConflictsError
from kedge.plan.explain import explain, lines
from kedge.plan.render import operations, probes, secrets
from tests.plan.samples import FLEET, RUNBOOK, plan, read, replaced

SECRETS = replaced(
    FLEET,
    "nodes:\n",
    'secrets:\n  token: {file: "/etc/kedge/{node.name}.token"}\n  ca: {file: /etc/kedge/ca.pem}\n'
    "  pass: {env: KEDGE_SECRET_PASS}\nnodes:\n",
)
HEALTHY = """preflight: [{http: {
  url: "https://{node.address}:{node.labels.client_port}/health",
  headers: {Authorization: "Bearer {secret.token}"}, ca: "{secret.ca}",
  certificate: "/etc/kedge/{node.name}.pem", key: "/etc/kedge/{node.name}.key", server_name: "{node.name}.internal",
}, expect: {health: "true"}}]
"""


def runbook(preflight: str = HEALTHY) -> str:
    """The sample with this preflight in place of its own."""
    head, _, rest = RUNBOOK.partition("preflight:")
    lines = rest.split("\n")[1:]
    while lines and (lines[0].startswith((" ", "-")) or not lines[0].strip()):
        lines.pop(0)
    return head + preflight + "\n".join(lines)


def request(preflight: str = HEALTHY, fleet: str = SECRETS) -> dict[str, Any]:
    (made,) = probes(plan(fleet=fleet, runbook=runbook(preflight)), 0, "preflight")
    probespec.checked(made, "probe")
    assert isinstance(made, dict)
    http = made["http"]
    assert isinstance(http, dict)
    return dict(http)


def test_a_host_is_told_where_the_secrets_of_a_request_are() -> None:
    made = request()
    assert made["headers"] == {"Authorization": ["Bearer ", {"secret": "token"}]}
    assert made["tls"] == {
        "ca": [{"secret": "ca"}],
        "certificate": "/etc/kedge/etcd-1.pem",
        "key": "/etc/kedge/etcd-1.key",
        "server_name": "etcd-1.internal",
    }
    assert made["secrets"] == {
        "ca": {"file": "/etc/kedge/ca.pem"},
        "token": {"file": "/etc/kedge/etcd-1.token"},
    }


def test_a_password_is_told_as_a_place_too() -> None:
    made = request('preflight: [{http: {url: "http://a/", basic_auth: {user: u, password: "{secret.pass}"}}}]\n')  # fmt: skip
    assert made["basic_auth"] == {"user": "u", "password": [{"secret": "pass"}]}
    assert made["secrets"] == {"pass": {"env": "KEDGE_SECRET_PASS"}}


def test_what_probes_show_is_looked_for_before_anything_is_stopped() -> None:
    made = plan(fleet=SECRETS, runbook=runbook())
    assert set(secrets(made, 0)) == {"token", "ca"}
    ops = operations(made, 1, "forward", 0, run_id="upgrade/etcd/1", epoch=1)
    stage = next(op for op in ops if op["op"] == "stage")
    assert stage["secrets"] == secrets(made, 1)


def test_a_plan_without_secrets_in_probes_has_none() -> None:
    made = plan(fleet=SECRETS)
    assert secrets(made, 0) == {}
    assert '"secrets"' not in json.dumps(probes(made, 0, "after"))


@pytest.mark.parametrize(
    "place",
    [
        '{http: "http://{secret.token}/"}',
        '{http: {url: "http://a/{secret.token}"}}',
        '{http: {url: "http://a/", body: "{secret.token}"}}',
        '{http: {url: "https://a/", server_name: "{secret.token}"}}',
        '{http: {url: "http://a/", socket: "/{secret.token}"}}',
        '{http: "http://a/", expect: {a: "{secret.token}"}}',
        '{command: {argv: [a, "{secret.token}"]}}',
        '{command: {argv: [a], env: {headers: "{secret.token}"}}}',
        '{tcp: "{secret.token}:80"}',
    ],
)
def test_a_secret_stands_nowhere_else(place: str) -> None:
    with pytest.raises(ConflictsError, match=r"\{secret.token\} may not stand here"):
        plan(fleet=SECRETS, runbook=runbook(f"preflight: [{place}]\n"))


def test_a_call_of_grpc_health() -> None:
    asked = """preflight: [{grpc: {url: "grpcs://{node.address}:{node.labels.client_port}", service: a.B,
      headers: {authorization: "Bearer {secret.token}"}, ca: "{secret.ca}"}}]\n"""
    made = plan(fleet=SECRETS, runbook=runbook(asked))
    (found,) = probes(made, 0, "preflight")
    assert found == {
        "grpc": {
            "url": "grpcs://127.0.0.1:23791",
            "service": "a.B",
            "timeout": 2.0,
            "headers": {"authorization": ["Bearer ", {"secret": "token"}]},
            "tls": {"ca": [{"secret": "ca"}]},
            "secrets": {
                "ca": {"file": "/etc/kedge/ca.pem"},
                "token": {"file": "/etc/kedge/etcd-1.token"},
            },
        }
    }
    probespec.checked(found, "probe")
    assert "grpcs://{node.address}:{node.labels.client_port} a.B serves" in "\n".join(lines(explain(made)))  # fmt: skip


def test_an_unknown_secret_is_named() -> None:
    with pytest.raises(ConflictsError, match=r"\{secret.tokn\} is no secret of the fleet"):
        plan(fleet=SECRETS, runbook=runbook(HEALTHY.replace("secret.token", "secret.tokn")))


@pytest.mark.parametrize(
    ("address", "url", "rendered"),
    [
        ("fd00::1", "http://{node.address}:8080/x/{node.address}", "http://[fd00::1]:8080/x/fd00::1"),
        ("fd00::1", "http://[{node.address}]:8080/", "http://[fd00::1]:8080/"),
        ("10.0.0.1", "http://{node.address}:8080/", "http://10.0.0.1:8080/"),
        ("10.0.0.1", "http://[{node.address}]:8080/", "http://10.0.0.1:8080/"),
        ("fe80::1%eth0", "http://{node.address}/", "http://[fe80::1%eth0]/"),
        ("db.internal", "https://{node.address}", "https://db.internal"),
    ],
)  # fmt: skip
def test_an_ipv6_address_gets_its_brackets(address: str, url: str, rendered: str) -> None:
    fleet = SECRETS.replace("- {name: etcd-1,", f'- {{name: etcd-1, address: "{address}",')
    made = request(f'preflight: [{{http: "{url}"}}]\n', fleet)
    assert made["url"] == rendered


def test_a_port_of_an_ipv6_address() -> None:
    fleet = SECRETS.replace("- {name: etcd-1,", '- {name: etcd-1, address: "fd00::1",')
    asked = """preflight: [{tcp: "{node.address}:{node.labels.peer_port}"}, {tcp: "[::1]:80"}]\n"""
    one, two = probes(plan(fleet=fleet, runbook=runbook(asked)), 0, "preflight")
    assert one == {"tcp": {"host": "fd00::1", "port": 23801, "timeout": 1.0}}
    assert two == {"tcp": {"host": "::1", "port": 80, "timeout": 1.0}}


def test_what_is_put_into_a_label_of_a_metric_is_text() -> None:
    fleet = SECRETS.replace("zone: a}", "zone: 'a\"b'}")
    metric = """preflight: [{http: {url: "http://a/", metric: 'x{zone="{node.labels.zone}"}'}, expect: {value: 1}}]\n"""  # fmt: skip
    assert request(metric, fleet)["metric"] == r'x{zone="a\"b"}'


REFUSED: list[tuple[str, str]] = [
    ('{http: {url: "http://a/", ca: /ca.pem}}', "http.ca: is for TLS: write the address with https"),
    ('{http: {url: "https://a/", key: /k.pem}}', "http.key: is the key of a client certificate: write `certificate` too"),
    ('{http: {url: "https://a/", ca: ca.pem}}', "http.ca: must be an absolute path on the host"),
    ('{http: {url: "https://a/", certificate: "-----BEGIN CERTIFICATE-----", key: "-----BEGIN EC PRIVATE KEY-----"}}', "http.key: holds a private key, which everybody can read here"),
    ('{http: {url: "http://a/", socket: run/app.sock}}', "http.socket: must be an absolute path"),
    ('{http: {url: "http://::1:80/"}}', "http.url: an IPv6 address stands in brackets"),
    ('{http: {url: "http://a/", headers: {"X Y": a}}}', "is no name of a header"),
    ('{http: {url: "http://a/", headers: {A: "a\\nb"}}}', "has a line break; a header is one line"),
    ('{http: {url: "http://a/", headers: {authorization: a}, basic_auth: {user: a, password: b}}}', "is there by `basic_auth` already"),
    ('{http: {url: "http://a/", metric: "x{y}"}, expect: {value: 1}}', "http.metric: is no series"),
    ('{http: {url: "http://a/", metric: x}}', "is compared with nothing: add expect: {value: {le: 5}}"),
    ('{http: {url: "http://a/", metric: x}, expect: {x: 1}}', "a metric has the one path `value`"),
    ('{http: {url: "http://a/", metric: x, parse: text}, expect: {value: 1}}', "has no meaning beside `metric`"),
    ('{grpc: "a:80"}', "grpc://host:port"),
    ('{grpc: "grpc://a:80/health"}', "grpc://host:port"),
    ('{grpc: {url: "grpc://a:80", ca: /ca.pem}}', "grpc.ca: is for TLS"),
    ('{grpc: "grpc://a:80", expect: {status: SERVING}}', "grpc gives no answer to look into"),
    ('{tcp: "::1:80"}', "an IPv6 address stands in brackets: [::1]:8080"),
]  # fmt: skip


@pytest.mark.parametrize(("probe", "sentence"), REFUSED)
def test_a_request_that_cannot_be_meant_is_refused(probe: str, sentence: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(runbook(f"preflight: [{probe}]\n"), Runbook)
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems
