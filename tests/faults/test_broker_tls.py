"""A broker with TLS, rediss://: its certificate is verified, and nothing is sent when it is wrong."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import trustme

from accounts.models import ExpiryRun
from sandbox import servers
from tests.conftest import Process
from tests.faults import faults
from tests.faults.conftest import Tick, run_that_succeeds, wait_for_line

pytestmark = [pytest.mark.faults, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("customers")]

WORKER = ("worker", "--concurrency=1", "--loglevel=INFO")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of a private authority and, in server.pem beside it, one that it issued for localhost."""
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    return directory / "authority.pem"


@pytest.fixture
def tls_broker(broker: str, authority: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of the tests' broker with TLS."""
    port = servers.free_port()
    arguments = (str(port), str(urlsplit(broker).port), str(authority.with_name("server.pem")))
    with servers.process("-m", "tests.tls_server", *arguments, env={}, log=tmp_path / "tls.log"):
        yield f"rediss://localhost:{port}{urlsplit(broker).path}"


@pytest.fixture
def stranger(tls_broker: str, authority: Path) -> dict[str, str]:
    """The environment of a process that does not know the authority."""
    return {"CELERY_BROKER_URL": tls_broker, **faults.does_not_know(authority)}


@pytest.mark.no_fault("the authority is known: in the next test it is not")
@pytest.mark.parametrize("named", ["in the environment", "in the URL"])
def test_a_worker_trusts_a_broker_whose_authority_it_knows(
    celery: Process, tick: Tick, tls_broker: str, authority: Path, named: str
) -> None:
    known = {"CELERY_BROKER_URL": tls_broker, "SSL_CERT_FILE": str(authority)}
    if named == "in the URL":
        known = {"CELERY_BROKER_URL": f"{tls_broker}?ssl_ca_certs={quote(str(authority))}"}

    with celery(*WORKER, **known):
        run = run_that_succeeds(tick.send())  # three slices: a chord, which needs the results

    assert run.expired_count == 6


@pytest.mark.parametrize("role", [WORKER, ("beat", "--loglevel=INFO")], ids=lambda role: role[0])
def test_a_broker_with_an_unknown_authority_is_refused_with_a_sentence(
    celery: Process, tick: Tick, stranger: dict[str, str], tmp_path: Path, role: tuple[str, ...]
) -> None:
    task_id = tick.send()

    with celery(*role, **stranger):
        wait_for_line(tmp_path / f"{role[0]}.log", "certificate verify failed: unable to get local issuer certificate")

    assert not ExpiryRun.objects.filter(task_id=task_id)
