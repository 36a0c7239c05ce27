"""Kerberos principals to users: exact, without the realm, by patterns; the first that matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geosocks.auth import Grant
from geosocks.auth.gss import GssAuthenticator
from geosocks.auth.principals import Mapping, PrincipalMap
from geosocks.codes import ProtectionLevel
from geosocks.config import build_policy, load_settings, shown
from geosocks.errors import ConfigError
from geosocks.stream import Stream
from geosocks.wire.socks5 import Address
from tests.support.fake_gss import FakeContext


@pytest.mark.parametrize(
    ("mapping", "principal", "user"),
    [
        ("strip:EXAMPLE.ORG", "alice@EXAMPLE.ORG", "alice"),
        ("strip:EXAMPLE.ORG", "alice/admin@EXAMPLE.ORG", "alice/admin"),
        ("alice/admin@EXAMPLE.ORG=root-alice", "alice/admin@EXAMPLE.ORG", "root-alice"),
        ("*@EXAMPLE.ORG=*", "alice@EXAMPLE.ORG", "alice"),
        ("*/admin@EXAMPLE.ORG=root-*", "alice/admin@EXAMPLE.ORG", "root-alice"),
        ("alice/*@EXAMPLE.ORG=alice", "alice/laptop@EXAMPLE.ORG", "alice"),
        ("*@PARTNER.EXAMPLE=partner", "bob@PARTNER.EXAMPLE", "partner"),
        ("svc-*@EXAMPLE.ORG=service:*", "svc-backup@EXAMPLE.ORG", "service:backup"),
        ("alice@*=alice", "alice@ANY.WHERE", "alice"),
        ("a=b@EXAMPLE.ORG=ab", "a=b@EXAMPLE.ORG", "ab"),
    ],
)
def test_a_mapping_that_matches(mapping: str, principal: str, user: str) -> None:
    assert Mapping.parse(mapping).user_of(principal) == user
    assert str(Mapping.parse(mapping)) == mapping


@pytest.mark.parametrize(
    ("mapping", "principal"),
    [
        ("strip:EXAMPLE.ORG", "alice@OTHER.ORG"),
        ("strip:EXAMPLE.ORG", "alice@SUB.EXAMPLE.ORG"),
        ("strip:EXAMPLE.ORG", "alice@example.org"),
        ("strip:EXAMPLE.ORG", "alice@EXAMPLEXORG"),
        ("strip:EXAMPLE.ORG", r"alice\@OTHER@EXAMPLE.ORG"),
        ("strip:EXAMPLE.ORG", r"alice\@EXAMPLE.ORG"),
        ("strip:EXAMPLE.ORG", "@EXAMPLE.ORG"),
        ("alice@EXAMPLE.ORG=a", "alice@EXAMPLE.ORG.EVIL"),
        ("alice@EXAMPLE.ORG=a", "malice@EXAMPLE.ORG"),
        ("alice@EXAMPLE.ORG=a", "alice@EXAMPLE.ORG\n"),
        ("*@EXAMPLE.ORG=*", "alice/admin@EXAMPLE.ORG"),
        ("*@EXAMPLE.ORG=*", "@EXAMPLE.ORG"),
        ("*@EXAMPLE.ORG=*", r"alice\@X@EXAMPLE.ORG"),
        ("*@EXAMPLE.ORG=*", "bob@OTHER@EXAMPLE.ORG"),
        ("*/admin@EXAMPLE.ORG=root-*", "x/alice/admin@EXAMPLE.ORG"),
        ("alice/*@EXAMPLE.ORG=alice", "alice@EXAMPLE.ORG"),
    ],
)
def test_a_mapping_that_does_not_match(mapping: str, principal: str) -> None:
    assert Mapping.parse(mapping).user_of(principal) is None
    assert PrincipalMap.parse(mapping)(principal) == principal


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither PRINCIPAL=USER nor strip:REALM"),
        ("alice", "neither"),
        ("alice@EXAMPLE.ORG=", "neither"),
        ("=alice", "neither"),
        ("alice=alice", "it has no realm"),
        ("alice@=alice", "it has no realm"),
        ("@EXAMPLE.ORG=alice", "it has no realm"),
        ("strip:", "strip:EXAMPLE.ORG"),
        ("strip:a@b", "strip:EXAMPLE.ORG"),
        ("strip:EXAMPLE.ORG=x", "strip:EXAMPLE.ORG"),
        ("*/*@EXAMPLE.ORG=*", r"one \* stands on the left"),
        ("*@EXAMPLE.ORG=**", r"one \* stands on the left"),
        ("alice@EXAMPLE.ORG=*", r"one \* stands on the left"),
        ("alice@EXAMPLE.ORG=a b", "a blank in it"),
        ("alice@EXAMPLE.ORG=a\x1b", "cannot be printed"),
    ],
)
def test_a_mapping_that_cannot_be_used(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Mapping.parse(text)


def test_the_first_that_matches_wins_and_no_match_is_the_principal() -> None:
    users = PrincipalMap.parse(
        "alice/admin@EXAMPLE.ORG=root-alice", "*/admin@EXAMPLE.ORG=admins", "strip:EXAMPLE.ORG"
    )
    assert users("alice/admin@EXAMPLE.ORG") == "root-alice"
    assert users("bob/admin@EXAMPLE.ORG") == "admins"
    assert users("bob@EXAMPLE.ORG") == "bob"
    assert users("bob@OTHER.ORG") == "bob@OTHER.ORG"
    assert PrincipalMap()("bob@OTHER.ORG") == "bob@OTHER.ORG"


@given(st.text(), st.text())
def test_no_other_realm_is_ever_stripped_into_ours(name: str, realm: str) -> None:
    users = PrincipalMap.parse("strip:EXAMPLE.ORG", "*@EXAMPLE.ORG=*")
    if realm != "EXAMPLE.ORG":
        assert users(f"{name}@{realm}") == f"{name}@{realm}"


def test_options_in_their_order() -> None:
    argv = ["--gss-map", "a@R=b", "--gss-map", "strip:R"]
    loaded = load_settings(argv, {})
    assert [str(one) for one in loaded.settings.gss_map] == ["a@R=b", "strip:R"]
    assert "gss-map = a@R=b " in shown(loaded)
    assert "gss-map = strip:R " in shown(loaded)
    assert build_policy(loaded.settings).authenticators[0].method == 0  # no keytab: not read


def test_an_option_that_is_no_mapping_is_told() -> None:
    with pytest.raises(ConfigError, match=r"--gss-map: .*has no realm"):
        load_settings(["--gss-map", "alice=bob"], {})


class Established(GssAuthenticator):
    """An authenticator whose client has come to terms with it already."""

    def __init__(self, principal: str, *mappings: str) -> None:
        super().__init__(new_context=FakeContext, user_of=PrincipalMap.parse(*mappings))
        self.principal = principal

    def _establish(self, stream: Stream) -> FakeContext:
        context = FakeContext()
        context.initiator_name = self.principal
        return context

    def _agree(self, *_: object) -> ProtectionLevel:
        return ProtectionLevel.CLEAR


class Nowhere:
    """A stream that nothing is asked of."""

    def recv(self, size: int, /) -> bytes:
        raise AssertionError

    def sendall(self, data: bytes, /) -> None:
        raise AssertionError

    def shutdown(self, how: int, /) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def test_the_mapped_user_is_the_identity_and_the_detail_keeps_the_principal() -> None:
    def granted(principal: str) -> Grant:
        authenticator = Established(principal, "strip:EXAMPLE.ORG")
        return authenticator.authenticate(Nowhere(), Address("127.0.0.1", 1))

    ours = granted("alice@EXAMPLE.ORG")
    assert (ours.identity, ours.detail) == ("alice", "clear, alice@EXAMPLE.ORG")
    other = granted("alice@OTHER.ORG")
    assert (other.identity, other.detail) == ("alice@OTHER.ORG", "clear")
