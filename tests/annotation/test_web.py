from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from pipeline.annotation import votes, web
from pipeline.annotation.rounds import Round
from pipeline.annotation.store import Store, Unavailable
from pipeline.annotation.web import create_app, serve
from pipeline.params import UserError
from tests.annotation.synthetic import write_round


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return write_round(tmp_path_factory.mktemp("round"), pairs=30)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'votes.sqlite'}")


@pytest.fixture
def client(store: Store, one: Round) -> Iterator[TestClient]:
    with TestClient(create_app(store, [one], None, ["localhost"]), base_url="http://localhost") as client:
        sign_in(client, "Ada")
        yield client


def sign_in(client: TestClient, name: str, **more: str) -> Any:
    return client.post("/sign-in", data={"name": name, **more})


def pairs(client: TestClient) -> list[dict[str, str]]:
    return client.post("/api/next").json()["pairs"]


def vote(client: TestClient, lease: str, choice: str = "left", event_id: str | None = None) -> Any:
    event = {"kind": "vote", "event_id": event_id or str(uuid4()), "lease": lease, "choice": choice, "response_ms": 700}
    return client.post("/api/events", json=event)


def test_a_pair_names_nothing_but_opaque_addresses(client: TestClient, one: Round) -> None:
    answer = client.post("/api/next")
    facts = one.frame()
    for column in ("pair_id", "face_id", "candidate_a", "restorer_a", "why", "split"):
        for value in set(facts[column]):
            assert str(value) not in answer.text, f"the page must not learn {column}"
    first = answer.json()["pairs"][0]
    assert set(first) == {"lease", "left", "right", "input", "original"}


def test_images_are_those_of_the_round_on_the_side_that_was_drawn(client: TestClient, store: Store, one: Round) -> None:
    for pair in pairs(client):
        lease = store.lease(pair["lease"], "Ada")
        other = "b" if lease.displayed_left == "a" else "a"
        assert client.get(pair["left"]).content == one.png(lease.pair_id, f"image_{lease.displayed_left}")
        assert client.get(pair["right"]).content == one.png(lease.pair_id, f"image_{other}")
        assert client.get(pair["input"]).content == one.png(lease.pair_id, "lq")


def test_the_original_is_recorded_before_it_is_shown(client: TestClient, store: Store, one: Round) -> None:
    first, second = pairs(client)
    lease = store.lease(first["lease"], "Ada")
    assert client.get(first["original"]).content == one.png(lease.pair_id, "hq")
    vote(client, first["lease"])
    vote(client, second["lease"])
    assert [row["shown_reference"] for row in store.votes()] == [True, False]


def test_voting_is_idempotent_and_conflicts_are_refused(client: TestClient, store: Store) -> None:
    lease, event_id = pairs(client)[0]["lease"], str(uuid4())
    assert vote(client, lease, "tie", event_id).json() == {"saved": True, "new": True}
    assert vote(client, lease, "tie", event_id).json() == {"saved": True, "new": False}
    assert vote(client, lease, "left", event_id).status_code == 409
    assert vote(client, "unknown").status_code == 409
    assert len(store.votes()) == 1


def test_undo_brings_the_pair_back(client: TestClient) -> None:
    before = pairs(client)
    vote(client, before[0]["lease"])
    undo = {"kind": "undo", "event_id": str(uuid4())}
    assert client.post("/api/events", json=undo).json() == {"saved": True}
    assert pairs(client) == before


@pytest.mark.parametrize(
    "change",
    [{"choice": "a"}, {"event_id": "1"}, {"response_ms": -1}, {"kind": "edit"}, {"lease": None}],
)
def test_malformed_events_are_refused(client: TestClient, store: Store, change: dict[str, Any]) -> None:
    event = {"kind": "vote", "event_id": str(uuid4()), "lease": "x", "choice": "left", "response_ms": 1}
    assert client.post("/api/events", json=event | change).status_code == 422
    assert store.votes() == []


def test_nobody_sees_someone_elses_pictures(client: TestClient) -> None:
    address = pairs(client)[0]["left"]
    sign_in(client, "Bob")
    assert client.get(address).status_code == 409


def test_a_page_of_somebody_else_in_the_same_browser_saves_nothing_under_the_wrong_name(
    client: TestClient, store: Store
) -> None:
    lease = pairs(client)[0]["lease"]
    sign_in(client, "Bob")  # in another tab
    event = {"kind": "vote", "event_id": str(uuid4()), "lease": lease, "choice": "left", "response_ms": 700}
    refused = client.post("/api/events", json=event, headers={"X-Annotator": "Ada"})
    assert refused.status_code == 401  # which the page takes for "signed out": it keeps the vote
    assert client.post("/api/next", headers={"X-Annotator": "Ada"}).status_code == 401
    assert store.votes() == []
    sign_in(client, "Ada")
    assert client.post("/api/events", json=event, headers={"X-Annotator": "Ada"}).json() == {"saved": True, "new": True}


def test_votes_of_another_database_wait_for_it(client: TestClient, store: Store, one: Round, tmp_path: Path) -> None:
    lease = pairs(client)[0]["lease"]
    event = {"kind": "vote", "event_id": str(uuid4()), "lease": lease, "choice": "left", "response_ms": 700}
    other = Store(f"sqlite:///{tmp_path / 'other.sqlite'}")  # another project, started on this port meanwhile
    assert other.identity != store.identity
    stranger = TestClient(create_app(other, [one], None, ["localhost"]), base_url="http://localhost")
    sign_in(stranger, "Ada")
    of_page = {"X-Database": store.identity}
    for sent in (event, {"kind": "undo", "event_id": str(uuid4())}):
        answer = stranger.post("/api/events", json=sent, headers=of_page)
        assert answer.status_code == 503  # the page tries again
        assert answer.json()["problem"] == "this page belongs to another votes database; reload it"
    assert f'data-database="{store.identity}"' in client.get("/").text
    assert client.post("/api/events", json=event, headers=of_page).json() == {"saved": True, "new": True}
    assert Store(str(store.engine.url)).identity == store.identity


def test_capitals_make_no_second_person(client: TestClient, store: Store) -> None:
    vote(client, pairs(client)[0]["lease"])
    sign_in(client, "ADA")
    vote(client, pairs(client)[0]["lease"])
    assert {row["annotator"] for row in store.votes()} == {"Ada"}
    sign_in(client, "Adam")
    vote(client, pairs(client)[0]["lease"])
    assert {row["annotator"] for row in store.votes()} == {"Ada", "Adam"}


def test_a_name_remembered_from_another_project_makes_no_second_person(client: TestClient, store: Store) -> None:
    vote(client, pairs(client)[0]["lease"])
    client.cookies.clear()
    client.cookies.set("annotator", "ada")
    page = client.get("/")
    assert 'data-annotator="Ada"' in page.text
    client.post("/api/next")
    assert {row["annotator"] for row in store.votes()} == {"Ada"}


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out", "/api/next"])
def test_another_site_can_ask_for_nothing(client: TestClient, path: str) -> None:
    asked = client.post(path, data={"name": "Bob"}, headers={"Sec-Fetch-Site": "cross-site"}, follow_redirects=False)
    assert asked.status_code == 403
    assert "set-cookie" not in asked.headers
    assert client.post("/api/next", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_form_without_end_is_not_read(client: TestClient) -> None:
    for content in ("name=" + "a" * 10_000, iter([b"name=Ada"])):  # the latter doesn't say how long it is
        answer = client.post("/sign-in", content=content)
        assert (answer.status_code, "That was no sign-in form." in answer.text) == (400, True)


def test_the_printed_address_works_as_a_link_from_elsewhere(store: Store, one: Round) -> None:
    with TestClient(create_app(store, [one], "secret", ["localhost"]), base_url="http://localhost") as client:
        answer = client.get("/?token=secret", follow_redirects=False)
        assert "samesite=lax" in answer.headers["set-cookie"].lower()


def test_everything_but_the_sign_in_page_needs_a_name(store: Store, one: Round) -> None:
    client = TestClient(create_app(store, [one], None, ["localhost"]), base_url="http://localhost")
    assert "Your name" in client.get("/").text
    assert client.post("/api/next").status_code == 401
    for name in ("", " ", "<script>", "x" * 41, "a\u202eb", "a\x07b"):
        answer = sign_in(client, name)
        assert answer.status_code == 400
        assert "<script>" not in answer.text
    for name, shown in (
        ("_bob", "_bob"),
        ("O'Brien", "O&#39;Brien"),
        ("अनिल", "अनिल"),
        ("a<b>c", "a&lt;b&gt;c"),
        ("Zoe\u0308", "Zoë"),
    ):
        assert sign_in(client, name).url.path == "/"  # in any script, marks composed or not
        assert f">{shown}</button>" in client.get("/").text


@pytest.mark.parametrize(("host", "given"), [("0.0.0.0", None), ("0.0.0.0", ""), ("127.0.0.1", "")])
def test_beyond_this_machine_there_is_always_a_token_and_an_empty_one_is_none(
    host: str,
    given: str | None,
    store: Store,
    one: Round,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apps: list[Any] = []
    monkeypatch.setattr(web.uvicorn, "Config", lambda app, **_: apps.append(app))
    monkeypatch.setattr(web.uvicorn, "Server", lambda _: SimpleNamespace(run=lambda sockets: None))
    web.serve(store, [one], host, 0, given)
    assert len(capsys.readouterr().out.partition("?token=")[2].split()[0]) >= 16
    assert sign_in(TestClient(apps[0], base_url="http://localhost"), "Ada", token="").status_code == 400


def test_a_token_guards_every_address(store: Store, one: Round) -> None:
    app = create_app(store, [one], "sesame", ["*"])
    client = TestClient(app, base_url="http://example.org")
    assert sign_in(client, "Ada").status_code == 400
    assert sign_in(client, "Ada", token="wrong").status_code == 400
    client.cookies.set("annotator", "Ada")
    assert client.post("/api/next").status_code == 401
    client.cookies.set("token", "wrong")
    assert client.post("/api/next").status_code == 401
    fresh = TestClient(app, base_url="http://example.org")
    old = fresh.get("/?token=of an earlier start")
    assert (old.status_code, "That is not the token" in old.text) == (400, True)
    assert "token" not in str(fresh.get("/?token=sesame").url), "it doesn't stay in the address bar"
    sign_in(fresh, "Ada")
    assert fresh.post("/api/next").status_code == 200
    assert fresh.get("/?token=of an earlier start").status_code == 200, "who has the present token goes on"
    assert fresh.post("/api/next").status_code == 200


def test_a_token_may_be_in_any_script(store: Store, one: Round) -> None:
    app = create_app(store, [one], 'сезам; "=', ["*"])
    for given in ({"token": 'сезам; "='}, {}):
        client = TestClient(app, base_url="http://example.org")
        if not given:
            client.get("/", params={"token": 'сезам; "='})
        sign_in(client, "Ада", **given)
        assert client.post("/api/next").status_code == 200


def test_signing_in_while_the_database_is_locked_is_said_on_the_page(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_: str) -> str:
        raise Unavailable("the database is locked")

    monkeypatch.setattr(store, "spelling", locked)
    answer = sign_in(client, "Ada")
    assert answer.status_code == 400
    assert "the database is locked; try again." in answer.text
    assert 'value="Ada"' in answer.text


def test_other_host_names_are_not_answered(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    for address in ("/", "/static/annotate.js", "/static/annotate.css"):
        answer = client.get(address)
        assert answer.status_code == 200
        assert "https://" not in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/docs").status_code == 404


def test_a_database_that_cannot_save_is_said_not_hidden(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = pairs(client)[0]["lease"]

    def locked(*_: object) -> bool:
        raise Unavailable("the database is locked by another program")

    with monkeypatch.context() as patch:
        patch.setattr(store, "vote", locked)
        answer = vote(client, lease)
    assert (answer.status_code, answer.json()["problem"]) == (503, "the database is locked by another program")
    assert vote(client, lease).status_code == 200


def test_a_taken_port_is_a_clear_error(store: Store, one: Round) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another"):
            serve(store, [one], "127.0.0.1", taken.getsockname()[1], None)


def judge(store: Store, one: Round, who: str, choices: str) -> None:
    """Vote on as many pairs as there are letters: a, b (winners) or t (tie), whatever side they are shown on."""
    store.add_round(one)
    for letter in choices:
        lease = store.claim(who, 1)[0][0]
        choice = "tie" if letter == "t" else "left" if lease.displayed_left == letter else "right"
        store.vote(str(uuid4()), who, lease.lease_id, choice, 2000)


def test_an_export_holds_every_vote_and_keeps_those_of_other_machines(store: Store, one: Round, tmp_path: Path) -> None:
    path = tmp_path / "human.parquet"
    judge(store, one, "ada", "abt")
    store.undo(str(uuid4()), "ada")
    assert votes.export(store.votes(), path) == (3, 3)
    elsewhere = Store(f"sqlite:///{tmp_path / 'other.sqlite'}")
    judge(elsewhere, one, "bob", "aa")
    assert votes.export(elsewhere.votes(), path) == (5, 2)
    before = path.read_bytes()
    assert votes.export(store.votes(), path) == (5, 0)
    assert path.read_bytes() == before
    rows = votes.exported(path)
    assert sum(row["undone_by"] != "" for row in rows) == 1
    assert {row["annotator_kind"] for row in rows} == {"human"}
    store.undo(str(uuid4()), "ada")
    votes.export(store.votes(), path)
    assert sum(row["undone_by"] != "" for row in votes.exported(path)) == 2, "an undo after the export counts"
    changed = [{**store.votes()[0], "winner": "both_bad"}]
    with pytest.raises(UserError, match="another content"):
        votes.export(changed, path)


def test_status_counts_and_compares(store: Store, tmp_path: Path) -> None:
    one = write_round(tmp_path, pairs=10, gold=0.2, repeats=0.0, overlap=1.0)
    judge(store, one, "ada", "a" * 10)
    judge(store, one, "bob", "a" * 10)
    stray = {**store.votes()[0], "pair_id": "gone", "event_id": "stray"}
    found = votes.status([*store.votes(), stray], [one], seed=0)
    json.dumps(found, allow_nan=False)
    assert found["unknown"] == 1
    assert found["rounds"][one.round_id] == {"pairs": 8, "judged": 8, "complete": 8, "votes": 20}
    assert found["annotators"]["ada"]["votes"] == 10
    assert found["agreement"]["gold"] == {"ada": {"accuracy": 1.0, "n": 2}, "bob": {"accuracy": 1.0, "n": 2}}
    assert (found["agreement"]["raw"], found["agreement"]["alpha"]) == (1.0, 1.0)
    text = votes.as_text(found)
    assert "100% of 2" in text
    assert "1 votes are on pairs of no round" in text


def test_two_databases_that_asked_one_person_the_same_count_once(store: Store, tmp_path: Path) -> None:
    one = write_round(tmp_path, pairs=4)
    found = []
    for name, choice, spelt in (("first", "left", "Ada"), ("second", "right", "ada")):
        database = Store(f"sqlite:///{tmp_path / name}.sqlite")
        with TestClient(create_app(database, [one], None, ["localhost"]), base_url="http://localhost") as client:
            sign_in(client, spelt)
            while ready := pairs(client):
                vote(client, ready[0]["lease"], choice)
        found += database.votes()
    alone = votes.status([row | {"annotator": "Ada"} for row in found[len(found) // 2 :]], [one], 0)
    assert votes.status(found, [one], 0) == alone
    assert alone["votes"] == len(found) // 2
    # two rounds of two checkouts may hold one pair: nobody agrees or disagrees with themselves
    two = replace(one, round_id="002-other")
    last = [row | {"round_id": two.round_id} for row in found[len(found) // 2 :]]
    both = votes.status([*found[: len(found) // 2], *last], [one, two], 0)
    assert both["agreement"] == alone["agreement"]
    assert both["votes"] == 2 * alone["votes"]


def test_status_of_nothing_is_no_error() -> None:
    found = votes.status([], [], seed=0)
    assert found["votes"] == 0
    assert "no agreement to show" in votes.as_text(found)
