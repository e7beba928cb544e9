"""A stage on a broker that wants certificates (mutual TLS), or a password by SCRAM over TLS: both work, and what is wrong
with either is one line that says what to do."""

import re
import subprocess

import certificates
import oracle
import pytest
from console import Console, free_port
from kafka import Broker
from stage import ROOT, TINY, engram

# brokers of Kafka 4 refuse SCRAM of a librdkafka before 2.6.1: tests/broker/librdkafka
NEWER = {} if subprocess.run(["pkg-config", "--atleast-version=2.6.1", "rdkafka"], check=False).returncode == 0 else {
    "LD_LIBRARY_PATH": str(ROOT / "build" / "broker" / "librdkafka")}


@pytest.fixture(scope="module")
def pems(session_folder):
    """ca and other sign; server and client are signed by ca, the client's key is encrypted; stranger by other; expired by
    ca, and its time is over."""
    folder = session_folder / "certificates"
    folder.mkdir()
    certificates.authority(folder, "ca")
    certificates.authority(folder, "other")
    certificates.certificate(folder, "server")
    certificates.certificate(folder, "client", password="the key's")
    certificates.certificate(folder, "stranger", by="other")
    certificates.certificate(folder, "expired", days=-1)
    return folder


@pytest.fixture(scope="module")
def broker(session_folder, pems):
    with Broker(session_folder / "tls", tls=pems) as started:
        yield started


def properties(**values):
    return [part for name, value in values.items() for part in ("-X", f"{name.replace('_', '.')}={value}")]


@pytest.fixture
def tls(pems, broker):
    """tls(...): the flags of a client with a certificate; a property given replaces its own, one that is None is left out."""

    def flags(**changes):
        values = {"bootstrap_servers": broker.tls_address, "security_protocol": "ssl", "ssl_ca_location": pems / "ca.pem",
                  "ssl_certificate_location": pems / "client.crt", "ssl_key_location": pems / "client.key",
                  "ssl_key_password": "the key's", **changes}
        return properties(**{name: value for name, value in values.items() if value is not None})

    return flags


@pytest.fixture
def scram(pems, broker):
    """scram(...): the same of a user with a password."""

    def flags(**changes):
        return properties(**{"bootstrap_servers": broker.scram_address, "security_protocol": "sasl_ssl",
                             "ssl_ca_location": pems / "ca.pem", "sasl_mechanisms": "SCRAM-SHA-512", "sasl_username": "stage",
                             "sasl_password": "secret", **changes})

    return flags


def check_works(broker, topics, stage, flags, env=None):
    running = stage(*TINY, *flags, env=env)
    broker.produce(topics.texts, [(b"t%d" % i, oracle.written(text=f"tool number {i}")) for i in range(60)])
    broker.produce(topics.instances, [(b"i%d" % i, oracle.written(text=f"tool {i}", labels=["tool"])) for i in range(5)])
    broker.produce(topics.labels, [(b"tool", oracle.written(text="a tool"))])
    broker.produce(topics.texts, [(b"bad", b"{")])
    answers = oracle.check_texts(broker, topics)
    assert len(answers.predictions) == 60
    oracle.check_memory(broker, topics, running.memory)
    assert "no connection" not in running.log()
    running.stop()


def test_mutual_tls(broker, topics, stage, tls):
    check_works(broker, topics, stage, tls())


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_scram(broker, topics, stage, scram, mechanism):
    check_works(broker, topics, stage, scram(sasl_mechanisms=mechanism), NEWER)


REFUSED = "the broker refuses this client's certificate: check that ssl.certificate.location and ssl.key.location are set"
PROTOCOL = "set security.protocol as the broker's listener has it"
PASSWORD = "check sasl.username and sasl.password"


def case(which, line, **changes):
    return pytest.param(which, changes, line, id="-".join([which, *changes]))


@pytest.mark.parametrize("which, changes, line", [
    case("tls", "its certificate is signed by none of the authorities in ssl.ca.location", ssl_ca_location="other.pem"),
    case("tls", "its certificate is for another name: name the broker in bootstrap.servers as", bootstrap_servers="localhost"),
    case("tls", REFUSED, ssl_certificate_location=None, ssl_key_location=None, ssl_key_password=None),
    case("tls", REFUSED, ssl_certificate_location="stranger.crt", ssl_key_location="stranger.key"),
    case("tls", REFUSED, ssl_certificate_location="expired.crt", ssl_key_location="expired.key"),
    case("tls", PROTOCOL, security_protocol="plaintext"),
    case("scram", PASSWORD, sasl_password="hunter22"),
    case("scram", PASSWORD, sasl_username="nobody"),
    case("scram", "set sasl.mechanisms to one that the broker has", sasl_mechanisms="PLAIN"),
    case("scram", PROTOCOL, security_protocol="sasl_plaintext"),
    case("scram", PROTOCOL, security_protocol="ssl"),
])
def test_what_is_refused_is_one_line_that_says_what_to_do(request, broker, topics, stage, pems, which, changes, line):
    """It waits, is not ready meanwhile, and stops when told to; no password is in any line."""
    if changes.get("bootstrap_servers"):  # another name of the same address
        changes = {"bootstrap_servers": f"localhost:{broker.tls_address.partition(':')[2]}"}
    changes = {name: pems / value if str(value).endswith((".pem", ".crt", ".key")) else value
               for name, value in changes.items()}
    console = Console(free_port())
    running = stage(*console.flags, *request.getfixturevalue(which)(**changes), ready=False)
    running.wait_for(f"warn  topics: no connection to .*{re.escape(line)}.*: trying on")
    assert console.ready()[0] == 503
    running.stop()
    lines = running.log().splitlines()
    assert len([one for one in lines if "warn  topics" in one]) == 1 and " error " not in running.log(), running.log()
    assert "hunter22" not in running.log() and "the key's" not in running.log()


def test_a_client_with_tls_where_there_is_none(broker, topics, stage, tls):
    running = stage(*TINY, *tls(bootstrap_servers=broker.address), ready=False)
    running.wait_for(f"topics: no connection to .*: {PROTOCOL}: trying on")
    running.stop()


def test_scram_of_an_old_librdkafka_says_so(broker, topics, stage, scram):
    """The broker's word is the one for a wrong password. Where the system's is newer there is nothing to say."""
    running = stage(*TINY, *scram(), ready=False)
    running.wait_for("refuse SCRAM of librdkafka before 2.6.1, which this one is: trying on" if NEWER else r"\bready:")
    running.stop()


@pytest.mark.parametrize("changes, reason", [
    ({"ssl_key_password": "hunter22"}, "bad decrypt"),
    ({"ssl_ca_location": "none.pem"}, "No such file or directory.*none.pem"),
    ({"ssl_key_location": "none.key"}, "No such file or directory.*none.key"),
    ({"ssl_key_location": "stranger.key"}, "key values mismatch"),
])
def test_files_that_do_not_fit_end_it_in_one_line(topics, stage, tls, pems, changes, reason):
    running = stage(*TINY, *tls(**{name: pems / value if "location" in name else value for name, value in changes.items()}),
                    ready=False)
    assert running.wait() == 2
    lines = [one for one in running.log().splitlines() if " info " not in one]
    assert len(lines) == 1 and re.search(f"error librdkafka refuses its configuration: .*{reason}", lines[0]), running.log()
    assert "hunter22" not in running.log()


@pytest.mark.parametrize("values", [
    {"sasl_mechanisms": "GSSAPI", "sasl_kerberos_kinit_cmd": "false hunter22"},
    {"sasl_mechanisms": "OAUTHBEARER", "sasl_oauthbearer_config": "hunter22", "enable_sasl_oauthbearer_unsecure_jwt": "true"},
], ids=["kinit", "token"])
def test_librdkafkas_words_show_no_secret(broker, topics, stage, values):
    running = stage(*TINY, "--log-level", "debug", *properties(security_protocol="sasl_plaintext", debug="security", **values),
                    ready=False)
    running.wait_for(r": \*{8}")
    running.stop()
    assert "hunter22" not in running.log()


def test_a_command_says_it_too(topics, tls, pems, memory):
    done = engram("teach", "--id", "a", "--label", "l", "a text", *topics.flags(), *tls(ssl_ca_location=pems / "other.pem"),
                  check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no connection to" in done.stderr and "ssl.ca.location" in done.stderr
