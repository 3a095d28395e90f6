"""The annotation page in a real headless Chromium. Skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pipeline.annotation.rounds import Round, make_round, read_rounds
from pipeline.annotation.store import Store
from pipeline.annotation.web import create_app
from tests.annotation.synthetic import plan, write_data
from tests.chromium import CHROMIUM, FLAGS, NO_CHROMIUM

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install .[dev])")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
PARAMS = "seed: 0\nruntime: {device: cpu, threads: 1, num_workers: 1, joblib_backend: loky, progress: false}\n"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
# between two pages there is no body
READY = (
    "lease => document.body?.classList.contains('ready') && document.querySelector('#stage').dataset.lease !== lease"
)

BACK = "lease => document.body.matches('.ready') && document.querySelector('#stage').dataset.lease === lease"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params and one round of 20 pairs: what `make repro` and `labels round` leave."""
    folder = tmp_path_factory.mktemp("project")
    write_data(folder / "data", faces=10)
    made = plan(pairs=20, gold=0.0, repeats=0.0, overlap=0.0)
    make_round(made, folder / "data", folder / "annotations" / "rounds")
    (folder / "params.yaml").write_text(PARAMS)
    return folder


@pytest.fixture(scope="module")
def one(project: Path) -> Round:
    return read_rounds(project / "annotations" / "rounds")[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'votes.sqlite'}", busy_seconds=0.2)


@pytest.fixture
def address(store: Store, one: Round) -> Iterator[str]:
    """The page, served from a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(create_app(store, [one], None, ["127.0.0.1"]), log_level="warning"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def enter(browser: Any) -> Iterator[Callable[..., Any]]:
    """Sign someone in with a browser profile of their own; fails when any request leaves localhost."""
    contexts, requests, errors = [], [], []

    def open_page(address: str, name: str = "Ada", viewport: dict[str, int] = DESKTOP, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport=viewport, **options))
        contexts[-1].set_default_timeout(90_000)  # a busy machine is slow, not wrong
        contexts[-1].on("request", lambda request: requests.append(request.url))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_label("Your name").fill(name)
        page.get_by_role("button", name="Start").click()
        page.wait_for_function(READY, arg=None)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert requests
    assert [url for url in requests if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", url)] == []
    assert errors == []


def lease(page: Any) -> str:
    return page.get_attribute("#stage", "data-lease")


def press(page: Any, key: str) -> None:
    """Press a voting key when a pair is there (after trouble it may still be on its way), and wait for the next one."""
    page.wait_for_selector("body.ready")
    before = lease(page)
    page.keyboard.press(key)
    page.wait_for_function(READY, arg=before)


def saved(page: Any) -> None:
    page.wait_for_selector("#status[data-state=saved]")


def test_pairs_are_kept_while_somebody_is_there_and_free_after_that(enter: Any, address: str, store: Store) -> None:
    store.lease_seconds = 4.0
    page = enter(address)
    [mine] = [one.pair_id for one in store.claim("Ada", 1)[0]]
    for _ in range(8):  # twice as long as the lease
        page.mouse.move(100 + 50 * time.monotonic() % 300, 200)
        page.wait_for_timeout(1000)
    assert mine not in {one.pair_id for one in store.claim("Bob", 20)[0]}
    page.wait_for_timeout(2.5 * 4000)  # nobody moves: renewed once or twice more, then no longer
    assert mine in {one.pair_id for one in store.claim("Cyd", 20)[0]}


def test_votes_by_keyboard(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    keys = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", "ArrowUp": "both_bad", "s": "skip"}
    for key in keys:
        press(page, key)
    saved(page)
    rows = store.votes()
    assert [row["annotator"] for row in rows] == ["Ada"] * 5
    other = {"a": "b", "b": "a"}
    expected = [rows[0]["displayed_left"], other[rows[1]["displayed_left"]], "tie", "both_bad", "skip"]
    assert [row["winner"] for row in rows] == expected
    assert all(0 < row["response_ms"] < 30_000 for row in rows)
    assert page.text_content("#count") == "5 of 20"


def test_a_key_held_down_is_one_vote(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    before = lease(page)
    for _ in range(5):  # without a keyup between, Chromium reports repeats
        page.keyboard.down("ArrowLeft")
    page.wait_for_function(READY, arg=before)
    saved(page)
    assert len(store.votes()) == 1


def test_a_focused_button_is_pressed_by_space_and_the_peeking_ones_are_held(enter: Any, address: str) -> None:
    page = enter(address)
    page.focus("#guide")
    page.keyboard.press("Space")
    assert page.evaluate("document.querySelector('#guidelines').open")
    page.keyboard.press("Escape")
    page.locator("#peek-original").hover()
    page.mouse.down()
    page.mouse.up()
    page.keyboard.down("Space")
    assert page.get_attribute("#stage", "data-peek") == "input"  # not the original that was looked at before
    page.keyboard.up("Space")
    for key in ("Space", "Enter"):
        page.focus("#peek-input")
        page.keyboard.down(key)
        assert page.get_attribute("#stage", "data-peek") == "input"
        page.keyboard.up(key)
        assert page.get_attribute("#stage", "data-peek") is None
    page.focus("#sign-out button")
    page.keyboard.press("Space")
    page.get_by_label("Your name").wait_for()


def test_undo_and_resume_after_reload(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    first = lease(page)
    press(page, "ArrowLeft")
    press(page, "u")
    assert lease(page) == first, "the pair came back"
    press(page, "ArrowRight")
    saved(page)
    assert [row["undone_by"] != "" for row in store.votes()] == [True, False]
    current = lease(page)
    page.reload()
    page.wait_for_function(READY, arg=None)
    assert lease(page) == current
    assert page.text_content("#count") == "1 of 20"
    press(page, "u")
    assert lease(page) == first, "undo works after a reload, too"


def test_the_second_click_of_two_judges_nothing(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    first = lease(page)
    page.dblclick('[data-choice="left"]', delay=60)  # the next pair is up before the second click
    page.wait_for_function(READY, arg=first)
    saved(page)
    assert len(store.votes()) == 1
    page.wait_for_selector("body.ready")
    second = lease(page)
    page.keyboard.press("Space")  # shows the input: no button has kept the focus
    page.wait_for_timeout(200)
    assert lease(page) == second
    page.click('[data-choice="left"]')
    page.wait_for_function(READY, arg=second)
    page.dblclick("#undo", delay=60)
    page.wait_for_function(BACK, arg=second)
    saved(page)
    assert [row["undone_by"] != "" for row in store.votes()] == [False, True], "one click of two took one back"


def test_undo_with_nothing_to_take_back_leaves_the_pair_to_be_judged(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    first = lease(page)
    page.keyboard.press("u")
    saved(page)
    page.wait_for_selector("body.ready")
    assert lease(page) == first
    press(page, "ArrowLeft")
    saved(page)
    assert len(store.votes()) == 1


def test_while_an_undo_is_on_its_way_no_button_offers_a_vote(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    first = lease(page)
    press(page, "ArrowLeft")
    saved(page)
    page.route("**/api/**", lambda route: route.abort())
    page.keyboard.press("u")
    page.wait_for_selector('[data-choice="left"]:disabled')
    page.unroute("**/api/**")
    page.wait_for_function(BACK, arg=first)
    press(page, "ArrowRight")
    saved(page)
    assert [row["undone_by"] != "" for row in store.votes()] == [True, False]


def test_a_key_that_bounces_judges_one_pair(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    page.wait_for_selector("body.ready")
    first = lease(page)
    bounce = """async (first) => {
      const press = () => document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
      press();
      press();
      const stage = document.querySelector("#stage");
      while (stage.dataset.lease === first) await new Promise((done) => setTimeout(done, 1));
      press(); // the next pair has just come up
    }"""
    page.evaluate(bounce, first)
    saved(page)
    assert len(store.votes()) == 1
    press(page, "ArrowRight")
    saved(page)
    assert len(store.votes()) == 2


def test_letters_work_by_their_place_on_a_keyboard_that_is_not_latin(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    first = lease(page)
    page.wait_for_selector("body.ready")
    page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ы', code: 'KeyS', bubbles: true}))")
    page.wait_for_function(READY, arg=first)
    saved(page)
    assert [row["winner"] for row in store.votes()] == ["skip"]


def test_a_vote_right_after_undo_waits_for_the_pair_that_comes_back(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    first = lease(page)
    press(page, "ArrowLeft")
    saved(page)
    left = lease(page)
    held: list[Any] = []
    # the undo is saved, the pair not back yet
    page.route("**/api/next", lambda route: route.continue_() if held else held.append(route))
    page.keyboard.press("u")
    while not held:
        page.wait_for_timeout(10)
    page.keyboard.press("ArrowRight")
    assert lease(page) == left, "not judged: it was about to leave the screen"
    held[0].continue_()
    page.wait_for_function(READY, arg=left)
    assert lease(page) == first
    saved(page)
    assert [row["undone_by"] != "" for row in store.votes()] == [True]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 200, "body": "<h1>Sign in</h1>", "content_type": "text/html"},
        {"status": 200, "body": "{}", "content_type": "application/json"},
        {"status": 404, "body": '{"detail": "Not Found"}', "content_type": "application/json"},
    ],
    ids=["a proxy's login page", "another program", "not found"],
)
def test_an_answer_that_is_not_ours_saves_no_vote_and_loses_none(
    enter: Any, address: str, store: Store, answer: dict[str, Any]
) -> None:
    page = enter(address)
    page.route("**/api/events", lambda route: route.fulfill(**answer))
    press(page, "ArrowLeft")
    page.get_by_text("something else answers at the server's address. 1 answer is kept in this browser").wait_for()
    assert store.votes() == []
    page.unroute("**/api/events")
    saved(page)
    assert len(store.votes()) == 1


def test_two_browsers_at_once_never_judge_the_same_pair(enter: Any, address: str, store: Store) -> None:
    pages = {"Ada": enter(address, "Ada"), "Bob": enter(address, "Bob", PHONE)}
    deadline = time.monotonic() + 90
    # not in fixed turns: near the end one may hold all that is left while the other waits
    while not all(page.get_by_text("All done").is_visible() for page in pages.values()):
        assert time.monotonic() < deadline, store.votes()
        for page in pages.values():
            if page.evaluate("document.body.classList.contains('ready')"):
                page.keyboard.press("ArrowLeft")
            page.wait_for_timeout(20)
    judged = Counter(row["pair_id"] for row in store.votes())
    assert (len(judged), set(judged.values())) == (20, {1})
    assert {row["annotator"] for row in store.votes()} == set(pages)


def test_a_locked_database_is_said_and_the_vote_is_kept_through_a_reload(
    enter: Any, address: str, store: Store, tmp_path: Path
) -> None:
    page = enter(address)
    saved(page)
    blocker = sqlite3.connect(tmp_path / "votes.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    press(page, "ArrowLeft")
    page.get_by_text("locked by another program. 1 answer is kept in this browser").wait_for()
    page.reload()
    page.get_by_text("1 answer is kept in this browser").first.wait_for()
    assert store.votes() == []
    blocker.execute("ROLLBACK")
    saved(page)
    assert len(store.votes()) == 1
    assert page.is_hidden("#notice")


def test_input_and_original_in_place_of_both_pictures(enter: Any, address: str, store: Store) -> None:
    page = enter(address)
    visible = "slot => [...document.querySelectorAll('.pane .' + slot)].map(i => getComputedStyle(i).visibility)"
    page.keyboard.down(" ")
    assert page.evaluate(visible, "input") == ["visible"] * 2
    assert page.evaluate(visible, "candidate") == ["hidden"] * 2
    page.keyboard.up(" ")
    assert page.evaluate(visible, "candidate") == ["visible"] * 2
    press(page, "ArrowLeft")
    page.keyboard.down("r")
    page.wait_for_function("() => [...document.querySelectorAll('.pane .original')].every(i => i.naturalWidth)")
    page.keyboard.up("r")
    press(page, "ArrowLeft")
    saved(page)
    assert [row["shown_reference"] for row in store.votes()] == [False, True]


def test_zoom_and_pan_move_both_pictures_alike(enter: Any, address: str) -> None:
    page = enter(address)
    matrices = "[...document.querySelectorAll('.pane .candidate')].map(i => getComputedStyle(i).transform)"
    at_rest = page.evaluate(matrices)
    box = page.locator(".pane").first.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.wheel(0, -300)
    page.wait_for_selector(".stage.zoomed")
    zoomed = page.evaluate(matrices)
    assert zoomed[0] == zoomed[1] != at_rest[0]
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 120)
    page.mouse.up()
    panned = page.evaluate(matrices)
    assert panned[0] == panned[1] != zoomed[0]
    page.keyboard.press("0")
    assert page.evaluate(matrices) == at_rest


@pytest.mark.parametrize(("viewport", "least"), [(DESKTOP, 560), (PHONE, 300)], ids=["desktop", "phone"])
def test_pictures_are_large_and_equal_and_everything_fits(
    enter: Any, address: str, store: Store, viewport: dict[str, int], least: int
) -> None:
    page = enter(address, viewport=viewport, has_touch=True)
    boxes = [box.bounding_box() for box in page.locator(".pane").all()]
    assert boxes[0]["width"] == boxes[1]["width"] == boxes[0]["height"] == boxes[1]["height"] >= least
    name = page.locator("#sign-out button").bounding_box()
    assert name["x"] + name["width"] <= viewport["width"], "whoever shares a phone can sign out"
    for button in page.locator("footer button").all():
        box = button.bounding_box()
        assert box["height"] >= 44, "large enough for a thumb"
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= viewport["width"]
        assert box["y"] + box["height"] <= viewport["height"]
    before = lease(page)
    page.locator("[data-choice=tie]").tap()
    page.wait_for_function(READY, arg=before)
    saved(page)
    assert [row["winner"] for row in store.votes()] == ["tie"]


def start(project: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    command = "import typer; from pipeline.annotation.commands import annotate; typer.run(annotate)"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "--port", str(port)],
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    assert process.stdout is not None
    found = re.search(r"http://\S+/", process.stdout.readline())
    assert found is not None, "the command says where the page is"
    return process, found.group()


def test_a_server_killed_in_the_middle_loses_nothing(enter: Any, project: Path) -> None:
    process, address = start(project, 0)
    try:
        page = enter(address)
        press(page, "ArrowLeft")
        saved(page)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        page.keyboard.press("ArrowRight")
        page.get_by_text("1 answer is kept in this browser").first.wait_for()
        process, _ = start(project, int(address.rsplit(":", 1)[1].strip("/")))
        saved(page)
        press(page, "ArrowDown")
        saved(page)
    finally:
        process.kill()
        process.communicate()
    rows = Store(f"sqlite:///{project / 'annotations' / 'votes.sqlite'}").votes()
    assert [row["winner"] in ("a", "b") for row in rows] == [True, True, False]
    assert len({row["event_id"] for row in rows}) == 3
