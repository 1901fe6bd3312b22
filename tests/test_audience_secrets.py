"""No secret and no personal value leaves its place, however a run goes wrong."""

from __future__ import annotations

import json
import ssl
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.audience_campaign import KEY, Place, inside, run, write_csv, write_settings
from tests.sandbox_server import SUCCESS, Got, Reply, sandbox, stub

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.audience_campaign import Ended

MAY_HOLD = ("/doubt/", "/told/", "/unknown/", "/snapshot/", "/left-")
"""Where values of people must be, for the work to be done."""
NAMES = ("Dulcinea", "Zoëbñez", "Altisidora", "Maritornes", "Dorotea")
EXPORT = [
    {
        "external_id": f"QX-{number}-ident",
        "email": f"quixote{number}@lamancha.example",
        "given_name": name,
        "surname": "Aldonza Lorenzo",
        "phone": f"+34911222{number}33",
        "city": "Toboso",
        "Secret Nick": f"rocinante-7{number}",
        "worth": f"8153.25{number}",
        "friends": "['sanchopanza']",
        "birthdate": "1955-03-09",
    }
    for number, name in enumerate(NAMES)
]
BAD = [
    EXPORT[0] | {"external_id": "QX-bad-ident", "email": "quixote.has.none"},
    EXPORT[0] | {"external_id": "QX-worse-ident", "phone": "911-two-two-two"},
]
SIGNS = (
    *NAMES,
    *(json.dumps(one)[1:-1] for one in NAMES),
    "QX-",
    "-ident",
    "quixote",
    "lamancha",
    "Aldonza",
    "911222",
    "911-two",
    "Toboso",
    "rocinante",
    "8153.2",
    "sanchopanza",
    "1955-03",
    "1955/03",
    KEY,
    "sesame",
)
"""What nobody may see: every value, and the key."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_csv(tmp_path / "export.csv", [*EXPORT, *BAD])
    return Place(root=tmp_path, braze="http://127.0.0.1:9")


def told(
    place: Place, *, kinds: str = "attributes", call: Callable[..., Ended] = inside
) -> tuple[dict[str, str], set[int]]:
    """Run every command with all verbosity; return all that anybody may read."""
    settings: dict[str, Any] = {"max_reject_share": 0.5, "kind": kinds}
    if kinds == "events":
        settings |= {"constants": {"name": "seen", "time": "2026-09-01"}}
    write_settings(place, braze={"patience": "1s", "timeout": "1s"}, **settings)
    found, statuses = {}, set()
    for arguments in (
        ("-v", "audience", "preview", "vips", "-o", "plan"),
        ("-v", "audience", "sync", "vips"),
        ("-v", "audience", "status", "vips"),
        ("-v", "audience", "status", "vips", "--json"),
    ):
        ended = call(place, *arguments)
        statuses.add(ended.status)
        found[" ".join(arguments)] = ended.stdout + ended.stderr
    for name, body in place.files().items():
        if not any(one in f"/{name}" for one in MAY_HOLD):
            found[name] = body.decode()
    return found, statuses


def leaks(found: dict[str, str]) -> dict[str, list[str]]:
    """Return what was found of what nobody may see, by where it was."""
    seen = {
        where: [one for one in SIGNS if one.lower() in f"{where} {text}".lower()]
        for where, text in found.items()
    }
    return {where: signs for where, signs in seen.items() if signs}


def whole(got: Got) -> str:
    return f"{got.body.decode()} {got.headers['authorization']}"


def each(say: Callable[[Got, int], str], status: int = 201) -> Callable[[Got], Reply]:
    """Refuse every object with words of *say*'s."""

    def answer(got: Got) -> Reply:
        errors = [
            {"type": say(got, at), "input_array": "attributes", "index": at}
            for at in range(len(got.objects))
        ]
        return Reply(status, {"message": "success", "errors": errors})

    return answer


def another(got: Got, at: int) -> dict[str, Any]:
    return got.objects[(at + 1) % len(got.objects)]


ECHOES = {
    "the whole request": lambda got, _: whole(got),
    # shows: an error's words are cleaned of its own object's values alone
    "the key": lambda got, _: f"bad key {got.headers['authorization']}",
    "the bare key": lambda got, _: f"bad {got.headers['authorization'][7:]}",
    "its own object": lambda got, at: json.dumps(got.objects[at]),
    "its own id": lambda got, at: f"{got.objects[at]['external_id']} is bad",
    "its own value in capitals": lambda got, at: (
        got.objects[at].get("Secret Nick", "rocinante").upper()
    ),
    # shows: a value that Braze quotes in another form is not found in its words
    "its own name as JSON": lambda got, at: json.dumps(
        got.objects[at].get("first_name", "Dorotea")
    ),
    "its own birthday with slashes": lambda *_: "bad dob 1955/03/09",
    "its own number, rounded": lambda *_: "worth 8153.2 is out of range",
    "a part of its address": lambda *_: "lamancha.example has no mail server",
    "another's name": lambda got, at: (
        f"taken by {another(got, at).get('first_name', 'Dorotea')}"
    ),
    "another's id": lambda got, at: f"same as {another(got, at)['external_id']}",
}


@pytest.mark.parametrize("what", ECHOES)
def test_what_braze_says_of_an_object_tells_nothing_of_anybody(place, what):
    with stub(each(ECHOES[what])) as braze:
        found, statuses = told(replace(place, braze=braze.url))
    assert statuses == {0}
    assert leaks(found) == {}


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        *(("attributes", one) for one in (201, 302, 400, 401, 403, 404, 413, 418, 500)),
        *(("events", one) for one in (201, 400, 502)),
    ],
)
def test_an_answer_that_repeats_the_request_is_not_repeated(place, status, kinds):
    def answer(got: Got) -> Reply:
        return Reply(status, {"message": whole(got), "errors": [whole(got)]})

    with stub(answer) as braze:
        found, statuses = told(replace(place, braze=braze.url), kinds=kinds)
    assert statuses <= {0, 1}
    assert leaks(found) == {}


@pytest.mark.parametrize("kinds", ["attributes", "events"])
def test_a_faulty_run_tells_nothing_of_anybody(place, kinds):
    with sandbox(faults=0.6, hang=2, seed=3) as box:
        found, statuses = told(replace(place, braze=box.url), kinds=kinds, call=run)
    assert statuses <= {0, 1}
    assert leaks(found) == {}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(b'"open quote,quixote\n', id="an open quote"),
        pytest.param(b"\xff\xfe\xffquixote,\x80\n", id="no UTF-8"),
        pytest.param(b"quixote," * 40 + b"\n", id="too many cells"),
    ],
)
def test_an_export_that_cannot_be_read_is_not_quoted(place, spoil):
    place.export.write_bytes(place.export.read_bytes() + spoil)
    with stub(lambda _: SUCCESS) as braze:
        found, _ = told(replace(place, braze=braze.url))
    assert leaks(found) == {}


def test_nothing_that_went_wrong_ends_in_a_traceback(place):
    with stub(lambda _: Reply(201, b"\xff\x00{")) as braze:
        found, _ = told(replace(place, braze=braze.url))
    assert [where for where, text in found.items() if "Traceback" in text] == []


# One host, over TLS, with a key from the environment.


def test_no_redirect_is_followed(place):
    with stub(lambda _: SUCCESS) as other:
        to = {"Location": f"{other.url}/users/track"}
        with stub(lambda _: Reply(307, b"", to)) as braze:
            there = replace(place, braze=braze.url)
            write_settings(there, max_reject_share=0.5)
            ended = run(there, "audience", "sync", "vips")
        assert ended.status == 1
        assert "Braze answered 307" in ended.stderr
        assert (len(braze.got), other.got) == (1, [])


def test_no_proxy_of_the_environment_sees_the_key(place):
    with stub(lambda _: SUCCESS) as proxy, stub(lambda _: SUCCESS) as braze:
        there = replace(place, braze=braze.url)
        write_settings(there, max_reject_share=0.5)
        more = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, "NO_PROXY": ""}
        assert run(there, "audience", "sync", "vips", **more).status == 0
        assert (len(braze.got), proxy.got) == (1, [])


def certificate(folder: Path) -> ssl.SSLContext:
    """Make a certificate that nobody has signed."""
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    kept = ["-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*made, *kept, *names], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_a_certificate_that_nobody_signed_is_refused(place):
    with stub(lambda _: SUCCESS, certificate(place.root)) as braze:
        there = replace(place, braze=braze.url)
        write_settings(there, max_reject_share=0.5)
        ended = run(there, "audience", "sync", "vips")
        assert ended.status == 1
        message = " ".join(ended.stderr.split())
        assert "certificate is not one that this machine trusts" in message
        # shows: it says that Braze answered 0, though nobody answered
        assert "answered 0" not in message
        assert braze.got == []


def test_a_certificate_that_the_machine_trusts_is_taken(place):
    with stub(lambda _: SUCCESS, certificate(place.root)) as braze:
        there = replace(place, braze=braze.url)
        write_settings(there, max_reject_share=0.5)
        trusted = str(place.root / "cert.pem")
        ended = run(there, "audience", "sync", "vips", SSL_CERT_FILE=trusted)
        assert (ended.status, len(braze.got)) == (0, 1), ended.stderr


@pytest.mark.parametrize("where", ["api_key", "key", "token"])
def test_a_key_in_the_settings_is_refused_and_not_repeated(place, where):
    with stub(lambda _: SUCCESS) as braze:
        there = replace(place, braze=braze.url)
        write_settings(there, braze={where: KEY}, max_reject_share=0.5)
        ended = run(there, "audience", "sync", "vips")
        assert ended.status == 2
        assert f"braze.{where} is no setting" in ended.stderr
        assert "sesame" not in ended.stdout + ended.stderr
        assert braze.got == []


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://rest.iad-01.braze.com", id="no TLS"),
        pytest.param("https://user:sesame@rest.iad-01.braze.com", id="a password"),
        pytest.param("https://rest.iad-01.braze.com/elsewhere", id="a path"),
        pytest.param("http://127.0.0.1.example.com", id="a look-alike of this machine"),
        pytest.param("http://localhost.example.com:80", id="another look-alike"),
    ],
)
def test_an_address_that_is_not_safe_is_refused(place, url):
    write_settings(replace(place, braze=url))
    ended = run(place, "audience", "sync", "vips")
    assert ended.status == 2
    assert "braze.url" in ended.stderr
    assert "sesame" not in ended.stderr


def test_a_plan_can_be_read_by_its_owner_alone(place):
    found, _ = told(place)
    assert leaks(found) == {}
    assert (place.root / "plan").stat().st_mode & 0o077 == 0
